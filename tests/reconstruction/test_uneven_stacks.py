"""Stacks that are not evenly spaced: an even list, parts, workers and a resumed run give the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from emformer_hub.audit import audit_stack
from emformer_hub.cli import main
from emformer_hub.configuration_emformer import EMformerConfig
from emformer_hub.errors import InputError
from emformer_hub.geometry import SectionModel, VoxelSize
from emformer_hub.interpolation import interpolate
from emformer_hub.measurement import consistency_residual
from emformer_hub.modeling_emformer import EMformerModel
from emformer_hub.processing_emformer import EMformerProcessor
from emformer_hub.reconstruction import Reconstruction, parts, reconstruct, reconstruct_file
from emformer_hub.reconstruction.cluster import on_dask
from emformer_hub.reconstruction.job import Job
from emformer_hub.transform import Grids
from emformer_hub.transform.labels import CarriedLabels
from emformer_hub.uneven import UnevenSections, jittered
from emformer_hub.volumes import open_volume, read_volume, write_volume
from emformer_hub.volumes.boxes import parse_region
from emformer_hub.volumes.phantom import neuropil
from emformer_hub.z_positions import write_z_positions

SIZE = VoxelSize(32, 8, 8)
LOST = (9, 10)
OPTIONS: dict[str, Any] = {"ensemble": 1, "device": "cpu", "precision": "float32", "tile_zyx": (24, 40, 48)}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An untrained model."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "window_size": (2, 2, 4), "num_basis": 6}
    folder = tmp_path_factory.mktemp("models") / "tiny"
    EMformerModel(EMformerConfig(**sizes)).save_pretrained(folder)
    EMformerProcessor().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def geometry() -> UnevenSections:
    """30 sections of uneven thickness, of which two are lost."""
    listed = jittered(SectionModel(4.0, 0.9), 30, 0.15, seed=2).listed(SIZE.x)
    return UnevenSections.of([one for n, one in enumerate(listed) if n not in LOST], SIZE.x, 4.0)


@pytest.fixture(scope="module")
def stack(geometry: UnevenSections, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sections, in a file; of several blocks along z and x."""
    path = tmp_path_factory.mktemp("stack") / "stack.tif"
    cut = np.rint(geometry.degrade(neuropil((120, 40, 56)))).astype(np.uint8)
    write_volume(path, cut, SIZE, translation_nm=(100, 0, 0))
    return path


