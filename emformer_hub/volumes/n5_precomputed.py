"""Reading N5 and Neuroglancer precomputed, on this machine and elsewhere, by TensorStore (extra ``remote``)."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from emformer_hub.errors import InputError
from emformer_hub.geometry import VoxelSize
from emformer_hub.volumes.attributes import is_segmentation, stated_by
from emformer_hub.volumes.axes import NOTHING_CHOSEN, SPACE, Choice, Layout, axis_of, lay_out
from emformer_hub.volumes.checks import check_dtype, segmentation
from emformer_hub.volumes.holes import Grid, Place, check_all, check_box
from emformer_hub.volumes.kvstore import CONTEXT, TIMEOUT_S, import_tensorstore, kvstore_spec, not_reached
from emformer_hub.volumes.remote import Remote
from emformer_hub.volumes.stored import StoredArray
from emformer_hub.volumes.volume import Volume

N5, PRECOMPUTED = "attributes.json", "info"
_LAYOUT = dict.fromkeys(("dimensions", "blockSize", "dataType", "compression"))
"""Attributes of an N5 array that say how it lies on the disk."""
FINEST = "s0"
"""Name of the finest level in a folder of levels of N5."""


def is_n5_or_precomputed(place: Path | Remote) -> bool:
    """Whether a folder is N5 or precomputed."""
    return (place / N5).is_file() or (place / PRECOMPUTED).is_file()


def open_volume(place: Path | Remote, choice: Choice = NOTHING_CHOSEN) -> Volume[StoredArray]:
    """Open an N5 array, the finest level of a folder of them, or the first scale of a precomputed image.

    Voxels stay where they are. N5 lists its axes from the fastest on: x, y, z unless ``axes`` or ``transform`` say
    otherwise. Its voxel size is that of ``transform``, ``pixelResolution``, ``resolution`` or ``voxel_size``; that of
    precomputed is always stated, in nm.

    Args:
        place: of the array.
        choice: of axes, channel, time point, and array (or level) in a folder of them.

    Raises:
        InputError: no such array, several channels without a choice, a segmentation, no grey values, damaged, or not
            to be reached.
    """
    described = _json(place / PRECOMPUTED)
    return _precomputed(place, described, choice) if described is not None else _n5(place, choice)


def _precomputed(place: Path | Remote, info: dict[str, Any], choice: Choice) -> Volume[StoredArray]:
    try:
        scale, kind = info["scales"][0], info.get("type", "image")
        x, y, z = (float(length) for length in scale["resolution"])
        first = [float(begin) for begin in reversed(scale.get("voxel_offset", [0, 0, 0]))]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise InputError(f"{place}/{PRECOMPUTED} describes no precomputed image ({error!r}).") from error
    if kind == "segmentation" and not choice.labels:
        raise segmentation(str(place))
    spec = {"driver": "neuroglancer_precomputed", "scale_index": 0}
    files = None if scale.get("sharding") else _Files(place / str(scale.get("key", "")), [int(one) for one in first])
    data, _ = _stored(place, spec, ["c", "z", "y", "x"], choice, files)
    size = VoxelSize(z, y, x)
    at_z, at_y, at_x = ((begin + 0.5) * length for begin, length in zip(first, size.zyx, strict=True))
    return Volume(data, size, PRECOMPUTED, (at_z, at_y, at_x))


def _n5(place: Path | Remote, choice: Choice) -> Volume[StoredArray]:
    attributes = _json(place / N5) or {}
    if "dimensions" not in attributes:
        level = choice.series or FINEST
        inside = _json(place / level / N5)
        if inside is None or "dimensions" not in inside:
            raise InputError(f"{place} is N5 without an array or a level {level}; give the path of an array in it.")
        place, attributes = place / level, {**attributes, **inside}
    if is_segmentation(attributes) and not choice.labels:
        raise segmentation(str(place))
    names = None if choice.axes else _axes(attributes, str(place))
    spec: dict[str, Any] = {"driver": "n5"}
    if _LAYOUT.keys() <= attributes.keys():  # what other programs put beside it is not TensorStore's to judge
        spec |= {"assume_metadata": True, "metadata": {name: attributes[name] for name in _LAYOUT}}
    data, layout = _stored(place, spec, names, choice, _Files(place))
    return Volume(data, *stated_by(attributes, layout, reverse=True))


def _axes(attributes: dict[str, Any], name: str) -> list[str] | None:
    """Names of the axes from the slowest on, as numpy orders them; ``None`` if none are stated.

    ``axes`` are in the order of N5, the fastest first. Those of ``transform`` and ``axis_names`` are in that of N5 or
    of C; z, y, x and x, y, z mean the same array then, and of any other order ``ordering`` must say which it is.

    Raises:
        InputError: an order of ``transform`` or ``axis_names`` that may be either.
    """
    stated = attributes.get("axes")
    if isinstance(stated, list) and stated:
        return [str(axis.get("name") if isinstance(axis, dict) else axis) for axis in reversed(stated)]
    transform = attributes.get("transform")
    of_transform = transform if isinstance(transform, dict) else {}
    names = of_transform.get("axes", attributes.get("axis_names"))
    if not isinstance(names, list) or len(names) != len(attributes["dimensions"]):
        return None
    known = [axis_of(str(axis)) for axis in names]
    ordering = of_transform.get("ordering")
    if ordering in ("C", "F"):
        return known if ordering == "C" else known[::-1]
    space = [axis for axis in known if axis in SPACE]
    if space not in (list(SPACE), list(SPACE[::-1])):
        raise InputError(
            f"{name} states axes {', '.join(map(str, names))}, and not whether the first or the last of them is the "
            f"fastest. Say which axis is which, the slowest first, as in --axes zyx."
        )
    return known if space == list(SPACE) else known[::-1]


def _json(file: Path | Remote) -> dict[str, Any] | None:
    """What a JSON file says; ``None`` if there is none."""
    content = file.read() if isinstance(file, Remote) else file.read_bytes() if file.is_file() else None
    try:
        return None if content is None else json.loads(content)
    except ValueError as error:
        raise InputError(f"{file} is not JSON ({error}). Was it copied completely?") from error


@dataclass(frozen=True)
class _Files:
    """Where chunks lie: of N5 by their number along each axis, of precomputed by their first and last voxels.

    Attributes:
        folder: that they lie in.
        first: voxel along z, y and x that a precomputed image begins with; ``None`` for N5.
    """

    folder: Path | Remote
    first: list[int] | None = None

    def path(self, shape: tuple[int, ...], sides: tuple[int, ...], place: Place) -> Path | Remote:
        if self.first is None:
            return self.folder / "/".join(str(number) for number in reversed(place))
        ranges = [
            f"{first + number * side}-{first + min((number + 1) * side, length)}"
            for first, number, side, length in zip(self.first, place[1:], sides[1:], shape[1:], strict=True)
        ]
        return self.folder / "_".join(reversed(ranges))

    def name(self, shape: tuple[int, ...], sides: tuple[int, ...], place: Place) -> str:
        return str(self.path(shape, sides, place))

    def exists(self, shape: tuple[int, ...], sides: tuple[int, ...], place: Place) -> bool:
        return self.path(shape, sides, place).is_file()


def _stored(
    place: Path | Remote, spec: dict[str, Any], names: list[str] | None, choice: Choice, files: _Files | None
) -> tuple[StoredArray, Layout]:
    """``files`` are those of chunks, unless several lie in one."""
    at = kvstore_spec(str(place)) if isinstance(place, Remote) else {"driver": "file", "path": f"{place.absolute()}/"}
    described = json.dumps({**spec, "kvstore": at})
    array = _array(described, str(place))
    layout = lay_out(array.shape, names, str(place), choice)
    dtype = array.dtype.numpy_dtype
    check_dtype(dtype, str(place), labels=choice.labels)
    chunks = array.chunk_layout.read_chunk.shape
    voxels = partial(_voxels, described, str(place))
    grid = None
    if files is not None:
        shape, sides = tuple(array.shape), tuple(chunks)
        file, exists = partial(files.name, shape, sides), partial(files.exists, shape, sides)
        grid = Grid(str(place), shape, sides, 0, file, exists, voxels, choice.nodata)
        if isinstance(place, Path):
            z, y, x = (slice(0, length, 1) for length in layout.shape_zyx)
            check_all(grid, _as_slices(layout.index((z, y, x))))
    return layout.stored(dtype, chunks, partial(_read, voxels, grid)), layout


def _as_slices(index: tuple[slice | int, ...]) -> tuple[slice, ...]:
    return tuple(slice(part, part + 1, 1) if isinstance(part, int) else part for part in index)


def _read(
    voxels: Callable[[tuple[slice | int, ...]], np.ndarray], grid: Grid | None, index: tuple[slice | int, ...]
) -> np.ndarray:
    data, box = voxels(index), _as_slices(index)
    if grid is not None:
        check_box(grid, box, data)
    return data


def _voxels(described: str, name: str, index: tuple[slice | int, ...]) -> np.ndarray:
    array = _array(described, name)
    chosen = tuple(
        first + part if isinstance(part, int) else slice(first + part.start, first + part.stop, part.step)
        for first, part in zip(array.domain.inclusive_min, index, strict=True)
    )
    try:
        return np.ascontiguousarray(array[chosen].read().result(TIMEOUT_S))
    except (ValueError, OSError, TimeoutError) as error:
        raise not_reached(name, error) from error


@lru_cache(maxsize=16)
def _array(described: str, name: str) -> Any:
    """An array, its slowest axis first, opened once in a process."""
    tensorstore = import_tensorstore(name)
    try:
        spec = {"open": True, **json.loads(described), "context": CONTEXT}
        array = tensorstore.open(spec, read=True).result(TIMEOUT_S)
    except (ValueError, OSError, TimeoutError) as error:
        raise not_reached(name, error) from error
    return array.T  # both number their axes from the fastest on
