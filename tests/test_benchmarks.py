"""The benchmark scripts, run as a user runs them: small synthetic data in, a table and JSON out."""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import _cases
import _fresh
import _share
import architecture
import numpy as np
import pytest
import scale
import speed as speed_script
import torch
import yaml
from _anisotropic import Stack, in_plane, leave_one_out
from _figures import flat_noise, low_pass_psnr
from _geometry import NamedGeometry
from _methods import EMformer, Interpolation, SlicedUNet
from _pipeline import Cluster, Stage, bounds, simulate
from _report import start
from _unet import UNet, trained_unet
from click.testing import CliRunner, Result
from finetuning import beside_zero_shot, spoil
from learning_curve import Curve, read_curves
from quality import RECIPE, Truth, read_truth

from emformer_hub.configuration_emformer import EMformerConfig
from emformer_hub.errors import InputError
from emformer_hub.geometry import SectionModel, VoxelSize
from emformer_hub.interpolation import interpolate
from emformer_hub.measurement import psnr
from emformer_hub.measurement.intervals import resampled_mse
from emformer_hub.modeling_emformer import EMformerModel
from emformer_hub.processing_emformer import EMformerProcessor
from emformer_hub.training.recipe import Recipe
from emformer_hub.volumes import read_volume, write_volume
from emformer_hub.volumes.phantom import neuropil

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
TINY = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
TINY_CONFIG = ",".join(f"{name}={value}" for name, value in TINY.items())


def run(script: str, *arguments: str | Path, folder: Path | None = None) -> Result:
    """Run a script, in this process, in a folder whose ``train`` and ``eval`` are the data."""
    words = list(map(str, arguments))
    with pytest.MonkeyPatch.context() as patch:
        module = import_module(Path(script).stem)
        patch.setattr(sys, "argv", [str(BENCHMARKS / script), *words])
        if folder is not None:
            patch.setattr(module, "DATA", folder)
            patch.chdir(folder)
        return CliRunner().invoke(module.main, words)


@dataclass
class Outcome:
    truth: np.ndarray
    folder: Path
    table: str
    run: dict[str, Any]
    rows: list[dict[str, Any]]

    def of(self, experiment: str) -> list[dict[str, Any]]:
        return [row for row in self.rows if row["experiment"] == experiment]

    def row(self, geometry: str, method: str) -> dict[str, Any]:
        rows = self.of("degraded along z")
        (found,) = (row for row in rows if (row["geometry"]["name"], row["method"]) == (geometry, method))
        return found


def finish(done: Result, folder: Path, truth: np.ndarray) -> Outcome:
    assert done.exit_code == 0, done.output
    report = json.loads((folder / "out.json").read_text())
    return Outcome(truth, folder, done.stdout, report["run"], report["rows"])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the benchmark reads: a model, phantoms under the names of real volumes."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "train").mkdir()
    (folder / "eval").mkdir()
    for entry in Recipe.load(RECIPE).volumes:
        write_volume(folder / "train" / entry.path, neuropil((20, 24, 96)), VoxelSize(8, 8, 8))
    write_volume(folder / "eval" / "sstem_cremi.tif", neuropil((16, 34, 26)), VoxelSize(40, 4, 4))
    EMformerModel(EMformerConfig(**TINY)).save_pretrained(folder / "model")
    EMformerProcessor().save_pretrained(folder / "model")
    return folder


@pytest.fixture(scope="module")
def quality(data: Path) -> Outcome:
    truth = neuropil((34, 24, 26))
    write_volume(data / "truth.tif", truth, VoxelSize(8, 8, 8))
    geometries = [word for text in ("4:1", "4:1/4", "4:1/2", "6.7:1") for word in ("--geometry", text)]
    outputs = ["--json", data / "out.json", "--figure", data / "picture.png"]
    words = ["--truth", data / "truth.tif", "--model", data / "model", "--ensemble", "1", "--device", "cpu"]
    words += ["--stack", "sstem_cremi", "--unet-minutes", "0.02"]
    return finish(run("quality.py", *words, *geometries, *outputs, folder=data), data, truth)


def test_quality_measures_every_method_in_every_geometry(quality: Outcome) -> None:
    model = str(quality.folder / "model")
    methods = ["nearest", "trilinear", "bicubic", "lanczos", "unet", model, f"{model}, faithful"]
    names = ["x4 t=1", "x4 t=1/4", "x4 t=1/2", "x6.7 t=1"]
    found = quality.of("degraded along z")
    assert [(r["geometry"]["name"], r["method"]) for r in found] == [(n, m) for n in names for m in methods]
    for row in found:
        assert set(row["ssim"]) == {"3d", "xy", "xz", "yz"}
        assert row["fsc"]["resolution"].keys() >= {"z", "lateral"} and row["fsc"]["unit"] == "nm"
        assert row["seconds"] > 0
        assert row["voxel_size_nm"] == [8, 8, 8]


