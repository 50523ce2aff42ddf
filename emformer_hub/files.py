"""Writes outputs whole or not at all: under a temporary name in the same folder, then renamed."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

from .errors import InputError


class Somewhere(Protocol):
    """A path on this machine, or what has these of its methods elsewhere."""

    @property
    def name(self) -> str:
        """Last part of the path."""

    def with_name(self, name: str, /) -> Any:
        """The path beside it that has this name."""

    def exists(self) -> bool:
        """Whether something is there."""


Place = TypeVar("Place", bound=Somewhere)


def check_file(path: str | os.PathLike[str], overwrite: bool) -> None:
    """Raise, before a long computation, if its result could not be written to the file ``path``.

    Raises:
        InputError: the folder is missing or not writable, the file exists and ``overwrite`` is false, or there is a
            folder of that name, which is never replaced.
    """
    path = Path(path)
    check_folder(path)
    if path.is_dir():
        raise InputError(f"output {path} is a folder; it is never replaced. Give the name of a file.")
    check_overwrite(path, overwrite)


def check_folder(path: Path) -> None:
    """Raise ``InputError`` unless the folder that ``path`` is to appear in exists and is writable."""
    folder = path.resolve().parent
    if not folder.is_dir():
        raise InputError(f"output {path} cannot be written: the folder {folder} does not exist. Create it first.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(
            f"output {path} cannot be written: no permission to write to the folder {folder}. Choose another folder."
        )


def check_overwrite(path: Somewhere, overwrite: bool) -> None:
    """Raise ``InputError`` if the output exists already and must not be replaced."""
    if path.exists() and not overwrite:
        raise InputError(f"output {path} already exists. Choose another name, or give --overwrite to replace it.")


def record_path(output: Place) -> Place:
    """Path of the record of a run: ``out.ome.zarr`` -> ``out.ome.zarr.json``."""
    record: Place = output.with_name(f"{output.name}.json")
    return record


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path with the same suffix, which is renamed to ``path`` if the block succeeds.

    If the block raises anything, ``KeyboardInterrupt`` included, its output is removed and ``path`` stays untouched.
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


def write_text(path: Path, text: str) -> None:
    """Write a small file, whole or not at all; errors of the operating system pass through."""
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def open_to_colleagues(folder: str | os.PathLike[str], like: str) -> None:
    """Give weight files the permissions of another file of their folder: safetensors lets nobody but the owner read."""
    for path in Path(folder).glob("*.safetensors"):
        path.chmod(stat.S_IMODE((Path(folder) / like).stat().st_mode))


def put_in_place(new: Path, target: Path) -> None:
    """Rename a complete output to ``target``, replacing what exists there."""
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
