"""TIFF stacks: any multi-page, ImageJ, OME or BigTIFF in; OME-TIFF that ImageJ opens too out.

The file that is written carries two ImageDescription tags. The first is OME-XML, which Bio-Formats and tifffile read.
The second is ImageJ's own, which ImageJ reads without Bio-Formats (it takes the last one, others take the first),
together with XResolution and YResolution in pixels per nanometre. Above 4 GB the file is a BigTIFF, for which ImageJ
needs Bio-Formats. Planes are uncompressed and contiguous, so the file can be memory-mapped.
"""

from __future__ import annotations

import logging
import struct
import zlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import tifffile

from emformer_hub.errors import InputError
from emformer_hub.geometry import VoxelSize
from emformer_hub.volumes.axes import NOTHING_CHOSEN, Choice, Layout, lay_out
from emformer_hub.volumes.checks import check_dtype, not_read
from emformer_hub.volumes.contiguous import ContiguousWriter
from emformer_hub.volumes.grey import GreyValues, one_of_equal
from emformer_hub.volumes.stored import StoredArray
from emformer_hub.volumes.tiff_metadata import read_metadata
from emformer_hub.volumes.tiff_pages import Pages, pages_of
from emformer_hub.volumes.volume import Volume

logger = logging.getLogger(__name__)

# what tifffile and its decoders raise on damaged or unsupported data
READ_ERRORS = (ValueError, RuntimeError, IndexError, KeyError, OSError, struct.error, zlib.error)
_IMAGE_DESCRIPTION = 270  # TIFF 6.0 tag numbers and values
_RESOLUTION_UNIT_NONE = 1
_BEGINNINGS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_UNNAMED = "IQR"
"""Axes that tifffile found, and no metadata name."""
_NAMED = 12  # images that a message lists


def is_tiff(path: Path) -> bool:
    """Whether a file begins as TIFF or BigTIFF do, of either byte order, or has their suffix."""
    with path.open("rb") as file:
        beginning = file.read(4)
    return beginning in _BEGINNINGS or path.suffix.lower() in (".tif", ".tiff")


def open_volume(path: Path, choice: Choice = NOTHING_CHOSEN) -> Volume[np.ndarray | StoredArray]:
    """Open a TIFF stack. It stays on disk, as a read-only memory map if it is uncompressed, contiguous and in native
    byte order (ImageJ's 16-bit stacks are not). Compressed pages are decoded as they are read; colours are loaded.

    Axes are those that the file states. Voxels are the grey values that it shows: of MinIsWhite turned, of a grey
    palette looked up, of equal red, green and blue one of them, each with a note.

    Raises:
        InputError: not a TIFF, truncated, not one grey-value stack, or an unsupported dtype or compression.
    """
    try:
        with tifffile.TiffFile(path) as tif:
            check_intact(tif, path)
            return Volume(_read_stack(tif, path, choice), *read_metadata(tif))
    except InputError:
        raise
    except READ_ERRORS as error:
        raise unreadable(path, error) from error


def create(
    path: Path,
    shape_zyx: tuple[int, int, int],
    dtype: np.dtype,
    voxel_size: VoxelSize,
    translation_nm: Sequence[float],
) -> ContiguousWriter:
    """Make an OME-TIFF, full of zeros. A translation other than zero is kept as the OME position of the planes."""
    dtype = stored_dtype(dtype)
    metadata: dict[str, object] = {"axes": "ZYX"}
    for axis, length in zip("ZYX", voxel_size.zyx, strict=True):
        metadata |= {f"PhysicalSize{axis}": length, f"PhysicalSize{axis}Unit": "nm"}
    if any(translation_nm):
        z, y, x = translation_nm
        planes = shape_zyx[0]
        metadata["Plane"] = {
            "PositionZ": [z + plane * voxel_size.z for plane in range(planes)],
            "PositionY": [y] * planes,
            "PositionX": [x] * planes,
        } | {f"Position{axis}Unit": ["nm"] * planes for axis in "ZYX"}
    imagej = tifffile.imagej_description(shape_zyx, axes="ZYX", spacing=voxel_size.z, unit="nm")
    written = tifffile.imwrite(
        path,
        shape=shape_zyx,
        dtype=dtype,
        returnoffset=True,
        ome=True,
        photometric="minisblack",
        metadata=metadata,
        resolution=(1 / voxel_size.x, 1 / voxel_size.y),
        resolutionunit=_RESOLUTION_UNIT_NONE,  # the unit is the one that ImageJ's description names
        extratags=[("ImageDescription", "s", None, imagej, True)],
    )
    assert written is not None  # tifffile returns no offset where pages are not contiguous
    return ContiguousWriter(path, written[0], shape_zyx, dtype)


