"""A folder with one TIFF or PNG image per section, in the natural order of the names (``s2`` before ``s10``)."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import tifffile

from emformer_hub.errors import InputError
from emformer_hub.volumes.checks import check_dtype
from emformer_hub.volumes.tiff import READ_ERRORS, check_intact, unreadable
from emformer_hub.volumes.volume import Volume

_TIFF, _PNG = (".tif", ".tiff"), (".png",)


def open_volume(folder: Path) -> Volume[np.ndarray]:
    """Read all sections of a folder into memory; other files and hidden ones are left out.

    Images do not say how far sections are apart, so ``voxel_size`` is ``None``.

    Raises:
        InputError: no images, TIFF and PNG mixed, an unreadable or RGB image, sections of different shapes or dtypes.
    """
    paths = _sections(folder)
    first = _read_section(paths[0])
    check_dtype(first.dtype, str(paths[0]))
    data = np.empty((len(paths), *first.shape), first.dtype.newbyteorder("="))
    data[0] = first
    for z, path in enumerate(paths[1:], start=1):
        section = _read_section(path)
        if section.shape != first.shape or section.dtype.newbyteorder("=") != data.dtype:
            raise InputError(
                f"{path} has shape {section.shape} (y, x) and {section.dtype} voxels; expected {first.shape} and "
                f"{data.dtype} as in {paths[0].name}. Align and crop the sections to one size and type first."
            )
        data[z] = section
    return Volume(data, None, "")


def natural_order(name: str) -> list[str | int]:
    """Sort key that compares runs of digits as numbers: ``slice_2`` comes before ``slice_10``."""
    return [int(part) if part.isdigit() else part for part in re.split(r"([0-9]+)", name.casefold())]


def _sections(folder: Path) -> list[Path]:
    try:
        images = [path for path in folder.iterdir() if path.suffix.lower() in _TIFF + _PNG and path.name[0] != "."]
    except PermissionError:
        raise InputError(f"{folder} cannot be read: permission denied. Ask for read permission.") from None
    if not images:
        raise InputError(
            f"{folder} is a folder without TIFF or PNG images, and not a Zarr; "
            f"expected one image per section, or an OME-Zarr. Is it the right folder level?"
        )
    if len({path.suffix.lower() in _PNG for path in images}) > 1:
        raise InputError(
            f"{folder} mixes TIFF and PNG images; expected one kind. Move those that are not sections away."
        )
    return sorted(images, key=lambda path: natural_order(path.name))


def _read_section(path: Path) -> np.ndarray:
    try:
        section = _read_png(path) if path.suffix.lower() in _PNG else _read_tiff(path)
    except InputError:
        raise
    except (*READ_ERRORS, SyntaxError) as error:  # Pillow raises SyntaxError on a broken PNG
        raise unreadable(path, error) from error
    if section.ndim != 2:
        raise InputError(
            f"{path} has shape {section.shape}; expected one grey-value section (y, x). Convert RGB to grey values, "
            f"for example in Fiji with Image > Type > 8-bit; give a multi-page TIFF by its own path."
        )
    return section


def _read_tiff(path: Path) -> np.ndarray:
    with tifffile.TiffFile(path) as tif:
        check_intact(tif, path)
        if len(tif.series) > 1:
            raise InputError(f"{path} holds {len(tif.series)} images; expected one section a file.")
        return tif.asarray()


def _read_png(path: Path) -> np.ndarray:
    try:
        from imageio.v3 import imread
    except ImportError:
        raise InputError(
            f"{path} is a PNG, which needs the extra [images]: run `pip install emformer-hub[images]`."
        ) from None
    return imread(path, plugin="pillow")
