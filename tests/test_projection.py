"""The projection onto measured sections: exact, nearest, differentiable, and silent about what it cannot know."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from emformer_hub.errors import InputError
from emformer_hub.geometry import SectionModel, section_weights
from emformer_hub.modes import check_mode
from emformer_hub.projection import project


@st.composite
def section_models(draw: st.DrawFn) -> SectionModel:
    factor = draw(st.floats(1, 16))
    thickness = draw(st.floats(1 / factor, 1))
    return SectionModel(factor, thickness, draw(st.floats(0, 1)) * (1 - thickness) * factor)


def signal(rows: int, seed: int = 0) -> torch.Tensor:
    """``(1, 2, rows, 3)``."""
    return torch.randn((1, 2, rows, 3), generator=torch.Generator().manual_seed(seed))


def projected(
    geometry: SectionModel, planes: torch.Tensor, sections: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    positions = geometry.plane_positions(planes.shape[2])
    return project(planes, sections, positions.tolist(), geometry.factor, geometry.thickness, mask)


def cut(geometry: SectionModel, planes: torch.Tensor) -> np.ndarray:
    """Sections of planes, ``(sections, frames, columns)``."""
    return geometry.degrade(planes[0].permute(1, 0, 2).numpy())


@settings(max_examples=50)
@given(section_models(), st.integers(1, 8))
def test_projected_planes_give_the_sections_and_stay(model: SectionModel, count: int) -> None:
    matrix = model.matrix(count)
    # An off-centre, thin section at a factor near 1 can lie beyond the rounded extent, on its neighbour's plane.
    assume(np.linalg.cond(matrix) < 100)
    planes, sections = signal(matrix.shape[1]), signal(count, seed=1)
    made = projected(model, planes, sections)
    np.testing.assert_allclose(cut(model, made), sections[0].permute(1, 0, 2), atol=1e-4)
    np.testing.assert_allclose(projected(model, made, sections), made, atol=1e-4)


@settings(max_examples=50)
@given(section_models(), st.integers(1, 8))
def test_weights_are_the_matrix_of_the_section_model(model: SectionModel, count: int) -> None:
    matrix = model.matrix(count)
    assume(np.linalg.cond(matrix) < 100)
    positions = model.plane_positions(matrix.shape[1]).tolist()
    np.testing.assert_allclose(section_weights(positions, count, model.factor, model.thickness), matrix, atol=1e-5)


@pytest.mark.parametrize("factor", [1, 1.3, 2, 2.5, 5.5, 8])
@pytest.mark.parametrize("thickness", [1.0, 0.8])
def test_the_projection_is_that_of_the_pseudo_inverse(factor: float, thickness: float) -> None:
    model = SectionModel(factor, max(thickness, 1 / factor))
    planes, sections = signal(model.num_planes(7)), signal(7, seed=1)
    mask = torch.rand((1, 2, 7, 3), generator=torch.Generator().manual_seed(2)) < 0.3
    found = projected(model, planes, sections.masked_fill(mask, torch.nan), mask)
    matrix = model.matrix(7)
    for frame in range(2):
        for column in range(3):
            rows = ~mask[0, frame, :, column].numpy()
            before = planes[0, frame, :, column].numpy()
            residual = sections[0, frame, rows, column].numpy() - matrix[rows] @ before
            expected = before + np.linalg.pinv(matrix[rows]) @ residual
            np.testing.assert_allclose(found[0, frame, :, column], expected, atol=1e-4)


@pytest.mark.parametrize("factor", [4, 5.5])
def test_sections_that_the_planes_do_not_hold_whole_impose_nothing(factor: float) -> None:
    model = SectionModel(factor)
    planes, sections = signal(model.num_planes(6)), signal(6, seed=1)
    positions = model.plane_positions(planes.shape[2])
    inside = slice(2, 2 + int(3 * factor))  # the first section lacks two planes, the last ones most of theirs
    other = sections.clone()
    other[:, :, [0, 4, 5]] += 100
    made = [
        project(planes[:, :, inside], given, positions[inside].tolist(), factor, 1.0) for given in (sections, other)
    ]
    torch.testing.assert_close(*made)
    assert not torch.equal(made[0], planes[:, :, inside])


def test_the_gradient_knows_only_what_sections_do_not_tell() -> None:
    model = SectionModel(5.5)
    planes, sections = signal(model.num_planes(4)).requires_grad_(), signal(4, seed=1)
    (projected(model, planes, sections) * signal(22, seed=2)).sum().backward()
    assert planes.grad is not None and planes.grad.abs().max() > 0.1
    assert np.abs(cut(model, planes.grad)).max() < 1e-5


def test_an_unknown_mode_is_an_error() -> None:
    with pytest.raises(InputError, match="mode is 'cleen'; expected one of clean, faithful"):
        check_mode("cleen")
