"""Folders with one image per section."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

from emformer_hub.errors import InputError
from emformer_hub.volumes import read_volume

from .conftest import make_volume


def write_slices(folder: Path, data: np.ndarray, suffix: str) -> None:
    for z, section in enumerate(data):  # slice_9 sorts behind slice_10 as text
        if suffix == ".png":
            pytest.importorskip("imageio.v3").imwrite(folder / f"slice_{z + 5}.png", section)
        else:
            tifffile.imwrite(folder / f"slice_{z + 5}{suffix}", section)


@pytest.mark.parametrize("suffix", [".tif", ".TIFF", ".png"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_sections_come_in_natural_order(tmp_path: Path, suffix: str, dtype: str) -> None:
    data = make_volume(dtype, (9, 12, 10))
    write_slices(tmp_path, data, suffix)
    (tmp_path / "notes.txt").write_text("not a section")
    (tmp_path / ".slice_0.tif").write_text("left by a file manager")
    volume = read_volume(tmp_path)
    assert volume.data.dtype == dtype
    np.testing.assert_array_equal(volume.data, data)
    assert (volume.voxel_size, volume.source) == (None, "")


def test_order_is_natural_in_every_number_of_the_name(tmp_path: Path) -> None:
    names = ["S1_2", "s1_10", "s2_1", "s10_1"]
    for z, name in enumerate(names):
        tifffile.imwrite(tmp_path / f"{name}.tif", np.full((4, 5), z, np.uint8))
    assert read_volume(tmp_path).data[:, 0, 0].tolist() == [0, 1, 2, 3]


def test_big_endian_sections(tmp_path: Path) -> None:
    data = make_volume("int16")
    for z, section in enumerate(data):
        tifffile.imwrite(tmp_path / f"{z}.tif", section, byteorder=">")
    read = read_volume(tmp_path).data
    assert read.dtype == np.int16 and read.dtype.isnative
    np.testing.assert_array_equal(read, data)


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        (np.zeros((12, 11), np.uint16), r"s7\.tif has shape \(12, 11\).*expected \(12, 10\).*s0\.tif"),
        (np.zeros((12, 10), np.uint8), r"s7\.tif.*uint8 voxels; expected.*uint16"),
        (np.zeros((12, 10, 3), np.uint16), r"s7\.tif has shape \(12, 10, 3\); expected one grey-value section"),
        (np.zeros((5, 12, 10), np.uint16), r"s7\.tif has shape \(5, 12, 10\); expected one grey-value section"),
    ],
)
def test_the_section_that_does_not_fit_is_named(tmp_path: Path, odd: np.ndarray, message: str) -> None:
    for z in range(9):
        section = odd if z == 7 else np.zeros((12, 10), np.uint16)
        tifffile.imwrite(tmp_path / f"s{z}.tif", section)
    with pytest.raises(InputError, match=message):
        read_volume(tmp_path)


@pytest.mark.parametrize("suffix", [".tif", ".png"])
def test_a_truncated_section_is_named(tmp_path: Path, suffix: str) -> None:
    write_slices(tmp_path, make_volume("uint8", (5, 40, 40)), suffix)
    broken = tmp_path / f"slice_8{suffix}"
    broken.write_bytes(broken.read_bytes()[:800])
    with pytest.raises(InputError, match=r"slice_8\."):
        read_volume(tmp_path)


def test_rgb_png_is_refused(tmp_path: Path) -> None:
    iio = pytest.importorskip("imageio.v3")
    iio.imwrite(tmp_path / "a.png", np.zeros((6, 7, 3), np.uint8))
    with pytest.raises(InputError, match=r"a\.png has shape \(6, 7, 3\)"):
        read_volume(tmp_path)


def test_unsupported_dtype_is_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((6, 7), np.int64))
    with pytest.raises(InputError, match=r"a\.tif holds int64"):
        read_volume(tmp_path)


def test_folders_without_one_kind_of_image(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="without TIFF or PNG"):
        read_volume(tmp_path)
    (tmp_path / "a.png").touch()
    (tmp_path / "b.tif").touch()
    with pytest.raises(InputError, match="mixes TIFF and PNG"):
        read_volume(tmp_path)
