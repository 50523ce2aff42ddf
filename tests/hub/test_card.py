"""Model pages are written from files that stand beside them: every bundled one is what its files make of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from emformer_hub.cli import main
from emformer_hub.errors import InputError
from emformer_hub.hub.card import render
from emformer_hub.pretrained import PretrainedWeights, registry

EVERY_WEIGHT = pytest.mark.parametrize("weights", registry().values(), ids=registry())


@pytest.fixture
def page(tmp_path: Path) -> Path:
    folder = tmp_path / "page"
    shutil.copytree(registry()["emformer-small"].folder, folder)
    return folder


@EVERY_WEIGHT
def test_a_bundled_page_is_what_its_files_make_of_it(weights: PretrainedWeights) -> None:
    assert (weights.folder / "README.md").read_text() == render(weights, weights.folder)


@EVERY_WEIGHT
def test_a_page_says_what_the_hub_needs(weights: PretrainedWeights) -> None:
    front = yaml.safe_load(render(weights, weights.folder).split("---")[1])
    assert front["license"] == weights.licence.lower()
    assert (front["library_name"], front["pipeline_tag"]) == ("transformers", "image-to-image")
    assert {"psnr", "ssim"} <= set(front["metrics"])
    (index,) = front["model-index"]
    assert index["name"] == weights.name
    rows = [
        row
        for row in json.loads((weights.folder / "quality.json").read_text())["rows"]
        if row["method"] == weights.name
    ]
    stated = {
        metric["value"] for result in index["results"] for metric in result["metrics"] if metric["type"] == "psnr"
    }
    assert stated == {round(row["psnr_db"], 2) for row in rows}


@pytest.mark.parametrize("missing", ["about.yaml", "quality.json", "comparison.png"])
def test_a_page_without_a_source_is_not_written(page: Path, missing: str) -> None:
    (page / missing).unlink()
    with pytest.raises(InputError, match=rf"{missing} is missing"):
        render(registry()["emformer-small"], page)


def test_a_missing_field_is_named(page: Path) -> None:
    about = yaml.safe_load((page / "about.yaml").read_text())
    del about["use"]
    (page / "about.yaml").write_text(yaml.safe_dump(about))
    with pytest.raises(InputError, match=r"a value for the model page is missing: .*'use'"):
        render(registry()["emformer-small"], page)


def test_the_command_writes_the_page(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = (page / "README.md").read_text()
    (page / "README.md").unlink()
    monkeypatch.setattr(PretrainedWeights, "folder", property(lambda weights: page))
    assert CliRunner().invoke(main, ["card", "emformer-small"]).exit_code == 0
    assert (page / "README.md").read_text() == expected
    result = CliRunner().invoke(main, ["card", "emformer-smal"])
    assert result.exit_code == 2 and "is not published; expected one of emformer-small" in result.output
