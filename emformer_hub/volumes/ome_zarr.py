"""OME-Zarr 0.4 and 0.5 as it is written: in parts, with a pyramid of levels. `zarr_reading.py` reads it."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import numpy as np

from emformer_hub.errors import InputError
from emformer_hub.geometry import VoxelSize
from emformer_hub.volumes.boxes import Box, boxes
from emformer_hub.volumes.remote import Remote

if TYPE_CHECKING:
    import zarr

CHUNK_ZYX = (64, 128, 128)
"""1 MB of 8-bit voxels: one request to a file server, and any plane shows without reading much."""
SHARD_ZYX = (256, 512, 512)
"""Voxels in a file of OME-Zarr 0.5: a teravoxel is 16,000 files. Version 0.4 has a file for each chunk."""
_CHUNKS_AT_ONCE = 4  # along each axis
SMALLEST_LEVEL = 128
"""Levels are added until no side is longer."""
VERSIONS: dict[str, Literal[2, 3]] = {"0.4": 2, "0.5": 3}
"""Versions of OME-Zarr, and the format of Zarr that each is written in."""
_AXES = ("z", "y", "x")
Number = TypeVar("Number", int, float)
ALL_STORED = "every_chunk_is_stored"
"""Key in the metadata of an image: a missing file is then an error, where Zarr would read zeros."""
LABELS = "image-label"
"""Key in the metadata of an image whose voxels are labels."""
_METADATA_FILES = ("zarr.json", ".zarray", ".zgroup")


def is_zarr(path: Path | Remote) -> bool:
    """Whether a folder is a Zarr group or array, of format 2 or 3."""
    return any((path / name).is_file() for name in _METADATA_FILES)


@dataclass(frozen=True)
class OMEZarrWriter:
    """An OME-Zarr image in the making; parts of it may be written in any order, by several processes at once.

    It holds no open file, and may be pickled.

    Args:
        path: of the image, which :meth:`create` made, on this machine or in a bucket.
    """

    path: Path | Remote

    @classmethod
    def create(
        cls,
        path: Path | Remote,
        shape_zyx: tuple[int, int, int],
        dtype: np.dtype,
        voxel_size: VoxelSize,
        translation_nm: Sequence[float] = (0.0, 0.0, 0.0),
        *,
        version: str = "0.5",
        chunk_zyx: tuple[int, int, int] = CHUNK_ZYX,
        part_zyx: tuple[int, int, int] = SHARD_ZYX,
        labels: bool = False,
    ) -> OMEZarrWriter:
        """Make the image, full of zeros, with all its levels.

        Args:
            path: must not exist.
            shape_zyx: of the image.
            dtype: of its voxels.
            voxel_size: nm.
            translation_nm: ``(z, y, x)`` position of the first voxel's centre, nm.
            version: of OME-Zarr: ``"0.5"``, or ``"0.4"`` for older viewers.
            chunk_zyx: voxels that are compressed, and read, at once.
            part_zyx: sides of boxes that are written at once, multiples of those of chunks; in version 0.5, each is
                one file (a shard).
            labels: whether voxels are labels of objects: an image of labels, of which coarser levels show one in eight.

        Raises:
            InputError: an unknown version.
        """
        import zarr

        if version not in VERSIONS:
            raise InputError(f"OME-Zarr {version!r} cannot be written; expected {' or '.join(VERSIONS)}.")
        levels = pyramid(shape_zyx, voxel_size, translation_nm)
        multiscale: dict[str, Any] = {
            "axes": [{"name": axis, "type": "space", "unit": "nanometer"} for axis in _AXES],
            "datasets": [
                {
                    "path": str(number),
                    "coordinateTransformations": [
                        {"type": "scale", "scale": list(level.voxel_size)},
                        {"type": "translation", "translation": list(level.translation)},
                    ],
                }
                for number, level in enumerate(levels)
            ],
            "name": path.name.strip(".").split(".")[0],  # a name in the making may begin with a dot
            "type": "mean",
            "metadata": {ALL_STORED: True},
        }
        if labels:
            multiscale["type"] = "nearest"
        of_labels = {LABELS: {"version": version} if version == "0.4" else {}} if labels else {}
        described: dict[str, Any] = {"ome": {"version": version, "multiscales": [multiscale], **of_labels}}
        if version == "0.4":
            described = {"multiscales": [{"version": version, **multiscale}], **of_labels}
        group = zarr.create_group(_store(path), zarr_format=VERSIONS[version], attributes=described)
        for number, level in enumerate(levels):
            chunks = tuple(map(min, level.shape, chunk_zyx))
            parts = tuple(
                math.ceil(min(length, part) / chunk) * chunk
                for length, part, chunk in zip(level.shape, part_zyx, chunks, strict=True)
            )
            layout: dict[str, Any] = {"chunk_key_encoding": {"name": "v2", "separator": "/"}}
            if version != "0.4":
                layout = {"shards": parts, "dimension_names": _AXES}
            group.create_array(str(number), shape=level.shape, dtype=dtype, chunks=chunks, fill_value=0, **layout)
        return cls(path)

    @cached_property
    def _labels(self) -> bool:
        return LABELS in self._described

    @cached_property
    def _described(self) -> dict[str, Any]:
        import zarr

        attributes: dict[str, Any] = zarr.open_group(_store(self.path), mode="r").attrs.asdict()
        described: dict[str, Any] = attributes.get("ome", attributes)
        return described

    @cached_property
    def _arrays(self) -> list[zarr.Array[Any]]:
        import zarr

        with zarr.config.set({"array.write_empty_chunks": True}):
            group = zarr.open_group(_store(self.path), mode="r+")
            levels = self._described["multiscales"][0]["datasets"]
            return [cast("zarr.Array[Any]", group[level["path"]]) for level in levels]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of the image, ``(z, y, x)``."""
        z, y, x = self._arrays[0].shape
        return (z, y, x)

    @property
    def dtype(self) -> np.dtype:
        """Data type of the voxels."""
        return np.dtype(self._arrays[0].dtype)

    @property
    def part_zyx(self) -> tuple[int, int, int]:
        """Sides of a shard, which is one file; in version 0.4, of several chunks, which zarr compresses in parallel."""
        array = self._arrays[0]
        z, y, x = array.shards or (_CHUNKS_AT_ONCE * side for side in array.chunks)
        return (z, y, x)

    def write(self, box: Box, voxels: np.ndarray) -> None:
        """Write a box, whose sides are those of parts; when this returns, it is on the disk."""
        _write(self.path, self._arrays[0], box, voxels)

    def coarsen(self, level: int, part: Box) -> None:
        """Make a part of a level, 1 or more, from the level before, by :func:`coarsened` along the axes halved.

        Its sides are multiples of those of parts; when this returns, it is on the disk.
        """
        finer, coarser = self._arrays[level - 1 : level + 1]
        steps = [2 if a > b else 1 for a, b in zip(finer.shape, coarser.shape, strict=True)]
        voxels = np.empty([side.stop - side.start for side in part], coarser.dtype)
        for box in boxes(voxels.shape, coarser.chunks):
            source = tuple(
                slice((side.start + inside.start) * n, (side.start + inside.stop) * n)
                for side, inside, n in zip(part, box, steps, strict=True)
            )
            voxels[box] = coarsened(np.asarray(finer[source]), steps, labels=self._labels)
        _write(self.path, coarser, part, voxels)

    def finish(self) -> None:
        """Make the other levels, each from the one before, a part at a time."""
        for level, array in enumerate(self._arrays[1:], start=1):
            for part in boxes(array.shape, array.shards or array.chunks):
                self.coarsen(level, part)

    def grow(self, planes: int) -> None:
        """Make the image and its levels longer along z; the new voxels are zeros until they are written."""
        halved = [finer.shape[0] > coarser.shape[0] for finer, coarser in itertools.pairwise(self._arrays)]
        for array, half in zip(self._arrays, (False, *halved), strict=True):
            planes = math.ceil(planes / 2) if half else planes
            array.resize((planes, *array.shape[1:]))