@pytest.fixture(scope="module")
def expected(stack: Path, geometry: UnevenSections, tiny: str) -> Reconstruction:
    return reconstruct(read_volume(stack).data, geometry=geometry, model=tiny, progress=False, **OPTIONS)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each block is a part."""
    monkeypatch.setattr(parts, "PART_VOXELS", 1)


def run(stack: Path, output: Path, geometry: UnevenSections, model: str, **changed: Any) -> dict[str, Any]:
    settings = {"voxel_size": SIZE, "factor": 4.0, "z_positions": geometry.listed(SIZE.x), "model": model}
    return json.loads(reconstruct_file(stack, output, **settings | OPTIONS | changed).read_text())


@pytest.mark.parametrize("mode", ["clean", "faithful"])
def test_an_even_list_gives_what_a_factor_gives(tiny: str, mode: str) -> None:
    even, options = SectionModel(4.0), OPTIONS | {"model": tiny, "progress": False, "mode": mode}
    sections = np.rint(even.degrade(neuropil((96, 24, 40)))).astype(np.uint8)
    listed = UnevenSections(4.0, tuple(4.0 * np.arange(24) + 2), (4.0,) * 24, 96.0)
    by_factor, by_list = reconstruct(sections, factor=4.0, **options), reconstruct(sections, geometry=listed, **options)
    np.testing.assert_array_equal(by_list.volume, by_factor.volume)
    np.testing.assert_allclose(by_list.uncertainty, by_factor.uncertainty, rtol=1e-4)


def test_lost_sections_are_what_masked_ones_are(tiny: str) -> None:
    even, there = SectionModel(4.0), [n for n in range(24) if n not in LOST]
    options = OPTIONS | {"model": tiny, "progress": False, "tile_zyx": None}
    sections = np.rint(even.degrade(neuropil((96, 24, 40)))).astype(np.uint8)
    listed = UnevenSections(4.0, tuple(4.0 * np.array(there) + 2), (4.0,) * 22, 96.0)
    masked = reconstruct(sections, factor=4.0, mask=np.isin(np.arange(24), LOST), **options)
    lost = reconstruct(sections[there], geometry=listed, **options)
    np.testing.assert_array_equal(lost.volume, masked.volume)
    np.testing.assert_array_equal(lost.half_width(0.9), masked.half_width(0.9))


@pytest.mark.parametrize("mode", ["clean", "faithful"])
def test_a_wide_gap_is_interpolated_and_marked(tiny: str, tmp_path: Path, mode: str) -> None:
    even, there = SectionModel(4.0), [n for n in range(24) if not 9 <= n < 14]
    sections = np.rint(even.degrade(neuropil((96, 24, 40)))).astype(np.uint8)[there]
    listed = UnevenSections.of([(4.0 * n, 4.0) for n in there], 1.0, 4.0)
    options = {"model": tiny, "mode": mode} | OPTIONS
    made = reconstruct(sections.astype(np.float32), geometry=listed, progress=False, **options)
    shares = (np.arange(20) + 2.5)[:, None, None] / 24  # from the centre of section 8 to that of section 14
    plain = sections[8] + shares * (sections[9] - sections[8].astype(float))
    np.testing.assert_allclose(made.volume[36:56], plain, atol=1e-3)
    sure = made.confident(0.5, 1e9)
    assert not sure[36:56].any() and sure[:36].all() and sure[56:].all()
    assert made.uncertainty[40:52].mean() > made.uncertainty[:36].mean()
    write_volume(tmp_path / "stack.tif", sections, SIZE)
    told = call(
        *(
            "reconstruct",
            tmp_path / "stack.tif",
            tmp_path / "out.zarr",
            "--z-positions",
            _list(tmp_path / "z.csv", there),
        ),
        *("--model", tiny, "--device", "cpu", "--mode", mode, "--ensemble", 1, "--tile", "24,40,48"),
        *("--precision", "float32", "--confidence-mask", 0.5),
    )
    gap = "after section 8, 5 are lost; planes 36 to 55 are too many to predict: interpolated, and not confident"
    assert told.exit_code == 0 and gap in told.output, told.output
    memory = reconstruct(sections, geometry=listed, progress=False, **options)
    np.testing.assert_array_equal(read_volume(tmp_path / "out.zarr").data, memory.volume)
    assert not read_volume(tmp_path / "out.confident.zarr").data[36:56].any()
    facts = json.loads((tmp_path / "out.zarr.json").read_text())
    assert facts["gaps"] == [{"after": 8, "sections": 5, "planes": [36, 56], "wide": True}]
    assert facts["not_measured"] == {"filled": 0, "kept": 0}


def _list(path: Path, numbers: list[int]) -> Path:
    write_z_positions(path, [(32.0 * n, 32.0) for n in numbers])
    return path


def test_masked_sections_of_an_uneven_stack_are_never_looked_at(
    stack: Path, geometry: UnevenSections, tiny: str
) -> None:
    sections = read_volume(stack).data.copy()
    mask = np.isin(np.arange(28), (3, 20))
    other = np.where(mask[:, None, None], np.uint8(255), sections)
    options = {"geometry": geometry, "model": tiny, "progress": False, "mask": mask} | OPTIONS
    first, second = (reconstruct(one, **options) for one in (sections, other))
    np.testing.assert_array_equal(first.volume, second.volume)
    np.testing.assert_array_equal(first.half_width(0.9), second.half_width(0.9))


def test_parts_make_what_memory_makes(
    stack: Path, geometry: UnevenSections, expected: Reconstruction, tiny: str, tmp_path: Path
) -> None:
    facts = run(stack, tmp_path / "out.zarr", geometry, tiny, uncertainty=tmp_path / "sure.zarr", confidence=0.8)
    assert facts["parts"] >= 8
    made = read_volume(tmp_path / "out.zarr")
    np.testing.assert_array_equal(made.data, expected.volume)
    np.testing.assert_array_equal(read_volume(tmp_path / "sure.zarr").data, expected.uncertainty)
    confident = read_volume(tmp_path / "out.confident.zarr").data
    std = facts["std"]
    np.testing.assert_array_equal(confident, expected.confident(0.8, 0.5 * std))
    lost = geometry.lost(slice(0, len(made.data)))
    assert facts["not_measured"] == {"filled": pytest.approx(lost.mean()), "kept": 0}
    assert np.allclose(facts["z_positions"], geometry.listed(SIZE.x)) and made.voxel_size == VoxelSize(8, 8, 8)
    assert made.translation_nm == pytest.approx((100 + (0.5 - geometry.centres[0]) * 8, 0, 0))


def test_a_run_that_stopped_goes_on_with_its_positions_only(
    stack: Path, geometry: UnevenSections, expected: Reconstruction, tiny: str, tmp_path: Path
) -> None:
    def stopped(job: Job, numbers: list[int], device: str | None = None) -> Any:
        yield from parts.here(job, numbers[:3], device)
        raise KeyboardInterrupt

    output = tmp_path / "out.zarr"
    with pytest.raises(KeyboardInterrupt):
        run(stack, output, geometry, tiny, scheduler=stopped)
    with pytest.raises(InputError, match=r"the unfinished run .* z_positions was"):
        run(
            stack,
            output,
            UnevenSections.of([(c + c**2 / 1e5, t) for c, t in geometry.listed(8)], 8, 4.0),
            tiny,
            resume=True,
        )
    facts = run(stack, output, geometry, tiny, resume=True)
    assert 0 < facts["made_now"] < facts["parts"]
    np.testing.assert_array_equal(read_volume(output).data, expected.volume)


def test_workers_make_the_same_voxels(
    stack: Path, geometry: UnevenSections, expected: Reconstruction, tiny: str, tmp_path: Path
) -> None:
    pytest.importorskip("distributed", reason="Dask is the extra [cluster]")
    run(stack, tmp_path / "out.zarr", geometry, tiny, scheduler=on_dask("threads", 2))
    np.testing.assert_array_equal(read_volume(tmp_path / "out.zarr").data, expected.volume)


def test_a_part_of_a_stack_is_that_stack_with_its_own_list(
    stack: Path, geometry: UnevenSections, tiny: str, tmp_path: Path
) -> None:
    region, listed = parse_region("12:24,0:40,8:48"), geometry.listed(SIZE.x)
    run(stack, tmp_path / "part.zarr", geometry, tiny, region=region)
    run(stack, tmp_path / "whole.zarr", geometry, tiny)
    part, whole = read_volume(tmp_path / "part.zarr"), read_volume(tmp_path / "whole.zarr")
    own = UnevenSections.of(listed[12:24], SIZE.x, 4.0)
    assert len(part.data) == own.num_planes(12)
    apart = (part.translation_nm[0] - whole.translation_nm[0]) / 8  # in the same tissue at the same place
    assert apart == pytest.approx(geometry.centres[12] - own.centres[0])
    for name, z in (("part", 12), ("whole", 0)):
        grids = Grids.from_record(tmp_path / f"{name}.zarr")
        volume = open_volume(tmp_path / f"{name}.zarr")
        assert grids.shape_of("isotropic") == volume.data.shape
        np.testing.assert_allclose(grids.lengths_of("isotropic")[1], volume.translation_nm)
        assert grids.lengths_of("stack")[0] == SIZE
        np.testing.assert_allclose(grids.lengths_of("stack")[1], (100, 0, 0), atol=1e-9)
        plane = grids.carry(np.array([z + 3.0, 20.0, 10.0]), "isotropic")[0]
        assert volume.translation_nm[0] + 8 * plane == pytest.approx(100 + listed[z + 3][0] - listed[0][0])


def test_points_and_labels_return(geometry: UnevenSections) -> None:
    grids = Grids(geometry, SIZE, (28, 5, 6), (slice(4, 26), slice(1, 4), slice(0, 6)))
    points = np.random.default_rng(0).uniform(-3, 30, (500, 3))
    for unit, scale in (("voxels", 1), ("nm", 8)):
        for to, back in (("isotropic", "stack"), ("stack", "isotropic")):
            returned = grids.carry(grids.carry(points * scale, to, unit), back, unit) / scale
            np.testing.assert_allclose(returned, points, rtol=0, atol=1e-6)
    labels = np.arange(28 * 30, dtype=np.uint32).reshape(28, 5, 6)
    carried = CarriedLabels(labels, grids, "isotropic")
    planes = carried[tuple(slice(0, n) for n in carried.shape)]
    sections = geometry.part(slice(4, 26)).sections_of(len(planes))
    np.testing.assert_array_equal(planes, labels[4:26, 1:4][sections])
    back = CarriedLabels(planes, grids, "stack")
    np.testing.assert_array_equal(back[slice(4, 26), slice(1, 4), slice(0, 6)], labels[4:26, 1:4])


def test_sections_cut_from_a_faithful_result_are_those_that_were_measured(
    stack: Path, geometry: UnevenSections, tiny: str
) -> None:
    sections = read_volume(stack).data.astype(np.float32)
    options = {"geometry": geometry, "model": tiny, "progress": False} | OPTIONS
    faithful, clean = (reconstruct(sections, mode=mode, **options) for mode in ("faithful", "clean"))
    assert consistency_residual(faithful.volume, sections, geometry).maximum < 0.01
    assert consistency_residual(clean.volume, sections, geometry).maximum > 1


def test_a_ramp_is_restored_where_positions_are_known(tiny: str) -> None:
    """Cubic interpolation between known positions keeps a ramp straight but for the steps of the slabs."""
    geometry = jittered(SectionModel(6.0), 16, 0.2, seed=0)
    ramp = np.broadcast_to(np.arange(96, dtype=np.float32)[:, None, None], (96, 4, 4))
    known = interpolate(geometry.degrade(ramp), geometry, "linear")
    assumed = interpolate(geometry.degrade(ramp), geometry.even, "linear")
    inner = slice(6, -6)
    assert np.abs(known - ramp)[inner].max() < 1.5 < np.abs(assumed - ramp)[inner].max()


def test_an_audit_knows_where_sections_lie(tiny: str) -> None:
    geometry = jittered(SectionModel(4.0), 9, 0.15, seed=5)
    sections = np.rint(geometry.degrade(neuropil((36, 64, 64)))).astype(np.uint8)
    found = audit_stack(sections, geometry, SIZE, model=tiny, device="cpu")
    assert found.pictures["reconstruction"].shape == (36, 64, 64)
    left_out = found.figures["left_out"]
    z = left_out["section"][3]
    before, at, after = (geometry.centres[z + step] for step in (-1, 0, 1))
    mean = sections[z - 1] + (at - before) / (after - before) * (sections[z + 1] - sections[z - 1].astype(float))
    assert left_out["linear"][3] == pytest.approx(np.sqrt(np.square(mean - sections[z]).mean()), rel=1e-3)
    with pytest.raises(InputError, match=r"has 8 sections, and there are 9 positions"):
        audit_stack(sections[1:], geometry, SIZE, model=tiny, device="cpu")


def call(*arguments: Any) -> Result:
    return CliRunner().invoke(main, list(map(str, arguments)))


def test_the_commands_go_the_whole_way(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_volume("truth.tif", neuropil((64, 32, 32)), VoxelSize(8, 8, 8))
    options = ["--z-positions", "stack.tif.z-positions.csv", "--model", tiny, "--device", "cpu"]
    for command in (
        ["degrade", "truth.tif", "stack.tif", "--factor", 4, "--jitter", 0.2, "--seed", 7],
        ["reconstruct", "stack.tif", "out.tif", *options],
        ["transform", "points.csv", "carried.csv", "--to", "isotropic", "--record", "out.tif"],
        ["transform", "points.csv", "same.csv", "--to", "isotropic", "--voxel-size", "32,8,8", *options[:2]],
    ):
        Path("points.csv").write_text("z_voxels,y_voxels,x_voxels\n7,3,4\n")
        result = call(*command)
        assert result.exit_code == 0, result.output
    out, truth = open_volume("out.tif"), open_volume("truth.tif")
    assert (out.data.shape, out.voxel_size) == (truth.data.shape, truth.voxel_size)
    lines = Path("stack.tif.z-positions.csv").read_text().splitlines()
    z = float(Path("carried.csv").read_text().splitlines()[1].split(",")[0])
    assert lines[0] == "centre_nm,thickness_nm" and len(lines) == 17
    assert z == pytest.approx(float(lines[8].split(",")[0]) / 8 - 0.5)
    assert Path("same.csv").read_text().splitlines()[1].split(",")[1:] == ["3.0", "4.0"]
    assert float(Path("same.csv").read_text().splitlines()[1].split(",")[0]) == pytest.approx(z)
    again = call("degrade", "truth.tif", "other.tif", "--factor", 4, "--jitter", 0.2, "--seed", 7)
    assert again.exit_code == 0 and Path("other.tif").read_bytes()
    assert Path("other.tif.z-positions.csv").read_text() == Path("stack.tif.z-positions.csv").read_text()
    np.testing.assert_array_equal(read_volume("other.tif").data, read_volume("stack.tif").data)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--factor", 4], "leave out --factor, --thickness and --offset"),
        (["--thickness", 0.5], "leave out --factor, --thickness and --offset"),
        (["--voxel-size", "60,8,8"], "sections are 60 nm apart, and by their positions they are 32 to 32 nm apart"),
        (["--target-nm", 1], "Choose another target spacing"),
        (["--z-positions", "short.csv"], "stack.tif has 8 sections, and there are 7 positions"),
        (["--follow", 1], "--follow takes no"),
    ],
)
def test_contradictions_are_refused_before_the_work(
    options: list[Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_volume("stack.tif", neuropil((16, 32, 32))[:8], SIZE)
    for name, count in (("z.csv", 8), ("short.csv", 7)):
        rows = "".join(f"{32 * n},30\n" for n in range(count))
        Path(name).write_text(f"centre_nm,thickness_nm\n{rows}")
    result = call("reconstruct", "stack.tif", "out.tif", "--z-positions", "z.csv", *options)
    assert result.exit_code == 2 and message in " ".join(result.output.split()), result.output
    assert not Path("out.tif").exists()


def test_the_geometry_is_given_in_one_way(tiny: str, geometry: UnevenSections) -> None:
    sections = np.zeros((28, 8, 8), np.uint8)
    for options in ({"factor": 4.0}, {"thickness": 0.5}, {"offset": 1.0}):
        with pytest.raises(InputError, match="give it alone"):
            reconstruct(sections, geometry=geometry, model=tiny, **options)
    with pytest.raises(InputError, match="expected a number, as in 4, or else a geometry"):
        reconstruct(sections, model=tiny)
    with pytest.raises(InputError, match="geometry is 4; expected SectionModel or UnevenSections"):
        reconstruct(sections, geometry=4, model=tiny)
    with pytest.raises(InputError, match="has 9 sections, and there are 28 positions"):
        reconstruct(sections[:9], geometry=geometry, model=tiny)
