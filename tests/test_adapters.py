"""Adapters: small folders that find their base by name, give the same results however they are loaded, and merge."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from emformer_hub.adapters import add_adapter, load_adapter
from emformer_hub.cli import main
from emformer_hub.errors import InputError
from emformer_hub.model_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, is_adapter
from emformer_hub.modeling_emformer import EMformerModel
from emformer_hub.pretrained import registry
from emformer_hub.processing_emformer import EMformerProcessor
from emformer_hub.reconstruction import reconstruct
from emformer_hub.uncertainty import LAPLACE

BASE = "emformer-small"
CLIP = torch.linspace(-1, 1, 6 * 6 * 32).sin().reshape(1, 6, 6, 32)

METHODS = pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])


def output(model: torch.nn.Module) -> Tensor:
    with torch.inference_mode():
        return model.eval()(CLIP, 4.0).reconstruction


def write_adapter(folder: Path, *, dora: bool = False, seed: int = 0, base: str = BASE) -> tuple[Path, Tensor]:
    """An adapter with weights that do something, and what it makes of the clip."""
    adapted = add_adapter(EMformerModel.from_pretrained(base), base=base, rank=4, alpha=8, dora=dora)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.copy_(0.2 * torch.randn(weight.shape, generator=generator))
    adapted.save_pretrained(str(folder), save_embedding_layers=False)
    EMformerProcessor().save_pretrained(folder)
    return folder, output(adapted)


def change_config(folder: Path, **changes: Any) -> dict[str, Any]:
    config = {**json.loads((folder / ADAPTER_CONFIG).read_text()), **changes}
    (folder / ADAPTER_CONFIG).write_text(json.dumps(config))
    return config


@METHODS
def test_an_adapter_is_loaded_by_its_folder_like_any_model(tmp_path: Path, dora: bool) -> None:
    folder, expected = write_adapter(tmp_path / "mine", dora=dora)
    model = EMformerModel.from_pretrained(folder)
    assert isinstance(model, EMformerModel) and not model.training
    torch.testing.assert_close(output(model), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(output(load_adapter(folder)), expected, rtol=0, atol=0)
    assert (output(EMformerModel.from_pretrained(BASE)) - expected).abs().max() > 0.01


@METHODS
def test_a_loaded_adapter_is_a_plain_model_that_can_be_saved(tmp_path: Path, dora: bool) -> None:
    folder, _ = write_adapter(tmp_path / "mine", dora=dora)
    model = EMformerModel.from_pretrained(folder)
    model.save_pretrained(tmp_path / "merged")
    merged = EMformerModel.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(output(merged), output(model), rtol=0, atol=0)
    assert merged.state_dict().keys() == EMformerModel.from_pretrained(BASE).state_dict().keys()
    assert not is_adapter(tmp_path / "merged")


def test_the_file_is_small_and_holds_no_weight_of_the_base(tmp_path: Path) -> None:
    folder, _ = write_adapter(tmp_path / "mine")
    path = folder / "adapter_model.safetensors"
    assert path.stat().st_size < 1e6
    with safe_open(path, "pt") as tensors:
        names = list(tensors.keys())
        count = sum(tensors.get_tensor(name).numel() for name in names)
    assert all("lora_" in name for name in names)
    assert count < 0.05 * registry()[BASE].parameters


def test_the_base_is_named_as_the_hub_knows_it(tmp_path: Path) -> None:
    folder, _ = write_adapter(tmp_path / "mine")
    config = json.loads((folder / ADAPTER_CONFIG).read_text())
    published = registry()[BASE]
    assert (config["base_model_name_or_path"], config["revision"]) == (published.repo_id, published.revision)


def test_several_adapters_share_a_base_and_are_switched(tmp_path: Path) -> None:
    (first, expected_first), (second, expected_second) = (
        write_adapter(tmp_path / name, seed=seed) for seed, name in enumerate(["first", "second"])
    )
    adapted = load_adapter(first)
    adapted.load_adapter(str(second), "second")
    weight = adapted.get_base_model().embeddings.projection.weight
    for _ in range(2):
        adapted.set_adapter("default")
        torch.testing.assert_close(output(adapted), expected_first, rtol=0, atol=0)
        adapted.set_adapter("second")
        torch.testing.assert_close(output(adapted), expected_second, rtol=0, atol=0)
    assert adapted.get_base_model().embeddings.projection.weight is weight
    with adapted.disable_adapter():
        torch.testing.assert_close(output(adapted), output(EMformerModel.from_pretrained(BASE)), rtol=0, atol=0)


def test_reconstruct_takes_an_adapter_as_a_model(tmp_path: Path) -> None:
    """By its folder, loaded, and merged: the same voxels, and the intervals that were calibrated with it."""
    folder, _ = write_adapter(tmp_path / "mine")
    own = EMformerProcessor(error_quantiles={"full_thickness": [2 * multiple for multiple in LAPLACE]})
    own.save_pretrained(folder)
    CliRunner().invoke(main, ["merge", str(folder), str(tmp_path / "merged")], catch_exceptions=False)
    stack = np.random.default_rng(0).integers(0, 256, (6, 32, 32), np.uint8)
    named, loaded, merged = (
        reconstruct(stack, factor=2, model=model, ensemble=1, device="cpu", progress=False)
        for model in (str(folder), EMformerModel.from_pretrained(folder), str(tmp_path / "merged"))
    )
    for other in (loaded, merged):
        np.testing.assert_array_equal(named.volume, other.volume)
        assert other.processor.error_quantiles == named.processor.error_quantiles == own.error_quantiles


def test_a_base_in_a_folder_is_found_there(tmp_path: Path) -> None:
    EMformerModel.from_pretrained(BASE).save_pretrained(tmp_path / "base")
    folder, expected = write_adapter(tmp_path / "mine", base=str(tmp_path / "base"))
    torch.testing.assert_close(output(load_adapter(folder)), expected, rtol=0, atol=0)
    torch.testing.assert_close(output(EMformerModel.from_pretrained(folder)), expected, rtol=0, atol=1e-5)


def test_a_base_that_is_gone_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    folder, _ = write_adapter(tmp_path / "mine")
    for change in ({"base_model_name_or_path": "lab/emformer-lost", "revision": None}, {"revision": "v99"}):
        config = change_config(folder, **change)
        with pytest.raises(
            InputError, match=rf"mine is an adapter on '{config['base_model_name_or_path']}', which cannot"
        ):
            EMformerModel.from_pretrained(folder)


def test_an_adapter_that_does_not_fit_its_base_is_refused(tmp_path: Path) -> None:
    folder, _ = write_adapter(tmp_path / "mine")
    path = folder / "adapter_model.safetensors"
    weights = load_file(path)
    name = next(iter(weights))
    save_file({**weights, name: weights[name][..., :-1].contiguous()}, path)
    with pytest.raises(InputError, match="is an adapter on other weights than"):
        EMformerModel.from_pretrained(folder)


def test_an_adapter_of_another_network_is_refused(tmp_path: Path) -> None:
    folder, _ = write_adapter(tmp_path / "mine")
    path = folder / ADAPTER_WEIGHTS
    weights = load_file(path)
    name = next(iter(weights))
    for changed in ({f"{name}s": torch.ones(2), **weights}, {key: weights[key] for key in weights if key != name}):
        save_file(changed, path)
        with pytest.raises(InputError, match=rf"mine is an adapter on another network than .*: {name}s? does not fit"):
            EMformerModel.from_pretrained(folder)
    change_config(folder, target_modules="encoder")
    with pytest.raises(InputError, match=r"mine is an adapter on other weights .*: Target modules encoder not found"):
        EMformerModel.from_pretrained(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is not a configuration of PEFT"),
        ("[]", "is not a configuration of PEFT"),
        ('{"peft_type": "LOTTERY"}', "is not a configuration of PEFT: 'LOTTERY'"),
        ('{"peft_type": "LORA"}', "names no base_model_name_or_path"),
    ],
)
def test_a_configuration_that_says_nothing_is_refused(tmp_path: Path, content: str, message: str) -> None:
    folder, _ = write_adapter(tmp_path / "mine")
    (folder / ADAPTER_CONFIG).write_text(content)
    with pytest.raises(InputError, match=f"mine: adapter_config.json {message}"):
        EMformerModel.from_pretrained(folder)


def test_nothing_pickled_is_loaded(tmp_path: Path) -> None:
    folder, _ = write_adapter(tmp_path / "mine")
    torch.save(load_file(folder / ADAPTER_WEIGHTS), folder / "adapter_model.bin")
    (folder / ADAPTER_WEIGHTS).unlink()
    with pytest.raises(InputError, match=r"mine holds no adapter_model\.safetensors"):
        EMformerModel.from_pretrained(folder)
    model = EMformerModel.from_pretrained(BASE)
    model.save_pretrained(tmp_path / "model")
    torch.save(model.state_dict(), tmp_path / "model" / "pytorch_model.bin")
    (tmp_path / "model" / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"model: cannot be loaded: Error no file named model\.safetensors"):
        EMformerModel.from_pretrained(tmp_path / "model")


def test_a_folder_without_an_adapter_is_not_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no adapter_config\.json; expected the folder of an adapter"):
        load_adapter(tmp_path)


def test_the_merge_command_writes_a_plain_model(tmp_path: Path) -> None:
    folder, expected = write_adapter(tmp_path / "mine")
    result = CliRunner().invoke(main, ["merge", str(folder), str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    torch.testing.assert_close(output(EMformerModel.from_pretrained(tmp_path / "out")), expected, rtol=0, atol=1e-5)
    assert EMformerProcessor.from_pretrained(tmp_path / "out").percentiles == EMformerProcessor().percentiles
    again = CliRunner().invoke(main, ["merge", str(folder), str(tmp_path / "out")])
    assert again.exit_code == 2 and "is a folder; it is never replaced" in again.output
    lost = CliRunner().invoke(main, ["merge", str(tmp_path / "lost"), str(tmp_path / "other")])
    assert lost.exit_code == 2 and not (tmp_path / "other").exists()
