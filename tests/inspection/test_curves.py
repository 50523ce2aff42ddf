"""Smooth curves that a section has and its neighbours lack."""

from __future__ import annotations

import numpy as np
import pytest

from emformer_hub.inspection import curves
from emformer_hub.inspection.curves import LONGEST, Curves, curves_outside

CRACKS = Curves(length=8, sigma=0.5, around=2, directions=16, reach=2, usual=0.1, most=1.5)


@pytest.fixture
def images() -> list[np.ndarray]:
    return list(np.random.default_rng(0).normal(0, 0.3, (3, 96, 80)).astype(np.float32))


def bent(depth: float) -> np.ndarray:
    """A line down the middle, bent by 6 voxels, ``depth`` darker than its surroundings."""
    y, x = np.mgrid[:96, :80]
    return -depth * np.exp(-(((x - 40 - 6 * np.sin(y / 25)) / 1.0) ** 2)).astype(np.float32)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_line_is_found_where_it_runs_and_not_if_a_neighbour_has_it(images: list[np.ndarray], sign: int) -> None:
    here, first, second = images
    line = sign * bent(1.0)
    found = curves_outside(here + line, first, second, CRACKS)
    side = (1 - sign) // 2
    assert found[side].max() > 3 * found[1 - side].max()
    y, x = np.unravel_index(int(found[side].argmax()), found[side].shape)
    assert x == pytest.approx(40 + 6 * np.sin(y / 25), abs=2)
    assert curves_outside(here + line, first + line, second, CRACKS)[side].max() < 0.3 * found[side].max()


def test_a_membrane_that_crosses_does_not_hide_a_line(images: list[np.ndarray]) -> None:
    here, first, second = images
    membrane = np.zeros_like(here)
    membrane[::12] = -2
    plain = curves_outside(here + bent(1.0), first, second, CRACKS)
    crossed = curves_outside(here + bent(1.0) + membrane, first + membrane, second + membrane, CRACKS)
    assert crossed[0].max() > 0.6 * plain[0].max()


def test_a_long_smooth_line_counts_more_than_as_many_specks(images: list[np.ndarray]) -> None:
    here, first, second = images
    line = bent(1.0)
    rows = np.random.default_rng(1).permutation(96)
    long = curves_outside(here + line, first, second, CRACKS)[0].max()
    assert long > 1.5 * curves_outside(here + line[rows], first, second, CRACKS)[0].max()


def test_strips_change_nothing_that_matters(images: list[np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    images[0] = images[0] + bent(1.0)
    here, first, second = (np.tile(image, (4, 1)) for image in images)
    whole = curves_outside(here, first, second, CRACKS)
    monkeypatch.setattr(curves, "STRIP", 64)
    margin = (LONGEST + 1) * CRACKS.length + 4 * round(CRACKS.around)
    assert 64 + 2 * margin < len(here)  # no strip sees the whole
    assert np.abs(curves_outside(here, first, second, CRACKS) - whole).max() < 0.02 * whole.max()
