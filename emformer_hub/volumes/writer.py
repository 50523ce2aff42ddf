"""Volumes in the making: what every format that is written has in common."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from emformer_hub.volumes.stored import Box

PART_BYTES = 2**26
"""Files without chunks are written in parts of whole sections, about so large."""


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


def boxes(shape: Sequence[int], sides: Sequence[int]) -> Iterator[Box]:
    """Boxes of these sides that fill a volume, along x, then y, then z; the last ones may be smaller."""
    for place in np.ndindex(*(math.ceil(length / side) for length, side in zip(shape, sides, strict=True))):
        starts = [number * side for number, side in zip(place, sides, strict=True)]
        z, y, x = (slice(a, min(a + side, n), 1) for a, side, n in zip(starts, sides, shape, strict=True))
        yield (z, y, x)


@dataclass(frozen=True)
class ContiguousWriter:
    """Voxels that lie one behind the other in a file, as in uncompressed TIFF and in MRC.

    They are written, not mapped into memory: a disk that is full is an error then, not the end of the process.

    Attributes:
        path: the file; it is there, with all that comes before the voxels.
        offset: of the first voxel in the file, bytes.
        shape: ``(z, y, x)``.
        dtype: of the voxels, with their byte order.
    """

    path: Path
    offset: int
    shape: tuple[int, int, int]
    dtype: np.dtype

    @property
    def part_zyx(self) -> tuple[int, int, int]:
        depth, height, width = self.shape
        return (min(depth, max(1, PART_BYTES // (height * width * self.dtype.itemsize))), height, width)

    def write(self, box: Box, voxels: np.ndarray) -> None:
        planes, rows, columns = box
        _, height, width = self.shape
        whole_rows = columns.stop - columns.start == width
        with self.path.open("r+b") as file:
            for z, section in zip(range(planes.start, planes.stop), voxels, strict=True):
                section = np.ascontiguousarray(section, self.dtype)
                for y, run in zip(range(rows.start, rows.stop), [section] if whole_rows else section, strict=False):
                    file.seek(self.offset + ((z * height + y) * width + columns.start) * self.dtype.itemsize)
                    file.write(run.data)

    def finish(self) -> None:
        """The file is complete when its voxels are."""
