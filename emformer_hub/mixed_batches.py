"""Batches whose clips have geometries of their own, as data loaders of other libraries make them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .errors import InputError
from .geometry import SectionModel

Geometry = tuple[float, float, float]
"""Factor, thickness, frame spacing."""


def geometries(clips: int, factor: Any, thickness: Any, frame_spacing: Any) -> dict[Geometry, list[int]]:
    """The geometries of a batch, each with the clips that have it.

    Args:
        clips: number of clips of the batch.
        factor, thickness, frame_spacing: one number for all clips, or a tensor ``(clips,)``.

    Raises:
        InputError: a tensor of another size.
    """
    values = {"factor": factor, "thickness": thickness, "frame_spacing": frame_spacing}
    columns = []
    for name, value in values.items():
        column = value.reshape(-1).tolist() if isinstance(value, Tensor) else [float(value)]
        if len(column) not in (1, clips):
            raise InputError(f"{name} has {len(column)} values for {clips} clips; expected one, or one for each clip.")
        columns.append(column * (clips // len(column)))
    found: dict[Geometry, list[int]] = {}
    for clip, (one, two, three) in enumerate(zip(*columns, strict=True)):
        found.setdefault((one, two, three), []).append(clip)
    return found


def restore_mixed(
    forward: Callable[..., Any], groups: dict[Geometry, list[int]], sections: Tensor, **given: Any
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Run clips of one geometry after the other; return loss, with labels, reconstruction and scale of the batch.

    Planes beyond those of a clip are NaN; ``labels`` beyond them are not looked at.

    Args:
        forward: the network's.
        groups: as :func:`geometries` finds them.
        sections: ``(batch, frames, rows, columns)``.
        given: ``section_mask`` and ``labels`` of the whole batch, or ``None``; what else the network takes.
    """
    for name in ("positions", "output_attentions", "output_hidden_states"):
        if given.pop(name, None):
            raise InputError(f"{name} needs clips of one geometry; these have {len(groups)}. Batch them apart.")
    mask, labels = given.pop("section_mask"), given.pop("labels")
    mask = None if mask is None else mask.expand_as(sections)
    batch, frames, rows, columns = sections.shape
    counts = {geometry: SectionModel(*geometry[:2]).num_planes(rows) for geometry in groups}
    shape = (batch, frames, max(counts.values()), columns)
    found = {name: sections.new_full(shape, torch.nan, dtype=torch.float32) for name in ("reconstruction", "scale")}
    losses = []
    for geometry, clips in groups.items():
        planes = counts[geometry]
        out = forward(
            sections[clips],
            geometry[0],
            thickness=geometry[1],
            frame_spacing=geometry[2],
            section_mask=None if mask is None else mask[clips],
            labels=None if labels is None else labels[clips, :, :planes],
            **given,
        )
        for name, whole in found.items():
            whole[clips, :, :planes] = out[name]
        if labels is not None:
            losses.append(out.loss * len(clips) / batch)
    return torch.stack(losses).sum() if losses else None, found["reconstruction"], found["scale"]
