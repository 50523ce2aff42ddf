"""OME-Zarr 0.4 and 0.5 and plain Zarr arrays in; OME-Zarr of either version out, in parts, with a pyramid of levels."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import numpy as np

from emformer_hub.errors import InputError
from emformer_hub.geometry import VoxelSize
from emformer_hub.volumes.boxes import Box, boxes
from emformer_hub.volumes.checks import check_dtype, not_read
from emformer_hub.volumes.remote import Remote
from emformer_hub.volumes.stored import StoredArray
from emformer_hub.volumes.volume import Volume, stated_voxel_size, zyx_nanometres

if TYPE_CHECKING:
    import zarr

_METADATA_FILES = ("zarr.json", ".zarray", ".zgroup")
CHUNK_ZYX = (64, 128, 128)
"""1 MB of 8-bit voxels: one request to a file server, and any plane shows without reading much."""
SHARD_ZYX = (256, 512, 512)
"""Voxels in a file of OME-Zarr 0.5: a teravoxel is 16,000 files. Version 0.4 has a file for each chunk."""
_CHUNKS_AT_ONCE = 4  # along each axis
SMALLEST_LEVEL = 128
"""Levels are added until no side is longer."""
VERSIONS: dict[str, Literal[2, 3]] = {"0.4": 2, "0.5": 3}
"""Of OME-Zarr, and the format of Zarr that each is written in."""
_AXES = ("z", "y", "x")
Number = TypeVar("Number", int, float)
_ALL_STORED = "every_chunk_is_stored"
"""In the metadata of an image: a file that is missing is lost, where Zarr reads zeros."""
# what zarr and its codecs raise on damaged or unsupported data
_READ_ERRORS = (ValueError, RuntimeError, LookupError, TypeError, OSError)


def is_zarr(path: Path | Remote) -> bool:
    """Whether a folder is a Zarr group or array, of format 2 or 3."""
    return any((path / name).is_file() for name in _METADATA_FILES)


def open_volume(path: Path | Remote) -> Volume[StoredArray]:
    """Open level 0 of the first multiscale image, or a plain array; voxels stay on disk.

    Axes before z (time, channel) must have length 1 and are dropped. The voxel size is the product of the scales of
    level and image, in the units of the axes; a plain array has none.

    Raises:
        InputError: neither an OME-Zarr image nor an array, unreadable, axes that do not end in z, y, x, or a bad dtype.
    """
    import zarr

    try:
        node = zarr.open(path.store() if isinstance(path, Remote) else path, mode="r")
        if isinstance(node, zarr.Array):
            return Volume(_stored(node, None, path, all_stored=False), None, "")
        return _open_image(node, path)
    except InputError:
        raise
    except _READ_ERRORS as error:
        raise _unreadable(path, error) from error


@dataclass(frozen=True)
class OMEZarrWriter:
    """An OME-Zarr image in the making; parts of it may be written in any order, by several processes at once.

    It holds no open file, and may be pickled.

    Args:
        path: of the image, which :meth:`create` made.
    """

    path: Path

    @classmethod
    def create(
        cls,
        path: Path,
        shape_zyx: tuple[int, int, int],
        dtype: np.dtype,
        voxel_size: VoxelSize,
        translation_nm: Sequence[float] = (0.0, 0.0, 0.0),
        *,
        version: str = "0.5",
        chunk_zyx: tuple[int, int, int] = CHUNK_ZYX,
        part_zyx: tuple[int, int, int] = SHARD_ZYX,
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
            "metadata": {_ALL_STORED: True},
        }
        described: dict[str, Any] = {"ome": {"version": version, "multiscales": [multiscale]}}
        if version == "0.4":
            described = {"multiscales": [{"version": version, **multiscale}]}
        group = zarr.create_group(path, zarr_format=VERSIONS[version], attributes=described)
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
    def _arrays(self) -> list[zarr.Array[Any]]:
        import zarr

        with zarr.config.set({"array.write_empty_chunks": True}):
            group = zarr.open_group(self.path, mode="r+")
            return [cast("zarr.Array[Any]", group[str(number)]) for number in range(len(list(group.array_keys())))]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the image, ``(z, y, x)``."""
        z, y, x = self._arrays[0].shape
        return (z, y, x)

    @property
    def dtype(self) -> np.dtype:
        """Of its voxels."""
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
        """Make a part of a level, 1 or more, from the level before: means over pairs of voxels, along the axes halved.

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
            means = _means(np.asarray(finer[source]), steps)
            voxels[box] = np.rint(means) if voxels.dtype.kind in "iu" else means
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
    """Of a pyramid: shape in voxels, their size and the centre of the first in nm; each ``(z, y, x)``."""

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


def _means(voxels: np.ndarray, steps: Sequence[int]) -> np.ndarray:
    """Means over boxes of ``steps`` voxels; at the end of an axis a box may be half."""
    for axis, step in enumerate(steps):
        if step == 2:
            if voxels.shape[axis] % 2:
                last = voxels.take([-1], axis)
                voxels = np.concatenate([voxels, last], axis)
            first, second = (voxels[(slice(None),) * axis + (slice(k, None, 2),)] for k in (0, 1))
            voxels = np.add(first, second, dtype=np.float32)
    return voxels / np.float32(math.prod(steps))


def _write(root: Path, array: zarr.Array[Any], box: Box, voxels: np.ndarray) -> None:
    array[box] = voxels
    for file, _ in _files(array, box):
        with (root / file).open("rb") as written:
            os.fsync(written.fileno())


def _files(array: zarr.Array[Any], box: tuple[slice, ...]) -> Iterator[tuple[str, tuple[slice, ...]]]:
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


def _open_image(group: zarr.Group, path: Path | Remote) -> Volume[StoredArray]:
    import zarr

    attributes: dict[str, Any] = group.attrs.asdict()
    multiscales = attributes.get("ome", attributes).get("multiscales")
    if not multiscales:
        inside = ", ".join(f"{path}/{name}" for name in sorted(group.keys())) or "nothing"
        raise InputError(
            f"{path} is a Zarr group without OME-Zarr multiscales (0.4 or 0.5); it contains {inside}. "
            f"Give the path of an image or an array inside it."
        )
    multiscale = multiscales[0]
    level = multiscale["datasets"][0]
    array = group[level["path"]]
    axes = multiscale.get("axes", [])
    if not isinstance(array, zarr.Array) or not all(isinstance(axis, dict) for axis in axes) or array.ndim != len(axes):
        raise InputError(f"{path} is not OME-Zarr 0.4 or 0.5: its multiscales do not describe the axes of level 0.")
    all_stored = (multiscale.get("metadata") or {}).get(_ALL_STORED) is True
    data = _stored(array, [axis["name"] for axis in axes], path, all_stored)
    units = [axis.get("unit") for axis in axes[-3:]]
    scale, translation = np.ones(3), np.zeros(3)
    for step in (*level.get("coordinateTransformations", []), *multiscale.get("coordinateTransformations", [])):
        if step["type"] == "scale":
            factors = np.array(step["scale"][-3:], float)
            scale, translation = scale * factors, translation * factors
        elif step["type"] == "translation":
            translation = translation + np.array(step["translation"][-3:], float)
    voxel_size = stated_voxel_size(scale.tolist(), units)
    return Volume(data, voxel_size, "multiscales" if voxel_size else "", zyx_nanometres(translation.tolist(), units))


def _stored(array: zarr.Array[Any], axes: list[str] | None, path: Path | Remote, all_stored: bool) -> StoredArray:
    """The array as (z, y, x) in native byte order; ``axes`` are its names, if known."""
    leading = array.shape[:-3]
    if array.ndim < 3 or (axes and tuple(axes[-3:]) != _AXES) or any(size != 1 for size in leading):
        raise InputError(
            f"{path} has axes {', '.join(axes) if axes else '(unnamed)'} and shape {array.shape}; expected one "
            f"grey-value stack z, y, x, where axes before z have length 1. Save one channel and time point."
        )
    check_dtype(array.dtype, str(path))
    z, y, x = array.shape[-3:]
    depth, height, width = array.chunks[-3:]
    read = partial(_read, array, path, all_stored)
    return StoredArray((z, y, x), array.dtype.newbyteorder("="), (depth, height, width), read)


def _read(array: zarr.Array[Any], path: Path | Remote, all_stored: bool, box: Box) -> np.ndarray:
    stored = (slice(0, 1),) * (array.ndim - 3) + box
    if all_stored:
        for file, held in _files(array, stored):
            if not (path / file).exists():
                raise InputError(f"{path / file} is missing; it held voxels {_listed(held)}. Copy {path} again.")
    try:
        data = np.asarray(array[stored]).reshape([len(range(part.start, part.stop, part.step)) for part in box])
    except _READ_ERRORS as error:
        raise _damaged(array, path, stored) or _unreadable(path, error) from error
    return data.astype(data.dtype.newbyteorder("="), copy=False)


def _damaged(array: zarr.Array[Any], path: Path | Remote, box: tuple[slice, ...]) -> InputError | None:
    """The error for the first file that holds part of a box and cannot be decoded; ``None`` if each can alone."""
    for file, held in _files(array, box):
        try:
            array[held]
        except _READ_ERRORS as error:
            return not_read(
                path / file,
                error,
                f"{path / file} cannot be read as Zarr ({type(error).__name__}: {error}); it holds voxels "
                f"{_listed(held)}. Copy it again, or leave this part out.",
            )
    return None


def _listed(box: tuple[slice, ...]) -> str:
    """``z 0:64, y 128:256, x 0:128``"""
    return ", ".join(f"{axis} {part.start}:{part.stop}" for axis, part in zip(_AXES, box[-3:], strict=True))


def _unreadable(path: Path | Remote, error: Exception) -> InputError:
    return not_read(
        path,
        error,
        f"{path} cannot be read as Zarr ({type(error).__name__}: {error}). Was it copied completely? "
        f"Expected an OME-Zarr 0.4 or 0.5 image or a Zarr array.",
    )
