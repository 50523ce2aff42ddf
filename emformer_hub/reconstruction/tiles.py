"""Overlapping tiles along one axis, and blending weights that sum to one. Pure functions; a plan is three of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class AxisTiles:
    """Tiles along one axis, in input voxels.

    Args:
        length: of the axis.
        tile: length of a tile, a multiple of ``multiple``.
        overlap: of neighbouring tiles, a multiple of ``multiple`` below ``tile``. The outer quarter of an overlap is
            left to the neighbour, the middle half is blended linearly.
        multiple: tiles start at multiples of this, so that attention windows lie the same in every tiling.
    """

    length: int
    tile: int
    overlap: int
    multiple: int

    def __post_init__(self) -> None:
        if self.tile % self.multiple or self.overlap % self.multiple or not 0 < self.overlap < self.tile:
            raise ValueError(
                f"tile {self.tile} and overlap {self.overlap} must be multiples of {self.multiple}, "
                f"overlap the smaller and above 0."
            )

    @cached_property
    def spans(self) -> list[tuple[int, int]]:
        """``(start, stop)`` of each tile; the last one ends with the axis."""
        stride = self.tile - self.overlap
        count = max(1, math.ceil((self.length - self.overlap) / stride))
        return [(i * stride, min(i * stride + self.tile, self.length)) for i in range(count)]

    def weights(self, index: int, positions: np.ndarray) -> np.ndarray:
        """Blending weights of tile ``index`` at ``positions`` (input voxels from the axis's face), float32.

        Over all tiles they sum to one at every position of the axis.
        """
        start, stop = self.spans[index]
        weight = self._ramp(start, positions) if start > 0 else np.ones(len(positions))
        if stop < self.length:  # what the next tile takes, this one gives up: sums are one even where three overlap
            weight = weight - self._ramp(stop - self.overlap, positions)
        return weight.astype(np.float32)

    def _ramp(self, start: int, positions: np.ndarray) -> np.ndarray:
        """0 to 1 over the middle half of the overlap with which a tile starts."""
        return ((positions - start - self.overlap / 4) / (self.overlap / 2)).clip(0, 1)


def round_up(length: int, multiple: int) -> int:
    """The smallest multiple of ``multiple`` that is not below ``length``."""
    return -(-length // multiple) * multiple
