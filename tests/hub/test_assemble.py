"""From a training run to a model page, and what the page promises."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import tifffile
from click.testing import CliRunner

from emformer_hub.errors import InputError
from emformer_hub.hub.assemble import assemble, headline_figures, main, training_stages
from emformer_hub.hub.stored_outputs import FILE, largest_difference
from emformer_hub.modeling_emformer import EMformerModel
from emformer_hub.processing_emformer import EMformerProcessor
from emformer_hub.training.loop import train
from emformer_hub.training.recipe import Recipe
from emformer_hub.volumes.phantom import neuropil

SOURCE = {"command": "python finetune", "commit": "abc1234", "device": "a laptop"}
TINY = {
    "model": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "window_size": [2, 2, 4]},
    "volumes": [{"path": "neuropil.tif", "voxel_size": "8,8,8"}],
    "sampling": {"factor": [1.5, 4, 8], "frames": 4, "rows": 4, "columns": 16},
    "steps": 2,
    "batch_size": 1,
}


@pytest.fixture(scope="module")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    tifffile.imwrite(folder / "neuropil.tif", neuropil((32, 48, 128)))
    return folder


@pytest.fixture(scope="module")
def run(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "first"
    train(Recipe.from_content(TINY, "TINY"), output, data_root=data_root)
    return output


def test_a_page_holds_the_weights_of_the_run_and_how_they_came_about(run: Path, tmp_path: Path) -> None:
    facts = assemble(run, tmp_path / "page", **SOURCE)
    page = tmp_path / "page"
    weights = page / "model.safetensors"
    model = EMformerModel.from_pretrained(page)
    assert facts == {
        "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "size": weights.stat().st_size,
        "configurations": {
            file: hashlib.sha256((page / file).read_bytes()).hexdigest()
            for file in ("config.json", "preprocessor_config.json")
        },
        "parameters": model.num_parameters(),
    }
    assert weights.read_bytes() == (run / "model.safetensors").read_bytes()
    assert largest_difference(model, page) == 0
    kept = EMformerProcessor.from_pretrained(run).error_quantiles
    assert EMformerProcessor.from_pretrained(page).error_quantiles == kept
    (stage,) = training_stages(page)
    assert stage.items() >= {**SOURCE, "steps": 2}.items()
    assert Recipe.from_content(stage["recipe"], "the page") == Recipe.load(run / "recipe.yaml")
    assert {record["geometry"] for record in stage["validation"]} == {
        "x4",
        "x8",
        "x8_single_plane",
        "x4_not_imaged",
        "x8_not_imaged",
    }


def test_stages_add_up_even_in_the_same_folder(run: Path, data_root: Path, tmp_path: Path) -> None:
    page = tmp_path / "page"
    assemble(run, page, **SOURCE)
    more = {key: value for key, value in TINY.items() if key != "model"} | {"base": str(page)}
    train(Recipe.from_content(more, "more"), tmp_path / "further", data_root=data_root)
    assemble(tmp_path / "further", page, **SOURCE)
    assert [stage["recipe"]["base"] for stage in training_stages(page)] == [None, str(page)]


def test_other_weights_are_noticed(run: Path, tmp_path: Path) -> None:
    assemble(run, tmp_path, **SOURCE)
    stranger = EMformerModel(EMformerModel.from_pretrained(run).config)
    assert largest_difference(stranger, tmp_path) > 1e-3


def test_an_unfinished_run_and_a_bare_folder_are_told_apart_from_pages(run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no model\.safetensors; expected the folder of a finished training run"):
        assemble(tmp_path, tmp_path / "page", **SOURCE)
    assert not (tmp_path / "page").exists()
    with pytest.raises(InputError, match=f"{FILE} is missing"):
        largest_difference(EMformerModel.from_pretrained(run), run)


def test_headline_figures_take_the_stronger_baseline(tmp_path: Path) -> None:
    gains = {"gain_over_bicubic_db": 1.234, "gain_over_trilinear_db": 0.567}
    geometry = {"name": "x8 t=1", "factor": 8}
    rows = [
        {
            "method": method,
            "experiment": experiment,
            "data": "stack",
            "geometry": {**geometry, "factor": factor},
            **gains,
        }
        for method in ("bicubic", "emformer-toy")
        for experiment in ("degraded along z", "degraded in plane", "section left out")
        for factor in (8, 6.7)
    ]
    (tmp_path / "quality.json").write_text(json.dumps({"rows": rows}))
    assert headline_figures(tmp_path, "emformer-toy") == {
        "stack, x8 t=1": 1.23,
        "stack, in plane x8 t=1": 1.23,
        "stack, section left out, over the mean of its neighbours": 0.57,
    }


def test_the_command_prints_what_the_registry_states(run: Path, tmp_path: Path) -> None:
    options = [part for name, value in SOURCE.items() for part in (f"--{name}", value)]
    result = CliRunner().invoke(main, [str(run), str(tmp_path / "page"), *options])
    assert result.exit_code == 0
    assert set(json.loads(result.stdout)) == {"sha256", "size", "configurations", "parameters"}
