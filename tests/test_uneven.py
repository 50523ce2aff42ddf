"""Sections at listed positions: what a list may say, and a geometry that is the even one where the list is even."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emformer_hub.errors import InputError
from emformer_hub.geometry import SectionModel, VoxelSize
from emformer_hub.uneven import UnevenSections, check_spacing, jittered
from emformer_hub.z_positions import read_z_positions, write_z_positions

PLANE_NM = 8.0


@st.composite
def uneven(draw: st.DrawFn) -> UnevenSections:
    """Sections of random thickness, imaged in part, of which some are lost."""
    even = SectionModel(draw(st.floats(3, 12)), draw(st.floats(0.2, 1)))
    count = draw(st.integers(4, 20))
    geometry = jittered(even, count, draw(st.floats(0.01, 0.2)), draw(st.integers(0, 99)))
    lost = draw(st.sets(st.integers(1, count - 2), max_size=1 if count > 6 else 0))
    return UnevenSections.of([one for n, one in enumerate(geometry.listed(PLANE_NM)) if n not in lost], PLANE_NM)


@given(st.floats(1, 16), st.floats(0.1, 1), st.integers(4, 9))
def test_an_even_list_is_an_even_geometry(factor: float, thickness: float, count: int) -> None:
    even = SectionModel(factor, max(thickness, 1 / factor))
    centres, depth = even.section_positions(count) + 0.5, even.thickness * factor
    listed = UnevenSections.of([(1000 + PLANE_NM * c, PLANE_NM * depth) for c in centres], PLANE_NM)
    planes = even.num_planes(count)
    assert abs(count * factor % 1 - 0.5) < 1e-6 or listed.num_planes(count) == planes == len(listed.matrix(count).T)
    assert listed.factor == pytest.approx(factor) and listed.thickness == pytest.approx(even.thickness)
    positions = np.linspace(-2, planes + 2, 50)
    np.testing.assert_allclose(listed.to_sections(positions), even.to_sections(positions), atol=1e-7)
    np.testing.assert_allclose(
        listed.matrix(count)[:-1], even.matrix(count)[:-1, : listed.num_planes(count)], atol=1e-5
    )
    rows, same = (one.rows(slice(1, count), slice(2, planes)) for one in (listed, even))
    np.testing.assert_allclose(rows.positions, same.positions, atol=1e-7)
    assert listed.lost(slice(0, planes)) is None and [listed.row(n) for n in range(count)] == list(range(count))


@given(uneven(), st.lists(st.floats(-50, 300), min_size=1))
def test_points_return(geometry: UnevenSections, planes: list[float]) -> None:
    there = np.array(planes)
    np.testing.assert_allclose(geometry.to_planes(geometry.to_sections(there)), there, atol=1e-6)
    np.testing.assert_allclose(geometry.to_sections(geometry.to_planes(there)), there, atol=1e-6)


@settings(max_examples=30)
@given(uneven())
def test_sections_lie_where_they_are_listed(geometry: UnevenSections) -> None:
    count = len(geometry)
    np.testing.assert_allclose(geometry.section_positions(count) + 0.5, geometry.centres, atol=1e-9)
    ramp = (
        np.arange(geometry.num_planes(count))[:, None, None] + 0.5
    )  # cut from a ramp, a section is its centre, to half a plane
    inside = slice(0, count - 1)  # the last one may reach beyond the last whole plane
    np.testing.assert_allclose(geometry.degrade(ramp)[inside, 0, 0], geometry.centres[inside], atol=0.5)
    matrix = geometry.matrix(count)
    np.testing.assert_allclose(matrix.sum(axis=1), 1)
    for first in (1, count // 2):
        part = geometry.matrix(count, first)
        np.testing.assert_allclose(part, matrix[first:, geometry.first_plane(first) :])


@given(uneven(), st.integers(0, 300), st.integers(1, 40))
def test_sections_of_some_planes_are_those_whose_slabs_they_touch(
    geometry: UnevenSections, start: int, length: int
) -> None:
    planes = slice(start % geometry.num_planes(len(geometry)), 0)
    planes = slice(planes.start, min(planes.start + length, geometry.num_planes(len(geometry))))
    around = geometry.sections_around(planes)
    held = geometry.sections_of(planes.stop - planes.start, planes.start)
    assert around.start <= held.min() and held.max() < around.stop
    within = geometry.sections_within(planes)
    assert within.start >= within.stop or (around.start <= within.start and within.stop <= around.stop)
    whole = geometry.planes_of(around)
    assert whole.start <= planes.start and planes.stop <= whole.stop + 1


def test_a_space_between_sections_is_told_from_a_step_of_the_microscope() -> None:
    lost = UnevenSections.of([(n * 40.0, 40.0) for n in range(20) if n not in (7, 8, 15)], 4)
    planes = np.flatnonzero(lost.lost(slice(0, lost.num_planes(len(lost)))))
    assert lost.num_planes(len(lost)) == 200 and planes.tolist() == [*range(70, 90), *range(150, 160)]
    assert [lost.row(section) for section in (6, 7, 12, 13)] == [6, 9, 14, 16]
    steps = np.cumsum([10.0] * 12 + [25.0] * 12)
    assert UnevenSections.of([(c, 4.0) for c in steps], 5).lost(slice(0, 80)) is None


def evenly(*lost: int) -> UnevenSections:
    """24 sections of 10 planes each, without those that are lost."""
    return UnevenSections.of([(n * 40.0, 40.0) for n in range(24) if n not in lost], 4)


def test_a_wide_gap_is_told_from_one_that_can_be_predicted() -> None:
    both = evenly(4, 5, 6, 14, 15, 16, 17)
    planes = slice(0, 240)
    assert np.flatnonzero(both.wide(planes)).tolist() == [*range(140, 180)]
    assert both.gaps() == [
        {"after": 3, "sections": 3, "planes": [40, 70], "wide": False},
        {"after": 10, "sections": 4, "planes": [140, 180], "wide": True},
    ]
    crowded = evenly(4, 5, 8, 9)
    assert crowded.wide(planes).sum() == crowded.lost(planes).sum() == 40
    assert evenly(4, 5, 6).wide(planes) is None and SectionModel(4).gaps() == []


def test_what_no_gap_can_be_is_refused() -> None:
    assert evenly(*range(5, 15)).gaps()[0]["sections"] == 10
    with pytest.raises(InputError, match=r"11 sections are lost after section 4; expected at most 10.*--roi"):
        evenly(*range(5, 16))
    three, masked = evenly(9, 10, 11), np.zeros(21, bool)
    three.check_gaps(masked)
    masked[8] = True
    with pytest.raises(InputError, match=r"section 8 is masked, and .* sections are lost next to it"):
        three.check_gaps(masked)


def test_a_part_is_what_its_own_list_says() -> None:
    whole = jittered(SectionModel(8.0, 0.5), 12, 0.2, seed=1)
    part = whole.part(slice(3, 9))
    own = UnevenSections.of(whole.listed(PLANE_NM)[3:9], PLANE_NM, 8.0)
    np.testing.assert_allclose(part.matrix(6), own.matrix(6), atol=1e-9)
    assert whole.distance(3) * 8 == pytest.approx(whole.centres[3] - whole.centres[0])
    for beyond in (slice(3, 13), slice(5, 6)):
        with pytest.raises(InputError, match="at least 2 of the 12 sections"):
            whole.part(beyond)


def test_jitter_keeps_planes_and_mean_and_is_as_large_as_asked_for() -> None:
    even = SectionModel(8.0, 1.0)
    first, again, other = (jittered(even, 400, 0.2, seed) for seed in (3, 3, 4))
    assert first == again != other and first.num_planes(400) == even.num_planes(400)
    assert np.std(first.depths) == pytest.approx(0.2 * 8, rel=0.1)
    assert first.lost(slice(0, 3200)) is None


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("0,40\n40,40\n40,40\n", r"section 2, .* centre at 40 nm .* centres that increase"),
        ("0,40\n40,0\n80,40\n", r"section 1, .* thickness above 0"),
        ("0,40\n40,60\n80,40\n", r"section 1, .* 60 nm thick; expected sections that do not overlap"),
        ("0,40\nnan,40\n80,40\n", r"section 1, .* finite numbers"),
        ("0,40\n40,\n", r"section 1, .* a number for each of centre_nm and thickness_nm"),
        ("0,40\n", r"of two sections or more"),
    ],
)
def test_a_list_that_cannot_be_says_where(rows: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "z.csv"
    path.write_text("centre_nm,thickness_nm\n" + rows)
    with pytest.raises(InputError, match=message) as error:
        read_z_positions(path)
    assert str(path) in str(error.value)


def test_both_kinds_of_file_say_the_same(tmp_path: Path) -> None:
    listed = ((10.0, 20.5), (31.25, 21.0), (50.0, 1.0))
    write_z_positions(tmp_path / "z.csv", listed)
    (tmp_path / "z.json").write_text(json.dumps([{"centre_nm": c, "thickness_nm": t} for c, t in listed]))
    (tmp_path / "spaced.csv").write_text("centre_nm, thickness_nm\n10, 20.5\n31.25, 21\n50, 1\n")
    assert [read_z_positions(tmp_path / name) for name in ("z.csv", "z.json", "spaced.csv")] == [listed] * 3
    (tmp_path / "other.csv").write_text("z,t\n1,2\n")
    (tmp_path / "other.json").write_text('{"centre_nm": [1]}')
    for name in ("other.csv", "other.json", "none.csv"):
        with pytest.raises(InputError, match="expected CSV with the header centre_nm,thickness_nm"):
            read_z_positions(tmp_path / name)


def test_the_network_is_told_of_new_steps_and_not_of_jitter() -> None:
    uneven = jittered(SectionModel(8.0), 60, 0.2, seed=0)
    told = {uneven.rows(slice(z, z + 18), slice(0, 8)).factor for z in range(0, 42, 4)}
    assert told == {8.0}
    steps = UnevenSections.of([(c, 10.0) for c in np.cumsum([10.0] * 20 + [40.0] * 10)], 2.0)
    fine, coarse = (steps.rows(sections, slice(0, 8)) for sections in (slice(0, 12), slice(21, 30)))
    assert (fine.factor, fine.thickness) == (5.0, 1.0)
    assert coarse.factor == pytest.approx(16) and coarse.thickness == 0.25


def test_lengths_in_another_unit_are_noticed() -> None:
    micrometres = [(0.0, 0.04), (0.04, 0.04), (0.08, 0.04)]
    with pytest.raises(InputError, match=r"sections are 40 nm apart, .* Are the positions in nm\?.*--voxel-size 0.04"):
        check_spacing(micrometres, VoxelSize(40, 4, 4))
    check_spacing([(0.0, 20.0), (38.0, 20.0), (80.0, 20.0)], VoxelSize(40, 4, 4))


def test_sections_thinner_than_planes_are_refused() -> None:
    with pytest.raises(InputError, match=r"section 2 has 0.5 planes to itself.*--target-nm"):
        UnevenSections.of([(0.0, 8.0), (8.0, 8.0), (14.0, 4.0), (20.0, 8.0)], 8, 1.0)
