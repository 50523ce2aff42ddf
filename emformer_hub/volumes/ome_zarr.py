"""OME-Zarr 0.4 and 0.5 and plain Zarr arrays in; OME-Zarr 0.5 (Zarr v3) with one level out."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from emformer_hub.errors import InputError
from emformer_hub.geometry import VoxelSize
from emformer_hub.volumes.checks import check_dtype, not_read
from emformer_hub.volumes.stored import Box, StoredArray
from emformer_hub.volumes.volume import Volume, stated_voxel_size, zyx_nanometres

if TYPE_CHECKING:
    import zarr

_METADATA_FILES = ("zarr.json", ".zarray", ".zgroup")
_CHUNKS = (64, 256, 256)  # 4 MB of 8-bit voxels: one request to a file server, one section shows without reading all
_AXES = ("z", "y", "x")
# what zarr and its codecs raise on damaged or unsupported data
_READ_ERRORS = (ValueError, RuntimeError, LookupError, TypeError, OSError)


def is_zarr(path: Path) -> bool:
    """Whether a folder is a Zarr group or array, of format 2 or 3."""
    return any((path / name).is_file() for name in _METADATA_FILES)


def open_volume(path: Path) -> Volume[StoredArray]:
    """Open level 0 of the first multiscale image, or a plain array; voxels stay on disk.

    Axes before z (time, channel) must have length 1 and are dropped. The voxel size is the product of the scales of
    level and image, in the units of the axes; a plain array has none.

    Raises:
        InputError: neither an OME-Zarr image nor an array, unreadable, axes that do not end in z, y, x, or a bad dtype.
    """
    import zarr

    try:
        node = zarr.open(path, mode="r")
        if isinstance(node, zarr.Array):
            return Volume(_stored(node, None, path), None, "")
        return _open_image(node, path)
    except InputError:
        raise
    except _READ_ERRORS as error:
        raise _unreadable(path, error) from error


def write(path: Path, data: np.ndarray, voxel_size: VoxelSize, translation_nm: Sequence[float]) -> None:
    """Write ``(z, y, x)`` as an OME-Zarr 0.5 image with one level, chunks of 64 x 256 x 256, zstd."""
    import zarr

    transformations = [
        {"type": "scale", "scale": [float(length) for length in voxel_size.zyx]},
        {"type": "translation", "translation": [float(length) for length in translation_nm]},
    ]
    multiscale = {
        "axes": [{"name": axis, "type": "space", "unit": "nanometer"} for axis in _AXES],
        "datasets": [{"path": "0", "coordinateTransformations": transformations}],
    }
    group = zarr.create_group(
        path, zarr_format=3, attributes={"ome": {"version": "0.5", "multiscales": [multiscale]}}, overwrite=True
    )
    array = group.create_array(
        "0",
        shape=data.shape,
        dtype=data.dtype,
        chunks=tuple(max(1, min(size, chunk)) for size, chunk in zip(data.shape, _CHUNKS, strict=True)),
        dimension_names=_AXES,
    )
    for z in range(0, len(data), _CHUNKS[0]):  # a slab of chunks at a time: data may be a memory map
        array[z : z + _CHUNKS[0]] = np.asarray(data[z : z + _CHUNKS[0]])


def _open_image(group: zarr.Group, path: Path) -> Volume[StoredArray]:
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
    data = _stored(array, [axis["name"] for axis in axes], path)
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


def _stored(array: zarr.Array[Any], axes: list[str] | None, path: Path) -> StoredArray:
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
    return StoredArray((z, y, x), array.dtype.newbyteorder("="), (depth, height, width), partial(_read, array, path))


def _read(array: zarr.Array[Any], path: Path, box: Box) -> np.ndarray:
    try:
        data = np.asarray(array[(0,) * (array.ndim - 3) + box])
    except _READ_ERRORS as error:
        raise _unreadable(path, error) from error
    return data.astype(data.dtype.newbyteorder("="), copy=False)


def _unreadable(path: Path, error: Exception) -> InputError:
    return not_read(
        path,
        error,
        f"{path} cannot be read as Zarr ({type(error).__name__}: {error}). Was it copied completely? "
        f"Expected an OME-Zarr 0.4 or 0.5 image or a Zarr array.",
    )
