"""Axes are what the file says, in every format: honoured, or refused with the option that chooses."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from emformer_hub.errors import InputError
from emformer_hub.geometry import VoxelSize
from emformer_hub.volumes import open_volume, read_volume
from emformer_hub.volumes.axes import Choice, lay_out

from .conftest import make_volume

h5py = pytest.importorskip("h5py")
zarr = pytest.importorskip("zarr")

STACK = make_volume("uint8", (5, 8, 11))
LENGTHS = {"z": 40.0, "y": 5.0, "x": 4.0}
ORDERS = ["".join(order) for order in itertools.permutations("zyx")]
PADDED = ["zyxc", "zcyx", "czyx", "tzcyx", "xyzct", "zyxtc", "cxyz"]


def arranged(axes: str, stack: np.ndarray = STACK) -> np.ndarray:
    """The stack with its axes in another order; those that are not z, y, x have length 1."""
    turned = stack.transpose(["zyx".index(axis) for axis in axes if axis in "zyx"])
    return np.ascontiguousarray(np.expand_dims(turned, [place for place, axis in enumerate(axes) if axis not in "zyx"]))


def tiff(path: Path, data: np.ndarray, axes: str) -> Path:
    tifffile.imwrite(path, data, metadata={"axes": axes.upper()}, photometric="minisblack")
    return path


def ome_tiff(path: Path, data: np.ndarray, axes: str) -> Path:
    tifffile.imwrite(path, data, ome=True, metadata={"axes": axes.upper()}, photometric="minisblack")
    return path


def axistags(path: Path, data: np.ndarray, axes: str) -> Path:
    with h5py.File(path, "w") as file:
        dataset = file.create_dataset("exported_data", data=data)
        dataset.attrs["axistags"] = json.dumps({"axes": [{"key": axis, "typeFlags": 2} for axis in axes]})
        dataset.attrs["resolution"] = [LENGTHS.get(axis, 1) for axis in axes]
    return path


def labels(path: Path, data: np.ndarray, axes: str) -> Path:
    with h5py.File(path, "w") as file:
        dataset = file.create_dataset("raw", data=data)
        for dimension, axis in zip(dataset.dims, axes, strict=True):
            dimension.label = axis.upper()
        dataset.attrs["resolution"] = [LENGTHS[axis] for axis in axes if axis in LENGTHS]
    return path


def dimension_names(path: Path, data: np.ndarray, axes: str) -> Path:
    array = zarr.create_array(path, shape=data.shape, dtype=data.dtype, dimension_names=list(axes))
    array[...] = data
    array.attrs["voxel_size"] = [LENGTHS[axis] for axis in axes if axis in LENGTHS]
    return path


def array_dimensions(path: Path, data: np.ndarray, axes: str) -> Path:
    array = zarr.create_array(path, shape=data.shape, dtype=data.dtype, zarr_format=2)
    array[...] = data
    array.attrs["_ARRAY_DIMENSIONS"] = [axis.upper() for axis in axes]
    array.attrs["resolution"] = [LENGTHS.get(axis, 1) for axis in axes]
    return path


def axis_names(path: Path, data: np.ndarray, axes: str) -> Path:
    array = zarr.create_array(path, shape=data.shape, dtype=data.dtype)
    array[...] = data
    array.attrs["axis_names"] = [axis if axis in "zyx" else f"{axis}^" for axis in axes]
    array.attrs.update(resolution=[LENGTHS[axis] / 1000 for axis in axes if axis in LENGTHS], units="um")
    return path


def ome_zarr(path: Path, data: np.ndarray, axes: str) -> Path:
    group = zarr.create_group(path)
    group.create_array("0", shape=data.shape, dtype=data.dtype)[...] = data
    scale = {"type": "scale", "scale": [LENGTHS.get(axis, 1) for axis in axes]}
    named = [{"name": axis} | ({"unit": "nanometer"} if axis in LENGTHS else {}) for axis in axes]
    image = {"axes": named, "datasets": [{"path": "0", "coordinateTransformations": [scale]}]}
    group.attrs["ome"] = {"version": "0.5", "multiscales": [image]}
    return path


def n5(path: Path, data: np.ndarray, axes: str, **more: Any) -> Path:
    tensorstore = pytest.importorskip("tensorstore")
    spec: dict[str, Any] = {"driver": "n5", "kvstore": f"file://{path}/", "create": True}
    spec["metadata"] = {"dimensions": data.shape[::-1], "blockSize": [4] * data.ndim, "dataType": str(data.dtype)}
    tensorstore.open(spec).result().T[...] = data
    file = path / "attributes.json"
    resolution = {"resolution": [LENGTHS[axis] for axis in axes[::-1] if axis in LENGTHS], "units": ["nm"] * 3}
    stated = more or {"axes": [axis.upper() for axis in axes[::-1]]} | resolution
    file.write_text(json.dumps({**json.loads(file.read_text()), **stated}))
    return path


WRITERS = [tiff, ome_tiff, axistags, labels, dimension_names, array_dimensions, axis_names, ome_zarr, n5]
SIZES = [axistags, labels, dimension_names, array_dimensions, axis_names, ome_zarr, n5]


def path_for(writer: Any, folder: Path) -> Path:
    return folder / ("a.h5" if writer in (axistags, labels) else "a.ome.tif" if writer is ome_tiff else "a")


@pytest.mark.parametrize("axes", [*ORDERS, *PADDED])
@pytest.mark.parametrize("writer", WRITERS, ids=lambda writer: writer.__name__)
def test_axes_that_a_file_states_are_honoured(tmp_path: Path, writer: Any, axes: str) -> None:
    if writer is ome_tiff and not axes.endswith("yx"):
        pytest.skip("OME-XML knows planes of y and x only")
    path = writer(path_for(writer, tmp_path), arranged(axes), axes)
    opened, read = open_volume(path), read_volume(path)
    np.testing.assert_array_equal(read.data, STACK)
    np.testing.assert_array_equal(opened.data[1:4, 2:7:2, -1], STACK[1:4, 2:7:2, -1])
    if writer in SIZES:
        assert read.voxel_size == VoxelSize(40, 5, 4)


@pytest.mark.parametrize("axes", ORDERS)
def test_mrc_says_which_axis_columns_rows_and_sections_lie_along(tmp_path: Path, axes: str) -> None:
    mrcfile = pytest.importorskip("mrcfile")
    with mrcfile.new(tmp_path / "a.mrc", arranged(axes).astype(np.int16)) as mrc:
        mrc.voxel_size = (40, 50, 400)
        # cell lengths are those of x, y and z, and intervals too, whichever way round they are stored
        mrc.header.mx, mrc.header.my, mrc.header.mz = STACK.shape[::-1]
        mrc.header.cella = tuple(n * size for n, size in zip(STACK.shape[::-1], (40, 50, 400), strict=True))
        mrc.header.maps, mrc.header.mapr, mrc.header.mapc = (1 + "xyz".index(axis) for axis in axes)
    read = read_volume(tmp_path / "a.mrc")
    np.testing.assert_array_equal(read.data, STACK)
    assert read.voxel_size == VoxelSize(40, 5, 4)


@pytest.mark.parametrize("axes", ORDERS)
def test_what_no_file_states_is_chosen(tmp_path: Path, axes: str) -> None:
    data = arranged(axes)
    tifffile.imwrite(tmp_path / "plain.tif", data, photometric="minisblack")
    tifffile.imwrite(tmp_path / "packed.tif", data, photometric="minisblack", compression="zlib")
    zarr.create_array(tmp_path / "a.zarr", data=data)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["raw"] = data[None]
    for name in ("plain.tif", "packed.tif", "a.zarr", "a.h5"):
        np.testing.assert_array_equal(read_volume(tmp_path / name, axes=axes).data, STACK)


@pytest.mark.parametrize("axes", ["czyx", "zcyx", "zyxc", "tzyx", "xyzt"])
@pytest.mark.parametrize("writer", WRITERS, ids=lambda writer: writer.__name__)
def test_one_of_several_channels_or_times_is_chosen(tmp_path: Path, writer: Any, axes: str) -> None:
    if writer is ome_tiff and not axes.endswith("yx"):
        pytest.skip("OME-XML knows planes of y and x only")
    several = np.concatenate([arranged(axes), arranged(axes, 255 - STACK)], axis=[a in "ct" for a in axes].index(True))
    path = writer(path_for(writer, tmp_path), several, axes)
    word = "channel" if "c" in axes else "time"
    with pytest.raises(InputError, match=rf"has 2 .*Choose one with --{word} N, of 0, 1"):
        open_volume(path)
    np.testing.assert_array_equal(read_volume(path, **{word: 0}).data, STACK)
    np.testing.assert_array_equal(read_volume(path, **{word: 1}).data, 255 - STACK)
    for wrong in (2, -1):
        with pytest.raises(InputError, match=f"--{word} {wrong} is none of them"):
            open_volume(path, **{word: wrong})


@pytest.mark.parametrize("axis", ["C", "T"])
@pytest.mark.parametrize("options", [{"imagej": True}, {"ome": True}, {}], ids=["imagej", "ome", "shaped"])
def test_channels_and_times_are_not_sections(tmp_path: Path, axis: str, options: dict[str, Any]) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, STACK, metadata={"axes": f"{axis}YX"}, photometric="minisblack", **options)
    with pytest.raises(InputError, match=r"no sections .*say so with --axes zyx"):
        read_volume(path)
    np.testing.assert_array_equal(read_volume(path, axes="zyx").data, STACK)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["i", "j", "k"], r"axes i, j, k and shape .* Say which axis is which: --axes zyx"),
        (["z", "y", "lat"], "axes z, y, lat"),
        (["z", "z", "x"], "axes z, z, x"),
        (["x", "y"], "states 2 axes, x, y, and has shape"),
    ],
    ids=str,
)
def test_names_that_are_no_axes_are_refused(names: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        lay_out((4, 5, 6), names, "a")


@pytest.mark.parametrize("names", [["Z", "Y", "X"], ["z", None, "x"], ["dim_0", "dim_1", "dim_2"], None, ["", "", ""]])
def test_names_of_any_case_and_none(names: list[str | None] | None) -> None:
    if names == ["z", None, "x"]:
        with pytest.raises(InputError, match="--axes"):
            lay_out((4, 5, 6), names, "a")
    else:
        assert lay_out((4, 5, 6), names, "a").order == (0, 1, 2)


@pytest.mark.parametrize("shape", [(1, 4, 5, 6), (4, 5, 6, 1), (4, 1, 5, 6), (1, 4, 5, 6, 1), (1, 1, 4, 5, 6)])
def test_axes_of_length_1_are_dropped_wherever_they_stand(shape: tuple[int, ...]) -> None:
    assert lay_out(shape, None, "a").shape_zyx == (4, 5, 6)


@pytest.mark.parametrize("axes", ["zy", "zyxx", "abc", "zyxq", ""])
def test_axes_that_are_not_known(axes: str) -> None:
    if axes:
        with pytest.raises(InputError, match="expected z, y and x once each"):
            Choice(axes=axes)
    else:
        Choice(axes=axes)


def test_a_choice_that_there_is_not(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", STACK, metadata={"axes": "ZYX"}, photometric="minisblack")
    with pytest.raises(InputError, match=r"has no channels .*leave out --channel"):
        open_volume(tmp_path / "a.tif", channel=1)
    with pytest.raises(InputError, match="expected as many axes as --axes czyx names"):
        open_volume(tmp_path / "a.tif", axes="czyx")


def test_series_of_a_tiff_are_listed_and_chosen(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=True) as writer:
        writer.write(STACK, metadata={"axes": "ZYX", "Name": "cortex"}, photometric="minisblack")
        writer.write(255 - STACK, metadata={"axes": "ZYX", "Name": "tilted"}, photometric="minisblack")
    with pytest.raises(InputError, match=r"holds 2 images: 0 \(cortex, .*1 \(tilted, .*--series 0"):
        open_volume(tmp_path / "a.ome.tif")
    for series in ("1", "tilted"):
        np.testing.assert_array_equal(read_volume(tmp_path / "a.ome.tif", series=series).data, 255 - STACK)
    with pytest.raises(InputError, match="has no image 'other'"):
        open_volume(tmp_path / "a.ome.tif", series="other")


def test_images_of_a_zarr_are_listed_and_chosen(tmp_path: Path) -> None:
    group = zarr.create_group(tmp_path / "a.zarr", attributes={"bioformats2raw.layout": 3})
    for name, stack in (("0", STACK), ("1", 255 - STACK)):
        ome_zarr(tmp_path / "a.zarr" / name, stack, "zyx")
    assert len(group) == 2
    with pytest.raises(InputError, match=r"holds 2 images: 0, 1\. Choose one, as in --series 0"):
        open_volume(tmp_path / "a.zarr")
    chosen = read_volume(tmp_path / "a.zarr", series="1")
    np.testing.assert_array_equal(chosen.data, 255 - STACK)
    assert chosen.voxel_size == VoxelSize(40, 5, 4)


def test_datasets_of_an_hdf5_are_chosen_by_series_too(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["raw"], file["other"] = STACK, 255 - STACK
    np.testing.assert_array_equal(read_volume(tmp_path / "a.h5", series="other").data, 255 - STACK)


@pytest.mark.parametrize("axes", [["z", "y", "x"], ["x", "y", "z"], ["X", "Y", "Z"]], ids=str)
def test_transform_of_n5_gives_each_axis_its_own_length(tmp_path: Path, axes: list[str]) -> None:
    lengths = [LENGTHS[axis.lower()] for axis in axes]
    transform = {"axes": axes, "scale": lengths, "translate": [0, 0, 0], "units": ["nm"] * 3}
    read = read_volume(n5(tmp_path / "a.n5", STACK, "zyx", transform=transform))
    np.testing.assert_array_equal(read.data, STACK)
    assert (read.voxel_size, read.source) == (VoxelSize(40, 5, 4), "transform")


def test_transform_of_n5_that_may_mean_two_arrays(tmp_path: Path) -> None:
    transform: dict[str, Any] = {"axes": ["y", "z", "x"], "scale": [5, 40, 4], "units": ["nm"] * 3}
    path = n5(tmp_path / "a.n5", arranged("yzx"), "zyx", transform=transform)
    with pytest.raises(InputError, match="not whether the first or the last of them is the fastest"):
        read_volume(path)
    np.testing.assert_array_equal(read_volume(path, axes="yzx").data, STACK)
    path = n5(tmp_path / "b.n5", arranged("yzx"), "zyx", transform={**transform, "ordering": "C"})
    np.testing.assert_array_equal(read_volume(path).data, STACK)
