"""HDF5: one dataset ``(z, y, x)`` of a file, as ilastik, the HDF5 plugin of Fiji, CREMI and h5py write it.

What is written can be read by each of them: ``/volumes/raw`` with ``resolution`` and ``offset`` in nm, as in CREMI, and
``element_size_um`` for Fiji and ilastik.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from emformer_hub.errors import InputError, import_extra
from emformer_hub.geometry import VoxelSize
from emformer_hub.volumes.attributes import is_segmentation, stated_by
from emformer_hub.volumes.axes import NOTHING_CHOSEN, Choice, lay_out
from emformer_hub.volumes.boxes import Box
from emformer_hub.volumes.checks import check_dtype, not_read, segmentation
from emformer_hub.volumes.stored import StoredArray
from emformer_hub.volumes.volume import Stated, Volume, stated_voxel_size

if TYPE_CHECKING:
    import h5py

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_USER_BLOCK = 512  # bytes, or a power of two times as many, that another program may put before the signature
_BIGDATAVIEWER = re.compile(r"/t\d+/s\d+/\d+/cells")
_IMARIS = "DataSet/ResolutionLevel 0"
_CONTIGUOUS_SIDE = 128  # stands in for the chunks of a dataset that has none
_OFFSET = "offset"  # attribute: position of the first voxel along z, y, x, nm
_DATASET = "volumes/raw"  # that is written
_CHUNKS = (64, 128, 128)  # as OME-Zarr
_PART = (64, 512, 512)  # voxels that are written at once: a few chunks
_NAMED = 12  # datasets that a message lists
# what h5py raises on damaged or unsupported data
_READ_ERRORS = (ValueError, RuntimeError, LookupError, TypeError, OSError)


def split_address(path: Path) -> tuple[Path, str | None]:
    """``stack.h5:/volumes/raw`` as the file and the dataset in it; a path that exists is a file without one."""
    file, colon, dataset = str(path).rpartition(":")
    if colon and not path.exists() and Path(file).is_file():
        return Path(file), dataset.replace("\\", "/")  # as Windows writes paths
    return path, None


def is_hdf5(path: Path) -> bool:
    """Whether a file has the signature of HDF5, at its start or behind a user block (format specification, II.A)."""
    try:
        with path.open("rb") as file:
            offset = 0
            while len(found := file.read(len(_SIGNATURE))) == len(_SIGNATURE):
                if found == _SIGNATURE:
                    return True
                offset = max(_USER_BLOCK, 2 * offset)
                file.seek(offset)
    except PermissionError:
        raise InputError(f"{path} cannot be read: permission denied. Ask for read permission.") from None
    return False


def open_volume(path: Path, dataset: str | None = None, choice: Choice = NOTHING_CHOSEN) -> Volume[StoredArray]:
    """Open a dataset of an HDF5 file; voxels stay on disk.

    Axes are those of ilastik's ``axistags`` or of dimension labels, else z, y, x. The voxel size is that of the
    attribute ``element_size_um`` (µm) or ``resolution`` (nm, or the ``units`` beside it); if both are there and differ,
    none is stated. The position of the first voxel is that of the attribute ``offset``, beside ``resolution``. The
    int16 of BigDataViewer are the uint16 that they stand for.

    Args:
        path: the file.
        dataset: name in the file; default: the only 3-D dataset that there is.
        choice: of axes, channel, time point, and dataset.

    Raises:
        InputError: not HDF5, unreadable, no such dataset, several without a choice, not one stack, a bad dtype, or
            h5py is not installed.
    """
    if not is_hdf5(path):
        raise InputError(f"{path} is not HDF5, so nothing inside it can be named; leave out ':{dataset}'.")
    h5py = import_extra("h5py", "hdf5", f"{path} is HDF5")
    dataset = choice.series if dataset is None else dataset
    try:
        with h5py.File(path, "r", locking="best-effort") as file:
            if dataset is None and _IMARIS in file:
                dataset, choice = _imaris_image(file, path, choice), Choice(choice.axes)
            found = _only_volume(file, path) if dataset is None else file.get(dataset)
            if not isinstance(found, h5py.Dataset):
                raise InputError(
                    f"{path} has no dataset {dataset!r}; name one of the 3-D datasets in it: {_listed(_volumes(file))}."
                )
            return _opened(found, path, choice)
    except InputError:
        raise
    except _READ_ERRORS as error:
        raise _unreadable(path, error) from error


@dataclass(frozen=True)
class HDF5Writer:
    """An HDF5 file in the making; HDF5 lets one process write at a time.

    Attributes:
        path: the file, which :func:`create` made.
        shape: ``(z, y, x)``.
        dtype: of the voxels.
        part_zyx: sides of a part: whole chunks.
    """

    path: Path
    shape: tuple[int, int, int]
    dtype: np.dtype
    part_zyx: tuple[int, int, int]

    def write(self, box: Box, voxels: np.ndarray) -> None:
        import h5py

        with h5py.File(self.path, "r+") as file:
            file[_DATASET][box] = voxels

    def finish(self) -> None:
        """The file is complete when its voxels are."""


def create(
    path: Path,
    shape_zyx: tuple[int, int, int],
    dtype: np.dtype,
    voxel_size: VoxelSize,
    translation_nm: Sequence[float],
    *,
    chunk_zyx: tuple[int, int, int] = _CHUNKS,
) -> HDF5Writer:
    """Make an HDF5 file; its chunks are not compressed, so that every program reads them."""
    import h5py

    chunks = tuple(map(min, shape_zyx, chunk_zyx))
    _reserve(path, math.prod(shape_zyx) * dtype.itemsize)
    layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    layout.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    layout.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    with h5py.File(path, "w") as file:
        dataset = file.create_dataset(_DATASET, shape_zyx, dtype, chunks=chunks, dcpl=layout)
        dataset.attrs["resolution"] = voxel_size.zyx
        dataset.attrs["element_size_um"] = [float(f"{length / 1000:.15g}") for length in voxel_size.zyx]
        if any(translation_nm):
            dataset.attrs[_OFFSET] = [float(place) for place in translation_nm]
    _reserve(path, path.stat().st_size)
    z, y, x = (-(-part // chunk) * chunk for part, chunk in zip(_PART, chunks, strict=True))
    return HDF5Writer(path, shape_zyx, dtype, (z, y, x))


def _reserve(path: Path, size: int) -> None:
    """Take so many bytes of the disk, or raise ``OSError``: HDF5 crashes where it finds a disk full."""
    path.touch()
    with path.open("r+b") as file:
        if hasattr(os, "posix_fallocate"):  # not on every system
            os.posix_fallocate(file.fileno(), 0, size)


def _volumes(file: h5py.File) -> list[h5py.Dataset]:
    """All datasets that may hold a stack."""
    import h5py

    found: list[h5py.Dataset] = []

    def visit(_: str, node: h5py.Dataset | h5py.Group) -> None:
        if isinstance(node, h5py.Dataset) and node.ndim >= 3:
            found.append(node)

    file.visititems(visit)
    return found


def _only_volume(file: h5py.File, path: Path) -> h5py.Dataset:
    volumes = _volumes(file)
    if len(volumes) == 1:
        return volumes[0]
    if not volumes:
        raise InputError(f"{path} holds no 3-D dataset; expected one grey-value stack (z, y, x). Is it the right file?")
    raise InputError(f"{path} holds {len(volumes)} 3-D datasets: {_listed(volumes)}. Name one, as in {path}:NAME")


def _listed(volumes: list[h5py.Dataset]) -> str:
    """``/volumes/raw (125, 1250, 1250) uint8, ...``"""
    named = [f"{volume.name} {volume.shape} {volume.dtype}" for volume in volumes[:_NAMED]]
    left_out = len(volumes) - len(named)
    return ", ".join(named or ["none"]) + (f" and {left_out} more" if left_out else "")


def _opened(dataset: h5py.Dataset, path: Path, choice: Choice) -> Volume[StoredArray]:
    name = f"{path}:{dataset.name}"
    of_imaris = _imaris(dataset)
    shape = dataset.shape if of_imaris is None else of_imaris[0]
    layout = lay_out(shape, _axes(dataset), name, choice)
    stored = np.dtype(np.uint16) if _is_bigdataviewer(dataset) else dataset.dtype
    check_dtype(stored, name, labels=choice.labels)
    chunks = dataset.chunks or [_CONTIGUOUS_SIDE] * len(layout.shape)
    dtype = stored.newbyteorder("=")
    attributes = dict(dataset.attrs)
    if is_segmentation(attributes) and not choice.labels:
        raise segmentation(name)
    read = partial(_read, path, dataset.name, dtype)
    stated = stated_by(attributes, layout) if of_imaris is None else of_imaris[1]
    return Volume(layout.stored(dtype, chunks, read), *stated)


def _imaris_image(file: h5py.File, path: Path, choice: Choice) -> str:
    """The name of an image at full resolution in a file of Imaris."""
    name = _IMARIS
    for kind, chosen, option in (("TimePoint", choice.time, "--time"), ("Channel", choice.channel, "--channel")):
        there = sorted(int(one.rpartition(" ")[2]) for one in file[name] if one.startswith(kind))
        number = there[0] if chosen is None and len(there) == 1 else chosen
        if number not in there:
            raise InputError(
                f"{path} is Imaris with {len(there)} images of the kind {kind}, {', '.join(map(str, there[:_NAMED]))}; "
                f"expected one grey-value stack. Choose one, as in {option} {there[0] if there else 0}."
            )
        name = f"{name}/{kind} {number}"
    return f"{name}/Data"


def _imaris(dataset: h5py.Dataset) -> tuple[tuple[int, ...], Stated] | None:
    """Shape and lengths of an image of Imaris, whose datasets are filled up to whole chunks; ``None`` for others."""
    info = dataset.file.get("DataSetInfo/Image")
    if info is None or not dataset.name.startswith("/DataSet/"):
        return None
    try:
        counts = [int(_text(dataset.parent.attrs[f"ImageSize{axis}"])) for axis in "ZYX"]
        ends = [[float(_text(info.attrs[f"Ext{end}{place}"])) for end in ("Min", "Max")] for place in (2, 1, 0)]
        unit = _text(info.attrs["Unit"]) if "Unit" in info.attrs else "um"
    except (LookupError, ValueError) as error:
        raise InputError(f"{dataset.file.filename} is Imaris, and does not state its sides ({error!r}).") from error
    lengths = [float(f"{(last - first) / count:.9g}") for (first, last), count in zip(ends, counts, strict=True)]
    size = stated_voxel_size(lengths, [unit] * 3)
    return tuple(counts), Stated(size, "Imaris extents" if size else "")


def _text(value: Any) -> str:
    """An attribute of Imaris, which is an array of single letters."""
    return b"".join(np.atleast_1d(value).astype("S1").tolist()).decode()


def _axes(dataset: h5py.Dataset) -> list[str] | None:
    """Names of the axes: those of ilastik, else the labels of the dimensions."""
    tags = dataset.attrs.get("axistags")
    if tags is not None:
        try:
            return [str(axis["key"]) for axis in json.loads(tags)["axes"]]
        except (ValueError, LookupError, TypeError):
            pass
    for name in ("axes", "axis_names", "dimension_names", "DIMENSION_NAMES"):
        stated = dataset.attrs.get(name)
        if stated is not None:
            found = [one.decode() if isinstance(one, bytes) else str(one) for one in np.atleast_1d(stated)]
            return list(found[0]) if len(found) == 1 and len(found[0]) == dataset.ndim else found
    labels = [dimension.label for dimension in dataset.dims]
    return labels if any(labels) else None


def _is_bigdataviewer(dataset: h5py.Dataset) -> bool:
    """Whether int16 stands for uint16, for which HDF5 of Java had no name."""
    return dataset.dtype.kind == "i" and dataset.dtype.itemsize == 2 and bool(_BIGDATAVIEWER.fullmatch(dataset.name))


def _read(path: Path, name: str, dtype: np.dtype, index: tuple[slice | int, ...]) -> np.ndarray:
    """The file is opened for each box, in a quarter of a millisecond: an open one must not be used after a fork."""
    import h5py

    with suppress(ImportError):
        import hdf5plugin  # noqa: F401  registers Blosc, LZ4, Zstandard and others
    try:
        with h5py.File(path, "r", locking="best-effort") as file:
            data = file[name][index]
    except _READ_ERRORS as error:
        raise _unreadable(path, error) from error
    data = data.astype(data.dtype.newbyteorder("="), copy=False)
    return data if data.dtype == dtype else data.view(dtype)


def _unreadable(path: Path, error: Exception) -> InputError:
    return not_read(
        path,
        error,
        f"{path} cannot be read as HDF5 ({type(error).__name__}: {error}). Was it copied completely? "
        f"If a filter is missing, `pip install hdf5plugin` brings Blosc, LZ4, Zstandard and others.",
    )
