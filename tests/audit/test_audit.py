"""An audit: every figure against a case that is known, and a page that needs nothing else."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from emformer_hub.audit import Audit, audit_stack, write_report
from emformer_hub.audit.audit import _middle
from emformer_hub.audit.report import html
from emformer_hub.audit.verdicts import VERDICTS
from emformer_hub.cli import main
from emformer_hub.errors import InputError
from emformer_hub.geometry import SectionModel, VoxelSize
from emformer_hub.reconstruction import reconstruct
from emformer_hub.volumes import write_volume
from emformer_hub.volumes.phantom import neuropil

SIZE = VoxelSize(32, 8, 8)
SECTIONS = SectionModel(4.0)


@pytest.fixture(scope="module")
def stack() -> np.ndarray:
    """12 sections of 72 x 80 voxels, each the mean of four planes."""
    return np.rint(SECTIONS.degrade(neuropil((48, 72, 80)))).astype(np.uint8)


@pytest.fixture(scope="module")
def found(stack: np.ndarray) -> Audit:
    return audit_stack(stack, SECTIONS, SIZE, model="emformer-tiny", name="phantom", device="cpu")


def test_a_paragraph_for_a_methods_section_says_what_was_done_and_found(found: Audit) -> None:
    said = found.report()["statement"]
    for words in (
        "12 sections (72 \u00d7 80 pixels; voxels of 32 \u00d7 8 \u00d7 8 nm, z, y and x)",
        "reconstructed to voxels of 8 \u00d7 8 \u00d7 8 nm",
        "model emformer-tiny",
        found.facts["weights_sha256"][:12],
        "factor 4",
        f"{abs(found.figures['left_out']['gain_over_linear_db']):.2f} dB",
        f"{abs(found.figures['in_plane']['gain_over_bicubic_db']):.2f} dB",
        f"{found.figures['consistency']['relative_rms']:.1%}",
    ):
        assert words in said, (words, said)
    assert said in html(found)


def test_all_items_are_judged_and_fit_for_json(found: Audit) -> None:
    report = found.report()
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    items = [verdict.item for verdict in found.verdicts]
    assert items == [
        "sections left out",
        "sharp plane, degraded",
        "intervals",
        "isotropy of spectra",
        "halves of the data",
        "agreement with the sections",
        "seams",
        "quality of sections",
        "grey levels",
    ]
    assert all(verdict.verdict in VERDICTS and verdict.reason.endswith(".") for verdict in found.verdicts)
    assert found.facts["region"] == [[0, 12], [0, 72], [0, 80]] and len(found.facts["weights_sha256"]) == 64
    shapes = {name: picture.shape for name, picture in found.pictures.items()}
    assert shapes["reconstruction"] == shapes["interpolation"] == shapes["uncertainty"] == (48, 72, 80)


def test_a_lost_section_is_named_and_spoils_no_figure(stack: np.ndarray, found: Audit) -> None:
    spoilt = stack.copy()
    spoilt[6] = 0
    audit = audit_stack(spoilt, SECTIONS, SIZE, model="emformer-tiny", device="cpu")
    assert audit.figures["quality"]["flagged"]["6"] == ["missing"]
    assert not {5, 6, 7} & set(audit.figures["left_out"]["section"])
    assert max(audit.figures["left_out"]["linear"]) < 1.5 * max(found.figures["left_out"]["linear"])


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


def run(path: Path, *options: str) -> Result:
    words = ["audit", str(path), "--output", str(path.with_name("out.html")), "--model", "emformer-tiny"]
    return CliRunner().invoke(main, [*words, "--device", "cpu", *options])


def test_the_command_line(stack: np.ndarray, tmp_path: Path) -> None:
    write_volume(tmp_path / "stack.tif", stack, SIZE)
    done = run(tmp_path / "stack.tif", "--factor", "4", "--roi", "0:8,0:64,8:72")
    assert done.exit_code == 0, done.output
    assert "sections left out" in done.output
    assert (tmp_path / "out.html").exists() and (tmp_path / "out.json").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--output", "audit.json"], "ends in .html"),
        (["--roi", "0:5,0:64,0:64"], "needs at least 6 sections of 64 x 64 voxels. Give the whole stack"),
        (["--roi", "0:12,0:72,0:81"], "is not all there"),
        (["--model", "emformer-smal"], "expected one of emformer-small, emformer-tiny"),
        (["--voxel-size", "8,8,32"], "is the order right?"),
        (["--voxel-size", "400,4,4"], "anisotropy factor is 100; expected 1 to 16"),
        (["--voxel-size", "8,8,8"], "nothing to restore between them. Is its voxel size right?"),
        (["--voxel-size", "40x4x4"], "expected Z,Y,X in nm, as in 40,4,4"),
        (["--thickness", "2"], "expected a fraction of the section spacing"),
    ],
)
def test_what_is_asked_wrongly_is_said(stack: np.ndarray, tmp_path: Path, options: list[str], message: str) -> None:
    write_volume(tmp_path / "stack.tif", stack, SIZE)
    done = run(tmp_path / "stack.tif", *options)
    assert done.exit_code == 2 and message in done.output, done.output
    assert [path.name for path in tmp_path.iterdir()] == ["stack.tif"]


def test_what_cannot_be_audited_is_said(stack: np.ndarray, tmp_path: Path) -> None:
    broken = stack.astype(np.float32)
    broken[3, 4, 5] = np.nan
    for data, message in (
        (stack[:2], "has shape (2, 72, 80) (sections, y, x); an audit needs at least 6 sections"),
        (np.full_like(stack, 7), "is constant: every voxel is 7"),
        (broken, "has 1 NaN or infinite voxel, the first at z=3, y=4, x=5"),
    ):
        write_volume(tmp_path / "stack.tif", data, SIZE, overwrite=True)
        done = run(tmp_path / "stack.tif")
        assert done.exit_code == 2 and message in done.output, done.output
        assert not (tmp_path / "out.html").exists()


@pytest.mark.parametrize("name", ["out.html", "out.json"])
def test_a_report_is_never_replaced_unasked(stack: np.ndarray, tmp_path: Path, name: str) -> None:
    write_volume(tmp_path / "stack.tif", stack, SIZE)
    (tmp_path / name).write_text("of last year")
    done = run(tmp_path / "stack.tif")
    assert done.exit_code == 2 and f"{name} already exists" in done.output and "--overwrite" in done.output
    assert (tmp_path / name).read_text() == "of last year"


def test_a_stack_that_jumps_is_not_called_good(stack: np.ndarray) -> None:
    jumping = np.stack([np.roll(section, 30 * (z % 2), axis=1) for z, section in enumerate(stack[:, :64, :64])])
    found = audit_stack(jumping, SECTIONS, SIZE, model="emformer-tiny", device="cpu")
    verdicts = {one.item: one.verdict for one in found.verdicts}
    assert verdicts["halves of the data"] == verdicts["intervals"] == "do not use"


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
    words[2] = str(tmp_path / "part.zarr")
    for options, message in ((["--roi", "0:12,0:40,0:80"], "shape (12, 40, 80)"), (["--factor", "1"], "factor 1")):
        refused = CliRunner().invoke(main, [*words, *options])
        assert refused.exit_code == 2 and message in refused.output and not (tmp_path / "part.zarr").exists()


def test_grey_levels_are_those_of_the_whole_stack(stack: np.ndarray) -> None:
    """As in a run on the whole: a bright part beside the region changes what is made of it alike."""
    beside = np.concatenate([stack, np.tile(np.array([0, 255], np.uint8), (12, 72, 40))], axis=2)
    settings: dict[str, Any] = {"model": "emformer-tiny", "device": "cpu"}
    whole = reconstruct(beside, factor=4, progress=False, **settings)
    region = (slice(0, 12), slice(0, 72), slice(0, 80))
    found = audit_stack(beside, SECTIONS, SIZE, region=region, **settings)
    np.testing.assert_allclose(found.pictures["reconstruction"][:, :, :48], whole.volume[:, :, :48], atol=1.0)
    cut = SECTIONS.degrade(found.pictures["reconstruction"])
    error = np.sqrt(np.square(cut - stack).mean())
    assert found.figures["consistency"]["rms"] == pytest.approx(error, rel=1e-4)
    assert found.figures["consistency"]["relative_rms"] == pytest.approx(error / found.facts["grey_levels_std"])


def test_a_middle_without_an_image_is_said() -> None:
    stack = np.zeros((6, 64, 320), np.uint8)
    stack[:, :, :16] = np.random.default_rng(0).integers(0, 255, (6, 64, 16))
    with pytest.raises(InputError, match="the middle of the stack is constant: every voxel is 0"):
        audit_stack(stack, SECTIONS, SIZE, model="emformer-tiny")


def test_of_a_large_region_the_middle_is_audited() -> None:
    region = (slice(100, 200), slice(0, 300), slice(10, 90))
    assert _middle(region, 256) == (slice(118, 182), slice(22, 278), slice(10, 90))
