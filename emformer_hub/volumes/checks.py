"""What a volume must be before anything is computed from it."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np

from emformer_hub.errors import InputError
from emformer_hub.geometry import Region

MIN_SECTIONS = 4
DTYPES = tuple(np.dtype(name) for name in ("uint8", "uint16", "int16", "float16", "float32", "float64"))


def check_dtype(dtype: np.dtype, name: str) -> None:
    """Raise ``InputError`` unless ``dtype``, in either byte order, is one of ``DTYPES``."""
    if dtype.newbyteorder("=") not in DTYPES:
        raise InputError(
            f"{name} holds {dtype} voxels; expected grey values as {', '.join(map(str, DTYPES))}. "
            f"Convert it, for example in Fiji with Image > Type > 16-bit."
        )


def check_volume(data: np.ndarray, name: str) -> None:
    """Raise ``InputError`` unless ``data`` is a grey-value stack that sections can be restored from.

    Sections are looked at one by one, so a memory map is never loaded as a whole.

    Args:
        data: expected ``(z, y, x)``, at least 4 sections, finite, not constant, dtype one of ``DTYPES``.
        name: what messages call the volume; the path, usually.
    """
    check_stack(data.shape, data.dtype, name)
    if data.dtype.kind == "f":
        _check_finite(data, name)
    first = data[0, 0, 0]
    if all((section == first).all() for section in data):
        raise InputError(
            f"{name} is constant: every voxel is {first}. Expected an image; was the right file or channel exported?"
        )


def check_stack(shape: tuple[int, ...], dtype: np.dtype, name: str) -> None:
    """The part of :func:`check_volume` that needs no look at the voxels."""
    _check_shape(shape, name)
    check_dtype(dtype, name)


def check_region(region: Region, shape: tuple[int, ...], name: str) -> None:
    """Raise ``InputError`` unless a volume of this shape holds all of a region."""
    if any(not 0 <= part.start < part.stop <= length for part, length in zip(region, shape, strict=True)):
        wanted = ",".join(f"{part.start}:{part.stop}" for part in region)
        there = ",".join(f"0:{length}" for length in shape)
        raise InputError(f"region {wanted} is not all there: {name} is {there} (z, y, x).")


def _check_shape(shape: tuple[int, ...], name: str) -> None:
    expected = "expected one grey-value stack (z, y, x)"
    if len(shape) < 3:
        raise InputError(
            f"{name} is a {len(shape)}-D image of shape {shape}; {expected}. "
            f"Give a multi-page TIFF, an OME-Zarr, or the folder that holds all sections."
        )
    if shape[-1] in (3, 4):
        raise InputError(
            f"{name} has shape {shape}, which is RGB or RGBA; {expected}. "
            f"Convert it to grey values, for example in Fiji with Image > Type > 8-bit."
        )
    if len(shape) > 3:
        long_axes = sum(size > 1 for size in shape)
        remedy = "Choose one channel and time point." if long_axes > 3 else "Remove the axes of length 1."
        raise InputError(
            f"{name} has {len(shape)} axes, {long_axes} of them longer than 1: {shape}; {expected}. {remedy}"
        )
    if shape[0] < MIN_SECTIONS:
        raise InputError(
            f"{name} has {shape[0]} section{'s' * (shape[0] != 1)} (shape {shape}, z first); "
            f"expected at least {MIN_SECTIONS}. Is z the first axis? If this is one section, give the whole stack."
        )
    if 0 in shape:
        raise InputError(f"{name} is empty: shape {shape}; {expected}.")


def _check_finite(data: np.ndarray, name: str) -> None:
    count, first = 0, ""
    for z, section in enumerate(data):
        broken = ~np.isfinite(section)
        found = int(broken.sum())
        if found and not count:
            y, x = np.unravel_index(int(broken.argmax()), broken.shape)
            first = f"z={z}, y={y}, x={x}"
        count += found
    if count:
        raise InputError(
            f"{name} has {count} NaN or infinite voxel{'s' * (count != 1)}, the first at {first}; expected finite grey "
            f"values. Replace them, for example with the median, and name damaged sections as missing instead."
        )


def not_read(path: Path, error: Exception, otherwise: str) -> InputError:
    """The error for a file that the operating system refuses, or that for another reason could not be read."""
    if isinstance(error, PermissionError):
        return InputError(f"{path} cannot be read: permission denied. Ask for read permission.")
    return InputError(otherwise)


def import_extra(module: str, extra: str, what: str) -> ModuleType:
    """A library of an extra; raises ``InputError`` if it is not installed. ``what`` says what needs it."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise InputError(f"{what}, which needs the extra [{extra}]: run `pip install emformer-hub[{extra}]`.") from None
