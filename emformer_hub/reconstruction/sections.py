"""One section of a stack, predicted from the others: what is known of it need not be used, or need not be there."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import torch

from emformer_hub.devices import choose_precision
from emformer_hub.geometry import SectionModel
from emformer_hub.modeling_emformer import EMformerModel

WINDOW = 12
"""Sections that a hidden one is predicted from, itself included: as many as a training clip has."""
ORIENTATIONS = (((1, 0, 2), (1, 0, 2)), ((2, 0, 1), (1, 2, 0)))
"""A stack (z, y, x) as a clip whose frames run along y, or along x, and the way back."""


@torch.inference_mode()
def predict_section(network: EMformerModel, stack: np.ndarray, hidden: int, geometry: SectionModel) -> np.ndarray:
    """Section ``hidden`` of a stack, from the sections around it; its own voxels are never looked at.

    The section is masked. The planes that it images are restored, in both orientations, and averaged as it averages
    them: a thick section is compared with a thick section.

    Args:
        network: on the device that computes.
        stack: ``(sections, y, x)``, float32, standard deviations from the mean; 12 around the hidden one are used.
        hidden: its number.
        geometry: how the sections sample tissue.

    Returns:
        ``(y, x)``, float32, in the units of the stack.
    """
    first = min(max(hidden - WINDOW // 2, 0), max(len(stack) - WINDOW, 0))
    around, place = stack[first : first + WINDOW], hidden - first
    seen = geometry.matrix(len(around))[place]
    positions = geometry.plane_positions(len(seen))[seen > 0]
    device = network.device
    mask = torch.zeros(1, 1, len(around), 1, dtype=torch.bool, device=device)
    mask[:, :, place] = True
    dtype = choose_precision("auto", device)
    passes = []
    for axes, back in ORIENTATIONS:
        clip = torch.from_numpy(np.ascontiguousarray(around.transpose(axes)))[None].to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            out = network(clip, geometry.factor, positions=positions, thickness=geometry.thickness, section_mask=mask)
        passes.append(out.reconstruction[0].float().cpu().numpy().transpose(back))
    return np.tensordot(seen[seen > 0], np.mean(passes, axis=0), axes=1).astype(np.float32)


def left_out_gain(
    network: EMformerModel, stack: np.ndarray, geometry: SectionModel, hidden: Iterable[int] | None = None
) -> float:
    """How much closer the network comes to sections left out than the mean of both neighbours does, in dB.

    Args:
        network, stack, geometry: as for :func:`predict_section`.
        hidden: the sections that are left out, one at a time; default: all but the first and the last.
    """
    squares, mean_squares = 0.0, 0.0
    for place in range(1, len(stack) - 1) if hidden is None else hidden:
        mean = (stack[place - 1] + stack[place + 1]) / 2
        squares += float(np.square(predict_section(network, stack, place, geometry) - stack[place]).mean())
        mean_squares += float(np.square(mean - stack[place]).mean())
    return 10 * math.log10(mean_squares / squares)
