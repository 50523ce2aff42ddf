"""Outputs appear whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from emformer_hub.errors import InputError
from emformer_hub.geometry import VoxelSize
from emformer_hub.volumes import boxes, check_output, create_volume, read_volume, write_volume

from .conftest import ANISOTROPIC, make_volume

resource = pytest.importorskip("resource", reason="limits of file sizes need Unix")

FORMATS = pytest.mark.parametrize(
    "name", ["out.tif", "out.ome.zarr", "out.h5", "out.mrc", "out.n5", "out.precomputed", "out"]
)


@contextmanager
def limited_files(size: int) -> Iterator[None]:
    """The system lets no file grow beyond so many bytes: to a writer, the disk is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@FORMATS
def test_existing_output_needs_overwrite(tmp_path: Path, volume: np.ndarray, name: str) -> None:
    path = tmp_path / name
    write_volume(path, volume, ANISOTROPIC)
    with pytest.raises(InputError, match=rf"{name} already exists.*--overwrite"):
        write_volume(path, volume + 1, ANISOTROPIC)
    np.testing.assert_array_equal(read_volume(path).data, volume)
    write_volume(path, volume + 1, ANISOTROPIC, overwrite=True)
    np.testing.assert_array_equal(read_volume(path).data, volume + 1)
    assert os.listdir(tmp_path) == [name]


@FORMATS
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, OSError])
def test_an_interrupted_write_leaves_the_old_output_alone(
    tmp_path: Path, volume: np.ndarray, name: str, error: type[BaseException]
) -> None:
    def interrupted(path: Path) -> None:
        with create_volume(path, volume.shape, volume.dtype, ANISOTROPIC, overwrite=True) as writer:
            for box in list(boxes(volume.shape, writer.part_zyx))[:2]:
                writer.write(box, volume[box] + 1)
            assert len(set(os.listdir(tmp_path)) - {name}) == 1  # it does write, beside the output
            raise error

    path = tmp_path / name
    write_volume(path, volume, ANISOTROPIC)
    for output in (path, tmp_path / f"new-{name}"):
        with pytest.raises(InputError if error is OSError else error):
            interrupted(output)
        assert os.listdir(tmp_path) == [name]
    np.testing.assert_array_equal(read_volume(path).data, volume)


@FORMATS
def test_a_disk_that_fills_up(tmp_path: Path, name: str) -> None:
    data = make_volume("uint16", (4, 256, 512))  # 1 MB, which no compression shortens
    with limited_files(20_000), pytest.raises(InputError, match=rf"{name} could not be written: .*Free some space"):
        write_volume(tmp_path / name, data, ANISOTROPIC)
    assert os.listdir(tmp_path) == []


def test_an_interrupted_swap_puts_the_old_folder_back(
    tmp_path: Path, volume: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out.zarr"
    write_volume(path, volume, ANISOTROPIC)
    rename = os.rename

    def interrupted(source: Path, target: Path) -> None:
        if ".partial-" in Path(source).name:
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(os, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_volume(path, volume + 1, ANISOTROPIC, overwrite=True)
    assert os.listdir(tmp_path) == ["out.zarr"]
    np.testing.assert_array_equal(read_volume(path).data, volume)


def test_a_memory_map_survives_the_replacement_of_its_file(tmp_path: Path, volume: np.ndarray) -> None:
    path = tmp_path / "a.tif"
    write_volume(path, volume, ANISOTROPIC)
    mapped = read_volume(path).data
    write_volume(path, mapped, VoxelSize(30, 5, 5), overwrite=True)
    read = read_volume(path)
    np.testing.assert_array_equal(mapped, volume)
    np.testing.assert_array_equal(read.data, volume)
    assert read.voxel_size == VoxelSize(30, 5, 5)


def test_a_symbolic_link_stays_a_link(tmp_path: Path, volume: np.ndarray) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out.tif").symlink_to(tmp_path / "disk" / "real.tif")
    write_volume(tmp_path / "out.tif", volume, ANISOTROPIC)
    assert (tmp_path / "out.tif").is_symlink()
    np.testing.assert_array_equal(read_volume(tmp_path / "disk" / "real.tif").data, volume)


@pytest.mark.parametrize("name", ["out.png", "out.nii.gz", "out.tiff.bak"])
def test_unknown_suffixes_are_told_the_valid_ones(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"expected \.ome\.zarr or \.zarr .*\.ome\.tif"):
        check_output(tmp_path / name, overwrite=True)


@pytest.mark.parametrize("name", ["out.TIF", "out.ome.tiff", "out.zarr", "out.h5", "out.mrc", "sections"])
def test_outputs_that_can_be_written_pass(tmp_path: Path, name: str) -> None:
    check_output(tmp_path / name, overwrite=False)
    assert os.listdir(tmp_path) == []


def test_a_missing_folder_is_found_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"missing does not exist. Create it"):
        check_output(tmp_path / "missing" / "out.tif", overwrite=False)


def test_a_folder_without_permission_is_found_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(InputError, match="no permission to write"):
        check_output(tmp_path / "out.tif", overwrite=False)


def test_overwrite_never_deletes_what_is_not_an_image_of_that_format(tmp_path: Path) -> None:
    (tmp_path / "results.zarr").mkdir()
    (tmp_path / "results.zarr" / "thesis.txt").write_text("years of work")
    (tmp_path / "file.zarr").write_text("an archive")
    (tmp_path / "folder.tif").mkdir()
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "section_1.tif").touch()
    (tmp_path / "raw" / "notes.txt").touch()
    (tmp_path / "file").touch()
    for name in ("results.zarr", "file.zarr", "folder.tif", "raw", "file"):
        with pytest.raises(InputError, match="never replaced"):
            check_output(tmp_path / name, overwrite=True)