def test_quality_gain_is_over_bicubic_of_the_same_geometry(quality: Outcome) -> None:
    for row in quality.of("degraded along z"):
        baseline = quality.row(row["geometry"]["name"], "bicubic")
        assert row["gain_over_bicubic_db"] == row["psnr_db"] - baseline["psnr_db"]


def test_quality_states_intervals_around_each_figure(quality: Outcome) -> None:
    for row in quality.rows:
        for figure in ("psnr", "gain_over_bicubic"):
            low, high = row[f"{figure}_interval_db"]
            assert low <= row[f"{figure}_db"] <= high


def test_quality_picks_single_planes(quality: Outcome) -> None:
    model = SectionModel(4, 1 / 4, 1)
    cubic = np.rint(interpolate(quality.truth[1:32:4], model, "cubic")).clip(0, 255)
    assert quality.row("x4 t=1/4", "bicubic")["psnr_db"] == pytest.approx(psnr(quality.truth[:32], cubic, 255))


def test_quality_rounds_sections_as_a_file_stores_them(quality: Outcome) -> None:
    model = SectionModel(6.7)
    linear = np.rint(interpolate(np.rint(model.degrade(quality.truth)), model, "linear"))
    planes = quality.row("x6.7 t=1", "trilinear")["shape_zyx"][0]
    assert quality.row("x6.7 t=1", "trilinear")["psnr_db"] == pytest.approx(psnr(quality.truth[:planes], linear, 255))


def test_quality_says_where_its_figures_come_from(quality: Outcome) -> None:
    sha256 = hashlib.sha256((quality.folder / "truth.tif").read_bytes()).hexdigest()
    assert quality.run["data"][0] == {"file": "truth.tif", "sha256": sha256}
    assert quality.run.keys() >= {"command", "commit", "torch", "device", "precision"}
    assert quality.run["unet"]["minutes"] == 0.02 and quality.run["unet"]["steps"] > 0
    assert sha256[:12] in quality.table and quality.run["commit"] in quality.table
    rows = [line for line in quality.table.splitlines() if line.startswith(("| truth | x", "| sstem_cremi |"))]
    assert len(rows) == len(quality.rows) + sum("not_imaged" in row for row in quality.rows)
    assert f"{quality.rows[0]['psnr_db']:.2f}" in rows[0]


def test_quality_judges_planes_that_no_section_imaged(quality: Outcome) -> None:
    truth = quality.truth[:32].astype(np.float32)
    sections = SectionModel(4, 1 / 2)
    linear = np.rint(interpolate(np.rint(sections.degrade(truth)), sections, "linear"))
    between = np.arange(32) % 4 % 3 == 0  # sections image the two planes in the middle of four
    found = quality.row("x4 t=1/2", "trilinear")["not_imaged"]
    assert found["psnr_db"] == pytest.approx(psnr(truth[between], linear[between], 255))
    rows = [quality.row("x4 t=1/2", name) for name in ("nearest", "trilinear", "bicubic", "lanczos")]
    gains = {row["method"]: row["not_imaged"]["gain_db"] for row in rows}
    best = rows[0]["not_imaged"]["best_interpolation"]
    assert max(gains.values()) == gains[best] == 0
    assert not any("not_imaged" in row for row in quality.rows if row.get("geometry", {}).get("thickness") == 1)


def test_quality_finds_the_same_off_imaged_planes_in_either_mode(quality: Outcome) -> None:
    model = str(quality.folder / "model")
    clean, faithful = (quality.row("x4 t=1/2", name)["not_imaged"] for name in (model, f"{model}, faithful"))
    assert clean == faithful


def test_noise_is_measured_where_tissue_is_flat() -> None:
    rng = np.random.default_rng(0)
    truth = np.zeros((4, 64, 64), np.float32)
    truth[:, :, 40:] = 80 * np.sin(np.arange(24))
    noisy = truth + 3 * rng.normal(size=truth.shape)
    assert flat_noise(truth, noisy, np.ones(4, bool)) == pytest.approx(3, rel=0.1)
    assert flat_noise(truth, truth, np.ones(4, bool)) < 0.1


