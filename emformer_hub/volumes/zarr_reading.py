"""OME-Zarr 0.4 and 0.5, bioformats2raw and plain Zarr arrays, read where they lie; what is damaged is named."""

from __future__ import annotations

import logging
import struct
import zlib
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from emformer_hub.errors import InputError
from emformer_hub.volumes.attributes import is_segmentation, stated_by
from emformer_hub.volumes.axes import NOTHING_CHOSEN, Choice, Layout, lay_out
from emformer_hub.volumes.checks import check_dtype, not_read, segmentation
from emformer_hub.volumes.holes import Grid, Place, check_all, check_box, listed
from emformer_hub.volumes.ome_zarr import ALL_STORED, files_of
from emformer_hub.volumes.remote import Remote
from emformer_hub.volumes.stored import StoredArray
from emformer_hub.volumes.volume import Stated, Volume, stated_voxel_size, zyx_nanometres

if TYPE_CHECKING:
    import zarr

logger = logging.getLogger(__name__)

_PAGE = 4096  # bytes that file systems write together
# what zarr and its codecs raise on damaged or unsupported data
_READ_ERRORS = (ValueError, RuntimeError, LookupError, TypeError, OSError, EOFError, zlib.error)


def open_volume(path: Path | Remote, choice: Choice = NOTHING_CHOSEN) -> Volume[StoredArray]:
    """Open level 0 of the only multiscale image, or a plain array; voxels stay on disk.

    Axes are those of the metadata of OME, else ``dimension_names``, ``_ARRAY_DIMENSIONS`` or ``axis_names``, else
    z, y, x. The voxel size is the product of the scales of level and image, in the units of the axes; that of a plain
    array is ``resolution``, ``voxel_size``, ``pixelResolution`` or ``transform``, as in HDF5 and N5.

    Args:
        path: of the image or array.
        choice: of axes, channel, time point, and image of a group that holds several.

    Raises:
        InputError: neither an OME-Zarr image nor an array, unreadable, not one stack, a segmentation, or a bad dtype.
    """
    import zarr

    try:
        node = zarr.open(path.store() if isinstance(path, Remote) else path, mode="r")
        if isinstance(node, zarr.Array):
            return _open_array(node, path, choice)
        return _open_group(node, path, choice)
    except InputError:
        raise
    except _READ_ERRORS as error:
        raise _unreadable(path, error) from error


def _open_array(array: zarr.Array[Any], path: Path | Remote, choice: Choice) -> Volume[StoredArray]:
    attributes: dict[str, Any] = array.attrs.asdict()
    if is_segmentation(attributes) and not choice.labels:
        raise segmentation(str(path))
    layout = lay_out(array.shape, _names(array), str(path), choice)
    return Volume(_stored(array, layout, path, False, choice), *stated_by(attributes, layout))


def _names(array: zarr.Array[Any]) -> list[str | None] | None:
    """Names of the axes of an array, as Zarr 3, xarray, funlib and N5 tools state them."""
    attributes: dict[str, Any] = array.attrs.asdict()
    stated: list[Any] = [getattr(array.metadata, "dimension_names", None)]
    stated += [attributes.get(name) for name in ("_ARRAY_DIMENSIONS", "axis_names", "axes")]
    transform = attributes.get("transform")
    if isinstance(transform, dict) and transform.get("ordering", "C") == "C":
        stated.append(transform.get("axes"))
    for names in stated:
        if isinstance(names, list | tuple) and any(names):
            return [name.get("name") if isinstance(name, dict) else name for name in names]
    return None


def _open_group(group: zarr.Group, path: Path | Remote, choice: Choice) -> Volume[StoredArray]:
    attributes: dict[str, Any] = group.attrs.asdict()
    described = attributes.get("ome", attributes)
    multiscales = described.get("multiscales")
    if multiscales:
        return _open_image(group, path, choice, _chosen(multiscales, path, choice))
    inside = sorted(group.keys())
    layout = described.get("bioformats2raw.layout", attributes.get("bioformats2raw.layout"))
    images = [name for name in inside if name.isdigit()] if layout is not None else []
    wanted = choice.series or (images[0] if len(images) == 1 else None)
    if wanted is not None and wanted in group:
        return open_volume(path / wanted, replace(choice, series=None))
    if len(images) > 1:
        raise InputError(
            f"{path} holds {len(images)} images: {', '.join(images[:12])}. Choose one, as in --series {images[0]}."
        )
    listed = ", ".join(f"{path}/{name}" for name in inside) or "nothing"
    raise InputError(
        f"{path} is a Zarr group without OME-Zarr multiscales (0.4 or 0.5); it contains {listed}. "
        f"Give the path of an image or an array inside it."
    )


