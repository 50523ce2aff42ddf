"""OME-Zarr 0.4 and 0.5, bioformats2raw and plain Zarr arrays, read where they lie; what is damaged is named."""

from __future__ import annotations

import itertools
import logging
import math
import struct
import zlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from emformer_hub.errors import InputError
from emformer_hub.volumes.attributes import is_segmentation, stated_by
from emformer_hub.volumes.axes import NOTHING_CHOSEN, Choice, Layout, lay_out
from emformer_hub.volumes.checks import check_dtype, not_read, segmentation
from emformer_hub.volumes.ome_zarr import ALL_STORED, files_of
from emformer_hub.volumes.remote import Remote
from emformer_hub.volumes.stored import StoredArray
from emformer_hub.volumes.volume import Stated, Volume, stated_voxel_size, zyx_nanometres

if TYPE_CHECKING:
    import zarr

logger = logging.getLogger(__name__)

_MOST_COUNTED = 2**16
"""Chunks of a plain array that are looked for when it is opened; of more, each is when it is read."""
_MOST_COMPARED = 64  # missing chunks whose neighbours are looked at
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
    if is_segmentation(attributes):
        raise segmentation(str(path))
    layout = lay_out(array.shape, _names(array), str(path), choice)
    return Volume(_stored(array, layout, path, False), *stated_by(attributes, layout))


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
        return open_volume(path / wanted, Choice(choice.axes, choice.channel, choice.time))
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
    if is_segmentation(attributes):
        raise segmentation(str(path))
    level = multiscale["datasets"][0]
    array = group[level["path"]]
    axes = [{"name": axis} if isinstance(axis, str) else axis for axis in multiscale.get("axes", [])]  # 0.3: names
    if not isinstance(array, zarr.Array) or array.ndim != len(axes):
        raise InputError(f"{path} is not OME-Zarr 0.4 or 0.5: its multiscales do not describe the axes of level 0.")
    layout = lay_out(array.shape, [axis["name"] for axis in axes], str(path), choice)
    all_stored = (multiscale.get("metadata") or {}).get(ALL_STORED) is True
    data = _stored(array, layout, path, all_stored)
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


def _stored(array: zarr.Array[Any], layout: Layout, path: Path | Remote, all_stored: bool) -> StoredArray:
    check_dtype(array.dtype, str(path))
    dtype = array.dtype.newbyteorder("=")
    if isinstance(path, Path) and not all_stored:
        _check_holes(array, layout, path)
    return layout.stored(dtype, array.chunks, partial(_read, array, path, all_stored))


def _read(array: zarr.Array[Any], path: Path | Remote, all_stored: bool, index: tuple[slice | int, ...]) -> np.ndarray:
    box = _as_slices(index)
    for file, held in files_of(array, box) if all_stored else ():
        if not (path / file).exists():
            raise InputError(f"{path / file} is missing; it held voxels {_listed(held)}. Copy {path} again.")
    if isinstance(path, Path) and _is_blosc(array):
        _check_whole(array, path, box)
    sides = [len(range(part.start, part.stop, part.step)) for part in index if isinstance(part, slice)]
    try:
        data = np.asarray(array[index]).reshape(sides)
    except _READ_ERRORS as error:
        raise _damaged(array, path, box) or _unreadable(path, error) from error
    return data.astype(data.dtype.newbyteorder("="), copy=False)


def _as_slices(index: tuple[slice | int, ...]) -> tuple[slice, ...]:
    return tuple(slice(part, part + 1, 1) if isinstance(part, int) else part for part in index)


def _is_blosc(array: zarr.Array[Any]) -> bool:
    """Whether each file is what Blosc made, whose decoder reads beyond the end of one that was cut short."""
    return array.shards is None and any("blosc" in type(codec).__name__.lower() for codec in array.compressors[-1:])


