"""Volumes on disk: doors in (``read_volume``, ``open_volume``), one door out (``write_volume``), one module per format.

In: TIFF stacks (multi-page, ImageJ, OME, BigTIFF), folders of TIFF or PNG sections, OME-Zarr 0.4 and 0.5, Zarr arrays,
HDF5 datasets. Out: OME-TIFF, OME-Zarr. Axes are z, y, x; lengths are nm. Voxel sizes are read, never guessed.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from emformer_hub.errors import InputError
from emformer_hub.geometry import VoxelSize
from emformer_hub.volumes import hdf5, slices, tiff
from emformer_hub.volumes import ome_zarr as zarr_format
from emformer_hub.volumes.checks import check_dtype, check_volume
from emformer_hub.volumes.output import ZARR_SUFFIXES, check_output, replacing
from emformer_hub.volumes.stored import StoredArray
from emformer_hub.volumes.volume import Volume

__all__ = ["StoredArray", "Volume", "check_output", "check_volume", "open_volume", "read_volume", "write_volume"]


def read_volume(path: str | os.PathLike[str]) -> Volume[np.ndarray]:
    """Read a volume and the voxel size that its file states.

    The format is told by content, not by suffix. Voxels keep their dtype: uint8, uint16, int16, float16, float32 or
    float64, in native byte order. An uncompressed, contiguous TIFF is memory-mapped read-only; anything else is loaded.

    Args:
        path: a TIFF stack, a folder of TIFF or PNG sections (natural order), an OME-Zarr image, a Zarr array, or an
            HDF5 file; ``stack.h5:/path/in/file`` names the dataset if the file holds several volumes.

    Returns:
        The volume, data ``(z, y, x)``; ``voxel_size`` is ``None`` if z, y or x is missing or in an unknown unit.

    Raises:
        InputError: the path is missing, unreadable, truncated, or does not hold one grey-value stack.
    """
    volume = open_volume(path)
    data = volume.data[:] if isinstance(volume.data, StoredArray) else volume.data
    return Volume(data, volume.voxel_size, volume.source, volume.translation_nm)


def open_volume(path: str | os.PathLike[str]) -> Volume[np.ndarray | StoredArray]:
    """As ``read_volume``, for volumes that may be larger than memory: voxels stay on disk until ``data`` is sliced.

    That holds for Zarr, HDF5 and TIFF that is uncompressed, contiguous and in native byte order. Other TIFF, and
    folders of sections, cannot be sliced on disk and are loaded. Voxels that turn out to be damaged raise
    ``InputError`` when they are sliced.
    """
    path = Path(path)
    if path.is_dir():
        return zarr_format.open_volume(path) if zarr_format.is_zarr(path) else slices.open_volume(path)
    file, dataset = hdf5.split_address(path)
    if not file.exists():
        raise InputError(
            f"{path} does not exist; expected a TIFF stack, a folder of sections, an OME-Zarr, or HDF5. "
            f"Is the path right?"
        )
    if dataset is None and not hdf5.is_hdf5(file):
        return tiff.open_volume(file)
    return hdf5.open_volume(file, dataset)


def write_volume(
    path: str | os.PathLike[str],
    data: np.ndarray,
    voxel_size: VoxelSize,
    *,
    translation_nm: tuple[float, float, float] = (0.0, 0.0, 0.0),
    overwrite: bool = False,
    ome_zarr: str = "0.5",
) -> None:
    """Write a volume; it appears under ``path`` only when it is complete.

    Args:
        path: ``.ome.tif``, ``.ome.tiff``, ``.tif`` or ``.tiff``: OME-TIFF that ImageJ reads without plugins too (up to
            4 GB); ``.ome.zarr`` or ``.zarr``: OME-Zarr with a pyramid of levels.
        data: ``(z, y, x)``; uint8, uint16, int16, float16 (float32 in TIFF), float32 or float64.
        voxel_size: nm.
        translation_nm: ``(z, y, x)`` position of the first voxel's centre, nm.
        overwrite: replace an existing output, once the new one is complete.
        ome_zarr: version of OME-Zarr: ``"0.5"``, or ``"0.4"`` for older viewers.

    Raises:
        InputError: as ``check_output``; the data are not 3-D or of another dtype; or the disk refuses.
    """
    path = Path(path)
    check_output(path, overwrite)
    if data.ndim != 3:
        raise InputError(f"data for {path} have shape {data.shape}; expected (z, y, x).")
    check_dtype(data.dtype, f"data for {path}")
    with replacing(path) as partial:
        if path.suffix.lower() in ZARR_SUFFIXES:
            zarr_format.write(partial, data, voxel_size, translation_nm, ome_zarr)
        else:
            tiff.write(partial, data, voxel_size, translation_nm)
