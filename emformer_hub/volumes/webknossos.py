"""Data sets of WEBKNOSSOS, whose layers lie in folders of .wkw files, as they are read (extra ``wkw``)."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from emformer_hub.errors import InputError, import_extra
from emformer_hub.volumes.axes import NOTHING_CHOSEN, Choice, lay_out
from emformer_hub.volumes.checks import check_dtype, not_read, segmentation
from emformer_hub.volumes.stored import StoredArray
from emformer_hub.volumes.volume import Stated, Volume, stated_voxel_size

PROPERTIES, HEADER = "datasource-properties.json", "header.wkw"
_READ_ERRORS = (ValueError, OSError, LookupError, TypeError, AssertionError)


def is_webknossos(folder: Path) -> bool:
    """Whether a folder is a data set of WEBKNOSSOS, or a layer of one in .wkw files, at any magnification."""
    return any((folder / mark).is_file() for mark in (PROPERTIES, HEADER, f"1/{HEADER}", f"1-1-1/{HEADER}"))


def open_volume(folder: Path, choice: Choice = NOTHING_CHOSEN) -> Volume[StoredArray]:
    """Open a layer of grey values at its finest magnification; voxels stay on disk.

    Where the layer begins and ends, and its voxel size, is what ``datasource-properties.json`` of the data set says.

    Args:
        folder: of the data set, of a layer, or of a magnification of it.
        choice: of the layer (``series``), where there are several, of channel and axes.

    Raises:
        InputError: no such layer, several without a choice, a segmentation, no .wkw, damaged, or wkw is not installed.
    """
    root = next((place for place in (folder, *folder.absolute().parents[:2]) if (place / PROPERTIES).is_file()), None)
    if root is None:
        raise InputError(
            f"{folder} lies in no data set of WEBKNOSSOS with a {PROPERTIES}, which says where its layers begin and "
            f"end; give a whole data set."
        )
    described = _described(root / PROPERTIES)
    layers = {str(layer.get("name")): layer for layer in described.get("dataLayers", [])}
    name = _layer(folder, root, layers, choice)
    layer = layers[name]
    if layer.get("category") == "segmentation" and not choice.labels:
        raise segmentation(str(root / name))
    kind = str(layer.get("dataFormat"))
    inside = sorted(
        (path.parent for path in (root / name).glob(f"*/{HEADER}")), key=lambda path: _magnification(path.name)
    )
    if kind != "wkw" or not inside:
        raise InputError(
            f"the layer {name} of {root} is {kind}, without .wkw files; give the path of an array in it, such as "
            f"{root / name / '1'}, and its voxel size."
        )
    if folder.absolute() in [path.absolute() for path in inside]:
        inside = [folder]
    return _opened(inside[0], layer, described.get("scale"), choice)


def _described(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise not_read(file, error, f"{file} describes no data set ({error}). Was it copied completely?") from error


def _layer(folder: Path, root: Path, layers: dict[str, Any], choice: Choice) -> str:
    """The name of the layer that is meant, by the path, by a choice, or because it is the only one of its kind."""
    path = folder.absolute().relative_to(root.absolute()).parts
    wanted = path[0] if path else choice.series
    fitting = [name for name, layer in layers.items() if (layer.get("category") == "segmentation") == choice.labels]
    if wanted in layers:
        return str(wanted)
    if wanted is None and len(fitting) == 1:
        return fitting[0]
    listed = ", ".join(f"{name} ({layer.get('category')})" for name, layer in layers.items()) or "none"
    hint = f" Choose one, as in --series {fitting[0]}." if fitting else ""
    kind = "labels" if choice.labels else "grey values"
    raise InputError(f"{root} has the layers {listed}; expected one of {kind}.{hint}")


def _magnification(name: str) -> list[int]:
    """``2-2-1`` and ``2`` as numbers along x, y, z; those of other folders come last."""
    numbers = [int(part) if part.isdigit() else 2**31 for part in name.split("-")]
    return numbers * 3 if len(numbers) == 1 else numbers


def _opened(folder: Path, layer: dict[str, Any], scale: Any, choice: Choice) -> Volume[StoredArray]:
    wkw = import_extra("wkw", "wkw", f"{folder} is a layer of WEBKNOSSOS")
    factors = _magnification(folder.name)
    try:
        with wkw.Dataset.open(str(folder)) as opened:
            header = opened.header
        box = layer["boundingBox"]
        first = [int(at) // by for at, by in zip(box["topLeft"], factors, strict=True)]
        ends = [int(at) + int(box[side]) for at, side in zip(box["topLeft"], ("width", "height", "depth"), strict=True)]
        sides = [-(-end // by) - begin for end, by, begin in zip(ends, factors, first, strict=True)]
        lengths, unit = (scale["factor"], scale.get("unit")) if isinstance(scale, dict) else (scale, "nanometer")
        sizes = [float(f"{length * by:.12g}") for length, by in zip(lengths, factors, strict=True)] if lengths else []
    except (*_READ_ERRORS, wkw.wkw.WKWException) as error:
        raise _unreadable(folder, error) from error
    dtype = np.dtype(header.voxel_type)
    shape = (header.num_channels, *sides[::-1])
    layout = lay_out(shape, ["c", "z", "y", "x"], str(folder), choice)
    check_dtype(dtype, str(folder), labels=choice.labels)
    side = int(header.block_len)
    data = layout.stored(dtype, [1, side, side, side], partial(_read, str(folder), first, shape))
    size = stated_voxel_size(sizes[::-1], [unit] * 3) if sizes else None
    if size is None:
        return Volume(data, *Stated())
    places = [(at + 0.5) * length for at, length in zip(first[::-1], size.zyx, strict=True)]
    return Volume(data, size, PROPERTIES, (places[0], places[1], places[2]))


def _read(folder: str, first: list[int], shape: tuple[int, ...], index: tuple[slice | int, ...]) -> np.ndarray:
    """The data set is opened for each box: an open one must not be used after a fork."""
    import wkw

    channel, *box = index
    starts = [first[2 - axis] + (part if isinstance(part, int) else part.start) for axis, part in enumerate(box)]
    sides = [1 if isinstance(part, int) else part.stop - part.start for part in box]
    steps = tuple(slice(None, None, part.step) if isinstance(part, slice) else 0 for part in box)
    try:
        with wkw.Dataset.open(folder) as opened:
            _check_whole(Path(folder), opened.header, starts, sides)
            voxels = opened.read(starts[::-1], sides[::-1])
    except wkw.wkw.WKWException as error:
        raise _unreadable(Path(folder), error) from error
    return np.ascontiguousarray(voxels[channel].T[steps])


def _check_whole(folder: Path, header: Any, starts: Sequence[int], sides: Sequence[int]) -> None:
    """Compare the length of each file with what its beginning says: wkw reads zeros beyond the end.

    Bytes 8 to 15 say where the blocks begin; before them lies, if they are compressed, a table of where each ends.
    """
    side = header.block_len * header.file_len
    raw = side**3 * header.num_channels * np.dtype(header.voxel_type).itemsize
    for place in product(*(range(a // side, -(-(a + n) // side)) for a, n in zip(starts, sides, strict=True))):
        file = folder / "/".join(f"{axis}{number}" for axis, number in zip("zyx", place, strict=True))
        file = file.with_name(f"{file.name}.wkw")
        if not file.is_file():
            continue  # of which nothing was written
        with file.open("rb") as opened:
            beginning = opened.read(16 + 8 * header.file_len**3)
        size, needed = file.stat().st_size, 16
        if header.block_type == header.BLOCK_TYPE_RAW and len(beginning) >= 16:
            needed = struct.unpack("<Q", beginning[8:16])[0] + raw
        elif header.block_type != header.BLOCK_TYPE_RAW:
            needed = struct.unpack("<Q", beginning[-8:])[0] if len(beginning) % 8 == 0 and beginning else size + 1
        if size < needed or len(beginning) < 16:
            raise _unreadable(file, EOFError(f"it has {size} bytes, and states more"))


def _unreadable(folder: Path, error: Exception) -> InputError:
    return not_read(
        folder,
        error,
        f"{folder} cannot be read as WEBKNOSSOS ({type(error).__name__}: {error}). Was it copied completely? Otherwise "
        f"download it as Zarr or TIFF.",
    )
