"""Self-supervised training pairs: a lateral axis is degraded to sections, and the network learns to undo it.

One stateless sampler serves pretraining and fine-tuning: what sample ``(step, slot)`` holds depends on the seed and
on nothing else, so that a resumed run, or a run on more processes, sees the same data.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from emformer_hub.errors import InputError
from emformer_hub.geometry import SectionModel, VoxelSize
from emformer_hub.processing_emformer import IntensityStatistics
from emformer_hub.training.effects import damaged, seen_by_another_instrument, unit_noise
from emformer_hub.training.ranges import MIN_COLUMNS, MIN_ROWS, SamplingRanges
from emformer_hub.volumes import StoredArray

ISOTROPIC_WITHIN = 1.1  # a volume with sections at most this times its lateral voxel apart is used in any direction
MIN_SECTIONS = 4
DROWNED = 2.0
"""A section's noise counts as independent of the target's where the added noise is this many times what it had
before."""
HARDLY_NOISY = 0.03
"""Most noise that a section may share with the target and still teach what tissue is, in standard deviations."""


@dataclass(frozen=True)
class TrainingVolume:
    """A volume that training reads from.

    Args:
        name: name in logs.
        data: ``(z, y, x)``, any real dtype; may be memory-mapped, or stay on disk.
        voxel_size: nm.
        statistics: statistics of the whole volume (:meth:`EMformerProcessor.measure`).
        weight: relative frequency among training samples.
        holdout: fraction of the columns at the far end of x that only validation sees, at least 64, or a quarter of
            them where there are fewer than 96.
        aligned: whether neighbouring sections show the same place; if not (2-D images, a badly aligned stack), clips
            are one section each.
        thickness: imaged fraction of the spacing of its own sections, or 0 for single planes (block faces).

    Raises:
        InputError: too few columns are left to train on.
    """

    name: str
    data: np.ndarray | StoredArray
    voxel_size: VoxelSize
    statistics: IntensityStatistics
    weight: float = 1.0
    holdout: float = 0.125
    aligned: bool = True
    thickness: float = 1.0

    def __post_init__(self) -> None:
        columns = self.data.shape[2]
        if columns - self.holdout_columns < MIN_COLUMNS:
            raise InputError(
                f"{self.name} is {columns} voxels wide, of which {self.holdout_columns} are held out for validation; "
                f"expected at least {MIN_COLUMNS} more to train on. Give a wider volume."
            )
        if self.data.shape[1] < MIN_COLUMNS:
            raise InputError(
                f"{self.name} is {self.data.shape[1]} voxels high; expected at least {MIN_COLUMNS}, because "
                f"clips are cut along y too. Give a taller volume."
            )
        if self.aligned and self.data.shape[0] < MIN_SECTIONS:
            raise InputError(
                f"{self.name} has {self.data.shape[0]} sections; training takes clips of at least {MIN_SECTIONS}. "
                f"Give more sections, or mark the volume aligned: false, so that each is used by itself."
            )

    @property
    def anisotropy(self) -> float:
        return self.voxel_size.z / self.voxel_size.lateral

    @property
    def isotropic(self) -> bool:
        return self.aligned and self.anisotropy <= ISOTROPIC_WITHIN

    def cubes(self, stride: int) -> bool:
        """Whether frames this many voxels apart are as far apart as rows and columns, and so rescaled as they are."""
        return self.isotropic and stride == 1

    @property
    def holdout_columns(self) -> int:
        columns = self.data.shape[2]
        return max(64 if columns >= 96 else columns // 4, round(self.holdout * columns))


@dataclass(frozen=True)
class ClipPlan:
    """Properties that the samples of one batch share.

    Attributes:
        axes: axes of the volume, in the order frames, rows, columns.
        stride: voxels of the volume from one frame to the next, where frames are not rescaled.
        zoom: voxels of the volume along the edge of one of the clip.
        frames, rows, columns: size of the sections.
        left_out: where rows are the stack's own sections, those that are missing and judged; else ``None``, and rows
            are cut from a lateral axis.
    """

    volume: TrainingVolume
    geometry: SectionModel
    axes: tuple[int, int, int]
    stride: int
    zoom: float
    frames: int
    rows: int
    columns: int
    left_out: range | None = None

    @property
    def fine_axes(self) -> tuple[int, ...]:
        """Axes of a clip along which the instrument is equally fine: rescaled, softened and sharpened together."""
        if self.left_out:
            return (0, 2)
        return (0, 1, 2) if self.volume.cubes(self.stride) else (1, 2)

    @property
    def frame_spacing(self) -> float:
        if 0 in self.fine_axes:
            return 1.0
        return self.stride * (1.0 if self.volume.isotropic else self.volume.anisotropy) / self.zoom

    @property
    def planes_per_section(self) -> int:
        """Planes that a section which is left out is the mean of."""
        return max(1, round(self.geometry.thickness * self.geometry.factor))

    @property
    def positions(self) -> np.ndarray:
        """Centres of the planes that are asked for, in section coordinates, float64 ``(planes,)``."""
        if self.left_out is None:
            return self.geometry.plane_positions(self.geometry.num_planes(self.rows))
        planes = self.planes_per_section
        inside = ((np.arange(planes) + 0.5) / planes - 0.5) * self.geometry.thickness
        return np.add.outer(self.left_out, inside).ravel()


def draw_plan(volumes: Sequence[TrainingVolume], ranges: SamplingRanges, rng: np.random.Generator) -> ClipPlan:
    """Draw volume, orientation, section geometry and clip size for one batch."""
    weights = np.array([volume.weight for volume in volumes], np.float64)
    volume = volumes[rng.choice(len(volumes), p=weights / weights.sum())]
    if ranges.left_out and volume.aligned and not volume.isotropic and rng.random() < ranges.left_out:
        return _left_out_plan(volume, ranges, rng)
    axes = rng.permutation(3) if volume.isotropic else np.array([0, *rng.permutation([1, 2])])
    shape = np.array(volume.data.shape) - np.array([0, 0, volume.holdout_columns])
    frames_extent, rows_extent, columns_extent = (int(extent) for extent in shape[axes])
    stride = 1
    if volume.isotropic and rng.random() >= ranges.frame_stride_one:
        widest = max(1.0, min(ranges.frame_stride_max, frames_extent / ranges.frames))
        stride = round(float(np.exp(rng.uniform(0, np.log(widest)))))
    zoom = _draw_zoom(min(rows_extent, columns_extent), ranges, rng)
    rows_extent, columns_extent = int(rows_extent / zoom), int(columns_extent / zoom)
    if volume.cubes(stride):
        frames_extent = int(frames_extent / zoom)

    largest = rows_extent / (MIN_ROWS + 1)
    if ranges.factors:
        factor = float(min(rng.choice(ranges.factors), largest))
    else:
        low, mode, high = np.log([*ranges.factor[:2], min(ranges.factor[2], largest)])
        factor = float(np.exp(rng.triangular(low, min(max(low, mode), high), high) if high > low else high))
    kind = rng.random()
    if ranges.thickness is not None:
        thickness = ranges.thickness_at(factor)
    elif kind < ranges.full_thickness:
        thickness = 1.0
    elif kind < ranges.full_thickness + ranges.single_plane:
        thickness = 1 / factor
    else:
        thickness = float(rng.uniform(1 / factor, 1))
    offset = float(rng.uniform(0, (1 - thickness) * factor)) if rng.random() < 0.5 else None
    geometry = SectionModel(factor, thickness, offset)
    return ClipPlan(
        volume=volume,
        geometry=geometry,
        axes=(int(axes[0]), int(axes[1]), int(axes[2])),
        stride=stride,
        zoom=zoom,
        frames=min(ranges.frames, frames_extent // stride) if volume.aligned else 1,
        rows=min(ranges.rows, geometry.num_sections(rows_extent)),
        columns=min(ranges.columns, columns_extent),
    )


def _left_out_plan(volume: TrainingVolume, ranges: SamplingRanges, rng: np.random.Generator) -> ClipPlan:
    """A plan whose rows are the stack's own sections, 1-3 of them missing."""
    frames_axis, columns_axis = rng.permutation([1, 2])
    shape = np.array(volume.data.shape) - np.array([0, 0, volume.holdout_columns])
    frames_extent, columns_extent = int(shape[frames_axis]), int(shape[columns_axis])
    zoom = _draw_zoom(min(frames_extent, columns_extent), ranges, rng)
    spread = 0.0 if ranges.factors else 0.3
    factor = float(np.clip(volume.anisotropy / zoom * np.exp(rng.uniform(-spread, spread)), 1.2, 16))
    rows = min(ranges.rows, int(shape[0]))
    return ClipPlan(
        volume=volume,
        geometry=SectionModel(factor, ranges.thickness_at(factor, volume.thickness)),
        axes=(int(frames_axis), 0, int(columns_axis)),
        stride=1,
        zoom=zoom,
        frames=min(ranges.frames, int(frames_extent / zoom)),
        rows=rows,
        columns=min(ranges.columns, int(columns_extent / zoom)),
        left_out=_draw_neighbours(rows, rng),
    )


