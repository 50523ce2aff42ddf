"""A folder with one image per section, in the order of the numbers in their names (``s2`` before ``s10``)."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import tifffile

from emformer_hub.errors import InputError, import_extra
from emformer_hub.geometry import VoxelSize
from emformer_hub.volumes import dm, tiff
from emformer_hub.volumes.axes import NOTHING_CHOSEN, Choice, lay_out
from emformer_hub.volumes.boxes import Box
from emformer_hub.volumes.checks import check_dtype
from emformer_hub.volumes.decoded import decoded
from emformer_hub.volumes.grey import GreyValues, one_of_equal
from emformer_hub.volumes.numbering import in_order
from emformer_hub.volumes.stored import StoredArray
from emformer_hub.volumes.tiff import READ_ERRORS, check_intact, unreadable
from emformer_hub.volumes.tiff_metadata import read_metadata
from emformer_hub.volumes.volume import Stated, Volume

logger = logging.getLogger(__name__)

_TIFF, _PNG, _OTHER = (".tif", ".tiff"), (".png",), (".jpg", ".jpeg", ".jp2", ".bmp", *dm.SUFFIXES)
_KINDS = {".tif": "TIFF", ".tiff": "TIFF", ".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
_NAME = "section_{}.tif"  # of the files that are written


def open_volume(folder: Path, choice: Choice = NOTHING_CHOSEN, *, but_last: bool = False) -> Volume[StoredArray]:
    """Open a folder of sections; each stays on disk until it is sliced. Other files and hidden ones are left out.

    Sections are in the order of the numbers in their names. Each is the full page of its file, in the grey values that
    it shows. Voxel size and position are those that the first section states; few programs state how far sections are
    apart.

    Args:
        folder: of the sections.
        choice: which files are sections (``pattern``), and which axis is which.
        but_last: leave out the last section, which may be half written.

    Raises:
        InputError: no images, several kinds or series of them, files outside the series, a number missing among the
            names, an unreadable or RGB image, or sections of different shapes or dtypes.
    """
    paths = _sections(folder, choice.pattern)
    paths = paths[:-1] if but_last and len(paths) > 1 else paths
    notes: dict[str, int] = {}
    first = _properties(paths[0], notes)
    check_dtype(first[1], str(paths[0]), labels=choice.labels)
    for path in paths[1:]:
        shape, dtype = _properties(path, notes)
        if (shape, dtype) != first:
            raise InputError(
                f"{path} has shape {shape} (y, x) and {dtype} voxels; expected {first[0]} and "
                f"{first[1]} as in {paths[0].name}. Align and crop the sections to one size and type first."
            )
    for note, count in notes.items():
        if choice.labels:
            raise InputError(f"{folder}: its sections {note}; labels are plain numbers. Save them as one TIFF stack.")
        logger.warning("%s: %d of %d sections %s.", folder, count, len(paths), note)
    (height, width), dtype = first
    layout = lay_out((len(paths), height, width), None, str(folder), choice)
    read = partial(_read, paths, dtype)
    if layout.is_plain:
        data = StoredArray(layout.shape_zyx, dtype, (1, height, width), read)
    else:
        data = layout.stored(dtype, (1, height, width), read)
    return Volume(data, *_metadata(paths[0]))


def is_ours(folder: Path) -> bool:
    """Whether a folder holds sections that :func:`create` made, and nothing else that is not hidden."""
    names = [path.name for path in folder.iterdir() if path.name[0] != "."] if folder.is_dir() else ["none"]
    return all(re.fullmatch(_NAME.replace("{}", "[0-9]+"), name) for name in names)


@dataclass(frozen=True)
class SlicesWriter:
    """A folder of sections in the making; each is an OME-TIFF of its own, written whole.

    Attributes:
        folder: that :func:`create` made.
        shape: ``(z, y, x)``.
        dtype: of the voxels.
        voxel_size: nm.
        translation_nm: ``(z, y, x)`` position of the first voxel's centre, nm.
    """

    folder: Path
    shape: tuple[int, int, int]
    dtype: np.dtype
    voxel_size: VoxelSize
    translation_nm: tuple[float, float, float]

    @property
    def part_zyx(self) -> tuple[int, int, int]:
        return (1, *self.shape[1:])

    def write(self, box: Box, voxels: np.ndarray) -> None:
        first, y, x = self.translation_nm
        digits = len(str(self.shape[0] - 1))
        for z, section in zip(range(box[0].start, box[0].stop), voxels, strict=True):
            path = self.folder / _NAME.format(f"{z:0{digits}}")
            place = (first + z * self.voxel_size.z, y, x) if any(self.translation_nm) else self.translation_nm
            writer = tiff.create(path, self.part_zyx, self.dtype, self.voxel_size, place)
            writer.write((slice(0, 1, 1), *box[1:]), section[None])

    def finish(self) -> None:
        """The folder is complete when its sections are."""


def create(
    folder: Path,
    shape_zyx: tuple[int, int, int],
    dtype: np.dtype,
    voxel_size: VoxelSize,
    translation_nm: Sequence[float],
) -> SlicesWriter:
    """Make an empty folder of sections."""
    folder.mkdir()
    z, y, x = translation_nm
    return SlicesWriter(folder, shape_zyx, tiff.stored_dtype(dtype), voxel_size, (z, y, x))


def _sections(folder: Path, pattern: str | None) -> list[Path]:
    try:
        files = [path for path in folder.iterdir() if path.name[0] != "." and not path.is_dir()]
    except PermissionError:
        raise InputError(f"{folder} cannot be read: permission denied. Ask for read permission.") from None
    images = [path for path in files if path.suffix.lower() in _TIFF + _PNG]
    images = images or [path for path in files if path.suffix.lower() in _OTHER]
    if pattern is not None:
        files = [path for path in files if path.suffix.lower() in _TIFF + _PNG + _OTHER]
        images = [path for path in files if fnmatch(path.name.casefold(), pattern.casefold())]
        if not images:
            raise InputError(f"{folder} holds no image that fits --pattern {pattern!r}.")
    if not images:
        raise InputError(
            f"{folder} is a folder without TIFF or PNG images, and not a Zarr; "
            f"expected one image per section, or an OME-Zarr. Is it the right folder level?"
        )
    kinds = sorted({_KINDS.get(path.suffix.lower(), path.suffix[1:].upper()) for path in images}, reverse=True)
    if len(kinds) > 1:
        raise InputError(
            f"{folder} mixes {' and '.join(kinds)} images; expected one kind. Move those that are not sections away, "
            f"or choose the sections, as in --pattern '*.tif'."
        )
    return in_order(folder, images, chosen=pattern is not None)


def _properties(path: Path, notes: dict[str, int]) -> tuple[tuple[int, ...], np.dtype]:
    """Shape (y, x) and native dtype of a section; counts the notes about it."""
    remarks: list[str] = []
    colours = False
    with _naming(path):
        if path.suffix.lower() in dm.SUFFIXES:
            shape, dtype = dm.section(path)
        elif path.suffix.lower() not in _TIFF:
            found = _imageio(path).improps(path, plugin="pillow")
            shape, dtype = found.shape, found.dtype
        else:
            with tifffile.TiffFile(path) as tif:
                check_intact(tif, path)
                series = _full_page(tif, path, remarks)
                grey = GreyValues.of(series.keyframe, str(path))
                remarks += [grey.note] if grey.note else []
                colours = "S" in series.axes
                shape, dtype = series.get_shape(squeeze=True), grey.dtype or np.dtype(series.dtype)
        if len(shape) == 3 and (colours or shape[-1] in (2, 3, 4)):
            shape = _load(path).shape  # says if the channels differ
            remarks.append("have a palette of greys or equal channels, of which one is taken")
    if len(shape) != 2:
        raise InputError(
            f"{path} has shape {shape}; expected one grey-value section (y, x). Convert RGB to grey values, "
            f"for example in Fiji with Image > Type > 8-bit; give a multi-page TIFF by its own path."
        )
    for note in remarks:
        notes[note] = notes.get(note, 0) + 1
    return shape, dtype.newbyteorder("=")


def _full_page(tif: tifffile.TiffFile, path: Path, remarks: list[str]) -> tifffile.TiffPageSeries:
    """The image of a file with one section; thumbnails and labels on other pages are smaller."""
    largest, *others = sorted(tif.series, key=lambda series: series.size, reverse=True)
    height, width = largest.keyframe.imagelength, largest.keyframe.imagewidth
    for series in others:
        page = series.keyframe
        if not page.is_reduced and (page.imagelength >= height or page.imagewidth >= width):
            raise InputError(
                f"{path} holds {len(tif.series)} images of equal size; expected one section a file. Give a multi-page "
                f"TIFF by its own path."
            )
    if others:
        remarks.append("hold a smaller image beside the full one, such as a thumbnail, which is left out")
    return largest


def _load(path: Path) -> np.ndarray:
    """The grey values of a section, (y, x)."""
    if path.suffix.lower() in dm.SUFFIXES:
        return dm.load_section(path)
    if path.suffix.lower() not in _TIFF:
        image = _imageio(path).imread(path, plugin="pillow")
    else:
        with tifffile.TiffFile(path) as tif:
            series = _full_page(tif, path, [])
            image = GreyValues.of(series.keyframe, str(path))(series.asarray())
            image = np.squeeze(image) if image.ndim > 2 else image
            if image.ndim == 3 and series.axes[0] == "S":  # colours plane by plane
                image = np.moveaxis(image, 0, -1)
    return one_of_equal(image, str(path)) if image.ndim == 3 else image


def _metadata(path: Path) -> Stated:
    if path.suffix.lower() in dm.SUFFIXES:
        return dm.stated_by_section(path)
    if path.suffix.lower() not in _TIFF:
        return Stated()
    with _naming(path), tifffile.TiffFile(path) as tif:
        return read_metadata(tif)


def _read(paths: list[Path], dtype: np.dtype, box: tuple[slice | int, ...]) -> np.ndarray:
    planes, rows, columns = box
    chosen = paths[planes] if isinstance(planes, slice) else [paths[planes]]
    sides = [len(range(part.start, part.stop, part.step)) for part in (rows, columns) if isinstance(part, slice)]
    data = np.empty((len(chosen), *sides), dtype)
    for section, path in zip(data, chosen, strict=True):
        with _naming(path):
            section[...] = decoded((str(path), path.stat().st_mtime_ns), partial(_load, path))[rows, columns]
    return data if isinstance(planes, slice) else data[0]


def _imageio(path: Path) -> ModuleType:
    imageio = import_extra("imageio.v3", "images", f"{path} is an image")
    pillow: Any = import_extra("PIL.Image", "images", f"{path} is an image")
    pillow.MAX_IMAGE_PIXELS = None  # sections of EM are larger than what it takes for an attack
    return imageio


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Name the section in every error."""
    try:
        yield
    except InputError:
        raise
    except (*READ_ERRORS, SyntaxError) as error:  # Pillow raises SyntaxError on a broken PNG
        raise unreadable(path, error) from error
