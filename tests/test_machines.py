"""What fails on other machines, imitated: Windows, file systems without locks, no home; and libraries that chatter."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from emformer_hub.devices import peak_memory
from emformer_hub.errors import InputError
from emformer_hub.geometry import VoxelSize
from emformer_hub.reconstruction import reconstruct_file, state
from emformer_hub.volumes import kvstore, read_volume, write_volume

STACK = np.random.default_rng(0).integers(0, 255, (6, 24, 20), np.uint8)
SIZE = VoxelSize(40, 8, 8)
SETTINGS: dict[str, Any] = {"voxel_size": SIZE, "factor": 5, "model": "emformer-tiny", "ensemble": 1}


@pytest.fixture
def stack(tmp_path: Path) -> Path:
    write_volume(tmp_path / "in.tif", STACK, SIZE)
    return tmp_path / "in.tif"


def test_only_what_may_be_written_is_brought_to_the_disk(
    stack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows refuses to flush a file that is open for reading."""
    flush = os.fsync

    def refusing(number: int) -> None:
        if fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")
        flush(number)

    monkeypatch.setattr(os, "fsync", refusing)
    for name in ("a.zarr", "a.tif"):
        reconstruct_file(stack, tmp_path / name, **SETTINGS)
        assert read_volume(tmp_path / name).data.shape == (30, 24, 20)


def test_a_run_ends_well_where_open_files_cannot_be_removed(
    stack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    locks: list[Any] = []
    lock, remove = state._locked, shutil.rmtree

    def locked(file: Path) -> Any:
        locks.append(lock(file))
        return locks[-1]

    def removing(path: Path, ignore_errors: bool = False) -> None:
        held = Path(path) / "lock"
        if locks and locks[-1].is_locked and held.exists():
            for file in Path(path).iterdir():
                if file != held:
                    file.unlink()
            if not ignore_errors:
                raise PermissionError(13, "The process cannot access the file", str(held))
            return
        remove(path, ignore_errors)

    monkeypatch.setattr(state, "_locked", locked)
    monkeypatch.setattr(shutil, "rmtree", removing)
    reconstruct_file(stack, tmp_path / "a.zarr", **SETTINGS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zarr", "a.zarr.json", "in.tif"]


def test_memory_is_told_without_the_module_resource(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "resource", None)
    monkeypatch.setattr(psutil.Process, "memory_info", lambda self: types.SimpleNamespace(peak_wset=7))
    assert peak_memory(torch.device("cpu")) == 7


def test_a_dataset_of_hdf5_is_named_as_windows_writes_paths(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["volumes/raw"], file["volumes/other"] = STACK, STACK[::-1]
    np.testing.assert_array_equal(read_volume(f"{tmp_path / 'a.h5'}:\\volumes\\other").data, STACK[::-1])


def test_hdf5_is_read_where_files_cannot_be_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["raw"] = STACK
    opened = h5py.File

    def without_locks(path: Any, mode: str, **options: Any) -> Any:
        if options.get("locking") not in (False, "best-effort"):
            raise BlockingIOError(errno.ENOSYS, "Unable to synchronously open file (unable to lock file)")
        return opened(path, mode, **options)

    monkeypatch.setattr(h5py, "File", without_locks)
    np.testing.assert_array_equal(read_volume(tmp_path / "a.h5").data, STACK)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_said_and_does(
    stack: Path, tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refusing(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refusing)
    reconstruct_file(stack, tmp_path / "a.zarr", **SETTINGS)
    assert read_volume(tmp_path / "a.zarr").data.shape == (30, 24, 20)
    folder = tmp_path / ".b.zarr.run"
    folder.mkdir()
    held = state._locked(folder / "lock")
    with pytest.raises(InputError, match="is being made by another run"):
        reconstruct_file(stack, tmp_path / "b.zarr", **SETTINGS)
    held.release()
    reconstruct_file(stack, tmp_path / "b.zarr", overwrite=True, **SETTINGS)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name[0] == ".") == []


def test_without_a_home_buckets_are_read_as_anybody(monkeypatch: pytest.MonkeyPatch) -> None:
    pwd = pytest.importorskip("pwd")

    def unknown(_: int) -> None:
        raise KeyError("uid not found")

    for name in ("HOME", "AWS_ACCESS_KEY_ID", "AWS_SHARED_CREDENTIALS_FILE", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    assert kvstore.kvstore_spec("s3://bucket/a.zarr")["driver"] == "s3"


def test_no_library_chatters() -> None:
    code = """
import numpy as np
from emformer_hub import reconstruct
from emformer_hub.adapters import add_adapter
from emformer_hub.loading import load_model
stack = np.random.default_rng(0).integers(0, 255, (6, 24, 20), np.uint8)
reconstruct(stack, factor=5, model="emformer-tiny", ensemble=1, progress=False)
add_adapter(load_model("emformer-tiny")[0], base="emformer-tiny", rank=2, alpha=2)
"""
    environment = {**os.environ, "PYTHONWARNINGS": "default::FutureWarning"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert run.stderr == "" and run.stdout == ""
