"""Models for other programs: what they compute is what ``reconstruct`` computes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from bioimageio import core
from click.testing import CliRunner

from emformer_hub.adapters import add_adapter
from emformer_hub.cli import main
from emformer_hub.errors import InputError
from emformer_hub.geometry import SectionModel
from emformer_hub.hub.export import export
from emformer_hub.modeling_emformer import EMformerModel
from emformer_hub.modes import Mode
from emformer_hub.processing_emformer import EMformerProcessor
from emformer_hub.reconstruction import reconstruct
from emformer_hub.volumes.phantom import neuropil

NAME, FACTOR, THICKNESS, TILE = "emformer-tiny", 3.4, 0.5, (8, 32, 48)


@pytest.fixture(scope="module")
def stack() -> np.ndarray:
    return SectionModel(FACTOR, THICKNESS).degrade(neuropil((28, 32, 48))).astype(np.float32)


@pytest.fixture(scope="module")
def expected(stack: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    result = reconstruct(
        stack, factor=FACTOR, thickness=THICKNESS, model=NAME, ensemble=2, precision="float32", device="cpu"
    )
    return result.volume, result.uncertainty


@pytest.fixture(scope="module")
def normalised(stack: np.ndarray) -> tuple[np.ndarray, float, float]:
    processor = EMformerProcessor()
    statistics = processor.measure(stack)
    return processor.normalise(stack, statistics)[None, None], statistics.mean, statistics.std


def written(folder: Path, suffix: str, name: str = NAME, mode: Mode = "clean") -> Path:
    path = folder / f"model{suffix}"
    export(name, path, factor=FACTOR, thickness=THICKNESS, tile_zyx=TILE, mode=mode)
    return path


def same(found: tuple[np.ndarray, ...], expected: tuple[np.ndarray, np.ndarray], mean: float, std: float) -> None:
    volume, uncertainty = (part[0, 0] for part in found)
    np.testing.assert_allclose(volume * std + mean, expected[0], rtol=0, atol=1e-2)  # grey levels
    np.testing.assert_allclose(uncertainty * std, expected[1], rtol=0, atol=1e-2)


def test_onnx_computes_what_reconstruct_does(
    tmp_path: Path, normalised: tuple[np.ndarray, float, float], expected: tuple[np.ndarray, np.ndarray]
) -> None:
    clip, mean, std = normalised
    session = onnxruntime.InferenceSession(written(tmp_path, ".onnx"))
    same(session.run(["volume", "uncertainty"], {"sections": clip}), expected, mean, std)
    facts = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
    assert (facts["model"], facts["factor"], facts["licence"]) == (NAME, FACTOR, "CC-BY-4.0")


def test_a_faithful_model_gives_the_sections(tmp_path: Path, normalised: tuple[np.ndarray, float, float]) -> None:
    clip, _, _ = normalised
    session = onnxruntime.InferenceSession(written(tmp_path, ".onnx", mode="faithful"))
    (volume, _) = session.run(["volume", "uncertainty"], {"sections": clip})
    np.testing.assert_allclose(SectionModel(FACTOR, THICKNESS).degrade(volume[0, 0]), clip[0, 0], atol=1e-3)


def test_a_torch_program_computes_what_reconstruct_does(
    tmp_path: Path, normalised: tuple[np.ndarray, float, float], expected: tuple[np.ndarray, np.ndarray]
) -> None:
    clip, mean, std = normalised
    program = torch.export.load(written(tmp_path, ".pt2")).module()
    same(tuple(part.detach().numpy() for part in program(torch.from_numpy(clip))), expected, mean, std)


def test_a_bioimageio_package_passes_the_test_of_the_zoo(tmp_path: Path) -> None:
    package = written(tmp_path, ".zip")
    summary = core.test_model(package)
    assert summary.status == "passed", summary.format()
    described = core.load_description(package)
    assert described.format_version.startswith("0.5")
    (sections,), (volume, uncertainty) = described.inputs, described.outputs
    assert [axis.size for axis in sections.axes][2:] == [8, 32, 48]
    assert [axis.size for axis in volume.axes] == [axis.size for axis in uncertainty.axes]
    assert [axis.size for axis in volume.axes][2:] == [27, 32, 48]


def test_an_adapter_is_baked_in(tmp_path: Path, normalised: tuple[np.ndarray, float, float]) -> None:
    adapted = add_adapter(EMformerModel.from_pretrained(NAME), base=NAME, rank=2, alpha=4)
    with torch.no_grad():
        for key, weight in adapted.named_parameters():
            if "lora_B" in key:
                weight.add_(0.1)
    adapted.save_pretrained(str(tmp_path / "mine"), save_embedding_layers=False)
    EMformerProcessor().save_pretrained(tmp_path / "mine")
    session = onnxruntime.InferenceSession(written(tmp_path, ".onnx", str(tmp_path / "mine")))
    clip = normalised[0]
    found, _ = session.run(None, {"sections": clip})
    plain, _ = onnxruntime.InferenceSession(written(tmp_path / "mine", ".onnx")).run(None, {"sections": clip})
    assert np.abs(found - plain).max() > 0.01


def test_the_command_writes_it(tmp_path: Path) -> None:
    words = ["export", NAME, str(tmp_path / "model.pt2"), "--factor", "2", "--tile", "4,16,32"]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    program = torch.export.load(tmp_path / "model.pt2").module()
    volume, uncertainty = program(torch.zeros(1, 1, 4, 16, 32))
    assert volume.shape == uncertainty.shape == (1, 1, 8, 16, 32)


@pytest.mark.parametrize(
    ("output", "tile", "message"),
    [
        ("model.pt", "16,64,64", "has the suffix '.pt'; expected one of .onnx, .pt2, .zip"),
        ("model.onnx", "16,64", "tile '16,64' is not three sizes"),
        ("model.onnx", "2,64,64", "expected sections, y and x of at least"),
        ("there.onnx", "16,64,64", "exists"),
    ],
)
def test_mistakes_are_messages(tmp_path: Path, output: str, tile: str, message: str) -> None:
    (tmp_path / "there.onnx").write_text("mine")
    words = ["export", NAME, str(tmp_path / output), "--factor", "8", "--tile", tile]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 2 and message in result.stderr, result.output
    assert [path.name for path in tmp_path.iterdir()] == ["there.onnx"]


@pytest.mark.parametrize(("suffix", "package"), [(".onnx", "onnxscript"), (".zip", "bioimageio.spec")])
def test_a_missing_package_is_named(tmp_path: Path, suffix: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=r"pip install 'emformer-hub\[zoo\]'"):
        written(tmp_path, suffix)
    assert list(tmp_path.iterdir()) == []
