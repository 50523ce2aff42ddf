"""A folder with one TIFF or PNG image per section, in the natural order of the names (``s2`` before ``s10``)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
import tifffile

from emformer_hub.errors import InputError, import_extra
from emformer_hub.geometry import VoxelSize
from emformer_hub.volumes import tiff
from emformer_hub.volumes.axes import NOTHING_CHOSEN, Choice
from emformer_hub.volumes.boxes import Box
from emformer_hub.volumes.checks import check_dtype
from emformer_hub.volumes.stored import StoredArray
from emformer_hub.volumes.tiff import READ_ERRORS, check_intact, unreadable
from emformer_hub.volumes.tiff_metadata import read_metadata
from emformer_hub.volumes.volume import Stated, Volume

_TIFF, _PNG = (".tif", ".tiff"), (".png",)
_NAME = "section_{}.tif"  # of the files that are written
_NAMED = 12  # missing sections that a message lists


def open_volume(folder: Path, choice: Choice = NOTHING_CHOSEN, *, but_last: bool = False) -> Volume[StoredArray]:
    """Open a folder of sections; each stays on disk until it is sliced. Other files and hidden ones are left out.

    Voxel size and position are those that the first section states; few programs state how far sections are apart.

    Args:
        folder: of the sections.
        but_last: leave out the last section, which may be half written.

    Raises:
        InputError: no images, TIFF and PNG mixed, a number missing among the names, an unreadable or RGB image, or
            sections of different shapes or dtypes.
    """
    paths = _sections(folder)
    paths = paths[:-1] if but_last and len(paths) > 1 else paths
    _check_numbers(folder, paths)
    (height, width), dtype = _properties(paths[0])
    check_dtype(dtype, str(paths[0]))
    for path in paths[1:]:
        shape, other = _properties(path)
        if shape != (height, width) or other != dtype:
            raise InputError(
                f"{path} has shape {shape} (y, x) and {other} voxels; expected {(height, width)} and "
                f"{dtype} as in {paths[0].name}. Align and crop the sections to one size and type first."
            )
    data = StoredArray((len(paths), height, width), dtype, (1, height, width), partial(_read, paths, dtype))
    return Volume(data, *_metadata(paths[0]))


def is_ours(folder: Path) -> bool:
    """Whether a folder holds sections that :func:`create` made, and nothing else."""
    return folder.is_dir() and all(re.fullmatch(_NAME.replace("{}", "[0-9]+"), path.name) for path in folder.iterdir())


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


def _check_numbers(folder: Path, paths: list[Path]) -> None:
    """Raise ``InputError`` if the names count, in one place and in equal steps, and numbers are left out."""
    names = np.array([natural_order(path.stem) for path in paths], dtype=object)
    if names.ndim != 2:
        return  # not all names have the same parts
    (counting,) = np.nonzero((names != names[0]).any(axis=0))
    if len(counting) != 1 or not isinstance(names[0, counting[0]], int):
        return  # sections are numbered in several places, or not at all
    numbers = names[:, counting[0]].tolist()
    steps = np.diff(numbers)
    step = int(steps.min())
    gaps = np.flatnonzero(steps != step)
    if not step or not len(gaps) or (steps % step).any() or 2 * len(gaps) > len(steps):
        return  # none is left out; or the numbers are times or positions rather than a count
    missing = [number for gap in gaps for number in range(numbers[gap] + step, numbers[gap + 1], step)]
    listed = ", ".join(map(str, missing[:_NAMED])) + (f" and {len(missing) - _NAMED} more" if missing[_NAMED:] else "")
    raise InputError(
        f"{folder} lacks the section{'s' * (len(missing) > 1)} {listed}: {paths[gaps[0] + 1].name} comes after "
        f"{paths[gaps[0]].name}. Was it copied completely? In the place of a section that was lost, put a copy of its "
        f"neighbour; if none is missing, number the sections without gaps."
    )


def _properties(path: Path) -> tuple[tuple[int, ...], np.dtype]:
    """Shape (y, x) and native dtype of a section."""
    with _naming(path):
        if path.suffix.lower() in _PNG:
            found = _imageio(path).improps(path, plugin="pillow")
            shape, dtype = found.shape, found.dtype
        else:
            with tifffile.TiffFile(path) as tif:
                check_intact(tif, path)
                if len(tif.series) > 1:
                    raise InputError(f"{path} holds {len(tif.series)} images; expected one section a file.")
                shape, dtype = tif.series[0].get_shape(squeeze=True), np.dtype(tif.series[0].dtype)
    if len(shape) != 2:
        raise InputError(
            f"{path} has shape {shape}; expected one grey-value section (y, x). Convert RGB to grey values, "
            f"for example in Fiji with Image > Type > 8-bit; give a multi-page TIFF by its own path."
        )
    return shape, dtype.newbyteorder("=")


def _metadata(path: Path) -> Stated:
    if path.suffix.lower() in _PNG:
        return Stated()
    with _naming(path), tifffile.TiffFile(path) as tif:
        return read_metadata(tif)


def _read(paths: list[Path], dtype: np.dtype, box: Box) -> np.ndarray:
    planes, rows, columns = box
    chosen = paths[planes]
    data = np.empty((len(chosen), *(len(range(part.start, part.stop, part.step)) for part in (rows, columns))), dtype)
    for section, path in zip(data, chosen, strict=True):
        with _naming(path):
            image = (
                _imageio(path).imread(path, plugin="pillow") if path.suffix.lower() in _PNG else tifffile.imread(path)
            )
            section[...] = image[rows, columns]
    return data


def _imageio(path: Path) -> ModuleType:
    return import_extra("imageio.v3", "images", f"{path} is a PNG")


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Whatever goes wrong with a section is said with its name."""
    try:
        yield
    except InputError:
        raise
    except (*READ_ERRORS, SyntaxError) as error:  # Pillow raises SyntaxError on a broken PNG
        raise unreadable(path, error) from error