@pytest.mark.parametrize("axis", ["z", "y", "x"])
def test_any_axis_of_a_truth_can_be_that_of_the_sections(tmp_path: Path, axis: str) -> None:
    data = np.random.default_rng(0).integers(0, 255, (4, 5, 6), np.uint8)
    write_volume(tmp_path / "truth.tif", data, VoxelSize(7, 8, 9))
    truth = read_truth(tmp_path / "truth.tif", None, None, axis)
    place = "zyx".index(axis)
    np.testing.assert_array_equal(truth.data, np.moveaxis(data, place, 0))
    assert truth.voxel_size is not None and truth.voxel_size.z == pytest.approx(7 + place)


def test_quality_hides_each_inner_section(quality: Outcome) -> None:
    stack = read_volume(quality.folder / "eval" / "sstem_cremi.tif").data[4:]  # the fourth is none that was measured
    rows = {row["method"]: row for row in quality.of("section left out")}
    assert list(rows) == ["nearest", "trilinear", "bicubic", str(quality.folder / "model")]
    mean = np.rint((stack[:-2].astype(float) + stack[2:]) / 2)
    assert rows["trilinear"]["psnr_db"] == pytest.approx(psnr(stack[1:-1], mean, 255))
    assert rows["bicubic"]["gain_over_trilinear_db"] == rows["bicubic"]["psnr_db"] - rows["trilinear"]["psnr_db"]


def test_quality_degrades_real_planes_along_y(quality: Outcome) -> None:
    stack = read_volume(quality.folder / "eval" / "sstem_cremi.tif").data[4:].transpose(1, 0, 2)
    model = SectionModel(8)
    linear = np.rint(interpolate(np.rint(model.degrade(stack)), model, "linear"))
    (row,) = (r for r in quality.of("degraded in plane") if (r["geometry"]["factor"], r["method"]) == (8, "trilinear"))
    assert row["psnr_db"] == pytest.approx(psnr(stack[: len(linear)], linear, 255))
    assert row["fsc"]["unit"] == "nm" and row["frame_spacing"] == 10


def test_runs_of_sections_are_no_neighbours_of_each_other() -> None:
    tissue = neuropil((20, 32, 16))
    stack = Stack("stack.tif", SectionModel(5, 0.2), None, runs=((0, 4), (9, 10), (12, None)))
    runs = [tissue[:4], tissue[9:10], tissue[12:]]
    (row,) = (row for row in leave_one_out(stack, runs, []) if row["method"] == "trilinear")
    mean = np.concatenate([np.rint((run[:-2].astype(float) + run[2:]) / 2) for run in runs])
    assert row["shape_zyx"] == [2 + 0 + 6, 32, 16]
    assert row["psnr_db"] == pytest.approx(psnr(np.concatenate([tissue[1:3], tissue[13:19]]), mean, 255))
    assert leave_one_out(stack, [tissue[:1], tissue[5:7]], []) == []

    seen: list[np.ndarray] = []

    class Recorded(Interpolation):
        def restore_in_plane(self, rows: np.ndarray, geometry: SectionModel, frame_spacing: float) -> np.ndarray:
            seen.append(rows)
            return super().restore_in_plane(rows, geometry, frame_spacing)

    for_eight = list(in_plane(stack, runs, [Recorded("bicubic")]))[-1]
    assert [rows.shape[1] for rows in seen] == 2 * [4, 1, 8]  # at both factors, each run by itself
    assert for_eight["shape_zyx"] == [13, 32, 16] and for_eight["fsc"] is None


def test_quality_draws_a_picture(quality: Outcome) -> None:
    assert (quality.folder / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_the_unet_is_trained_once(data: Path) -> None:
    cpu = torch.device("cpu")
    first, about = trained_unet(RECIPE, data / "train", 0.01, data / "kept", cpu)
    again, about_again = trained_unet(RECIPE, data / "train", 0.01, data / "kept", cpu)
    assert about == about_again and about["steps"] > 0
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name])


def unet_that_does_something() -> UNet:
    torch.manual_seed(0)
    network = UNet()
    torch.nn.init.normal_(network.out.weight)
    return network.eval()


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 13, 21)])
def test_an_untrained_unet_is_interpolation(shape: tuple[int, int, int]) -> None:
    slices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(UNet()(slices, 4.0, 1.0), slices)
    assert not torch.equal(unet_that_does_something()(slices, 4.0, 1.0), slices)


