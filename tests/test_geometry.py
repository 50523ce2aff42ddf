"""Section geometry: what holds for every factor, thickness and offset."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from emformer_hub.errors import InputError
from emformer_hub.geometry import FACTOR_MAX, FACTOR_MIN, SectionModel, VoxelSize, check_factor

factors = st.floats(FACTOR_MIN, FACTOR_MAX)
integer_factors = st.integers(1, 16)
thicknesses = st.floats(0.02, 1.0)
counts = st.integers(1, 12)


@st.composite
def section_models(draw: st.DrawFn) -> SectionModel:
    """Any factor and thickness; the imaged part in the centre of the slab, at its ends, or anywhere between."""
    factor, thickness = draw(factors), draw(thicknesses)
    slack = (1 - thickness) * factor
    return SectionModel(factor, thickness, draw(st.none() | st.floats(0, slack)))


def signal(planes: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(planes, 2, 3)).astype(np.float32)


@given(section_models(), counts)
def test_a_section_is_a_weighted_mean_of_planes(model: SectionModel, sections: int) -> None:
    matrix = model.matrix(sections)
    assert matrix.shape == (sections, model.num_planes(sections))
    assert (matrix >= 0).all()
    np.testing.assert_allclose(matrix.sum(axis=1), 1)


@given(section_models(), st.integers(2, 12))
def test_a_section_sees_only_its_own_slab(model: SectionModel, sections: int) -> None:
    matrix = model.matrix(sections)
    for section, weights in enumerate(matrix[:-1]):  # the last slab may be cut short by rounding of the extent
        (used,) = np.nonzero(weights)
        assert used[0] >= np.floor(section * model.factor) - 1e-6
        assert used[-1] <= np.ceil((section + 1) * model.factor)


@given(section_models(), counts)
def test_a_flat_signal_stays_flat(model: SectionModel, sections: int) -> None:
    flat = np.full((model.num_planes(sections), 2, 2), 37, np.uint8)
    np.testing.assert_allclose(model.degrade(flat), 37, rtol=1e-6)


@given(thicknesses, counts)
def test_factor_one_is_the_identity(thickness: float, sections: int) -> None:
    model = SectionModel(1, thickness)
    np.testing.assert_allclose(model.matrix(sections), np.eye(sections), atol=1e-12)
    np.testing.assert_array_equal(model.degrade(signal(sections)), signal(sections))


@given(integer_factors, counts)
def test_full_thickness_at_an_integer_factor_is_average_pooling(factor: int, sections: int) -> None:
    planes = signal(factor * sections)
    pooled = planes.reshape(sections, factor, 2, 3).mean(axis=1)
    np.testing.assert_allclose(SectionModel(factor).degrade(planes), pooled, atol=1e-5)


@given(integer_factors, counts, st.data())
def test_one_plane_with_an_integer_offset_picks_every_nth_plane(
    factor: int, sections: int, data: st.DataObject
) -> None:
    offset = data.draw(st.integers(0, factor - 1))
    planes = signal(factor * sections)
    picked = SectionModel(factor, 1 / factor, offset).degrade(planes)
    np.testing.assert_allclose(picked, planes[offset::factor], atol=1e-6)


def test_total_extent_is_kept_at_a_fractional_factor() -> None:
    voxel_size = VoxelSize(50, 6, 6)
    model = SectionModel(voxel_size.factor_to())
    assert model.factor == pytest.approx(8.333, abs=1e-3)
    assert model.num_planes(30) == 250  # 30 sections of 50 nm are 250 planes of 6 nm
    assert [model.num_planes(n) for n in (1, 2, 3)] == [8, 17, 25]


@given(factors, st.integers(1, 1000))
def test_extent_is_kept_to_half_a_plane(factor: float, sections: int) -> None:
    assert abs(SectionModel(factor).num_planes(sections) - sections * factor) <= 0.5 + 1e-6


@given(factors, st.integers(0, 1000))
def test_num_sections_inverts_num_planes(factor: float, count: int) -> None:
    model = SectionModel(factor)
    assert model.num_sections(model.num_planes(count)) == count
    fitting = model.num_sections(count)  # and for planes that no whole number of sections fills: the most that fit
    assert model.num_planes(fitting) <= count < model.num_planes(fitting + 1)


@given(section_models(), counts, st.integers(0, 3))
def test_degrade_leaves_incomplete_sections_out(model: SectionModel, sections: int, extra: int) -> None:
    planes = model.num_planes(sections)
    longer = min(planes + extra, model.num_planes(sections + 1) - 1)
    np.testing.assert_array_equal(model.degrade(signal(planes)), model.degrade(signal(longer)[:planes]))
    assert len(model.degrade(signal(longer))) == sections


def test_degrade_needs_one_section() -> None:
    with pytest.raises(InputError, match="7 planes do not hold one section at factor 8"):
        SectionModel(8).degrade(signal(7))


@given(section_models(), counts)
def test_positions_put_section_i_where_the_matrix_sees_it(model: SectionModel, sections: int) -> None:
    """Sections of the signal "position" are the section's own coordinate: both sides describe one geometry."""
    assume(model.offset is not None and model.offset + model.thickness * model.factor <= model.factor - 0.5)
    positions = model.plane_positions(model.num_planes(sections))
    seen = model.matrix(sections) @ positions
    # exact for whole planes; a part of a plane counts at the plane's centre, so at most half a plane off
    np.testing.assert_allclose(seen, np.arange(sections), atol=0.5 / model.factor + 1e-9)


