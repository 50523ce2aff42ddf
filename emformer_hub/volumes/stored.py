"""Voxels that stay on disk until they are sliced: what zarr and h5py arrays share, and no more."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import EllipsisType
from typing import Any

import numpy as np

from emformer_hub.volumes.boxes import Box

BOX_VOXELS = 2**21
"""Smaller chunks are read several at a time, because each time the file is opened anew."""


@dataclass(frozen=True, eq=False)
class StoredArray:
    """A volume ``(z, y, x)`` on disk; a slice of it is an array in memory, as a slice of a memory map would be.

    It takes whole numbers, slices with positive steps and ``...``; ``stored[:]`` loads everything, and so does
    ``np.asarray``. It holds no open file: it may be pickled, and used by forked processes and by threads at once.

    Attributes:
        shape: ``(z, y, x)``.
        dtype: of every slice, in native byte order.
        chunks: ``(z, y, x)``, the boxes in which the file holds voxels: reading one voxel reads its box.
        read: what reads a box.
    """

    shape: tuple[int, int, int]
    dtype: np.dtype
    chunks: tuple[int, int, int]
    read: Callable[[Box], np.ndarray]

    @property
    def ndim(self) -> int:
        return 3

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> np.ndarray:
        """The voxels that numpy would give, read from the file.

        Raises:
            IndexError: out of range, or neither whole numbers nor slices with positive steps.
            InputError: the file is damaged or gone.
        """
        parts = [_part(item, length) for item, length in zip(self._full(index), self.shape, strict=True)]
        z, y, x = (slice(part, part + 1, 1) if isinstance(part, int) else part for part in parts)
        # a whole number drops its axis; what it leaves of the box has length 1
        return self.read((z, y, x))[tuple(0 if isinstance(part, int) else slice(None) for part in parts)]

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("voxels on disk become an array only by being read; copy=False cannot be had.")
        return np.asarray(self[:], dtype)

    def draw_boxes(self, voxels: int) -> list[Box]:
        """Boxes of about so many voxels together, and at least 16, drawn at random: always the same, in their order.

        A box is a chunk, or several where chunks are small. If the volume has no more voxels, the boxes fill it.
        """
        joined = max(1, round((BOX_VOXELS / math.prod(self.chunks)) ** (1 / 3)))
        sides = [min(joined * chunk, length) for chunk, length in zip(self.chunks, self.shape, strict=True)]
        counts = [-(-length // side) for length, side in zip(self.shape, sides, strict=True)]
        total = math.prod(counts)
        wanted = max(16, round(total * voxels / self.size))
        if total <= wanted:
            drawn = np.arange(total)
        else:
            drawn = np.sort(np.random.default_rng(0).choice(total, wanted, replace=False))
        boxes = []
        for place in zip(*np.unravel_index(drawn, counts), strict=True):
            starts = [int(number) * side for number, side in zip(place, sides, strict=True)]
            z, y, x = (slice(a, min(a + side, n), 1) for a, side, n in zip(starts, sides, self.shape, strict=True))
            boxes.append((z, y, x))
        return boxes

    def _full(self, index: Any) -> tuple[Any, ...]:
        """One item for each axis."""
        items = index if isinstance(index, tuple) else (index,)
        gaps = [place for place, item in enumerate(items) if isinstance(item, EllipsisType)]
        if len(items) - len(gaps) > 3 or len(gaps) > 1:
            raise IndexError(f"index {index} has too many parts; expected at most three, for z, y and x.")
        place = gaps[0] if gaps else len(items)
        whole = [slice(None)] * (3 - len(items) + len(gaps))
        return (*items[:place], *whole, *items[place + 1 :])


def cropped(volume: Any, box: Box) -> Any:
    """A box of a volume ``(z, y, x)``: a view of an array, or voxels that stay on disk."""
    if isinstance(volume, np.ndarray):
        return volume[box]
    z, y, x = (part.stop - part.start for part in box)
    return StoredArray((z, y, x), volume.dtype, volume.chunks, partial(_read_cropped, volume, box))


def _read_cropped(volume: StoredArray, whole: Box, box: Box) -> np.ndarray:
    return volume[
        tuple(
            slice(part.start + start, part.stop + start, part.step)
            for part, start in zip(box, (side.start for side in whole), strict=True)
        )
    ]


def _part(item: Any, length: int) -> int | slice:
    """An item of an index as a whole number from 0, or as a slice within 0 to ``length``."""
    if isinstance(item, slice):
        start, stop, step = item.indices(length)
        if step < 1:
            raise IndexError(f"step {step}: voxels on disk are read forwards; read them, then reverse the result.")
        return slice(start, max(start, stop), step)
    try:
        number = operator.index(item)
    except TypeError:
        raise IndexError(f"{item!r} is not an index of voxels on disk; expected whole numbers and slices.") from None
    if not -length <= number < length:
        raise IndexError(f"index {number} is out of range for an axis of {length} voxels.")
    return number % length