def _check_whole(array: zarr.Array[Any], path: Path, box: tuple[slice, ...]) -> None:
    """Compare the length in the header of each Blosc chunk with that of its file (bytes 12 to 15, little endian)."""
    for name, held in files_of(array, box):
        file = path / name
        if not file.is_file():
            continue
        size = file.stat().st_size
        with file.open("rb") as opened:
            header = opened.read(16)
        stated = struct.unpack("<I", header[12:])[0] if len(header) == 16 else 16
        if size != stated:
            raise InputError(
                f"{file} cannot be read as Zarr (it has {size} bytes, and states {stated}); it holds voxels "
                f"{_listed(held)}. Copy it again, or leave this part out."
            )


def _check_holes(array: zarr.Array[Any], layout: Layout, path: Path) -> None:
    """Say which chunks are missing, and refuse those beside which there is tissue: zarr reads its fill value there.

    Chunks that hold nothing else than it may be left out, as at the margin of a volume that was registered. The margin
    begins within a chunk that is there, so that its last voxels hold the fill value too; those beside a chunk that was
    lost do not.
    """
    z, y, x = (slice(0, length, 1) for length in layout.shape_zyx)
    whole = _as_slices(layout.index((z, y, x)))
    sides = array.shards or array.chunks
    counts = [-(-part.stop // side) - part.start // side for part, side in zip(whole, sides, strict=True)]
    if math.prod(counts) > _MOST_COUNTED:
        return
    listed = list(files_of(array, whole))
    there = np.array([(path / name).is_file() for name, _ in listed]).reshape(counts)
    if there.all():
        return
    places = np.argwhere(~there)
    if not there.any():
        raise InputError(
            f"{path} holds no chunk of its array, the first of which would be {listed[0][0]}. Copy it again."
        )
    for place in places[:_MOST_COMPARED]:
        if _borders_on_tissue(
            array, [part.start // side for part, side in zip(whole, sides, strict=True)], place, there
        ):
            name, held = listed[int(np.ravel_multi_index(tuple(place), counts))]
            raise InputError(
                f"{path / name} is missing beside chunks that hold tissue; it held voxels {_listed(held)}. Copy {path} "
                f"again. If nothing was ever written there, crop the array: zarr reads {array.fill_value} otherwise."
            )
    name, held = listed[int(np.ravel_multi_index(tuple(places[0]), counts))]
    logger.warning(
        "%s lacks %d of %d chunks, the first %s with voxels %s; they are read as %s.",
        path,
        len(places),
        there.size,
        name,
        _listed(held),
        array.fill_value,
    )


def _borders_on_tissue(array: zarr.Array[Any], first: list[int], place: np.ndarray, there: np.ndarray) -> bool:
    """Whether most voxels that touch a missing chunk from one beside it hold something else than the fill value."""
    sides = array.shards or array.chunks
    for axis, step in itertools.product(range(there.ndim), (-1, 1)):
        beside = place.copy()
        beside[axis] += step
        if not 0 <= beside[axis] < there.shape[axis] or not there[tuple(beside)]:
            continue
        starts = [(begin + int(at)) * side for begin, at, side in zip(first, beside, sides, strict=True)]
        face = [slice(start, min(start + side, n)) for start, side, n in zip(starts, sides, array.shape, strict=True)]
        edge = face[axis].stop - 1 if step < 0 else face[axis].start
        face[axis] = slice(edge, edge + 1)
        try:
            voxels = np.asarray(array[tuple(face)])
        except _READ_ERRORS:
            continue  # named where it is read
        if (voxels != array.fill_value).mean() > 0.5:
            return True
    return False


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
                f"{_listed(held)}. Copy it again, or leave this part out.",
            )
    return None


def _listed(box: Sequence[slice]) -> str:
    """``z 0:64, y 128:256, x 0:128``, or the ranges alone for another number of axes."""
    ranges = [f"{part.start}:{part.stop}" for part in box]
    if len(box) < 3:
        return ", ".join(ranges)
    return ", ".join(f"{axis} {part}" for axis, part in zip("zyx", ranges[-3:], strict=True))


def _unreadable(path: Path | Remote, error: Exception) -> InputError:
    return not_read(
        path,
        error,
        f"{path} cannot be read as Zarr ({type(error).__name__}: {error}). Was it copied completely? "
        f"Expected an OME-Zarr 0.4 or 0.5 image or a Zarr array.",
    )
