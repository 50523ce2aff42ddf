"""Chunks that are missing: margins of which nothing was written, or parts of tissue that were lost on the way."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from emformer_hub.errors import InputError
from emformer_hub.volumes.boxes import shape_of

logger = logging.getLogger(__name__)

_MOST_COUNTED = 2**16
"""Chunks that are looked for when an array is opened; of more, and elsewhere, each is when it is read."""
_MOST_COMPARED = 64  # missing chunks whose neighbours are looked at when an array is opened

Place = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Grid:
    """The chunks of a stored array, a file each.

    Attributes:
        name: of the array, for messages.
        shape: of the array.
        sides: of a chunk.
        fill: what voxels of missing chunks are read as.
        file: name of the file of a chunk.
        exists: whether there is that file.
        read: what reads a box of the array.
        nodata: value of voxels that were not measured; if it is the fill value, chunks may be missing anywhere.
    """

    name: str
    shape: tuple[int, ...]
    sides: tuple[int, ...]
    fill: Any
    file: Callable[[Place], str]
    exists: Callable[[Place], bool]
    read: Callable[[tuple[slice, ...]], np.ndarray]
    nodata: float | None = None
    _lost: dict[Place, bool] = field(default_factory=dict)

    def places(self, box: Sequence[slice]) -> list[range]:
        """Numbers along each axis of the chunks that hold a box."""
        return [range(p.start // side, -(-p.stop // side)) for p, side in zip(box, self.sides, strict=True)]

    def box(self, place: Place) -> tuple[slice, ...]:
        """What a chunk holds."""
        return tuple(
            slice(number * side, min((number + 1) * side, length))
            for number, side, length in zip(place, self.sides, self.shape, strict=True)
        )

    def lost(self, place: Place) -> bool:
        """Whether a chunk is missing although most voxels that touch it hold something else than the fill value.

        Chunks that hold nothing else may be left out, as at the margin of a volume that was registered. The margin
        begins within a chunk that is there, so that its last voxels hold the fill value too; those beside a chunk that
        was lost do not.
        """
        if self.nodata is not None and _is(np.asarray(self.nodata), self.fill):
            return False
        if place not in self._lost:
            self._lost[place] = not self.exists(place) and self._borders_on_tissue(place)
        return self._lost[place]

    def _borders_on_tissue(self, place: Place) -> bool:
        for axis, step in itertools.product(range(len(place)), (-1, 1)):
            beside = (*place[:axis], place[axis] + step, *place[axis + 1 :])
            if not 0 <= beside[axis] * self.sides[axis] < self.shape[axis] or not self.exists(beside):
                continue
            face = list(self.box(beside))
            edge = face[axis].stop - 1 if step < 0 else face[axis].start
            face[axis] = slice(edge, edge + 1)
            try:
                voxels = self.read(tuple(face))
            except (ValueError, RuntimeError, LookupError, TypeError, OSError, EOFError):
                continue  # named where it is read
            if not _is(voxels, self.fill).mean() > 0.5:
                return True
        return False


def _is(voxels: np.ndarray, fill: Any) -> np.ndarray:
    return voxels != voxels if fill != fill else voxels == fill


def check_box(grid: Grid, box: Sequence[slice], voxels: np.ndarray) -> None:
    """Raise ``InputError`` if a box that was read has a part that was lost; boxes with steps are not looked at."""
    if any(part.step not in (None, 1) for part in box):
        return
    voxels = voxels.reshape(shape_of(box))  # with the axes that an index has left out
    for place in itertools.product(*grid.places(box)):
        inside = tuple(
            slice(max(held.start, part.start) - part.start, min(held.stop, part.stop) - part.start)
            for held, part in zip(grid.box(place), box, strict=True)
        )
        if _is(voxels[inside], grid.fill).all() and grid.lost(place):
            raise _lost(grid, place)


def check_all(grid: Grid, whole: Sequence[slice]) -> None:
    """Say how many chunks of a part of the array are missing, and refuse it if one was lost.

    Raises:
        InputError: no chunk is there, or one is missing beside tissue.
    """
    ranges = grid.places(whole)
    if math.prod(map(len, ranges)) > _MOST_COUNTED:
        return
    places = list(itertools.product(*ranges))
    missing = [place for place in places if not grid.exists(place)]
    if not missing:
        return
    if len(missing) == len(places):
        raise InputError(
            f"{grid.name} holds no chunk of its array, the first of which would be {grid.file(places[0])}. Copy it "
            f"again."
        )
    for place in missing[:_MOST_COMPARED]:
        if grid.lost(place):
            raise _lost(grid, place)
    logger.warning(
        "%s lacks %d of %d chunks, the first %s with voxels %s; they are read as %s.",
        grid.name,
        len(missing),
        len(places),
        grid.file(missing[0]),
        listed(grid.box(missing[0])),
        grid.fill,
    )


def _lost(grid: Grid, place: Place) -> InputError:
    return InputError(
        f"{grid.file(place)} is missing beside chunks that hold tissue; it held voxels {listed(grid.box(place))}. Copy "
        f"{grid.name} again. If nothing was ever written there, crop the array, or say by --nodata {grid.fill} that "
        f"what reads so was not measured."
    )


def listed(box: Sequence[slice]) -> str:
    """``z 0:64, y 128:256, x 0:128``, or the ranges alone for another number of axes."""
    ranges = [f"{part.start}:{part.stop}" for part in box]
    if len(box) < 3:
        return ", ".join(ranges)
    return ", ".join(f"{axis} {part}" for axis, part in zip("zyx", ranges[-3:], strict=True))
