"""Overlapping tiles along one axis, and blending weights that sum to one. Pure functions; a plan is three of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

BLEND, MIN_BLEND = 1 / 6, 2  # the share of an overlap that is blended, and the input voxels that this is at least


@dataclass(frozen=True)
class Share:
    """What one tile gives to the samples of its axis, which are output planes along z, voxels along y and x.

    Attributes:
        start, stop: what the tile covers, in input voxels.
        first: the first sample in which the tile has weight.
        weights: of the tile in the samples from ``first`` on, float32, all above 0; elsewhere it has none.
        begun: so many of these samples, the first ones, hold parts of tiles before.
        finished: so many of them are complete once this tile is added; the others wait for tiles to come.
    """

    start: int
    stop: int
    first: int
    weights: np.ndarray
    begun: int
    finished: int

    @property
    def covered(self) -> slice:
        """What the tile covers, in input voxels."""
        return slice(self.start, self.stop)

    @property
    def inside(self) -> slice:
        """The samples within the tile, where samples are input voxels."""
        return slice(self.first - self.start, self.first - self.start + len(self.weights))

    @property
    def complete(self) -> slice:
        """Those that are complete once this tile is added."""
        return slice(self.first, self.first + self.finished)


@dataclass(frozen=True)
class AxisTiles:
    """Tiles along one axis, in input voxels.

    Args:
        length: of the axis.
        tile: length of a tile, a multiple of ``multiple``.
        overlap: of neighbouring tiles, a multiple of ``multiple`` below ``tile``. Only its middle, ``blend`` voxels, is
            blended, linearly; what lies to either side is left to the tile whose cut face is farther away.
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

    @property
    def blend(self) -> float:
        """Length of the blended middle of an overlap, in input voxels; never more than half of it."""
        return min(max(BLEND * self.overlap, MIN_BLEND), self.overlap / 2)

    @cached_property
    def spans(self) -> list[tuple[int, int]]:
        """``(start, stop)`` of each tile; the last one ends with the axis, and each is longer than an overlap."""
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

    def shares(self, positions: np.ndarray) -> list[Share]:
        """What each tile gives to samples at ``positions`` (input voxels from the axis's face, at least one in each).

        Positions ascend. Tile by tile, the complete samples follow one another without gap or overlap, and those that
        wait for the next tile are those that it finds begun.
        """
        weights = [self.weights(index, positions) for index in range(len(self.spans))]
        reach = [(int(used[0]), int(used[-1]) + 1) for used in map(np.flatnonzero, weights)]
        shares, begun = [], 0
        for (start, stop), weight, (first, last), (following, _) in zip(
            self.spans, weights, reach, [*reach[1:], (len(positions), 0)], strict=True
        ):
            shares.append(Share(start, stop, first, weight[first:last], begun, following - first))
            begun = last - following
        return shares

    def _ramp(self, start: int, positions: np.ndarray) -> np.ndarray:
        """0 to 1 over the blended middle of the overlap with which a tile starts."""
        return ((positions - start - (self.overlap - self.blend) / 2) / self.blend).clip(0, 1)


def round_up(length: int, multiple: int) -> int:
    """The smallest multiple of ``multiple`` that is not below ``length``."""
    return -(-length // multiple) * multiple
