"""The network at work on blocks: normalised voxels in, averaged passes out, in whatever memory there is."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from emformer_hub.devices import choose_precision, is_out_of_memory
from emformer_hub.errors import InputError, check_number
from emformer_hub.geometry import Rows, SectionModel
from emformer_hub.interpolation import fill_masked_rows, interpolation_weights
from emformer_hub.modeling_emformer import EMformerModel
from emformer_hub.modes import DEFAULT_MODE, Mode
from emformer_hub.processing_emformer import EMformerProcessor, IntensityStatistics
from emformer_hub.projection import project_onto
from emformer_hub.reconstruction.blocks import Block, Plan, lateral_grid
from emformer_hub.volumes.boxes import within

log = logging.getLogger(__name__)

ENSEMBLES = (1, 2, 4, 8, 16)

PLANES_AT_ONCE, ROWS_AT_ONCE = 32, 16
"""Planes of a block that become intensities, and rows that are projected, at a time."""
PROJECTED_BEYOND = 3
"""Sections beyond a block that its planes are projected onto, where sections share planes. The influence of a section
falls at least five-fold from one to the next from factor 1.5 on."""
UNLEARNT = 1.2
"""By how much errors exceed the stated ones within gaps that are wider than those that networks learn to fill: 1.1 to
1.35 times on FIB-25 at factors 4 and 8, where 5 and 10 sections are lost."""


def check_ensemble(ensemble: int) -> None:
    """Raise ``InputError`` for a number of passes that cannot be averaged."""
    check_number("ensemble", ensemble, whole=True)
    if ensemble not in ENSEMBLES:
        raise InputError(f"ensemble is {ensemble}; expected one of {', '.join(map(str, ENSEMBLES))}.")


@dataclass
class Restorer:
    """Computes the blocks of one result, in any order.

    If a block does not fit into memory, it is computed in quarters, and so are all later blocks. Voxels at the new
    sides then differ by less than a grey level from those of the whole block, as they do at the sides of any block.

    Args:
        network: the network, which moves to the device.
        processor, statistics: normalisation of intensities, and the statistics of the stack.
        geometry: how the sections of the input sample tissue.
        ensemble: number of passes to average.
        device, precision: device that computes, and its precision (:func:`~emformer_hub.devices.choose_precision`).
        mode: what becomes of the noise of the sections.
    """

    network: EMformerModel
    processor: EMformerProcessor
    geometry: SectionModel
    statistics: IntensityStatistics
    ensemble: int
    device: torch.device
    precision: str = "auto"
    mode: Mode = DEFAULT_MODE
    _quarterings: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.network.to(device=self.device)  # type: ignore[call-arg]  # transformers hides the signature
        half = choose_precision(self.precision, self.device) == torch.bfloat16
        self._autocast: Any = torch.autocast(self.device.type, torch.bfloat16, enabled=half)

    def restore_all(
        self,
        volume: np.ndarray,
        plan: Plan,
        mask: np.ndarray | None = None,
        report: Callable[[float], None] = lambda done: None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """All voxels of a result and their uncertainty, computed block by block by :meth:`restore`.

        Args:
            volume: the stack, ``(sections, y, x)``.
            plan: how the result is divided into blocks.
            mask: voxels to predict from their surroundings, bool, same shape.
            report: called with the number of finished blocks, and the finished fraction of the next one.
        """
        result = np.empty(plan.output_zyx, volume.dtype), np.empty(plan.output_zyx, np.float32)
        for done, block in enumerate(plan.blocks()):
            hidden = None if mask is None else mask[block.input]
            restored = self.restore(volume[block.input], block, hidden, partial(_report_share, report, done, 1))
            for whole, part in zip(result, restored, strict=True):
                whole[block.output] = part
        return result

    def restore(
        self,
        sections: np.ndarray,
        block: Block,
        mask: np.ndarray | None = None,
        report: Callable[[float], None] = lambda fraction: None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The voxels of a block and their uncertainty, computed from the input box of the block.

        Args:
            sections: voxels of the input box ``block.input``, ``(sections, y, x)``, intensity units.
            mask: voxels to predict from their surroundings, bool, of the same shape or broadcastable to it with three
                axes. Their values are never used. A block without such voxels equals the one without a mask to the bit.
            report: called again and again with the finished fraction of the block, at the end with 1.

        Returns:
            Voxels of the output box ``block.output``, ``(planes, y, x)``, in the dtype of the volume, and their
            uncertainty, float32, both in intensity units.

        Raises:
            InputError: even the smallest blocks do not fit into memory.
        """
        pieces = self._pieces(block, self._quarterings)
        try:
            return self._joined(sections, block, mask, pieces, report)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            found = str(error).splitlines()[0]
        if len(self._pieces(block, self._quarterings + 1)) == len(pieces):
            raise InputError(
                f"there is not enough memory on {self.device}, even for the smallest blocks: {found} Close other "
                f"programs, or use another device."
            )
        self._quarterings += 1
        log.warning(
            "There is not enough memory on %s (%s): continuing with blocks a quarter as large.", self.device, found
        )
        return self.restore(sections, block, mask, report)  # what the failed pass held is free by now

    def _pieces(self, block: Block, quarterings: int) -> list[Block]:
        pieces = [block]
        for _ in range(quarterings):
            pieces = [quarter for piece in pieces for quarter in piece.quarters(lateral_grid(self.network.config))]
        return pieces

    def _joined(
        self,
        sections: np.ndarray,
        block: Block,
        mask: np.ndarray | None,
        pieces: list[Block],
        report: Callable[[float], None],
    ) -> tuple[np.ndarray, np.ndarray]:
        shape = [part.stop - part.start for part in block.output]
        whole = np.empty(shape, self.statistics.dtype), np.empty(shape, np.float32)
        hidden = None if mask is None else np.broadcast_to(mask, sections.shape)
        for done, piece in enumerate(pieces):
            inside = within(piece.input, block.input)
            moments = self._moments(
                sections[inside],
                piece,
                None if hidden is None else hidden[inside],
                partial(_report_share, report, done, len(pieces)),
            )
            volume, uncertainty = (part[within(piece.output, block.output)] for part in whole)
            for first in range(0, len(volume), PLANES_AT_ONCE):  # copies of all planes would take up memory
                planes = slice(first, first + PLANES_AT_ONCE)
                value, variance = moments[:, planes].cpu().numpy()
                volume[planes] = self.processor.restore(value, self.statistics)
                deviation = np.sqrt(variance / self.ensemble)
                uncertainty[planes] = self.processor.restore_scale(deviation, self.statistics)
        return whole

    def _moments(
        self, sections: np.ndarray, block: Block, mask: np.ndarray | None, report: Callable[[float], None]
    ) -> Tensor:
        """Mean of the passes and sum of their variances, in standard deviations of the stack: ``(2, planes, y, x)``."""
        computed, bound = self._computed(block)
        rows = self.geometry.rows(block.z.input, computed)
        sections, mask = rows.fill(sections, mask)
        if mask is not None:
            mask = mask if mask.any() else None
            sections = sections if mask is None else np.where(mask, sections.dtype.type(0), sections)
        clip_zyx = torch.from_numpy(self.processor.normalise(sections, self.statistics)).to(self.device)
        mask_zyx = None if mask is None else torch.from_numpy(np.array(mask)).to(self.device)
        inside_yx = (block.y.inside, block.x.inside)
        moments = torch.zeros(
            (2, len(rows.positions), *(part.stop - part.start for part in inside_yx)), device=self.device
        )
        with torch.inference_mode(), self._autocast:
            for member in range(self.ensemble):
                for fraction in self._add_pass(moments, clip_zyx, mask_zyx, rows, inside_yx, member):
                    report((member + fraction) / self.ensemble)
            if rows.wide is not None and rows.wide.any():
                _interpolate(moments, clip_zyx, mask_zyx, rows, inside_yx, self.ensemble)
            if self.mode == "faithful":  # the projection is affine, so that of a mean is the mean of projections
                inside = (rows.place(bound), *inside_yx)
                hidden = None if mask_zyx is None else mask_zyx.expand_as(clip_zyx)[inside]
                weights = self.geometry.weights(computed, block.z.input, bound)
                _make_faithful(moments[0], clip_zyx[inside], weights, hidden)
        return moments[:, block.z.output.start - computed.start : block.z.output.stop - computed.start]

    def _computed(self, block: Block) -> tuple[slice, slice]:
        """The planes that the network computes for a block, and the sections of its input they are projected onto."""
        output, whole, geometry = block.z.output, block.z.input, self.geometry
        if self.mode == "clean":
            return output, slice(0, 0)
        beyond = 0 if geometry.slabs_hold_whole_planes else PROJECTED_BEYOND
        around = geometry.sections_around(output)
        first, stop = max(whole.start, around.start - beyond), min(whole.stop, around.stop + beyond)
        return geometry.planes_of(slice(first, stop)), slice(first - whole.start, stop - whole.start)

    def _add_pass(
        self,
        moments: Tensor,
        clip_zyx: Tensor,
        mask_zyx: Tensor | None,
        rows: Rows,
        inside_yx: tuple[slice, slice],
        member: int,
    ) -> Iterator[float]:
        """Add one more orientation or mirror image to the mean and to the sum of variances, in place.

        Yields the finished fraction of it.

        B. P. Welford, "Note on a method for calculating corrected sums of squares and products", Technometrics 4(3),
        1962.
        """
        # Bit 0: which lateral axis the frames run along; bits 1-3: mirror z, columns, frames.
        axes, inside = ((1, 0, 2), inside_yx) if member & 1 == 0 else ((2, 0, 1), inside_yx[::-1])
        mirrored = [axis for bit, axis in ((2, 1), (4, 2), (8, 0)) if member & bit]
        clip = clip_zyx.permute(axes).flip(mirrored)
        frames, columns = (
            mirror(part, clip.shape[axis]) if axis in mirrored else part
            for part, axis in zip(inside, (0, 2), strict=True)
        )
        stream = self.network.stream(
            clip[None],
            rows.factor,
            positions=(len(clip_zyx) - 1 - rows.positions)[::-1] if member & 2 else rows.positions,
            thickness=rows.thickness,
            section_mask=None if mask_zyx is None else mask_zyx.permute(axes).flip(mirrored)[None],
            inside=(frames, columns),
        )
        mean, variance = (part.permute(axes) for part in moments)
        for place, value, scale in stream:
            fraction = place.stop / len(mean)
            place = mirror(place, len(mean)) if 0 in mirrored else place
            value, scale = (part[0].flip(mirrored) if mirrored else part[0] for part in (value, scale))  # flip copies
            step = value.sub_(mean[place]).div_(member + 1)
            mean[place] += step
            variance[place].addcmul_(step, step, value=member * (member + 1))
            variance[place].addcmul_(scale, scale, value=2)  # Laplace: 2 scale²
            yield fraction


