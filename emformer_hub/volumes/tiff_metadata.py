"""Voxel size and position as TIFF files state them: OME-XML, ImageJ, and the tags of electron microscopes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any
from xml.etree import ElementTree

import numpy as np
import tifffile

from emformer_hub.volumes.volume import Stated, stated_voxel_size, to_nanometres, zyx_nanometres

_RESOLUTION_UNIT_NONE = 1  # of TIFF 6.0


def read_metadata(tif: tifffile.TiffFile) -> Stated:
    """Voxel size where all of it is stated, else the size of a pixel where a microscope states that; translation."""
    (sizes, units), translation = _read_ome(tif.ome_metadata)
    voxel_size, source = stated_voxel_size(sizes, units), "OME-XML"
    if voxel_size is not None:
        return Stated(voxel_size, source, translation)
    of_imagej = _read_imagej(tif)
    if of_imagej is not None:
        voxel_size = stated_voxel_size(*of_imagej)
        if voxel_size is not None:
            return Stated(voxel_size, "ImageJ metadata", translation)
    pixels = [(sizes[1:], units[1:], source)]
    if of_imagej is not None:
        pixels.append((of_imagej[0][1:], of_imagej[1][1:], "ImageJ metadata"))
    for lengths, named, where in (*pixels, *_microscopes(tif)):
        y, x = (to_nanometres(length, unit) for length, unit in zip(lengths, named, strict=True))
        if y is not None and x is not None and all(math.isfinite(one) and one > 0 for one in (y, x)):
            return Stated(None, "", translation, (y, x), where)
    return Stated(None, "", translation)


Pixels = tuple[list[float], list[str | None], str]
"""Lengths along y and x, their units, and what states them."""


def _microscopes(tif: tifffile.TiffFile) -> Iterator[Pixels]:
    """Pixels as microscopes write them into tags of their own, which tifffile decodes."""
    scan = _section(tif.fei_metadata, "Scan")
    yield _metres(scan.get("PixelHeight"), scan.get("PixelWidth"), "FEI metadata")
    of_zeiss = tif.sem_metadata or {}
    for name in ("ap_image_pixel_size", "ap_pixel_size"):
        entry = of_zeiss.get(name)
        if isinstance(entry, tuple) and len(entry) >= 3:
            yield [_number(entry[1])] * 2, [str(entry[2])] * 2, "Zeiss metadata"
    of_olympus = tif.sis_metadata or {}
    yield _metres(of_olympus.get("pixelsizey"), of_olympus.get("pixelsizex"), "Olympus metadata")
    of_tvips = tif.tvips_metadata or {}
    nanometres = [_number(of_tvips.get(name)) for name in ("PixelSizeY", "PixelSizeX")]
    yield nanometres, ["nm", "nm"], "TVIPS metadata"


def _metres(y: object, x: object, where: str) -> Pixels:
    return [_number(y), _number(x)], ["m", "m"], where


def _section(metadata: Mapping[str, Any] | None, name: str) -> Mapping[str, Any]:
    found = (metadata or {}).get(name)
    return found if isinstance(found, Mapping) else {}


Lengths = tuple[list[float], list[str | None]]


def _read_ome(xml: str | None) -> tuple[Lengths, tuple[float, float, float] | None]:
    """Sizes along z, y, x with their units, and position of the first plane.

    OME 2016-06: sizes are in µm unless the unit is given; positions
    without a unit are in an unknown frame."""
    try:
        pixels = ElementTree.fromstring(xml or "").find(".//{*}Pixels")
    except ElementTree.ParseError:
        pixels = None
    if pixels is None:
        return ([math.nan] * 3, [None] * 3), None
    sizes = [_number(pixels.get(f"PhysicalSize{axis}")) for axis in "ZYX"]
    units: list[str | None] = [pixels.get(f"PhysicalSize{axis}Unit", "µm") for axis in "ZYX"]
    plane = pixels.find("{*}Plane")
    if plane is None:
        return (sizes, units), None
    position = [_number(plane.get(f"Position{axis}")) for axis in "ZYX"]
    translation = zyx_nanometres(position, [plane.get(f"Position{axis}Unit") for axis in "ZYX"])
    return (sizes, units), translation if translation and np.isfinite(translation).all() else None


def _read_imagej(tif: tifffile.TiffFile) -> Lengths | None:
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
    return [_number(metadata.get("spacing")), y, x], list(units)


def _number(text: object) -> float:
    """The number that metadata states, NaN if none."""
    try:
        return float(str(text))
    except ValueError:
        return float("nan")
