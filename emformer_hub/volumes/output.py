"""Outputs appear whole or not at all: written under a temporary name beside their place, then renamed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from emformer_hub.errors import InputError
from emformer_hub.volumes.checks import import_extra
from emformer_hub.volumes.ome_zarr import is_zarr
from emformer_hub.volumes.remote import is_url
from emformer_hub.volumes.slices import is_ours

TIFF_SUFFIXES = (".tif", ".tiff")
ZARR_SUFFIXES = (".zarr",)
HDF5_SUFFIXES = (".h5", ".hdf5")
MRC_SUFFIXES = (".mrc",)
SLICES_SUFFIXES = ("",)


def check_output(path: str | os.PathLike[str], overwrite: bool) -> None:
    """Raise, before a long computation, what would keep its result from being written to ``path``.

    Raises:
        InputError: the suffix is not one that can be written, or needs an extra that is not installed; the folder is
            missing or not writable; the output exists and ``overwrite`` is false; or it exists and is not an image of
            that format, which is never destroyed.
    """
    if is_url(path):
        raise InputError(f"output {path} is an address; expected a path on this machine. Copy the result there then.")
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in (*TIFF_SUFFIXES, *ZARR_SUFFIXES, *HDF5_SUFFIXES, *MRC_SUFFIXES, *SLICES_SUFFIXES):
        raise InputError(
            f"output {path} has the suffix {path.suffix!r}; "
            f"expected .ome.zarr or .zarr (OME-Zarr), .ome.tif, .ome.tiff, .tif or .tiff (OME-TIFF), .h5 or .hdf5 "
            f"(HDF5), .mrc, or none (a folder of TIFF sections)."
        )
    if suffix in HDF5_SUFFIXES:
        import_extra("h5py", "hdf5", f"{path} is HDF5")
    if suffix in MRC_SUFFIXES:
        import_extra("mrcfile", "mrc", f"{path} is MRC")
    _check_folder(path)
    if not path.exists():
        return
    replaceable = {".zarr": is_zarr, "": is_ours}.get(suffix, Path.is_file)
    if not replaceable(path):
        found = "folder" if path.is_dir() else "file"
        raise InputError(
            f"output {path} exists and is a {found} that is no such volume; it is never replaced. Choose another name."
        )
    _check_overwrite(path, overwrite)


def check_file(path: str | os.PathLike[str], overwrite: bool) -> None:
    """The same for a file that is no volume, of any suffix; a folder is never replaced by it."""
    path = Path(path)
    _check_folder(path)
    if path.is_dir():
        raise InputError(f"output {path} is a folder; it is never replaced. Give the name of a file.")
    _check_overwrite(path, overwrite)


def _check_folder(path: Path) -> None:
    folder = path.resolve().parent
    if not folder.is_dir():
        raise InputError(f"output {path} cannot be written: the folder {folder} does not exist. Create it first.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(
            f"output {path} cannot be written: no permission to write to the folder {folder}. Choose another folder."
        )


def _check_overwrite(path: Path, overwrite: bool) -> None:
    if path.exists() and not overwrite:
        raise InputError(f"output {path} exists. Choose another name, or give --overwrite to replace it.")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path with the same suffix; when the block ends well, that becomes ``path``.

    If the block raises anything, ``KeyboardInterrupt`` included, what it wrote is removed and ``path`` is untouched.
    A file is replaced in one step; a folder is moved aside first and deleted when the new one is in place.

    Raises:
        InputError: the operating system refused (disk full, no permission).
    """
    target = path.resolve()  # write through a symbolic link, not over it
    partial = target.with_name(f".{target.stem}.partial-{os.getpid()}{target.suffix}")
    _remove(partial)
    try:
        yield partial
        put_in_place(partial, target)
    except OSError as error:
        raise InputError(
            f"output {path} could not be written: {error.strerror or error}. Free some space or choose another folder."
        ) from error
    finally:
        _remove(partial)


def put_in_place(new: Path, target: Path) -> None:
    """Give a complete output its name; what was there is replaced."""
    if target.is_dir():
        _swap(new, target)
    else:
        os.replace(new, target)


def _swap(new: Path, target: Path) -> None:
    old = target.with_name(f".{target.stem}.old-{os.getpid()}{target.suffix}")
    try:
        os.rename(target, old)
        os.rename(new, target)
    except BaseException:
        if old.exists() and not target.exists():
            os.rename(old, target)
        raise
    _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
