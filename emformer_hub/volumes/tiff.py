"""TIFF stacks: any multi-page, ImageJ, OME or BigTIFF in; OME-TIFF that ImageJ opens too out.

The file that is written carries two ImageDescription tags. The first is OME-XML, which Bio-Formats and tifffile read.
The second is ImageJ's own, which ImageJ reads without Bio-Formats (it takes the last one, others take the first),
together with XResolution and YResolution in pixels per nanometre. Above 4 GB the file is a BigTIFF, for which ImageJ
needs Bio-Formats. Planes are uncompressed and contiguous, so the file can be memory-mapped.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import tifffile

from emformer_hub.errors import InputError
from emformer_hub.geometry import VoxelSize
from emformer_hub.volumes.checks import check_dtype, not_read
from emformer_hub.volumes.contiguous import ContiguousWriter, open_contiguous
from emformer_hub.volumes.stored import StoredArray
from emformer_hub.volumes.volume import Volume, stated_voxel_size, zyx_nanometres

# what tifffile and its decoders raise on damaged or unsupported data
READ_ERRORS = (ValueError, RuntimeError, IndexError, KeyError, OSError, struct.error, zlib.error)
_IMAGE_DESCRIPTION = 270  # TIFF 6.0 tag numbers and values
_RESOLUTION_UNIT_NONE = 1


def open_volume(path: Path) -> Volume[np.ndarray | StoredArray]:
    """Open a TIFF stack. If it is uncompressed and contiguous it stays on disk, as a read-only memory map if it is in
    native byte order too (ImageJ's 16-bit stacks are not); else it is loaded.

    Raises:
        InputError: not a TIFF, truncated, not one grey-value stack, or an unsupported dtype or compression.
    """
    try:
        with tifffile.TiffFile(path) as tif:
            return Volume(_read_stack(tif, path), *read_metadata(tif))
    except InputError:
        raise
    except READ_ERRORS as error:
        raise unreadable(path, error) from error


def read_metadata(tif: tifffile.TiffFile) -> tuple[VoxelSize | None, str, tuple[float, float, float] | None]:
    """Voxel size, where it is stated, and translation in nm, as in :class:`Volume`."""
    voxel_size, translation = _read_ome(tif.ome_metadata)
    source = "OME-XML"
    if voxel_size is None:
        voxel_size, source = _read_imagej(tif), "ImageJ metadata"
    return voxel_size, source if voxel_size else "", translation


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
        f"`pip install emformer-hub[images]`; otherwise save it again, for example with Fiji.",
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


def _read_stack(tif: tifffile.TiffFile, path: Path) -> np.ndarray | StoredArray:
    check_intact(tif, path)
    shapes = [_zyx(series, path) for series in tif.series]
    dtypes = {series.dtype for series in tif.series}
    if len(shapes) == 1:
        return _load(tif, path, shapes[0])
    if set(shapes) == {(1, *shapes[0][1:])} and len(dtypes) == 1:  # sections written one by one
        return np.stack([series.asarray().reshape(shapes[0][1:]) for series in tif.series])
    raise InputError(
        f"{path} holds {len(shapes)} images, of shapes {', '.join(map(str, sorted(set(shapes))))} (z, y, x); "
        f"expected one stack of equal sections. Save the stack alone, for example with Fiji."
    )


def _load(tif: tifffile.TiffFile, path: Path, shape: tuple[int, int, int]) -> np.ndarray | StoredArray:
    series = tif.series[0]
    stored = np.dtype(tif.byteorder + np.dtype(series.dtype).char)
    native = stored.newbyteorder("=")
    if series.dataoffset is None:
        return series.asarray().astype(native, copy=False).reshape(shape)
    if stored.isnative:
        return tifffile.memmap(path, mode="r").reshape(shape)
    return open_contiguous(path, series.dataoffset, shape, stored, native)


def _zyx(series: tifffile.TiffPageSeries, path: Path) -> tuple[int, int, int]:
    """The shape of a series as (z, y, x): whatever the one axis besides y and x is called, it holds the sections."""
    check_dtype(np.dtype(series.dtype), str(path))
    axes, shape = series.axes, series.shape  # with axes of length 1, or without, as the version of tifffile has it
    rows, columns = shape[axes.index("Y")], shape[axes.index("X")]
    stacked = [(axis, size) for axis, size in zip(axes, shape, strict=True) if axis not in "YX" and size > 1]
    found = f"axes {axes}, shape {shape}"
    if any(axis == "S" for axis, _ in stacked):
        raise InputError(
            f"{path} is RGB or RGBA ({found}); expected grey values. "
            f"Convert it, for example in Fiji with Image > Type > 8-bit."
        )
    if len(stacked) > 1:
        raise InputError(
            f"{path} has {len(stacked) + 2} axes longer than 1 ({found}); expected one grey-value stack (z, y, x). "
            f"Save one channel and time point, for example with Fiji's Image > Duplicate."
        )
    return (stacked[0][1] if stacked else 1, rows, columns)


def _read_ome(xml: str | None) -> tuple[VoxelSize | None, tuple[float, float, float] | None]:
    """Voxel size and position of the first plane. OME 2016-06: sizes are in µm unless the unit is given; positions
    without a unit are in an unknown frame."""
    try:
        pixels = ElementTree.fromstring(xml or "").find(".//{*}Pixels")
    except ElementTree.ParseError:
        return None, None
    if pixels is None:
        return None, None
    sizes = [_number(pixels.get(f"PhysicalSize{axis}")) for axis in "ZYX"]
    voxel_size = stated_voxel_size(sizes, [pixels.get(f"PhysicalSize{axis}Unit", "µm") for axis in "ZYX"])
    plane = pixels.find("{*}Plane")
    if plane is None:
        return voxel_size, None
    position = [_number(plane.get(f"Position{axis}")) for axis in "ZYX"]
    translation = zyx_nanometres(position, [plane.get(f"Position{axis}Unit") for axis in "ZYX"])
    return voxel_size, translation if translation and np.isfinite(translation).all() else None


def _read_imagej(tif: tifffile.TiffFile) -> VoxelSize | None:
    """ImageJ keeps z as ``spacing`` and y, x as pixels per ``unit`` in the resolution tags (ij.io.TiffDecoder)."""
    metadata, tags = tif.imagej_metadata or {}, tif.pages.first.tags
    if tags.valueof("ResolutionUnit", default=_RESOLUTION_UNIT_NONE) != _RESOLUTION_UNIT_NONE:
        return None  # inch or centimetre, beside the unit of the description: contradictory
    pixels_per_unit = [tags.valueof(f"{axis}Resolution", default=(0, 1)) for axis in "YX"]
    if pixels_per_unit == [(1, 1), (1, 1)]:
        return None  # what writers, tifffile among them, put when they were given no pixel size
    y, x = (denominator / numerator if numerator else float("nan") for numerator, denominator in pixels_per_unit)
    unit = str(metadata.get("unit", ""))
    # an ImageJ calibration may differ by axis: xunit is `unit`, yunit and zunit stand beside it if they differ
    units = [str(metadata.get("zunit", unit)), str(metadata.get("yunit", unit)), unit]
    return stated_voxel_size((_number(metadata.get("spacing")), y, x), units)


def _number(text: object) -> float:
    """The number that metadata states, NaN if none."""
    try:
        return float(str(text))
    except ValueError:
        return float("nan")
