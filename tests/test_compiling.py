"""One graph of the whole network, compiled or exported, equals the network, whatever the sizes of a clip."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.export import Dim

from emformer_hub.configuration_emformer import EMformerConfig
from emformer_hub.modeling_emformer import EMformerModel

SIZES = [(2, 11, 9, 43), (1, 9, 9, 57), (3, 17, 7, 40), (1, 6, 11, 80), (2, 8, 16, 48)]
"""Clips of more than two windows of (2, 2, 4 tokens of 2 columns) along each axis; the first one is the example."""


class Chosen(nn.Module):
    """The network with a geometry; sections, and what is masked of them, in, a tuple out."""

    def __init__(self, factor: float, **chosen: Any):
        super().__init__()
        torch.manual_seed(0)
        config = EMformerConfig(
            hidden_size=16,
            num_hidden_layers=2,
            attention_every=1,
            num_attention_heads=2,
            window_size=(2, 2, 4),
            num_basis=6,
            num_scale_basis=3,
            condition_size=8,
        )
        self.network = EMformerModel(config).eval()
        for parameter in self.network.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
        self.factor, self.chosen = factor, chosen

    def forward(self, sections: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        output = self.network(sections, self.factor, section_mask=mask, **self.chosen)
        return output.reconstruction, output.scale


@pytest.fixture(autouse=True)
def no_gradients():
    torch._dynamo.reset()
    with torch.no_grad():
        yield


def clip(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def assert_same(found: Any, expected: tuple[Tensor, Tensor], atol: float = 1e-4) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(torch.as_tensor(one), other, atol=atol, rtol=0)


@pytest.mark.slow
def test_one_graph_serves_every_size() -> None:
    network, graphs = Chosen(5.5), CompileCounter()
    compiled = torch.compile(network, fullgraph=True, dynamic=True, backend=graphs)
    for shape in SIZES:
        if shape[0] > 1:  # torch compiles a batch of one by itself
            assert_same(compiled(clip(*shape)), network(clip(*shape)))
    assert graphs.frame_count == 1


@pytest.mark.parametrize("dynamic", [None, pytest.param(True, marks=pytest.mark.slow)])
def test_each_geometry_has_a_graph_of_its_own(dynamic: bool | None) -> None:
    network, graphs = Chosen(4.0).network, CompileCounter()
    compiled = torch.compile(network, fullgraph=True, dynamic=dynamic, backend=graphs)
    sections = clip(2, 3, 5, 11)
    for factor, thickness in ((4, 1.0), (5.5, 0.5), (4, 1.0)):
        found, expected = (run(sections, factor, thickness=thickness) for run in (compiled, network))
        assert_same(found.to_tuple(), expected.to_tuple())
    assert graphs.frame_count == 2


@pytest.mark.parametrize(
    ("chosen", "masked"), [({"mode": "faithful"}, True), ({"positions": [0.9, 1.4, 2.0, 3.3]}, False)]
)
def test_modes_masks_and_positions_compile_and_export(chosen: dict[str, Any], masked: bool) -> None:
    network, sections = Chosen(2.5, **chosen), clip(2, 3, 5, 11)
    mask = torch.zeros(1, 1, 5, 1, dtype=torch.bool).index_fill(2, torch.tensor([2]), True) if masked else None
    expected = network(sections, mask)
    assert_same(torch.compile(network, fullgraph=True, backend="eager")(sections, mask), expected)
    sizes = ({0: Dim("batch")}, None)
    program = torch.export.export(network, (sections, mask), dynamic_shapes=sizes, strict=False)
    assert_same(program.module()(clip(3, 3, 5, 11), mask), network(clip(3, 3, 5, 11), mask))


def test_other_positions_are_another_graph() -> None:
    network, sections = Chosen(2.5).network, clip(1, 2, 4, 8)
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    for positions in ([0.9, 1.3, 1.7], [0.9, 1.3, 2.1]):
        found, expected = (run(sections, 2.5, mode="faithful", positions=positions) for run in (compiled, network))
        assert_same(found.to_tuple(), expected.to_tuple())


def exported(network: Chosen) -> torch.export.ExportedProgram:
    every = dict.fromkeys(range(4), Dim.DYNAMIC)
    return torch.export.export(network, (clip(*SIZES[0]),), dynamic_shapes=(every,), strict=False)


def test_an_exported_network_takes_any_size() -> None:
    network = Chosen(5.5)
    program = exported(network).module()
    for shape in SIZES:
        assert_same(program(clip(*shape)), network(clip(*shape)))


@pytest.mark.slow
@pytest.mark.parametrize("factor", [5.5, 4.0])
def test_an_onnx_file_takes_any_size(factor: float, tmp_path: Path) -> None:
    network = Chosen(factor)
    program = exported(network)
    file = torch.onnx.export(program, dynamo=True, input_names=["sections"], opset_version=18, verbose=False)
    assert file is not None
    file.save(tmp_path / "network.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "network.onnx")
    for shape in SIZES:
        found = session.run(None, {"sections": clip(*shape).numpy()})
        assert_same([np.asarray(one) for one in found], network(clip(*shape)))


def test_gradients_compile_too() -> None:
    network, sections = Chosen(4.0), clip(2, 3, 5, 11)
    found = []
    with torch.enable_grad():
        for run in (torch.compile(network, fullgraph=True, backend="aot_eager"), network):
            network.zero_grad()
            sum(part.square().mean() for part in run(sections)).backward()
            found.append([parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs a C++ compiler")
@pytest.mark.parametrize("dynamic", [None, True])
def test_kernels_of_the_compiler_compute_the_same(dynamic: bool | None) -> None:
    network = Chosen(5.5)
    compiled = torch.compile(network, fullgraph=True, dynamic=dynamic)
    for shape in SIZES[:2]:
        assert_same(compiled(clip(*shape)), network(clip(*shape)))
