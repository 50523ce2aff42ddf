"""Distances between sections: planted ones are found, even ones stay even, and what cannot be told is said."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from click.testing import CliRunner

from emformer_hub.cli import main
from emformer_hub.errors import InputError
from emformer_hub.geometry import VoxelSize
from emformer_hub.inspection import Spacings, measure_spacings
from emformer_hub.uneven import UnevenSections, check_z_positions
from emformer_hub.volumes import write_volume
from emformer_hub.volumes.phantom import neuropil
from emformer_hub.z_positions import read_z_positions

STEPS = np.array([4, 3, 5, 4, 2, 4, 6, 4, 3, 4, 5, 4, 4, 2, 5])
UNEVEN = np.append(0, np.cumsum(STEPS))
EVEN = np.arange(0, 61, 4)


@pytest.fixture(scope="module")
def tissue() -> np.ndarray:
    return neuropil((61, 264, 264), seed=3)


def test_planted_distances_are_found_as_well_as_is_said(tissue: np.ndarray) -> None:
    found = measure_spacings(tissue[UNEVEN], 4)
    true = STEPS / STEPS.mean()
    wrong = np.sqrt(np.mean((found.spacings - true) ** 2))
    assert wrong < 0.5 * true.std()
    assert 0.5 < wrong / np.sqrt(np.mean(found.errors**2)) < 2
    assert 0.5 < found.unevenness / true.std() < 1.5
    assert "uneven by" in found.sentence() and "15 of 15 pairs" in found.sentence()


def test_even_sections_are_left_even(tissue: np.ndarray) -> None:
    found = measure_spacings(tissue[EVEN], 4)
    assert (found.spacings == 1).all() and found.unevenness == 0
    assert found.sentence().startswith("even, as far as can be told")


def test_noise_and_contrast_that_differ_are_not_distance(tissue: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    stack = tissue[UNEVEN].astype(np.float32)
    noisy = stack * rng.uniform(0.5, 2, (16, 1, 1)) + rng.normal(0, 1, stack.shape) * rng.uniform(2, 12, (16, 1, 1))
    clean, other = measure_spacings(stack, 4), measure_spacings(noisy.astype(np.float32), 4)
    most = np.abs(other.spacings - clean.spacings).max()
    assert most < 0.15


def test_what_cannot_be_measured_counts_as_even(tissue: np.ndarray) -> None:
    stack = tissue[UNEVEN].copy()
    stack[7] = 0
    found = measure_spacings(stack, 4, unfit=[7])
    assert np.isnan(found.errors).nonzero()[0].tolist() == [6, 7]
    assert found.spacings[6] == found.spacings[7]
    assert found.to_dict()["errors"][6] is None and json.dumps(found.to_dict(), allow_nan=False)


def test_small_shifts_do_not_count_and_large_ones_are_told(tissue: np.ndarray) -> None:
    shifts = np.random.default_rng(1).integers(-4, 5, (16, 2))
    still = measure_spacings(tissue[UNEVEN][:, 4:-4, 4:-4], 4)
    cut = [
        part[4 + y : part.shape[0] - 4 + y, 4 + x : part.shape[1] - 4 + x]
        for part, (y, x) in zip(tissue[UNEVEN], shifts, strict=True)
    ]
    shifted = measure_spacings(np.stack(cut), 4)
    told = np.isfinite(shifted.errors)
    most = np.abs(shifted.spacings - still.spacings)[told].max()
    assert told.sum() >= 13 and most < 0.15
    scattered = np.stack([np.roll(part, 40 * (z % 2), 0) for z, part in enumerate(tissue[UNEVEN])])
    with pytest.raises(InputError, match=r"0 of 15 pairs .* Align the stack"):
        measure_spacings(scattered, 4)


def test_small_sections_and_few_of_them_are_refused(tissue: np.ndarray) -> None:
    with pytest.raises(InputError, match="200 x 264 voxels are too small"):
        measure_spacings(tissue[EVEN][:, :200], 4)
    with pytest.raises(InputError, match="3 of 3 pairs"):
        measure_spacings(tissue[EVEN][:4], 4)


def test_positions_keep_the_mean_distance_and_do_not_overlap() -> None:
    spacings = np.array([1.5, 0.4, 1.1, 1.0])
    listed = Spacings(spacings, np.full(4, 0.1), 0.3, 0.1).z_positions(40, 1)
    centres = np.array(check_z_positions(listed))[:, 0]  # raises an error where sections overlap
    assert np.allclose(np.diff(centres), spacings * 40)
    assert len(UnevenSections.of(listed, 10)) == 5


def test_the_command_writes_what_reconstruct_takes(tissue: np.ndarray, tmp_path: Path) -> None:
    stack, positions, report = tmp_path / "stack.tif", tmp_path / "z.csv", tmp_path / "report.json"
    write_volume(stack, tissue[UNEVEN], VoxelSize(32, 8, 8))
    result = CliRunner().invoke(main, ["inspect", str(stack), "--z-positions", str(positions), "--json", str(report)])
    assert result.exit_code == 0, result.output
    assert "spacing    uneven by" in result.output
    found = measure_spacings(tissue[UNEVEN], 4)
    assert np.allclose(read_z_positions(positions), found.z_positions(32, 1))
    assert json.loads(report.read_text())["spacing"] == found.to_dict()


def test_the_gap_of_a_lost_section_is_named_and_measured(tissue: np.ndarray, tmp_path: Path) -> None:
    stack, positions = tmp_path / "stack.tif", tmp_path / "z.csv"
    write_volume(stack, np.delete(tissue[::3], 8, axis=0), VoxelSize(24, 8, 8))
    result = CliRunner().invoke(main, ["inspect", str(stack), "--z-positions", str(positions)])
    assert "lost between 7 and 8" in result.output and "(19 of 19 pairs measured)" in result.output
    steps = np.diff(np.array(read_z_positions(positions))[:, 0])
    assert steps.argmax() == 7 and steps[7] > 1.25 * np.median(steps)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--thickness", "0.2"], "--z-positions FILE.csv"),
        (["--z-positions", "z.json"], "does not end in .csv"),
        (["--z-positions", "z.csv"], "--voxel-size"),
        (["--z-positions", "z.csv", "--voxel-size", "32,8,8", "--thickness", "2"], "thickness"),
    ],
)
def test_mistakes_are_told_before_the_work(options: list[str], says: str, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "stack.tif", np.zeros((8, 64, 64), np.uint8))
    options = [str(tmp_path / word) if word.startswith("z.") else word for word in options]
    result = CliRunner().invoke(main, ["inspect", str(tmp_path / "stack.tif"), *options])
    assert result.exit_code == 2
    assert says in result.output
