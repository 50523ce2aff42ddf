"""OME-Zarr of both versions and plain arrays; ours passes the validator of the specification."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emformer_hub.errors import InputError
from emformer_hub.geometry import VoxelSize
from emformer_hub.volumes import boxes, open_volume, read_volume, write_volume
from emformer_hub.volumes.ome_zarr import OMEZarrWriter

from .conftest import ANISOTROPIC, make_volume

zarr = pytest.importorskip("zarr")


def axes(names: str = "zyx", unit: str | None = "nanometer") -> list[dict[str, str]]:
    kinds = {"t": "time", "c": "channel"}
    return [
        {"name": name, "type": kinds.get(name, "space")} | ({"unit": unit} if unit and name not in kinds else {})
        for name in names
    ]


def write_image(path: Path, data: np.ndarray, multiscale: dict[str, Any], version: str = "0.5") -> None:
    attributes: dict[str, Any] = {"multiscales": [multiscale | {"version": version}]}
    if version == "0.5":
        attributes = {"ome": {"version": "0.5"} | attributes}
    group = zarr.open_group(path, mode="w", zarr_format=3 if version == "0.5" else 2, attributes=attributes)
    for name, level in (("full", data), ("half", data[..., ::2, ::2])):
        group.create_array(name, shape=level.shape, dtype=level.dtype, chunks=level.shape)[...] = level


def level(*transformations: dict[str, Any], path: str = "full") -> dict[str, Any]:
    return {"path": path, "coordinateTransformations": list(transformations)}


def scale(*factors: float) -> dict[str, Any]:
    return {"type": "scale", "scale": list(factors)}


def translation(*offsets: float) -> dict[str, Any]:
    return {"type": "translation", "translation": list(offsets)}


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_level_0_of_both_versions(tmp_path: Path, volume: np.ndarray, version: str) -> None:
    path = tmp_path / "a.zarr"
    levels = [level(scale(0.04, 0.005, 0.004)), level(scale(0.04, 0.01, 0.008), path="half")]
    write_image(path, volume, {"axes": axes(unit="micrometer"), "datasets": levels}, version)
    read = read_volume(path)
    np.testing.assert_array_equal(read.data, volume)
    assert (read.voxel_size, read.source) == (VoxelSize(40, 5, 4), "multiscales")


@pytest.mark.parametrize(
    ("unit", "per_nm"), [("nanometer", 1), ("angstrom", 10), ("millimeter", 1e-6), ("meter", 1e-9)]
)
def test_units_become_nanometres(tmp_path: Path, volume: np.ndarray, unit: str, per_nm: float) -> None:
    sizes = scale(40 * per_nm, 5 * per_nm, 4 * per_nm)
    write_image(tmp_path / "a.zarr", volume, {"axes": axes(unit=unit), "datasets": [level(sizes)]})
    assert read_volume(tmp_path / "a.zarr").voxel_size == VoxelSize(40, 5, 4)


@pytest.mark.parametrize("unit", [None, "pixel"])
def test_without_a_unit_nothing_is_guessed(tmp_path: Path, volume: np.ndarray, unit: str | None) -> None:
    write_image(tmp_path / "a.zarr", volume, {"axes": axes(unit=unit), "datasets": [level(scale(40, 5, 4))]})
    read = read_volume(tmp_path / "a.zarr")
    assert (read.voxel_size, read.source, read.translation_nm) == (None, "", None)


def test_transformations_of_level_and_image_are_composed(tmp_path: Path, volume: np.ndarray) -> None:
    multiscale = {
        "axes": axes("tczyx"),
        "datasets": [level(scale(1, 1, 20, 5, 4), translation(0, 0, 1, 2, 3))],
        "coordinateTransformations": [scale(0.1, 1, 2, 2, 2), translation(0, 0, 100, 0, 0)],
    }
    write_image(tmp_path / "a.zarr", volume[None, None], multiscale, "0.4")
    read = read_volume(tmp_path / "a.zarr")
    np.testing.assert_array_equal(read.data, volume)
    assert read.voxel_size == VoxelSize(40, 10, 8)
    assert read.translation_nm == (102, 4, 6)


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("dtype", ["uint8", ">u2", "float32"])
def test_plain_arrays(tmp_path: Path, zarr_format: int, dtype: str) -> None:
    data = make_volume(np.dtype(dtype).newbyteorder("=").name)
    zarr.create_array(tmp_path / "a.zarr", data=data.astype(dtype), zarr_format=zarr_format)
    read = read_volume(tmp_path / "a.zarr")
    assert read.data.dtype == data.dtype and read.data.dtype.isnative
    np.testing.assert_array_equal(read.data, data)
    assert (read.voxel_size, read.source) == (None, "")


def test_an_array_inside_an_image_can_be_named(tmp_path: Path, volume: np.ndarray) -> None:
    write_volume(tmp_path / "a.zarr", volume, ANISOTROPIC)
    np.testing.assert_array_equal(read_volume(tmp_path / "a.zarr" / "0").data, volume)


def test_output_passes_the_validator(tmp_path: Path, volume: np.ndarray) -> None:
    models = pytest.importorskip("ome_zarr_models.v05")
    write_volume(tmp_path / "out.ome.zarr", volume, ANISOTROPIC, translation_nm=(-18, 0, 0))
    image = models.Image.from_zarr(zarr.open_group(tmp_path / "out.ome.zarr", mode="r"))
    multiscale = image.ome_attributes.multiscales[0]
    assert [(axis.name, axis.type, axis.unit) for axis in multiscale.axes] == [(a, "space", "nanometer") for a in "zyx"]
    found_scale, found_translation = multiscale.datasets[0].coordinateTransformations
    assert tuple(found_scale.scale) == ANISOTROPIC.zyx
    assert tuple(found_translation.translation) == (-18, 0, 0)


def test_chunks_fit_small_and_large_volumes(tmp_path: Path) -> None:
    data = np.zeros((70, 5, 300), np.uint8)
    data[64:] = 1
    write_volume(tmp_path / "out.zarr", data, ANISOTROPIC)
    array = zarr.open_array(tmp_path / "out.zarr" / "0", mode="r")
    assert array.chunks == (64, 5, 128) and array.shards == (128, 5, 384)
    assert "zstd" in str(array.compressors).lower()
    np.testing.assert_array_equal(array[:], data)


@pytest.mark.parametrize(
    ("shape", "names", "message"),
    [
        ((2, 6, 20, 14), "czyx", r"2 channels \(axes c, z, y, x and shape \(2, 6, 20, 14\)\)"),
        ((20, 14), "yx", "axes y, x"),
        ((20, 14, 6), "xyc", r"6 channels and no sections \(axes x, y, c"),
    ],
)
def test_axes_other_than_one_zyx_stack_are_refused(
    tmp_path: Path, shape: tuple[int, ...], names: str, message: str
) -> None:
    datasets = [level(scale(*[1.0] * len(shape)))]
    write_image(tmp_path / "a.zarr", np.ones(shape, np.uint8), {"axes": axes(names), "datasets": datasets})
    with pytest.raises(InputError, match=rf"a\.zarr has {message}.*; expected"):
        read_volume(tmp_path / "a.zarr")


def test_groups_and_dtypes_that_are_no_volume(tmp_path: Path) -> None:
    group = zarr.open_group(tmp_path / "a.zarr", mode="w")
    group.create_array("raw", data=np.ones((4, 4, 4), np.int64))
    with pytest.raises(InputError, match=r"without OME-Zarr multiscales.*contains .*a\.zarr/raw"):
        read_volume(tmp_path / "a.zarr")
    with pytest.raises(InputError, match="int64"):
        read_volume(tmp_path / "a.zarr" / "raw")


def test_a_damaged_store_is_named(tmp_path: Path, volume: np.ndarray) -> None:
    path = tmp_path / "a.zarr"
    write_volume(path, volume, ANISOTROPIC)
    chunk = path / "0" / "c" / "0" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[:50])
    with pytest.raises(InputError, match=r"0/c/0/0/0 cannot be read as Zarr .*holds voxels z 0:6, y 0:20, x 0:14"):
        read_volume(path)
    (path / "zarr.json").write_text("{")
    with pytest.raises(InputError, match=r"a\.zarr cannot be read as Zarr"):
        read_volume(path)


@pytest.mark.parametrize(("version", "file"), [("0.4", "0/0/1/2"), ("0.5", "0/c/0/1/0")])
def test_a_file_that_is_missing_or_corrupt_is_named_and_the_others_are_read(
    tmp_path: Path, version: str, file: str
) -> None:
    path = tmp_path / "a.zarr"
    data = make_volume("uint8", (3, 520, 500))
    data[:, 512:] = 0  # stored all the same, so that a file that is missing is known to be lost
    write_volume(path, data, ANISOTROPIC, ome_zarr=version)
    opened = open_volume(path).data
    np.testing.assert_array_equal(opened[:], data)
    held = {"0.4": "z 0:3, y 128:256, x 256:384", "0.5": "z 0:3, y 512:520, x 0:500"}[version]
    content = (path / file).read_bytes()
    (path / file).write_bytes(b"\0" * len(content))
    with pytest.raises(InputError, match=rf"a\.zarr/{file} cannot be read as Zarr .*it holds voxels {held}"):
        opened[:]
    (path / file).unlink()
    with pytest.raises(InputError, match=rf"a\.zarr/{file} is missing; it held voxels {held}"):
        opened[:]
    np.testing.assert_array_equal(opened[:, :128], data[:, :128])


def test_zarrs_of_others_may_leave_out_chunks_of_zeros(tmp_path: Path) -> None:
    data = np.zeros((4, 20, 14), np.uint8)
    data[0, 0, 0] = 1
    write_image(tmp_path / "a.zarr", data, {"axes": axes(), "datasets": [level(scale(40, 4, 4))]})
    np.testing.assert_array_equal(open_volume(tmp_path / "a.zarr").data[:], data)


def test_metadata_that_name_a_missing_level(tmp_path: Path, volume: np.ndarray) -> None:
    write_image(tmp_path / "a.zarr", volume, {"axes": axes(), "datasets": [level(scale(1, 1, 1), path="none")]})
    with pytest.raises(InputError, match=r"a\.zarr cannot be read as Zarr"):
        read_volume(tmp_path / "a.zarr")


# --- written in parts, with levels ----------------------------------------------------------------------------------

LARGE = np.random.default_rng(0).integers(0, 256, (70, 150, 300), np.uint8)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_either_version_returns_voxels_size_and_place(tmp_path: Path, version: str) -> None:
    write_volume(tmp_path / "a.zarr", LARGE, ANISOTROPIC, translation_nm=(-18, 4, 2), ome_zarr=version)
    read = read_volume(tmp_path / "a.zarr")
    np.testing.assert_array_equal(read.data, LARGE)
    assert (read.voxel_size, read.translation_nm) == (ANISOTROPIC, (-18, 4, 2))
    group = zarr.open_group(tmp_path / "a.zarr", mode="r")
    assert group.metadata.zarr_format == {"0.4": 2, "0.5": 3}[version]


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_levels_are_means_that_lie_over_each_other(tmp_path: Path, version: str) -> None:
    write_volume(tmp_path / "a.zarr", LARGE, VoxelSize(8, 8, 8), translation_nm=(100, 0, 0), ome_zarr=version)
    attributes = zarr.open_group(tmp_path / "a.zarr", mode="r").attrs.asdict()
    levels = attributes.get("ome", attributes)["multiscales"][0]["datasets"]
    found = [
        [
            next(step[key] for step in level["coordinateTransformations"] if key in step)
            for key in ("scale", "translation")
        ]
        for level in levels
    ]
    assert found == [[[8, 8, 8], [100, 0, 0]], [[16, 16, 16], [104, 4, 4]], [[32, 32, 32], [112, 12, 12]]]
    half = zarr.open_array(tmp_path / "a.zarr" / "1", mode="r")[:]
    assert half.shape == (35, 75, 150)
    means = LARGE.reshape(35, 2, 75, 2, 150, 2).mean(axis=(1, 3, 5))
    np.testing.assert_array_equal(half, np.rint(means))


@pytest.mark.parametrize("dtype", ["int16", "float16", "float64"])
def test_levels_of_odd_length_end_with_half_a_box(tmp_path: Path, dtype: str) -> None:
    data = make_volume(dtype, (3, 5, 131))
    write_volume(tmp_path / "a.zarr", data, VoxelSize(8, 8, 8))
    found = zarr.open_array(tmp_path / "a.zarr" / "1", mode="r")[:]
    padded = np.pad(data, ((0, 1),) * 3, "edge").astype(np.float64)
    means = padded.reshape(2, 2, 3, 2, 66, 2).mean(axis=(1, 3, 5))
    assert found.dtype == dtype
    np.testing.assert_allclose(found, np.rint(means) if dtype == "int16" else means, rtol=2e-3, atol=2e-3)


def test_an_image_has_the_name_of_its_file(tmp_path: Path, volume: np.ndarray) -> None:
    write_volume(tmp_path / "cortex.ome.zarr", volume, ANISOTROPIC)
    attributes = zarr.open_group(tmp_path / "cortex.ome.zarr", mode="r").attrs.asdict()
    assert attributes["ome"]["multiscales"][0]["name"] == "cortex"


def test_other_versions_are_refused(tmp_path: Path, volume: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"OME-Zarr '0\.6' cannot be written; expected 0\.4 or 0\.5"):
        write_volume(tmp_path / "a.zarr", volume, ANISOTROPIC, ome_zarr="0.6")
    assert list(tmp_path.iterdir()) == []


def test_only_the_shortest_sides_of_voxels_are_joined(tmp_path: Path) -> None:
    write_volume(tmp_path / "a.zarr", LARGE, VoxelSize(40, 8, 8))
    shapes = [zarr.open_array(tmp_path / "a.zarr" / name, mode="r").shape for name in ("0", "1", "2")]
    assert shapes == [(70, 150, 300), (70, 75, 150), (70, 38, 75)]


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_an_independent_reader_finds_the_same_voxels(tmp_path: Path, version: str) -> None:
    tensorstore = pytest.importorskip("tensorstore")
    write_volume(tmp_path / "a.zarr", LARGE, ANISOTROPIC, ome_zarr=version)
    driver = {"0.4": "zarr", "0.5": "zarr3"}[version]
    store = {"driver": "file", "path": str(tmp_path / "a.zarr" / "0")}
    found = tensorstore.open({"driver": driver, "kvstore": store}).result().read().result()
    np.testing.assert_array_equal(found, LARGE)


def test_both_versions_pass_the_validator(tmp_path: Path) -> None:
    models = pytest.importorskip("ome_zarr_models")
    for version in ("0.4", "0.5"):
        path = tmp_path / f"{version}.zarr"
        write_volume(path, LARGE, ANISOTROPIC, ome_zarr=version)
        image = models.open_ome_zarr(zarr.open_group(path, mode="r"))
        assert image.ome_zarr_version == version


def write_part(writer: OMEZarrWriter, box: Any) -> None:
    writer.write(box, LARGE[box])


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_parts_written_by_processes_in_any_order_make_the_same_image(tmp_path: Path, version: str) -> None:
    write_volume(tmp_path / "whole.zarr", LARGE, ANISOTROPIC, ome_zarr=version)
    part = (64, 64, 128)
    writer = OMEZarrWriter.create(
        tmp_path / "parts.zarr",
        LARGE.shape,
        LARGE.dtype,
        ANISOTROPIC,
        version=version,
        chunk_zyx=(32, 64, 64),
        part_zyx=part,
    )
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        jobs = [pool.submit(write_part, writer, box) for box in reversed(list(boxes(LARGE.shape, part)))]
        for job in jobs:
            job.result()
    writer.finish()
    for level in ("0", "1", "2"):
        whole, parts = (zarr.open_array(tmp_path / f"{name}.zarr" / level, mode="r")[:] for name in ("whole", "parts"))
        np.testing.assert_array_equal(parts, whole)
