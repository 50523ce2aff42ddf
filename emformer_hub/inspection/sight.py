"""How the inspection sees sections: shrunken, standardised, laid over each other, and beside which others."""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock

import numpy as np

from emformer_hub import machine
from emformer_hub.inspection import measures
from emformer_hub.inspection.measures import SCALES, Displacement
from emformer_hub.inspection.quality import NO_STANDARD
from emformer_hub.volumes import StoredArray
from emformer_hub.volumes.boxes import block_means

LONGEST_SIDE = 2048
KEPT = 5
"""Sections that are kept for the next ones, besides one for each thread."""
A_VOXEL = 160
"""Bytes that comparing a section takes for each of its voxels: 136 to 150 of peaks of resident memory, for each thread
beyond the first, in sections of 2048 x 2048 voxels; and a little more."""
_ROUND = max(scale.shrink for scale in SCALES)


class Sight:
    """Reads sections as they are compared: shrunken and standardised, the last few kept; and chooses what to compare
    each one with."""

    def __init__(self, stack: np.ndarray | StoredArray) -> None:
        self.stack = stack
        self.shrink = -(-max(stack.shape[1:]) // LONGEST_SIDE)
        self.at_once = _at_once(int(np.prod(stack.shape[1:])) // self.shrink**2)
        self.usable: list[int] = []
        self.shifts: dict[int, tuple[float, float]] = {}
        self._missing: set[int] = set()
        self._distant: set[int] = set()
        self._uneven: set[int] = set()
        self._kept: dict[int, np.ndarray] = {}
        self._lock = Lock()

    def raw(self, z: int) -> np.ndarray:
        section = np.asarray(self.stack[z])
        return section if self.shrink == 1 else block_means(section, (self.shrink,) * 2)

    def standard(self, z: int) -> np.ndarray:
        """The standardised section, aligned with its neighbours if it is shifted."""
        with self._lock:
            if z not in self._kept:
                section = measures.standardise(self.raw(z))
                if z in self.shifts:
                    by = tuple(-round(part / self.shrink) for part in self.shifts[z])
                    section = np.roll(section, by, axis=(0, 1))
                while len(self._kept) >= KEPT + self.at_once:
                    self._kept.pop(next(iter(self._kept)))
                self._kept[z] = section
            return self._kept[z]

    def arrange(self, against: Sequence[Displacement | None], flags: Sequence[list[str]]) -> None:
        """Decide which sections the others may be compared with, and by how much each is shifted."""
        self._missing = {z for z, flag in enumerate(flags) if "missing" in flag}
        self._distant = {z for z, flag in enumerate(flags) if "distant" in flag}
        self._uneven = {z for z, flag in enumerate(flags) if {"brightness", "contrast"}.intersection(flag)}
        self.usable = [z for z, flag in enumerate(flags) if not NO_STANDARD.intersection(flag)]
        for z, (flag, found) in enumerate(zip(flags, against, strict=True)):
            if "shifted" in flag and found is not None:
                y, x = (part * self.shrink for part in found.shift_yx)
                self.shifts[z] = (y, x)
        self._kept.clear()

    def comparable(self, z: int) -> bool:
        return z not in self._missing and len([other for other in self.usable if other != z]) >= 2

    def compared(self, z: int, beside: bool = False) -> tuple[str, int, int]:
        """The sections to compare with: ``between`` if they lie on both sides, else ``beside``; and their numbers."""
        before = [other for other in self.usable if other < z]
        after = [other for other in self.usable if other > z]
        if before and after and not beside:
            return "between", before[-1], after[0]
        first, second = after[:2] if len(after) >= 2 else before[-2:] if len(before) >= 2 else [before[-1], after[0]]
        return "beside", first, second

    def nearness(self, z: int) -> float:
        """How near what a section is compared with lies, 1 where none is missing."""
        kind, *pair = self.compared(z)
        gaps = [len(self._distant.intersection(range(min(z, other) + 1, max(z, other) + 1))) for other in pair]
        return {"between": 2, "beside": 3}[kind] / (sum(abs(other - z) for other in pair) + sum(gaps))

    def torn(self, z: int) -> float:
        """Displacement of parts of a section against each other, in voxels of the stack."""
        _, first, second = self.compared(z)
        return self.shrink * measures.displaced_parts(self.standard(z), self.standard(first), self.standard(second))

    def deviations(self, z: int, beside: bool = False) -> tuple[str, list[np.ndarray]]:
        """Which side the compared sections lie on, as :meth:`compared` says, and a map for each of ``SCALES``."""
        kind, *pair = self.compared(z, beside)
        here, first, second = (self.standard(number) for number in (z, *pair))
        if z in self._uneven:  # another curve of grey values is no damage
            here = measures.with_greys_of(here, (first, second))
        if z not in self.shifts:
            return kind, [measures.deviations(here, first, second, scale) for scale in SCALES]
        # voxels rolled in from the other side do not belong to this section
        rolled = [_ROUND * -(-abs(round(part / self.shrink)) // _ROUND) for part in self.shifts[z]]
        inner = tuple(slice(rim, side - rim) for rim, side in zip(rolled, here.shape, strict=True))
        maps = []
        for scale in SCALES:
            found = np.zeros((2, *(side // scale.shrink for side in here.shape)), np.float32)
            if min(here[inner].shape) >= measures.MIN_SIDE:
                part = measures.deviations(here[inner], first[inner], second[inner], scale)
                y, x = (rim // scale.shrink for rim in rolled)
                found[:, y : y + part.shape[1], x : x + part.shape[2]] = part
            maps.append(found)
        return kind, maps


def _at_once(voxels: int) -> int:
    """Number of sections of so many voxels to compare at a time: one a core, as far as half of the memory is free."""
    room = machine.free_memory() // (2 * A_VOXEL * voxels)
    return max(1, min(machine.num_threads(), room))
