"""Volumes in the making: what every format that is written has in common."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, overload

import numpy as np

from emformer_hub.volumes.stored import Box


class VolumeWriter(Protocol):
    """A volume in the making, written box by box, in any order.

    A writer holds no open file: it may be pickled, and other processes may write with copies of it. Boxes that are
    written at the same time must consist of different, whole parts.
    """

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the volume, ``(z, y, x)``."""

    @property
    def dtype(self) -> np.dtype:
        """Of the voxels in the file."""

    @property
    def part_zyx(self) -> tuple[int, int, int]:
        """Sides of a part in voxels; the parts tile the volume from its first voxel on."""

    def write(self, box: Box, voxels: np.ndarray) -> None:
        """Write a box of whole parts, steps of 1; raises ``OSError`` if the disk refuses."""

    def finish(self) -> None:
        """Complete the file, once all voxels are written; may be repeated."""


@dataclass(frozen=True)
class boxes(Sequence[Box]):  # called as the function that it is
    """Boxes of these sides that fill a volume, along x, then y, then z; the last ones may be smaller.

    None is kept in memory: a volume of a hundred terabytes has millions.
    """

    shape: Sequence[int]
    sides: Sequence[int]

    @cached_property
    def _counts(self) -> tuple[int, ...]:
        return tuple(math.ceil(length / side) for length, side in zip(self.shape, self.sides, strict=True))

    def __len__(self) -> int:
        return math.prod(self._counts)

    @overload
    def __getitem__(self, number: int) -> Box: ...
    @overload
    def __getitem__(self, number: slice) -> list[Box]: ...
    def __getitem__(self, number: int | slice) -> Box | list[Box]:
        if isinstance(number, slice):
            return [self[one] for one in range(*number.indices(len(self)))]
        if not 0 <= number < len(self):
            raise IndexError(number)
        _, rows, columns = self._counts
        places = (number // (rows * columns), number // columns % rows, number % columns)
        z, y, x = (
            slice(place * side, min((place + 1) * side, length), 1)
            for place, side, length in zip(places, self.sides, self.shape, strict=True)
        )
        return (z, y, x)
