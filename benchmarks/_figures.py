"""Figures that ``emformer_hub.measurement`` does not hold: a score that noise hardly moves, and intervals by blocks."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from emformer_hub.interpolation import Kind
from emformer_hub.measurement import grey_range, psnr
from emformer_hub.measurement.intervals import decibel_interval, resampled_mse

INTERPOLATIONS: dict[str, Kind] = {
    "nearest": "nearest",
    "trilinear": "linear",
    "bicubic": "cubic",
    "lanczos": "lanczos",
}
BASELINE = "bicubic"
"""The method over which every gain is counted."""
CUTOFF = 0.25
"""Of the low-pass, in cycles per voxel: detail of four voxels and coarser. White noise loses 93 % of its power."""


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


def low_passed(planes: np.ndarray, cutoff: float = CUTOFF) -> np.ndarray:
    """Images ``(images, y, x)`` without the frequencies above ``cutoff``, in cycles per voxel."""
    height, width = planes.shape[1:]
    spectrum = np.fft.rfft2(planes)
    spectrum[:, np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)) > cutoff] = 0
    return np.fft.irfft2(spectrum, s=(height, width)).astype(np.float32)


def not_imaged(truth: np.ndarray, volumes: dict[str, np.ndarray], planes: np.ndarray) -> dict[str, dict[str, Any]]:
    """Figures of the planes that no section imaged: the noise of the truth there is in nothing that a method was given.

    Args:
        truth: ``(z, y, x)``.
        volumes: what each method made of the sections, interpolations among them.
        planes: which planes, bool ``(z,)``.

    Returns:
        For each method PSNR, and the gain over the interpolation that comes closest, with its interval, and where both
        are judged after a low-pass in the plane.
    """
    shown = truth[planes].astype(np.float32)
    errors = {name: volume[planes].astype(np.float32) - shown for name, volume in volumes.items()}
    low = {name: float(np.square(low_passed(error)).mean()) for name, error in errors.items()}
    squares = {name: float(np.square(error).mean()) for name, error in errors.items()}
    resampled = {name: resampled_mse(error) for name, error in errors.items()}
    rivals = [name for name in INTERPOLATIONS if name in volumes]
    best, best_low = min(rivals, key=squares.__getitem__), min(rivals, key=low.__getitem__)
    return {
        name: {
            "best_interpolation": best,
            "psnr_db": 10 * math.log10(grey_range(truth) ** 2 / squares[name]),
            "gain_db": 10 * math.log10(squares[best] / squares[name]),
            "gain_interval_db": decibel_interval(resampled[best] / resampled[name]),
            "low_pass_gain_db": 10 * math.log10(low[best_low] / low[name]),
        }
        for name in volumes
    }


def flat_noise(truth: np.ndarray, volume: np.ndarray, planes: np.ndarray) -> float:
    """Noise of a volume where the tissue is flat, in grey levels: its SD by second differences along y and x.

    Args:
        truth: ``(z, y, x)``; the quarter of its voxels with the smallest gradient (Gaussian, sigma 2) is flat.
        volume: of the same shape.
        planes: which planes are looked at, bool ``(z,)``.
    """
    from scipy.ndimage import gaussian_gradient_magnitude

    slope = gaussian_gradient_magnitude(truth.astype(np.float32), 2)[planes]
    across = np.diff(volume[planes].astype(np.float32), 2, axis=1)
    both = np.diff(across, 2, axis=2)
    flat = slope[:, 1:-1, 1:-1] <= np.quantile(slope, 0.25)
    return float(np.sqrt(np.square(both[flat]).mean())) / 6  # of white noise: 36 = (1 + 4 + 1) squared


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
        resampled = list(pool.map(lambda volume: resampled_mse(volume.astype(np.float32) - truth), volumes))
    rows = []
    for i, result in enumerate(restored):
        row = {"method": result.method, "psnr_db": decibels[i]}
        row["psnr_interval_db"] = decibel_interval(data_range**2 / resampled[i])
        for name in baselines:
            base = [other.method for other in restored].index(name)
            row[f"gain_over_{name}_db"] = decibels[i] - decibels[base]
            row[f"gain_over_{name}_interval_db"] = decibel_interval(resampled[base] / resampled[i])
        rows.append({**row, **more[i], "seconds": result.seconds})
    return rows


def with_interval(row: dict[str, Any], figure: str, digits: str) -> str:
    """A table's cell: ``26.17 (25.90 to 26.41)``."""
    low, high = row[f"{figure}_interval_db"]
    return f"{row[f'{figure}_db']:{digits}} ({low:{digits}} to {high:{digits}})"
