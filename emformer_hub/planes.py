"""Where planes lie among the rows of a clip, as the network takes it: tensors of the geometry alone.

Everything here follows from Python numbers and from the number of rows, in tensor operations, so that the network
compiles, and exports with a number of rows that is chosen at run time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .geometry import SectionModel
from .interpolation import interpolation_weights


def constant(number: float) -> float:
    """The number itself where torch compiles, rather than a symbol for any: each geometry has a graph of its own."""
    if torch.compiler.is_compiling():
        from torch.fx.experimental.symbolic_shapes import guard_scalar

        return guard_scalar(number)
    return number


@dataclass(frozen=True)
class Planes:
    """Planes among rows, on the device that computes.

    Each row that has a plane has equally many slots, so that decoding is one batched product.

    Attributes:
        first, stop: the first row that has a plane, and the one after the last (no ``slice``: dynamo fixes its ends).
        slots: slots a row, as many as the fullest row has planes.
        offsets: ``(slots of all these rows,)``, float32, distance from the centre of the row; 0 where unused.
        places: slot of each plane, ``(planes,)``; ``None`` where the planes fill all slots in order.
        cubic: weights of cubic interpolation, ``(planes, all rows)``, float32.
    """

    first: int
    stop: int
    slots: int
    offsets: Tensor
    places: Tensor | None
    cubic: Tensor


def locate_planes(
    positions: Sequence[float] | np.ndarray | None,
    num_rows: int,
    factor: float,
    thickness: float,
    device: torch.device,
) -> Planes:
    """Find where planes lie.

    Args:
        positions: centres of planes in section coordinates, ascending. Default: every plane of the slabs that the rows
            own (``SectionModel.plane_positions``).
        num_rows: rows of the clip.
        factor, thickness: geometry of the sections.
        device: where the tensors of the result lie; float64 is used on the CPU only.
    """
    geometry = SectionModel(factor, thickness)
    if positions is None:
        # No slab holds more half-integers than ceil(factor); whole factors fill all slots.
        first, stop, slots, even = 0, num_rows, math.ceil(factor), factor == int(factor)
        count = num_rows * int(factor) if even else geometry.num_planes(num_rows)
        centres = (torch.arange(count, dtype=torch.float64, device="cpu") + 0.5) / factor - geometry.centre
    else:
        wanted = [float(position) for position in positions]
        nearest = [min(max(math.floor(position + 0.5), 0), num_rows - 1) for position in wanted]
        first, stop = nearest[0], nearest[-1] + 1
        counts = [nearest.count(row) for row in range(first, stop)]
        slots, even = max(counts), min(counts) == max(counts)
        centres = torch.tensor(wanted, dtype=torch.float64, device="cpu")
    row = (centres + 0.5).floor().clamp(0, num_rows - 1).long() - first
    offsets, places = centres - (row + first), None
    if not even:
        held = torch.zeros(stop - first, dtype=torch.int64, device="cpu")
        held = held.scatter_add(0, row, torch.ones_like(row))
        before = held.cumsum(0) - held  # planes of the rows before
        places = row * slots + torch.arange(row.shape[0], device="cpu") - before[row]
        offsets = offsets.new_zeros((stop - first) * slots).scatter(0, places, offsets)
        places = places.to(device)
    cubic = interpolation_weights(centres, num_rows, "cubic")
    return Planes(first, stop, slots, offsets.float().to(device), places, cubic.to(device))
