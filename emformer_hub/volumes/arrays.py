"""Volumes of other fields: NumPy's .npy, NRRD (extra ``nrrd``), NIfTI (``nifti``), MetaImage (``itk``). Read only."""

from __future__ import annotations

import re
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from emformer_hub.errors import InputError, import_extra
from emformer_hub.volumes.axes import NOTHING_CHOSEN, Choice, lay_out
from emformer_hub.volumes.checks import check_dtype, not_read
from emformer_hub.volumes.stored import StoredArray
from emformer_hub.volumes.volume import Stated, Volume, stated_voxel_size, zyx_nanometres

NPY, NRRD, NIFTI, METAIMAGE = (".npy",), (".nrrd", ".nhdr"), (".nii", ".nii.gz"), (".mha", ".mhd")
_READ_ERRORS = (ValueError, RuntimeError, OSError, EOFError, KeyError, IndexError, TypeError, StopIteration, zlib.error)
_TIME, _CHANNEL = ("time",), ("list", "vector", "point", "complex", "scalar")
"""Kinds of axes of NRRD; those of colours begin with "RGB", "HSV" or "XYZ"."""


def kind_of(path: Path) -> str | None:
    """``"npy"``, ``"nrrd"``, ``"metaimage"`` or ``"nifti"``, by content or else by suffix; ``None`` for others."""
    with path.open("rb") as file:
        beginning = file.read(348)
    name = path.name.lower()
    if beginning.startswith(b"\x93NUMPY") or name.endswith(NPY):
        return "npy"
    if beginning.startswith(b"NRRD") or name.endswith(NRRD):
        return "nrrd"
    if beginning.startswith((b"ObjectType", b"NDims")) or name.endswith(METAIMAGE):
        return "metaimage"
    return "nifti" if beginning[344:348] in (b"n+1\0", b"n+2\0", b"ni1\0") or name.endswith(NIFTI) else None


def open_volume(path: Path, kind: str, choice: Choice = NOTHING_CHOSEN) -> Volume[np.ndarray | StoredArray]:
    """Open an array of one of these kinds; .npy, MetaImage and uncompressed NIfTI stay on disk.

    A .npy states neither axes nor voxel size. NRRD and NIfTI list their axes from the fastest on, x first; a voxel
    size is taken from them where its unit is stated.

    Raises:
        InputError: unreadable, not one stack, a bad dtype, or the library is not installed.
    """
    try:
        if kind == "npy":
            return _npy(path, choice)
        if kind == "metaimage":
            return _metaimage(path, choice)
        return _nrrd(path, choice) if kind == "nrrd" else _nifti(path, choice)
    except InputError:
        raise
    except _READ_ERRORS as error:
        raise _unreadable(path, kind, error) from error
    except Exception as error:
        if type(error).__module__.startswith(("nrrd", "nibabel")):
            raise _unreadable(path, kind, error) from error
        raise


def _unreadable(path: Path, kind: str, error: Exception) -> InputError:
    names = {"npy": "a NumPy array (.npy)", "nrrd": "NRRD", "nifti": "NIfTI", "metaimage": "MetaImage"}
    told = [line for line in str(error).splitlines() if line.strip() and not line.startswith("Reason: Success")]
    said = re.sub(r"^ITK ERROR: \w+\(\w+\): ", "", told[-1]) if told else type(error).__name__
    return not_read(
        path,
        error,
        f"{path} cannot be read as {names[kind]} ({said}). Was it copied completely? Otherwise open it in the program "
        f"that wrote it, or in Fiji, and save it as TIFF.",
    )


def _npy(path: Path, choice: Choice) -> Volume[np.ndarray | StoredArray]:
    voxels = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(voxels, np.ndarray):
        raise InputError(f"{path} holds several arrays; save the one that is the stack by numpy.save.")
    check_dtype(voxels.dtype, str(path), labels=choice.labels)
    return Volume(_native(lay_out(voxels.shape, None, str(path), choice).take(voxels)), *Stated())


def _native(voxels: np.ndarray) -> np.ndarray:
    return voxels if voxels.dtype.isnative else voxels.astype(voxels.dtype.newbyteorder("="))


def _nrrd(path: Path, choice: Choice) -> Volume[np.ndarray | StoredArray]:
    nrrd = import_extra("nrrd", "nrrd", f"{path} is NRRD")
    voxels, header = nrrd.read(str(path), index_order="C")
    check_dtype(voxels.dtype, str(path), labels=choice.labels)
    names = _nrrd_axes(header, voxels.ndim)
    layout = lay_out(voxels.shape, names, str(path), choice)
    lengths = _nrrd_lengths(header, voxels.ndim)
    units = header.get("space units", header.get("units"))
    stated = Stated()
    if lengths is not None:
        spatial = [length for length in reversed(lengths) if np.isfinite(length)]
        along = layout.zyx(spatial if len(spatial) == 3 else list(reversed(lengths)))
        named = [str(unit) for unit in units][:3] if units is not None and len(units) >= 3 else [None] * 3
        size = stated_voxel_size(along, named if len(set(named)) == 1 else [None] * 3)
        listed = ",".join(f"{length:g}" for length in along)
        hint = "" if size else f"its spacings are {listed} (z,y,x) without a unit that is known"
        stated = Stated(size, "NRRD header" if size else "", None, None, hint)
    return Volume(_native(layout.take(voxels)), *stated)


