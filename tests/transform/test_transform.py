"""Points, skeletons and labels lie on the other grid where the geometry of the reconstruction says, there and back."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile
import zarr
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from emformer_hub import Grids, InputError, SectionModel, VoxelSize, reconstruct_file, transform_file, write_volume
from emformer_hub.cli import main
from emformer_hub.transform.labels import CarriedLabels
from emformer_hub.volumes import create_volume, open_labels, open_volume
from emformer_hub.volumes.phantom import neuropil

SIZE = VoxelSize(24, 8, 8)
FACTOR = 3.0
SETTINGS = {"factor": FACTOR, "model": "emformer-tiny", "ensemble": 1}


@st.composite
def geometries(draw: st.DrawFn) -> SectionModel:
    factor = draw(st.floats(1, 16))
    thickness = draw(st.floats(0.05, 1))
    offset = draw(st.none() | st.floats(0, 1).map(lambda share: share * (1 - thickness) * factor))
    return SectionModel(factor, thickness, offset)


@st.composite
def both_grids(draw: st.DrawFn) -> Grids:
    lengths = st.floats(0.5, 100)
    size = VoxelSize(draw(lengths), draw(lengths), draw(lengths))
    shape = (draw(st.integers(4, 12)), 5, 6)
    depth = draw(st.integers(1, shape[0]))
    start = draw(st.integers(0, shape[0] - depth))
    region = draw(st.sampled_from([None, (slice(start, start + depth), slice(1, 4), slice(2, 6))]))
    first = draw(st.tuples(*[st.floats(-1e4, 1e4)] * 3))
    return Grids(draw(geometries()), size, shape, region, first)


@given(both_grids(), st.sampled_from(["voxels", "nm", "um"]), st.lists(st.tuples(*[st.floats(-1e5, 1e5)] * 3)))
def test_points_return(grids: Grids, unit: str, points: list[tuple[float, float, float]]) -> None:
    assert grids.voxel_size is not None
    there = np.array(points).reshape(-1, 3)
    to_unit = {"voxels": 1.0, "nm": min(grids.voxel_size.zyx), "um": min(grids.voxel_size.zyx) / 1000}[unit]
    for to, back in (("isotropic", "stack"), ("stack", "isotropic")):
        returned = grids.carry(grids.carry(there * to_unit, to, unit), back, unit) / to_unit
        np.testing.assert_allclose(returned, there, rtol=0, atol=1e-6)


@given(both_grids())
def test_a_point_is_where_the_plane_is_whose_position_the_geometry_states(grids: Grids) -> None:
    depth = grids.shape_of("isotropic")[0]
    planes = np.zeros((depth, 3))
    planes[:, 0] = np.arange(depth)
    carried = grids.carry(planes, "stack")
    np.testing.assert_allclose(carried[:, 0] - grids.start[0], grids.geometry.plane_positions(depth), atol=1e-9)
    np.testing.assert_array_equal(carried[:, 1:], np.broadcast_to(grids.start[1:], (depth, 2)))


@given(both_grids())
def test_lengths_move_by_what_the_imaged_part_lies_off_the_middle_of_its_section(grids: Grids) -> None:
    """Both files place their voxels in one space; in the middle of a section nothing moves."""
    carried = grids.carry(np.array([100.0, 20.0, -30.0]), "isotropic", "nm")
    moved = (grids.geometry.centre - 0.5) * grids.voxel_size.z
    np.testing.assert_allclose(carried, [100 + moved, 20, -30], atol=1e-6)


@given(both_grids(), st.randoms(use_true_random=False))
def test_labels_are_those_of_the_nearest_section_and_return(grids: Grids, random: object) -> None:
    stack = np.arange(1, 1 + np.prod(grids.shape_zyx), dtype=np.uint64).reshape(grids.shape_zyx) + np.uint64(2**63)
    whole = tuple(slice(0, n) for n in stack.shape)
    region = grids.region or whole
    carried = CarriedLabels(stack, grids, "isotropic")
    planes = carried[tuple(slice(0, n) for n in carried.shape)]
    assert planes.dtype == np.uint64 and planes.shape == grids.shape_of("isotropic")
    sections, positions = stack[region], grids.geometry.plane_positions(len(planes))
    for plane, position in zip(planes, positions, strict=True):
        distance = np.abs(np.arange(len(sections)) - position)
        nearest = np.flatnonzero(np.isclose(distance, distance.min()))
        assert any((plane == sections[one]).all() for one in nearest)
    back = CarriedLabels(planes, grids, "stack")
    returned = back[tuple(slice(0, n) for n in back.shape)]
    if grids.geometry.section_positions(len(sections))[-1] < len(planes) - 0.5:  # planes reach to its centre
        expected = np.zeros_like(stack)
        expected[region] = sections
        np.testing.assert_array_equal(returned, expected)


def test_parts_of_labels_are_parts_of_the_whole() -> None:
    random = np.random.default_rng(0)
    region = (slice(2, 90), slice(1, 4), slice(2, 6))
    grids = Grids(SectionModel(2.5), SIZE, (95, 5, 6), region)
    sources = {"isotropic": (95, 5, 6), "stack": grids.shape_of("isotropic")}
    for to, shape in sources.items():
        carried = CarriedLabels(random.integers(0, 2**16, shape, np.uint16), grids, to)
        whole = carried[tuple(slice(0, n) for n in carried.shape)]
        for box in ((slice(0, 3), slice(0, 2), slice(1, 3)), (slice(60, 92), slice(2, 3), slice(0, 4))):
            np.testing.assert_array_equal(carried[box], whole[box])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a stack, ``out.ome.zarr`` of all of it, and ``roi.ome.zarr`` of a part."""
    folder = tmp_path_factory.mktemp("run")
    stack = neuropil((36, 40, 44))[::3].copy()
    write_volume(folder / "stack.tif", stack, SIZE, translation_nm=(132, 44, 84))  # where precomputed can put it
    region = (slice(3, 9), slice(5, 33), slice(6, 40))
    reconstruct_file(folder / "stack.tif", folder / "out.ome.zarr", voxel_size=SIZE, **SETTINGS)
    reconstruct_file(folder / "stack.tif", folder / "roi.ome.zarr", voxel_size=SIZE, region=region, **SETTINGS)
    return folder


