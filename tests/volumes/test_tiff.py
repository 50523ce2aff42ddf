"""TIFF files of other programs, and what other programs see in ours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

from emformer_hub.errors import InputError
from emformer_hub.geometry import VoxelSize
from emformer_hub.volumes import create_volume, read_volume, write_volume

from .conftest import ANISOTROPIC, make_volume

ZYX = {"metadata": {"axes": "ZYX"}}


def ome_sizes(z: float, y: float, x: float, unit: str | None) -> dict[str, object]:
    sizes: dict[str, object] = {"axes": "ZYX", "PhysicalSizeZ": z, "PhysicalSizeY": y, "PhysicalSizeX": x}
    return sizes | ({f"PhysicalSize{axis}Unit": unit for axis in "ZYX"} if unit else {})


@pytest.mark.parametrize(
    ("unit", "per_nm"), [("nm", 1), ("µm", 1e-3), (None, 1e-3), ("mm", 1e-6), ("Å", 10), ("cm", 1e-7), ("pm", 1e3)]
)
def test_ome_units_become_nanometres(tmp_path: Path, volume: np.ndarray, unit: str | None, per_nm: float) -> None:
    path = tmp_path / "a.ome.tif"
    metadata = ome_sizes(40 * per_nm, 4.886 * per_nm, 4 * per_nm, unit)
    tifffile.imwrite(path, volume, ome=True, metadata=metadata)
    read = read_volume(path)
    assert read.voxel_size is not None
    np.testing.assert_allclose(read.voxel_size.zyx, (40, 4.886, 4), rtol=1e-12)
    assert read.source == "OME-XML"


@pytest.mark.parametrize(
    "metadata",
    [
        {"axes": "ZYX"},
        {"axes": "ZYX", "PhysicalSizeX": 0.004, "PhysicalSizeY": 0.004},  # a camera knows its pixel, not the section
        ome_sizes(10, 1, 1, "pixel"),
        ome_sizes(0, 4, 4, "nm"),
    ],
)
def test_incomplete_ome_sizes_are_not_guessed(tmp_path: Path, volume: np.ndarray, metadata: dict[str, object]) -> None:
    tifffile.imwrite(tmp_path / "a.ome.tif", volume, ome=True, metadata=metadata)
    read = read_volume(tmp_path / "a.ome.tif")
    assert (read.voxel_size, read.source) == (None, "")


@pytest.mark.parametrize(
    ("unit", "per_nm"), [("nm", 1), ("micron", 1e-3), ("um", 1e-3), ("\\u00B5m", 1e-3), ("microns", 1e-3), ("mm", 1e-6)]
)
def test_imagej_calibration_becomes_nanometres(tmp_path: Path, volume: np.ndarray, unit: str, per_nm: float) -> None:
    tifffile.imwrite(
        tmp_path / "a.tif",
        volume,
        imagej=True,
        resolution=(1 / (4 * per_nm), 1 / (5 * per_nm)),  # ImageJ orders x, y
        metadata={"axes": "ZYX", "spacing": 40 * per_nm, "unit": unit},
    )
    read = read_volume(tmp_path / "a.tif")
    np.testing.assert_array_equal(read.data, volume)
    assert read.voxel_size is not None
    np.testing.assert_allclose(read.voxel_size.zyx, (40, 5, 4), rtol=1e-6)
    assert read.source == "ImageJ metadata"


@pytest.mark.parametrize(
    ("resolution", "metadata"),
    [
        ((250, 250), {"unit": "um"}),
        ((250, 250), {"spacing": 0.04, "unit": "pixel"}),
        ((250, 250), {"spacing": 0.04}),
        (None, {"spacing": 0.04, "unit": "um"}),
    ],
)
def test_incomplete_imagej_calibration_is_not_guessed(
    tmp_path: Path, volume: np.ndarray, resolution: tuple[float, float] | None, metadata: dict[str, object]
) -> None:
    tifffile.imwrite(
        tmp_path / "a.tif", volume, imagej=True, resolution=resolution, metadata={"axes": "ZYX"} | metadata
    )
    assert read_volume(tmp_path / "a.tif").voxel_size is None


def test_output_is_an_ome_tiff_and_an_imagej_stack(tmp_path: Path, volume: np.ndarray) -> None:
    path = tmp_path / "out.tif"
    write_volume(path, volume, ANISOTROPIC)
    with tifffile.TiffFile(path) as tif:
        assert tif.is_ome and tif.is_imagej and not tif.is_bigtiff
        assert (tif.series[0].axes, tif.series[0].shape) == ("ZYX", volume.shape)
        imagej, tags = tif.imagej_metadata, tif.pages.first.tags
        # ImageJ finds plane n by itself: n * plane size behind the first offset of the file
        assert tif.series[0].dataoffset == tif.pages.first.dataoffsets[0]
    assert imagej is not None
    assert {key: imagej[key] for key in ("images", "slices", "spacing", "unit")} == {
        "images": 6,
        "slices": 6,
        "spacing": 40.0,
        "unit": "nm",
    }
    for axis, length in (("X", ANISOTROPIC.x), ("Y", ANISOTROPIC.y)):
        pixels, nanometres = tags.valueof(f"{axis}Resolution")
        assert nanometres / pixels == pytest.approx(length, rel=1e-9)
    assert len([tag for tag in tags if tag.code == 270]) == 2


def test_imagej_calibration_is_enough_where_ome_xml_was_stripped(tmp_path: Path, volume: np.ndarray) -> None:
    description = tifffile.imagej_description(volume.shape, axes="ZYX", spacing=40.0, unit="nm")
    tifffile.imwrite(
        tmp_path / "a.tif", volume, description=description, metadata=None, resolution=(0.25, 0.2), resolutionunit=1
    )
    assert read_volume(tmp_path / "a.tif").voxel_size == VoxelSize(40, 5, 4)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"imagej": True, "metadata": {"axes": "ZYX"}},
        {"ome": True, "metadata": {"axes": "ZYX"}},
        {"metadata": None},
        {"compression": "zlib"},
    ],
)
@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_every_layout_gives_the_same_native_voxels(
    tmp_path: Path, dtype: str, options: dict[str, object], byteorder: str
) -> None:
    data = make_volume(dtype)
    tifffile.imwrite(tmp_path / "a.tif", data, byteorder=byteorder, photometric="minisblack", **options)
    read = read_volume(tmp_path / "a.tif").data
    assert read.dtype == data.dtype and read.dtype.isnative
    np.testing.assert_array_equal(read, data)


def test_bigtiff_and_sections_appended_one_by_one(tmp_path: Path, volume: np.ndarray) -> None:
    tifffile.imwrite(tmp_path / "big.tif", volume, bigtiff=True)
    with tifffile.TiffWriter(tmp_path / "appended.tif") as writer:
        for section in volume:
            writer.write(section)
    for name in ("big.tif", "appended.tif"):
        np.testing.assert_array_equal(read_volume(tmp_path / name).data, volume)


def test_imagej_stack_beyond_4_gb_has_one_page_entry(tmp_path: Path, volume: np.ndarray) -> None:
    description = tifffile.imagej_description(volume.shape, axes="ZYX")  # how ImageJ writes what offsets cannot reach
    tifffile.imwrite(tmp_path / "a.tif", volume[:1], description=description, metadata=None)
    with (tmp_path / "a.tif").open("ab") as file:
        file.write(volume[1:].tobytes())
    np.testing.assert_array_equal(read_volume(tmp_path / "a.tif").data, volume)


def test_uncompressed_files_stay_on_disk_and_cannot_be_changed(tmp_path: Path, volume: np.ndarray) -> None:
    write_volume(tmp_path / "out.tif", volume, ANISOTROPIC)
    data = read_volume(tmp_path / "out.tif").data
    assert isinstance(data, np.memmap) and not data.flags.writeable


def test_beyond_4_gb_it_is_a_bigtiff(tmp_path: Path) -> None:
    shape, corner = (5, 30_000, 30_000), np.arange(6, dtype=np.uint8).reshape(1, 2, 3)
    box = (slice(4, 5), slice(29_998, 30_000), slice(29_997, 30_000))
    with create_volume(tmp_path / "a.tif", shape, np.dtype(np.uint8), ANISOTROPIC) as writer:
        writer.write(box, corner)  # the rest stays a hole in the file
    with tifffile.TiffFile(tmp_path / "a.tif") as tif:
        assert tif.is_bigtiff
    read = read_volume(tmp_path / "a.tif")
    assert (read.data.shape, read.voxel_size) == (shape, ANISOTROPIC)
    np.testing.assert_array_equal(read.data[box], corner)


def test_singleton_time_and_channel_are_dropped(tmp_path: Path, volume: np.ndarray) -> None:
    tifffile.imwrite(tmp_path / "a.tif", volume[None, :, None], imagej=True, metadata={"axes": "TZCYX"})
    np.testing.assert_array_equal(read_volume(tmp_path / "a.tif").data, volume)


@pytest.mark.parametrize("fraction", [0.05, 0.5, 0.9, 0.99])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"imagej": True},
        {"ome": True},
        {"metadata": None},
        {"compression": "zlib"},
        {"compression": "zlib", "ome": True},
        {"compression": "zlib", "metadata": None},
        {"bigtiff": True},
    ],
)
def test_a_file_cut_short_is_never_a_shorter_stack(
    tmp_path: Path, volume: np.ndarray, options: dict[str, object], fraction: float
) -> None:
    path = tmp_path / "cut.tif"
    tifffile.imwrite(path, volume, photometric="minisblack", **options)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * fraction)])
    with pytest.raises(InputError, match=r"cut\.tif.*(truncated|cannot be read)"):
        read_volume(path)


def test_pages_written_by_pillow_are_read_and_checked(tmp_path: Path, volume: np.ndarray) -> None:
    image = pytest.importorskip("PIL.Image")
    sections = [image.fromarray(section) for section in volume]
    path = tmp_path / "pillow.tif"
    sections[0].save(path, save_all=True, append_images=sections[1:])
    np.testing.assert_array_equal(read_volume(path).data, volume)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match="truncated"):
        read_volume(path)


def test_compressed_data_that_do_not_decode(tmp_path: Path, volume: np.ndarray) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, volume, compression="zlib")
    with tifffile.TiffFile(path) as tif:
        offset = tif.pages.first.dataoffsets[0]
    content = bytearray(path.read_bytes())
    content[offset : offset + 40] = bytes(40)
    path.write_bytes(content)
    with pytest.raises(InputError, match="cannot be read as TIFF"):
        read_volume(path)


def test_missing_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"missing\.tif does not exist"):
        read_volume(tmp_path / "missing.tif")
    (tmp_path / "notes.txt").write_text("not an image, but long enough for a header")
    with pytest.raises(InputError, match=r"notes\.txt is a description of another file"):
        read_volume(tmp_path / "notes.txt")


def test_no_permission(tmp_path: Path, volume: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    tifffile.imwrite(tmp_path / "a.tif", volume)
    monkeypatch.setattr(tifffile, "TiffFile", refuse)
    with pytest.raises(InputError, match="permission denied"):
        read_volume(tmp_path / "a.tif")


@pytest.mark.parametrize(
    ("shape", "dtype", "options", "message"),
    [
        ((6, 20, 14, 3), "uint8", {"photometric": "rgb"}, "RGB"),
        ((20, 14, 3), "uint8", {"photometric": "rgb"}, "RGB"),
        ((6, 2, 20, 14), "uint8", {"imagej": True, "metadata": {"axes": "ZCYX"}}, "2 channels"),
        ((2, 6, 20, 14), "uint8", {}, r"shape \(2, 6, 20, 14\)"),
        ((6, 20, 14), "int64", {}, "int64"),
        ((6, 20, 14), "complex64", {}, "complex64"),
        ((6, 20, 14), "bool", {}, "bool"),
    ],
)
def test_what_is_not_a_grey_value_stack_is_refused(
    tmp_path: Path, shape: tuple[int, ...], dtype: str, options: dict[str, object], message: str
) -> None:
    data = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", data, **({"photometric": "minisblack"} | options))
    with pytest.raises(InputError, match=rf"a\.tif.*{message}.*expected"):
        read_volume(tmp_path / "a.tif")


def test_pages_of_different_sizes_are_refused(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        for size in (10, 10, 12):
            writer.write(np.zeros((size, 8), np.uint8))
    with pytest.raises(InputError, match=r"3 images: 0 .*\(10, 8\).*\(12, 8\).*--series 0"):
        read_volume(tmp_path / "a.tif")


def test_ome_tiff_without_its_companion_files(tmp_path: Path, volume: np.ndarray) -> None:
    path = tmp_path / "part1.ome.tif"
    xml = (
        '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:1">'
        '<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint16" SizeX="14" SizeY="20" '
        'SizeC="1" SizeZ="12" SizeT="1"><TiffData IFD="0" FirstZ="0" PlaneCount="6"><UUID FileName="part1.ome.tif">'
        'urn:uuid:1</UUID></TiffData><TiffData IFD="0" FirstZ="6" PlaneCount="6"><UUID FileName="part2.ome.tif">'
        "urn:uuid:2</UUID></TiffData></Pixels></Image></OME>"
    )
    tifffile.imwrite(path, volume, description=xml, metadata=None)
    with pytest.raises(InputError, match="several files"):
        read_volume(path)
