"""The inspection of a stack: planted defects are found, sound sections are not accused, bad input is named as such."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from _defects import DEFECTS, plant
from click.testing import CliRunner

from emformer_hub import InputError, VoxelSize, inspect_stack
from emformer_hub.cli import main
from emformer_hub.inspection.measures import displaced_parts, standardise
from emformer_hub.inspection.sections import LIMITS, Inspection
from emformer_hub.volumes import StoredArray, open_volume, write_volume
from emformer_hub.volumes.phantom import neuropil, sample_stack

SPOILT = 7


@pytest.fixture(scope="module")
def tissue() -> np.ndarray:
    """Sections 24 nm apart."""
    return np.ascontiguousarray(neuropil((39, 136, 144), seed=3)[::3])


@pytest.fixture(scope="module")
def clean(tissue: np.ndarray) -> Inspection:
    return inspect_stack(tissue)


def spoil(tissue: np.ndarray, defect: str, seed: int = 1) -> np.ndarray:
    stack = tissue.copy()
    stack[SPOILT] = plant(tissue, SPOILT, defect, np.random.default_rng(seed))
    return stack


def remarks(stack: np.ndarray) -> str:
    return " ".join(inspect_stack(stack).stack.remarks)


# --- sections ----------------------------------------------------------------------------------------------------


def test_sound_sections_are_not_accused(clean: Inspection) -> None:
    assert [quality.section for quality in clean.sections if quality.flags] == []
    assert clean.flagged == []
    assert not clean.damage_mask(SPOILT).any()


def test_cores_share_the_sections_and_change_nothing(tissue: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    spoilt = spoil(tissue, "fold")
    reports, steps = [], []
    for threads in (1, 3):
        monkeypatch.setattr("emformer_hub.inspection.sight._at_once", lambda voxels, threads=threads: threads)
        steps.append([])
        found = inspect_stack(spoilt, progress=lambda done, total: steps[-1].append((done, total)))
        reports.append((found.report(), found.damage_mask(SPOILT).tolist()))
    assert reports[0] == reports[1] and "damaged" in reports[0][0]["sections"][SPOILT]["flags"]
    assert steps[0] == steps[1] == [(step, 26) for step in range(1, 27)]

    def stop(done: int, total: int) -> None:
        if done == 15:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        inspect_stack(spoilt, progress=stop)


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_planted_defect_is_found_and_nothing_else(tissue: np.ndarray, defect: str) -> None:
    found = {quality.section: quality.flags for quality in inspect_stack(spoil(tissue, defect)).sections}
    assert DEFECTS[defect][1] in found.pop(SPOILT)
    assert {z for z, flags in found.items() if flags} == set()


def test_what_is_to_be_replaced_whole(tissue: np.ndarray) -> None:
    assert inspect_stack(spoil(tissue, "black")).flagged == [SPOILT]
    assert inspect_stack(spoil(tissue, "duplicate")).flagged == [SPOILT]
    assert inspect_stack(spoil(tissue, "brightness")).flagged == []


@pytest.mark.parametrize("by", [0, 9])
def test_parts_that_are_displaced_are_told_from_a_shift_of_the_whole(by: int) -> None:
    before, here, after = (standardise(section) for section in neuropil((16, 192, 224), seed=5)[:9:4])
    torn = here.copy()
    torn[:, 100:] = np.roll(here, by, axis=1)[:, 100:]
    assert displaced_parts(torn, before, after) == pytest.approx(by, abs=1.5)
    assert displaced_parts(np.roll(here, (by, by), axis=(0, 1)), before, after) == pytest.approx(0, abs=1.5)


def test_a_fold_too_faint_to_be_seen_is_known_by_what_it_pulled_away() -> None:
    stack = neuropil((52, 192, 224), seed=5)[::4].copy()
    section = stack[SPOILT].copy()
    stack[SPOILT, :, :-12] = np.delete(section, slice(100, 112), axis=1)  # twelve columns lie under the fold
    stack[SPOILT, :, 96:104] = stack[SPOILT, :, 96:104] * 0.9
    inspection = inspect_stack(stack)
    assert "damaged" in inspection.sections[SPOILT].flags
    assert inspection.sections[SPOILT].scores["torn"] == pytest.approx(12, abs=2)
    assert inspection.damage_mask(SPOILT).any()


@pytest.mark.parametrize("z", [0, SPOILT])
def test_a_section_is_damaged_where_its_score_says_so(tissue: np.ndarray, z: int) -> None:
    stack = tissue.copy()
    stack[z] = plant(tissue, z, "charging", np.random.default_rng(1))
    inspection = inspect_stack(stack)
    for quality in inspection.sections:
        assert ("damaged" in quality.flags) == (quality.scores["damage"] >= LIMITS["damage"])
    assert "damaged" in inspection.sections[z].flags and inspection.damage_mask(z).any()


def test_a_section_of_another_place_is_unlike_its_neighbours() -> None:
    stack = neuropil((36, 128, 128), seed=3)[::2]
    stack[SPOILT] = stack[0, ::-1, ::-1]
    inspection = inspect_stack(stack)
    assert "unlike" in inspection.sections[SPOILT].flags
    assert inspection.flagged == [SPOILT]


def test_the_shift_of_a_section_is_stated(tissue: np.ndarray) -> None:
    stack = tissue.copy()
    stack[SPOILT] = np.roll(tissue[SPOILT], (14, -11), axis=(0, 1))
    assert inspect_stack(stack).sections[SPOILT].shift_yx == pytest.approx((14, -11), abs=2)


def test_the_mask_covers_the_damage_and_little_else(tissue: np.ndarray) -> None:
    stack = tissue.copy()
    stack[SPOILT, 66:92, 60:88] = 250
    mask = inspect_stack(stack).damage_mask(SPOILT)
    assert mask.shape == tissue.shape[1:] and mask.dtype == bool
    assert mask[69:89, 63:85].mean() > 0.9
    mask[46:112, 40:108] = False
    assert mask.mean() < 0.02


def test_a_drift_of_brightness_is_no_defect(tissue: np.ndarray) -> None:
    drift = np.linspace(0, 60, len(tissue))[:, None, None]
    stack = (0.7 * tissue + drift).astype(np.uint16)
    assert [quality.section for quality in inspect_stack(stack).sections if quality.flags] == []


def named(stack: np.ndarray) -> dict[int, tuple[str, ...]]:
    return {quality.section: quality.flags for quality in inspect_stack(stack).sections if quality.flags}


@pytest.mark.parametrize("grey", [0.02, 0.98])
def test_a_crack_no_darker_or_brighter_than_tissue_is_found(tissue: np.ndarray, grey: float) -> None:
    stack = tissue.copy()
    y = np.arange(16, 126)
    x = np.rint(50 + 0.3 * y + 5 * np.sin(y / 20)).astype(int)
    for beside in range(4):
        stack[SPOILT, y, x + beside] = np.quantile(tissue[SPOILT], grey)
    inspection = inspect_stack(stack)
    assert {q.section: q.flags for q in inspection.sections if q.flags} == {SPOILT: ("damaged",)}
    mask = inspection.damage_mask(SPOILT)
    assert mask[y, x + 2].mean() > 0.7
    assert mask.mean() < 0.25


def test_a_lost_section_is_told_from_damage() -> None:
    dense = neuropil((30, 136, 144), seed=3)[::2]
    assert named(dense) == {}
    inspection = inspect_stack(np.delete(dense, SPOILT, axis=0))
    assert {q.section: q.flags for q in inspection.sections if q.flags} == {SPOILT: ("distant",)}
    assert f"lost between {SPOILT - 1} and {SPOILT}" in " ".join(inspection.stack.remarks)


@pytest.mark.parametrize("power", [0.55, 1.8])
def test_another_curve_of_grey_values_is_told_from_damage(tissue: np.ndarray, power: float) -> None:
    stack = tissue.copy()
    stack[SPOILT] = np.rint(255 * (tissue[SPOILT] / 255.0) ** power)
    found = named(stack)
    assert set(found) == {SPOILT} and set(found[SPOILT]) <= {"brightness", "contrast"}


def test_damage_is_found_in_a_section_of_another_curve_of_grey_values(tissue: np.ndarray) -> None:
    stack = spoil(tissue, "charging")
    stack[SPOILT] = np.rint(255 * (stack[SPOILT] / 255.0) ** 0.55)
    assert {"brightness", "damaged"} <= set(named(stack)[SPOILT])


# --- the stack ---------------------------------------------------------------------------------------------------


def test_the_factor_is_told_from_the_sections(clean: Inspection) -> None:
    assert clean.stack.factor_source == "correlation"
    assert clean.stack.factor == pytest.approx(3, rel=0.35)
    assert "thickness cannot be determined" in " ".join(clean.stack.remarks)


def test_sections_that_jitter_by_a_few_voxels_can_be_aligned(tissue: np.ndarray, clean: Inspection) -> None:
    moves = np.random.default_rng(0).integers(-3, 4, (len(tissue), 2)).tolist()
    jittering = np.stack([np.roll(section, move, (0, 1)) for section, move in zip(tissue, moves, strict=True)])
    assert "`--align translation` lays them better" in remarks(jittering)
    assert "--align" not in " ".join(clean.stack.remarks)


def test_the_voxel_size_settles_the_factor(tissue: np.ndarray) -> None:
    stack = inspect_stack(tissue, voxel_size=VoxelSize(160, 8, 8)).stack
    assert (stack.factor, stack.factor_source) == (20, "voxel size")
    assert "check the voxel size" in " ".join(stack.remarks)


def test_noise_is_measured(tissue: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    noisy = (tissue + rng.normal(0, 30, tissue.shape)).astype(np.float32)
    assert inspect_stack(noisy).stack.noise["grey_levels"] == pytest.approx(31, rel=0.25)


# --- bad input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lost", [5, 12, 16])
def test_a_section_beside_a_missing_one_is_not_blamed(lost: int) -> None:
    """It is compared with what lies further apart, and tissue changes with distance."""
    stack = sample_stack()[0].copy()
    stack[lost] = 0
    flags = {quality.section: quality.flags for quality in inspect_stack(stack).sections if quality.flags}
    assert flags == {lost: ("missing",)}


def test_every_other_section_missing(tissue: np.ndarray) -> None:
    stack = tissue.copy()
    stack[1::2] = 0
    inspection = inspect_stack(stack)
    assert inspection.flagged == list(range(1, len(stack), 2))
    assert "every other one" in " ".join(inspection.stack.remarks)


def test_nothing_but_blank_sections(tissue: np.ndarray) -> None:
    inspection = inspect_stack(np.full_like(tissue, 9))
    assert len(inspection.flagged) == len(tissue)
    assert "All sections are blank" in " ".join(inspection.stack.remarks)


def test_two_sections_allow_no_judgement(tissue: np.ndarray) -> None:
    assert "takes at least 3" in remarks(tissue[:2])
    assert "takes at least 3" in remarks(tissue[:1])


def test_one_bit_and_saturated_data_are_named(tissue: np.ndarray) -> None:
    assert "different values" in remarks((tissue > 128).astype(np.uint8))
    assert "saturated" in remarks((tissue.astype(float) * 3 - 200).clip(0, 255).astype(np.uint8))


def test_huge_shifts_are_named(tissue: np.ndarray) -> None:
    shifts = np.random.default_rng(0).integers(-70, 70, (len(tissue), 2))
    moved = np.stack([np.roll(section, by, axis=(0, 1)) for section, by in zip(tissue, shifts, strict=True)])
    assert "align the stack" in remarks(moved)


def test_values_that_are_not_finite_do_not_stop_it(tissue: np.ndarray) -> None:
    stack = tissue.astype(np.float32)
    stack[SPOILT] = np.nan
    stack[3, 5:9, 5:9] = np.inf
    inspection = inspect_stack(stack)
    assert inspection.flagged == [SPOILT]
    json.dumps(inspection.report(), allow_nan=False)


@pytest.mark.parametrize(
    ("stack", "message"),
    [
        (np.zeros((5, 40), np.uint8), "expected one grey-value stack"),
        (np.zeros((5, 20, 40), np.uint8), "at least 32"),
        (np.zeros((5, 40, 40), np.int64), "int64"),
    ],
)
def test_what_is_no_stack(stack: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        inspect_stack(stack)


def test_a_section_that_is_not_there(clean: Inspection) -> None:
    with pytest.raises(InputError, match="0 to 12"):
        clean.damage_mask(13)


# --- memory, JSON, command line ----------------------------------------------------------------------------------


def test_sections_are_read_one_at_a_time(tissue: np.ndarray) -> None:
    depths = []

    def read(box: tuple[slice, slice, slice]) -> np.ndarray:
        depths.append(len(range(*box[0].indices(len(tissue)))))
        return tissue[box]

    stored = StoredArray(tissue.shape, tissue.dtype, (1, *tissue.shape[1:]), read)
    inspection = inspect_stack(stored)
    assert max(depths) <= 2
    assert inspection.report() == inspect_stack(tissue).report()


def test_the_command_writes_json_and_picture(tissue: np.ndarray, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path, out, picture = tmp_path / "stack.ome.zarr", tmp_path / "out.json", tmp_path / "out.png"
    write_volume(path, spoil(tissue, "crack"), VoxelSize(24, 8, 8))
    words = ["inspect", str(path), "--json", str(out), "--picture", str(picture)]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    assert "1 of 13 sections are flagged" in result.output and "damaged" in result.output
    report = json.loads(out.read_text())
    assert [entry["section"] for entry in report["sections"]] == list(range(13))
    assert report["sections"][SPOILT]["flags"] == ["damaged"]
    assert report["stack"]["factor"] == 3
    assert report == inspect_stack(open_volume(path).data, voxel_size=VoxelSize(24, 8, 8)).report()
    assert picture.read_bytes().startswith(b"\x89PNG")

    before = out.read_bytes()
    again = CliRunner().invoke(main, words)
    assert again.exit_code == 2 and "--overwrite" in again.output
    assert out.read_bytes() == before
    assert CliRunner().invoke(main, [*words, "--overwrite"]).exit_code == 0


def test_the_command_needs_no_torch(tissue: np.ndarray, tmp_path: Path) -> None:
    write_volume(tmp_path / "stack.tif", tissue, VoxelSize(24, 8, 8))
    code = f"""import sys
from emformer_hub.cli import main
main(["inspect", {str(tmp_path / "stack.tif")!r}], standalone_mode=False)
assert "torch" not in sys.modules"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("words", [["nowhere.tif"], ["nowhere.tif", "--picture", "a.jpg"], ["x", "--json", "no/where"]])
def test_mistakes_end_with_status_2(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert CliRunner().invoke(main, ["inspect", *words]).exit_code == 2
    assert list(tmp_path.iterdir()) == []
