"""Voxels that lie one behind the other in a file, as in uncompressed TIFF and in MRC."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from emformer_hub.volumes.boxes import Box
from emformer_hub.volumes.checks import not_read
from emformer_hub.volumes.stored import StoredArray

_PART_BYTES = 2**26  # that are written at once, in whole sections


def open_contiguous(
    path: Path, offset: int, shape: tuple[int, int, int], stored: np.dtype, dtype: np.dtype
) -> StoredArray:
    """Voxels of one dtype, in either byte order, that become another, native one when they are sliced.

    Args:
        path: the file.
        offset: of the first voxel in it, bytes.
        shape: ``(z, y, x)``.
        stored: dtype of the file.
        dtype: of slices.
    """
    return StoredArray(shape, dtype, (1, *shape[1:]), partial(_read, path, offset, shape, stored, dtype))


def _read(
    path: Path, offset: int, shape: tuple[int, int, int], stored: np.dtype, dtype: np.dtype, box: Box
) -> np.ndarray:
    try:
        return np.memmap(path, stored, "r", offset, shape)[box].astype(dtype)
    except (ValueError, OSError) as error:  # numpy: the file is too short
        raise not_read(path, error, f"{path} cannot be read ({error}). Is it still there, and whole?") from error


@dataclass(frozen=True)
class ContiguousWriter:
    """Writes voxels into a file that has room for them.

    They are not mapped into memory: a disk that is full is an error then, not the end of the process.

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
        return (min(depth, max(1, _PART_BYTES // (height * width * self.dtype.itemsize))), height, width)

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