@dataclass(frozen=True)
class Level:
    """Level of a pyramid: shape in voxels, their size and the centre of the first in nm; each ``(z, y, x)``."""

    shape: tuple[int, int, int]
    voxel_size: tuple[float, float, float]
    translation: tuple[float, float, float]


def pyramid(shape_zyx: tuple[int, int, int], voxel_size: VoxelSize, translation_nm: Sequence[float]) -> list[Level]:
    """The levels of an image: halved along the axes whose voxels are the shortest, until no side is longer than
    ``SMALLEST_LEVEL``.

    The first voxel of a coarser level lies in the middle of those that it is the mean of, half a voxel of theirs
    further.
    """
    return list(_levels(shape_zyx, voxel_size, translation_nm))


def _levels(shape_zyx: tuple[int, int, int], voxel_size: VoxelSize, translation_nm: Sequence[float]) -> Iterator[Level]:
    level = Level(shape_zyx, _triple(map(float, voxel_size.zyx)), _triple(map(float, translation_nm)))
    yield level
    while max(level.shape) > SMALLEST_LEVEL:
        shortest = min(size for size, length in zip(level.voxel_size, level.shape, strict=True) if length > 1)
        steps = [
            2 if size < math.sqrt(2) * shortest and length > 1 else 1
            for size, length in zip(level.voxel_size, level.shape, strict=True)
        ]
        level = Level(
            _triple(math.ceil(length / n) for length, n in zip(level.shape, steps, strict=True)),
            _triple(size * n for size, n in zip(level.voxel_size, steps, strict=True)),
            _triple(
                place + (n - 1) / 2 * size
                for place, size, n in zip(level.translation, level.voxel_size, steps, strict=True)
            ),
        )
        yield level


