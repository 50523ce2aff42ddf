"""Boxes: parts of a volume along z, y and x, in voxels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import overload

import numpy as np

from emformer_hub.errors import InputError

Box = tuple[slice, slice, slice]
"""A part of a volume along z, y and x; each slice has a start, a stop, and no step or one of at least 1."""


def parse_region(text: str) -> Box:
    """Read ``Z0:Z1,Y0:Y1,X0:X1``, in voxels, as a box; raises ``InputError`` for anything else."""
    try:
        z, y, x = (slice(*map(int, part.split(":"))) for part in text.split(","))
        if all(part.step is None and part.start < part.stop for part in (z, y, x)):
            return (z, y, x)
    except (TypeError, ValueError):
        pass
    raise InputError(f"region {text!r} is not Z0:Z1,Y0:Y1,X0:X1 in voxels, as in 0:64,1000:1512,2000:2512.")


def check_region(region: Box, shape: tuple[int, ...], name: str) -> None:
    """Raise ``InputError`` unless a volume of this shape holds all of a box; ``name`` is what messages call it."""
    if any(not 0 <= part.start < part.stop <= length for part, length in zip(region, shape, strict=True)):
        wanted = ",".join(f"{part.start}:{part.stop}" for part in region)
        there = ",".join(f"0:{length}" for length in shape)
        raise InputError(f"region {wanted} is not all there: {name} is {there} (z, y, x).")


def within(box: Box, whole: Box) -> Box:
    """The same box counted from the first voxel of ``whole``, a box that contains it."""
    z, y, x = (slice(part.start - begin.start, part.stop - begin.start) for part, begin in zip(box, whole, strict=True))
    return (z, y, x)


def numbers(part: slice) -> range:
    """Numbers of the voxels of a side."""
    return range(part.start, part.stop, part.step or 1)


def shape_of(box: Sequence[slice]) -> list[int]:
    """Shape of the voxels of a box."""
    return [len(numbers(part)) for part in box]


def middle(shape: Sequence[int], sides: Sequence[int]) -> tuple[slice, ...]:
    """Middle part of an array with any number of axes, at most ``sides`` voxels along each."""
    starts = [max(0, (length - side) // 2) for length, side in zip(shape, sides, strict=True)]
    return tuple(
        slice(start, min(length, start + side)) for start, length, side in zip(starts, shape, sides, strict=True)
    )


def evenly_spaced(count: int, most: int) -> list[int]:
    """At most ``most`` of the numbers from 0 to ``count - 1``, evenly spaced, with the first and the last."""
    return np.unique(np.linspace(0, count - 1, max(0, min(count, most))).round().astype(int)).tolist()


def block_means(values: np.ndarray, sides: Sequence[int]) -> np.ndarray:
    """Mean of each block with these sides, along any number of axes; what fills no block is left out."""
    counts = [length // side for length, side in zip(values.shape, sides, strict=True)]
    whole = values[tuple(slice(0, count * side) for count, side in zip(counts, sides, strict=True))]
    split = whole.reshape([part for pair in zip(counts, sides, strict=True) for part in pair])
    return split.mean(axis=tuple(range(1, split.ndim, 2)))


@dataclass(frozen=True)
class boxes(Sequence[Box]):  # called as the function that it is
    """Boxes of these sides that tile a volume, along x, then y, then z; the last ones may be smaller.

    They are computed on access: a volume of a hundred terabytes has millions.
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
