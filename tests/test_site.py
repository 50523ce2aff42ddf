"""The site is built strictly: every page has its place, every link leads somewhere, tutorials are as they ran."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

import emformer_hub
from emformer_hub.cli import main

ROOT = Path(__file__).parents[1]
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.ipynb"))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(folder)]
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    run = subprocess.run(words, check=False, cwd=ROOT, env=quiet, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return folder


def test_every_public_name_and_command_is_described(site: Path) -> None:
    described = set(re.findall(r'<h\d id="[\w.]*?(\w+)" class="doc doc-heading"', (site / "api.html").read_text()))
    assert set(emformer_hub.__all__) <= described
    commands = set(re.findall(r'<h2 id="([\w-]+)"', (site / "commands.html").read_text()))
    assert set(main.commands) <= commands


def test_every_file_that_a_page_names_is_there(site: Path) -> None:
    """Pictures, styles and scripts too, and none of them from another server."""
    for page in site.rglob("*.html"):
        for kind, address in re.findall(r'<(?:img|script|link)[^>]*? (src|href)="([^"#?]+)', page.read_text()):
            if page.name == "404.html" or address.startswith("data:"):
                continue
            assert not address.startswith(("http:", "https:", "//")), f"{page.name}: {kind} {address}"
            assert (page.parent / address).exists(), f"{page.name}: {kind} {address}"


def test_each_drawing_is_made_by_the_script(tmp_path: Path) -> None:
    runpy.run_path(str(ROOT / "docs" / "drawings.py"))["main"](tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        path.name for path in (ROOT / "docs" / "design").glob("*.svg")
    )


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_a_tutorial_stores_what_its_code_printed(path: Path) -> None:
    """Whether the code runs is for test_documents; `make notebooks` stores what it prints and shows."""
    notebook = nbformat.read(path, as_version=4)
    assert notebook.metadata.run_of == runpy.run_path(str(ROOT / "docs" / "notebooks.py"))["fingerprint"](notebook)
    assert path.stat().st_size < 400_000


def test_every_picture_is_described(site: Path) -> None:
    for page in site.rglob("*.html"):
        for picture in re.findall(r"<img[^>]*>", page.read_text()):
            assert re.search(r'alt="[^"]{10,}"', picture), f"{page.name}: {picture}"
