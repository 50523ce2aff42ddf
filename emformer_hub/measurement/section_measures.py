"""What is measured of a section, by itself and against two others: numpy and scipy only, no thresholds, no stack.

A section is ``(y, x)``. Most functions take it standardised: median 0 and spread 1, so that brightness and contrast are
out of the way and a difference of 1 is one usual departure from the median.

Local damage is what lies outside the range of both neighbours. Tissue moves from section to section, so the range at a
place is that of its surroundings, and it is looked at on several scales: a thin crack is extreme in itself, a fold or
a charged area only on average. Elongated windows along every direction add up what a line has in common.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from emformer_hub.errors import InputError
from emformer_hub.measurement.alignment import COARSEST, FINEST, MAX_SIDE, distinct_peak

QUANTILES = (0.25, 0.75)
NORMAL_IQR = 1.349
"""Interquartile range of a normal distribution, in standard deviations."""
BANDS = ((1 / 64, 1 / 16), (1 / 16, 1 / 8), (1 / 8, 1 / 4), (1 / 4, 1 / 2))
"""Cycles a voxel. The first is what the others are compared with: blur leaves it nearly as it was."""
MIN_SIDE = 32
"""Voxels: in less there are neither bands nor neighbourhoods to speak of."""
ORIENTATIONS = 12


def standardise(section: np.ndarray) -> np.ndarray:
    """A section of any real dtype with median 0 and spread 1 (its interquartile range as that of a normal
    distribution), float32; without spread, all zero. Voxels that are not finite become 0."""
    values = section.astype(np.float32)
    finite = np.isfinite(values)
    if not finite.all():
        values[~finite] = np.median(values[finite]) if finite.any() else 0
    centre, width = spread(values)
    return (values - np.float32(centre)) / np.float32(width) if width > 0 else np.zeros_like(values)


def spread(section: np.ndarray) -> tuple[float, float]:
    """Median and robust standard deviation; the plain one where half of the voxels are equal (1-bit data)."""
    low, centre, high = np.quantile(section, (QUANTILES[0], 0.5, QUANTILES[1]))
    width = float(high - low) / NORMAL_IQR
    return float(centre), width or float(section.std())


def constant_share(section: np.ndarray) -> float:
    """Share of the voxels that have the most frequent of all values; near 1 in a section that was not imaged."""
    _, counts = np.unique(section, return_counts=True)
    return float(counts.max() / section.size)


def detail(standard: np.ndarray) -> np.ndarray:
    """Natural logarithm of the power in three bands of rising frequency over that in a coarse one, ``(3,)``."""
    height, width = standard.shape
    taper = np.outer(np.hanning(height), np.hanning(width)).astype(np.float32)
    power = np.square(np.abs(np.fft.rfft2(standard.clip(-4, 4) * taper)))
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    found = [power[(frequency >= low) & (frequency < high)].mean() for low, high in BANDS]
    return np.log(np.maximum(found[1:], 1e-12)) - np.log(max(found[0], 1e-12))


def difference(a: np.ndarray, b: np.ndarray, sigma: float = 1.5) -> float:
    """Root mean square of the difference of two standardised sections, a little smoothed: 0 for copies."""
    return float(np.sqrt(np.mean(np.square(_gaussian(a.clip(-4, 4) - b.clip(-4, 4), sigma)))))


@dataclass(frozen=True)
class Displacement:
    """Where a section lies against another.

    Attributes:
        shift_yx: voxels; NaN where the correlation has no single peak.
        likeness: height of the peak, -1 to 1: how far both show the same, once they are laid over each other.
    """

    shift_yx: tuple[float, float]
    likeness: float


def band_passed(standard: np.ndarray) -> np.ndarray:
    """Spectrum of the middle of a section, at most 512 x 512 voxels: what is as large as membranes; of norm 1."""
    rows, columns = (min(side, MAX_SIDE) for side in standard.shape)
    y, x = ((side - part) // 2 for side, part in zip(standard.shape, (rows, columns), strict=True))
    middle = standard[y : y + rows, x : x + columns].clip(-4, 4)
    taper = np.outer(np.hanning(rows), np.hanning(columns)).astype(np.float32)
    frequency = np.hypot(np.fft.fftfreq(rows)[:, None], np.fft.fftfreq(columns))
    fine, coarse = (np.exp(-2 * (np.pi * sigma * frequency) ** 2) for sigma in (FINEST, COARSEST))
    spectrum = np.fft.fft2((middle - middle.mean()) * taper) * (fine - coarse).astype(np.float32)
    norm = float(np.linalg.norm(spectrum))
    return (spectrum / norm if norm > 0 else spectrum).astype(np.complex64)


def displacement(spectrum: np.ndarray, *others: np.ndarray) -> Displacement:
    """Of a section against others, all given by :func:`band_passed`: where it agrees best with all of them together."""
    summed = np.zeros(spectrum.shape, np.float64)
    for other in others:
        summed += np.fft.ifft2(other.conj() * spectrum).real
    likeness = float(summed.max()) * summed.size / len(others)
    return Displacement(distinct_peak(summed), likeness)


@dataclass(frozen=True)
class Scale:
    """One look at a section: how much is averaged, how far tissue may have moved, along what it is added up.

    Attributes:
        name: what is looked for.
        shrink: voxels that are averaged into one, along y and x, before anything else.
        sigma: of the smoothing, in voxels of the section.
        reach: half side of the surroundings whose range is that of the place, voxels of the section.
        length: of the line along which departures are averaged, voxels of the section; 0 for a round window.
        width: across the line, a standard deviation, or that of the round window; voxels of the section.
    """

    name: str
    shrink: int
    sigma: float
    reach: float
    length: float
    width: float


SCALES = (
    Scale("thin lines", 2, 0.8, 4, 48, 1.2),
    Scale("lines", 2, 2.0, 6, 64, 2.0),
    Scale("bands", 4, 5.0, 8, 96, 4.0),
    Scale("spots", 2, 3.0, 8, 0, 4.0),
    Scale("blotches", 4, 8.0, 8, 0, 8.0),
    Scale("areas", 8, 20.0, 16, 0, 16.0),
)


def departures(standard: np.ndarray, before: np.ndarray, after: np.ndarray, scale: Scale) -> np.ndarray:
    """How far a section lies below and above the range of two others around each place, averaged over the window.

    Args:
        standard, before, after: standardised sections ``(y, x)``, laid over each other.
        scale: the look.

    Returns:
        ``(2, rows, columns)``, float32, at least 0, on the shrunken grid: too dark, too bright.
    """
    from scipy import ndimage

    here, first, second = (_gaussian(shrink(part, scale.shrink), scale.sigma / scale.shrink)
                           for part in (standard, before, after))
    size = 2 * round(scale.reach / scale.shrink) + 1
    low = ndimage.minimum_filter(np.minimum(first, second), size, mode="nearest")
    high = ndimage.maximum_filter(np.maximum(first, second), size, mode="nearest")
    outside = np.stack([low - here, here - high])
    width = scale.width / scale.shrink
    if not scale.length:
        return np.stack([_gaussian(part.clip(0), width) for part in outside])
    # what a line lacks in one place it cannot make up for in another: each voxel counts for no more than 2
    return _along_lines(outside.clip(-0.5, 2), scale.length / scale.shrink, width).clip(0)


def _along_lines(images: np.ndarray, length: float, width: float) -> np.ndarray:
    """The largest mean over straight lines through each place, over 12 directions; of each image ``(2, y, x)``."""
    from scipy import fft

    height, columns = images.shape[1:]
    pad = int(np.ceil(length / 2 + 3 * width))
    shape = tuple(fft.next_fast_len(side + pad, real=True) for side in images.shape[1:])
    spectra = fft.rfft2(images - images.min(), shape)
    best = np.full(images.shape, -np.inf, np.float32)
    for kernel, weight in _lines(height, columns, shape, length, width):
        np.maximum(best, fft.irfft2(spectra * kernel, shape)[:, :height, :columns] / weight, out=best)
    return best + images.min()


@lru_cache(maxsize=4)
def _lines(
    height: int, columns: int, shape: tuple[int, int], length: float, width: float
) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each direction, the transform of a line's window, and the share of it that is inside the section."""
    from scipy import fft

    y, x = np.fft.fftfreq(shape[0], 1 / shape[0])[:, None], np.fft.fftfreq(shape[1], 1 / shape[1])
    inside = fft.rfft2(np.ones((height, columns), np.float32), shape)
    found = []
    for angle in np.pi * np.arange(ORIENTATIONS) / ORIENTATIONS:
        along, across = y * np.sin(angle) + x * np.cos(angle), y * np.cos(angle) - x * np.sin(angle)
        window = np.exp(-0.5 * (across / width) ** 2) * (np.abs(along) <= length / 2)
        kernel = fft.rfft2((window / window.sum()).astype(np.float32))
        share = fft.irfft2(inside * kernel, shape)[:height, :columns]
        found.append((kernel, np.maximum(share, 0.4)))
    return found


def shrink(image: np.ndarray, factor: int) -> np.ndarray:
    """Means of ``factor`` x ``factor`` voxels; the rest at the far rims is left out."""
    if factor == 1:
        return image
    rows, columns = (side // factor for side in image.shape)
    cut = image[: rows * factor, : columns * factor]
    return cut.reshape(rows, factor, columns, factor).mean(axis=(1, 3))


def _gaussian(image: np.ndarray, sigma: float) -> np.ndarray:
    try:
        from scipy import ndimage
    except ImportError as error:
        raise InputError("inspecting a stack needs scipy; run: pip install 'emformer-hub[evaluate]'") from error
    return ndimage.gaussian_filter(image, sigma, mode="nearest", truncate=3)
