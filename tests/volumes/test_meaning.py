"""What voxels mean: grey values that are turned, looked up or repeated; uint16 in int16; labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from emformer_hub.errors import InputError
from emformer_hub.volumes import open_volume, read_volume

from .conftest import make_volume

h5py = pytest.importorskip("h5py")
zarr = pytest.importorskip("zarr")


@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}, {"byteorder": ">"}, {"imagej": True}], ids=str)
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_min_is_white_is_turned_and_said(
    tmp_path: Path, dtype: str, options: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    data = make_volume(dtype)
    white = np.iinfo(dtype).max
    tifffile.imwrite(
        tmp_path / "a.tif", white - data, photometric="miniswhite", **{"metadata": {"axes": "ZYX"}} | options
    )
    read = read_volume(tmp_path / "a.tif").data
    assert read.dtype == dtype
    np.testing.assert_array_equal(read, data)
    np.testing.assert_array_equal(open_volume(tmp_path / "a.tif").data[1:3, ::2], data[1:3, ::2])
    assert "MinIsWhite" in caplog.text and "turned" in caplog.text


@pytest.mark.parametrize("dtype", ["int16", "float32"])
def test_min_is_white_of_numbers_without_a_white_is_refused(tmp_path: Path, dtype: str) -> None:
    tifffile.imwrite(tmp_path / "a.tif", make_volume(dtype), photometric="miniswhite")
    with pytest.raises(InputError, match=r"MinIsWhite.*Invert LUT"):
        read_volume(tmp_path / "a.tif")


@pytest.mark.parametrize("step", [257, 256])
def test_grey_palettes_of_tiff_mean_their_colours(tmp_path: Path, step: int) -> None:
    data = make_volume("uint8")
    grey = (np.arange(256)[::-1] * step).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", data, photometric="palette", colormap=np.stack([grey] * 3))
    read = read_volume(tmp_path / "a.tif").data
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, 255 - data)


def test_colour_palettes_are_refused(tmp_path: Path) -> None:
    colours = np.stack([np.arange(256), np.zeros(256), np.arange(256)[::-1]]).astype(np.uint16) * 257
    tifffile.imwrite(tmp_path / "a.tif", make_volume("uint8"), photometric="palette", colormap=colours)
    with pytest.raises(InputError, match=r"a\.tif has a palette of colours"):
        read_volume(tmp_path / "a.tif")


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_equal_red_green_and_blue_are_one(
    tmp_path: Path, dtype: str, planar: str, caplog: pytest.LogCaptureFixture
) -> None:
    data = make_volume(dtype)
    axis = -1 if planar == "contig" else 1
    tifffile.imwrite(tmp_path / "a.tif", np.stack([data] * 3, axis), photometric="rgb", planarconfig=planar)
    np.testing.assert_array_equal(read_volume(tmp_path / "a.tif").data, data)
    assert "equal channels" in caplog.text


def test_opaque_alpha_does_not_matter_and_transparency_does(tmp_path: Path) -> None:
    data = make_volume("uint8")
    opaque = np.stack([data, data, data, np.full_like(data, 255)], -1)
    tifffile.imwrite(tmp_path / "a.tif", opaque, photometric="rgb", extrasamples=["unassalpha"])
    np.testing.assert_array_equal(read_volume(tmp_path / "a.tif").data, data)
    opaque[2, 3, 4, 3] = 0
    tifffile.imwrite(tmp_path / "b.tif", opaque, photometric="rgb", extrasamples=["unassalpha"])
    with pytest.raises(InputError, match=r"b\.tif is RGB or RGBA"):
        read_volume(tmp_path / "b.tif")


def test_one_voxel_of_colour_is_colour_and_a_channel_can_be_chosen(tmp_path: Path) -> None:
    data = make_volume("uint8")
    colours = np.stack([data] * 3, -1)
    colours[4, 5, 6, 1] ^= 1
    tifffile.imwrite(tmp_path / "a.tif", colours, photometric="rgb")
    with pytest.raises(InputError, match=r"RGB .*--channel N"):
        read_volume(tmp_path / "a.tif")
    np.testing.assert_array_equal(read_volume(tmp_path / "a.tif", channel=1).data, colours[..., 1])


@pytest.mark.parametrize("dataset", ["t00000/s00/0/cells", "t00012/s03/1/cells"])
def test_bigdataviewer_keeps_uint16_in_int16(tmp_path: Path, dataset: str) -> None:
    data = make_volume("uint16")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset(dataset, data=data.view("i2"), chunks=(2, 8, 8))
        file["s00/resolutions"] = [[1.0, 1, 1]]
    read = read_volume(f"{tmp_path / 'a.h5'}:/{dataset}").data
    assert read.dtype == np.uint16
    np.testing.assert_array_equal(read, data)


def test_int16_elsewhere_stays_int16(tmp_path: Path) -> None:
    data = make_volume("int16")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["cells"] = data
    np.testing.assert_array_equal(read_volume(tmp_path / "a.h5").data, data)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_declared_label_images_of_ome_zarr_are_refused(tmp_path: Path, version: str) -> None:
    group = zarr.create_group(tmp_path / "a.zarr", zarr_format=2 if version == "0.4" else 3)
    group.create_array("0", data=make_volume("uint16"))
    scale = {"type": "scale", "scale": [40, 4, 4]}
    axes = [{"name": axis, "type": "space", "unit": "nanometer"} for axis in "zyx"]
    images = [{"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": [scale]}]}]
    described: dict[str, Any] = {"multiscales": images, "image-label": {"version": version}}
    group.attrs.update(described if version == "0.4" else {"ome": described | {"version": "0.5"}})
    with pytest.raises(InputError, match="declared to be a segmentation"):
        read_volume(tmp_path / "a.zarr")


def test_precomputed_segmentations_are_refused(tmp_path: Path) -> None:
    scale = {"key": "a", "size": [14, 20, 6], "resolution": [4, 4, 40], "encoding": "raw", "chunk_sizes": [[8, 8, 8]]}
    info = {"type": "segmentation", "data_type": "uint16", "num_channels": 1, "scales": [scale]}
    (tmp_path / "info").write_text(json.dumps(info))
    with pytest.raises(InputError, match="declared to be a segmentation"):
        read_volume(tmp_path)


def test_an_array_that_is_annotated_is_refused(tmp_path: Path) -> None:
    array = zarr.create_array(tmp_path / "a.zarr", data=make_volume("uint8"))
    array.attrs["cellmap"] = {"annotation": {"class_name": "mito"}}
    with pytest.raises(InputError, match="declared to be a segmentation"):
        read_volume(tmp_path / "a.zarr")
