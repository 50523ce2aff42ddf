"""Which volumes can be written, and what would keep one from being written."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from emformer_hub.errors import InputError, import_extra
from emformer_hub.files import check_folder, check_overwrite
from emformer_hub.volumes.mrc import MODES
from emformer_hub.volumes.n5_precomputed import is_n5_or_precomputed
from emformer_hub.volumes.ome_zarr import is_zarr
from emformer_hub.volumes.remote import Remote, Unfinished, place
from emformer_hub.volumes.slices import is_ours
from emformer_hub.volumes.tensorstore_writing import (
    N5_DTYPES,
    PRECOMPUTED_DTYPES,
    PRECOMPUTED_LABELS,
)
from emformer_hub.volumes.webknossos import is_webknossos
from emformer_hub.volumes.webknossos_writing import WKW_DTYPES, WKW_LABELS

TIFF_SUFFIXES = (".tif", ".tiff")
ZARR_SUFFIXES = (".zarr",)
HDF5_SUFFIXES = (".h5", ".hdf5")
MRC_SUFFIXES = (".mrc",)
SLICES_SUFFIXES = ("",)
PRECOMPUTED_SUFFIXES = (".precomputed",)
N5_SUFFIXES = (".n5",)
WKW_SUFFIXES = (".wkw",)
LEVELS_SUFFIXES = (*ZARR_SUFFIXES, *PRECOMPUTED_SUFFIXES, *N5_SUFFIXES, *WKW_SUFFIXES)
"""Formats with coarser levels, which know segmentations."""
CHUNKED_SUFFIXES = (*ZARR_SUFFIXES, *PRECOMPUTED_SUFFIXES, *N5_SUFFIXES, *HDF5_SUFFIXES)
_MOST_IN_A_CHUNK = 2**28  # voxels: 2 GB of 64-bit ones, which is what compressors and HDF5 take


_REPLACEABLE: dict[str, Callable[[Path], bool]] = {
    "": is_ours,
    ".zarr": is_zarr,
    ".n5": is_n5_or_precomputed,
    ".precomputed": is_n5_or_precomputed,
    ".wkw": is_webknossos,
}
"""Tests of whether a folder is a volume of the format that a suffix chooses; other formats are files."""
_LABELS_IN_TIFF = ("uint8", "uint16", "uint32", "int8", "int16", "int32")


def check_writable(path: str | os.PathLike[str] | Remote, dtype: np.dtype, *, labels: bool = False) -> None:
    """Raise ``InputError`` if the format that the suffix of ``path`` chooses has no such voxels, or no such labels."""
    path = place(path)
    suffix = path.suffix.lower()
    held: dict[str, tuple[str, Iterable[str]]] = {
        ".mrc": ("MRC", MODES),
        ".precomputed": ("precomputed", PRECOMPUTED_LABELS if labels else PRECOMPUTED_DTYPES),
        ".wkw": ("WEBKNOSSOS", WKW_LABELS if labels else WKW_DTYPES),
    }
    if labels:
        held |= dict.fromkeys((*TIFF_SUFFIXES, *SLICES_SUFFIXES), ("OME-TIFF", _LABELS_IN_TIFF))
    else:
        held |= {".n5": ("N5", N5_DTYPES)}
    name, dtypes = held.get(suffix, ("", (dtype.name,)))
    if dtype.name not in dtypes:
        raise InputError(
            f"output {path} cannot hold {dtype} voxels: {name} has only {', '.join(dtypes)}. Choose another format, as "
            f".ome.zarr, or convert the input first."
        )


def check_chunks(path: str | os.PathLike[str] | Remote, chunk_zyx: Sequence[int]) -> tuple[int, int, int]:
    """Return the sides of a chunk, (z, y, x); raise ``InputError`` if the format that ``path`` names has none."""
    path = place(path)
    if path.suffix.lower() not in CHUNKED_SUFFIXES:
        blocks = path.suffix.lower() in WKW_SUFFIXES
        raise InputError(
            f"output {path} has {'blocks of 32 voxels, always' if blocks else 'no chunks'}; leave out --chunks, or "
            f"choose a format that has them: {', '.join(CHUNKED_SUFFIXES)}."
        )
    if len(chunk_zyx) != 3 or any(side < 1 for side in chunk_zyx) or math.prod(chunk_zyx) > _MOST_IN_A_CHUNK:
        raise InputError(
            f"chunks of {','.join(map(str, chunk_zyx))} voxels cannot be written to {path}; expected Z,Y,X, each at "
            f"least 1, and at most {_MOST_IN_A_CHUNK:,} voxels together, as in 64,64,64."
        )
    z, y, x = chunk_zyx
    return (z, y, x)


def check_output(path: str | os.PathLike[str] | Remote, overwrite: bool) -> None:
    """Raise, before a long computation, if its result could not be written to ``path``, on this machine or in a bucket.

    Raises:
        InputError: the suffix is not one that can be written, or needs an extra that is not installed; the folder is
            missing or not writable, or the bucket cannot be reached; the output exists and ``overwrite`` is false; or
            it exists and is not an image of that format, which is never destroyed.
    """
    path = place(path)
    if isinstance(path, Remote):
        _check_bucket(path, overwrite)
        return
    suffix = path.suffix.lower()
    ours = (*TIFF_SUFFIXES, *ZARR_SUFFIXES, *HDF5_SUFFIXES, *MRC_SUFFIXES, *SLICES_SUFFIXES)
    if suffix not in (*ours, *PRECOMPUTED_SUFFIXES, *N5_SUFFIXES, *WKW_SUFFIXES):
        raise InputError(
            f"output {path} has the suffix {path.suffix!r}; "
            f"expected .ome.zarr or .zarr (OME-Zarr), .ome.tif, .ome.tiff, .tif or .tiff (OME-TIFF), .h5 or .hdf5 "
            f"(HDF5), .mrc, .n5, .precomputed, .wkw (WEBKNOSSOS), or none (a folder of TIFF sections)."
        )
    if suffix in HDF5_SUFFIXES:
        import_extra("h5py", "hdf5", f"{path} is HDF5")
    if suffix in MRC_SUFFIXES:
        import_extra("mrcfile", "mrc", f"{path} is MRC")
    if suffix in (*PRECOMPUTED_SUFFIXES, *N5_SUFFIXES):
        import_extra("tensorstore", "remote", f"{path} is written by TensorStore")
    if suffix in WKW_SUFFIXES:
        import_extra("wkw", "wkw", f"{path} is WEBKNOSSOS")
    check_folder(path)
    if not path.exists():
        return
    replaceable = _REPLACEABLE.get(suffix, Path.is_file)
    if not replaceable(path):
        found = "folder" if path.is_dir() else "file"
        raise InputError(
            f"output {path} exists and is a {found}, not such a volume; it is never replaced. Choose another name."
        )
    check_overwrite(path, overwrite)


def _check_bucket(output: Remote, overwrite: bool) -> None:
    """As :func:`check_output`, for an address."""
    if not output.in_bucket:
        raise InputError(
            f"output {output} cannot be written to; expected s3://, gs://, or a path on this machine. Copy the result "
            f"there then."
        )
    if output.suffix.lower() not in ZARR_SUFFIXES:
        raise InputError(
            f"output {output} has the suffix {output.suffix!r}; expected .ome.zarr or .zarr, the format that is "
            f"written into buckets. Make another one on this machine, and copy it there."
        )
    import_extra("tensorstore", "remote", f"{output} is written by TensorStore")
    if is_zarr(output):
        check_overwrite(output, overwrite)
    elif not Unfinished(output.url).exists() and (found := output.files()):
        raise InputError(
            f"output {output} exists and is not such a volume: it holds {found[0]}; it is never replaced. Choose "
            f"another name."
        )
