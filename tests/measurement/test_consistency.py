"""The residual of a reconstruction against its sections."""

from __future__ import annotations

import numpy as np
import pytest

from emformer_hub.errors import InputError
from emformer_hub.geometry import SectionModel
from emformer_hub.measurement import consistency_residual

SIDES = (6, 5)


@pytest.fixture
def planes() -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 255, (24, *SIDES)).astype(np.float32)


def test_what_sections_were_cut_from_leaves_no_residual(planes: np.ndarray) -> None:
    model = SectionModel(4)
    residual = consistency_residual(planes, model.degrade(planes), model)
    assert (residual.rms, residual.maximum) == pytest.approx((0, 0), abs=1e-4)


def test_a_residual_is_in_grey_levels_and_of_the_range(planes: np.ndarray) -> None:
    model = SectionModel(4)
    sections = model.degrade(planes).astype(np.uint8)
    made = np.repeat(sections, 4, axis=0).astype(np.float32)
    made[4:8] += 3
    residual = consistency_residual(made, sections, model)
    assert residual.maximum == pytest.approx(3)
    assert residual.rms == pytest.approx(3 / 6**0.5)
    assert residual.relative_rms == pytest.approx(3 / 6**0.5 / 255)
    assert residual.relative_maximum == pytest.approx(3 / 255)


@pytest.mark.parametrize("local", [False, True])
def test_masked_sections_do_not_count(planes: np.ndarray, local: bool) -> None:
    model = SectionModel(4)
    sections = model.degrade(planes)
    sections[2] = np.nan
    mask = np.zeros(6, bool)
    mask[2] = True
    if local:
        mask = np.broadcast_to(mask[:, None, None], sections.shape)
    residual = consistency_residual(planes, sections, model, mask)
    assert residual.maximum < 1e-4
    assert np.isfinite(residual.data_range)


def test_another_shape_is_refused(planes: np.ndarray) -> None:
    with pytest.raises(InputError, match="become"):
        consistency_residual(planes[:-1], SectionModel(4).degrade(planes), SectionModel(4))


def test_a_mask_of_everything_leaves_nothing_to_compare(planes: np.ndarray) -> None:
    sections = SectionModel(4).degrade(planes)
    with pytest.raises(InputError, match="every section"):
        consistency_residual(planes, sections, SectionModel(4), np.ones(6, bool))


def test_part_of_the_matrix_is_that_of_the_whole() -> None:
    model = SectionModel(2.3)
    np.testing.assert_array_equal(model.matrix(9, 4), model.matrix(9)[4:, model.first_plane(4) :])