def _make_faithful(planes: Tensor, sections: Tensor, weights: np.ndarray, mask: Tensor | None) -> None:
    """Project planes onto sections, in place, a few rows at a time; all are ``(., y, x)``."""
    for first in range(0, planes.shape[1], ROWS_AT_ONCE):
        rows = slice(first, first + ROWS_AT_ONCE)
        part, measured = (whole[:, rows].transpose(0, 1)[None] for whole in (planes, sections))
        hidden = None if mask is None else mask[:, rows].transpose(0, 1)[None]
        part[:] = project_onto(part, measured, weights, hidden)


def _interpolate(
    moments: Tensor, clip: Tensor, mask: Tensor | None, rows: Rows, inside_yx: tuple[slice, slice], ensemble: int
) -> None:
    """Replace planes of wide gaps by linear interpolation, in place.

    The network's value is what is expected of the tissue, so that by how much it lies off adds to the deviation.
    """
    assert mask is not None and rows.wide is not None  # of lost sections
    measured, masked = (part[:, *inside_yx].transpose(0, 1)[None] for part in (clip, mask.expand_as(clip)))
    filled = fill_masked_rows(measured, masked)[0].transpose(0, 1)
    weights = interpolation_weights(torch.from_numpy(rows.positions[rows.wide]), len(filled), "linear")
    with torch.autocast(filled.device.type, enabled=False):
        plain = torch.einsum("pr,ryx->pyx", weights.to(filled.device), filled)
    wide = torch.from_numpy(np.flatnonzero(rows.wide)).to(moments.device)
    off = ensemble * (moments[0, wide] - plain).square()
    moments[1, wide] = UNLEARNT**2 * (moments[1, wide] + off)
    moments[0, wide] = plain


def _report_share(report: Callable[[float], None], done: int, parts: int, fraction: float) -> None:
    """Report a fraction of one part, after others that are done, in parts of a whole."""
    report((done + fraction) / parts)


def mirror(part: slice, length: int) -> slice:
    """The same part of a mirrored axis of this length."""
    return slice(length - part.stop, length - part.start)
