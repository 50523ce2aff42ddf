"""What a stated uncertainty is worth: probabilities to multiples of it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emformer_hub.errors import InputError
from emformer_hub.geometry import SectionModel
from emformer_hub.uncertainty import PROBABILITIES, ErrorQuantiles, half_width

COUNT = len(PROBABILITIES)
THICK, THIN = (tuple(multiple * np.arange(1.0, COUNT + 1)) for multiple in (0.5, 0.2))
MEASURED = ErrorQuantiles(THICK, THIN)

maps = st.lists(st.floats(0.001, 1), min_size=COUNT, max_size=COUNT).map(lambda steps: tuple(np.cumsum(steps)))
probabilities = st.floats(0, PROBABILITIES[-1])


# --- the default -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("probability", PROBABILITIES)
def test_errors_are_laplacian_unless_measured(probability: float) -> None:
    multiple = ErrorQuantiles().multiple(probability, SectionModel(4))
    assert 1 - np.exp(-np.sqrt(2) * multiple) == pytest.approx(probability, abs=1e-4)  # of a unit standard deviation


@given(probabilities, st.floats(1, 16))
def test_laplacian_errors_lie_within_the_multiple_as_often_as_it_says(probability: float, factor: float) -> None:
    errors = np.random.default_rng(0).laplace(scale=1 / np.sqrt(2), size=20_000)  # of unit standard deviation
    covered = np.abs(errors) <= ErrorQuantiles().multiple(probability, SectionModel(factor))
    assert covered.mean() == pytest.approx(probability, abs=0.015)


# --- between what was measured -----------------------------------------------------------------------------------


@given(maps, maps, probabilities, probabilities, st.floats(1, 16), st.floats(0, 1))
def test_multiples_grow_with_probability_and_lie_between_both_ends(
    full: tuple[float, ...], single: tuple[float, ...], first: float, second: float, factor: float, imaged: float
) -> None:
    quantiles = ErrorQuantiles(full, single)
    sections = SectionModel(factor, 1 / factor + imaged * (1 - 1 / factor))
    low, high = sorted([first, second])
    assert quantiles.multiple(0, sections) == 0
    assert quantiles.multiple(low, sections) <= quantiles.multiple(high, sections)
    ends = sorted(ErrorQuantiles(end, end).multiple(high, sections) for end in (full, single))
    assert ends[0] - 1e-9 <= quantiles.multiple(high, sections) <= ends[1] + 1e-9


@pytest.mark.parametrize("factor", [1.5, 4, 16])
def test_the_ends_of_thickness_have_the_multiples_that_were_measured_there(factor: float) -> None:
    for thickness, expected in [(1, THICK), (1 / factor, THIN)]:
        sections = SectionModel(factor, thickness)
        found = [MEASURED.multiple(probability, sections) for probability in PROBABILITIES]
        np.testing.assert_allclose(found, expected)


def test_multiples_change_evenly_with_thickness_and_with_probability() -> None:
    halfway = SectionModel(4, (1 + 1 / 4) / 2)
    assert MEASURED.multiple(0.9, halfway) == pytest.approx((THICK[8] + THIN[8]) / 2)
    assert MEASURED.multiple(0.925, SectionModel(4)) == pytest.approx((THICK[8] + THICK[9]) / 2)
    assert MEASURED.multiple(0.05, SectionModel(4)) == pytest.approx(THICK[0] / 2)


def test_sections_thinner_than_a_plane_count_as_one() -> None:
    assert MEASURED.multiple(0.9, SectionModel(4, 0.1)) == MEASURED.multiple(0.9, SectionModel(4, 1 / 4))


@pytest.mark.parametrize("thickness", [1, 0.5])
def test_at_factor_1_a_plane_is_a_full_section(thickness: float) -> None:
    assert MEASURED.multiple(0.9, SectionModel(1, thickness)) == THICK[8]


# --- mistakes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "multiples",
    [THIN[:-1], (*THIN, 9.0), (), THIN[::-1], (-0.1, *THIN[1:]), (*THIN[:-1], float("inf"))],
    ids=["one less", "one more", "none", "descending", "negative", "endless"],
)
@pytest.mark.parametrize("name", ["full_thickness", "single_plane"])
def test_what_is_no_map_is_refused(name: str, multiples: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match=rf"{name} is .* expected 12 ascending numbers, .* \(0\.1, .*0\.99\)"):
        ErrorQuantiles(**{name: multiples})


@pytest.mark.parametrize("probability", [0.995, 1, 95, -0.1, float("nan")])
def test_a_probability_that_was_not_measured_is_refused(probability: float) -> None:
    with pytest.raises(InputError, match=r"probability is .*; expected a fraction from 0 to 0\.99, as in 0\.95"):
        ErrorQuantiles().multiple(probability, SectionModel(4))


def test_masked_voxels_have_maps_of_their_own() -> None:
    doubled = tuple(2 * multiple for multiple in THICK)
    quantiles = ErrorQuantiles(THICK, THIN, masked_full_thickness=doubled)
    assert quantiles.multiple(0.8, SectionModel(4), masked=True) == pytest.approx(
        2 * quantiles.multiple(0.8, SectionModel(4))
    )
    thin = SectionModel(4, 1 / 4)
    assert quantiles.multiple(0.8, thin, masked=True) == quantiles.multiple(0.8, thin)


def test_the_half_width_of_masked_voxels_takes_their_own_multiple() -> None:
    uncertainty = np.random.default_rng(0).random((4, 3, 2), np.float32)
    mask = np.zeros((2, 3, 2), bool)
    mask[1, 0] = True
    width = half_width(uncertainty, (2.0, 5.0), mask, np.array([0, 0, 1, 1]))
    factors = np.full(uncertainty.shape, 2.0, np.float32)
    factors[2:, 0] = 5
    np.testing.assert_array_equal(width, uncertainty * factors)
    np.testing.assert_array_equal(half_width(uncertainty, (2.0, 5.0)), uncertainty * np.float32(2))
