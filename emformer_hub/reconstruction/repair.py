"""Bad sections, named by the user or found by an inspection, which are predicted from their neighbours."""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from emformer_hub.errors import InputError
from emformer_hub.volumes.boxes import Box
from emformer_hub.volumes.checks import MOST_MASKED, NEIGHBOURHOOD, check_mask
from emformer_hub.volumes.remote import Remote
from emformer_hub.volumes.translated import Translations, translated_section
from emformer_hub.volumes.volume import Volume

if TYPE_CHECKING:
    from emformer_hub.inspection import Inspection

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Repair:
    """The voxels of a stack that are predicted from their neighbours instead of used.

    Attributes:
        reasons: why each section is replaced, whole or in places, by number.
        damage: bool ``(y, x)``, True where a section is damaged, for the sections that are replaced only in places.
    """

    reasons: dict[int, str] = field(default_factory=dict)
    damage: dict[int, np.ndarray] = field(default_factory=dict)

    @property
    def whole(self) -> list[int]:
        """Numbers of the sections that are replaced as a whole."""
        return [z for z in self.reasons if z not in self.damage]

    @property
    def listed(self) -> tuple[tuple[int, str, float], ...]:
        """Number, reason and replaced fraction of each section."""
        return tuple(
            (z, why, float(self.damage[z].mean()) if z in self.damage else 1.0) for z, why in self.reasons.items()
        )

    @property
    def digest(self) -> str | None:
        """Digest of the damage; repairs with equal lists and equal digests are equal."""
        if not self.damage:
            return None
        digest = hashlib.sha256()
        for z, mask in sorted(self.damage.items()):
            digest.update(f"{z} {mask.shape}".encode() + np.packbits(mask).tobytes())
        return digest.hexdigest()

    def sections(self, depth: int) -> np.ndarray:
        """Mask of the sections that are replaced as a whole, bool ``(depth,)``."""
        mask = np.zeros(depth, bool)
        mask[[z for z in self.whole if z < depth]] = True
        return mask

    def mask(self, box: Box) -> np.ndarray | None:
        """True for the voxels of a box that are replaced, bool ``(z, y, x)``; ``None`` if none is."""
        z, y, x = box
        inside = [number for number in self.reasons if z.start <= number < z.stop]
        if not inside:
            return None
        mask = np.zeros([part.stop - part.start for part in box], bool)
        for number in inside:
            mask[number - z.start] = self.damage[number][y, x] if number in self.damage else True
        return mask if mask.any() else None

    def moved(self, translations: Translations) -> Repair:
        """The repair of the same stack with its sections moved along y and x, in voxels."""
        damage = {z: translated_section(mask, translations[z]) for z, mask in self.damage.items()}
        return Repair(self.reasons, damage)

    def check(self, box: Box) -> None:
        """Raise ``InputError`` if too few neighbours are left in a box of the stack to predict its bad sections."""
        z, y, x = box
        check_mask(self.sections(z.stop)[z], (z.stop - z.start, 1, 1))
        for first in (number for number in self.reasons if z.start <= number < z.stop):
            numbers = [number for number in self.reasons if first <= number < min(first + NEIGHBOURHOOD, z.stop)]
            if len(numbers) > MOST_MASKED:
                count = np.zeros((y.stop - y.start, x.stop - x.start), np.uint8)
                for number in numbers:
                    count += self.damage[number][y, x] if number in self.damage else True
                if (count > MOST_MASKED).any():
                    raise InputError(
                        f"sections {', '.join(map(str, numbers))} are to be repaired at one place; at most "
                        f"{MOST_MASKED} of {NEIGHBOURHOOD} neighbours can be. Name fewer with --repair, or leave these "
                        f"sections out with --roi."
                    )

    def save(self, path: Path | Remote) -> None:
        """Write the damage to a compressed file."""
        masks: dict[str, Any] = {str(z): mask for z, mask in self.damage.items()}
        np.savez_compressed(file := io.BytesIO(), **masks)
        path.write_bytes(file.getvalue())

    @classmethod
    def load(cls, listed: Sequence[tuple[int, str, float]], path: Path | Remote) -> Repair:
        """Restore a repair from its list and from what :meth:`save` wrote."""
        reasons = {z: why for z, why, _ in listed}
        if not path.exists():
            return cls(reasons)
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            return cls(reasons, {int(z): file[z] for z in file.files})


def parse_sections(text: str) -> list[int]:
    """``"3,7-9"`` -> ``[3, 7, 8, 9]``; raises ``InputError`` for anything else."""
    numbers: list[int] = []
    try:
        for part in text.split(","):
            first, *last = map(int, part.split("-"))
            numbers += range(first, (last[0] if last else first) + 1)
            if len(last) > 1 or not range(first, (last[0] if last else first) + 1):
                raise ValueError
    except ValueError:
        raise InputError(
            f"--repair {text!r} is neither auto, none nor a list of sections, counted from 0, as in 3,7-9."
        ) from None
    return sorted(set(numbers))


def choose_repair(stack: Volume[Any], chosen: str | Sequence[int] | Repair, name: str) -> Repair:
    """Choose the voxels of a stack to replace.

    Args:
        stack: the stack.
        chosen: ``"none"``; ``"auto"``, what :func:`~emformer_hub.inspect_stack` flags as missing, duplicate, unlike its
            neighbours or blurred beyond use, and in places what it flags as damaged; numbers of sections; or a
            repair, which is returned.
        name: name of the stack in messages.

    Raises:
        InputError: a section does not exist, the text is not a list of sections, or, for ``"auto"``, as
            ``inspect_stack``.
    """
    if isinstance(chosen, Repair):
        return chosen
    if not isinstance(chosen, str):
        beyond = [z for z in chosen if not 0 <= z < len(stack.data)]
        if beyond:
            raise InputError(f"section {beyond[0]} is not there; {name} has sections 0 to {len(stack.data) - 1}.")
        return Repair(dict.fromkeys(chosen, "named"))
    if chosen == "none":
        return Repair()
    if chosen != "auto":
        return choose_repair(stack, parse_sections(chosen), name)
    from emformer_hub.inspection.sections import inspect_stack

    inspection = inspect_stack(stack.data, hidden=stack.hidden)
    for remark in inspection.stack.remarks:
        log.warning("%s: %s", name, remark)
    return repair_of(inspection)


def repair_of(inspection: Inspection) -> Repair:
    """The voxels that an inspection asks to replace: whole sections, or in places where they are damaged."""
    reasons, damage = {}, {}
    for quality in inspection.sections:
        z, why = quality.section, ", ".join(quality.flags)
        if "damaged" in quality.flags and not {"missing", "duplicate", "unlike"}.intersection(quality.flags):
            mask = inspection.damage_mask(z)  # damage with hard edges makes a section look blurred too
            reasons[z], damage[z] = why, mask
        elif z in inspection.flagged:
            reasons[z] = why
    return Repair(reasons, damage)
