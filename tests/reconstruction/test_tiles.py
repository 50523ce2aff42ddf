"""Tiles along an axis, whatever its length, the tile and the overlap."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emformer_hub.geometry import SectionModel
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
    margin = (plan.overlap - plan.blend) / 2
    assert margin >= plan.overlap / 4
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
        assert steepest <= step / plan.blend + 1e-5


@pytest.mark.parametrize(("overlap", "blend"), [(2, 1), (4, 2), (8, 2), (12, 2), (24, 4), (32, 32 / 6), (48, 8)])
def test_the_middle_sixth_of_an_overlap_is_blended_but_not_less_than_two_voxels(overlap: int, blend: float) -> None:
    plan = AxisTiles(length=200, tile=96, overlap=overlap, multiple=1)
    positions = np.linspace(0, 200, 200 * 60 + 1)
    shared = (plan.weights(0, positions) > 0) & (plan.weights(1, positions) > 0)
    np.testing.assert_allclose(
        [positions[shared].min(), positions[shared].max()], 96 - overlap / 2 + np.array([-blend, blend]) / 2, atol=0.02
    )


# --- shares ------------------------------------------------------------------------------------------------------


@st.composite
def centres(draw: st.DrawFn, length: int) -> np.ndarray:
    """Centres of the voxels of an axis, or of the planes that its sections become."""
    factor = draw(st.just(1.0) | st.floats(1, 16))
    return (np.arange(SectionModel(factor).num_planes(length)) + 0.5) / factor


@given(plans(), st.data())
def test_tiles_complete_every_sample_once_and_in_order(plan: AxisTiles, data: st.DataObject) -> None:
    positions = data.draw(centres(plan.length))
    completed = [range(*share.complete.indices(len(positions))) for share in plan.shares(positions)]
    assert list(itertools.chain(*completed)) == list(range(len(positions)))


@given(plans(), st.data())
def test_a_share_is_where_its_tile_has_weight(plan: AxisTiles, data: st.DataObject) -> None:
    positions = data.draw(centres(plan.length))
    for index, (span, share) in enumerate(zip(plan.spans, plan.shares(positions), strict=True)):
        weights = np.zeros(len(positions), np.float32)
        weights[share.first : share.first + len(share.weights)] = share.weights
        np.testing.assert_array_equal(weights, plan.weights(index, positions))
        assert (share.start, share.stop) == span and (share.weights > 0).all()


@given(plans(), st.data())
def test_what_waits_after_one_tile_is_what_the_next_one_finds_begun(plan: AxisTiles, data: st.DataObject) -> None:
    positions = data.draw(centres(plan.length))
    waiting = np.zeros(0, np.float32)
    for share in plan.shares(positions):
        weights = share.weights.copy()
        assert len(waiting) == share.begun <= len(weights)
        weights[: share.begun] += waiting
        complete, waiting = np.split(weights, [share.finished])
        np.testing.assert_allclose(complete, 1, atol=1e-6)
    assert len(waiting) == 0


@given(plans())
def test_what_waits_has_room_twice_before_the_end_of_the_axis(plan: AxisTiles) -> None:
    for share in plan.shares(np.arange(plan.length) + 0.5):
        assert share.complete.stop + 2 * (len(share.weights) - share.finished) <= plan.length
        assert share.covered.start + share.inside.start == share.first


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