def _nrrd_axes(header: Any, ndim: int) -> list[str | None]:
    """Names of the axes, the slowest first: the labels, or else x, y, z for the spatial axes in their order."""
    labels = [str(label) for label in header.get("labels", [])]
    if len(labels) == ndim and {"x", "y", "z"} <= {label.strip().casefold() for label in labels}:
        return list(reversed(labels))
    kinds = [str(kind).casefold() for kind in header.get("kinds", ["domain"] * ndim)]
    space = iter("xyz")
    names: list[str | None] = []
    for kind in kinds:
        if kind in _TIME:
            names.append("t")
        elif kind in _CHANNEL or kind.startswith(("rgb", "hsv", "xyz", "2-", "3-", "4-")) or "color" in kind:
            names.append("c")
        else:
            names.append(next(space, None))
    return names[::-1] if len(names) == ndim and next(space, None) is None else [None] * ndim


def _nrrd_lengths(header: Any, ndim: int) -> list[float] | None:
    """Spacing along each axis, the fastest first; NaN for one that has none."""
    directions = header.get("space directions")
    if directions is not None:
        rows = [np.atleast_1d(np.asarray(row, float)) if row is not None else np.full(1, np.nan) for row in directions]
        lengths = [float(f"{np.linalg.norm(row):.12g}") for row in rows]
    else:
        lengths = [float(length) for length in header.get("spacings", [])]
    return lengths if len(lengths) == ndim else None


def _nifti(path: Path, choice: Choice) -> Volume[np.ndarray | StoredArray]:
    nibabel = import_extra("nibabel", "nifti", f"{path} is NIfTI")
    image = nibabel.load(path)
    if (image.dataobj.slope, image.dataobj.inter) != (1.0, 0.0):
        voxels = np.asarray(image.dataobj)  # float64, as the file scales it
    else:
        voxels = np.asanyarray(image.dataobj.get_unscaled())
    check_dtype(voxels.dtype, str(path), labels=choice.labels)
    layout = lay_out(voxels.shape[::-1], ["c", "t", "z", "y", "x"][-voxels.ndim :], str(path), choice)
    unit = image.header.get_xyzt_units()[0]
    lengths = [float(str(np.float32(length))) for length in image.header.get_zooms()[2::-1]]
    size = stated_voxel_size(lengths, [unit] * 3)
    hint = "" if size else f"its pixdim are {','.join(map(str, lengths))} (z,y,x) in unit {unit}"
    place = zyx_nanometres([float(one) for one in image.affine[2::-1, 3]], [unit] * 3) if size else None
    stated = Stated(size, "NIfTI header" if size else "", place if place and any(place) else None, None, hint)
    return Volume(_native(layout.take(voxels.T)), *stated)


def _metaimage(path: Path, choice: Choice) -> Volume[np.ndarray | StoredArray]:
    """Its spacings have no unit: ITK takes them for millimetres, microscopists for whatever they use."""
    itk = import_extra("SimpleITK", "itk", f"{path} is MetaImage")
    reader = _metaimage_reader(itk, path)
    shape = tuple(int(side) for side in reader.GetSize()[::-1])
    names = ["t", "z", "y", "x"][-len(shape) :]
    channels = int(reader.GetNumberOfComponents())
    if channels > 1:
        shape, names = (*shape, channels), [*names, "c"]
    layout = lay_out(shape, names, str(path), choice)
    pixel = itk.GetArrayViewFromImage(itk.Image([1] * reader.GetDimension(), reader.GetPixelID(), channels)).dtype
    check_dtype(pixel, str(path), labels=choice.labels)
    read = partial(_read_metaimage, path, channels > 1)
    data = layout.stored(pixel, [1] * (len(shape) - 2 - (channels > 1)) + [*shape[-2 - (channels > 1) :]], read)
    spacings = [*reader.GetSpacing()[::-1], *[1.0] * (channels > 1)]
    listed = ",".join(f"{length:g}" for length in layout.zyx(spacings))
    return Volume(data, *Stated(hint=f"its spacing is {listed} (z,y,x) without a unit"))


def _metaimage_reader(itk: Any, path: Path) -> Any:
    reader = itk.ImageFileReader()
    reader.SetImageIO("MetaImageIO")
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    return reader


def _read_metaimage(path: Path, channels: bool, index: tuple[slice | int, ...]) -> np.ndarray:
    import SimpleITK as itk

    box = index[:-1] if channels else index
    starts = [part if isinstance(part, int) else part.start for part in box]
    sides = [1 if isinstance(part, int) else part.stop - part.start for part in box]
    steps = [slice(None, None, part.step) if isinstance(part, slice) else 0 for part in box]
    try:
        reader = _metaimage_reader(itk, path)
        reader.SetExtractIndex(starts[::-1])
        reader.SetExtractSize(sides[::-1])
        voxels = itk.GetArrayFromImage(reader.Execute())
    except _READ_ERRORS as error:
        raise _unreadable(path, "metaimage", error) from error
    return np.ascontiguousarray(voxels[(*steps, *index[len(box) :])])
