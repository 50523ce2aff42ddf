"""Every format that is written, from every format that is read: voxels, voxel size and place are equal."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emformer_hub.errors import InputError
from emformer_hub.volumes import VolumeWriter, boxes, create_volume, open_volume, read_volume, write_volume

from .conftest import ANISOTROPIC, make_volume

SOURCES = {
    "a.ome.tif": "OME-XML",
    "sections": "OME-XML",
    "a.h5": "element_size_um",
    "a.mrc": "MRC header",
    "0.4.ome.zarr": "multiscales",
    "0.5.ome.zarr": "multiscales",
}
"""What is written, and what states its voxel size."""
PLACE = (-18.0, 0.5, 1007.25)
FORMATS = pytest.mark.parametrize("name", SOURCES)


def version(name: str) -> str:
    return "0.4" if name.startswith("0.4") else "0.5"


def check(path: Path, data: np.ndarray) -> None:
    for volume in (read_volume(path), open_volume(path)):
        assert volume.data.dtype == data.dtype
        np.testing.assert_array_equal(np.asarray(volume.data), data)
        assert (volume.voxel_size, volume.translation_nm) == (ANISOTROPIC, PLACE)
        assert volume.source == SOURCES[path.name]


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
@pytest.mark.parametrize(("first", "second"), list(itertools.product(SOURCES, SOURCES)))
def test_each_format_keeps_what_it_was_given_by_each(tmp_path: Path, first: str, second: str, dtype: str) -> None:
    data = make_volume(dtype)
    write_volume(tmp_path / first, data, ANISOTROPIC, translation_nm=PLACE, ome_zarr=version(first))
    check(tmp_path / first, data)
    read = open_volume(tmp_path / first)
    assert read.voxel_size is not None and read.translation_nm is not None
    (tmp_path / "second").mkdir()
    target = tmp_path / "second" / second
    write_volume(target, read.data, read.voxel_size, translation_nm=read.translation_nm, ome_zarr=version(second))
    check(target, data)


@FORMATS
@pytest.mark.parametrize("shape", [(1, 20, 14), (6, 1, 14), (6, 20, 1), (1, 1, 1), (6, 20, 3), (6, 3, 14), (3, 20, 14)])
def test_short_axes_stay_where_they_are(tmp_path: Path, name: str, shape: tuple[int, int, int]) -> None:
    data = make_volume("uint8", shape)
    write_volume(tmp_path / name, data, ANISOTROPIC, ome_zarr=version(name))
    np.testing.assert_array_equal(read_volume(tmp_path / name).data, data)


@FORMATS
def test_float16_keeps_its_values(tmp_path: Path, name: str) -> None:
    data = make_volume("float16")
    write_volume(tmp_path / name, data, ANISOTROPIC, ome_zarr=version(name))
    np.testing.assert_array_equal(read_volume(tmp_path / name).data, data)


@FORMATS
@pytest.mark.parametrize("dtype", ["int64", "bool", "complex64", "int8"])
def test_what_is_no_grey_value_is_refused(tmp_path: Path, name: str, dtype: str) -> None:
    with pytest.raises(InputError, match=rf"{dtype} voxels; expected grey values"):
        write_volume(tmp_path / name, np.zeros((4, 4, 4), dtype), ANISOTROPIC, ome_zarr=version(name))
    assert list(tmp_path.iterdir()) == []


# --- in parts ----------------------------------------------------------------------------------------------------

LARGE = make_volume("uint16", (70, 300, 560))


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def write_part(writer: VolumeWriter, box: Any) -> None:
    writer.write(box, LARGE[box])


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        yield pool


@pytest.mark.parametrize("name", [name for name in SOURCES if name != "a.h5"])  # HDF5 is written by one process
def test_parts_written_by_two_processes_make_the_same_volume(
    tmp_path: Path, name: str, pool: ProcessPoolExecutor
) -> None:
    (tmp_path / "parts").mkdir()
    whole, parts = tmp_path / name, tmp_path / "parts" / name
    write_volume(whole, LARGE, ANISOTROPIC, ome_zarr=version(name))
    with create_volume(parts, LARGE.shape, LARGE.dtype, ANISOTROPIC, ome_zarr=version(name)) as writer:
        sides = (min(10, writer.part_zyx[0]), *writer.part_zyx[1:]) if name.startswith("a.") else writer.part_zyx
        list(pool.map(write_part, itertools.repeat(writer), reversed(list(boxes(LARGE.shape, sides)))))
    np.testing.assert_array_equal(read_volume(parts).data, LARGE)
    if name.endswith(".zarr"):  # other formats carry identifiers and times
        assert files(parts) == files(whole)


@pytest.mark.parametrize("name", ["a.ome.tif", "a.h5", "a.mrc"])
def test_boxes_of_any_size_may_be_written_in_any_order(tmp_path: Path, name: str) -> None:
    data = make_volume("float32", (7, 30, 20))
    with create_volume(tmp_path / name, data.shape, data.dtype, ANISOTROPIC) as writer:
        for box in reversed(list(boxes(data.shape, (2, 7, 9)))):
            pickle.loads(pickle.dumps(writer)).write(box, data[box])
    np.testing.assert_array_equal(read_volume(tmp_path / name).data, data)