@given(integer_factors, st.data())
def test_positions_are_exact_for_whole_planes(factor: int, data: st.DataObject) -> None:
    imaged = data.draw(st.integers(1, factor))
    offset = data.draw(st.integers(0, factor - imaged))
    model = SectionModel(factor, imaged / factor, offset)
    positions = model.plane_positions(model.num_planes(5))
    np.testing.assert_allclose(model.matrix(5) @ positions, np.arange(5), atol=1e-9)
    assert model.centre == pytest.approx((offset + imaged / 2) / factor)


@given(factors, thicknesses)
def test_sections_are_centred_by_default(factor: float, thickness: float) -> None:
    assert SectionModel(factor, thickness).centre == pytest.approx(0.5)


@given(section_models(), st.integers(0, 50), st.integers(1, 20))
def test_positions_of_a_part_are_part_of_the_positions(model: SectionModel, first: int, count: int) -> None:
    whole = model.plane_positions(first + count)
    np.testing.assert_array_equal(model.plane_positions(count, first), whole[first:])
    np.testing.assert_allclose(np.diff(whole), 1 / model.factor, rtol=1e-6)


@pytest.mark.parametrize("factor", [0.99, 16.01, 0, -4, float("nan"), float("inf")])
def test_factors_outside_the_range_are_refused(factor: float) -> None:
    with pytest.raises(InputError, match="expected 1 to 16"):
        SectionModel(factor)
    with pytest.raises(InputError, match="expected 1 to 16"):
        check_factor(factor)


@pytest.mark.parametrize("thickness", [0, -0.1, 1.01, float("nan")])
def test_thickness_is_a_fraction_of_the_section_spacing(thickness: float) -> None:
    with pytest.raises(InputError, match="fraction of the section spacing"):
        SectionModel(4, thickness)


@pytest.mark.parametrize("offset", [-0.1, 2.1, float("nan")])
def test_the_imaged_part_stays_in_its_slab(offset: float) -> None:
    with pytest.raises(InputError, match="expected 0 to 2 at factor 4"):
        SectionModel(4, 0.5, offset)


def test_voxel_size_is_read_as_z_y_x() -> None:
    assert VoxelSize.parse("40,4.886,4") == VoxelSize(z=40, y=4.886, x=4)
    assert VoxelSize.parse(" 40, 4 ,4").zyx == (40, 4, 4)
    assert str(VoxelSize(40, 4.886, 4)) == "40,4.886,4 nm (z,y,x)"


@pytest.mark.parametrize("text", ["40,4", "40,4,4,4", "40;4;4", "", "a,b,c", "40,,4"])
def test_text_that_is_no_voxel_size_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="expected Z,Y,X in nm"):
        VoxelSize.parse(text)


@pytest.mark.parametrize("text", ["0,4,4", "40,-4,4", "40,4,nan", "inf,4,4"])
def test_lengths_are_positive_numbers(text: str) -> None:
    with pytest.raises(InputError, match="expected a positive number"):
        VoxelSize.parse(text)


@given(st.floats(1, 200), factors)
def test_factor_is_section_spacing_over_target(target: float, factor: float) -> None:
    assume(FACTOR_MIN <= factor * target / target <= FACTOR_MAX)
    assert VoxelSize(factor * target, 3, 5).factor_to(target) == pytest.approx(factor)


@given(st.floats(0.5, 100))
def test_an_isotropic_volume_has_factor_one(length: float) -> None:
    assert VoxelSize(length, length, length).factor_to() == 1


def test_factor_defaults_to_the_lateral_size() -> None:
    assert VoxelSize(40, 4, 4).factor_to() == 10
    assert VoxelSize(40, 2, 8).factor_to() == 10
    assert VoxelSize(40, 4, 4).with_z(8).factor_to() == 2


def test_z_finer_than_the_target_is_refused() -> None:
    with pytest.raises(InputError, match=r"z \(4 nm\) is finer than the target spacing \(40 nm\).*is the order right"):
        VoxelSize(4, 40, 40).factor_to()


def test_factor_above_sixteen_is_refused() -> None:
    with pytest.raises(InputError, match=r"factor is 17\.5; expected 1 to 16.*--target-nm"):
        VoxelSize(70, 4, 4).factor_to()


@pytest.mark.parametrize("target", [0, -4, float("nan"), float("inf")])
def test_target_spacing_is_a_positive_number(target: float) -> None:
    with pytest.raises(InputError, match="target plane spacing"):
        VoxelSize(40, 4, 4).factor_to(target)


@pytest.mark.parametrize(
    "text", ["40,4,4", "40,4,4nm", " 0.04,0.004,0.004um", "0.04,0.004,0.004 µm", "400,40,40A", "400,40,40Å"]
)
def test_voxel_sizes_may_have_a_unit(text: str) -> None:
    assert VoxelSize.parse(text) == VoxelSize(40, 4, 4)


@pytest.mark.parametrize("text", ["40,4,4km", "um", "40nm,4nm,4nm", "40 4 4"])
def test_other_units_are_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"0\.04,0\.004,0\.004um"):
        VoxelSize.parse(text)
