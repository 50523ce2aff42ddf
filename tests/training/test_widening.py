"""A network made wider computes what it did, and its copies learn different things."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from emformer_hub.configuration_emformer import EMformerConfig
from emformer_hub.errors import InputError
from emformer_hub.model_files import fingerprint
from emformer_hub.modeling_emformer import EMformerModel
from emformer_hub.training.recipe import Recipe
from emformer_hub.training.trainee import Trainee
from emformer_hub.training.widening import widen


@pytest.fixture
def model() -> EMformerModel:
    torch.manual_seed(0)
    network = EMformerModel(EMformerConfig(hidden_size=16, num_hidden_layers=4, num_attention_heads=2)).eval()
    with torch.no_grad():
        for weight in network.parameters():  # of a trained network: norms and biases say something, too
            weight.add_(0.1 * torch.randn(weight.shape))
    return network


@pytest.mark.parametrize("times", [2, 3])
def test_a_wider_network_computes_the_same(model: EMformerModel, times: int) -> None:
    wider = widen(model, times).eval()
    assert (wider.config.hidden_size, wider.config.num_attention_heads) == (16 * times, 2 * times)
    sections = torch.randn(2, 6, 7, 20, generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(1, 1, 7, 1, dtype=torch.bool)
    mask[:, :, 3] = True
    with torch.no_grad():
        before = model(sections, 5.5, thickness=0.5, section_mask=mask)
        after = wider(sections, 5.5, thickness=0.5, section_mask=mask)
    torch.testing.assert_close(after.reconstruction, before.reconstruction, atol=1e-4, rtol=0)
    torch.testing.assert_close(after.scale, before.scale, atol=1e-4, rtol=1e-4)


def test_copies_of_a_channel_learn_different_things(model: EMformerModel) -> None:
    wider = widen(model, 2)
    sections = torch.randn(1, 4, 4, 16, generator=torch.Generator().manual_seed(1))
    out = wider(sections, 4.0, labels=torch.zeros(1, 4, 16, 16))
    assert out.loss is not None
    out.loss.backward()
    for name, weight in wider.layers.named_parameters():
        assert weight.grad is not None
        if name.endswith("conv.weight"):
            first, second = weight.grad[0::2], weight.grad[1::2]
            assert (first - second).abs().max() > 0.1 * first.abs().max(), name


def test_a_recipe_widens_its_base_alike_each_time(model: EMformerModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    content = {"volumes": [{"path": "a.tif", "voxel_size": "8,8,8"}], "base": str(tmp_path), "steps": 1, "widen": 2}
    first, again = (Trainee(Recipe.from_content(content, "here")) for _ in range(2))
    assert first.model.config.hidden_size == 32
    assert first.origin == again.origin == fingerprint(widen(model, 2))


@pytest.mark.parametrize("change", [{"base": None, "model": {}}, {"method": "lora"}, {"widen": 0}])
def test_what_cannot_be_widened_is_refused(change: dict[str, object]) -> None:
    content = {"volumes": [{"path": "a.tif", "voxel_size": "8,8,8"}], "base": "emformer-small", "steps": 1, "widen": 2}
    with pytest.raises(InputError, match="widen"):
        Recipe.from_content({**content, **change}, "here")
