"""Models for other programs: what they compute is what ``reconstruct`` computes."""

from __future__ import annotations

import itertools
import json
import re
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import yaml
from bioimageio import core
from click.testing import CliRunner

from emformer_hub.adapters import add_adapter
from emformer_hub.cli import main
from emformer_hub.errors import InputError
from emformer_hub.geometry import SectionModel, VoxelSize
from emformer_hub.hub.export import WRITERS, export
from emformer_hub.modeling_emformer import EMformerModel
from emformer_hub.modes import Mode
from emformer_hub.processing_emformer import EMformerProcessor
from emformer_hub.reconstruction import reconstruct
from emformer_hub.reconstruction.settings import OpenStack
from emformer_hub.volumes import Volume, write_volume
from emformer_hub.volumes.phantom import neuropil

NAME, FACTOR, THICKNESS, TILE = "emformer-tiny", 3.4, 0.5, (8, 32, 48)


@pytest.fixture(scope="module")
def stack() -> np.ndarray:
    return SectionModel(FACTOR, THICKNESS).degrade(neuropil((28, 32, 48))).astype(np.float32)


def restored(stack: np.ndarray, model: str) -> tuple[np.ndarray, np.ndarray]:
    result = reconstruct(
        stack, factor=FACTOR, thickness=THICKNESS, model=model, ensemble=2, precision="float32", device="cpu"
    )
    return result.volume, result.uncertainty


