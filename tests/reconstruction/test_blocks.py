"""Blocks of a result: each voxel in one, whatever the volume, the factor and the tile."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from emformer_hub.configuration_emformer import EMformerConfig
from emformer_hub.errors import InputError
from emformer_hub.geometry import SectionModel
from emformer_hub.reconstruction.blocks import HALO_ZYX, PLANES_MULTIPLE, Plan, make_plan

GRID = (4, 16, 16)  # of the published models


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    shape = (draw(st.integers(4, 120)), draw(st.integers(1, 300)), draw(st.integers(1, 300)))
    sections = SectionModel(draw(st.floats(1, 16)))
    tile = (draw(st.integers(20, 60)), draw(st.integers(48, 200)), draw(st.integers(48, 200)))
    return Plan(shape, sections, tile, GRID)


@given(plans())
def test_every_voxel_of_the_result_is_in_one_block(plan: Plan) -> None:
    owners = np.zeros(plan.output_zyx, np.int8)
    blocks = list(plan.blocks())
    for block in blocks:
        owners[block.output] += 1
    assert (owners == 1).all()
    assert len(blocks) == len(plan)


@given(plans())
def test_a_block_is_seen_with_its_halo_up_to_the_faces_of_the_volume(plan: Plan) -> None:
    for block in plan.blocks():
        scales = (plan.geometry.factor, 1, 1)
        for owned, seen, scale, halo, length in zip(
            block.output, block.input, scales, HALO_ZYX, plan.shape_zyx, strict=True
        ):
            assert 0 <= seen.start < seen.stop <= length
            assert seen.start <= max(0, owned.start / scale - halo)
            assert seen.stop >= min(length, owned.stop / scale + halo)


@given(plans())
def test_the_network_never_sees_more_than_a_tile(plan: Plan) -> None:
    for block in plan.blocks():
        assert all(part.stop - part.start <= tile for part, tile in zip(block.input, plan.tile_zyx, strict=True))


@given(plans())
def test_what_is_seen_begins_on_the_grid(plan: Plan) -> None:
    for block in plan.blocks():
        assert all(part.start % multiple == 0 for part, multiple in zip(block.input, GRID, strict=True))


@given(plans())
@example(Plan((43, 1, 1), SectionModel(1.5), (32, 48, 48), (4, 16, 16)))  # two blocks had room for 33 planes
def test_blocks_begin_where_chunks_of_a_file_can(plan: Plan) -> None:
    planes = plan.block_zyx[0]
    assert planes < PLANES_MULTIPLE or planes == plan.output_zyx[0] or planes % PLANES_MULTIPLE == 0


@given(plans(), st.data())
def test_the_blocks_of_a_box_fill_it_and_see_what_is_said(plan: Plan, data: st.DataObject) -> None:
    box = []
    for length, side in zip(plan.output_zyx, plan.block_zyx, strict=True):
        first = data.draw(st.integers(0, (length - 1) // side)) * side
        last = min(length, first + side * data.draw(st.integers(1, 3)))
        box.append(slice(first, last, 1))
    z, y, x = box
    owners, seen = np.zeros(plan.output_zyx, np.int8), np.zeros(plan.shape_zyx, bool)
    for block in plan.blocks((z, y, x)):
        owners[block.output] += 1
        seen[block.input] = True
    assert (owners[z, y, x] == 1).all() and owners.sum() == owners[z, y, x].size
    assert seen[plan.input_box((z, y, x))].all() and seen.sum() == seen[plan.input_box((z, y, x))].size


@given(plans())
def test_quarters_fill_a_block_and_see_their_halo(plan: Plan) -> None:
    block = next(plan.blocks())
    owners = np.zeros(plan.output_zyx, np.int8)
    for quarter in block.quarters(GRID[1]):
        owners[quarter.output] += 1
        for owned, seen, whole, halo in zip(quarter.output, quarter.input, block.input, HALO_ZYX, strict=True):
            assert whole.start <= seen.start and seen.stop <= whole.stop
            assert halo == HALO_ZYX[0] or seen.start <= max(whole.start, owned.start - halo)
            assert halo == HALO_ZYX[0] or seen.stop >= min(whole.stop, owned.stop + halo)
        assert quarter.y.input.start % GRID[1] == 0 and quarter.x.input.start % GRID[2] == 0
    assert owners[block.output].all() and owners.sum() == owners[block.output].size


def test_a_box_that_cuts_a_block_is_refused() -> None:
    plan = make_plan((100, 500, 500), SectionModel(8), EMformerConfig(), (48, 128, 128))
    with pytest.raises(ValueError, match="a block crosses"):
        list(plan.blocks((slice(0, 100, 1), slice(0, 96, 1), slice(0, 96, 1))))


def test_a_volume_that_a_tile_holds_is_one_block() -> None:
    plan = make_plan((48, 128, 128), SectionModel(8), EMformerConfig(), (48, 128, 128))
    assert len(plan) == 1 and plan.computed == 48 * 128 * 128


@pytest.mark.parametrize("tile", [(19, 128, 128), (48, 47, 128), (48, 128, 47)])
def test_a_tile_without_room_for_a_halo_is_refused(tile: tuple[int, int, int]) -> None:
    with pytest.raises(InputError, match=r"tile_zyx is .*halo of \(6, 16, 16\).*at least \(20, 48, 48\)"):
        make_plan((100, 500, 500), SectionModel(8), EMformerConfig(), tile)