@pytest.mark.parametrize("name", ["out", "roi"])
def test_the_record_states_the_grids_of_the_files(run: Path, name: str) -> None:
    grids = Grids.from_record(run / f"{name}.ome.zarr")
    for grid, file in (("stack", "stack.tif"), ("isotropic", f"{name}.ome.zarr")):
        volume = open_volume(run / file)
        size, first = grids.lengths_of(grid)
        assert grids.shape_of(grid) == volume.data.shape and size == volume.voxel_size
        np.testing.assert_allclose(first, volume.translation_nm, atol=1e-9)
    assert Grids.from_record(run / f"{name}.ome.zarr.json") == grids
    begin = (3, 5, 6) if name == "roi" else (0, 0, 0)
    np.testing.assert_allclose(grids.carry([[0, 0, 0]], "stack"), [np.add(begin, (-1 / 3, 0, 0))], atol=1e-12)


def test_padding_that_was_put_back_is_part_of_the_grid(tmp_path: Path) -> None:
    stack = np.pad(neuropil((36, 40, 44))[::3], ((0, 0), (3, 5), (7, 0)))
    write_volume(tmp_path / "stack.tif", stack, SIZE, translation_nm=(0, 4, 4))
    reconstruct_file(tmp_path / "stack.tif", tmp_path / "out.h5", voxel_size=SIZE, **SETTINGS)
    grids, volume = Grids.from_record(tmp_path / "out.h5"), open_volume(tmp_path / "out.h5")
    assert grids.shape_of("isotropic") == volume.data.shape
    np.testing.assert_allclose(grids.lengths_of("isotropic")[1], volume.translation_nm, atol=1e-9)
    np.testing.assert_allclose(grids.carry([[1, 3, 7]], "isotropic"), [[4, 3, 7]])


