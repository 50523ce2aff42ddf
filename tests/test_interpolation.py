import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emformer_hub.errors import InputError
from emformer_hub.geometry import SectionModel
from emformer_hub.interpolation import interpolate, interpolation_matrix

KINDS = ["nearest", "linear", "cubic", "lanczos"]
factors = st.floats(1, 16, allow_nan=False)


@pytest.mark.parametrize("kind", KINDS)
@given(factor=factors, sections=st.integers(1, 9))
def test_rows_sum_to_one_so_a_flat_stack_stays_flat(kind, factor, sections):
    model = SectionModel(factor)
    positions = model.plane_positions(model.num_planes(sections))
    matrix = interpolation_matrix(positions, sections, kind)
    assert matrix.shape == (len(positions), sections)
    assert matrix.dtype == np.float32
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@given(factor=factors, thickness=st.floats(0.1, 1), sections=st.integers(1, 6))
def test_interpolating_a_stack_is_applying_the_matrix(kind, factor, thickness, sections):
    model = SectionModel(factor, thickness)
    stack = np.random.default_rng(0).random((sections, 2, 3), np.float32)
    planes = interpolate(stack, model, kind)
    matrix = interpolation_matrix(model.plane_positions(len(planes)), sections, kind)
    assert planes.dtype == np.float32
    np.testing.assert_allclose(planes, np.tensordot(matrix, stack, axes=1), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_at_a_section_centre_the_section_itself_is_seen(kind):
    np.testing.assert_allclose(interpolation_matrix(np.arange(7.0), 7, kind), np.eye(7), atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_beyond_the_ends_the_edge_section_is_replicated(kind):
    matrix = interpolation_matrix(np.array([-9.0, 13.0]), 5, kind)
    np.testing.assert_allclose(matrix, [[1, 0, 0, 0, 0], [0, 0, 0, 0, 1]], atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
@given(factor=factors)
def test_upside_down_in_upside_down_out(kind, factor):
    model = SectionModel(round(factor))
    stack = np.random.default_rng(1).random((5, 1, 1), np.float32)
    flipped = interpolate(stack[::-1], model, kind)[::-1]
    if kind == "nearest" and round(factor) == 1:
        assert np.array_equal(flipped, stack)
    np.testing.assert_allclose(flipped, interpolate(stack, model, kind), atol=1e-5)


def test_nearest_repeats_each_section_over_its_slab():
    stack = np.arange(4, dtype=np.uint8).reshape(4, 1, 1)
    assert interpolate(stack, SectionModel(3), "nearest").ravel().tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]


@pytest.mark.parametrize("kind", ["linear", "cubic"])
def test_a_ramp_at_block_faces_keeps_its_place(kind):
    """An offset of half a plane would shift the ramp; inside, linear interpolation is exact for it."""
    model = SectionModel(4, thickness=0.25, offset=0.0)
    ramp = np.arange(48, dtype=np.float32).reshape(48, 1, 1)
    planes = interpolate(model.degrade(ramp), model, kind)
    inside = slice(4, 40)
    tolerance = 1e-4 if kind == "linear" else 0.5  # a cubic kernel other than Keys' own ripples a little
    np.testing.assert_allclose(planes[inside], ramp[inside], atol=tolerance)


def test_cubic_is_the_bicubic_of_torch():
    torch = pytest.importorskip("torch")
    stack = np.random.default_rng(2).random((6, 1, 1), np.float32)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(stack).reshape(1, 1, 6, 1), scale_factor=(4, 1), mode="bicubic", align_corners=False
    )
    planes = interpolate(stack, SectionModel(4), "cubic")
    np.testing.assert_allclose(planes.ravel(), expected.numpy().ravel(), atol=1e-5)


def test_lanczos_is_the_windowed_sinc():
    distance = 2.25 - np.arange(6)
    expected = np.sinc(distance) * np.sinc(distance / 3) * (np.abs(distance) < 3)
    matrix = interpolation_matrix(np.array([2.25]), 6, "lanczos")
    np.testing.assert_allclose(matrix[0], expected / expected.sum(), atol=1e-6)


def test_mistakes_are_explained():
    with pytest.raises(InputError, match="nearest, linear, cubic or lanczos"):
        interpolation_matrix(np.zeros(3), 2, "spline")
    with pytest.raises(InputError, match="at least 1"):
        interpolation_matrix(np.zeros(3), 0, "cubic")
    with pytest.raises(InputError, match="finite"):
        interpolation_matrix(np.array([np.nan]), 2, "cubic")
    with pytest.raises(InputError, match=r"\(sections, y, x\)"):
        interpolate(np.zeros((3, 3)), SectionModel(2), "cubic")
