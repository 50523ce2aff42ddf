"""The site is built strictly: every page has its place, every link leads somewhere, tutorials are as they ran."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

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


class Page(HTMLParser):
    """What a built page links to, what it loads, and what can be linked to in it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.anchors: set[str] = set()
        self.pictures: list[str] = []
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attributes}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif tag == "link" or "src" in given:
            self.loaded.append(given.get("src") or given["href"])
        if tag == "img":
            self.pictures.append(given.get("alt", ""))


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    """All pages but the one for what is not found, whose addresses begin at the root of a server."""
    return {path.resolve(): Page(path) for path in sorted(site.rglob("*.html")) if path.name != "404.html"}


def test_every_dialog_has_a_name(pages: dict[Path, Page]) -> None:
    for path in pages:
        assert re.findall(r'<[^>]*role="dialog"(?![^>]*aria-label=)[^>]*>', path.read_text()) == []


def test_every_link_leads_somewhere(pages: dict[Path, Page]) -> None:
    """Within the site to a file and an anchor that are there, and from it to an address that is one."""
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                assert parts.scheme == "https" and re.fullmatch(r"[\w-]+(\.[\w-]+)+", parts.netloc), f"{path}: {link}"
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert target.is_file(), f"{path}: {link}"
            anchor = unquote(parts.fragment)
            assert not anchor or target not in pages or anchor in pages[target].anchors, f"{path}: {link}"


def test_every_file_that_a_page_loads_is_there(pages: dict[Path, Page]) -> None:
    """Pictures, styles and scripts, none of them from another server."""
    for path, page in pages.items():
        for address in page.loaded:
            if not address.startswith("data:"):
                assert (path.parent / re.split("[?#]", address)[0]).is_file(), f"{path}: {address}"


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


def test_every_picture_is_described(pages: dict[Path, Page]) -> None:
    for path, page in pages.items():
        assert not [said for said in page.pictures if len(said) < 10], path
