"""Names and what they stand for, and the promises that every bundled weight keeps."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors import safe_open

from emformer_hub import pretrained
from emformer_hub.configuration_emformer import EMformerConfig
from emformer_hub.errors import InputError
from emformer_hub.hub.assemble import CONFIGURATIONS, headline_figures, training_stages
from emformer_hub.hub.stored_outputs import TOLERANCE, largest_difference
from emformer_hub.modeling_emformer import EMformerModel
from emformer_hub.pretrained import PretrainedWeights, registry, resolve_pretrained
from emformer_hub.processing_emformer import EMformerProcessor
from emformer_hub.reconstruction import reconstruct
from emformer_hub.volumes.phantom import neuropil

EVERY_WEIGHT = pytest.mark.parametrize("weights", registry().values(), ids=registry())
MODEL_PAGE = {
    "README.md",
    "config.json",
    "preprocessor_config.json",
    "model.safetensors",
    "test_tensors.safetensors",
    "training.json",
    "quality.json",
}


# --- the registry and the bundle ---------------------------------------------------------------------------------


def test_the_default_model_is_registered() -> None:
    assert "emformer-small" in registry()


@EVERY_WEIGHT
def test_a_record_is_complete(weights: PretrainedWeights) -> None:
    assert re.fullmatch(r"emformer-[a-z0-9-]+", weights.name)
    assert pretrained.HUB_ID.fullmatch(weights.repo_id) and weights.repo_id.endswith(f"/{weights.name}")
    assert re.fullmatch(r"[0-9a-f]{64}", weights.sha256)
    assert weights.licence and weights.summary and weights.parameters > 0
    assert all(all(vars(volume).values()) for volume in weights.data)
    assert weights.factor == (1, 16) and 0 < weights.voxel_nm[0] <= weights.voxel_nm[1]
    tags = [weights.revision, *(earlier.revision for earlier in weights.replaces)]
    assert all(re.fullmatch(r"v\d+", tag) for tag in tags) and len(set(tags)) == len(tags)
    assert all(re.fullmatch(r"[0-9a-f]{64}", earlier.sha256) for earlier in weights.replaces)


@EVERY_WEIGHT
def test_a_bundled_model_is_a_whole_page_of_at_most_10_mb(weights: PretrainedWeights) -> None:
    found = [path for path in weights.folder.rglob("*") if path.is_file()]
    assert {path.name for path in found} >= MODEL_PAGE
    assert sum(path.stat().st_size for path in found) <= 10_000_000
    assert {path.suffix for path in found} <= {".md", ".json", ".yaml", ".safetensors", ".png"}  # nothing pickled


@EVERY_WEIGHT
def test_the_weight_file_is_the_registered_one(weights: PretrainedWeights) -> None:
    path = weights.folder / "model.safetensors"
    assert hashlib.sha256(path.read_bytes()).hexdigest() == weights.sha256
    assert path.stat().st_size == weights.size
    with safe_open(path, "np") as tensors:
        assert sum(tensors.get_tensor(name).size for name in tensors.keys()) == weights.parameters  # noqa: SIM118


@EVERY_WEIGHT
def test_the_configurations_are_the_registered_ones(weights: PretrainedWeights) -> None:
    assert weights.configurations == {
        file: hashlib.sha256((weights.folder / file).read_bytes()).hexdigest() for file in CONFIGURATIONS
    }


@EVERY_WEIGHT
def test_the_licence_is_on_the_model_page(weights: PretrainedWeights) -> None:
    card = (weights.folder / "README.md").read_text()
    front_matter = yaml.safe_load(card.split("---")[1])
    assert front_matter["license"] == weights.licence.lower()
    assert weights.licence.lower() in card.split("---", 2)[2].lower()


@EVERY_WEIGHT
def test_the_figures_are_those_that_the_benchmark_wrote(weights: PretrainedWeights) -> None:
    assert weights.figures == headline_figures(weights.folder, weights.name)


@EVERY_WEIGHT
def test_the_page_names_every_volume_that_it_was_trained_on(weights: PretrainedWeights) -> None:
    volumes = {volume["path"] for stage in training_stages(weights.folder) for volume in stage["recipe"]["volumes"]}
    assert {volume.file for volume in weights.data} == volumes
    card = (weights.folder / "README.md").read_text()
    assert all(volume.source in card and volume.licence in card for volume in weights.data)


@EVERY_WEIGHT
def test_the_weights_do_what_they_did_when_they_were_stored(weights: PretrainedWeights) -> None:
    model = EMformerModel.from_pretrained(weights.name)
    assert largest_difference(model, weights.folder) < TOLERANCE
    with torch.no_grad():  # and a difference in one matrix would show
        model.layers[0].mlp.fc2.weight.mul_(1.01)
    assert largest_difference(model, weights.folder) > TOLERANCE


@EVERY_WEIGHT
def test_a_bundled_model_loads_ready_for_use(weights: PretrainedWeights) -> None:
    model = EMformerModel.from_pretrained(weights.name)
    assert model.num_parameters() == weights.parameters
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert not model.training
    assert EMformerProcessor.from_pretrained(weights.name).percentiles == EMformerProcessor().percentiles


def test_bundled_models_load_without_a_network(tmp_path: Path) -> None:
    code = """
import socket

def no_network(*args, **kwargs):
    raise AssertionError("the network was asked")

socket.socket.connect = socket.getaddrinfo = no_network
from emformer_hub import EMformerModel, EMformerProcessor
from emformer_hub.pretrained import registry

