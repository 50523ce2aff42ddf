"""MRC as IMOD and others write it: which bytes are signed, which lengths are stated, what other files are told."""

from __future__ import annotations

import gzip
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emformer_hub.errors import InputError
from emformer_hub.geometry import VoxelSize
from emformer_hub.volumes import open_volume, read_volume, write_volume

from .conftest import ANISOTROPIC, make_volume

mrcfile = pytest.importorskip("mrcfile")


def write(path: Path, data: np.ndarray, change: Callable[[Any], None] = lambda mrc: None) -> Path:
    """A file as mrcfile writes it; ``change`` may alter the header."""
    with mrcfile.new(path) as mrc:
        mrc.set_data(data)
        mrc.voxel_size = (40, 48.86, 400)  # x, y, z in ångström
        change(mrc)
    return path


def stamp(path: Path, flags: int) -> None:
    """As IMOD marks its files."""
    with path.open("r+b") as file:
        file.seek(152)
        file.write(struct.pack("<2i", 1146047817, flags))


def header(**fields: Any) -> Callable[[Any], None]:
    def change(mrc: Any) -> None:
        for name, value in fields.items():
            mrc.header[name] = value

    return change


# --- voxels ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["int16", "uint16", "float16", "float32"])
@pytest.mark.parametrize("byte_order", ["<", ">"])
def test_modes_of_either_byte_order(tmp_path: Path, dtype: str, byte_order: str) -> None:
    data = make_volume(dtype)
    read = read_volume(write(tmp_path / "a.mrc", data.astype(data.dtype.newbyteorder(byte_order))))
    assert read.data.dtype == dtype and read.data.dtype.isnative
    np.testing.assert_array_equal(read.data, data)
    assert (read.voxel_size, read.source, read.translation_nm) == (ANISOTROPIC, "MRC header", None)


def test_bytes_are_signed_where_imod_says_so(tmp_path: Path) -> None:
    data = make_volume("int8")
    path = write(tmp_path / "a.mrc", data, header(dmin=0, dmax=-1))
    stamp(path, flags=1)
    read = read_volume(path).data
    assert read.dtype == np.int16
    np.testing.assert_array_equal(read, data)
    stamp(path, flags=0)
    read = read_volume(path).data
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, data.view(np.uint8))


@pytest.mark.parametrize(
    ("lowest", "highest", "dtype"), [(-128, 127, "int16"), (-3, 90, "int16"), (0, 255, "uint8"), (10, 90, "uint8")]
)
def test_without_a_stamp_their_range_decides(tmp_path: Path, lowest: int, highest: int, dtype: str) -> None:
    path = write(tmp_path / "a.mrc", make_volume("int8"), header(dmin=lowest, dmax=highest))
    assert read_volume(path).data.dtype == dtype


@pytest.mark.parametrize(("lowest", "highest"), [(0, 0), (0, -1), (-5, 200)])
def test_bytes_that_may_be_either_are_refused(tmp_path: Path, lowest: int, highest: int) -> None:
    path = write(tmp_path / "a.mrc", make_volume("int8"), header(dmin=lowest, dmax=highest))
    with pytest.raises(InputError, match=r"a\.mrc holds bytes, .*whether they are signed.*newstack"):
        read_volume(path)


def test_voxels_lie_behind_an_extended_header(tmp_path: Path, volume: np.ndarray) -> None:
    path = write(tmp_path / "a.mrc", volume, lambda mrc: mrc.set_extended_header(np.zeros(1000, "V1")))
    opened = open_volume(path).data
    np.testing.assert_array_equal(opened[1:5:2, 3:, ::4], volume[1:5:2, 3:, ::4])


@pytest.mark.parametrize("name", ["a.mrc", "a.rec", "a.ali", "a"])
def test_it_is_told_by_content(tmp_path: Path, volume: np.ndarray, name: str) -> None:
    np.testing.assert_array_equal(read_volume(write(tmp_path / name, volume)).data, volume)


# --- lengths -----------------------------------------------------------------------------------------------------


def test_one_angstrom_stands_for_no_voxel_size(tmp_path: Path, volume: np.ndarray) -> None:
    with mrcfile.new(tmp_path / "a.mrc") as mrc:
        mrc.set_data(volume)
        mrc.voxel_size = 1
    read = read_volume(tmp_path / "a.mrc")
    assert (read.voxel_size, read.source) == (None, "")


