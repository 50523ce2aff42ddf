"""Muon: orthogonal updates for the matrices of the layers, AdamW for the rest."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from emformer_hub.configuration_emformer import EMformerConfig
from emformer_hub.modeling_emformer import EMformerModel
from emformer_hub.training.optimizer import Muon, orthogonalised


def tiny_model() -> EMformerModel:
    torch.manual_seed(0)
    return EMformerModel(EMformerConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2))


def optimizer_of(model: nn.Module, **changes: float) -> Muon:
    return Muon(model, **{"learning_rate": 1e-3, "matrix_learning_rate": 1e-2, "weight_decay": 0.0, **changes})


@pytest.mark.parametrize("shape", [(12, 12), (8, 40), (40, 8)])
def test_an_orthogonalised_matrix_has_singular_values_of_about_one(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = orthogonalised(matrix)
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    values = (u.T @ found @ v.T).diagonal()  # in the singular vectors of the matrix itself
    assert values.min() > 0.6 and values.max() < 1.3
    torch.testing.assert_close(u @ values.diag() @ v, found, atol=1e-3, rtol=0)


def test_matrices_of_the_layers_go_by_muon_and_the_rest_by_adamw() -> None:
    model = tiny_model()
    names = {id(weight): name for name, weight in model.named_parameters()}
    others, matrices = ([names[id(weight)] for weight in g["params"]] for g in optimizer_of(model).param_groups)
    assert sorted([*others, *matrices]) == sorted(names.values())
    assert {name.split(".", 2)[2] for name in matrices} == {
        "attention.qkv.weight",
        "attention.proj.weight",
        "mlp.conv.weight",
        "mlp.fc2.weight",
    }


def test_a_step_moves_a_matrix_orthogonally_and_a_bias_as_adamw_does() -> None:
    model, twin = tiny_model(), tiny_model()
    for network in (model, twin):
        for weight in network.parameters():
            weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel()))
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    optimizer_of(model).step()
    torch.optim.AdamW(twin.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.0).step()
    adamw = dict(twin.named_parameters())
    for name, weight in model.named_parameters():
        if "layers." in name and weight.ndim >= 2 and "modulation" not in name:
            moved = torch.linalg.svdvals((weight - before[name]).flatten(1))
            wanted = 1e-2 * max(1.0, weight.shape[0] / weight.flatten(1).shape[1]) ** 0.5
            assert 0.7 * wanted < moved.mean() and moved.max() < 1.3 * wanted, name  # the same in nearly all directions
        else:
            torch.testing.assert_close(weight, adamw[name], atol=0, rtol=0, msg=name)
        assert weight.grad is not None


def test_a_frozen_parameter_is_left_alone() -> None:
    model = tiny_model()
    frozen = model.layers[0].mlp.conv.weight.requires_grad_(False)
    before = frozen.clone()
    optimizer = optimizer_of(model)
    model(torch.randn(1, 4, 4, 16), 2).reconstruction.square().mean().backward()
    optimizer.step()
    torch.testing.assert_close(frozen, before, atol=0, rtol=0)


def test_a_restored_optimizer_goes_on_as_the_first() -> None:
    def train(model: EMformerModel, optimizer: Muon, steps: range) -> None:
        for step in steps:
            sections = torch.randn(1, 4, 4, 16, generator=torch.Generator().manual_seed(step))
            model(sections, 2).reconstruction.square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

    model = tiny_model()
    optimizer = optimizer_of(model)
    train(model, optimizer, range(3))
    other = tiny_model()
    other.load_state_dict(model.state_dict())
    restored = optimizer_of(other)
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for network, its in ((model, optimizer), (other, restored)):
        train(network, its, range(3, 5))
    for (name, found), expected in zip(other.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(found, expected, atol=0, rtol=0, msg=name)
