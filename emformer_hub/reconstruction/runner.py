"""The main job: an anisotropic volume in, an isotropic volume and its uncertainty out."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from emformer_hub.devices import choose_device, choose_precision
from emformer_hub.errors import InputError
from emformer_hub.geometry import SectionModel
from emformer_hub.modeling_emformer import EMformerModel
from emformer_hub.processing_emformer import EMformerProcessor, IntensityStatistics
from emformer_hub.reconstruction.tiles import AxisTiles, round_up
from emformer_hub.volumes.checks import check_volume

ENSEMBLES = (1, 2, 4, 8, 16)
MAX_TILE_SECTIONS, TILE_VOXELS = 48, 2**20  # of a default tile
OVERLAP_ZYX = (12, 32, 32)  # leaves differences below one grey level of 255 between tiled and whole


@dataclass(frozen=True)
class Reconstruction:
    """What :func:`reconstruct` returns.

    Attributes:
        volume: ``(round(sections * factor), y, x)``, dtype of the input.
        uncertainty: standard deviation of each voxel's error, as the network states it plus the spread of its passes;
            same shape, float32, intensity units of the input.
        factor: output planes per section.
    """

    volume: np.ndarray
    uncertainty: np.ndarray
    factor: float


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
        tile_zyx: largest tile that the network sees at once, (sections, y, x); default: about a million
            voxels, of at most 48 sections.
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
    task = _Task(volume, sections, network, processor, processor.measure(volume), ensemble)
    plan = _plan(volume.shape, network, default_tile(volume.shape[0]) if tile_zyx is None else tile_zyx)
    shape = (sections.num_planes(volume.shape[0]), *volume.shape[1:])
    restored, uncertainty = np.empty(shape, volume.dtype), np.empty(shape, np.float32)
    bar = tqdm(
        total=math.prod(len(axis.spans) for axis in plan),
        desc="reconstruct",
        unit="tile",
        disable=None if progress else True,  # None: shown on a terminal only
    )
    autocast = torch.autocast(chosen_device.type, torch.bfloat16, enabled=dtype == torch.bfloat16)
    with torch.inference_mode(), autocast, bar:
        for first, value, variance in task.slabs(plan, bar):
            planes = slice(first, first + len(value))
            restored[planes] = processor.restore(value, task.statistics)
            uncertainty[planes] = processor.restore_scale(np.sqrt(variance), task.statistics)
    return Reconstruction(restored, uncertainty, float(factor))


def default_tile(num_sections: int) -> tuple[int, int, int]:
    """The largest tile, (sections, y, x), that ``reconstruct`` takes from a stack of so many sections by default."""
    sections = min(num_sections, MAX_TILE_SECTIONS)
    side = math.isqrt(TILE_VOXELS // sections)
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
    volume: np.ndarray
    sections: SectionModel
    network: EMformerModel
    processor: EMformerProcessor
    statistics: IntensityStatistics
    ensemble: int

    def slabs(self, plan: list[AxisTiles], bar: tqdm) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Yield ``(first plane, value, variance)`` of finished planes in order; holds one row of z tiles in memory."""
        tiles_z, tiles_y, tiles_x = plan
        planes = self.sections.num_planes(tiles_z.length)
        centres = (np.arange(planes) + 0.5) / self.sections.factor  # in sections, from the stack's face
        first_plane = [int(np.searchsorted(centres, start)) for start, _ in tiles_z.spans] + [planes]
        carried = np.zeros((2, 0, *self.volume.shape[1:]), np.float32)  # planes that the tiles before began
        for iz, (z0, z1) in enumerate(tiles_z.spans):
            first, finished = first_plane[iz], first_plane[iz + 1]
            last = planes if z1 == tiles_z.length else int(np.searchsorted(centres, z1))
            slab = np.zeros((2, last - first, *self.volume.shape[1:]), np.float32)
            slab[:, : carried.shape[1]] = carried
            positions = self.sections.plane_positions(last - first, first) - z0
            weight_z = tiles_z.weights(iz, centres[first:last])[:, None, None]
            for (iy, (y0, y1)), (ix, (x0, x1)) in itertools.product(enumerate(tiles_y.spans), enumerate(tiles_x.spans)):
                weight_y = tiles_y.weights(iy, np.arange(y0, y1) + 0.5)[:, None]
                weight = weight_z * weight_y * tiles_x.weights(ix, np.arange(x0, x1) + 0.5)
                slab[:, :, y0:y1, x0:x1] += weight * self.passes(self.volume[z0:z1, y0:y1, x0:x1], positions)
                bar.update()
            yield first, slab[0, : finished - first], slab[1, : finished - first]
            carried = slab[:, finished - first :].copy()

    def passes(self, tile: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Mean and variance over the ensemble's orientations and mirrors, ``(2, planes, y, x)``, float32."""
        clip_zyx = torch.from_numpy(self.processor.normalise(tile, self.statistics)).to(self.network.device)
        values, variances = [], []
        for member in range(self.ensemble):
            # Bit 0: which lateral axis the frames run along; bits 1-3: mirror z, columns, frames.
            axes, back = ((1, 0, 2), (1, 0, 2)) if member & 1 == 0 else ((2, 0, 1), (1, 2, 0))
            mirrored = [axis for bit, axis in ((2, 1), (4, 2), (8, 0)) if member & bit]
            out = self.network(
                clip_zyx.permute(axes).flip(mirrored)[None],
                self.sections.factor,
                positions=(len(tile) - 1 - positions)[::-1] if member & 2 else positions,
                thickness=self.sections.thickness,
            )
            values.append(out.reconstruction[0].flip(mirrored).permute(back))
            variances.append(2 * out.scale[0].square().flip(mirrored).permute(back))  # of a Laplace distribution
        stacked = torch.stack(values)
        variance = torch.stack(variances).mean(0) + stacked.var(0, correction=0)
        return torch.stack([stacked.mean(0), variance]).cpu().numpy()
