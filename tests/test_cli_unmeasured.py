"""Voxels that were not measured mean the same to every command, and to training."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from click.testing import CliRunner, Result

from emformer_hub import inspect_stack
from emformer_hub.audit import audit_stack
from emformer_hub.cli import main
from emformer_hub.datasets.build import build
from emformer_hub.datasets.tables import read_table
from emformer_hub.geometry import SectionModel, VoxelSize
from emformer_hub.processing_emformer import EMformerProcessor
from emformer_hub.training.loop import load_volumes
from emformer_hub.training.recipe import Recipe
from emformer_hub.volumes import read_volume
from emformer_hub.volumes.phantom import neuropil

pytest.importorskip("skimage")

SHAPE = (12, 104, 96)
TISSUE = neuropil((4 * SHAPE[0], *SHAPE[1:]))[::4].copy()
SIZE = ["--voxel-size", "32,8,8"]


def run(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def spoiled(kind: str) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """A stack of which something was not measured, where, and the arguments that say so."""
    outside = np.zeros(SHAPE, bool)
    for z, section in enumerate(outside):
        section[: 3 * (z % 3)] = section[:, 96 - z :] = True
        section[84:90, 20 + z : 40 + z] = kind != "margins"
    value = 0 if kind == "margins" else 255
    stack = np.where(outside, value, TISSUE.clip(1, 254)).astype(np.uint8)
    return stack, outside, {"margins": {}, "nodata": {"nodata": 255}, "mask": {"mask": "mask.tif"}}[kind]


KINDS = pytest.mark.parametrize("kind", ["margins", "nodata", "mask"])


@pytest.fixture
def files(tmp_path: Path, kind: str) -> tuple[np.ndarray, np.ndarray, list[object], dict[str, Any]]:
    stack, outside, given = spoiled(kind)
    tifffile.imwrite(tmp_path / "in.tif", stack)
    tifffile.imwrite(tmp_path / "mask.tif", (~outside).astype(np.uint8))
    given = {name: tmp_path / value if name == "mask" else value for name, value in given.items()}
    return stack, outside, [word for name, value in given.items() for word in (f"--{name}", value)], given


@KINDS
def test_inspection_flags_no_section_for_what_was_not_measured(tmp_path: Path, files: Any) -> None:
    stack, outside, words, _ = files
    assert run("inspect", tmp_path / "in.tif", *words, "--json", tmp_path / "in.json").exit_code == 0
    found = json.loads((tmp_path / "in.json").read_text())
    expected = inspect_stack(TISSUE).report()
    assert [one["flags"] for one in found["sections"]] == [one["flags"] for one in expected["sections"]]
    masked = inspect_stack(np.ma.array(np.where(outside, 9, stack), mask=outside)).report()
    assert [one["flags"] for one in masked["sections"]] == [one["flags"] for one in expected["sections"]]


def test_an_inspection_still_finds_what_is_missing() -> None:
    stack, *_ = spoiled("margins")
    stack[5] = 0
    found = inspect_stack(stack)
    assert found.sections[5].flags == ("missing",) and found.flagged == [5]


@pytest.mark.parametrize("kind", ["nodata"])
def test_an_audit_keeps_to_what_was_measured(tmp_path: Path, files: Any) -> None:
    stack, outside, _, given = files
    volume = read_volume(tmp_path / "in.tif", **given)
    found = audit_stack(
        volume.data, SectionModel(4), VoxelSize(32, 8, 8), model="emformer-tiny", hidden=volume.hidden, device="cpu"
    )
    box = tuple(slice(*side) for side in found.facts["left_out_region"])
    assert not outside[box].any()
    statistics = EMformerProcessor().measure(stack, outside)
    assert found.facts["grey_levels_std"] == pytest.approx(statistics.std, rel=1e-3)


@KINDS
def test_a_truth_is_compared_where_it_was_measured(tmp_path: Path, files: Any) -> None:
    stack, outside, words, _ = files
    tifffile.imwrite(tmp_path / "made.tif", np.where(outside, 77, stack).astype(np.uint8))
    result = run("evaluate", tmp_path / "made.tif", tmp_path / "in.tif", "--voxel-size", "8,8,8", *words)
    assert result.exit_code == 0 and "PSNR            inf dB" in result.output
    assert "was measured throughout in" in result.output


@KINDS
def test_a_degraded_voxel_is_measured_if_all_of_it_was(tmp_path: Path, files: Any) -> None:
    stack, outside, words, _ = files
    words = ["--factor", 2, "--voxel-size", "8,8,8", *words]
    assert run("degrade", tmp_path / "in.tif", tmp_path / "out.tif", *words).exit_code == 0
    made = read_volume(tmp_path / "out.tif").data
    either = outside[::2] | outside[1::2]
    assert set(np.unique(made[either])) == {stack[outside].max()}
    mean = np.rint((stack[::2].astype(float) + stack[1::2]) / 2)
    assert (np.abs(made.astype(float) - mean)[~either] <= 1).all()


@KINDS
def test_training_keeps_to_what_was_measured(tmp_path: Path, files: Any) -> None:
    stack, outside, _, given = files
    entry = {"path": "in.tif", "voxel_size": "32,8,8", "holdout": 0.1, **given}
    entry |= {"mask": "mask.tif"} if "mask" in given else {}
    recipe = Recipe.load("lora", volumes=[entry])
    (volume,) = load_volumes(recipe, tmp_path, EMformerProcessor(), check_alignment=False)
    expected = EMformerProcessor().measure(stack, outside)
    assert volume.statistics.std == pytest.approx(expected.std, rel=1e-3)
    data = volume.data[:]
    (places,) = [
        (y, x)
        for y in range(SHAPE[1] - data.shape[1] + 1)
        for x in range(SHAPE[2] - data.shape[2] + 1)
        if np.array_equal(stack[: len(data), y : y + data.shape[1], x : x + data.shape[2]], data)
    ]
    y, x = places
    assert not outside[: len(data), y : y + data.shape[1], x : x + data.shape[2]].any()


@KINDS
def test_a_set_of_volumes_carries_its_marks_and_masks(tmp_path: Path, files: Any) -> None:
    pytest.importorskip("datasets")
    _, outside, _, given = files
    row = {"path": "in.tif", "voxel_size": "32,8,8", "licence": "CC0", **given}
    row |= {"mask": "mask.tif"} if "mask" in given else {}
    (tmp_path / "table.json").write_text(json.dumps([row]))
    build(tmp_path / "table.json", tmp_path / "set")
    (entry,) = read_table(tmp_path / "set" / "volumes.csv")
    assert entry.nodata == given.get("nodata") and (entry.mask is None) == ("mask" not in given)
    hidden = read_volume(entry.path, nodata=entry.nodata, mask=entry.mask).hidden
    assert (hidden is None) == (not given)
    if hidden is not None:
        np.testing.assert_array_equal(hidden[:], outside)
    assert "nodata" in {field.name for field in dataclasses.fields(entry)}
