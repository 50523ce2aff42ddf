"""Tiles along an axis, whatever its length, the tile and the overlap."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emformer_hub.reconstruction.tiles import AxisTiles, round_up


@st.composite
def plans(draw: st.DrawFn) -> AxisTiles:
    multiple = draw(st.integers(1, 8))
    overlap = multiple * draw(st.integers(1, 8))
    tile = overlap + multiple * draw(st.integers(1, 12))
    return AxisTiles(draw(st.integers(1, 400)), tile, overlap, multiple)


@given(plans())
def test_tiles_cover_the_axis_from_face_to_face(plan: AxisTiles) -> None:
    covered = np.zeros(plan.length, bool)
    for start, stop in plan.spans:
        covered[start:stop] = True
    assert covered.all()
    assert plan.spans[0][0] == 0 and plan.spans[-1][1] == plan.length


@given(plans())
def test_every_tile_lies_on_the_grid_and_only_the_last_is_shorter(plan: AxisTiles) -> None:
    assert all(start % plan.multiple == 0 for start, _ in plan.spans)
    assert {stop - start for start, stop in plan.spans[:-1]} <= {plan.tile}
    assert 0 < plan.spans[-1][1] - plan.spans[-1][0] <= plan.tile


@given(plans())
def test_neighbours_share_exactly_the_overlap_and_no_tile_is_superfluous(plan: AxisTiles) -> None:
    for (start, stop), (next_start, next_stop) in itertools.pairwise(plan.spans):
        assert start < next_start and stop < next_stop
        assert stop - next_start == plan.overlap


@given(plans(), st.floats(0, 1))
def test_weights_sum_to_one_everywhere(plan: AxisTiles, shift: float) -> None:
    positions = np.arange(plan.length) + shift
    weights = np.stack([plan.weights(index, positions) for index in range(len(plan.spans))])
    assert weights.dtype == np.float32
    assert (weights >= 0).all() and (weights <= 1).all()
    np.testing.assert_allclose(weights.sum(axis=0), 1, atol=1e-5)


@given(plans())
def test_a_tile_has_no_weight_near_its_cut_faces(plan: AxisTiles) -> None:
    positions = np.linspace(0, plan.length, 4 * plan.length + 1)
    margin = plan.overlap / 4
    for index, (start, stop) in enumerate(plan.spans):
        outside = np.zeros(len(positions), bool)
        if start > 0:
            outside |= positions <= start + margin
        if stop < plan.length:
            outside |= positions >= stop - margin
        np.testing.assert_array_equal(plan.weights(index, positions)[outside], 0)


@given(plans())
def test_blending_is_gradual(plan: AxisTiles) -> None:
    positions = np.linspace(0, plan.length, 8 * plan.length + 1)
    step = positions[1] - positions[0]
    for index in range(len(plan.spans)):
        steepest = np.abs(np.diff(plan.weights(index, positions))).max(initial=0)
        assert steepest <= step / (plan.overlap / 2) + 1e-5


def test_an_axis_that_fits_is_one_tile() -> None:
    plan = AxisTiles(length=24, tile=24, overlap=8, multiple=4)
    assert plan.spans == [(0, 24)]
    np.testing.assert_array_equal(plan.weights(0, np.arange(24) + 0.5), 1)


@pytest.mark.parametrize(("tile", "overlap", "multiple"), [(10, 4, 4), (12, 6, 4), (8, 8, 4), (4, 8, 4), (8, 0, 4)])
def test_plans_that_cannot_be_are_refused(tile: int, overlap: int, multiple: int) -> None:
    with pytest.raises(ValueError, match=f"tile {tile} and overlap {overlap} must be multiples of {multiple}"):
        AxisTiles(100, tile, overlap, multiple)


@given(st.integers(0, 10**6), st.integers(1, 1000))
def test_rounding_up(length: int, multiple: int) -> None:
    rounded = round_up(length, multiple)
    assert rounded % multiple == 0 and length <= rounded < length + multiple
