"""Measurement consistency: the planes nearest to given ones whose sections are those that were measured."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .geometry import SectionModel, section_weights
from .planes import constant

System = tuple[list[list[float]], list[float], list[float]]
"""A, the diagonal of ``A A^T``, and what is beside it."""


def project(
    planes: Tensor,
    sections: Tensor,
    positions: Sequence[float] | None,
    factor: float,
    thickness: float,
    mask: Tensor | None = None,
) -> Tensor:
    """Planes projected onto evenly spaced sections, by :func:`project_onto`.

    Args:
        planes, sections, mask: as for :func:`project_onto`.
        positions, factor, thickness: as for :func:`~emformer_hub.geometry.section_weights`. ``None``: every plane of
            the slabs that the sections own.
    """
    return _projected(planes, sections, _even_system(positions, constant(sections.shape[2]), factor, thickness), mask)


def project_onto(planes: Tensor, sections: Tensor, weights: np.ndarray, mask: Tensor | None = None) -> Tensor:
    """The nearest planes ``x + A^+ (y - A x)`` whose degraded form equals the sections ``y``; differentiable.

    ``A^+ = A^T (A A^T)^-1``. Two sections at most share a plane, so ``A A^T`` is tridiagonal, and each column is solved
    by elimination without pivoting (the Thomas algorithm). Sections that the planes do not hold whole impose nothing.

    Args:
        planes: ``(batch, frames, planes, columns)``.
        sections: ``(batch, frames, sections, columns)``, in the same units.
        weights: the matrix A, float64 ``(sections, planes)``; rows of zeros impose nothing.
        mask: bool, broadcastable to ``sections``; True for voxels that impose nothing, whatever they hold.
    """
    return _projected(planes, sections, _system(weights), mask)


def _projected(planes: Tensor, sections: Tensor, system: System, mask: Tensor | None) -> Tensor:
    exact, diagonal, links = system
    with torch.autocast(planes.device.type, enabled=False):
        weights = torch.tensor(exact, device=planes.device)
        residual = sections.float() - torch.matmul(weights, planes.float())
        if mask is not None:
            residual = torch.where(mask, 0.0, residual)
        multipliers = _solve_tridiagonal(diagonal, links, residual, None if mask is None else mask.expand_as(sections))
        return planes + torch.matmul(weights.T, multipliers)


@torch.compiler.assume_constant_result  # numbers that follow from numbers
def _even_system(positions: Sequence[float] | None, num_sections: int, factor: float, thickness: float) -> System:
    """The system of evenly spaced sections."""
    if positions is None:
        geometry = SectionModel(factor, thickness)
        positions = geometry.plane_positions(geometry.num_planes(num_sections)).tolist()
    return _system(section_weights(positions, num_sections, factor, thickness))


def _system(weights: np.ndarray) -> System:
    gram = weights @ weights.T
    return weights.tolist(), gram.diagonal().tolist(), gram.diagonal(1).tolist()


def _solve_tridiagonal(diagonal: list[float], links: list[float], values: Tensor, mask: Tensor | None) -> Tensor:
    """Solve symmetric systems along axis 2; a masked entry, or one whose diagonal is 0, is left out."""
    rows = [
        value if pivot else torch.zeros_like(value) for pivot, value in zip(diagonal, values.unbind(2), strict=True)
    ]
    hidden = [None] * len(rows) if mask is None else mask.unbind(2)
    pivots: list[Tensor | float] = [pivot or 1.0 for pivot in diagonal]
    beside: list[Tensor | float] = list(links)
    for i, link in enumerate(links):
        if not link:
            continue
        above, below = hidden[i], hidden[i + 1]
        if above is not None and below is not None:
            beside[i] = torch.where(above | below, 0.0, link)
        share = beside[i] / pivots[i]
        pivots[i + 1] = pivots[i + 1] - share * beside[i]
        rows[i + 1] = rows[i + 1] - share * rows[i]
    rows[-1] = rows[-1] / pivots[-1]
    for i in range(len(links) - 1, -1, -1):
        rows[i] = (rows[i] - beside[i] * rows[i + 1] if links[i] else rows[i]) / pivots[i]
    return torch.stack(rows, 2)
