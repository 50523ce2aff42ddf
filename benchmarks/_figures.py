"""Figures that ``emformer_hub.measurement`` does not hold: a score that noise hardly moves, and intervals by blocks."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from emformer_hub.measurement import grey_range, psnr

BASELINE = "bicubic"
"""The method over which every gain is counted."""
CUTOFF = 0.25
"""Of the low-pass, in cycles per voxel: detail of four voxels and coarser. White noise loses 93 % of its power."""
BLOCKS_PER_AXIS = 3
RESAMPLES = 2000
PERCENTILES = (2.5, 97.5)


@dataclass(frozen=True)
class Restored:
    """What a method made of the input: ``(z, y, x)`` in the dtype of the truth, and the wall time it took."""

    method: str
    volume: np.ndarray
    seconds: float


def low_pass_psnr(truth: np.ndarray, estimate: np.ndarray, data_range: float, cutoff: float = CUTOFF) -> float:
    """PSNR in dB of two volumes ``(z, y, x)`` after an ideal low-pass of both: no frequency above ``cutoff`` is left.

    The noise of a truth is nothing that a reconstruction could or should reproduce, and most of it is beyond the
    cut-off. The filter is linear, so it is applied to the difference, whose energy Parseval's theorem counts in the
    Fourier domain.

    Args:
        data_range: the peak, in grey levels.
        cutoff: radius of the pass band, cycles per voxel.
    """
    spectrum = np.fft.rfftn(truth.astype(np.float32) - estimate.astype(np.float32))
    depth, height, width = truth.shape
    kz, ky = np.fft.fftfreq(depth)[:, None, None], np.fft.fftfreq(height)[:, None]
    kx = np.fft.rfftfreq(width)
    twins = np.where((kx == 0) | (kx == 0.5), 1, 2)  # rfft keeps one of each conjugate pair
    passed = kz**2 + ky**2 + kx**2 <= cutoff**2
    energy = float((np.square(np.abs(spectrum)) * passed * twins).sum(dtype=np.float64)) / truth.size
    return 10 * math.log10(data_range**2 * truth.size / energy)


def resampled_mse(truth: np.ndarray, estimate: np.ndarray) -> np.ndarray:
    """Mean squared errors over bootstrap samples of 3 x 3 x 3 blocks, float64 ``(RESAMPLES,)``.

    Neighbouring voxels err together, so blocks are drawn, not voxels. Every call draws the same blocks: the ratio of
    two methods' errors is a paired comparison.
    """
    totals = np.square(truth.astype(np.float32) - estimate.astype(np.float32))
    counts = np.ones((), np.int64)
    for axis, side in enumerate(truth.shape):
        edges = np.linspace(0, side, min(BLOCKS_PER_AXIS, side) + 1).astype(int)
        totals = np.add.reduceat(totals, edges[:-1], axis=axis, dtype=np.float64)
        counts = np.multiply.outer(counts, np.diff(edges))
    drawn = np.random.default_rng(0).integers(totals.size, size=(RESAMPLES, totals.size))
    return totals.ravel()[drawn].sum(axis=1) / counts.ravel()[drawn].sum(axis=1)


def compare(
    truth: np.ndarray,
    restored: list[Restored],
    measure: Callable[[np.ndarray], dict[str, Any]],
    baselines: tuple[str, ...] = (BASELINE,),
) -> list[dict[str, Any]]:
    """One row a method: PSNR and the gain over each baseline, with 95 % intervals, seconds, and what ``measure`` adds.

    Args:
        restored: of all methods, the baselines among them.
        measure: more figures of a volume, fit for JSON; runs in as many threads as torch uses.
    """
    data_range = grey_range(truth)
    volumes = [result.volume for result in restored]
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        more = list(pool.map(measure, volumes))
        decibels = list(pool.map(lambda volume: psnr(truth, volume, data_range), volumes))
        resampled = list(pool.map(lambda volume: resampled_mse(truth, volume), volumes))
    rows = []
    for i, result in enumerate(restored):
        row = {"method": result.method, "psnr_db": decibels[i]}
        row["psnr_interval_db"] = _interval(data_range**2 / resampled[i])
        for name in baselines:
            base = [other.method for other in restored].index(name)
            row[f"gain_over_{name}_db"] = decibels[i] - decibels[base]
            row[f"gain_over_{name}_interval_db"] = _interval(resampled[base] / resampled[i])
        rows.append({**row, **more[i], "seconds": result.seconds})
    return rows


def with_interval(row: dict[str, Any], figure: str, digits: str) -> str:
    """A table's cell: ``26.17 (25.90 to 26.41)``."""
    low, high = row[f"{figure}_interval_db"]
    return f"{row[f'{figure}_db']:{digits}} ({low:{digits}} to {high:{digits}})"


def _interval(ratios: np.ndarray) -> list[float]:
    return [float(bound) for bound in np.percentile(10 * np.log10(ratios), PERCENTILES)]