def test_the_unet_treats_both_orientations_alike() -> None:
    sections, geometry = neuropil((16, 20, 28))[:6], SectionModel(2.5)
    method = SlicedUNet(unet_that_does_something())
    there, _ = method.restore(sections, geometry)
    turned, _ = method.restore(sections.transpose(0, 2, 1), geometry)
    assert there.shape == (15, 20, 28)
    assert np.abs(turned.transpose(0, 2, 1).astype(int) - there).max() <= 1


def test_a_hidden_section_is_not_looked_at(data: Path) -> None:
    stack, method = neuropil((16, 16, 32))[:9], EMformer(str(data / "model"), "cpu", 2)
    predicted = method.restore_section(stack, 4, SectionModel(6.7, 0.5))
    stack[4] = 255 - stack[4]
    assert np.array_equal(method.restore_section(stack, 4, SectionModel(6.7, 0.5)), predicted)
    assert predicted.shape == (16, 32) and predicted.dtype == stack.dtype


def test_in_plane_at_frame_spacing_one_is_one_pass_of_reconstruct(data: Path) -> None:
    sections, method = neuropil((16, 16, 32))[:8], EMformer(str(data / "model"), "cpu", 1)
    restored, _ = method.restore(sections, SectionModel(4))
    assert np.abs(method.restore_in_plane(sections, SectionModel(4), 1.0).astype(int) - restored).max() <= 1


def test_low_pass_score_does_not_see_noise_beyond_the_cutoff() -> None:
    z, y, x = np.indices((16, 20, 13))
    slow, fast = 5 * np.cos(2 * np.pi * (z / 8 + y / 10)), 9.0 * (-1) ** (z + y)
    truth = np.full(z.shape, 100.0) + x
    assert low_pass_psnr(truth, truth + slow + fast, 255) == pytest.approx(psnr(truth, truth + slow, 255))


def test_intervals_come_from_blocks() -> None:
    truth = np.zeros((9, 10, 11), np.float32)
    assert resampled_mse(truth + 2) == pytest.approx(4)  # equal blocks, no doubt
    uneven = truth + np.linspace(0, 2, 11, dtype=np.float32)
    errors = resampled_mse(uneven)
    assert errors.std() > 0 and np.mean(errors) == pytest.approx(np.square(uneven).mean(), rel=0.05)
    assert resampled_mse(2 * uneven) / errors == pytest.approx(4)  # paired: the same blocks each time


def test_without_a_voxel_size_lengths_are_voxels() -> None:
    truth = Truth("phantom", neuropil((24, 16, 16)), None)
    for row in truth.measure(NamedGeometry.parse("2:1"), [Interpolation("bicubic")], None):
        assert row["fsc"]["unit"] == "voxels" and 2 <= row["fsc"]["resolution"]["z"] < 24
        assert row["voxel_size_nm"] is None