def _draw_zoom(narrowest: int, ranges: SamplingRanges, rng: np.random.Generator) -> float:
    """Voxels of the volume along the edge of one of the clip, of which the narrowest axis must hold ``MIN_COLUMNS``."""
    if not ranges.rescale or rng.random() >= ranges.rescale:
        return 1.0
    return min(float(np.exp(rng.uniform(*np.log(ranges.rescale_range)))), max(1.0, narrowest / MIN_COLUMNS))


def _draw_neighbours(rows: int, rng: np.random.Generator) -> range:
    """1-3 neighbouring rows, such that at least two others are left."""
    length = int(rng.integers(1, min(3, rows - 2) + 1))
    start = int(rng.integers(0, rows - length + 1))
    return range(start, start + length)


def draw_clip(plan: ClipPlan, ranges: SamplingRanges, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Cut, degrade and damage one clip.

    Returns:
        ``sections`` ``(frames, rows, columns)`` and ``target`` ``(frames, planes, columns)``, float32, or, where the
        stack's own sections are left out, ``(frames, sections left out, columns)``;
        ``section_mask``, bool, of the shape of ``sections``; ``independent``, bool, of the shape of ``target``: where
        the sections that were measured hold nothing of the target's noise.
    """
    target = seen_by_another_instrument(_cut(plan, rng), ranges, plan.fine_axes, rng)
    if plan.left_out is not None:
        return _with_sections_left_out(target, plan.left_out, ranges, rng)
    matrix = plan.geometry.matrix(plan.rows).astype(np.float32)
    tissue = target
    added = np.zeros(plan.rows)  # variance of the noise that only the sections have
    if ranges.voxel_noise and rng.random() < ranges.voxel_noise:
        strength = rng.uniform(0, ranges.noise_max)
        tissue = target + np.float32(strength) * unit_noise(target.shape, rng)
        added += strength**2 * np.square(matrix).sum(axis=1)
    sections = np.einsum("rp,fpc->frc", matrix, tissue, optimize=True)
    sections, more = damaged(sections, ranges, rng)
    shared = noise_level(target) ** 2 * np.square(matrix).sum(axis=1)
    own = (added + more >= DROWNED**2 * shared) | (shared <= HARDLY_NOISY**2)
    mask = _draw_mask(sections.shape, ranges, rng)
    telling = ~mask & ~own[:, None]
    return {
        "sections": np.ascontiguousarray(sections, np.float32),
        "target": np.ascontiguousarray(target, np.float32),
        "section_mask": mask,
        "independent": np.einsum("rp,frc->fpc", (matrix > 0).astype(np.float32), telling.astype(np.float32)) == 0,
    }


def _with_sections_left_out(
    measured: np.ndarray, left_out: range, ranges: SamplingRanges, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """A clip of a stack's own sections, ``(frames, sections, columns)``, of which some are to be predicted."""
    sections, _ = damaged(measured, ranges, rng)
    target = np.ascontiguousarray(measured[:, left_out], np.float32)
    mask = np.zeros(measured.shape, bool)
    mask[:, left_out] = True
    independent = np.ones(target.shape, bool)
    sections = np.ascontiguousarray(sections, np.float32)
    return {"sections": sections, "target": target, "section_mask": mask, "independent": independent}


def noise_level(clip: np.ndarray) -> float:
    """Standard deviation of the white noise of images ``(images, rows, columns)``, by what no smooth image holds.

    J. Immerkaer, "Fast noise variance estimation", Computer Vision and Image Understanding 64(2), 1996; with a median
    in place of the mean, which edges move less.
    """
    across = clip[:, :, :-2] - 2 * clip[:, :, 1:-1] + clip[:, :, 2:]
    both = across[:, :-2] - 2 * across[:, 1:-1] + across[:, 2:]
    return float(np.median(np.abs(both))) / (6 * 0.6745)


def _cut(plan: ClipPlan, rng: np.random.Generator) -> np.ndarray:
    """A random place of the volume, randomly mirrored, rescaled, normalised: ``(frames, planes, columns)``."""
    volume = plan.volume
    steps = (plan.stride, 1, 1)
    sizes = (plan.frames, plan.rows if plan.left_out else plan.geometry.num_planes(plan.rows), plan.columns)
    zooms = tuple(plan.zoom if axis in plan.fine_axes else 1.0 for axis in range(3))
    shape = list(volume.data.shape)
    shape[2] -= volume.holdout_columns
    index: list[slice] = [slice(0)] * 3
    for axis, size, step, zoom in zip(plan.axes, sizes, steps, zooms, strict=True):
        length = math.ceil(size * zoom - 1e-9) if zoom != 1 else (size - 1) * step + 1
        start = int(rng.integers(0, shape[axis] - length + 1))
        index[axis] = slice(start, start + length, step)
    flips = tuple(slice(None, None, -1 if rng.random() < 0.5 else 1) for _ in range(3))
    clip = volume.statistics.normalise(volume.data[tuple(index)].transpose(plan.axes)[flips])
    for axis, (size, zoom) in enumerate(zip(sizes, zooms, strict=True)):
        if zoom != 1:
            weights = _rescaling(clip.shape[axis], size, zoom)
            clip = np.moveaxis(np.tensordot(weights, clip, axes=(1, axis)), 0, axis)
    return clip


def _rescaling(length: int, size: int, zoom: float) -> np.ndarray:
    """Weights that make ``size`` voxels of ``length``, each ``zoom`` of them long: float32 ``(size, length)``.

    Larger voxels are means over what they cover, as in a microscope; smaller ones are interpolated linearly.
    """
    if zoom > 1:
        edges = np.arange(size)[:, None] * zoom
        voxels = np.arange(length)
        weights = np.clip(np.minimum(edges + zoom, voxels + 1) - np.maximum(edges, voxels), 0, None)
    else:
        centres = ((np.arange(size) + 0.5) * zoom - 0.5).clip(0, length - 1)
        weights = np.clip(1 - np.abs(centres[:, None] - np.arange(length)), 0, None)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def _draw_mask(shape: tuple[int, ...], ranges: SamplingRanges, rng: np.random.Generator) -> np.ndarray:
    """Where nothing was measured, in 1-3 neighbouring rows: whole sections, an ellipse in each, or nowhere."""
    frames, rows, columns = shape
    mask = np.zeros(shape, bool)
    kind = rng.random()
    if kind < ranges.mask + ranges.local_mask:
        neighbours = _draw_neighbours(rows, rng)
        hidden = np.ones((frames, 1, columns), bool)
        if kind >= ranges.mask:
            distance = [
                (np.arange(n) + 0.5 - rng.uniform(0, n)) / max(1, rng.uniform(n / 8, n / 2)) for n in (frames, columns)
            ]
            hidden = np.hypot(distance[0][:, None], distance[1])[:, None] < 1
        mask[:, neighbours] = hidden
    return mask


class ClipBatches(torch.utils.data.IterableDataset):
    """The endless stream of training batches from ``start`` on; batch ``i`` is a function of the seed and ``i``.

    Args:
        volumes: volumes to sample from.
        ranges: geometry and damage of the clips.
        seed: seed of the run.
        batch_size: clips per batch and process.
        rank, world_size: this process among all; together they draw ``world_size * batch_size`` clips a batch.
        start: the first batch, for a resumed run.
    """

    def __init__(
        self,
        volumes: Sequence[TrainingVolume],
        ranges: SamplingRanges,
        *,
        seed: int,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        start: int = 0,
    ):
        self.volumes, self.ranges, self.seed, self.batch_size = list(volumes), ranges, seed, batch_size
        self.rank, self.world_size, self.start = rank, world_size, start

    def batch(self, index: int) -> dict[str, Any]:
        """Keyword arguments of the model's forward, ``target``, and the name of the ``volume``."""
        plan = draw_plan(self.volumes, self.ranges, np.random.default_rng([self.seed, index]))
        slots = range(self.rank * self.batch_size, (self.rank + 1) * self.batch_size)
        streams = [np.random.default_rng([self.seed, index, 1 + slot]) for slot in slots]  # a 0 would be no new stream
        clips = [draw_clip(plan, self.ranges, stream) for stream in streams]
        stacked: dict[str, Any] = {key: torch.from_numpy(np.stack([clip[key] for clip in clips])) for key in clips[0]}
        stacked["volume"] = plan.volume.name
        stacked["factor"] = plan.geometry.factor
        stacked["thickness"] = plan.geometry.thickness
        stacked["frame_spacing"] = plan.frame_spacing
        stacked["positions"] = plan.positions
        if plan.left_out is not None:
            stacked["planes_per_section"] = plan.planes_per_section
        return stacked

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = torch.utils.data.get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        index = self.start + first
        while True:
            yield self.batch(index)
            index += step