def _triple(values: Iterable[Number]) -> tuple[Number, Number, Number]:
    z, y, x = values
    return (z, y, x)


def coarsened(voxels: np.ndarray, steps: Sequence[int], *, labels: bool) -> np.ndarray:
    """Means over boxes of ``steps`` voxels, in their data type; at the end of an axis a box may be half.

    Labels have no mean: the first of each box stands for it.
    """
    if labels:
        return voxels[tuple(slice(None, None, step) for step in steps)]
    dtype = voxels.dtype
    for axis, step in enumerate(steps):
        if step == 2:
            if voxels.shape[axis] % 2:
                last = voxels.take([-1], axis)
                voxels = np.concatenate([voxels, last], axis)
            first, second = (voxels[(slice(None),) * axis + (slice(k, None, 2),)] for k in (0, 1))
            voxels = np.add(first, second, dtype=np.float64 if voxels.dtype == np.float64 else np.float32)
    mean = voxels / (voxels.dtype.type if voxels.dtype.kind == "f" else np.float32)(math.prod(steps))
    return (np.rint(mean) if dtype.kind in "iu" else mean).astype(dtype, copy=False)


def _store(path: Path | Remote) -> Any:
    """What zarr opens to write."""
    return path if isinstance(path, Path) else path.store(read_only=False)


def _write(root: Path | Remote, array: zarr.Array[Any], box: Box, voxels: np.ndarray) -> None:
    array[box] = voxels
    if not isinstance(root, Path):
        return  # a bucket has what it has answered for
    for file, _ in files_of(array, box):
        with (root / file).open("r+b") as written:  # Windows brings to the disk only what may be written
            os.fsync(written.fileno())


def files_of(array: zarr.Array[Any], box: tuple[slice, ...]) -> Iterator[tuple[str, tuple[slice, ...]]]:
    """The files that hold a box, as paths within the store, and the part of the box that each holds."""
    sides = array.shards or array.chunks
    for place in itertools.product(
        *(range(part.start // side, -(-part.stop // side)) for part, side in zip(box, sides, strict=True))
    ):
        held = (
            slice(max(part.start, number * side), min(part.stop, (number + 1) * side))
            for part, number, side in zip(box, place, sides, strict=True)
        )
        yield "/".join(filter(None, (array.path, array.metadata.encode_chunk_key(place)))), tuple(held)
