"""Shifts between neighbouring sections: planted ones are found, tissue that moves by itself is not mistaken for one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from emformer_hub.geometry import VoxelSize
from emformer_hub.inspection import alignment_note, section_shifts
from emformer_hub.volumes import StoredArray, open_volume, write_volume
from emformer_hub.volumes.phantom import neuropil

MARGIN = 40  # how far sections may be shifted without leaving the phantom


@pytest.fixture(scope="module")
def tissue() -> np.ndarray:
    """Sections 16 nm apart."""
    return neuropil((40, 200, 220), seed=1)[::2]


def displaced(tissue: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    """Each section moved against the one before it by so many voxels (y, x)."""
    places = MARGIN - np.vstack([[0, 0], np.cumsum(shifts, axis=0)])
    assert places.min() >= 0 and places.max() <= 2 * MARGIN
    height, width = np.array(tissue.shape[1:]) - 2 * MARGIN
    pairs = zip(tissue, places, strict=True)
    return np.stack([section[y : y + height, x : x + width] for section, (y, x) in pairs])


def planted(length: int, step: int = 15) -> np.ndarray:
    """To and fro: ``(step, 2 - step)``, back again, and every third pair as it was."""
    return np.array([[(step, 2 - step), (-step, step - 2), (0, 0)][pair % 3] for pair in range(length)])


# --- the shifts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [0, 40], ids=["clean", "noisy"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_planted_shifts_are_found(tissue: np.ndarray, noise: float, dtype: str) -> None:
    shifts = planted(len(tissue) - 1)
    rng = np.random.default_rng(0)
    stack = displaced(tissue, shifts) + rng.normal(0, noise, (len(tissue), *np.array(tissue.shape[1:]) - 2 * MARGIN))
    scale = 200 if dtype == "uint16" else 1
    found = section_shifts((scale * stack.clip(0, 255)).astype(dtype))
    assert found.shape == shifts.shape
    assert np.abs(found - shifts).max() <= 2  # oblique tissue moves by itself


def test_brightness_and_contrast_of_a_section_do_not_matter(tissue: np.ndarray) -> None:
    shifts = planted(len(tissue) - 1)
    stack = displaced(tissue, shifts).astype(float)
    rng = np.random.default_rng(0)
    gain, brightness = np.exp(rng.normal(0, 0.3, len(stack))), rng.normal(0, 300, len(stack))
    charged = np.linspace(-60, 60, stack.shape[2]) * rng.normal(size=len(stack))[:, None, None]
    changed = stack * gain[:, None, None] + brightness[:, None, None] + charged
    assert np.abs(section_shifts(changed) - shifts).max() <= 2


def test_they_agree_with_scikit_image(tissue: np.ndarray) -> None:
    registration, filters = pytest.importorskip("skimage.registration"), pytest.importorskip("skimage.filters")
    stack = displaced(tissue, planted(len(tissue) - 1))
    passed = [filters.difference_of_gaussians(section.astype(float), 2, 8) for section in stack]
    for found, before, after in zip(section_shifts(stack), passed[:-1], passed[1:], strict=True):
        expected, _, _ = registration.phase_cross_correlation(after, before, normalization=None)
        assert np.abs(found - expected).max() <= 2


def test_nothing_is_told_of_blank_or_unlike_sections(tissue: np.ndarray) -> None:
    stack = displaced(tissue, planted(len(tissue) - 1)).astype(np.float32)
    stack[3] = 7  # blank
    stack[8] = np.random.default_rng(0).normal(100, 20, stack[8].shape)  # lost
    stack[13, 20, 20] = np.nan
    untold = np.isnan(section_shifts(stack)).all(axis=1)
    assert np.flatnonzero(untold).tolist() == [2, 3, 7, 8, 12, 13]
    assert np.isnan(section_shifts(np.zeros((5, 64, 64), np.uint8))).all()


@pytest.mark.parametrize("shape", [(1, 64, 64), (2, 16, 300), (3, 8, 8), (4, 1, 1)])
def test_small_volumes_do_no_harm(shape: tuple[int, int, int]) -> None:
    shifts = section_shifts(np.random.default_rng(0).normal(size=shape))
    assert shifts.shape == (shape[0] - 1, 2)
    alignment_note(shifts)


def test_a_large_volume_is_looked_at_in_the_middle_and_here_and_there() -> None:
    """At most 64 pairs of at most 512 x 512 voxels are read, wherever the voxels are."""
    boxes = []

    def read(box: tuple[slice, slice, slice]) -> np.ndarray:
        boxes.append(box)
        return np.zeros([part.stop - part.start for part in box], np.uint8)

    volume = StoredArray((5000, 600, 20_000), np.dtype("uint8"), (64, 64, 64), read)
    assert section_shifts(volume).shape == (64, 2)
    assert {(y.start, y.stop, x.start, x.stop) for _, y, x in boxes} == {(44, 556, 9744, 10_256)}
    planes = [z.start for z, _, _ in boxes]
    assert planes[0] == 0 and planes[-1] == 4998 and len(set(planes)) == 64
    assert all(z.stop - z.start == 2 for z, _, _ in boxes)


def test_a_volume_on_disk_is_measured_as_in_memory(tissue: np.ndarray, tmp_path: Path) -> None:
    stack = displaced(tissue, planted(len(tissue) - 1))
    write_volume(tmp_path / "a.zarr", stack, VoxelSize(16, 8, 8))
    stored = open_volume(tmp_path / "a.zarr").data
    np.testing.assert_array_equal(section_shifts(stored), section_shifts(stack))
    assert alignment_note(section_shifts(stored)) == alignment_note(section_shifts(stack))


# --- what is said of them ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("spacing", [1, 2, 4], ids="{} planes apart".format)
def test_nothing_is_said_of_aligned_tissue(spacing: int) -> None:
    assert alignment_note(section_shifts(neuropil((40, 160, 160), seed=2)[::spacing])) is None


def test_a_badly_aligned_stack_is_described(tissue: np.ndarray) -> None:
    note = alignment_note(section_shifts(displaced(tissue, planted(len(tissue) - 1))))
    assert note is not None
    assert note.startswith(
        "13 of 19 neighbouring sections are shifted against each other by more than 12 voxels, at most"
    )
    assert "align the stack first" in note


def test_small_shifts_and_a_single_jump_are_tolerated(tissue: np.ndarray) -> None:
    assert alignment_note(section_shifts(displaced(tissue, planted(len(tissue) - 1, step=5)))) is None
    single = np.zeros((len(tissue) - 1, 2), int)
    single[7] = 20, -20
    assert alignment_note(section_shifts(displaced(tissue, single))) is None


def test_blank_sections_do_not_make_a_stack_unaligned(tissue: np.ndarray) -> None:
    stack = tissue.copy()
    stack[[0, 5, 11]] = 0
    assert alignment_note(section_shifts(stack)) is None


def test_images_of_different_places_are_described() -> None:
    places = np.stack([neuropil((16, 128, 128), seed=seed)[8] for seed in range(6)])
    note = alignment_note(section_shifts(places))
    assert note is not None and "of 5 neighbouring sections have too little in common" in note
    assert "align it first" in note
