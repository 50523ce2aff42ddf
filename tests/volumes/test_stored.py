"""Volumes that stay on disk: they slice as numpy does, in every process, and say what is wrong when they are read."""

from __future__ import annotations

import itertools
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given
from hypothesis import strategies as st

from emformer_hub.errors import InputError
from emformer_hub.volumes import StoredArray, open_volume, read_volume, write_volume

from .conftest import ANISOTROPIC, make_volume

h5py = pytest.importorskip("h5py")
zarr = pytest.importorskip("zarr")

SHAPE = (6, 20, 14)
FORMATS = ["tif", "zarr", "h5", "contiguous.h5", "packed.tif", "tiled.tif", "pages.tif"]
STORED = FORMATS[1:]


def write(folder: Path, kind: str, data: np.ndarray) -> Path:
    path = folder / f"volume.{kind}"
    if kind.endswith("h5"):
        with h5py.File(path, "w") as file:
            file.create_dataset("raw", data=data, chunks=None if kind.startswith("contiguous") else (2, 8, 8))
    elif kind == "zarr":
        zarr.create_array(path, data=data, chunks=(2, 8, 8))
    elif kind == "packed.tif":
        tifffile.imwrite(path, data, compression="zlib", rowsperstrip=3)
    elif kind == "tiled.tif":
        tifffile.imwrite(path, data, tile=(16, 16))
    elif kind == "pages.tif":
        for section in data:
            tifffile.imwrite(path, section, append=True, metadata=None)
    else:
        tifffile.imwrite(path, data)
    return path


def stored(data: np.ndarray, chunks: tuple[int, int, int] = (2, 8, 8)) -> StoredArray:
    """An array in memory that behaves as one on disk."""
    return StoredArray(data.shape, data.dtype, chunks, data.__getitem__)


# --- slices ------------------------------------------------------------------------------------------------------

bounds = st.none() | st.integers(-30, 30)
parts = [st.builds(slice, bounds, bounds, st.none() | st.integers(1, 7)) | st.integers(-n, n - 1) for n in SHAPE]


@given(index=st.tuples(*parts), length=st.integers(0, 3))
def test_slices_are_those_of_numpy(index: tuple[int | slice, ...], length: int) -> None:
    data = make_volume("uint8")
    found, expected = stored(data)[index[:length]], data[index[:length]]
    assert found.shape == expected.shape
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    "index", [..., (..., 3), (2, ..., slice(1, 9, 3)), (1, 2, 3), (1, 2, 3, ...), -1, slice(None), np.int64(2)], ids=str
)
@pytest.mark.parametrize("kind", STORED)
def test_every_format_slices_alike(tmp_path: Path, kind: str, index: Any) -> None:
    data = make_volume("uint16")
    found = open_volume(write(tmp_path, kind, data)).data[index]
    assert found.shape == data[index].shape
    np.testing.assert_array_equal(found, data[index])


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (6, "index 6 is out of range for an axis of 6"),
        ((0, -21), "index -21 is out of range"),
        (slice(None, None, -1), "step -1: voxels on disk are read forwards"),
        ((0, 0, 0, 0), "too many parts"),
        ((..., 0, ...), "too many parts"),
        ([0, 1], "is not an index of voxels on disk"),
        (np.array([True] * 6), "is not an index of voxels on disk"),
        (None, "is not an index of voxels on disk"),
    ],
    ids=str,
)
def test_other_indices_are_refused(index: Any, message: str) -> None:
    with pytest.raises(IndexError, match=message):
        stored(make_volume("uint8"))[index]


# --- as an array -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float16", "float32", "float64"])
def test_what_is_opened_is_what_is_read(tmp_path: Path, kind: str, dtype: str) -> None:
    data = make_volume(dtype)
    path = write(tmp_path, kind, data)
    opened, read = open_volume(path), read_volume(path)
    assert isinstance(opened.data, StoredArray) == (kind in STORED)
    assert isinstance(read.data, np.ndarray)
    for found in (opened.data, read.data):
        assert (found.shape, found.dtype, found.ndim, found.size, len(found)) == (SHAPE, data.dtype, 3, data.size, 6)
    np.testing.assert_array_equal(read.data, data)
    np.testing.assert_array_equal(np.asarray(opened.data), data)
    assert np.asarray(opened.data, np.float32).dtype == np.float32


@pytest.mark.parametrize("kind", STORED)
def test_foreign_byte_order_becomes_native(tmp_path: Path, kind: str) -> None:
    data = make_volume("uint16")
    opened = open_volume(write(tmp_path, kind, data.astype(">u2"))).data
    assert opened.dtype.isnative and opened[1:3].dtype == opened.dtype == data.dtype
    np.testing.assert_array_equal(opened[1:3], data[1:3])


@pytest.mark.parametrize("kind", STORED)
def test_leading_axes_of_length_1_are_dropped(tmp_path: Path, kind: str) -> None:
    data = make_volume("uint8")
    path = tmp_path / f"volume.{kind}"
    if kind == "zarr":
        zarr.create_array(path, data=data[None, None], chunks=(1, 1, 2, 8, 8))
    elif kind.endswith("tif"):
        write(tmp_path, kind, data[None, None] if kind != "pages.tif" else data)
    else:
        with h5py.File(path, "w") as file:
            file["raw"] = data[None, None]
    opened = open_volume(path).data
    assert opened.shape == SHAPE and len(opened.chunks) == 3
    np.testing.assert_array_equal(opened[2, 3:9:2], data[2, 3:9:2])


