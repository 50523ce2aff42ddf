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
    assert read_volume(tmp_path, pattern="*").data[:, 0, 0].tolist() == [0, 1, 2, 3]


def write_named(folder: Path, names: list[str]) -> None:
    """One section a name, all of the grey value of its place."""
    for z, name in enumerate(names):
        tifffile.imwrite(folder / name, np.full((6, 7), z, np.uint8))


@pytest.mark.parametrize(
    "names",
    [
        [f"z{z * 0.05:g}.tif" for z in range(12)],
        [f"z{z * 0.25:g}.tif" for z in range(50)],
        [f"z_{z * 2.5:.1f}um.tif" for z in range(12)],
        [f"z{z}.tif" for z in range(-5, 5)],
        [f"z{z / 10:+.1f}.tif" for z in range(-5, 5)],
        [f"depth {z * 0.5:g} nm.tif" for z in range(-3, 9)],
        [f"stack-{z:03}.tif" for z in range(12)],
        [f"stack-{z}.tif" for z in range(12)],
        [f"scan.{z}.tif" for z in range(1, 13)],
        [f"1.{z}.tif" for z in range(7, 13)],
        [f"w{z // 5}_s{z}.tif" for z in range(12)],
        [f"s{z:03}_t{100 * z + z % 3}.tif" for z in range(12)],
        ["s0.95.tif", "s1.00.tif", "s1.05.tif", "s1.10.tif"],
    ],
    ids=lambda names: names[1],
)
def test_numbers_in_names_are_numbers(tmp_path: Path, names: list[str]) -> None:
    write_named(tmp_path, names)
    assert read_volume(tmp_path).data[:, 0, 0].tolist() == list(range(len(names)))


def test_numbers_that_may_be_read_in_two_ways_are_refused(tmp_path: Path) -> None:
    write_named(tmp_path, ["s0.5.tif", "s0.75.tif", "s0.8.tif", "s0.97.tif"])
    with pytest.raises(InputError, match="may be read in two ways"):
        read_volume(tmp_path)


SERIES = [f"s_{z:03}.tif" for z in range(12)]


@pytest.mark.parametrize(
    "outside",
    [
        ["s_003 - Copy.tif"],
        ["s_003 (1).tif"],
        ["s_003 2.tif"],
        ["Copy of s_003.tif", "mean.tif"],
        ["AVG_s.tif"],
        ["MAX_s_000.tif"],
        ["s_003_mask.tif", "s_007_mask.tif"],
        ["s_00003.tiff"],
        ["overview.tif"],
    ],
    ids=str,
)
def test_files_outside_the_series_are_named(tmp_path: Path, outside: list[str]) -> None:
    write_named(tmp_path, SERIES)
    write_named(tmp_path, outside)
    with pytest.raises(InputError) as told:
        read_volume(tmp_path)
    assert all(name in str(told.value) for name in outside) and "--pattern" in str(told.value)
    chosen = read_volume(tmp_path, pattern="S_???.tif").data
    assert chosen[:, 0, 0].tolist() == list(range(12))


@pytest.mark.parametrize(
    ("names", "pattern"),
    [
        ([f"{c}_{z:03}.tif" for c in "ab" for z in range(12)], "a_*.tif"),
        ([f"s{z:02}_c{c}.tif" for c in range(2) for z in range(12)], "s*_c0.tif"),
        ([f"ch{c}_z{z}.tif" for c in range(2) for z in range(12)], "ch0_*.tif"),
        ([f"tile_x{x}_y0_z{z}.tif" for x in range(2) for z in range(12)], "tile_x0_y0_z*.tif"),
        ([f"{name}{z}.tif" for name in ("DAPI", "GFP", "EM") for z in range(12)], "DAPI*"),
    ],
    ids=str,
)
def test_several_series_are_refused_and_a_pattern_chooses(tmp_path: Path, names: list[str], pattern: str) -> None:
    write_named(tmp_path, names)
    with pytest.raises(InputError, match="--pattern"):
        read_volume(tmp_path)
    assert read_volume(tmp_path, pattern=pattern).data[:, 0, 0].tolist() == list(range(12))


def test_a_pattern_that_fits_nothing(tmp_path: Path) -> None:
    write_named(tmp_path, SERIES)
    with pytest.raises(InputError, match=r"no image that fits --pattern 'x\*'"):
        read_volume(tmp_path, pattern="x*")
    with pytest.raises(InputError, match="is a file; --pattern"):
        read_volume(tmp_path / SERIES[0], pattern="x*")


def test_equal_numbers_are_named(tmp_path: Path) -> None:
    write_named(tmp_path, ["s1.tif", "s2.tif", "s02.tif", "s3.tif"])
    with pytest.raises(InputError, match=r"s0?2\.tif and s0?2\.tif, which have the same number"):
        read_volume(tmp_path)