@pytest.fixture(scope="module")
def expected(stack: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return restored(stack, NAME)


@pytest.fixture(scope="module")
def normalised(stack: np.ndarray) -> tuple[np.ndarray, float, float]:
    processor = EMformerProcessor()
    statistics = processor.measure(stack)
    return processor.normalise(stack, statistics)[None, None], statistics.mean, statistics.std


def written(folder: Path, suffix: str, name: str = NAME, mode: Mode = "clean") -> Path:
    path = folder / f"model{suffix}"
    export(name, path, factor=FACTOR, thickness=THICKNESS, tile_zyx=TILE, mode=mode)
    return path


@pytest.fixture(scope="module")
def uneven() -> np.ndarray:
    """20 sections of 96 x 48 voxels, bright resin and darker tissue: 2 x 2 tiles of 16 x 64 x 48."""
    tissue = 0.8 * neuropil((60, 96, 48))[1::3]
    resin = 200 + np.random.default_rng(0).normal(0, 4, tissue.shape)
    return np.where(np.arange(96)[:, None] < 44, resin, tissue).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def package(uneven: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package that the command writes for the uneven stack."""
    folder = tmp_path_factory.mktemp("package")
    write_volume(folder / "stack.tif", uneven, VoxelSize(24, 8, 8))
    words = ["--factor", "3", "--tile", "16,64,48", "--statistics-of", str(folder / "stack.tif")]
    result = CliRunner().invoke(main, ["export", NAME, str(folder / "model.zip"), *words])
    assert result.exit_code == 0, result.output
    return folder / "model.zip"


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


def test_a_bioimageio_package_passes_the_test_of_the_zoo(package: Path) -> None:
    summary = core.test_model(package)
    assert summary.status == "passed", summary.format()
    described = core.load_description(package)
    assert described.format_version.startswith("0.5")
    (sections,), outputs = described.inputs, described.outputs
    assert [axis.size for axis in sections.axes][2:] == [16, 64, 48]
    for output in outputs:
        assert [axis.halo for axis in output.axes[2:]] == [18, 16, 16]


class Runner:
    """A program that knows nothing of this package: it reads the description of a model, and runs it tile by tile."""

    def __init__(self, package: Path, *, by_itself: bool = False):
        with zipfile.ZipFile(package) as archive:
            self.described = yaml.safe_load(archive.read("rdf.yaml"))
            self.readme = archive.read(self.described["documentation"]["source"]).decode()
            weights = archive.read(self.described["weights"]["onnx"]["source"])
        self.session, self.by_itself = onnxruntime.InferenceSession(weights), by_itself

    def __call__(self, stack: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Values and uncertainty of a stack that tiles fill."""
        (sections,), outputs = self.described["inputs"], self.described["outputs"]
        sides = [axis["size"] for axis in sections["axes"][2:]]
        scales = [round(axis["scale"]) for axis in sections["axes"][2:]]
        halos = [axis["halo"] // scale for axis, scale in zip(outputs[0]["axes"][2:], scales, strict=True)]
        found = [np.zeros([n * by for n, by in zip(stack.shape, scales, strict=True)], np.float32) for _ in outputs]
        axes = zip(stack.shape, sides, halos, strict=True)
        for place in itertools.product(*(range(0, n - side + 1, side - 2 * halo) for n, side, halo in axes)):
            tile = stack[tuple(slice(at, at + side) for at, side in zip(place, sides, strict=True))]
            keep = [
                (0 if at == 0 else halo, side if at + side == n else side - halo)
                for at, side, halo, n in zip(place, sides, halos, stack.shape, strict=True)
            ]
            inside = tuple(slice(a * by, b * by) for (a, b), by in zip(keep, scales, strict=True))
            target = tuple(
                slice((at + a) * by, (at + b) * by) for at, (a, b), by in zip(place, keep, scales, strict=True)
            )
            for whole, part in zip(found, self.run(tile), strict=True):
                whole[target] = part[inside]
        return found[0], found[1]

    def run(self, tile: np.ndarray) -> list[np.ndarray]:
        (sections,), outputs = self.described["inputs"], self.described["outputs"]
        normalise = steps_of(sections["preprocessing"])["fixed_zero_mean_unit_variance"]
        mean, std = normalise["mean"], normalise["std"]
        if self.by_itself:
            mean, std = tile.mean(), tile.std()
        made = self.session.run(None, {"sections": ((tile - mean) / std).astype(np.float32)[None, None]})
        scaled = [steps_of(output["postprocessing"])["scale_linear"] for output in outputs]
        if self.by_itself:
            scaled = [{"gain": std, "offset": mean}, {"gain": std}]
        return [part[0, 0] * by["gain"] + by.get("offset", 0.0) for part, by in zip(made, scaled, strict=True)]


def steps_of(processing: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Arguments of each step by its name; a runner of float32 ignores those that ensure a data type."""
    return {step["id"]: step["kwargs"] for step in processing if step["id"] != "ensure_dtype"}


def steps(volume: np.ndarray, expected: np.ndarray) -> list[float]:
    """Largest step in brightness at each border between tiles, against what lies there without tiles, grey levels."""
    apart, borders = volume - expected, [(0, 30), (1, 48)]
    return [float(np.abs(np.diff(apart.take([at - 1, at], axis), axis=axis)).max()) for axis, at in borders]


def test_tiles_of_a_package_do_not_differ_in_brightness(package: Path, uneven: np.ndarray) -> None:
    whole = reconstruct(uneven.astype(np.float32), factor=3, model=NAME, precision="float32", device="cpu")
    volume, uncertainty = Runner(package)(uneven)
    assert max(steps(volume, whole.volume)) < 0.5
    np.testing.assert_allclose(volume, whole.volume, atol=0.5)  # grey levels
    np.testing.assert_allclose(uncertainty, whole.uncertainty, atol=0.5)
    by_itself, _ = Runner(package, by_itself=True)(uneven)
    assert min(steps(by_itself, whole.volume)) > 2  # what it was, when each tile was normalised by itself


def test_the_readme_of_a_package_says_what_to_do_for_another_stack(
    package: Path, uneven: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readme, written = Runner(package).readme, {}
    (command,) = re.findall(r"^    emformer-hub (export .*)$", readme, re.M)
    write_volume(tmp_path / "other.tif", uneven // 2, VoxelSize(24, 8, 8))
    assert command.startswith(f"export {NAME} model-other.zip --factor 3 ")
    words = command.replace("model-other.zip", str(tmp_path / "model-other.zip"))
    words = words.replace("OTHER", str(tmp_path / "other.tif"))

    def write(path: Path, tile: object, example: np.ndarray, facts: dict[str, Any]) -> None:
        written.update(facts)
        path.touch()

    monkeypatch.setitem(WRITERS, ".zip", write)
    result = CliRunner().invoke(main, words.split())
    assert result.exit_code == 0, result.output
    expected = EMformerProcessor.from_pretrained(NAME).measure(uneven // 2)
    assert (written["mean"], written["std"]) == (expected.mean, expected.std)
    assert (written["factor"], written["tile_zyx"], written["mode"]) == (3, (16, 64, 48), "clean")
    assert "`stack.tif`" in readme and "(18,16,16 planes, y, x)" in readme and "multiples of 4,16,16" in readme


def test_a_package_is_for_a_stack(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"name the stack with --statistics-of"):
        written(tmp_path, ".zip")
    with pytest.raises(InputError, match=r"normalised already; leave out --statistics-of, or write a \.zip"):
        export(NAME, tmp_path / "model.onnx", factor=3, statistics_of=tmp_path / "stack.tif")
    assert list(tmp_path.iterdir()) == []


def test_an_adapter_is_baked_in(
    tmp_path: Path,
    stack: np.ndarray,
    normalised: tuple[np.ndarray, float, float],
    expected: tuple[np.ndarray, np.ndarray],
) -> None:
    torch.manual_seed(0)
    adapted = add_adapter(EMformerModel.from_pretrained(NAME), base=NAME, rank=2, alpha=4)
    with torch.no_grad():
        for key, weight in adapted.named_parameters():
            if "lora_B" in key:
                weight.add_(0.1)
    adapted.save_pretrained(str(tmp_path / "mine"), save_embedding_layers=False)
    EMformerProcessor().save_pretrained(tmp_path / "mine")
    adapted_too = restored(stack, str(tmp_path / "mine"))
    assert np.abs(adapted_too[0] - expected[0]).max() > 0.1  # ten times what is the same
    clip, mean, std = normalised
    program = torch.export.load(written(tmp_path, ".pt2", str(tmp_path / "mine"))).module()
    same(tuple(part.detach().numpy() for part in program(torch.from_numpy(clip))), adapted_too, mean, std)


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
    stack = OpenStack("a stack", Volume(neuropil((16, 32, 48)), None, ""), stored=False) if suffix == ".zip" else None
    with pytest.raises(InputError, match=r"pip install 'emformer-hub\[zoo\]'"):
        export(NAME, tmp_path / f"model{suffix}", factor=FACTOR, tile_zyx=TILE, statistics_of=stack)
    assert list(tmp_path.iterdir()) == []
