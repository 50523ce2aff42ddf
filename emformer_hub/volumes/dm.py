"""Digital Micrograph's DM3 and DM4, of Gatan's microscopes, cameras and 3View (extra ``dm``). Read only.

A file holds a stack, or one section of a folder of them; beside it lies a thumbnail.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from emformer_hub.errors import InputError, import_extra
from emformer_hub.volumes.axes import NOTHING_CHOSEN, Choice, lay_out
from emformer_hub.volumes.checks import check_dtype, not_read
from emformer_hub.volumes.stored import StoredArray
from emformer_hub.volumes.volume import Stated, Volume, stated_voxel_size, to_nanometres

SUFFIXES = (".dm3", ".dm4")
_ORDERS = (b"\0\0\0\0", b"\0\0\0\x01")
_RGB = 23  # data type of thumbnails
_DTYPES = {1: "int16", 2: "float32", 6: "uint8", 7: "int32", 9: "int8", 10: "uint16", 11: "uint32", 12: "float64"}
"""Of other data types, by their numbers."""
_READ_ERRORS = (
    ValueError,
    OSError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    AssertionError,
    RuntimeError,
    struct.error,
)


class _Image(NamedTuple):
    """An image of a file: shape, slowest axis first, dtype, where its voxels begin, lengths and their units."""

    shape: tuple[int, ...]
    dtype: np.dtype
    offset: int
    lengths: list[float]
    units: list[str]


def is_dm(path: Path) -> bool:
    """Whether a file begins as DM3 and DM4 do, of either byte order, or has their suffix."""
    with path.open("rb") as file:
        beginning = file.read(16)
    orders = {b"\0\0\0\x03": beginning[8:12], b"\0\0\0\x04": beginning[12:16]}
    return orders.get(beginning[:4]) in _ORDERS or path.suffix.lower() in SUFFIXES


def open_volume(path: Path, choice: Choice = NOTHING_CHOSEN) -> Volume[np.ndarray | StoredArray]:
    """Open the image of a file; voxels stay on disk.

    Raises:
        InputError: unreadable, not one stack, a bad dtype, or ncempy is not installed.
    """
    image = _image(path)
    shape = image.shape if len(image.shape) > 2 else (1, *image.shape)
    layout = lay_out(shape, None, str(path), choice)
    check_dtype(image.dtype, str(path))
    read = partial(_read, path, image, shape)
    data = layout.stored(image.dtype, [1] * (len(shape) - 2) + [*shape[-2:]], read)
    lengths = layout.zyx([*[math.nan] * (len(shape) - len(image.lengths)), *image.lengths])
    units = layout.zyx([*[""] * (len(shape) - len(image.units)), *image.units])
    size = stated_voxel_size(lengths, units)
    if size is not None:
        return Volume(data, size, "DM calibration")
    return Volume(data, *_pixels(lengths[1:], units[1:]))


def section(path: Path) -> tuple[tuple[int, ...], np.dtype]:
    """Shape (y, x) and dtype of a file with one section."""
    image = _image(path)
    return image.shape, image.dtype


def load_section(path: Path) -> np.ndarray:
    """The voxels of a file with one section, (y, x)."""
    image = _image(path)
    return _read(path, image, image.shape, (slice(None), slice(None)))


def stated_by_section(path: Path) -> Stated:
    """The size of a pixel that a file with one section states."""
    image = _image(path)
    return _pixels(image.lengths, image.units)


def _pixels(lengths: list[float], units: list[str]) -> Stated:
    y, x = (to_nanometres(length, unit) for length, unit in zip(lengths, units, strict=True))
    if y is None or x is None or not all(math.isfinite(one) and one > 0 for one in (y, x)):
        return Stated()
    return Stated(lateral_nm=(y, x), hint="DM calibration")


def _image(path: Path) -> _Image:
    """The only image of a file that is no thumbnail."""
    dm = import_extra("ncempy.io.dm", "dm", f"{path} is Digital Micrograph")
    try:
        with dm.fileDM(path, on_memory=False) as file:
            found = list(_images(file.allTags))
    except _READ_ERRORS as error:
        raise _unreadable(path, error) from error
    if len(found) != 1:
        shapes = ", ".join(str(image.shape) for image in found) or "none"
        raise InputError(
            f"{path} holds {len(found)} images ({shapes}); expected one. Open it in Fiji or Digital Micrograph and "
            f"save the stack alone."
        )
    return found[0]


def _images(tags: Mapping[str, Any]) -> Iterator[_Image]:
    number = 1
    while (data := f".ImageList.{number}.ImageData") + ".DataType" in tags:
        number += 1
        kind = int(tags[f"{data}.DataType"])
        if kind == _RGB:
            continue
        if kind not in _DTYPES:
            raise ValueError(f"its voxels are of the kind {kind}, which are no grey values")
        count = max(axis for axis in range(1, 6) if f"{data}.Dimensions.{axis}" in tags)
        axes, calibration = range(count, 0, -1), f"{data}.Calibrations.Dimension"
        yield _Image(
            tuple(int(tags[f"{data}.Dimensions.{axis}"]) for axis in axes),
            np.dtype(_DTYPES[kind]),
            int(tags[f"{data}.Data.arrayOffset"]),
            [float(str(np.float32(tags.get(f"{calibration}.{axis}.Scale", math.nan)))) for axis in axes],
            [str(tags.get(f"{calibration}.{axis}.Units", "")).replace("\0", "") for axis in axes],
        )


def _read(path: Path, image: _Image, shape: tuple[int, ...], index: tuple[slice | int, ...]) -> np.ndarray:
    try:
        mapped = np.memmap(path, image.dtype.newbyteorder("<"), "r", image.offset, shape)
        return mapped[index].astype(image.dtype)
    except (ValueError, OSError) as error:  # numpy: the file is too short
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> InputError:
    return not_read(
        path,
        error,
        f"{path} cannot be read as Digital Micrograph ({error or type(error).__name__}). Was it copied completely? "
        f"Otherwise open it in Fiji, with Bio-Formats where Fiji asks for it, and save it as OME-TIFF.",
    )
