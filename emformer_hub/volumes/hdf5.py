"""HDF5: one dataset ``(z, y, x)`` of a file, as ilastik, the HDF5 plugin of Fiji, CREMI and h5py write it.

What is written can be read by each of them: ``/volumes/raw`` with ``resolution`` and ``offset`` in nm, as in CREMI, and
``element_size_um`` for Fiji and ilastik.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from emformer_hub.errors import InputError, import_extra
from emformer_hub.geometry import VoxelSize
from emformer_hub.volumes.boxes import Box
from emformer_hub.volumes.checks import check_dtype, not_read
from emformer_hub.volumes.stored import StoredArray
from emformer_hub.volumes.volume import Volume, stated_voxel_size

if TYPE_CHECKING:
    import h5py

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_USER_BLOCK = 512  # bytes, or a power of two times as many, that another program may put before the signature
# Attributes of a dataset that state the size of a voxel along z, y, x, and their unit
_ATTRIBUTES = (("element_size_um", "um"), ("resolution", "nm"))
_CONTIGUOUS_BOX = (64, 256, 256)  # stands in for the chunks of a dataset that has none
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
        return Path(file), dataset
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


def open_volume(path: Path, dataset: str | None = None) -> Volume[StoredArray]:
    """Open a dataset of an HDF5 file; voxels stay on disk.

    Axes before z must have length 1 and are dropped. The voxel size is that of the attribute ``element_size_um`` (µm)
    or ``resolution`` (nm), each z, y, x; if both are there and differ, none is stated. The position of the first voxel
    is that of the attribute ``offset`` (nm), beside ``resolution``.

    Args:
        path: the file.
        dataset: name in the file; default: the only 3-D dataset that there is.

    Raises:
        InputError: not HDF5, unreadable, no such dataset, several without a choice, not (z, y, x), a bad dtype, or
            h5py is not installed.
    """
    if not is_hdf5(path):
        raise InputError(f"{path} is no HDF5, so nothing inside it can be named; leave out ':{dataset}'.")
    h5py = import_extra("h5py", "hdf5", f"{path} is HDF5")
    try:
        with h5py.File(path, "r") as file:
            found = _only_volume(file, path) if dataset is None else file.get(dataset)
            if not isinstance(found, h5py.Dataset):
                raise InputError(
                    f"{path} has no dataset {dataset!r}; name one of the 3-D datasets in it: {_listed(_volumes(file))}."
                )
            return Volume(_stored(found, path), *_voxel_size(found), _translation(found))
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
    """

    path: Path
    shape: tuple[int, int, int]
    dtype: np.dtype
    part_zyx: tuple[int, int, int] = _PART

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
) -> HDF5Writer:
    """Make an HDF5 file; its chunks are not compressed, so that every program reads them."""
    import h5py

    chunks = tuple(map(min, shape_zyx, _CHUNKS))
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
    return HDF5Writer(path, shape_zyx, dtype)


def _reserve(path: Path, size: int) -> None:
    """Take so many bytes of the disk, or raise ``OSError``: HDF5 crashes where it finds a disk full."""
    path.touch()
    with path.open("r+b") as file:
        if hasattr(os, "posix_fallocate"):  # not on every system
            os.posix_fallocate(file.fileno(), 0, size)


def _volumes(file: h5py.File) -> list[h5py.Dataset]:
    """All datasets that are 3-D apart from leading axes of length 1."""
    import h5py

    found: list[h5py.Dataset] = []

    def visit(_: str, node: h5py.Dataset | h5py.Group) -> None:
        if isinstance(node, h5py.Dataset) and _is_volume(node):
            found.append(node)

    file.visititems(visit)
    return found


def _is_volume(dataset: h5py.Dataset) -> bool:
    return len(dataset.shape or ()) >= 3 and set(dataset.shape[:-3]) <= {1}


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


def _stored(dataset: h5py.Dataset, path: Path) -> StoredArray:
    name = f"{path}:{dataset.name}"
    if not _is_volume(dataset):
        raise InputError(
            f"{name} has shape {dataset.shape}; expected one grey-value stack (z, y, x), where axes before z have "
            f"length 1. Save one channel and time point."
        )
    check_dtype(dataset.dtype, name)
    z, y, x = dataset.shape[-3:]
    depth, height, width = dataset.chunks[-3:] if dataset.chunks else _CONTIGUOUS_BOX
    return StoredArray(
        (z, y, x), dataset.dtype.newbyteorder("="), (depth, height, width), partial(_read, path, dataset.name)
    )


def _read(path: Path, name: str, box: Box) -> np.ndarray:
    """The file is opened for each box, in a quarter of a millisecond: an open one must not be used after a fork."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            dataset = file[name]
            data = dataset[(0,) * (dataset.ndim - 3) + box]
    except _READ_ERRORS as error:
        raise _unreadable(path, error) from error
    return data.astype(data.dtype.newbyteorder("="), copy=False)


def _voxel_size(dataset: h5py.Dataset) -> tuple[VoxelSize | None, str]:
    """The size that the attributes state, and which attribute that was."""
    sizes: dict[str, VoxelSize] = {}
    for attribute, unit in _ATTRIBUTES:
        size = stated_voxel_size(_zyx(dataset, attribute), [unit] * 3)
        if size is not None:
            sizes[attribute] = size
    if not sizes or not all(
        math.isclose(one, other, rel_tol=1e-9)  # a length in µm and the same in nm may differ by rounding
        for size in sizes.values()
        for one, other in zip(size.zyx, next(iter(sizes.values())).zyx, strict=True)
    ):
        return None, ""
    source, size = next(iter(sizes.items()))
    return size, source


def _translation(dataset: h5py.Dataset) -> tuple[float, float, float] | None:
    """CREMI's ``offset``; without its ``resolution`` in nm, the unit is not known."""
    z, y, x = _zyx(dataset, _OFFSET)
    return (z, y, x) if "resolution" in dataset.attrs and np.isfinite((z, y, x)).all() else None


def _zyx(dataset: h5py.Dataset, attribute: str) -> list[float]:
    """The three lengths of an attribute, NaN if it has no three."""
    lengths = np.atleast_1d(dataset.attrs.get(attribute, ()))
    if lengths.shape != (3,) or lengths.dtype.kind not in "iuf":
        return [math.nan] * 3
    return [float(str(length)) for length in lengths]  # digits of a float32: 0.004, not 0.004000000189989805


def _unreadable(path: Path, error: Exception) -> InputError:
    return not_read(
        path,
        error,
        f"{path} cannot be read as HDF5 ({type(error).__name__}: {error}). Was it copied completely? "
        f"A filter that is missing may come with `pip install hdf5plugin`, imported first.",
    )
