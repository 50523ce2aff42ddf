"""The page in a real browser: dropped, computed, looked at and downloaded, at the widths of a desk and of a phone."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from emformer_hub.cli import main
from emformer_hub.geometry import VoxelSize
from emformer_hub.volumes import read_volume, write_volume
from emformer_hub.volumes.phantom import neuropil, sample_stack

pytest.importorskip("gradio", reason="the page needs the extra [app]")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
QUIET += ["--disable-component-update", "--disable-sync"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The real command, serving; its temporary files are gone when a visitor leaves."""
    port, temporary = free_port(), tmp_path_factory.mktemp("temporary")
    command = [sys.executable, "-m", "emformer_hub.cli", "app", "--port", str(port), "--max-mvoxels", "1"]
    settings = os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": str(temporary), "HF_HUB_OFFLINE": "1"}
    server = subprocess.Popen(command, env=settings, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    while True:
        try:
            urllib.request.urlopen(url, timeout=600)
            break
        except OSError:
            assert server.poll() is None
            time.sleep(0.2)
    yield url
    server.terminate()
    server.wait(timeout=600)


@pytest.fixture(scope="module")
def browser() -> Iterator[sync_api.Browser]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture(params=[(1280, 900), (390, 844)], ids=["desk", "phone"])
def page(request: pytest.FixtureRequest, browser: sync_api.Browser, address: str) -> Iterator[sync_api.Page]:
    """The page, opened; it may complain of nothing, and ask nobody but its server."""
    width, height = request.param
    context = browser.new_context(viewport={"width": width, "height": height})
    page, wrong = context.new_page(), []
    page.on(
        "console", lambda message: wrong.append(f"{message.text} {message.location}") if message.type == "error" else 0
    )
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on(
        "request", lambda asked: wrong.append(asked.url) if not asked.url.startswith((address, "data:", "blob:")) else 0
    )
    page.set_default_timeout(600_000)
    page.goto(address)
    page.get_by_role("button", name="Take the sample").wait_for()
    yield page
    assert wrong == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    context.close()


@pytest.fixture
def stack(tmp_path: Path) -> Path:
    path = tmp_path / "mine.tif"
    write_volume(path, neuropil((24, 32, 48))[::3].copy(), VoxelSize(24, 8, 8))
    return path


def drop(page: sync_api.Page, path: Path) -> None:
    page.locator("input[type=file]").first.set_input_files(path)
    page.locator("#about").get_by_text("8 x 32 x 48 voxels (z, y, x), uint8").wait_for()


def test_a_stack_is_reconstructed_looked_at_and_downloaded(page: sync_api.Page, stack: Path, tmp_path: Path) -> None:
    drop(page, stack)
    voxel_size = page.get_by_label("Voxel size Z,Y,X in nm")
    sync_api.expect(voxel_size).to_have_value("24,8,8")
    voxel_size.fill("32,8,8")
    page.get_by_text("block faces").click()
    page.get_by_role("button", name="Reconstruct").click()
    page.locator("#views").wait_for(state="visible")
    assert "dB" in page.locator("#figures").inner_text()
    assert "32 x 32 x 48 voxels of 8,8,8 nm" in page.locator("#figures").inner_text()

    pictures = page.locator("#views img")
    sync_api.expect(pictures).to_have_count(3)
    legend = page.locator("#legend")
    sync_api.expect(legend).to_have_text("xz plane at y = 16.")
    before = pictures.nth(2).get_attribute("src")
    slider = page.locator("#position input[type=range]")
    slider.focus()
    page.keyboard.press("ArrowRight")
    sync_api.expect(legend).to_have_text("xz plane at y = 17.")
    sync_api.expect(pictures.nth(2)).not_to_have_attribute("src", str(before))
    page.get_by_label("Show uncertainty").check()
    sync_api.expect(legend).to_have_text(re.compile(r"Orange: uncertainty, from [\d.]+ to [\d.]+ grey levels"))
    page.get_by_label("yz", exact=True).check()
    sync_api.expect(legend).to_have_text(re.compile(r"yz plane at x = 24\."))

    with page.expect_download() as download:
        page.get_by_role("button", name="Download the volume").click()
    assert download.value.suggested_filename == "mine_isotropic.ome.tif"
    download.value.save_as(tmp_path / "got.ome.tif")
    got = read_volume(tmp_path / "got.ome.tif")
    assert got.data.shape == (32, 32, 48) and got.data.dtype == np.uint8 and got.voxel_size == VoxelSize(8, 8, 8)


@pytest.mark.parametrize("page", [(390, 844)], ids=["phone"], indirect=True)
def test_a_stack_is_checked_learned_from_and_tried(page: sync_api.Page, tmp_path: Path) -> None:
    data = sample_stack()[0][:12, :64, :96].copy()
    data[5] = 0
    write_volume(tmp_path / "spoilt.tif", data, VoxelSize(40, 8, 8))
    page.locator("input[type=file]").first.set_input_files(tmp_path / "spoilt.tif")
    page.locator("#about").get_by_text("12 x 64 x 96 voxels (z, y, x), uint8").wait_for()
    page.get_by_role("tab", name="Check stack").click()
    page.get_by_role("button", name="Check").click()
    page.locator("#checked").get_by_text("1 of 12 sections are flagged").wait_for()
    sync_api.expect(page.locator("#checked td").first).to_have_text("5")
    sync_api.expect(page.get_by_label("5: missing")).to_be_checked()
    page.get_by_label("And these").fill("9")
    page.keyboard.press("Tab")

    page.get_by_role("tab", name="Fine-tune").click()
    page.get_by_label("Base").click()
    page.get_by_role("option", name="emformer-tiny").click()
    page.get_by_role("button", name="Fine-tune").click()
    page.get_by_label(re.compile(r"Loss of \d+ steps")).wait_for()
    page.get_by_role("button", name="Stop").click()
    page.get_by_text("There is no result").wait_for()

    page.get_by_role("tab", name="Reconstruct").click()
    sync_api.expect(page.locator("#repaired")).to_have_text("Repaired: sections 5, 9.")
    page.get_by_label("Model").click()
    page.get_by_role("option", name="emformer-tiny").click()
    page.get_by_label("Only this part, as a trial").fill("2:10,0:32,8:56")
    page.get_by_role("button", name="Reconstruct").click()
    page.locator("#figures").get_by_text("40 x 32 x 48 voxels of 8,8,8 nm").wait_for()


def test_mistakes_are_said_in_words(page: sync_api.Page, stack: Path) -> None:
    start = page.get_by_role("button", name="Reconstruct")
    start.click()
    page.get_by_text("there is no stack yet").wait_for()
    drop(page, stack)
    page.get_by_label("Voxel size Z,Y,X in nm").fill("8,8,24")
    start.click()
    page.get_by_text("is the order right?").wait_for()
    page.get_by_label("Voxel size Z,Y,X in nm").fill("24,8,8")
    page.get_by_label("by translations in a file").check()
    wrong = stack.with_name("wrong.csv")
    wrong.write_text("y_voxels,x_voxels\n0,0\n")
    page.locator("#translations input[type=file]").set_input_files(wrong)
    page.locator("#translations").get_by_text("wrong").first.wait_for()
    start.click()
    page.get_by_text("translations of mine have shape (1, 2); expected (8, 2)").wait_for()
    page.get_by_label("Voxel size Z,Y,X in nm").fill("1600,100,100")
    page.get_by_text("emformer-small").or_(page.get_by_label("Model")).first.wait_for()


def test_the_keyboard_reaches_everything_in_order(page: sync_api.Page) -> None:
    page.locator("body").press("Tab")
    reached = []
    for _ in range(20):
        named = "document.activeElement.innerText || document.activeElement.ariaLabel || document.activeElement.name"
        reached.append(str(page.evaluate(named)).strip())
        page.keyboard.press("Tab")
    places = [reached.index(name) for name in ("Take the sample", "Reconstruct", "Stop")]
    assert places == sorted(places)


def test_a_taken_port_is_said() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        run = CliRunner().invoke(main, ["app", "--port", str(taken.getsockname()[1])])
    assert run.exit_code == 2
    assert "cannot be served at 127.0.0.1:" in run.stderr and "--port" in run.stderr
