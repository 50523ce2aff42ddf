"""Voxels that nothing is known of: which of them are predicted from their neighbours, and which stay as they are."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from emformer_hub.geometry import SectionModel
from emformer_hub.reconstruction.repair import Repair
from emformer_hub.volumes.boxes import Box, numbers, shape_of
from emformer_hub.volumes.checks import MOST_MASKED, NEIGHBOURHOOD
from emformer_hub.volumes.stored import StoredArray
from emformer_hub.volumes.unmeasured import margins


class Seen(NamedTuple):
    """A box of a stack, ``(z, y, x)``.

    Attributes:
        voxels: what it holds.
        hidden: bool; voxels whose values are not used; ``None`` if there are none.
        kept: bool; those of them that stay as they are in the result, because too little is known around them, or
            because they are a margin; ``None`` if there are none.
    """

    voxels: np.ndarray
    hidden: np.ndarray | None = None
    kept: np.ndarray | None = None

    @property
    def filled(self) -> np.ndarray | None:
        """Bool; voxels that are predicted."""
        return self.hidden if self.hidden is None or self.kept is None else self.hidden & ~self.kept


@dataclass(frozen=True, eq=False)
class Gaps:
    """Where a stack is not to be believed.

    Attributes:
        hidden: mask of voxels that hold a mark of no data or lie outside of a mask, if such were given.
        margin: value of constant margins, if there are any; they are kept.
        repair: sections that are to be predicted, whole or in places.
    """

    hidden: StoredArray | None = None
    margin: float | None = None
    repair: Repair = field(default_factory=Repair)

    def mask(self, stack: Any, region: Box) -> StoredArray | None:
        """Mask of the voxels of a region that are not used, bool ``(z, y, x)``; ``None`` if there are none."""
        if self.hidden is None and self.margin is None and not self.repair.reasons:
            return None
        z, y, x = (part.stop - part.start for part in region)
        return StoredArray((z, y, x), np.dtype(bool), (1, y, x), partial(self._read_mask, stack, region))

    def _read_mask(self, stack: Any, region: Box, box: Box) -> np.ndarray:
        mask = np.zeros(shape_of(box), bool)
        inside = tuple(slice(None, None, part.step) for part in box[1:])
        for section, number in zip(mask, numbers(box[0]), strict=True):
            z, y, x = (
                slice(part.start + whole.start, part.stop + whole.start)
                for part, whole in zip((slice(number, number + 1), *box[1:]), region, strict=True)
            )
            replaced = self.repair.mask((z, y, x))
            section |= False if replaced is None else replaced[0][inside]
            section |= False if self.hidden is None else self.hidden[z, y, x][0][inside]
            section |= False if self.margin is None else margins(stack, self.margin)[z, y, x][0][inside]
        return mask

    def see(self, stack: Any, box: Box, sections: slice) -> Seen:
        """Read a box; ``sections`` are those that may be looked at."""
        z, *yx = box
        voxels = np.asarray(stack[box])
        if self.hidden is None and self.margin is None:
            return Seen(voxels, self.repair.mask(box))
        around = slice(max(sections.start, z.start - NEIGHBOURHOOD), min(sections.stop, z.stop + NEIGHBOURHOOD))
        wide = (around, yx[0], yx[1])
        hidden, margin = self.repair.mask(wide), None
        if self.hidden is not None:
            hidden = self.hidden[wide] if hidden is None else hidden | self.hidden[wide]
        if self.margin is not None:
            margin = margins(stack, self.margin)[wide]
            margin = margin if hidden is None else margin & ~hidden
        inner = slice(z.start - around.start, z.stop - around.start)
        hidden, kept = hidden_and_kept(hidden, margin)
        return Seen(voxels, *(part[inner] if part[inner].any() else None for part in (hidden, kept)))


def hidden_and_kept(hidden: np.ndarray | None, margin: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """All voxels that are not used, and those of them that are not predicted either; bool ``(z, y, x)``.

    Networks are trained to fill gaps of 3 sections of 7 neighbours; voxels within wider ones are kept, and so is a
    margin. Sections beyond the first and the last count as measured, as where a whole stack is given.
    """
    if hidden is None or margin is None:
        every = margin if hidden is None else hidden
        assert every is not None
    else:
        every = hidden | margin
    kept = _in_wide_gaps(every)
    return every, kept if margin is None else kept | margin


def _in_wide_gaps(hidden: np.ndarray) -> np.ndarray:
    """True for hidden voxels with more than 3 hidden ones among any 7 neighbours that they are one of."""
    counts, crowded = np.zeros(hidden.shape[1:], np.uint8), np.zeros_like(hidden)
    for z in range(len(hidden)):
        counts += hidden[z]
        if z >= NEIGHBOURHOOD:
            counts -= hidden[z - NEIGHBOURHOOD]
        crowded[max(0, z - NEIGHBOURHOOD + 1) : z + 1] |= counts > MOST_MASKED
    return crowded & hidden


def put_back(made: list[np.ndarray], values: list[float | None], seen: Seen, sections: np.ndarray) -> None:
    """Give voxels that are kept what they were, in place.

    Args:
        made: outputs of the box, each ``(planes, y, x)``.
        values: what each output holds there; ``None`` for the voxels of the stack.
        seen: the rows and columns of the outputs.
        sections: number within ``seen`` of the section that each plane belongs to.
    """
    if seen.kept is None:
        return
    for plane, section in enumerate(sections):
        kept = seen.kept[section]
        for output, value in zip(made, values, strict=True):
            output[plane][kept] = seen.voxels[section][kept] if value is None else value


def sections_of_planes(geometry: SectionModel, planes: slice, last: int) -> np.ndarray:
    """The section that each of some planes belongs to; those beyond the slab of the last one belong to it."""
    return geometry.sections_of(planes.stop - planes.start, planes.start).clip(max=last)