def stored_dtype(dtype: np.dtype) -> np.dtype:
    """The dtype of the file: float32 for float16, which OME does not know."""
    return np.dtype(np.float32) if dtype == np.float16 else dtype


def check_intact(tif: tifffile.TiffFile, path: Path) -> None:
    """Raise ``InputError`` if the file ends before its pages or their data do.

    tifffile itself reads as many pages as it finds, so half a file can look like a shorter stack.
    """
    size, layout, file = tif.filehandle.size, tif.tiff, tif.filehandle
    last_link = tif.pages.next_page_offset
    if last_link is not None:
        file.seek(last_link)
        # the last page links to offset 0; in a file cut short, a link points behind the end or is missing
        if file.read(layout.offsetsize) != bytes(layout.offsetsize):
            raise _truncated(path, size, "a page is missing")
    if _count_descriptions(tif) > sum(tag.code == _IMAGE_DESCRIPTION for tag in tif.pages.first.tags):
        raise _truncated(path, size, "the description of its axes is missing")
    for series in tif.series:
        if series.dataoffset is not None:
            needed = series.dataoffset + series.nbytes
        else:
            pages = [page for page in series if page is not None]
            if len(pages) < len(series):
                raise InputError(
                    f"{path} is part of an OME-TIFF of several files, and {len(series) - len(pages)} sections of "
                    f"{len(series)} are in files that are missing. Put all of them into one folder."
                )
            own_pages = (page for page in pages if page.parent is tif)
            ends = (
                offset + count
                for page in own_pages
                for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True)
            )
            needed = max(ends, default=0)
        if needed > size:
            raise _truncated(path, size, f"its pages need {needed} bytes")


def unreadable(path: Path, error: Exception) -> InputError:
    """The error for a file that cannot be opened or decoded as TIFF."""
    return not_read(
        path,
        error,
        f"{path} cannot be read as TIFF ({error}). Is it a TIFF, and copied completely? Compressed files may need "
        f"`pip install 'emformer-hub[images]'`; otherwise save it again, for example with Fiji.",
    )


def _count_descriptions(tif: tifffile.TiffFile) -> int:
    """How many ImageDescription tags the first page lists; tifffile drops those whose text lies behind the end."""
    layout, file = tif.tiff, tif.filehandle
    file.seek(tif.pages.first.offset)
    (count,) = struct.unpack(layout.tagnoformat, file.read(layout.tagnosize))
    entries = file.read(count * layout.tagsize)
    codes = [struct.unpack_from(f"{tif.byteorder}H", entries, n * layout.tagsize)[0] for n in range(count)]
    return codes.count(_IMAGE_DESCRIPTION)


def _truncated(path: Path, size: int, reason: str) -> InputError:
    return InputError(f"{path} is truncated or damaged: it has {size} bytes, and {reason}. Copy or export it again.")


def _read_stack(tif: tifffile.TiffFile, path: Path, choice: Choice) -> np.ndarray | StoredArray:
    found = _chosen_series(tif, path, choice)
    if len(found) == 1:
        return _load(tif, found[0], path, choice)
    grey = _grey_of(found[0], path, choice)
    shape = (len(found), *found[0].shape[-2:])
    layout = lay_out(shape, None, str(path), choice)
    pages = pages_of(tif, found, shape)
    if pages is not None:
        return _decoded(pages, layout, path, grey, choice)
    return layout.take(np.stack([grey(series.asarray()).reshape(series.shape[-2:]) for series in found]))


def _decoded(pages: Pages, layout: Layout, path: Path, grey: GreyValues, choice: Choice) -> StoredArray:
    """Voxels that stay compressed until they are needed."""
    check_dtype(pages.dtype, str(path), labels=choice.labels)
    return layout.stored(grey.dtype or pages.dtype, pages.chunks, partial(_read_decoded, pages, path, grey))


def _read_decoded(pages: Pages, path: Path, grey: GreyValues, index: tuple[slice | int, ...]) -> np.ndarray:
    try:
        return grey(pages.read(index))
    except READ_ERRORS as error:
        raise unreadable(path, error) from error


def _grey_of(series: tifffile.TiffPageSeries, path: Path, choice: Choice) -> GreyValues:
    if choice.labels:
        return GreyValues()  # labels are the numbers themselves, whatever colours show them
    grey = GreyValues.of(series.keyframe, str(path))
    if not grey.is_plain:
        logger.warning("%s: its pages %s.", path, grey.note)
    return grey


