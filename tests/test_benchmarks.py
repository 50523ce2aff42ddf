"""The benchmark scripts, run as a user runs them: small synthetic data in, a table and JSON out."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emformer_hub.configuration_emformer import EMformerConfig
from emformer_hub.devices import choose_device, computes_in_bfloat16
from emformer_hub.geometry import SectionModel, VoxelSize
from emformer_hub.interpolation import interpolate
from emformer_hub.measurement import psnr
from emformer_hub.modeling_emformer import EMformerModel
from emformer_hub.phantom import neuropil
from emformer_hub.processing_emformer import EMformerProcessor
from emformer_hub.volumes import write_volume

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
TINY = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}


def run(script: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / script), *map(str, arguments)]
    return subprocess.run(command, check=False, capture_output=True, text=True)


@dataclass
class Outcome:
    truth: np.ndarray
    folder: Path
    table: str
    run: dict[str, Any]
    rows: list[dict[str, Any]]

    def row(self, geometry: str, method: str) -> dict[str, Any]:
        (found,) = (r for r in self.rows if (r["geometry"]["name"], r["method"]) == (geometry, method))
        return found


def finish(process: subprocess.CompletedProcess[str], folder: Path, truth: np.ndarray) -> Outcome:
    assert process.returncode == 0, process.stderr
    report = json.loads((folder / "out.json").read_text())
    return Outcome(truth, folder, process.stdout, report["run"], report["rows"])


@pytest.fixture(scope="module")
def quality(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    folder = tmp_path_factory.mktemp("quality")
    truth = neuropil((34, 24, 26))
    write_volume(folder / "truth.tif", truth, VoxelSize(8, 8, 8))
    EMformerModel(EMformerConfig(**TINY)).save_pretrained(folder / "model")
    EMformerProcessor().save_pretrained(folder / "model")
    geometries = [word for text in ("4:1", "4:1/4", "6.7:1") for word in ("--geometry", text)]
    outputs = ["--json", folder / "out.json", "--figure", folder / "picture.png"]
    words = ["--truth", folder / "truth.tif", "--model", folder / "model", "--ensemble", "1", "--device", "cpu"]
    return finish(run("quality.py", *words, *geometries, *outputs), folder, truth)


def test_quality_measures_every_method_in_every_geometry(quality: Outcome) -> None:
    methods = ["trilinear", "bicubic", str(quality.folder / "model")]
    names = ["x4 t=1", "x4 t=1/4", "x6.7 t=1"]
    assert [(r["geometry"]["name"], r["method"]) for r in quality.rows] == [(n, m) for n in names for m in methods]
    for row in quality.rows:
        assert set(row["ssim"]) == {"3d", "xy", "xz", "yz"}
        assert row["fsc"]["resolution_nm"].keys() >= {"z", "lateral"}
        assert row["seconds"] > 0
        assert row["voxel_size_nm"] == [8, 8, 8]


def test_quality_gain_is_over_bicubic_of_the_same_geometry(quality: Outcome) -> None:
    for row in quality.rows:
        baseline = quality.row(row["geometry"]["name"], "bicubic")
        assert row["gain_over_bicubic_db"] == row["psnr_db"] - baseline["psnr_db"]


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
    assert quality.run["data"] == {"file": "truth.tif", "sha256": sha256}
    assert quality.run.keys() >= {"command", "commit", "torch", "device", "precision"}
    assert sha256[:12] in quality.table and quality.run["commit"] in quality.table
    rows = [line for line in quality.table.splitlines() if line.startswith("| x")]
    assert len(rows) == len(quality.rows)
    assert f"{quality.rows[0]['psnr_db']:.2f}" in rows[0]


def test_quality_draws_a_picture(quality: Outcome) -> None:
    assert (quality.folder / "picture.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture(scope="module")
def speed(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    folder = tmp_path_factory.mktemp("speed")
    config = ",".join(f"{name}={value}" for name, value in TINY.items())
    words = ["--config", config, "--device", "cpu", "--shape", "8,32,32", "--factor", "2.5", "--repeats", "2"]
    return finish(run("speed.py", *words, "--threads", "1", "--json", folder / "out.json"), folder, np.empty(0))


def test_speed_measures_passes_in_every_way_and_the_whole_job(speed: Outcome) -> None:
    precisions = ["float32", "bfloat16"] if computes_in_bfloat16(choose_device("cpu")) else ["float32"]
    expected = [("pass", attention, precision) for precision in precisions for attention in ("eager", "sdpa")]
    expected.append(("reconstruct", "eager", precisions[-1]))
    assert [(row["what"], row["attention"], row["precision"]) for row in speed.rows] == expected
    assert len([line for line in speed.table.splitlines() if line.startswith("| hidden_size=8,")]) == len(expected)


def test_speed_rates_follow_from_times_and_voxels(speed: Outcome) -> None:
    for row in speed.rows:
        assert row["output_voxels"] == 20 * 32 * 32
        slowest, fastest = sorted(row["output_voxels"] / seconds for seconds in row["seconds"])
        assert row["voxels_per_s"]["min"] == pytest.approx(slowest)
        assert row["voxels_per_s"]["max"] == pytest.approx(fastest)
        assert slowest <= row["voxels_per_s"]["median"] <= fastest
        rate = speed.run["matmul_flop_per_s"][row["precision"]]
        share = row["flop_per_voxel"] * row["voxels_per_s"]["median"] / rate
        assert row["share_of_matmul_rate"] == pytest.approx(share)
        assert row["peak_memory_bytes"] > 0


def test_speed_counts_the_same_arithmetic_however_it_is_run(speed: Outcome) -> None:
    assert len({row["flop_per_voxel"] for row in speed.rows}) == 1  # fused attention and inference mode included


def test_a_mistake_is_a_message_and_exit_status_2() -> None:
    process = run("speed.py", "--config", "hidden_sise=8")
    assert process.returncode == 2
    assert "hidden_sise" in process.stderr and "Traceback" not in process.stderr
