"""An audit: every figure against a case that is known, and a page that needs nothing else."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from emformer_hub.audit import measures as audits
from emformer_hub.audit.measures import Audit, audit_stack, coverage, isotropy, judge, left_out, seams
from emformer_hub.audit.page import html, write_report
from emformer_hub.cli import main
from emformer_hub.errors import InputError
from emformer_hub.geometry import SectionModel, VoxelSize
from emformer_hub.phantom import neuropil
from emformer_hub.volumes import write_volume

pytest.importorskip("matplotlib", reason="the report's pictures need the extra [evaluate]")
SIZE = VoxelSize(32, 8, 8)
SECTIONS = SectionModel(4.0)


@pytest.fixture(scope="module")
def stack() -> np.ndarray:
    """12 sections of 72 x 80 voxels, each the mean of four planes."""
    return np.rint(SECTIONS.degrade(neuropil((48, 72, 80)))).astype(np.uint8)


@pytest.fixture(scope="module")
def found(stack: np.ndarray) -> Audit:
    return audit_stack(stack, SECTIONS, SIZE, model="emformer-tiny", name="phantom", device="cpu")


def test_all_items_are_judged_and_fit_for_json(found: Audit) -> None:
    report = found.report()
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    items = [verdict.item for verdict in found.verdicts]
    assert items == [
        "sections left out",
        "sharp plane, degraded",
        "intervals",
        "isotropy of spectra",
        "agreement with the sections",
        "seams",
        "grey levels",
    ]
    assert all(verdict.verdict in audits.VERDICTS and verdict.reason.endswith(".") for verdict in found.verdicts)
    assert found.facts["region"] == [[0, 12], [0, 72], [0, 80]] and len(found.facts["weights_sha256"]) == 64
    shapes = {name: picture.shape for name, picture in found.pictures.items()}
    assert shapes["reconstruction"] == shapes["interpolation"] == shapes["uncertainty"] == (48, 72, 80)


def test_sections_left_out_are_measured_as_interpolation_of_polynomials(monkeypatch: pytest.MonkeyPatch) -> None:
    z = np.arange(9, dtype=np.float32)[:, None, None]
    texture = np.random.default_rng(0).normal(size=(1, 32, 48)).astype(np.float32)
    monkeypatch.setattr(audits, "predict_section", lambda network, stack, z, sections: stack[z] + 0.5)
    ramp, _ = left_out(None, texture * z, SECTIONS, grey=10.0)  # type: ignore[arg-type]
    np.testing.assert_allclose(ramp["linear"], 0, atol=1e-4)
    np.testing.assert_allclose(ramp["network"], 5.0)
    assert ramp["gain_over_linear_db"] < -60
    bent, gains = left_out(None, np.broadcast_to(z**2, (9, 32, 48)), SECTIONS, grey=10.0)  # type: ignore[arg-type]
    np.testing.assert_allclose(bent["linear"], 10.0)  # ((z-1)² + (z+1)²) / 2 - z² = 1
    np.testing.assert_allclose(bent["cubic"][1:-1], 0, atol=1e-3)
    assert bent["section"] == list(range(1, 8))
    assert gains.shape == (2, 3) and gains == pytest.approx(10 * np.log10(4), abs=0.01)


def test_coverage_of_errors_that_are_as_stated() -> None:
    draw = np.random.default_rng(0)
    deviation = draw.uniform(1, 5, 200_000)
    error = draw.normal(size=200_000) * deviation
    shares = coverage(error, deviation, [0.6745, 1.2816, 1.96])
    assert shares == pytest.approx({"0.5": 0.5, "0.8": 0.8, "0.95": 0.95}, abs=0.005)
    assert coverage(2 * error, deviation, [0.6745, 1.2816, 1.96])["0.8"] == pytest.approx(0.478, abs=0.005)


def test_spectra_of_isotropic_and_of_blurred_noise() -> None:
    noise = np.random.default_rng(0).normal(size=(64, 64, 64)).astype(np.float32)
    size = VoxelSize(8, 8, 8)
    same = isotropy(noise, noise, noise, size, spacing_nm=32)
    assert same["power_ratio"] == pytest.approx([1] * 4, abs=0.1) and same["judged"] == 3
    blurred = (noise + np.roll(noise, 1, axis=0)) / 2  # power along z is cos²(pi f), and along x a half of what it was
    ratios = isotropy(blurred, blurred, noise, size, spacing_nm=32)["power_ratio"]
    low, high = np.array([1 / 32, 1 / 16, 1 / 8, 1 / 4]), np.array([1 / 16, 1 / 8, 1 / 4, 1 / 2])  # cycles a voxel
    expected = 1 + (np.sin(2 * np.pi * high) - np.sin(2 * np.pi * low)) / (2 * np.pi * (high - low))
    assert ratios == pytest.approx(expected.tolist(), abs=0.15)


def test_seams_are_what_was_planted() -> None:
    whole = np.full((8, 32, 32), 100, np.uint8)
    tiled = whole.copy()
    tiled[:, :, 16:] += 2
    assert seams(whole, tiled, grey=20) == pytest.approx({"rms": 2**0.5, "maximum": 2, "relative_rms": 2**0.5 / 20})
    assert seams(whole, whole, grey=20)["rms"] == 0


@pytest.mark.parametrize(
    ("place", "value", "item", "verdict"),
    [
        (("left_out", "gain_over_cubic_db"), 0.1, "sections left out", "take care"),
        (("left_out", "gain_over_linear_db"), -0.1, "sections left out", "do not use"),
        (("in_plane", "gain_over_bicubic_db"), 0.31, "sharp plane, degraded", "good"),
        (("in_plane", "coverage"), {"0.5": 0.4, "0.8": 0.8, "0.95": 0.95}, "intervals", "take care"),
        (("isotropy", "power_ratio"), [1.0, 0.4, 0.01, 0.01], "isotropy of spectra", "take care"),
        (("consistency", "relative_rms"), 0.4, "agreement with the sections", "do not use"),
        (("seams", "relative_rms"), 0.05, "seams", "take care"),
    ],
)
def test_verdicts_follow_their_thresholds(
    found: Audit, stack: np.ndarray, place: tuple[str, str], value: Any, item: str, verdict: str
) -> None:
    figures = json.loads(json.dumps(found.figures))
    figures["isotropy"]["judged"] = 2
    figures["left_out"] |= {"gain_over_linear_db": 1.0, "gain_over_cubic_db": 1.0}
    figures[place[0]][place[1]] = value
    (one,) = (one for one in judge(figures, stack) if one.item == item)
    assert one.verdict == verdict


def test_saturated_and_one_bit_input_is_not_called_good(found: Audit, stack: np.ndarray) -> None:
    for crop, verdict in ((stack, "good"), (np.where(stack > 120, 255, stack), "do not use")):
        assert judge(found.figures, crop)[-1].verdict == verdict
    assert judge(found.figures, np.where(stack > 120, 1, 0).astype(np.uint8))[-1].verdict == "do not use"


def test_the_page_needs_nothing_else_and_says_what_the_json_says(found: Audit, tmp_path: Path) -> None:
    write_report(found, tmp_path / "audit.html")
    text = (tmp_path / "audit.html").read_text()
    assert not re.search(r"(src|href)=\"(?!data:)", text) and "http" not in text and "<script" not in text
    assert len(text) < 5e6 and text.count("data:image/jpeg;base64,") == 3
    report = json.loads((tmp_path / "audit.json").read_text())
    for one in report["verdicts"]:
        for value in (one["item"], one["verdict"], one["figure"], one["reason"].split(":")[0]):
            assert value in text.replace("&#39;", "'")
    assert report["facts"]["weights_sha256"] in text


def test_a_name_cannot_make_markup(found: Audit) -> None:
    evil = Audit({**found.facts, "stack": "<script>alert(1)</script>"}, found.figures, found.verdicts, found.pictures)
    assert "<script" not in html(evil)


def test_a_browser_shows_it(found: Audit, tmp_path: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium on this machine")
    write_report(found, tmp_path / "audit.html")
    with playwright.sync_playwright() as session:
        browser = session.chromium.launch(executable_path=path, args=["--no-sandbox"])
        for width in (390, 1200):
            page = browser.new_page(viewport={"width": width, "height": 800}, offline=True)
            page.goto(f"file://{tmp_path}/audit.html")
            assert page.locator("td.verdict").count() == len(found.verdicts)
            sizes = page.evaluate("[...document.images].map(i => i.naturalWidth)")
            assert len(sizes) == 3 and min(sizes) > 500
            assert page.evaluate("document.documentElement.scrollWidth") <= width
        browser.close()


def test_the_command_line(stack: np.ndarray, tmp_path: Path) -> None:
    write_volume(tmp_path / "stack.tif", stack, SIZE)
    output = tmp_path / "out.html"
    words = [
        "audit",
        str(tmp_path / "stack.tif"),
        "--output",
        str(output),
        "--model",
        "emformer-tiny",
        "--device",
        "cpu",
    ]
    done = CliRunner().invoke(main, [*words, "--factor", "4", "--roi", "0:8,0:64,8:72"])
    assert done.exit_code == 0, done.output
    assert "sections left out" in done.output and output.exists() and (tmp_path / "out.json").exists()
    again = CliRunner().invoke(main, words)
    assert again.exit_code == 2 and "exists" in again.output
    twin = CliRunner().invoke(main, ["audit", str(tmp_path / "stack.tif"), "--output", str(tmp_path / "audit.json")])
    assert twin.exit_code == 2 and "ends in .html" in twin.output
    small = CliRunner().invoke(main, [*words, "--overwrite", "--roi", "0:5,0:64,0:64"])
    assert small.exit_code == 2 and "needs at least 6 sections of 64 x 64" in small.output


def test_a_reconstruction_may_bring_its_report(stack: np.ndarray, tmp_path: Path) -> None:
    write_volume(tmp_path / "stack.tif", stack, SIZE)
    words = ["reconstruct", str(tmp_path / "stack.tif"), str(tmp_path / "out.zarr"), "--report", "--ensemble", "1"]
    done = CliRunner().invoke(main, [*words, "--model", "emformer-tiny", "--device", "cpu"])
    assert done.exit_code == 0, done.output
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"stack.tif", "out.zarr", "out.zarr.json", "out.zarr.audit.html", "out.zarr.audit.json"}
    assert json.loads((tmp_path / "out.zarr.audit.json").read_text())["facts"]["factor"] == 4
    write_volume(tmp_path / "few.tif", stack[:5], SIZE)
    few = CliRunner().invoke(main, ["reconstruct", str(tmp_path / "few.tif"), str(tmp_path / "few.zarr"), "--report"])
    assert few.exit_code == 2 and "needs at least 6 sections" in few.output and not (tmp_path / "few.zarr").exists()


def test_what_cannot_be_audited_is_said(stack: np.ndarray) -> None:
    with pytest.raises(InputError, match="constant"):
        audit_stack(np.zeros_like(stack), SECTIONS, SIZE, model="emformer-tiny")
    with pytest.raises(InputError, match=r"region 0:13,0:72,0:80 is not all there"):
        audit_stack(stack, SECTIONS, SIZE, region=(slice(0, 13), slice(0, 72), slice(0, 80)))


def test_of_a_large_region_the_middle_is_audited() -> None:
    region = (slice(100, 200), slice(0, 300), slice(10, 90))
    assert audits._middle(region) == (slice(126, 174), slice(22, 278), slice(10, 90))