def test_voxel_size_and_place_are_stated_as_when_read(tmp_path: Path) -> None:
    write_volume(tmp_path / "a.zarr", make_volume("uint8"), ANISOTROPIC, translation_nm=(1, 2, 3))
    opened = open_volume(tmp_path / "a.zarr")
    assert (opened.voxel_size, opened.source, opened.translation_nm) == (ANISOTROPIC, "multiscales", (1, 2, 3))


def test_a_stack_of_imagej_is_sliced_on_disk_in_its_byte_order(tmp_path: Path) -> None:
    data = make_volume("uint16")
    tifffile.imwrite(tmp_path / "a.tif", data, imagej=True, byteorder=">", metadata={"axes": "ZYX"})
    opened = open_volume(tmp_path / "a.tif").data
    assert isinstance(opened, StoredArray)
    np.testing.assert_array_equal(opened[1:5:2, 3:, ::4], data[1:5:2, 3:, ::4])
    (tmp_path / "a.tif").write_bytes((tmp_path / "a.tif").read_bytes()[:1000])
    with pytest.raises(InputError, match=r"a\.tif cannot be read .*whole"):
        opened[0]


def test_a_folder_of_sections_is_sliced_on_disk(tmp_path: Path) -> None:
    data = make_volume("uint8")
    for z, section in enumerate(data):
        tifffile.imwrite(tmp_path / f"{z}.tif", section)
    opened = open_volume(tmp_path).data
    (tmp_path / "0.tif").unlink()
    assert isinstance(opened, StoredArray)
    np.testing.assert_array_equal(opened[1:5:2, 3:, ::4], data[1:5:2, 3:, ::4])
    with pytest.raises(InputError, match=r"0\.tif cannot be read"):
        opened[0]


# --- damaged -----------------------------------------------------------------------------------------------------


def test_a_damaged_chunk_is_reported_where_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "volume.zarr"
    zarr.create_array(path, data=make_volume("uint8"), chunks=(2, 20, 14))
    chunk = path / "c" / "1" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[:20])
    opened = open_volume(path).data
    assert opened[:2].shape == (2, 20, 14)
    with pytest.raises(InputError, match=r"c/1/0/0 cannot be read as Zarr"):
        opened[:3]


def test_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, "h5", make_volume("uint8"))
    opened = open_volume(path).data
    path.unlink()
    with pytest.raises(InputError, match=r"volume\.h5 cannot be read as HDF5"):
        opened[0]


# --- processes ---------------------------------------------------------------------------------------------------


class Sections(torch.utils.data.Dataset):
    def __init__(self, volume: StoredArray):
        self.volume = volume

    def __len__(self) -> int:
        return len(self.volume)

    def __getitem__(self, z: int) -> np.ndarray:
        return self.volume[z, ::2]


@pytest.mark.parametrize("kind", STORED)
def test_forked_workers_read_what_the_process_that_opened_it_reads(tmp_path: Path, kind: str) -> None:
    data = make_volume("uint16", (24, 64, 48))
    volume = open_volume(write(tmp_path, kind, data)).data
    np.testing.assert_array_equal(volume[3:5], data[3:5])  # the parent has read before it forks
    loader = torch.utils.data.DataLoader(
        Sections(volume), batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=600
    )
    for z, section in enumerate(loader):
        np.testing.assert_array_equal(section, data[z, ::2])
        np.testing.assert_array_equal(volume[z], data[z])  # while the workers read


@pytest.mark.parametrize("kind", STORED)
def test_it_may_be_pickled_for_workers_that_start_anew(tmp_path: Path, kind: str) -> None:
    data = make_volume("uint8")
    again = pickle.loads(pickle.dumps(open_volume(write(tmp_path, kind, data)).data))
    np.testing.assert_array_equal(again[:], data)


# --- boxes to look at --------------------------------------------------------------------------------------------


def test_enough_boxes_fill_the_volume() -> None:
    counted = np.zeros((70, 300, 500), np.uint8)
    for box in stored(counted, (64, 64, 200)).draw_boxes(counted.size):
        counted[box] += 1
    assert (counted == 1).all()


def test_boxes_are_whole_chunks_all_over_a_large_volume() -> None:
    volume = StoredArray((6400, 25_600, 25_600), np.dtype("uint8"), (64, 256, 256), itertools.repeat(None).__next__)
    boxes = volume.draw_boxes(2**28)
    assert boxes == volume.draw_boxes(2**28)
    assert len(set(map(str, boxes))) == len(boxes) == 64
    starts = np.array([[part.start for part in box] for box in boxes])
    assert (starts % volume.chunks == 0).all()
    assert all(part.stop - part.start == chunk for box in boxes for part, chunk in zip(box, volume.chunks, strict=True))
    assert (np.abs(starts.mean(axis=0) / volume.shape - 0.5) < 0.15).all()


@pytest.mark.parametrize("chunks", [(1, 1, 512), (8, 8, 8), (1, 20_000, 20_000), (2000, 20_000, 20_000)])
def test_small_chunks_are_joined_and_large_ones_are_few(chunks: tuple[int, int, int]) -> None:
    boxes = StoredArray((2000, 20_000, 20_000), np.dtype("uint8"), chunks, itertools.repeat(None).__next__)
    count = len(boxes.draw_boxes(2**28))
    assert 1 <= count <= 300
