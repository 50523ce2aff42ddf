"""Measures of agreement: between neighbouring sections, between directions, between reconstructions of two halves of
the sections, and between blocks."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np

from emformer_hub.audit.held_back import plan_of
from emformer_hub.geometry import FACTOR_MAX, SectionModel, VoxelSize
from emformer_hub.inspection.alignment import LARGE_SHIFT, measured_lengths, section_shifts
from emformer_hub.interpolation import interpolate
from emformer_hub.measurement.fsc import SHORTEST_SIDE, Direction, FSCCurve, fsc, resolution
from emformer_hub.processing_emformer import to_dtype
from emformer_hub.reconstruction.blocks import Plan, make_plan
from emformer_hub.reconstruction.restorer import Restorer
from emformer_hub.uneven import UnevenSections
from emformer_hub.volumes.boxes import middle
from emformer_hub.volumes.checks import MIN_SECTIONS

LEAST_FIELD = 192
"""Least rows and columns for measuring shifts between sections."""
LEAST_COEFFICIENTS = 20
LEAST_DIVIDED = 32
COMPARED_ZYX = (48, 128, 128)
"""Most sections, rows and columns that are restored at once and in tiles, to see the sides of the tiles."""
"""Least sections in a tile if tiles divide a stack along z."""


def isotropy(volume: np.ndarray, size: VoxelSize, spacing_nm: float) -> dict[str, Any]:
    """Power along z over the mean of that along y and x, in four bands of frequency.

    Args:
        volume: ``(planes, y, x)``.
        size: voxel size, nm.
        spacing_nm: distance between sections.

    Returns:
        ``{"bands_per_nm": [...], "power_ratio": [...], "judged": bands}``; a ratio of 1 is isotropic. Only the
        first bands are judged, those of wavelengths beyond the section spacing: finer ones hold mostly noise along x,
        which should not be invented along z.
    """
    edges = 0.5 / max(size.zyx) * np.array([1 / 16, 1 / 8, 1 / 4, 1 / 2, 1])
    z, y, x = (_power(volume, axis, length, edges) for axis, length in enumerate(size.zyx))
    lateral = (y + x) / 2
    ratio = [round(float(along / across), 4) if across > 0 else None for along, across in zip(z, lateral, strict=True)]
    judged = max(1, int((1 / edges[:-1] > spacing_nm).sum()))
    return {"bands_per_nm": edges.tolist(), "power_ratio": ratio, "judged": judged}


def alignment(stack: np.ndarray) -> dict[str, Any]:
    """Measure how far sections are shifted against the one before them.

    Returns:
        ``{"reason": None, "pairs", "measured", "shifted", "largest_voxels"}``: number of pairs that were
        compared, of those whose shift could be measured, and of those shifted by more than 12 voxels; and the largest
        shift (0 if none could be measured). If the field is too small, only ``{"reason": why}``.
    """
    if min(stack.shape[1:]) < LEAST_FIELD:
        rows, columns = stack.shape[1:]
        return {
            "reason": f"shifts cannot be measured in {rows} x {columns} voxels; it takes {LEAST_FIELD} x {LEAST_FIELD}."
        }
    shifts = section_shifts(stack)
    measured = measured_lengths(shifts)
    largest = round(float(measured.max(initial=0)), 1)
    return {
        "reason": None,
        "pairs": len(shifts),
        "measured": len(measured),
        "shifted": int((measured > LARGE_SHIFT).sum()),
        "largest_voxels": largest,
    }


def even_and_odd(stack: np.ndarray, geometry: SectionModel) -> list[tuple[np.ndarray, SectionModel]]:
    """Split a stack into even and odd sections, each with its section model; planes of both lie at the same positions.

    The even ones of sections ``SectionModel(s, t, o)`` are ``SectionModel(2s, t/2, o)``, and the odd ones
    ``SectionModel(2s, t/2, o + s)``. If that exceeds the largest factor, rows and columns are first averaged in pairs,
    and planes are twice as thick.
    """
    assert geometry.offset is not None
    factor, begin, count = geometry.factor, geometry.offset, len(stack) // 2 * 2
    pairs = 2 * factor > FACTOR_MAX
    if pairs:
        rows, columns = (side // 2 * 2 for side in stack.shape[1:])
        cut = stack[:, :rows, :columns].reshape(len(stack), rows // 2, 2, columns // 2, 2)
        stack, factor, begin = to_dtype(cut.mean(axis=(2, 4), dtype=np.float32), stack.dtype), factor / 2, begin / 2
    if isinstance(geometry, UnevenSections):
        listed = geometry.halves(0.5 if pairs else 1.0)
        return [(stack[first:count:2], half) for first, half in enumerate(listed)]
    thickness = max(geometry.thickness / 2, 1 / (2 * factor)) if pairs else geometry.thickness / 2
    halves = []
    for first in (0, 1):
        centre = begin + first * factor + geometry.thickness * factor / 2
        offset = min(max(centre - thickness * factor, 0.0), 2 * factor * (1 - thickness))
        halves.append((stack[first:count:2], SectionModel(2 * factor, thickness, offset)))
    return halves


def halves_agree(restorer: Restorer, stack: np.ndarray, size: VoxelSize) -> dict[str, Any]:
    """Resolution up to which reconstructions of the even and of the odd sections agree: independent data of one tissue.

    Args:
        restorer: restorer of the stack.
        stack: ``(sections, y, x)``.
        size: voxel size, nm.

    Returns:
        ``{"reason": None, "resolution_nm": {"z", "lateral"}, "interpolated_nm": {"z", "lateral"}, "spacing_nm",
        "plane_nm"}``, where the Fourier shell correlation falls below 0.5; if the stack is too small, only
        ``{"reason": why}``.
    """
    halves = even_and_odd(stack, restorer.geometry)
    if len(halves[0][0]) < MIN_SECTIONS:
        return {"reason": f"{len(stack)} sections make halves of {len(stack) // 2}; it takes {MIN_SECTIONS}."}
    restored, interpolated = [], []
    for half, geometry in halves:
        statistics = restorer.statistics if half.shape[1:] == stack.shape[1:] else restorer.processor.measure(half)
        one = replace(restorer, geometry=geometry, statistics=statistics)
        restored.append(one.restore_all(half, plan_of(half.shape, one))[0])
        interpolated.append(interpolate(half, geometry, "cubic"))
    factor = halves[0][1].factor
    pixels = 1 if halves[0][0].shape[1:] == stack.shape[1:] else 2
    plane = VoxelSize(2 * size.z / factor, pixels * size.y, pixels * size.x)
    # Before the first of the odd ones, and after the last of the even ones, one half knows nothing.
    both = slice(math.ceil(factor / 2), len(restored[0]) - math.ceil(factor / 2))
    if both.stop - both.start < SHORTEST_SIDE:
        return {"reason": f"{both.stop - both.start} planes lie between sections of both; it takes {SHORTEST_SIDE}."}

    def agree(pair: list[np.ndarray]) -> dict[str, float]:
        directions: tuple[Direction, ...] = ("z", "lateral")
        return {axis: agreement_nm(pair[0][both], pair[1][both], plane, axis) for axis in directions}

    return {
        "reason": None,
        "resolution_nm": agree(restored),
        "interpolated_nm": agree(interpolated),
        "spacing_nm": 2 * size.z,
        "plane_nm": list(plane.zyx),
    }


def agreement_nm(first: np.ndarray, second: np.ndarray, size: VoxelSize, axis: Direction) -> float:
    """Where the Fourier shell correlation of two volumes first falls below 0.5, nm.

    The coarsest shells along one axis hold few coefficients each, so they are merged until they hold 20. If the volumes
    disagree even there, their extent is returned.
    """
    curve = fsc(first, second, size, axis=axis)
    few = int(np.searchsorted(np.cumsum(curve.counts), LEAST_COEFFICIENTS)) + 1
    frequency, correlation = (
        np.concatenate([[np.average(values[:few], weights=curve.counts[:few])], values[few:]])
        for values in (curve.frequency, curve.correlation)
    )
    counts = np.concatenate([[curve.counts[:few].sum()], curve.counts[few:]])
    coarse = FSCCurve(frequency, correlation, counts)
    return round(resolution(coarse, 0.5) if correlation[0] >= 0.5 else float(1 / curve.frequency[0]), 2)


def seams(restorer: Restorer, stack: np.ndarray) -> dict[str, float]:
    """Visibility of block borders: compare the middle of a stack restored at once and in tiles of three quarters of it.

    Returns:
        What :func:`seam_score` returns.
    """
    geometry, config = restorer.geometry, restorer.network.config
    where = middle(stack.shape, COMPARED_ZYX)
    box, geometry = stack[where], geometry.part(where[0])
    restorer = replace(restorer, geometry=geometry)
    depth, rows, columns = (math.ceil(length * 3 / 4 / 16) * 16 for length in box.shape)
    plan = make_plan(box.shape, geometry, config, (depth if depth >= LEAST_DIVIDED else len(box), rows, columns))
    whole, _ = restorer.restore_all(box, make_plan(box.shape, geometry, config, box.shape))
    tiled, _ = restorer.restore_all(box, plan)
    return seam_score(whole, tiled, plan, restorer.statistics.std)


def seam_score(whole: np.ndarray, tiled: np.ndarray, plan: Plan, grey: float) -> dict[str, float]:
    """Compare a reconstruction in tiles with one made at once.

    Args:
        whole, tiled: ``(planes, y, x)``.
        plan: plan of the tiles.
        grey: standard deviation of the stack, in grey levels.

    Returns:
        ``{"rms", "maximum", "relative_rms", "step"}``: in grey levels; the RMS in standard deviations of the stack; and
        the mean step across a border of blocks relative to the mean step at the same place without a border, for the
        axis where it is largest.
    """
    whole, tiled = whole.astype(np.float32), tiled.astype(np.float32)
    difference = whole - tiled
    rms = float(np.sqrt(np.square(difference).mean()))
    steps = [1.0]
    for axis, (length, side) in enumerate(zip(whole.shape, plan.block_zyx, strict=True)):
        sides = np.arange(side, length, side)
        if len(sides):
            with_sides, without = (
                float(np.abs(volume.take(sides, axis) - volume.take(sides - 1, axis)).mean())
                for volume in (tiled, whole)
            )
            steps.append(with_sides / max(without, 1e-3 * grey))
    return {"rms": rms, "maximum": float(np.abs(difference).max()), "relative_rms": rms / grey, "step": max(steps)}


def _power(volume: np.ndarray, axis: int, length: float, edges: np.ndarray) -> np.ndarray:
    """Mean power of lines along an axis in frequency bands, whose edges are in 1/nm."""
    lines = np.moveaxis(volume.astype(np.float32), axis, -1)
    lines = (lines - lines.mean(axis=-1, keepdims=True)) * np.hanning(lines.shape[-1] + 2)[1:-1].astype(np.float32)
    power = np.square(np.abs(np.fft.rfft(lines))).mean(axis=(0, 1)) / lines.shape[-1]
    frequency = np.fft.rfftfreq(lines.shape[-1], length)
    inside = [(frequency >= low) & (frequency < high) for low, high in itertools.pairwise(edges)]
    return np.array([power[band].mean() if band.any() else 0.0 for band in inside])