@pytest.fixture(scope="module")
def speed(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    folder = tmp_path_factory.mktemp("speed")
    words = ["--config", TINY_CONFIG, "--device", "cpu", "--factor", "2.5", "--factor", "5"]
    words += ["--shape", "8,64,64", "--shape", "12,64,64", "--tile", "8,48,48", "--repeats", "2", "--threads", "1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_cases, "MATMUL_SIDE", 256)
        return finish(run("speed.py", *words, "--json", folder / "out.json"), folder, np.empty(0))


def rows_of(speed: Outcome, what: str) -> list[dict[str, Any]]:
    return [row for row in speed.rows if row["what"] == what]


def test_speed_measures_each_factor_volume_and_tile(speed: Outcome) -> None:
    found = [(row["factor"], row["volume_zyx"], row["tile_zyx"]) for row in rows_of(speed, "reconstruct")]
    assert found == [
        (2.5, [8, 64, 64], [8, 64, 64]),
        (5, [8, 64, 64], [8, 64, 64]),
        (2.5, [12, 64, 64], [12, 64, 64]),
        (2.5, [8, 64, 64], [8, 48, 48]),
    ]
    assert [row["output_voxels"] / 64**2 for row in rows_of(speed, "reconstruct")] == [20, 40, 30, 20]


def test_speed_shows_how_arithmetic_grows(speed: Outcome) -> None:
    reference, finer, _, tiled = (row["flop_per_voxel"] for row in rows_of(speed, "reconstruct"))
    assert finer == pytest.approx(reference / 2, rel=0.1)  # twice the planes for nearly the same work
    assert tiled == pytest.approx(reference * (2 * 48 / 64) ** 2, rel=0.1)  # four tiles, which overlap
    assert rows_of(speed, "train")[0]["flop_per_voxel"] > 0


def test_speed_measures_passes_in_every_way_and_marks_the_default(speed: Outcome) -> None:
    passes, (reference, *_) = rows_of(speed, "pass"), rows_of(speed, "reconstruct")
    ways = [(row["attention"], row["precision"]) for row in passes]
    assert ways[:2] == [("eager", "float32"), ("sdpa", "float32")]
    assert ways[2:] in ([], [("eager", "bfloat16"), ("sdpa", "bfloat16")])
    default = (reference["attention"], reference["precision"])
    assert [way for way, row in zip(ways, passes, strict=True) if row["default"]] == [default]
    assert [row["default"] for row in rows_of(speed, "reconstruct")] == [True, True, True, False]
    # However it is run, the arithmetic is the same: fused attention and inference mode are counted too. A stream asks
    # the conditioning of each layer once a chunk.
    (flop,) = {row["flop_per_voxel"] for row in passes}
    assert reference["flop_per_voxel"] == pytest.approx(flop, rel=0.01)


def test_speed_measures_training(speed: Outcome) -> None:
    (row,) = rows_of(speed, "train")
    assert 0 < row["drawing_share"] < 1
    assert row["tile_zyx"] == [12, 12, 64] and speed.run["train"]["clips a step"] == 2
    assert row["output_voxels"] / speed.run["train"]["steps"] <= 2 * 16 * 12 * 12 * 64


def test_speed_rates_follow_from_times_and_voxels(speed: Outcome) -> None:
    for row in speed.rows:
        slowest, fastest = sorted(row["output_voxels"] / seconds for seconds in row["seconds"])
        assert row["voxels_per_s"]["min"] == pytest.approx(slowest)
        assert row["voxels_per_s"]["max"] == pytest.approx(fastest)
        assert slowest <= row["voxels_per_s"]["median"] <= fastest
        rate = speed.run["matmul_flop_per_s"][row["precision"]]
        share = row["flop_per_voxel"] * row["voxels_per_s"]["median"] / rate
        assert row["share_of_matmul_rate"] == pytest.approx(share)
        assert row["peak_memory_bytes"] > 0


def test_speed_prints_a_line_for_each_row_and_no_copies_on_a_cpu(speed: Outcome) -> None:
    lines = [line for line in speed.table.splitlines() if line.startswith("| hidden_size=8,")]
    assert len(lines) == len(speed.rows)
    assert "GPU" not in speed.table


def test_speed_says_how_near_runs_come_to_the_network_and_it_to_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_cases, "MATMUL_SIDE", 256)
    monkeypatch.setattr(_share, "CLIP_ZYX", (8, 16, 64))
    monkeypatch.setattr(_fresh, "PHANTOM_ZYX", (16, 32, 32))
    monkeypatch.setattr(_share, "in_fresh_process", lambda function, *arguments: function(*arguments))
    words = ["--part", "share", "--model", "emformer-tiny", "--device", "cpu", "--shape", "8,32,32", "--repeats", "2"]
    done = finish(run("speed.py", *words, "--threads", "1", "--json", tmp_path / "out.json"), tmp_path, np.empty(0))
    bare, *others, whole, plan, from_file = done.rows
    assert [row["factor"] for row in (bare, *others)] == [8, 4, 16, 5.5]
    assert bare["voxels"] == 8 * 8 * 16 * 64 and 0 < bare["relative"] < 1
    for row in others:
        ratios = [here / there for here, there in zip(row["wall_s"], bare["wall_s"], strict=True)]
        assert row["relative"] == pytest.approx(np.median(ratios))
    rates = [
        whole["voxels"] / here / (bare["voxels"] / there)
        for here, there in zip(whole["cpu_s"], bare["cpu_s"], strict=True)
    ]
    assert whole["voxels"] == 8 * 8 * 32 * 32 and 1 / whole["relative_cpu"] == pytest.approx(
        np.median(np.divide(1, rates))
    )
    assert 1 < plan["relative"] < 1.5 and plan["shape_zyx"] == [125, 1000, 1000]
    assert from_file["voxels"] == whole["voxels"] and from_file["peak_gb"] > 0.1
    assert len([line for line in done.table.splitlines() if line.startswith("| emformer-tiny |")]) == 7


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--config", "hidden_sise=8"], "hidden_sise"),
        (["--tile", "16,64"], "tile '16,64' is not three sizes"),
        (["--shape", "16,x,64"], "shape '16,x,64' is not three sizes"),
        (["--config", TINY_CONFIG, "--device", "cpu", "--shape", "8,64,64", "--tile", "8,16,16"], "(8, 16, 16)"),
    ],
)
def test_a_mistake_in_speed_is_a_message_and_exit_status_2(
    words: list[str], named: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["speed.py", *words])
    with pytest.raises(SystemExit, match=r"^2$"):
        start(speed_script.main)
    assert named in capsys.readouterr().err


