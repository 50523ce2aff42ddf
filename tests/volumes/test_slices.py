"""Folders with one image per section."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import tifffile

from emformer_hub.errors import InputError
from emformer_hub.geometry import VoxelSize
from emformer_hub.volumes import read_volume, write_volume

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


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ([1, 2, 4], r"lacks the section 3: s004\.tif comes after s002\.tif"),
        ([1, 2, 3, 6, 7, 9, 10, 11], r"lacks the sections 4, 5, 8: s006\.tif comes after s003\.tif"),
        ([0, 10, 20, 40], r"lacks the section 30: s040\.tif"),
        ([*range(9), *range(99, 120)], r"lacks the sections 9, 10, 11, .*, 20 and 78 more"),
    ],
)
def test_a_number_that_is_missing_is_named(tmp_path: Path, numbers: list[int], message: str) -> None:
    for number in numbers:
        tifffile.imwrite(tmp_path / f"s{number:03}.tif", np.zeros((4, 5), np.uint8))
    with pytest.raises(InputError, match=message):
        read_volume(tmp_path)


@pytest.mark.parametrize(
    "names",
    [
        ["s1", "s2", "s3"],
        ["s10", "s20", "s30"],  # equal steps
        ["s3", "s4", "last"],
        ["s1", "s17", "s20", "s90"],  # times, or positions
        ["r1_s1", "r1_s2", "r2_s1", "r2_s2"],
        ["s7"],
        ["a", "b", "d"],
    ],
    ids=str,
)
def test_names_that_do_not_count_lack_nothing(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        tifffile.imwrite(tmp_path / f"{name}.tif", np.zeros((4, 5), np.uint8))
    assert len(read_volume(tmp_path).data) == len(names)


def test_the_first_section_states_the_voxel_size(tmp_path: Path) -> None:
    data = make_volume("uint8")
    for z, section in enumerate(data):
        sizes = {"PhysicalSizeZ": 0.04, "PhysicalSizeY": 0.005, "PhysicalSizeX": 0.004} if z == 0 else {}
        tifffile.imwrite(tmp_path / f"{z}.tif", section, ome=True, metadata={"axes": "YX", **sizes})
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.data, data)
    assert (volume.voxel_size, volume.source) == (VoxelSize(40, 5, 4), "OME-XML")


def test_each_section_that_is_written_is_a_tiff_of_its_own(tmp_path: Path) -> None:
    data = make_volume("uint16", (11, 12, 10))
    write_volume(tmp_path / "sections", data, VoxelSize(40, 5, 4), translation_nm=(100, 0, 0))
    assert sorted(os.listdir(tmp_path / "sections")) == [f"section_{z:02}.tif" for z in range(11)]
    for z, section in enumerate(data):
        path = tmp_path / "sections" / f"section_{z:02}.tif"
        np.testing.assert_array_equal(tifffile.imread(path), section)
        assert read_volume(path).translation_nm == (100 + 40 * z, 0, 0)


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