for weights in registry().values():
    for name in (weights.name, weights.repo_id, weights.folder):
        EMformerProcessor.from_pretrained(name)
        assert EMformerModel.from_pretrained(name).num_parameters() == weights.parameters
print("loaded")
"""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "TRANSFORMERS_"))}
    for offline in ({}, {"HF_HUB_OFFLINE": "1"}):
        run = subprocess.run(
            [sys.executable, "-c", code],
            check=False,
            capture_output=True,
            text=True,
            timeout=600,
            cwd=tmp_path,
            env=environment | offline | {"HF_HOME": str(tmp_path / "cache")},
        )
        assert run.stdout.strip() == "loaded", run.stderr


@EVERY_WEIGHT
def test_a_bundled_model_leaves_no_seams(weights: PretrainedWeights) -> None:
    stack = neuropil((80, 40, 40))[::2]
    options = {"factor": 2, "model": weights.name, "ensemble": 1, "device": "cpu", "progress": False}
    whole = reconstruct(stack, tile_zyx=(999, 999, 999), **options)
    tiled = reconstruct(stack, tile_zyx=(24, 999, 999), **options)
    difference = np.abs(tiled.volume.astype(int) - whole.volume)
    assert difference.max() <= 2 and difference.mean() < 0.02


# --- names -------------------------------------------------------------------------------------------------------


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A registry with one bundled model, ``emformer-toy``, and one that is on the Hub only, ``emformer-far``."""
    folder = tmp_path / "model_cards"
    (folder / "emformer-toy").mkdir(parents=True)
    (folder / "emformer-toy" / "config.json").write_text("{}")
    (folder / "emformer-toy" / "model.safetensors").write_bytes(b"weights")
    sha256, configuration = (hashlib.sha256(content).hexdigest() for content in (b"weights", b"{}"))
    stated = {"revision": "v2", "sha256": sha256, "configurations": {"config.json": configuration}}
    records = {
        name: dataclasses.replace(registry()["emformer-small"], name=name, repo_id=f"lab/{name}", **stated)
        for name in ("emformer-toy", "emformer-far")
    }
    monkeypatch.setattr(pretrained, "registry", lambda: records)
    monkeypatch.setattr(PretrainedWeights, "folder", property(lambda weights: folder / weights.name))
    monkeypatch.chdir(tmp_path)
    return folder


def test_a_bundled_name_is_its_folder_wherever_one_stands(bundle: Path) -> None:
    expected = str(bundle / "emformer-toy")
    assert resolve_pretrained("emformer-toy") == expected
    assert resolve_pretrained("lab/emformer-toy") == expected  # its Hub id needs no network either
    Path("emformer-toy").mkdir()
    Path("emformer-toy/config.json").write_text("{}")
    assert resolve_pretrained("emformer-toy") == expected
    assert resolve_pretrained("./emformer-toy") == "./emformer-toy"


def test_another_revision_is_looked_for_on_the_hub(bundle: Path) -> None:
    for name in ("emformer-toy", "lab/emformer-toy"):
        assert resolve_pretrained(name, "v2") == str(bundle / "emformer-toy")
        assert resolve_pretrained(name, "v1") == "lab/emformer-toy"
    assert resolve_pretrained("someone/else", "v1") == "someone/else"


@pytest.mark.parametrize("cls", [EMformerModel, EMformerProcessor, EMformerConfig])
def test_a_pinned_revision_is_never_silently_another(cls: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="cannot be loaded"):
        cls.from_pretrained("emformer-small", revision="v1")
    assert cls.from_pretrained("emformer-small", revision=registry()["emformer-small"].revision)


def test_a_folder_is_itself(bundle: Path) -> None:
    folder = Path("lab/emformer-mine")
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    for name in (folder, str(folder), folder.absolute()):
        assert resolve_pretrained(name) == str(name)


def test_anything_else_with_one_slash_is_a_hub_id(bundle: Path) -> None:
    assert resolve_pretrained("lab/emformer-far") == "lab/emformer-far"
    assert resolve_pretrained("someone/else.v2") == "someone/else.v2"


@pytest.mark.parametrize("name", ["emformer-tyo", "a/b/c", "./missing/model", "", "weights.safetensors", "~/model"])
def test_unknown_names_are_told_what_there_is(bundle: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"is not known; expected one of emformer-toy, .*'emformer-hub models'"):
        resolve_pretrained(name)


def test_a_file_is_not_a_model(bundle: Path) -> None:
    Path("lab").mkdir()
    Path("lab/model.safetensors").write_bytes(b"weights")
    with pytest.raises(InputError, match="is not known"):
        resolve_pretrained("lab/model.safetensors")


@pytest.mark.parametrize(
    ("file", "content"),
    [("model.safetensors", b""), ("model.safetensors", b"Weights"), ("config.json", b"{ }")],
)
def test_a_damaged_bundle_is_never_loaded(bundle: Path, file: str, content: bytes) -> None:
    (bundle / "emformer-toy" / file).write_bytes(content)
    for name in ("emformer-toy", "lab/emformer-toy"):
        with pytest.raises(InputError, match=rf"{file} is damaged: sha256 .*Reinstall"):
            resolve_pretrained(name)


def test_a_missing_bundle_is_named(bundle: Path) -> None:
    (bundle / "emformer-toy" / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"model\.safetensors is missing.*reinstall"):
        resolve_pretrained("emformer-toy")


def test_a_hub_id_that_cannot_be_reached_says_what_works_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"nobody/emformer-none: cannot be loaded: .*Without a network, give a folder"):
        EMformerModel.from_pretrained("nobody/emformer-none")