def transform(*arguments: object) -> str:
    result = CliRunner().invoke(main, ["transform", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.output


def refused(*arguments: object) -> str:
    result = CliRunner().invoke(main, ["transform", *map(str, arguments)])
    assert result.exit_code == 2, result.output
    return " ".join(result.output.split())


def test_a_table_keeps_its_other_columns_and_states_its_unit(run: Path, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text('id,x,"y",z,note\n7,10,11.5,4,"a, b"\n8,0,0,-0.25,\n')
    transform(tmp_path / "in.csv", tmp_path / "out.csv", "--to", "isotropic", "--record", run / "roi.ome.zarr",
              "--units", "voxels")  # fmt: skip
    with (tmp_path / "out.csv").open() as file:
        header, *rows = csv.reader(file)
    assert header == ["id", "x_voxels", "y_voxels", "z_voxels", "note"]
    assert [row[0] for row in rows] == ["7", "8"] and rows[0][4] == "a, b"
    np.testing.assert_allclose(np.array([row[1:4] for row in rows], float), [[4, 6.5, 4], [-6, -5, -8.75]])
    transform(tmp_path / "out.csv", tmp_path / "back.csv", "--to", "stack", "--record", run / "roi.ome.zarr")
    with (tmp_path / "back.csv").open() as file:
        returned = np.array([row[1:4] for row in list(csv.reader(file))[1:]], float)
    np.testing.assert_allclose(returned, [[10, 11.5, 4], [0, 0, -0.25]], atol=1e-9)


def test_options_say_what_a_record_would(run: Path, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("z,y,x\n5,7,9\n")
    given = ("--factor", 3, "--roi", "3:9,5:33,6:40")
    of_record, of_size = ("--record", run / "roi.ome.zarr"), (*given[2:], "--voxel-size", "24,8,8")
    for name, options in (("a", of_record), ("b", given), ("c", of_size)):
        transform(tmp_path / "in.csv", tmp_path / f"{name}.csv", "--to", "isotropic", "--units", "voxels", *options)
    assert (tmp_path / "a.csv").read_text() == (tmp_path / "b.csv").read_text() == (tmp_path / "c.csv").read_text()
    transform(tmp_path / "in.csv", tmp_path / "o.csv", "--to", "isotropic", "--units", "nm", "--voxel-size", "24,8,8",
              "--thickness", 0.25, "--offset", 0)  # fmt: skip
    moved = float((tmp_path / "o.csv").read_text().splitlines()[1].split(",")[0])
    assert moved == pytest.approx(5 + (0.125 - 0.5) * 24)


def test_a_skeleton_is_x_y_z_and_keeps_its_radii(run: Path, tmp_path: Path) -> None:
    (tmp_path / "in.swc").write_text("# by hand\n1 0 10.0 11.0 4.0 2.5 -1\n\n2 0 12 13 5 1 1\n")
    record = ("--record", run / "roi.ome.zarr")
    transform(tmp_path / "in.swc", tmp_path / "out.swc", "--to", "isotropic", "--units", "voxels", *record)
    lines = (tmp_path / "out.swc").read_text().splitlines()
    assert lines == ["# units: voxels", "# by hand", "1 0 4.0 6.0 4.0 2.5 -1", "2 0 6.0 8.0 7.0 1 1"]
    transform(tmp_path / "out.swc", tmp_path / "back.swc", "--to", "stack", *record)
    assert (tmp_path / "back.swc").read_text().splitlines()[2:] == ["1 0 10.0 11.0 4.0 2.5 -1", "2 0 12.0 13.0 5.0 1 1"]


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "uint64"])
@pytest.mark.parametrize("suffix", [".ome.zarr", ".n5", ".precomputed", ".wkw", ".h5", ".tif", ".mrc", ""])
def test_labels_in_every_format(run: Path, tmp_path: Path, suffix: str, dtype: str) -> None:
    labels = (np.arange(12 * 40 * 44).reshape(12, 40, 44) % 251).astype(dtype) * (np.iinfo(dtype).max // 251)
    with create_volume(tmp_path / "in.h5", labels.shape, labels.dtype, SIZE, labels=True) as writer:
        writer.write(tuple(slice(0, n, 1) for n in labels.shape), labels)
    output, arguments = tmp_path / f"out{suffix}", ("--to", "isotropic", "--record", run / "roi.ome.zarr")
    if dtype in {".tif": ["uint64"], "": ["uint64"], ".mrc": ["uint32", "uint64"]}.get(suffix, []):
        assert "has only" in refused(tmp_path / "in.h5", output, *arguments) and not output.exists()
        return
    transform(tmp_path / "in.h5", output, *arguments)
    made = open_labels(output)
    assert made.data.dtype == labels.dtype and made.voxel_size == VoxelSize(8, 8, 8)
    np.testing.assert_allclose(made.translation_nm, open_volume(run / "roi.ome.zarr").translation_nm)
    np.testing.assert_array_equal(made.data[:], labels[3:9, 5:33, 6:40].repeat(3, axis=0))
    transform(output, tmp_path / "back.h5", "--to", "stack", "--record", run / "roi.ome.zarr")
    expected = np.zeros_like(labels)
    expected[3:9, 5:33, 6:40] = labels[3:9, 5:33, 6:40]
    with h5py.File(tmp_path / "back.h5") as file:
        np.testing.assert_array_equal(file["volumes/raw"][:], expected)
        np.testing.assert_array_equal(file["volumes/raw"].attrs["resolution"], SIZE.zyx)


@pytest.mark.parametrize("suffix", [".n5", ".precomputed", ".zarr", "0.4"])
def test_coarser_levels_of_labels_mix_none(tmp_path: Path, suffix: str) -> None:
    labels = np.random.default_rng(0).choice([1, 250, 99991], (20, 30, 140)).astype(np.uint64)
    output = tmp_path / f"out{suffix.replace('0.4', '.zarr')}"
    version = suffix if suffix == "0.4" else "0.5"
    with create_volume(output, labels.shape, labels.dtype, VoxelSize(8, 8, 8), ome_zarr=version, labels=True) as writer:
        writer.write(tuple(slice(0, n, 1) for n in labels.shape), labels)
    with (
        pytest.raises(InputError, match="segmentation")
        if suffix != ".n5"
        else pytest.raises(InputError, match="uint64")
    ):
        open_volume(output)
    if suffix == ".precomputed":
        info = json.loads((output / "info").read_text())
        assert (info["type"], info["data_type"]) == ("segmentation", "uint64")
        info["scales"] = info["scales"][1:]
        (output / "info").write_text(json.dumps(info))
    coarser = {".n5": output / "s1", ".precomputed": output}.get(suffix)
    found = zarr.open_group(output)["1"][:] if coarser is None else open_labels(coarser).data[:]
    np.testing.assert_array_equal(found, labels[::2, ::2, ::2])


def test_labels_without_a_record(tmp_path: Path) -> None:
    labels = np.random.default_rng(0).integers(0, 9, (6, 5, 7), np.uint8)
    palette = np.random.default_rng(0).integers(0, 2**16, (3, 256), np.uint16)
    tifffile.imwrite(tmp_path / "in.tif", labels, photometric="palette", colormap=palette)  # as Fiji colours labels
    transform(tmp_path / "in.tif", tmp_path / "out.tif", "--to", "isotropic", "--factor", 2.5, "--voxel-size", "20,8,8")
    made = open_labels(tmp_path / "out.tif")
    assert made.data.shape == (15, 5, 7) and made.voxel_size == VoxelSize(8, 8, 8)
    transform(tmp_path / "out.tif", tmp_path / "back.tif", "--to", "stack", "--factor", 2.5)
    back = open_labels(tmp_path / "back.tif")
    np.testing.assert_array_equal(back.data[:], labels)
    assert back.voxel_size == VoxelSize(20, 8, 8)


def test_what_cannot_be_carried_is_refused(run: Path, tmp_path: Path) -> None:
    record, to = ("--record", run / "roi.ome.zarr"), ("--to", "isotropic")
    table, out = tmp_path / "in.csv", tmp_path / "out.csv"
    table.write_text("z,y,x\n1,2,3\n")
    assert "give --units" in refused(table, out, *to, *record)
    assert "leave out" in refused(table, out, *to, *record, "--factor", 3, "--units", "nm")
    assert "give --record" in refused(table, out, *to, "--units", "nm")
    assert "give --voxel-size" in refused(table, out, *to, "--units", "nm", "--factor", 3)
    assert "record of a run" in refused(table, out, *to, "--units", "nm", "--record", tmp_path / "none.zarr")
    assert "is not .csv" in refused(table, tmp_path / "out.swc", *to, *record, "--units", "nm")
    table.write_text("z_nm,y_nm,x_nm\n1,2,3\n")
    assert "which is it?" in refused(table, out, *to, *record, "--units", "voxels")
    table.write_text("z_nm,y_um,x_nm\n1,2,3\n")
    assert "one unit" in refused(table, out, *to, *record)
    table.write_text("z_nm;y_nm;x_nm\n1;2;3\n")
    assert "separated by commas" in refused(table, out, *to, *record)
    table.write_text("z_nm,y_nm,x_nm\n1,2,3\n1,2,\n")
    assert "line 3 of" in refused(table, out, *to, *record)
    (tmp_path / "in.swc").write_text("# units: nm\n1 0 1 2 3\n")
    assert "radius and parent" in refused(tmp_path / "in.swc", tmp_path / "out.swc", *to, *record)
    write_volume(tmp_path / "grey.h5", np.ones((4, 5, 6), np.float32), SIZE)
    assert "whole numbers" in refused(tmp_path / "grey.h5", tmp_path / "a.h5", *to, *record)
    write_volume(tmp_path / "other.h5", np.ones((4, 5, 6), np.uint8), SIZE)
    assert "expected (12, 40, 44)" in refused(tmp_path / "other.h5", tmp_path / "a.h5", *to, *record)
    assert "the shape is not known" in refused(tmp_path / "other.h5", tmp_path / "a.h5", "--to", "stack", "--factor", 2,
                                               "--roi", "0:2,0:5,0:6")  # fmt: skip
    with pytest.raises(InputError, match="expected one of isotropic, stack"):
        transform_file(table, out, Grids.from_record(run / "roi.ome.zarr"), "planes")
    assert replace(Grids.from_record(run / "roi.ome.zarr"), voxel_size=None).shape_of("stack") == (12, 40, 44)
    assert not any(tmp_path.glob("out*"))
