"""Interpolation along z that honours section geometry: the baseline that a reconstruction has to beat.

Positions are section coordinates, in which the centre of section ``i`` is at ``i`` (``SectionModel.plane_positions``).
Beyond the first and the last centre the edge section is replicated.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from .errors import InputError
from .geometry import SectionModel

Kind = Literal["nearest", "linear", "cubic", "lanczos"]

KEYS_A = -0.75
"""Free parameter of the cubic kernel, as in the bicubic modes of PyTorch and OpenCV. Keys' own choice, -0.5, is exact
for quadratics, but on sections that average over their thickness the sharper kernel is the stronger baseline."""


def interpolation_matrix(positions: np.ndarray, num_sections: int, kind: Kind) -> np.ndarray:
    """The weights that make planes of sections, float32 ``(planes, sections)``; rows sum to one.

    Args:
        positions: centres of the planes in section coordinates, ``(planes,)``.
        num_sections: sections in the stack, at least 1.
        kind: ``nearest`` (halves up), ``linear``; ``cubic``: the convolution kernel of R. Keys, "Cubic convolution
            interpolation for digital image processing", IEEE Trans. ASSP 29(6), 1981, with a = ``KEYS_A``; or
            ``lanczos``: sinc(d) sinc(d / 3) (C. E. Duchon, J. Appl. Meteorol. 18(8), 1979), weights made to sum to one.

    Raises:
        InputError: ``kind`` is unknown, there is no section, or the positions are not a list of finite numbers.
    """
    return interpolation_weights(_checked(positions), num_sections, kind).numpy()


def interpolation_weights(positions: Tensor, num_sections: int, kind: Kind) -> Tensor:
    """The same in torch operations, which compile and export: positions float64 on the CPU, weights float32."""
    taps, weights = _taps(positions, num_sections, kind)
    matrix = torch.zeros(positions.shape[0], num_sections, dtype=torch.float64, device=positions.device)
    return matrix.scatter_add(1, taps, weights).float()


def interpolate(sections: np.ndarray, geometry: SectionModel, kind: Kind) -> np.ndarray:
    """Planes interpolated between sections: ``(sections, y, x) -> (num_planes(sections), y, x)``, float32.

    Values stay on the scale of the input; ``cubic`` and ``lanczos`` may overshoot its range. Works plane by plane, so
    that beyond the result only a few planes are held in memory, and ``sections`` may be a memory map.

    Raises:
        InputError: ``sections`` is not a volume of at least one section, or ``kind`` is unknown.
    """
    if sections.ndim != 3:
        raise InputError(f"sections have shape {sections.shape}; expected three axes (sections, y, x).")
    num_planes = geometry.num_planes(sections.shape[0])
    all_taps, all_weights = _taps(_checked(geometry.plane_positions(num_planes)), sections.shape[0], kind)
    planes = np.zeros((num_planes, *sections.shape[1:]), np.float32)
    for plane, taps, weights in zip(planes, all_taps.numpy(), all_weights.float().numpy(), strict=True):
        for tap, weight in zip(taps, weights, strict=True):
            plane += weight * sections[tap].astype(np.float32)
    return planes


def _checked(positions: np.ndarray) -> Tensor:
    positions = np.asarray(positions, np.float64)
    if positions.ndim != 1 or not np.isfinite(positions).all():
        raise InputError(f"plane positions have shape {positions.shape}; expected a list of finite numbers (planes,).")
    return torch.from_numpy(positions)


def _taps(positions: Tensor, num_sections: int, kind: Kind) -> tuple[Tensor, Tensor]:
    """Sections that each plane draws on and their weights, int64 and float64, both ``(planes, taps)``."""
    if num_sections < 1:
        raise InputError(f"there are {num_sections} sections to interpolate; expected at least 1.")
    left = (positions + 0.5 if kind == "nearest" else positions).floor()
    right_share = (positions - left)[:, None]
    if kind == "nearest":
        steps, weights = positions.new_tensor([0]), torch.ones_like(right_share)
    elif kind == "linear":
        steps, weights = positions.new_tensor([0, 1]), torch.cat([1 - right_share, right_share], 1)
    elif kind == "cubic":
        steps = positions.new_tensor([-1, 0, 1, 2])
        weights = _keys((right_share - steps).abs())
    elif kind == "lanczos":
        steps = positions.new_tensor([-2, -1, 0, 1, 2, 3])
        weights = torch.sinc(right_share - steps) * torch.sinc((right_share - steps) / 3)
        weights = weights / weights.sum(1, keepdim=True)
    else:
        raise InputError(f"interpolation {kind!r} is unknown; choose nearest, linear, cubic or lanczos.")
    return (left[:, None] + steps).clamp(0, num_sections - 1).long(), weights


def _keys(distance: Tensor) -> Tensor:
    """Keys' cubic convolution kernel (1981, eq. 4 under its continuity conditions, a free) at distances 0 to 2."""
    near = ((KEYS_A + 2) * distance - (KEYS_A + 3)) * distance**2 + 1
    far = KEYS_A * (((distance - 5) * distance + 8) * distance - 4)
    return torch.where(distance <= 1, near, far)


def fill_masked_rows(sections: Tensor, mask: Tensor) -> Tensor:
    """Replace masked samples by linear interpolation along rows between the nearest measured ones.

    Args:
        sections: ``(batch, frames, rows, columns)``; mask: bool, broadcastable to it, True where nothing was measured.

    Samples with no measured one on either side stay as the mean, zero.
    """
    mask = mask.expand_as(sections)
    rows = sections.shape[2]
    index = torch.arange(rows, device=sections.device).view(1, 1, rows, 1)
    below = torch.where(mask, -1, index).cummax(dim=2).values
    above = torch.where(mask, rows, index).flip(2).cummin(dim=2).values.flip(2)
    nowhere = (below < 0) & (above >= rows)
    below, above = torch.where(below < 0, above, below), torch.where(above >= rows, below, above)
    below, above = below.clamp(0, rows - 1), above.clamp(0, rows - 1)
    weight = (index - below) / (above - below).clamp(min=1)
    low, high = sections.gather(2, below), sections.gather(2, above)
    return torch.where(mask, torch.where(nowhere, 0.0, low + weight * (high - low)), sections)