@pytest.fixture(scope="module")
def study(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    recipe = {
        "model": TINY,
        "volumes": [{"path": "fibsem_fib25_a.tif", "voxel_size": "8,8,8"}],
        "sampling": {"frames": 4, "rows": 4, "columns": 16, "factor": [1.2, 2, 4]},
        "minutes": 60,
    }
    folder = tmp_path_factory.mktemp("study")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    words = ["--recipe", folder / "recipe.yaml", "--data-root", data / "train", "--minutes", "0.02"]
    words += ["--variant", "model.attention_every=1,model.num_basis=12", "--variant", "batch_size=1"]
    return finish(run("architecture.py", *words, "--json", folder / "out.json"), folder, np.empty(0))


def test_architecture_trains_the_recipe_and_each_variant_for_the_same_minutes(study: Outcome) -> None:
    assert [row["variant"] for row in study.rows] == [
        "as it is",
        "model.attention_every=1,model.num_basis=12",
        "batch_size=1",
    ]
    as_it_is, attending, single = study.rows
    assert attending["parameters"] > as_it_is["parameters"] == single["parameters"]
    assert attending["flop_per_voxel"] > as_it_is["flop_per_voxel"] == single["flop_per_voxel"]
    assert attending["recipe"]["model"] == {**TINY, "attention_every": 1, "num_basis": 12}
    for row in study.rows:
        assert row["recipe"]["minutes"] == 0.02 and row["seconds"] > 0
        assert row["steps"] > 0 and {gain["volume"] for gain in row["gains"]} == {"fibsem_fib25_a.tif"}


def test_architecture_prints_a_line_for_each(study: Outcome) -> None:
    assert sum(line.startswith(("| as it is", "| model.", "| batch_size")) for line in study.table.splitlines()) == 3
    assert "| fibsem_fib25_a x4 dB |" in study.table


@pytest.mark.parametrize(
    ("variant", "named"),
    [
        ("model.attention_evry=2", "attention_evry"),
        ("patch_size=2", "'patch_size'"),
        ("net.patch_size=2", "no section 'net'"),
        ("batch_size", "not NAME=VALUE"),
        ("batch_size=many", "batch_size"),
    ],
)
def test_a_mistake_in_a_variant_is_a_message_and_exit_status_2(
    tmp_path: Path, variant: str, named: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["architecture.py", "--variant", variant, "--data-root", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"^2$"):
        start(architecture.main)
    assert named in capsys.readouterr().err


# --- how much of the truth lies inside the stated intervals ------------------------------------------------------


def test_quality_counts_voxels_inside_the_stated_intervals(quality: Outcome) -> None:
    assert "inside 50, 80, 95 % intervals" in quality.table
    for row in quality.of("degraded along z"):
        is_model = row["method"].startswith(str(quality.folder / "model"))
        assert ("coverage" in row) == is_model
        if is_model:
            assert 0 <= row["coverage"][0] < row["coverage"][1] < row["coverage"][2] <= 1


# --- every factor ------------------------------------------------------------------------------------------------


def test_factors_compares_a_model_with_interpolation_at_each(data: Path) -> None:
    truth = neuropil((40, 24, 26))
    write_volume(data / "sweep.tif", truth, VoxelSize(8, 8, 8))
    words = ["--truth", data / "sweep.tif", "--model", data / "model", "--crop", "36,24,24", "--device", "cpu"]
    words += ["--factor", "2.5", "--factor", "7", "--json", data / "sweep.json", "--figure", data / "sweep.png"]
    done = run("factors.py", *words, folder=data)
    assert done.exit_code == 0, done.output
    rows = json.loads((data / "sweep.json").read_text())["rows"]
    assert [row["factor"] for row in rows] == [2.5, 7]
    cropped = truth[2:38, :, 1:25]
    sections = np.rint(SectionModel(7).degrade(cropped)).astype(np.uint8)
    model = EMformer(str(data / "model"), "cpu", 2)
    planes = cropped[:35]
    gains = [
        psnr(planes, method.restore(sections, SectionModel(7))[0], 255) for method in (model, Interpolation("bicubic"))
    ]
    assert rows[1]["gain_over_bicubic_db"]["thickness 1"] == pytest.approx(gains[0] - gains[1])
    assert (data / "sweep.png").read_bytes().startswith(b"\x89PNG")


# --- uneven sections ---------------------------------------------------------------------------------------------


def test_uneven_compares_known_with_assumed_positions(data: Path) -> None:
    write_volume(data / "uneven.tif", neuropil((48, 24, 26)), VoxelSize(8, 8, 8))
    words = ["--truth", data / "uneven.tif", "--model", data / "model", "--crop", "48,24,24", "--device", "cpu"]
    words += ["--factor", "4", "--seed", "5", "--json", data / "uneven.json"]
    done = run("uneven.py", *words, folder=data)
    assert done.exit_code == 0, done.output
    rows = json.loads((data / "uneven.json").read_text())["rows"]
    assert [(row["sections"], row["taken"]) for row in rows[:3]] == [
        ("even", "evenly"),
        ("uneven", "where they do"),
        ("uneven", "evenly"),
    ]
    assert rows[1]["psnr_db"] > rows[2]["psnr_db"] and [row["method"] for row in rows[3:]] == ["trilinear", "bicubic"]


# --- alignment ---------------------------------------------------------------------------------------------------


def test_alignment_puts_back_what_it_shifted(data: Path) -> None:
    write_volume(data / "wide.tif", neuropil((36, 210, 210), seed=2), VoxelSize(8, 8, 8))
    words = ["--truth", data / "wide.tif", "--model", data / "model", "--crop", "36,160,160", "--device", "cpu"]
    done = run(
        "alignment.py", *words, *("--factor", 3, "--most", 4, "--seeds", 1, "--json", data / "a.json"), folder=data
    )
    assert done.exit_code == 0, done.output
    rows = {(row["sections"], row["aligned"]): row for row in json.loads((data / "a.json").read_text())["rows"]}
    as_it_is, measured = "as they are", "by measured translations"
    assert rows["none", as_it_is]["apart"] == 0
    assert rows["jitter", measured]["apart"] < 2 < rows["jitter", as_it_is]["apart"]
    assert rows["jitter", measured]["psnr_db"] > rows["jitter", as_it_is]["psnr_db"] + 1
    refused = run("alignment.py", *words, "--most", 30, "--factor", 3, folder=data)
    assert isinstance(refused.exception, InputError) and "leave no room for shifts" in str(refused.exception)


# --- what more training bought -----------------------------------------------------------------------------------


def test_the_learning_curve_finds_the_law_that_made_it() -> None:
    voxels = 1e8 * 2.0 ** np.arange(6)
    law = 2.0 - 0.8 * (voxels / voxels[-1]) ** -0.5
    curve = Curve("task", voxels, law)
    saturating, straight = curve.forecast(4)
    assert saturating == pytest.approx(2.0 - 0.8 / 2, abs=0.02)
    assert straight == pytest.approx(law[-1] + 2 * (law[-1] - law[-2]))
    assert Curve("task", voxels[:3], law[:3]).forecast(4)[0] is None  # three points fit any such law


def test_the_learning_curve_of_the_repository_is_drawn(tmp_path: Path) -> None:
    done = run("learning_curve.py", "--figure", tmp_path / "curve.png")
    assert done.exit_code == 0, done.output
    runs, curves = read_curves(BENCHMARKS / "learning_curve.json")
    assert all(run_["run"] in done.stdout for run_ in runs) and all(curve.task in done.stdout for curve in curves)
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


# --- what fine-tuning buys ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_fine_tuning_of_a_spoilt_instrument_is_compared_row_by_row(tmp_path: Path) -> None:
    for folder, name in (("train", "fibsem_fib25_a.tif"), ("eval", "fibsem_fib25_b.tif")):
        (tmp_path / folder).mkdir()
        write_volume(tmp_path / folder / name, neuropil((104, 20, 136)), VoxelSize(8, 8, 8))
    words = ["--part", "spoilt", "--minutes", "0.01", "--scratch-minutes", "0.01", "--device", "cpu"]
    done = run("finetuning.py", *words, "--json", tmp_path / "out.json", folder=tmp_path)
    assert done.exit_code == 0, done.output
    rows = {row["method"]: row for row in json.loads((tmp_path / "out.json").read_text())["rows"]}
    assert list(rows) == ["zero-shot", "lora", "full", "from scratch"]
    assert rows["zero-shot"]["trained"] == 0
    assert 0 < rows["lora"]["trained"] < 0.05 * rows["full"]["trained"] and rows["lora"]["bytes"] < 1e6
    gains = [row["gain_over_bicubic_db"] for row in rows.values()]
    assert len(set(gains)) == 4 and f"{gains[1]:+.2f}" in done.stdout  # each row is of weights of its own


def test_gains_over_zero_shot_are_differences_from_the_first_row() -> None:
    measured = [{"in_plane_db": [1.0, 2.0], "left_out_db": 0.5}, {"in_plane_db": [2.0, 2.0], "left_out_db": 0.25}]
    rows = list(beside_zero_shot(iter(measured)))
    assert [row["over_zero_shot_db"] for row in rows] == [0, 0.5]
    assert [row["left_out_over_zero_shot_db"] for row in rows] == [0, -0.25]


def test_a_spoilt_volume_is_inverted_softer_and_the_same_every_time() -> None:
    volume = neuropil((16, 32, 32))
    spoilt = spoil(volume)
    np.testing.assert_array_equal(spoilt, spoil(volume))
    assert np.corrcoef(volume.ravel(), spoilt.ravel())[0, 1] < -0.5
    flat = spoil(np.full_like(volume, 128))
    assert flat.std() > 4 and flat.mean() == pytest.approx(255 * (127 / 255) ** 0.6, abs=1)


# --- scale -------------------------------------------------------------------------------------------------------


def test_a_simulated_cluster_takes_what_its_slowest_part_takes() -> None:
    stages = [Stage(parts=8000, seconds=10.0, bytes=1e6), Stage(parts=1, seconds=1.0, bytes=1.0)]
    calm: dict[str, float] = {"lifetime_s": float("inf"), "spread": 0.0}
    plenty = Cluster(100, 1e12, 1e6, **calm)
    assert simulate(stages, plenty) == pytest.approx(8000 / 100 * 10 + 1, rel=0.01)
    assert simulate(stages, replace(plenty, storage_rate=1e6)) == pytest.approx(8000, rel=0.01)
    assert simulate(stages, replace(plenty, give_out_rate=2.0)) == pytest.approx(4000, rel=0.01)
    for cluster in (plenty, replace(plenty, storage_rate=1e6), replace(plenty, lifetime_s=100.0, spread=0.3)):
        assert simulate(stages, cluster) >= 0.98 * max(bounds(stages, cluster).values())
    assert simulate(stages, replace(plenty, lifetime_s=100.0)) == pytest.approx(880, rel=0.05)  # a tenth is made twice


def test_a_forecast_grows_with_the_volume() -> None:
    cost = {"part_voxels": 17e6, "network": 1000.0, "reading": 1.0, "writing": 5.0, "pyramid": 3.0}
    rows = list(scale.forecast({**cost, "bytes_read": 2e8, "bytes_written": 7e8}, {1: (4, 8)}))
    one, two, faster = (row["seconds"] for row in rows)
    assert one / two == pytest.approx(2, rel=0.15) and one / faster > 20
    assert [cell(rows[0]) for cell in scale.FORECAST.values()][:3] == ["1", "4", "2 cores"]


def test_every_planned_part_is_given_out(tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    done = run("scale.py", "--part", "planning", "--blocks", "400", "--json", tmp_path / "out.json")
    assert done.exit_code == 0, done.output
    (row,) = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert row["blocks"] == 400 and 0 < row["parts"] < 400
    assert row["plan_s"] > 0 and row["give_out_s"] > 0 and row["peak_bytes"] > 1e8


@pytest.mark.slow
def test_workers_are_compared_with_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed")
    monkeypatch.setattr(_fresh, "PHANTOM_ZYX", (16, 32, 32))
    monkeypatch.setattr(scale, "WORKERS", (1, 2))
    one, two = scale.scaling(tmp_path, "emformer-tiny", (8, 48, 40))
    assert one["speedup"] == 1 and two["speedup"] > 0
    assert one["same"] and two["same"]


@pytest.mark.slow
def test_memory_and_overhead_are_those_of_runs_from_file_to_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_fresh, "PHANTOM_ZYX", (16, 32, 32))
    (row,) = scale.memory(tmp_path, {"tiny": (8, 48, 40)})
    assert row["voxels"] == 8 * 8 * 48 * 40 and row["seconds"] > 0 and row["peak_bytes"] > 1e8
    (row,) = scale.overhead(tmp_path, "emformer-tiny", (8, 48, 40))
    assert row["network_s"] > 0 and row["whole_s"] > 0


def test_a_gigavoxel_costs_at_least_the_sections_that_it_is_made_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_fresh, "PHANTOM_ZYX", (16, 32, 32))
    row = scale.costs(tmp_path, scale.make_model(tmp_path / "cheap"), (8, 48, 40))
    assert row["bytes_read"] >= 1e9 / scale.FACTOR and row["bytes_written"] > 0 and row["network"] > 0
