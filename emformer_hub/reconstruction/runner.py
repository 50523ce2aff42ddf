"""The main job: an anisotropic volume in, an isotropic volume and its uncertainty out."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from emformer_hub.devices import choose_device, choose_precision
from emformer_hub.errors import InputError
from emformer_hub.geometry import SectionModel
from emformer_hub.modeling_emformer import EMformerModel
from emformer_hub.processing_emformer import EMformerProcessor, IntensityStatistics
from emformer_hub.reconstruction.tiles import AxisTiles, Share, round_up
from emformer_hub.volumes.checks import check_volume

ENSEMBLES = (1, 2, 4, 8, 16)
MAX_TILE_SECTIONS, TILE_VOXELS, TILE_OUTPUT_VOXELS = 48, 3 * 2**18, 2**23  # limits of a default tile
OVERLAP_ZYX = (12, 32, 32)  # leaves differences below one grey level of 255 between tiled and whole


@dataclass(frozen=True)
class Reconstruction:
    """What :func:`reconstruct` returns.

    Attributes:
        volume: ``(round(sections * factor), y, x)``, dtype of the input.
        uncertainty: standard deviation of each voxel's error, as the network states it plus the spread of its passes;
            same shape, float32, intensity units of the input.
        sections: how the input samples tissue.
        processor: of the weights; knows how their errors compare with the uncertainty that they state.
    """

    volume: np.ndarray
    uncertainty: np.ndarray
    sections: SectionModel
    processor: EMformerProcessor

    @property
    def factor(self) -> float:
        """Output planes per section."""
        return self.sections.factor

    def half_width(self, probability: float) -> np.ndarray:
        """How far from each voxel the truth lies at most, with this probability: intensity units, float32.

        ``volume - half_width(0.95)`` to ``volume + half_width(0.95)`` holds 95 % of the true intensities, on tissue
        like that of the weights' calibration.

        Raises:
            InputError: a probability outside 0 to 0.99.
        """
        return self.uncertainty * np.float32(self.processor.interval(probability, self.sections))


def reconstruct(
    volume: np.ndarray,
    *,
    factor: float,
    model: str | EMformerModel = "emformer-small",
    thickness: float = 1.0,
    offset: float | None = None,
    ensemble: int = 2,
    device: str | torch.device | None = None,
    precision: str = "auto",
    tile_zyx: tuple[int, int, int] | None = None,
    progress: bool = True,
) -> Reconstruction:
    """Turn an anisotropic volume into an isotropic one.

    Args:
        volume: ``(sections, y, x)``, 8-bit, 16-bit or float; may be memory-mapped. At least 4 sections.
        factor: section spacing over output plane spacing, any real number from 1 to 16.
        model: a bundled name, a folder, a Hub id, or a loaded model, which moves to the device and
            is used with the default processor.
        thickness: imaged share of the section spacing, in (0, 1]: 1 for physical sections (ssTEM), 1/factor for block
            faces (FIB-SEM, SBF-SEM).
        offset: where the imaged part begins within a section's slab, in output planes; default: centred.
        ensemble: passes to average: 1 (one orientation), 2 (both), 4, 8, 16 (and mirrored along z, columns, frames).
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or a torch device; default: a GPU if there is one.
        precision: ``"auto"`` (bfloat16 products where the device computes in it), ``"float32"`` or ``"bfloat16"``.
        tile_zyx: largest tile that the network sees at once, (sections, y, x); default: at most 0.8 million
            voxels, of at most 48 sections, that become at most eight million.
        progress: show a progress bar on a terminal's stderr.

    Returns:
        :class:`Reconstruction`.

    Raises:
        InputError: the volume or an argument is unusable; the message says why and what to do.
    """
    volume = np.asanyarray(volume)
    check_volume(volume, "the volume")
    sections = SectionModel(factor, thickness, offset)
    if ensemble not in ENSEMBLES:
        raise InputError(f"ensemble is {ensemble}; expected one of {', '.join(map(str, ENSEMBLES))}.")
    chosen_device = choose_device(device)
    dtype = choose_precision(precision, chosen_device)
    if isinstance(model, EMformerModel):
        network, processor = model, EMformerProcessor()
    else:
        network, processor = EMformerModel.from_pretrained(model), EMformerProcessor.from_pretrained(model)
    network.to(device=chosen_device)  # type: ignore[call-arg]  # transformers hides the signature
    plan = _plan(volume.shape, network, default_tile(volume.shape[0], factor) if tile_zyx is None else tile_zyx)
    task = _Task(volume, sections, network, processor, processor.measure(volume), ensemble)
    shape = (sections.num_planes(volume.shape[0]), *volume.shape[1:])
    canvas = _Canvas(np.empty(shape, volume.dtype), np.empty(shape, np.float32), processor, task.statistics)
    samples = [(np.arange(shape[0]) + 0.5) / factor, *(np.arange(length) + 0.5 for length in shape[1:])]
    shares_z, shares_y, shares_x = (axis.shares(centres) for axis, centres in zip(plan, samples, strict=True))
    bar = tqdm(
        total=len(shares_z) * len(shares_y) * len(shares_x),
        desc="reconstruct",
        unit="tile",
        disable=None if progress else True,  # None: shown on a terminal only
    )
    autocast = torch.autocast(chosen_device.type, torch.bfloat16, enabled=dtype == torch.bfloat16)
    with torch.inference_mode(), autocast, bar:
        for y, x, z in itertools.product(shares_y, shares_x, shares_z):
            canvas.add(task.tile(z, y, x), z, y, x)
            bar.update()
    return Reconstruction(canvas.volume, canvas.uncertainty, sections, processor)


def default_tile(num_sections: int, factor: float) -> tuple[int, int, int]:
    """The largest tile, (sections, y, x), that ``reconstruct`` takes from a stack of so many sections by default."""
    sections = min(num_sections, MAX_TILE_SECTIONS)
    side = math.isqrt(min(TILE_VOXELS, int(TILE_OUTPUT_VOXELS / factor)) // sections)
    side -= side % 16  # whole windows of a usual network: rounding up would exceed the limits
    return (sections, side, side)


def _plan(shape_zyx: tuple[int, ...], network: EMformerModel, tile_zyx: tuple[int, ...]) -> list[AxisTiles]:
    """One row of tiles per axis, aligned so that windows lie the same whatever the tiling, in both orientations."""
    if len(tile_zyx) != 3 or not all(isinstance(side, int) for side in tile_zyx):
        raise InputError(f"tile_zyx is {tile_zyx}; expected three whole numbers, (sections, y, x).")
    frames, rows, columns = network.config.window_size
    lateral = int(np.lcm(frames, columns * network.config.patch_size))
    plan = []
    for length, tile, overlap, multiple in zip(shape_zyx, tile_zyx, OVERLAP_ZYX, (rows, lateral, lateral), strict=True):
        overlap = round_up(overlap, multiple)
        if tile < overlap + multiple and tile < length:
            raise InputError(
                f"tile_zyx is {tile_zyx}; tiles overlap by {OVERLAP_ZYX}, so expected more than that along each axis."
            )
        plan.append(AxisTiles(length, max(round_up(tile, multiple), overlap + multiple), overlap, multiple))
    return plan


@dataclass(frozen=True)
class _Task:
    """What the network makes of each tile, in standard deviations of the volume."""

    volume: np.ndarray
    sections: SectionModel
    network: EMformerModel
    processor: EMformerProcessor
    statistics: IntensityStatistics
    ensemble: int

    def tile(self, z: Share, y: Share, x: Share) -> np.ndarray:
        """Mean and variance of the samples in which a tile has weight, times that weight: float32, ``(2, z, y, x)``."""
        tile = self.processor.normalise(self.volume[z.covered, y.covered, x.covered], self.statistics)
        clip_zyx = torch.from_numpy(tile).to(self.network.device)
        positions = self.sections.plane_positions(len(z.weights), z.first) - z.start
        moments = torch.zeros((2, len(positions), len(y.weights), len(x.weights)), device=clip_zyx.device)
        for member in range(self.ensemble):
            self._add_pass(moments, clip_zyx, positions, (y.inside, x.inside), member)
        moments[1] /= self.ensemble
        for share, shape in ((z, (-1, 1, 1)), (y, (-1, 1)), (x, (-1,))):
            moments *= torch.from_numpy(share.weights).to(moments.device).reshape(shape)
        return moments.cpu().numpy()

    def _add_pass(
        self, moments: Tensor, clip_zyx: Tensor, positions: np.ndarray, inside_yx: tuple[slice, slice], member: int
    ) -> None:
        """Let one more orientation or mirror count in the mean so far and in the sum of variances, in place.

        B. P. Welford, "Note on a method for calculating corrected sums of squares and products", Technometrics 4(3),
        1962.
        """
        # Bit 0: which lateral axis the frames run along; bits 1-3: mirror z, columns, frames.
        axes, back = ((1, 0, 2), (1, 0, 2)) if member & 1 == 0 else ((2, 0, 1), (1, 2, 0))
        mirrored = [axis for bit, axis in ((2, 1), (4, 2), (8, 0)) if member & bit]
        out = self.network(
            clip_zyx.permute(axes).flip(mirrored)[None],
            self.sections.factor,
            positions=(len(clip_zyx) - 1 - positions)[::-1] if member & 2 else positions,
            thickness=self.sections.thickness,
        )
        value, scale = (
            (part[0].flip(mirrored) if mirrored else part[0]).permute(back)[:, *inside_yx]  # flip copies
            for part in (out.reconstruction, out.scale)
        )
        mean, variance = moments
        step = value.sub_(mean).div_(member + 1)
        mean += step
        variance.addcmul_(step, step, value=member * (member + 1)).addcmul_(scale, scale, value=2)  # Laplace: 2 scale²


@dataclass
class _Canvas:
    """The result in the making: adds up tiles, in order of y, then x, then z, and writes voxels that are complete.

    What a tile shares with the next one along z is held back, and so is what a row of tiles along z shares with the
    next row along x. What all of them share with the next along y is left in rows of ``uncertainty`` that are not
    written yet, so that the memory needed beside the result does not grow with the sides of the volume.
    """

    volume: np.ndarray
    uncertainty: np.ndarray
    processor: EMformerProcessor
    statistics: IntensityStatistics
    planes: np.ndarray | None = None
    columns: dict[int, np.ndarray] = field(default_factory=dict)  # by first plane

    def add(self, sums: np.ndarray, z: Share, y: Share, x: Share) -> None:
        """Add a tile's weighted mean and variance, ``(2, planes, rows, columns)``; ``sums`` is used up."""
        sums, self.planes = _join(sums, 1, z, self.planes)
        sums, self.columns[z.first] = _join(sums, 3, x, self.columns.get(z.first))
        sums, rows = _join(sums, 2, y, self._rows(z, slice(y.first, y.first + y.begun), x))
        self._rows(z, slice(y.complete.stop, y.complete.stop + rows.shape[2]), x)[...] = rows
        planes = zip(self.volume[z.complete], self.uncertainty[z.complete], *sums, strict=True)
        for volume, uncertainty, value, variance in planes:
            volume[y.complete, x.complete] = self.processor.restore(value, self.statistics)
            uncertainty[y.complete, x.complete] = self.processor.restore_scale(np.sqrt(variance), self.statistics)

    def _rows(self, z: Share, rows: slice, x: Share) -> np.ndarray:
        """Where sums of these rows wait in ``uncertainty``: a view, ``(2, planes, rows, columns)``."""
        count = rows.stop - rows.start
        room = self.uncertainty[z.complete, rows.start : rows.start + 2 * count, x.complete]
        return room.reshape(z.finished, 2, count, x.finished).swapaxes(0, 1)


def _join(sums: np.ndarray, axis: int, share: Share, begun: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Add what the tiles before began to the samples along an axis; split into those complete and those that wait."""
    along = sums.swapaxes(0, axis)  # a view
    if begun is not None and share.begun:
        along[: share.begun] += begun.swapaxes(0, axis)
    complete, waiting = np.split(sums, [share.finished], axis)
    return complete, waiting.copy()  # a copy, so that the tile itself is not kept
