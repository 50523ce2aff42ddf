"""Displacements of sections: planted ones are undone, tissue that moves by itself is left alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from emformer_hub.errors import InputError
from emformer_hub.inspection import measure_displacements, translations_of
from emformer_hub.inspection.displacements import check_translations_suffice
from emformer_hub.volumes.phantom import neuropil
from emformer_hub.volumes.translated import read_translations, write_translations
from emformer_hub.volumes.unmeasured import hidden_voxels

MARGIN = 30  # how far sections may be shifted without leaving the phantom


@pytest.fixture(scope="module")
def tissue() -> np.ndarray:
    """16 sections 16 nm apart."""
    return neuropil((32, 260, 280), seed=3)[::2]


def moved(tissue: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    """The middle of each section, whose content is moved by so many voxels (y, x)."""
    height, width = np.array(tissue.shape[1:]) - 2 * MARGIN
    places = MARGIN - shifts
    assert places.min() >= 0 and places.max() <= 2 * MARGIN
    return np.stack([part[y : y + height, x : x + width] for part, (y, x) in zip(tissue, places, strict=True)])


def jitter(sections: int) -> np.ndarray:
    shifts = np.random.default_rng(5).integers(-8, 9, (sections, 2))
    return shifts - np.median(shifts, axis=0).astype(int)


DRIFT = np.cumsum(np.random.default_rng(6).integers(-4, 5, (16, 2)), axis=0)


@pytest.mark.parametrize("shifts", [jitter(16), DRIFT], ids=["jitter", "drift"])
def test_neighbours_come_to_lie_over_each_other(tissue: np.ndarray, shifts: np.ndarray) -> None:
    left = np.rint(translations_of(measure_displacements(moved(tissue, shifts)))) + shifts
    assert np.abs(np.diff(left, axis=0)).max() <= 2  # tissue moves by itself
    assert np.abs(np.diff(shifts, axis=0)).max() >= 4


def test_an_aligned_stack_stays_as_it_is(tissue: np.ndarray) -> None:
    assert np.abs(translations_of(measure_displacements(tissue))).max() < 0.5


def test_a_jump_is_undone_and_the_median_section_stays(tissue: np.ndarray) -> None:
    shifts = np.outer(np.arange(16) >= 11, [14, -9])
    translations = np.array(translations_of(measure_displacements(moved(tissue, shifts))))
    assert np.abs(np.median(translations, axis=0)).max() < 1e-9
    assert np.abs(translations[11] - translations[10] - (-14, 9)).max() <= 2


def test_blank_and_unrelated_sections_are_skipped(tissue: np.ndarray) -> None:
    shifts = jitter(16)
    stack = moved(tissue, shifts)
    stack[5], stack[9] = 0, np.random.default_rng(0).integers(0, 255, stack[9].shape)
    found = measure_displacements(stack)
    assert found.num_sections == 16 and 5 not in found.pairs
    others = [z for z in range(16) if z not in (5, 9)]
    left = (np.rint(translations_of(found)) + shifts)[others]
    assert np.abs(np.diff(left, axis=0)).max() <= 3


def test_hidden_voxels_do_not_count(tissue: np.ndarray) -> None:
    shifts = jitter(16)
    stack = moved(tissue, shifts)
    stack[:, :60, :60] = 255  # a frame that does not move with the tissue
    hidden = hidden_voxels(stack, "stack", nodata=255)
    left = np.rint(translations_of(measure_displacements(stack, hidden))) + shifts
    assert np.abs(np.diff(left, axis=0)).max() <= 2


def test_a_gap_that_is_too_long_is_told(tissue: np.ndarray) -> None:
    stack = moved(tissue, jitter(16))
    stack[6:10] = 0
    with pytest.raises(InputError, match="sections 6 to 9 show nothing"):
        measure_displacements(stack)


def test_what_shows_nothing_in_common_is_refused(tissue: np.ndarray) -> None:
    for stack in (np.random.default_rng(0).integers(0, 255, (9, 200, 210)), np.zeros((5, 200, 210))):
        with pytest.raises(InputError, match="have too little in common with those before them"):
            measure_displacements(stack.astype(np.uint8))
    with pytest.raises(InputError, match="100 x 140 voxels; expected at least 160 x 160"):
        measure_displacements(tissue[:, :100, :140])


def test_turned_sections_are_refused_and_shifted_ones_are_not(tissue: np.ndarray) -> None:
    turned = tissue.copy()
    for z in range(1, 16, 2):
        turned[z] = ndimage.rotate(turned[z], 4, reshape=False, mode="reflect", order=1)
    found = measure_displacements(turned)
    assert len(found.deformed) >= 10
    with pytest.raises(InputError, match=r"turned, deformed .*\(2, .*--displacements flow.npz"):
        check_translations_suffice(found, "stack.tif")
    check_translations_suffice(measure_displacements(moved(tissue, DRIFT)), "stack.tif")


def test_the_flow_field_says_where_each_patch_lies_in_the_section_before(tissue: np.ndarray, tmp_path: Path) -> None:
    shifts = np.outer(np.arange(16) % 2, [12, -7])  # odd sections lie lower, and to the left
    measure_displacements(moved(tissue, shifts)).save(tmp_path / "flow.npz")
    with np.load(tmp_path / "flow.npz") as file:
        flow, pairs = file["flow"], file["pairs"]
        assert flow.shape == (4, 15, 2, 2) and flow.dtype == np.float32
        assert (file["patch_size"], file["step"]) == (160, 40)
    assert pairs.tolist() == [[z, z + 1] for z in range(15)]
    middle = np.nanmedian(flow[:2], axis=(2, 3)).T * np.where(np.arange(15) % 2, -1, 1)[:, None]
    assert np.abs(middle - (7, -12)).max() <= 3  # x, y: from an odd section to the even one before
    assert np.nanmin(flow[2:]) > 0


def test_files_of_translations(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    write_translations(path, [(1.5, -2.0), (0.0, 3.25)])
    assert path.read_text() == "y_voxels,x_voxels\n1.5,-2\n0,3.25\n"
    assert read_translations(path) == ((1.5, -2.0), (0.0, 3.25))
    path.write_text("x_voxels, y_voxels, note\n2, 1, a\n")
    assert read_translations(path) == ((1.0, 2.0),)
    for text, words in (("dy,dx\n1,2\n", "begins with 'dy,dx'"), ("y_voxels,x_voxels\n1,2\n3,?\n", "section 1")):
        path.write_text(text)
        with pytest.raises(InputError, match=words):
            read_translations(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_translations(tmp_path / "none.csv")