def _chosen(multiscales: Sequence[dict[str, Any]], path: Path | Remote, choice: Choice) -> dict[str, Any]:
    names = [str(multiscale.get("name", number)) for number, multiscale in enumerate(multiscales)]
    if choice.series is None:
        if len(multiscales) > 1:
            listed = ", ".join(f"{number} ({name})" for number, name in enumerate(names))
            raise InputError(f"{path} holds {len(names)} images: {listed}. Choose one, as in --series 0.")
        return multiscales[0]
    for number, name in enumerate(names):
        if choice.series in (str(number), name):
            return multiscales[number]
    raise InputError(f"{path} has no image {choice.series!r}; --series takes one of 0 to {len(names) - 1}.")


def _open_image(
    group: zarr.Group, path: Path | Remote, choice: Choice, multiscale: dict[str, Any]
) -> Volume[StoredArray]:
    import zarr

    attributes: dict[str, Any] = group.attrs.asdict()
    if is_segmentation(attributes) and not choice.labels:
        raise segmentation(str(path))
    level = multiscale["datasets"][0]
    array = group[level["path"]]
    axes = [{"name": axis} if isinstance(axis, str) else axis for axis in multiscale.get("axes", [])]  # 0.3: names
    if not isinstance(array, zarr.Array) or array.ndim != len(axes):
        raise InputError(f"{path} is not OME-Zarr 0.4 or 0.5: its multiscales do not describe the axes of level 0.")
    layout = lay_out(array.shape, [axis["name"] for axis in axes], str(path), choice)
    all_stored = (multiscale.get("metadata") or {}).get(ALL_STORED) is True
    data = _stored(array, layout, path, all_stored, choice)
    return Volume(data, *_stated_by_ome(level, multiscale, layout, [axis.get("unit") for axis in axes]))


def _stated_by_ome(
    level: dict[str, Any], multiscale: dict[str, Any], layout: Layout, units: list[str | None]
) -> Stated:
    """Voxel size and position; without a scale there is no size, and no unit for a position."""
    scale, translation, scaled = np.ones(3), np.zeros(3), False
    for step in (*level.get("coordinateTransformations", []), *multiscale.get("coordinateTransformations", [])):
        if step["type"] == "scale":
            factors = np.array(layout.zyx(step["scale"]), float)
            scale, translation, scaled = scale * factors, translation * factors, True
        elif step["type"] == "translation":
            translation = translation + np.array(layout.zyx(step["translation"]), float)
        elif step["type"] != "identity":
            return Stated(hint=f"its scale is a {step['type']}, which is not known here")
    of_axes = layout.zyx(units)
    if not scaled:
        return Stated(hint="its multiscales have no scale")
    size = stated_voxel_size(scale.tolist(), of_axes)
    if size is None:
        listed = ",".join(f"{length:g}" for length in scale)
        return Stated(hint=f"its scale is {listed} (z,y,x) in units {', '.join(map(str, of_axes))}")
    return Stated(size, "multiscales", zyx_nanometres(translation.tolist(), of_axes))


def _stored(
    array: zarr.Array[Any], layout: Layout, path: Path | Remote, all_stored: bool, choice: Choice
) -> StoredArray:
    check_dtype(array.dtype, str(path), labels=choice.labels)
    dtype = array.dtype.newbyteorder("=")
    grid = None if all_stored else _grid(array, path, choice)
    if grid is not None and isinstance(path, Path):
        z, y, x = layout.shape_zyx
        check_all(grid, _as_slices(layout.index((slice(0, z, 1), slice(0, y, 1), slice(0, x, 1)))))
    return layout.stored(dtype, array.chunks, partial(_read, array, path, grid))


