"""Sections that are filled instead of believed, from file to file: what is asked for, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sketch import SKETCH

from emformer_hub import inspect_stack
from emformer_hub.errors import InputError
from emformer_hub.geometry import SectionModel, VoxelSize
from emformer_hub.measurement import consistency_residual
from emformer_hub.reconstruction import parts, reconstruct, reconstruct_file
from emformer_hub.reconstruction.job import Job
from emformer_hub.reconstruction.parts import TOLERANCE
from emformer_hub.reconstruction.repair import Repair, parse_sections
from emformer_hub.volumes import read_volume, write_volume
from emformer_hub.volumes.phantom import neuropil

SIZE = VoxelSize(24, 8, 8)
SETTINGS: dict[str, Any] = {"factor": 3.0, "model": SKETCH, "ensemble": 1, "device": "cpu"}
TILE = (22, 48, 64)


@pytest.fixture(scope="module")
def sections() -> np.ndarray:
    """24 of 60 x 90 voxels: 2 x 2 x 2 blocks."""
    return neuropil((72, 60, 90))[::3].copy()


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PART_VOXELS", 1)


def run(stack: np.ndarray, folder: Path, name: str = "out.zarr", **changed: Any) -> dict[str, Any]:
    if not (folder / "in.zarr").exists():
        write_volume(folder / "in.zarr", stack, SIZE)
    settings = {"voxel_size": SIZE, "tile_zyx": TILE} | SETTINGS | changed
    return json.loads(reconstruct_file(folder / "in.zarr", folder / name, **settings).read_text())


def in_memory(stack: np.ndarray, **changed: Any) -> Any:
    return reconstruct(stack, tile_zyx=TILE, progress=False, **SETTINGS | changed)


def test_named_sections_are_filled_as_in_memory(sections: np.ndarray, tmp_path: Path) -> None:
    stack = sections.astype(np.float32)
    stack[7], stack[23] = np.nan, -1e9
    facts = run(stack, tmp_path, repair=[7, 23], uncertainty=tmp_path / "sure.zarr")
    mask = np.zeros(24, bool)
    mask[[7, 23]] = True
    expected = in_memory(stack, mask=mask)
    np.testing.assert_array_equal(read_volume(tmp_path / "out.zarr").data, expected.volume)
    np.testing.assert_array_equal(read_volume(tmp_path / "sure.zarr").data, expected.uncertainty)
    assert facts["repair"] == [[7, "named", 1.0], [23, "named", 1.0]]


def test_what_an_inspection_finds_is_filled_and_nothing_else(sections: np.ndarray, tmp_path: Path) -> None:
    stack = sections.copy()
    stack[11] = 0
    stack[5, 20:40, 30:60] = 255
    found = inspect_stack(stack)
    assert 11 in found.flagged and "damaged" in found.sections[5].flags
    facts = run(stack, tmp_path, repair="auto")
    assert [(z, share == 1) for z, _, share in facts["repair"]] == [(5, False), (11, True)]
    assert found.damage_mask(5)[20:40, 30:60].mean() > 0.9
    made = read_volume(tmp_path / "out.zarr").data
    unrepaired = run(stack, tmp_path, "as_is.zarr")
    as_is = read_volume(tmp_path / "as_is.zarr").data
    assert unrepaired["repair"] == []
    truth = neuropil((72, 60, 90)).astype(float)
    for place in (np.s_[33:36], np.s_[15:18, 20:40, 30:60]):
        errors = [np.abs(volume[place] - truth[place]).mean() for volume in (made, as_is)]
        assert errors[0] < 0.6 * errors[1]


def test_a_repair_goes_on_where_it_stopped(sections: np.ndarray, tmp_path: Path) -> None:
    stack = sections.copy()
    stack[5, 20:40, 30:60] = 255

    def interrupted(job: Job, numbers: list[int], device: str | None) -> Any:
        yield from parts.here(job, numbers[:3], device)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(stack, tmp_path, repair="auto", scheduler=interrupted)
    with pytest.raises(InputError, match=r"repair was .*damaged.*is \(\); damage was '"):
        run(stack, tmp_path, resume=True)
    run(stack, tmp_path, repair="auto", resume=True)
    run(stack, tmp_path, "whole.zarr", repair="auto")
    volumes = [read_volume(tmp_path / name).data for name in ("out.zarr", "whole.zarr")]
    np.testing.assert_array_equal(*volumes)


@pytest.mark.parametrize("thickness", [1.0, 0.5])
def test_consistency_is_as_in_memory_and_reported(sections: np.ndarray, tmp_path: Path, thickness: float) -> None:
    facts = run(sections, tmp_path, mode="faithful", thickness=thickness)
    made = read_volume(tmp_path / "out.zarr").data
    np.testing.assert_array_equal(made, in_memory(sections, mode="faithful", thickness=thickness).volume)
    residual = consistency_residual(made, sections, SectionModel(3.0, thickness))
    assert facts["residual"]["rms"] == pytest.approx(residual.rms, rel=1e-3) and residual.relative_rms < 2e-3
    assert facts["residual"]["maximum"] == pytest.approx(residual.maximum, rel=1e-3)
    free = run(sections, tmp_path, "free.zarr", thickness=thickness)
    assert free["residual"]["rms"] > 2 * facts["residual"]["rms"]


def test_confident_voxels_are_those_of_memory(sections: np.ndarray, tmp_path: Path) -> None:
    trained: dict[str, Any] = {"model": "emformer-tiny"}  # to be sure of something
    facts = run(sections, tmp_path, "out.ome.zarr", confidence=0.8, repair=[7], **trained)
    mask = np.arange(24) == 7
    expected = in_memory(sections, mask=mask, **trained).confident(0.8, TOLERANCE * facts["std"])
    confident = read_volume(tmp_path / "out.confident.ome.zarr").data
    np.testing.assert_array_equal(confident, expected)
    assert confident.dtype == np.uint8 and 0.02 < confident.mean() < 0.98
    with pytest.raises(InputError, match="probability is 80"):
        run(sections, tmp_path, "other.zarr", confidence=80)


@pytest.mark.parametrize(
    ("repair", "message"),
    [
        (list(range(0, 24, 2)), r"sections 0 to 6|of 7 neighbouring|in a row"),
        (list(range(24)), r"leaves 0 of 24 sections"),
        ([24], r"section 24 is not there; .* has sections 0 to 23"),
        ("3,x", r"--repair '3,x' is neither auto, none nor a list of sections, counted from 0, as in 3,7-9"),
        ("9-7", r"is neither auto"),
    ],
    ids=["every other", "all", "beyond", "no number", "backwards"],
)
def test_what_cannot_be_repaired_is_refused(
    sections: np.ndarray, tmp_path: Path, repair: str | list[int], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        run(sections, tmp_path, repair=repair)
    assert {path.name for path in tmp_path.iterdir()} == {"in.zarr"}


def test_too_much_damage_at_one_place_is_refused() -> None:
    box = (slice(0, 20, 1), slice(0, 8, 1), slice(0, 8, 1))
    damage = {z: np.zeros((8, 8), bool) for z in range(4, 8)}
    for row, mask in enumerate(damage.values()):
        mask[row] = True  # each at another place
    Repair(dict.fromkeys(damage, "damaged"), damage).check(box)
    for mask in damage.values():
        mask[5, 5] = True
    with pytest.raises(InputError, match=r"sections 4, 5, 6, 7 are to be repaired at one place; at most 3 of 7"):
        Repair(dict.fromkeys(damage, "damaged"), damage).check(box)


def test_lists_of_sections() -> None:
    assert parse_sections("3,7-9") == [3, 7, 8, 9] and parse_sections("0") == [0]


def test_a_repair_that_was_chosen_before_a_stack_is_aligned_moves_with_its_sections() -> None:
    damage = np.zeros((40, 60), bool)
    damage[10:20, 30:50] = True
    moved = Repair({3: "damaged", 5: "named"}, {3: damage}).moved([(0, 0)] * 3 + [(-4.4, 17.6)] + [(9, 9)] * 4)
    assert moved.reasons == {3: "damaged", 5: "named"} and moved.whole == [5]
    expected = np.zeros((40, 60), bool)
    expected[6:16, 48:60] = True  # what leaves the frame is gone
    np.testing.assert_array_equal(moved.damage[3], expected)