def _chosen_series(tif: tifffile.TiffFile, path: Path, choice: Choice) -> list[tifffile.TiffPageSeries]:
    """The images that are the stack: one, or those that were written section by section."""
    every = list(tif.series)
    if choice.series is not None:
        for number, series in enumerate(every):
            if choice.series in (str(number), series.name):
                return [series]
        raise InputError(f"{path} has no image {choice.series!r}; it holds {_listed(every)}.")
    full = [series for series in every if not series.keyframe.is_reduced]
    if full and len(full) < len(every):
        logger.warning("%s: %d reduced images beside the full ones are left out.", path, len(every) - len(full))
        every = full
    single = [series for series in every if series.size == series.keyframe.imagewidth * series.keyframe.imagelength]
    alike = {(series.shape[-2:], series.dtype, series.keyframe.photometric) for series in every}
    if len(every) == 1 or (len(single) == len(every) and len(alike) == 1 and not tif.is_ome):
        return every
    raise InputError(
        f"{path} holds {_listed(every)}; expected one stack of equal sections. Choose one, as in --series 0."
    )


def _listed(found: list[tifffile.TiffPageSeries]) -> str:
    """``2 images: 0 (overview, shape (20, 14)), 1 (shape (6, 20, 14))``"""
    named = [
        f"{number} ({series.name + ', ' if series.name else ''}axes {series.axes}, shape {series.shape})"
        for number, series in enumerate(found[:_NAMED])
    ]
    left_out = len(found) - len(named)
    return f"{len(found)} images: {', '.join(named)}" + (f" and {left_out} more" if left_out else "")


def _load(
    tif: tifffile.TiffFile, series: tifffile.TiffPageSeries, path: Path, choice: Choice
) -> np.ndarray | StoredArray:
    grey = _grey_of(series, path, choice)
    shape, names = [*series.shape], [axis if axis not in _UNNAMED else None for axis in series.axes]
    colours = names.index("S") if "S" in names and choice.channel is None and choice.axes is None else None
    if colours is not None and shape[colours] > 1:
        return _equal_colours(series, path, colours, grey, choice)
    if len(shape) == 2:  # a single section
        shape, names = [1, *shape], ["Z", *names]
    layout = lay_out(shape, names, str(path), choice)
    stored = np.dtype(tif.byteorder + np.dtype(series.dtype).char)
    native = stored.newbyteorder("=")
    check_dtype(native, str(path), labels=choice.labels)
    pages = pages_of(tif, [series], tuple(shape)) if series.dataoffset is None else None
    if pages is not None:
        return _decoded(pages, layout, path, grey, choice)
    if series.dataoffset is None:
        voxels = layout.take(series.asarray().astype(native, copy=False).reshape(shape))
        return voxels if grey.is_plain else grey(voxels)
    if stored.isnative and layout.is_plain and grey.is_plain:
        mapped = np.memmap(path, native, "r", series.dataoffset, tuple(shape))
        return mapped.reshape(layout.shape_zyx)
    read = partial(_read_mapped, path, series.dataoffset, tuple(shape), stored, grey)
    return layout.stored(grey.dtype or native, [1] * (len(shape) - 2) + shape[-2:], read)


def _read_mapped(
    path: Path, offset: int, shape: tuple[int, ...], stored: np.dtype, grey: GreyValues, index: tuple[slice | int, ...]
) -> np.ndarray:
    try:
        return grey(np.memmap(path, stored, "r", offset, shape)[index].astype(stored.newbyteorder("=")))
    except (ValueError, OSError) as error:  # numpy: the file is too short
        raise not_read(path, error, f"{path} cannot be read ({error}). Is it still there, and whole?") from error


def _equal_colours(
    series: tifffile.TiffPageSeries, path: Path, place: int, grey: GreyValues, choice: Choice
) -> np.ndarray:
    """Red, green and blue that are equal, as one."""
    names = [axis if axis not in _UNNAMED else None for at, axis in enumerate(series.axes) if at != place]
    voxels = one_of_equal(np.moveaxis(series.asarray(), place, -1), str(path))
    if voxels.ndim == 2:
        voxels, names = voxels[None], ["Z", *names]
    check_dtype(voxels.dtype, str(path), labels=choice.labels)
    logger.warning("%s is RGB with equal channels; one of them is taken.", path)
    return lay_out(voxels.shape, names, str(path), choice).take(grey(voxels))
