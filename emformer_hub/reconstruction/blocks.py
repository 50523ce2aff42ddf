"""Blocks: which voxels of the result are computed together, and from which input. Pure functions.

Every output voxel belongs to one block, and a block depends only on the input around it: blocks may be computed in any
order, on any machine, and again. A block has an output box, and an input box that extends beyond the output box by a
halo.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral
from typing import Any

import numpy as np

from emformer_hub.configuration_emformer import EMformerConfig
from emformer_hub.errors import InputError
from emformer_hub.geometry import SectionModel
from emformer_hub.volumes.boxes import Box

Sizes = tuple[int, int, int]
_SeenBy = tuple[Callable[[slice], slice], Callable[[int], int]]

HALO_ZYX = (6, 16, 16)
"""Sections, rows and columns of input beyond a block; differences from an undivided volume stay below a grey level."""
PLANES_MULTIPLE = 32
"""Blocks of a divided volume have a multiple of this many planes, so that chunks of a file can be whole blocks."""


@dataclass(frozen=True)
class Span:
    """A block along one axis.

    Attributes:
        output: output samples: planes along z, voxels along y and x.
        input: input samples: sections along z, voxels along y and x.
    """

    output: slice
    input: slice

    @property
    def inside(self) -> slice:
        """Place of the output voxels within the input voxels, along y or x."""
        return slice(self.output.start - self.input.start, self.output.stop - self.input.start)

    def halves(self, halo: int, multiple: int) -> list[Span]:
        """Divide a span along y or x into two; a span that is no longer than ``multiple`` stays whole."""
        middle = self.output.start + math.ceil((self.output.stop - self.output.start) / 2 / multiple) * multiple
        if middle >= self.output.stop:
            return [self]
        last = middle - halo - (middle - halo) % multiple
        return [
            Span(slice(self.output.start, middle, 1), slice(self.input.start, min(middle + halo, self.input.stop), 1)),
            Span(slice(middle, self.output.stop, 1), slice(max(self.input.start, last), self.input.stop, 1)),
        ]


@dataclass(frozen=True)
class Block:
    """A box of the result that is computed at once."""

    z: Span
    y: Span
    x: Span

    @property
    def output(self) -> Box:
        """Output box."""
        return (self.z.output, self.y.output, self.x.output)

    @property
    def input(self) -> Box:
        """Input box."""
        return (self.z.input, self.y.input, self.x.input)

    def quarters(self, multiple: int) -> list[Block]:
        """Divide a block into up to four with their own halos; a side no longer than ``multiple`` stays whole."""
        _, halo_y, halo_x = HALO_ZYX
        return [Block(self.z, y, x) for y in self.y.halves(halo_y, multiple) for x in self.x.halves(halo_x, multiple)]


@dataclass(frozen=True)
class Plan:
    """Division of a volume into blocks.

    Args:
        shape_zyx: shape of the input, (sections, y, x).
        geometry: how its sections sample tissue.
        tile_zyx: largest input box, (sections, y, x).
        grid_zyx: grid on which input boxes begin, (sections, y, x), so that attention windows lie in the same places
            however the volume is divided.

    Raises:
        InputError: a tile has no room for a halo.
    """

    shape_zyx: tuple[int, int, int]
    geometry: SectionModel
    tile_zyx: tuple[int, int, int]
    grid_zyx: tuple[int, int, int]

    def __post_init__(self) -> None:
        least_zyx = _least(self.grid_zyx)
        for length, tile, least in zip(self.shape_zyx, self.tile_zyx, least_zyx, strict=True):
            if tile < min(length, least):
                raise InputError(
                    f"tile_zyx is {self.tile_zyx}; blocks are computed with a halo of {HALO_ZYX} on either side, so "
                    f"expected at least {least_zyx}, or the whole axis."
                )

    @property
    def output_zyx(self) -> tuple[int, int, int]:
        """Shape of the result, (planes, y, x)."""
        return (self.geometry.num_planes(self.shape_zyx[0]), *self.shape_zyx[1:])

    @cached_property
    def block_zyx(self) -> tuple[int, int, int]:
        """Voxels of the result in a block, (planes, y, x); the last ones along an axis may hold fewer."""
        (depth, *lengths), (tile, *tiles), (halo, *halos) = self.shape_zyx, self.tile_zyx, HALO_ZYX
        grid, *grids = self.grid_zyx
        planes = self.output_zyx[0]
        if tile < depth:  # a block that begins between two sections, or off the grid, sees a little more
            most_of_two, most = (self.geometry.least_planes(tile - faces * halo - grid) for faces in (1, 2))
            if most >= PLANES_MULTIPLE:
                planes = _share(planes, most_of_two, most, PLANES_MULTIPLE)
            else:  # two blocks may have room for more planes than a chunk, and would then not end with one
                planes = _share(planes, min(most_of_two, PLANES_MULTIPLE), most, 1)
        y, x = (
            length if tile >= length else _share(length, tile - halo, tile - 2 * halo, multiple)
            for length, tile, halo, multiple in zip(lengths, tiles, halos, grids, strict=True)
        )
        return (planes, y, x)

    @cached_property
    def _spans(self) -> list[list[Span]]:
        geometry = self.geometry
        seen_by = ((geometry.sections_around, geometry.row), (_same, _same), (_same, _same))
        axes = zip(self.output_zyx, self.shape_zyx, self.block_zyx, seen_by, HALO_ZYX, self.grid_zyx, strict=True)
        return [list(_spans(*axis)) for axis in axes]

    def __len__(self) -> int:
        return math.prod(map(len, self._spans))

    @property
    def computed(self) -> int:
        """Voxels of the input in all blocks together, those that several blocks need counted several times."""
        return math.prod(sum(span.input.stop - span.input.start for span in spans) for spans in self._spans)

    def num_blocks(self, box: Box) -> int:
        """Number of blocks in a box of the result, whose sides must not cut a block."""
        return math.prod(len(_within(*axis)) for axis in zip(self._spans, box, strict=True))

    def blocks(self, box: Box | None = None) -> Iterator[Block]:
        """All blocks, or those in a box of the result, whose sides must not cut a block; along x, then y, then z."""
        chosen = self._spans if box is None else [_within(*axis) for axis in zip(self._spans, box, strict=True)]
        for z, y, x in itertools.product(*chosen):
            yield Block(z, y, x)

    def input_box(self, box: Box) -> Box:
        """Input box of a box of the result."""
        z, y, x = (
            slice(inside[0].input.start, max(span.input.stop for span in inside), 1)
            for inside in (_within(*axis) for axis in zip(self._spans, box, strict=True))
        )
        return (z, y, x)


def make_plan(shape_zyx: Sizes, geometry: SectionModel, config: EMformerConfig, tile_zyx: Sizes) -> Plan:
    """Divide a volume for a network.

    Args:
        shape_zyx: shape of the input, (sections, y, x).
        geometry: geometry of its sections.
        config: configuration of the network.
        tile_zyx: largest input box (:func:`~emformer_hub.reconstruction.memory.choose_tile`).

    Raises:
        InputError: ``tile_zyx`` is not three whole numbers, or has no room for a halo.
    """
    sides = tile_zyx if isinstance(tile_zyx, Sequence) else ()
    if len(sides) != 3 or not all(isinstance(side, Integral) for side in sides):
        raise InputError(f"tile_zyx is {tile_zyx!r}; expected three whole numbers, (sections, y, x).")
    return Plan(shape_zyx, geometry, tile_zyx, window_grid(config))


def window_grid(config: EMformerConfig) -> Sizes:
    """Period of the attention windows of both orientations, (sections, y, x)."""
    lateral = lateral_grid(config)
    return (config.window_size[1], lateral, lateral)


def least_tile(config: EMformerConfig) -> Sizes:
    """Smallest input box that has room for a halo, (sections, y, x)."""
    return _least(window_grid(config))


def _least(grid_zyx: Sizes) -> Sizes:
    z, y, x = (2 * halo + multiple for halo, multiple in zip(HALO_ZYX, grid_zyx, strict=True))
    return (z + grid_zyx[0], y, x)


def lateral_grid(config: EMformerConfig) -> int:
    """Period of the attention windows of both orientations along y and x, in voxels."""
    frames, _, columns = config.window_size
    return int(np.lcm(frames, columns * config.patch_size))


def _spans(samples: int, length: int, side: int, seen_by: _SeenBy, halo: int, multiple: int) -> Iterator[Span]:
    """Blocks of ``side`` output samples along an axis of ``length`` input voxels.

    ``seen_by`` finds the input that output is made of, and the row of the network that an input voxel becomes.
    """
    around, row = seen_by
    for start in range(0, samples, side):
        output = slice(start, min(start + side, samples), 1)
        made_of = around(output)
        first = max(0, made_of.start - halo)
        while first > 0 and row(first) % multiple:
            first -= 1
        yield Span(output, slice(first, min(made_of.stop + halo, length), 1))


def _same(place: Any) -> Any:
    """Input along y and x, which lies where output does."""
    return place


def _share(length: int, most_of_two: int, most: int, multiple: int) -> int:
    """Length of the parts that divide an axis evenly; two parts have one neighbour each, and so more room."""
    parts = (
        2 if 2 * (most_of_two // multiple * multiple) >= length else math.ceil(length / (most // multiple * multiple))
    )
    return math.ceil(length / parts / multiple) * multiple


def _within(spans: list[Span], part: slice) -> list[Span]:
    first, last = (bisect_left(spans, end, key=lambda span: span.output.start) for end in (part.start, part.stop))
    inside = spans[first:last]
    if not inside or inside[0].output.start != part.start or inside[-1].output.stop != part.stop:
        raise ValueError(f"a block crosses the side of {part}, or there is none in it.")
    return inside
