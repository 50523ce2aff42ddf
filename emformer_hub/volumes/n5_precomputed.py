"""N5 and Neuroglancer precomputed, on this machine and elsewhere, through TensorStore (extra ``remote``). Read only."""

from __future__ import annotations

import json
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from emformer_hub.errors import InputError
from emformer_hub.geometry import VoxelSize
from emformer_hub.volumes.boxes import Box
from emformer_hub.volumes.checks import check_dtype
from emformer_hub.volumes.kvstore import CONTEXT, TIMEOUT_S, import_tensorstore, kvstore_spec, not_reached
from emformer_hub.volumes.remote import Remote
from emformer_hub.volumes.stored import StoredArray
from emformer_hub.volumes.volume import Volume, stated_voxel_size, zyx_nanometres

N5, PRECOMPUTED = "attributes.json", "info"
FINEST = "s0"
"""Name of the finest level in a folder of levels of N5."""


def is_n5_or_precomputed(place: Path | Remote) -> bool:
    """Whether a folder is N5 or precomputed."""
    return (place / N5).is_file() or (place / PRECOMPUTED).is_file()


def open_volume(place: Path | Remote) -> Volume[StoredArray]:
    """Open an N5 array, the finest level of a folder of them, or the first scale of a precomputed image.

    Voxels stay where they are. Voxel sizes of N5 are those of ``transform``, ``pixelResolution``, or ``resolution``
    with ``units``; those of precomputed are always stated, in nm.

    Raises:
        InputError: no such array, several channels, no grey values, damaged, or not to be reached.
    """
    described = _json(place / PRECOMPUTED)
    return _precomputed(place, described) if described is not None else _n5(place)


def _precomputed(place: Path | Remote, info: dict[str, Any]) -> Volume[StoredArray]:
    try:
        scale, channels = info["scales"][0], info["num_channels"]
        x, y, z = (float(length) for length in scale["resolution"])
        first = [float(begin) for begin in reversed(scale.get("voxel_offset", [0, 0, 0]))]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise InputError(f"{place}/{PRECOMPUTED} describes no precomputed image ({error!r}).") from error
    if channels != 1:
        raise InputError(f"{place} has {channels} channels; expected one grey-value stack.")
    data = _stored(place, {"driver": "neuroglancer_precomputed", "scale_index": 0})
    size = VoxelSize(z, y, x)
    at_z, at_y, at_x = ((begin + 0.5) * length for begin, length in zip(first, size.zyx, strict=True))
    return Volume(data, size, PRECOMPUTED, (at_z, at_y, at_x))


def _n5(place: Path | Remote) -> Volume[StoredArray]:
    attributes = _json(place / N5) or {}
    if "dimensions" not in attributes:
        inside = _json(place / FINEST / N5)
        if inside is None or "dimensions" not in inside:
            raise InputError(f"{place} is N5 without an array or a level {FINEST}; give the path of an array in it.")
        place, attributes = place / FINEST, {**attributes, **inside}
    transform, pixel = attributes.get("transform"), attributes.get("pixelResolution")
    translation = None
    lengths: list[float] | None = None
    units: list[str | None] = [None] * 3
    source = ""
    if isinstance(transform, dict) and {"axes", "scale", "units"} <= transform.keys():
        order = [transform["axes"].index(axis) for axis in "zyx"]
        lengths, units = ([transform[name][at] for at in order] for name in ("scale", "units"))
        translation = zyx_nanometres([transform.get("translate", [0, 0, 0])[at] for at in order], units)
        source = "transform"
    elif isinstance(pixel, dict) and "dimensions" in pixel:
        lengths, units, source = pixel["dimensions"][::-1], [pixel.get("unit")] * 3, "pixelResolution"
    elif "resolution" in attributes and "units" in attributes:
        lengths, units, source = attributes["resolution"][::-1], attributes["units"][::-1], "resolution"
    size = None if lengths is None else stated_voxel_size(lengths, units)
    return Volume(_stored(place, {"driver": "n5"}), size, source if size else "", translation)


def _json(file: Path | Remote) -> dict[str, Any] | None:
    """What a JSON file says; ``None`` if there is none."""
    content = file.read() if isinstance(file, Remote) else file.read_bytes() if file.is_file() else None
    try:
        return None if content is None else json.loads(content)
    except ValueError as error:
        raise InputError(f"{file} is no JSON ({error}). Was it copied completely?") from error


def _stored(place: Path | Remote, spec: dict[str, Any]) -> StoredArray:
    at = kvstore_spec(str(place)) if isinstance(place, Remote) else {"driver": "file", "path": f"{place.absolute()}/"}
    described = json.dumps({**spec, "kvstore": at})
    array = _array(described, str(place))
    if len(array.shape) != 3:
        raise InputError(f"{place} has shape {tuple(array.shape)[::-1]}; expected one grey-value stack.")
    dtype = array.dtype.numpy_dtype
    check_dtype(dtype, str(place))
    z, y, x = array.shape
    depth, height, width = array.chunk_layout.read_chunk.shape
    return StoredArray((z, y, x), dtype, (depth, height, width), partial(_read, described, str(place)))


def _read(described: str, name: str, box: Box) -> np.ndarray:
    array = _array(described, name)
    chosen = tuple(
        slice(first + part.start, first + part.stop, part.step)
        for first, part in zip(array.domain.inclusive_min, box, strict=True)
    )
    try:
        return np.ascontiguousarray(array[chosen].read().result(TIMEOUT_S))
    except (ValueError, OSError, TimeoutError) as error:
        raise not_reached(name, error) from error


@lru_cache(maxsize=16)
def _array(described: str, name: str) -> Any:
    """An array as z, y, x, opened once in a process."""
    tensorstore = import_tensorstore(name)
    try:
        spec = {**json.loads(described), "context": CONTEXT}
        array = tensorstore.open(spec, open=True, read=True).result(TIMEOUT_S)
    except (ValueError, OSError, TimeoutError) as error:
        raise not_reached(name, error) from error
    if len(array.shape) == 4:  # precomputed has channels
        array = array[..., 0]
    return array.T  # both number their axes x, y, z
