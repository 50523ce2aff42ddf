"""Voxel sizes are read with their unit or asked for, whatever program stated them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from emformer_hub.geometry import VoxelSize
from emformer_hub.volumes import read_volume

from .conftest import make_volume

zarr = pytest.importorskip("zarr")

SIZE = VoxelSize(40, 5, 4)


def plain_zarr(path: Path, attributes: dict[str, Any], zarr_format: int = 3) -> Path:
    array = zarr.create_array(path, data=make_volume("uint8"), zarr_format=zarr_format)
    array.attrs.update(attributes)
    return path


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize(
    ("attributes", "source"),
    [
        (
            {"resolution": [40, 5, 4], "offset": [0, 0, 0], "axis_names": ["z", "y", "x"], "units": ["nm"] * 3},
            "resolution",
        ),
        ({"voxel_size": [40, 5, 4], "offset": [400, 50, 40], "units": ["nm", "nm", "nm"]}, "voxel_size"),
        ({"resolution": [40, 5, 4]}, "resolution"),
        ({"voxel_size": [0.04, 0.005, 0.004], "units": "um"}, "voxel_size"),
        ({"resolution": [400, 50, 40], "unit": "angstrom"}, "resolution"),
        ({"pixelResolution": {"dimensions": [40, 5, 4], "unit": "nm"}}, "pixelResolution"),
        ({"pixelResolution": [0.04, 0.005, 0.004], "units": ["um"] * 3}, "pixelResolution"),
        ({"transform": {"axes": ["z", "y", "x"], "scale": [40, 5, 4], "units": ["nm"] * 3}}, "transform"),
        ({"transform": {"axes": ["Z", "Y", "X"], "scale": [40, 5, 4], "units": "nm"}}, "transform"),
    ],
    ids=str,
)
def test_attributes_of_plain_zarr_are_read(
    tmp_path: Path, attributes: dict[str, Any], source: str, zarr_format: int
) -> None:
    read = read_volume(plain_zarr(tmp_path / "a.zarr", attributes, zarr_format))
    assert (read.voxel_size, read.source) == (SIZE, source)


def test_the_offset_is_in_the_unit_of_the_size(tmp_path: Path) -> None:
    attributes = {"voxel_size": [0.04, 0.005, 0.004], "offset": [0.4, 0.05, 0.04], "units": ["um"] * 3}
    assert read_volume(plain_zarr(tmp_path / "a.zarr", attributes)).translation_nm == (400, 50, 40)


@pytest.mark.parametrize(
    ("attributes", "hint"),
    [
        ({}, ""),
        ({"resolution": [5, 4]}, ""),
        ({"pixelResolution": [40, 5, 4]}, "pixelResolution is 40,5,4 (z,y,x) without a unit"),
        ({"resolution": [40, 5, 4], "units": ["nm", "nm", "pixel"]}, ""),
        ({"resolution": [40, 5, 4], "voxel_size": [50, 5, 4]}, "resolution is 40,5,4 nm (z,y,x), and voxel_size is"),
        ({"resolution": "40 5 4"}, ""),
        ({"resolution": [0, 5, 4]}, ""),
        ({"transform": {"axes": ["z", "y", "x"], "scale": [40, 5, 4], "units": ["nm"] * 2}}, "without a unit"),
    ],
    ids=str,
)
def test_anything_else_is_asked_for(tmp_path: Path, attributes: dict[str, Any], hint: str) -> None:
    read = read_volume(plain_zarr(tmp_path / "a.zarr", attributes))
    assert (read.voxel_size, read.source) == (None, "")
    assert hint in read.hint and hint in read.ask("a.zarr") and "--voxel-size" in read.ask("a.zarr")


@pytest.mark.parametrize(
    "transformations", [None, [], [{"type": "translation", "translation": [1, 2, 3]}], [{"type": "identity"}]]
)
def test_an_ome_zarr_without_a_scale_states_none(tmp_path: Path, transformations: list[dict[str, Any]] | None) -> None:
    group = zarr.create_group(tmp_path / "a.zarr")
    group.create_array("0", data=make_volume("uint8"))
    axes = [{"name": axis, "type": "space", "unit": "nanometer"} for axis in "zyx"]
    level: dict[str, Any] = {"path": "0"}
    if transformations is not None:
        level["coordinateTransformations"] = transformations
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": [level]}]}
    read = read_volume(tmp_path / "a.zarr")
    assert (read.voxel_size, read.source, read.hint) == (None, "", "its multiscales have no scale")


FEI = "[Scan]\r\nPixelWidth=4e-9\r\nPixelHeight=5e-9\r\n"
ZEISS = "\r\n".join(["AP_IMAGE_PIXEL_SIZE", "Image Pixel Size = 4.000 nm", ""])


@pytest.mark.parametrize("tag", [34680, 34682])
def test_pixels_of_fei_are_read_and_only_z_is_asked_for(tmp_path: Path, tag: int) -> None:
    data = make_volume("uint8")
    tifffile.imwrite(tmp_path / "a.tif", data, extratags=[(tag, "s", 0, FEI, True)])
    read = read_volume(tmp_path / "a.tif")
    assert read.voxel_size is None and read.lateral_nm == (5, 4)
    assert "pixels of 5,4 nm (y,x; FEI metadata)" in read.ask("a.tif") and "--voxel-size 40" in read.ask("a.tif")


def test_pixels_of_zeiss_are_read(tmp_path: Path) -> None:
    text = "0\r\n" + ZEISS
    tifffile.imwrite(tmp_path / "a.tif", make_volume("uint8"), extratags=[(34118, "s", 0, text, True)])
    read = read_volume(tmp_path / "a.tif")
    assert read.voxel_size is None and read.lateral_nm == (4, 4)


def test_pixels_without_a_section_spacing_are_kept(tmp_path: Path) -> None:
    data = make_volume("uint8")
    sizes = {"PhysicalSizeY": 5, "PhysicalSizeX": 4, "PhysicalSizeYUnit": "nm", "PhysicalSizeXUnit": "nm"}
    tifffile.imwrite(tmp_path / "a.ome.tif", data, ome=True, metadata={"axes": "ZYX", **sizes})
    tifffile.imwrite(
        tmp_path / "b.tif", data, imagej=True, resolution=(250, 200), metadata={"axes": "ZYX", "unit": "um"}
    )
    for name in ("a.ome.tif", "b.tif"):
        read = read_volume(tmp_path / name)
        assert read.voxel_size is None and read.lateral_nm is not None
        np.testing.assert_allclose(read.lateral_nm, (5, 4))


@pytest.mark.parametrize("level", [0, 1])
def test_imaris_states_sides_and_extents(tmp_path: Path, level: int) -> None:
    h5py = pytest.importorskip("h5py")
    data = make_volume("uint8", (6, 20, 14))

    def letters(value: object) -> np.ndarray:
        return np.frombuffer(str(value).encode(), "S1")

    with h5py.File(tmp_path / "a.ims", "w") as file:
        channel = file.create_group(f"DataSet/ResolutionLevel {level}/TimePoint 0/Channel 0")
        channel["Data"] = np.pad(data, ((0, 2), (0, 4), (0, 2)))  # filled up to whole chunks
        for axis, count in zip("ZYX", data.shape, strict=True):
            channel.attrs[f"ImageSize{axis}"] = letters(count)
        info = file.create_group("DataSetInfo/Image")
        for place, length in enumerate((14 * 0.004, 20 * 0.005, 6 * 0.04)):
            info.attrs[f"ExtMin{place}"] = letters(1.5)
            info.attrs[f"ExtMax{place}"] = letters(1.5 + length)
        info.attrs["Unit"] = letters("um")
    read = read_volume(tmp_path / "a.ims")
    np.testing.assert_array_equal(read.data, data)
    assert (read.voxel_size, read.source) == (SIZE, "Imaris extents")