@pytest.mark.parametrize("reduced", [True, False])
def test_thumbnails_on_second_pages_are_left_out_and_said(
    tmp_path: Path, reduced: bool, caplog: pytest.LogCaptureFixture
) -> None:
    data = make_volume("uint8", (5, 40, 36))
    for z, section in enumerate(data):
        with tifffile.TiffWriter(tmp_path / f"s{z}.tif") as writer:
            writer.write(section, photometric="minisblack")
            writer.write(section[::4, ::4], photometric="minisblack", subfiletype=int(reduced))
            writer.write(np.zeros((9, 30, 3), np.uint8), photometric="rgb", subfiletype=int(reduced))
    np.testing.assert_array_equal(read_volume(tmp_path).data, data)
    assert "5 of 5 sections hold a smaller image" in caplog.text


def test_two_full_pages_are_no_section(tmp_path: Path) -> None:
    for z in range(5):
        with tifffile.TiffWriter(tmp_path / f"s{z}.tif") as writer:
            writer.write(np.zeros((9, 8), np.uint8))
            writer.write(np.zeros((9, 8), np.uint16))
    with pytest.raises(InputError, match=r"s0\.tif holds 2 images of equal size"):
        read_volume(tmp_path)


def test_sections_of_which_some_are_min_is_white(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = make_volume("uint16", (6, 9, 8))
    for z, section in enumerate(data):
        turned = z % 3 == 0
        stored, photometric = (65535 - section, "miniswhite") if turned else (section, "minisblack")
        tifffile.imwrite(tmp_path / f"{z}.tif", stored, photometric=photometric)
    np.testing.assert_array_equal(read_volume(tmp_path).data, data)
    assert "2 of 6 sections have small numbers white" in caplog.text


@pytest.mark.parametrize("kind", ["palette.png", "rgb.png", "rgba.png", "palette.tif", "rgb.tif", "planes.tif"])
def test_grey_palettes_and_equal_colours_are_greys(tmp_path: Path, kind: str) -> None:
    image = pytest.importorskip("PIL.Image")
    data = make_volume("uint8", (5, 9, 8))
    for z, section in enumerate(data):
        path = tmp_path / f"s{z}{kind[kind.index('.') :]}"
        if kind == "palette.png":
            picture = image.fromarray(255 - section).convert("P")
            picture.putpalette([k for k in range(255, -1, -1) for _ in range(3)])
            picture.save(path)
        elif kind.endswith("png"):
            image.fromarray(section).convert(kind[:-4].upper()).save(path)
        elif kind == "palette.tif":
            grey = (np.arange(256)[::-1] * 257).astype(np.uint16)
            tifffile.imwrite(path, 255 - section, photometric="palette", colormap=np.stack([grey] * 3))
        elif kind == "rgb.tif":
            tifffile.imwrite(path, np.stack([section] * 3, -1), photometric="rgb")
        else:
            tifffile.imwrite(path, np.stack([section] * 3), photometric="rgb", planarconfig="separate")
    read = read_volume(tmp_path).data
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, data)


@pytest.mark.parametrize("suffix", [".bmp", ".jp2"])
def test_other_images_are_sections_too(tmp_path: Path, suffix: str) -> None:
    image = pytest.importorskip("PIL.Image")
    data = make_volume("uint8", (5, 40, 36))
    for z, section in enumerate(data):
        image.fromarray(section).save(tmp_path / f"s{z}{suffix}")  # JPEG 2000 is lossless unless it is told otherwise
    np.testing.assert_array_equal(read_volume(tmp_path).data, data)


def test_hidden_files_never_matter(tmp_path: Path) -> None:
    data = make_volume("uint8", (5, 9, 8))
    write_volume(tmp_path / "sections", data, VoxelSize(40, 5, 4))
    for name in (".DS_Store", "._section_0.tif", ".section_9.png", "Thumbs.db"):
        (tmp_path / "sections" / name).write_bytes(b"none of it")
    np.testing.assert_array_equal(read_volume(tmp_path / "sections").data, data)
    (tmp_path / "sections" / "Thumbs.db").unlink()
    write_volume(tmp_path / "sections", data[:4], VoxelSize(40, 5, 4), overwrite=True)
    assert len(read_volume(tmp_path / "sections").data) == 4


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
        ["s1", "s17", "s20", "s90"],  # times, or positions
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
        (np.arange(360).reshape(12, 10, 3).astype(np.uint16), r"s7\.tif is RGB or RGBA of shape \(12, 10, 3\)"),
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
    iio.imwrite(tmp_path / "a.png", np.arange(126, dtype=np.uint8).reshape(6, 7, 3))
    with pytest.raises(InputError, match=r"a\.png is RGB or RGBA of shape \(6, 7, 3\)"):
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