@pytest.mark.parametrize("fields", [{"cella": (0, 0, 0)}, {"mz": 0}, {"cella": (np.nan, 1, 1)}], ids=str)
def test_a_length_that_is_missing_is_not_guessed(tmp_path: Path, volume: np.ndarray, fields: dict[str, Any]) -> None:
    assert read_volume(write(tmp_path / "a.mrc", volume, header(**fields))).voxel_size is None


def test_the_origin_is_the_place_of_the_first_voxel(tmp_path: Path, volume: np.ndarray) -> None:
    path = write(tmp_path / "a.mrc", volume, header(origin=(30, 20, -180.5)))
    assert read_volume(path).translation_nm == (-18.05, 2, 3)


# --- what is written ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint16", "int16", "float32"])
def test_the_output_passes_the_validator(tmp_path: Path, dtype: str) -> None:
    data = make_volume(dtype)
    write_volume(tmp_path / "a.mrc", data, ANISOTROPIC, translation_nm=(1, 2, 3))
    assert mrcfile.validate(tmp_path / "a.mrc")
    with mrcfile.open(tmp_path / "a.mrc") as mrc:
        np.testing.assert_array_equal(mrc.data, data)
        assert mrc.voxel_size.tolist() == pytest.approx((40, 48.86, 400))
        assert mrc.header.origin.tolist() == (30, 20, 10)
        assert mrc.header.rms == pytest.approx(data.std(dtype=np.float64))


def test_bytes_are_written_as_imod_reads_them(tmp_path: Path) -> None:
    data = make_volume("uint8")
    write_volume(tmp_path / "a.mrc", data, ANISOTROPIC)
    content = (tmp_path / "a.mrc").read_bytes()
    assert struct.unpack_from("<i", content, 12) == (0,)
    assert struct.unpack_from("<2i", content, 152) == (1146047817, 0)
    assert struct.unpack_from("<2f", content, 76) == (data.min(), data.max())
    assert content[1024:] == data.tobytes()


def test_voxels_that_mrc_has_not_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"MRC has no float64 voxels, only uint8.*[Ww]rite \.ome\.zarr"):
        write_volume(tmp_path / "a.mrc", make_volume("float64"), VoxelSize(8, 8, 8))
    assert list(tmp_path.iterdir()) == []


# --- other files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [100, 1024, 3000])
def test_a_truncated_file_is_named(tmp_path: Path, volume: np.ndarray, size: int) -> None:
    path = write(tmp_path / "a.mrc", volume)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(InputError, match=r"a\.mrc (is truncated or damaged: .*needed|cannot be read as MRC)"):
        read_volume(path)


def test_a_compressed_file_is_refused(tmp_path: Path, volume: np.ndarray) -> None:
    path = write(tmp_path / "a.mrc", volume)
    path.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(InputError, match=r"a\.mrc cannot be read as MRC .*not compressed"):
        read_volume(path)


def test_a_file_that_goes_away_is_reported_where_it_is_read(tmp_path: Path, volume: np.ndarray) -> None:
    opened = open_volume(write(tmp_path / "a.mrc", volume)).data
    (tmp_path / "a.mrc").unlink()
    with pytest.raises(InputError, match=r"a\.mrc cannot be read .*still there"):
        opened[0]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mode": 4, "nx": 7}, "complex64 voxels; expected"),
        ({"mode": 3}, "cannot be read as MRC"),
        ({"mapc": 3, "maps": 3}, "cannot be read as MRC"),
        ({"ispg": 401, "mz": 3}, "holds 2 volumes; expected one"),
    ],
    ids=str,
)
def test_what_is_no_volume_is_refused(tmp_path: Path, volume: np.ndarray, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=rf"a\.mrc .*{message}"):
        read_volume(write(tmp_path / "a.mrc", volume, header(**fields)))


def test_without_mrcfile_the_extra_is_named(
    tmp_path: Path, volume: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.mrc", volume)
    monkeypatch.setitem(sys.modules, "mrcfile", None)
    for act in (lambda: read_volume(path), lambda: write_volume(tmp_path / "b.mrc", volume, ANISOTROPIC)):
        with pytest.raises(InputError, match=r"[ab]\.mrc is MRC, which needs .*pip install 'emformer-hub\[mrc\]'"):
            act()
