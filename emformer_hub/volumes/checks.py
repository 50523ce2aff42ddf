"""What a volume must be before anything is computed from it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from emformer_hub.errors import InputError
from emformer_hub.volumes.stored import StoredArray
from emformer_hub.volumes.unmeasured import not_measured

MIN_SECTIONS = 4
MOST_MASKED, NEIGHBOURHOOD = 3, 7
"""At most 3 of 7 neighbouring sections may be masked: the widest gaps that the networks are trained to fill."""
DTYPES = tuple(np.dtype(name) for name in ("uint8", "uint16", "int16", "float16", "float32", "float64"))
LABEL_DTYPES = tuple(np.dtype(f"{sign}int{bits}") for sign in ("u", "") for bits in (8, 16, 32, 64))


def check_dtype(dtype: np.dtype, name: str, *, labels: bool = False) -> None:
    """Raise ``InputError`` unless ``dtype``, in either byte order, is one of ``DTYPES``, or of ``LABEL_DTYPES``."""
    if labels and dtype.newbyteorder("=") not in LABEL_DTYPES:
        raise InputError(
            f"{name} holds {dtype} voxels; expected labels, which are whole numbers: "
            f"{', '.join(map(str, LABEL_DTYPES))}. Convert it first."
        )
    if labels:
        return
    if dtype.newbyteorder("=") not in DTYPES:
        raise InputError(
            f"{name} holds {dtype} voxels; expected grey values as {', '.join(map(str, DTYPES))}. "
            f"Convert it, for example in Fiji with Image > Type > 16-bit."
        )


def check_volume(data: np.ndarray | StoredArray, name: str, mask: np.ndarray | StoredArray | None = None) -> None:
    """Raise ``InputError`` unless ``data`` is a grey-value stack that sections can be restored from.

    Sections are read one at a time, so that a stack on disk is never loaded as a whole.

    Args:
        data: expected ``(z, y, x)``, at least 4 sections, finite, not constant, dtype one of ``DTYPES``.
        name: what messages call the volume; the path, usually.
        mask: as :func:`check_mask` returns it; masked voxels are ignored.
    """
    check_stack(data.shape, data.dtype, name)
    _check_measured(data, name, mask)
    first = next((section.flat[0] for section in _measured(data, mask) if section.size), None)
    if first is None:
        raise InputError(f"every voxel of {name} is masked. Is the mask the right way round?")
    if all((section == first).all() for section in _measured(data, mask)):
        raise InputError(
            f"{name} is constant: every voxel is {first}. Expected an image; was the right file or channel exported?"
        )


def check_stack(shape: tuple[int, ...], dtype: np.dtype, name: str) -> None:
    """Check what :func:`check_volume` can without reading voxels: shape and dtype."""
    _check_shape(shape, name)
    check_dtype(dtype, name)


def check_mask(mask: np.ndarray, shape_zyx: tuple[int, ...]) -> np.ndarray:
    """Check a mask and return it as one of voxels, bool ``(sections, y, x)``, a read-only view without a copy.

    Args:
        mask: bool, ``(sections,)`` for whole sections or ``(sections, y, x)`` for local damage; True where voxels are
            not to be believed.
        shape_zyx: of the volume that it belongs to, (sections, y, x).

    Raises:
        InputError: another dtype or shape; more than 3 of 7 neighbouring sections are masked, somewhere in the plane;
            or fewer than 4 sections are left. The message says where.
    """
    mask = np.asanyarray(mask)
    depth = shape_zyx[0]
    if mask.dtype != bool or mask.shape not in ((depth,), tuple(shape_zyx)):
        raise InputError(
            f"the mask is {mask.dtype} of shape {mask.shape}; expected bool, True for what is not to be believed, of "
            f"shape ({depth},) for whole sections or {tuple(shape_zyx)} for local damage."
        )
    columns = mask[:, None, None] if mask.ndim == 1 else mask
    usable = depth - int(columns.all(axis=(1, 2)).sum())
    if usable < MIN_SECTIONS:
        raise InputError(
            f"the mask leaves {usable} of {depth} sections; expected at least {MIN_SECTIONS} to fill the others from."
        )
    _check_gaps(columns)
    return np.broadcast_to(columns, shape_zyx)


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


def _check_gaps(mask: np.ndarray) -> None:
    count = np.zeros(mask.shape[1:], np.uint8)  # masked sections among the last few, column by column
    for z in range(len(mask)):
        count += mask[z]
        if z >= NEIGHBOURHOOD:
            count -= mask[z - NEIGHBOURHOOD]
        if (count > MOST_MASKED).any():
            y, x = np.unravel_index(int(count.argmax()), count.shape)
            where = f"at y={y}, x={x}, " if mask[0].size > 1 else ""
            first = max(0, z - NEIGHBOURHOOD + 1)
            masked = ", ".join(map(str, first + np.flatnonzero(mask[first : z + 1, y, x])))
            raise InputError(
                f"{where}sections {masked} are masked; expected at most {MOST_MASKED} in a row, and {MOST_MASKED} of "
                f"{NEIGHBOURHOOD} neighbours: what lies in wider gaps cannot be predicted from what is around them. "
                f"Reconstruct the parts of the stack on either side by themselves."
            )


def _measured(data: np.ndarray | StoredArray, mask: np.ndarray | StoredArray | None) -> Iterator[np.ndarray]:
    """The voxels of each section that are not masked."""
    for z in range(len(data)):
        yield data[z] if mask is None else data[z][~mask[z]]


def _check_measured(data: np.ndarray | StoredArray, name: str, mask: np.ndarray | StoredArray | None) -> None:
    """Raise ``InputError`` for voxels that hold NaN, infinity, or a value that stands for no data."""
    count, first, value = 0, "", 0.0
    for z in range(len(data)):
        found = not_measured(data[z], None if mask is None else mask[z])
        if found is not None:
            broken, of_first = found
            if not count:
                y, x = np.unravel_index(int(broken.argmax()), broken.shape)
                first, value = f"z={z}, y={y}, x={x}", of_first
            count += int(broken.sum())
    if count:
        raise unmeasured(name, value, first, count)


def unmeasured(name: str, value: float, place: str, count: int | None = None) -> InputError:
    """The error for voxels without a grey value, the first of which holds ``value`` at ``place``."""
    plural = "s" * (count != 1)
    number = "" if count is None else f"{count} "
    found = f"{number}NaN or infinite voxel{plural}"
    if np.isfinite(value):
        found = f"{number}voxel{plural} of {value:g}, which stands for no data"
    return InputError(
        f"{name} has {found}, the first at {place}; expected grey values that were measured. Predict these voxels by "
        f"--nodata {value:g}, or whole sections by --repair, or replace them, for example with the median."
    )


def not_read(path: object, error: Exception, otherwise: str) -> InputError:
    """The error for a file that cannot be read: that of a missing permission, or else the message ``otherwise``."""
    if isinstance(error, PermissionError):
        return InputError(f"{path} cannot be read: permission denied. Ask for read permission.")
    return InputError(otherwise)


def segmentation(name: str) -> InputError:
    """The error for a segmentation: between two labels there is no third to restore."""
    return InputError(
        f"{name} is declared to be a segmentation, whose voxels are labels; expected grey values. Give the image that "
        f"it was made from."
    )