def _read(array: zarr.Array[Any], path: Path | Remote, grid: Grid | None, index: tuple[slice | int, ...]) -> np.ndarray:
    """Without a grid, every chunk is there by the word of who wrote them."""
    box = _as_slices(index)
    for file, held in files_of(array, box) if grid is None else ():
        if not (path / file).is_file():
            raise InputError(f"{path / file} is missing; it held voxels {listed(held)}. Copy {path} again.")
    if isinstance(path, Path):
        _check_whole(array, path, box)
    sides = [len(range(part.start, part.stop, part.step)) for part in index if isinstance(part, slice)]
    try:
        data = np.asarray(array[index]).reshape(sides)
    except _READ_ERRORS as error:
        raise _damaged(array, path, box) or _unreadable(path, error) from error
    if grid is not None:
        check_box(grid, box, data)
    return data.astype(data.dtype.newbyteorder("="), copy=False)


def _as_slices(index: tuple[slice | int, ...]) -> tuple[slice, ...]:
    return tuple(slice(part, part + 1, 1) if isinstance(part, int) else part for part in index)


def _is_blosc(array: zarr.Array[Any]) -> bool:
    """Whether each file is what Blosc made, whose decoder reads beyond the end of one that was cut short."""
    return array.shards is None and any("blosc" in type(codec).__name__.lower() for codec in array.compressors[-1:])


def _check_whole(array: zarr.Array[Any], path: Path, box: tuple[slice, ...]) -> None:
    """Look for files that were cut short or left with nothing in places, which decoders do not notice.

    The header of a Blosc chunk states its length (bytes 12 to 15, little endian). What is compressed without a checksum
    holds no long runs of zeros: a page of them was allocated, and never written. A shard is never empty.
    """
    blosc, silent = _is_blosc(array), array.shards is None and bool(array.compressors) and not _has_checksum(array)
    if not (silent or array.shards):
        return
    for name, held in files_of(array, box):
        file = path / name
        if not file.is_file():
            continue
        content = file.read_bytes() if silent else b""
        size = len(content) if silent else file.stat().st_size
        stated = struct.unpack("<I", content[12:16])[0] if blosc and size >= 16 else max(size, 16 * blosc, 1)
        if size != stated or bytes(_PAGE) in content:
            found = f"it has {size} bytes, and states {stated}" if size != stated else "a part of it was never written"
            raise InputError(
                f"{file} cannot be read as Zarr ({found}); it holds voxels {listed(held)}. Copy it again, or leave "
                f"this part out."
            )


def _has_checksum(array: zarr.Array[Any]) -> bool:
    """Whether damage is noticed where voxels are decoded."""
    last = array.compressors[-1]
    name = type(last).__name__.lower()
    return "gzip" in name or "zlib" in name or "crc" in name or bool(getattr(last, "checksum", False))


def _grid(array: zarr.Array[Any], path: Path | Remote, choice: Choice) -> Grid:
    return Grid(
        str(path),
        array.shape,
        array.shards or array.chunks,
        array.fill_value,
        partial(_file, array, path),
        partial(_exists, array, path),
        partial(_voxels, array),
        choice.nodata,
    )


def _name(array: zarr.Array[Any], place: Place) -> str:
    return "/".join(filter(None, (array.path, array.metadata.encode_chunk_key(place))))


def _file(array: zarr.Array[Any], path: Path | Remote, place: Place) -> str:
    return str(path / _name(array, place))


def _exists(array: zarr.Array[Any], path: Path | Remote, place: Place) -> bool:
    return (path / _name(array, place)).is_file()


def _voxels(array: zarr.Array[Any], box: tuple[slice, ...]) -> np.ndarray:
    return np.asarray(array[box])


def _damaged(array: zarr.Array[Any], path: Path | Remote, box: tuple[slice, ...]) -> InputError | None:
    """The error for the first file that holds part of a box and cannot be decoded; ``None`` if each can alone."""
    for file, held in files_of(array, box):
        try:
            array[held]
        except _READ_ERRORS as error:
            return not_read(
                path / file,
                error,
                f"{path / file} cannot be read as Zarr ({type(error).__name__}: {error}); it holds voxels "
                f"{listed(held)}. Copy it again, or leave this part out.",
            )
    return None


def _unreadable(path: Path | Remote, error: Exception) -> InputError:
    return not_read(
        path,
        error,
        f"{path} cannot be read as Zarr ({type(error).__name__}: {error}). Was it copied completely? "
        f"Expected an OME-Zarr 0.4 or 0.5 image or a Zarr array.",
    )
