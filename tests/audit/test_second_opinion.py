"""A second opinion: which of two models or factors is nearer, and when that cannot be told."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from emformer_hub.audit import Audit, audit_stack
from emformer_hub.audit.report import html
from emformer_hub.audit.second_opinion import paired
from emformer_hub.cli import main
from emformer_hub.errors import InputError
from emformer_hub.geometry import SectionModel, VoxelSize
from emformer_hub.modeling_emformer import EMformerModel
from emformer_hub.processing_emformer import EMformerProcessor
from emformer_hub.uneven import jittered
from emformer_hub.volumes import write_volume
from emformer_hub.volumes.phantom import neuropil

SIZE = VoxelSize(32, 8, 8)
SECTIONS = SectionModel(4.0)
ITEMS = ["second opinion: sections left out", "second opinion: sharp plane, degraded"]


@pytest.fixture(scope="module")
def stack() -> np.ndarray:
    return np.rint(SECTIONS.degrade(neuropil((40, 64, 64)))).astype(np.uint8)


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The smallest model, with weights that make it worse."""
    folder = tmp_path_factory.mktemp("models") / "spoilt"
    network = EMformerModel.from_pretrained("emformer-tiny")
    torch.manual_seed(0)
    with torch.no_grad():
        for weights in network.parameters():
            weights += 0.5 * weights.std() * torch.randn_like(weights) if weights.numel() > 1 else 0
    network.save_pretrained(folder)
    EMformerProcessor.from_pretrained("emformer-tiny").save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def found(stack: np.ndarray, spoilt: str) -> Audit:
    return audit_stack(stack, SECTIONS, SIZE, model="emformer-tiny", against=spoilt, device="cpu")


def test_a_difference_is_told_only_if_it_stands_out_from_that_between_sections() -> None:
    rng = np.random.default_rng(0)
    hard = rng.uniform(5, 20, 12)  # how hard a section is cancels
    steady = paired(hard, hard * 10 ** (0.5 / 20))
    assert steady == {"difference_db": 0.5, "interval_db": [0.5, 0.5], "better": "first"}
    worse = paired(hard * 10 ** (0.5 / 20), hard)
    assert (worse["difference_db"], worse["better"]) == (-0.5, "second")
    assert paired(hard, hard) == {"difference_db": 0, "interval_db": [0, 0], "better": None}
    assert paired([0.0, 0.0], [0.0, 0.0])["better"] is None
    assert paired([1.0], [2.0]) == {"difference_db": 6.021, "interval_db": None, "better": None}


def test_of_equal_models_one_is_called_better_as_often_as_the_interval_says() -> None:
    rng = np.random.default_rng(1)
    told = [paired(rng.uniform(5, 6, 12), rng.uniform(5, 6, 12))["better"] for _ in range(2000)]
    assert sum(one is not None for one in told) / 2000 == pytest.approx(0.05, abs=0.015)


def test_a_worse_model_is_told_everywhere_it_is_looked_at(found: Audit, stack: np.ndarray) -> None:
    against, figures = found.figures["against"], found.figures
    for item in ("left_out", "in_plane"):
        assert against[item]["better"] == "first" and against[item]["difference_db"] > 0
        gains = 20 * np.log10(np.divide(against[item]["network"], figures[item]["network"]))
        assert against[item]["difference_db"] == pytest.approx(gains.mean(), abs=1e-3)
        assert against[item]["section"] == figures[item]["section"]
    assert against["reconstructions"]["rms"] > 0 and 0 < against["reconstructions"]["beyond"] < 1
    assert [one.verdict for one in found.verdicts if one.item in ITEMS] == ["good", "good"]
    assert found.pictures["against_map"].mean() > 0


def test_the_report_says_what_was_compared(found: Audit, spoilt: str) -> None:
    page, report = html(found), found.report()
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    against = report["figures"]["against"]
    assert page.count("data:image/jpeg;base64,") == 4 and "<h2>Second opinion</h2>" in page and spoilt in page
    for text in (f"{against['left_out']['difference_db']:+.2f}", f"{100 * against['reconstructions']['beyond']:.1f} %"):
        assert text in page
    assert f"As a second opinion, {spoilt}" in report["statement"]
    assert against["weights_sha256"] != report["facts"]["weights_sha256"]


def test_a_geometry_of_other_sections_is_refused(stack: np.ndarray) -> None:
    for other, message in (
        (SectionModel(1.0), "factor 1 cannot be compared with factor 4; expected one above 1"),
        (jittered(SECTIONS, 10, 0.1, seed=0), "positions are listed for both or for neither"),
        (jittered(SECTIONS, 9, 0.1, seed=0), "there are 9 positions"),
    ):
        with pytest.raises(InputError, match=message):
            audit_stack(stack, SECTIONS, SIZE, model="emformer-tiny", against=other, device="cpu")


def test_the_command_line_compares_another_factor_on_the_sections_left_out(stack: np.ndarray, tmp_path: Path) -> None:
    write_volume(tmp_path / "stack.tif", stack, SIZE)
    page = tmp_path / "out.html"
    words = ["audit", str(tmp_path / "stack.tif"), "--output", str(page), "--model", "emformer-tiny", "--device", "cpu"]
    for options, message in (
        (["--against", "emformer-tin"], "expected one of emformer-small, emformer-tiny"),
        (["--against", "emformer-small", "--against-factor", "2"], "exclude each other"),
        (["--against-factor", "17"], "expected 1 to 16"),
    ):
        refused = CliRunner().invoke(main, [*words, *options])
        assert refused.exit_code == 2 and message in refused.output and not page.exists(), refused.output
    done = CliRunner().invoke(main, [*words, "--against-factor", "2"])
    assert done.exit_code == 0, done.output
    assert f"{ITEMS[0]}: " in done.output and "dB over emformer-tiny at factor 2" in done.output
    assert ITEMS[1] not in done.output
    assert "At another factor only sections left out can be compared" in page.read_text()
    figures = json.loads(page.with_suffix(".json").read_text())["figures"]
    against = figures["against"]
    assert against["factor"] == 2 and against["in_plane"] == against["reconstructions"] == {}
    assert len(against["left_out"]["network"]) == len(figures["left_out"]["network"])
