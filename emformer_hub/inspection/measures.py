"""Measures of a section, by itself and against two others: numpy and scipy only, without thresholds.

A section is ``(y, x)``. Most functions take it standardised, with median 0 and robust standard deviation 1: brightness
and contrast are then out of the way.

Local damage is what lies outside the range of both neighbours. Tissue moves from section to section, so the range at a
place is taken over its surroundings, on several scales: a crack stands out along a smooth curve (``curves.py``); a fold
or a charged area is extreme only on average. Paths add up the deviation along a line, however it bends. A fold hides
tissue, so that the two sides of it are displaced against each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from emformer_hub.inspection.alignment import COARSEST, MAX_SIDE, distinct_peak, taper_and_band
from emformer_hub.inspection.curves import Curves, curves_outside
from emformer_hub.volumes.boxes import block_means, evenly_spaced, middle

QUANTILES = (0.25, 0.75)
NORMAL_IQR = 1.349
"""Interquartile range of a normal distribution, in standard deviations."""
BANDS = ((1 / 64, 1 / 16), (1 / 16, 1 / 8), (1 / 12, 1 / 6), (1 / 8, 1 / 4), (1 / 4, 1 / 2))
"""Cycles per voxel. The others are compared with the first, which blur hardly changes."""
SQUARE, SQUARE_STEP, SQUARES = 96, 32, 16
"""Voxels along each side, voxels from one square to the next, and most squares along an axis."""
ALIKE = 0.45
"""Correlation from which on a square counts as showing the same tissue as the other sections."""
LEAST_SQUARES, DIRECTIONS = 6, 8
TILES = 4
"""Along each side of a section, to tell grey values that are usual from those of a place."""
MIN_SIDE = 32
"""Voxels along each side: smaller sections have neither bands nor neighbourhoods to measure."""


def standardise(section: np.ndarray) -> np.ndarray:
    """Scale a section of any real dtype to median 0 and robust standard deviation 1, float32.

    A section without contrast becomes zero everywhere, and so do voxels that are not finite.
    """
    values = section.astype(np.float32)
    finite = np.isfinite(values)
    if not finite.all():
        values[~finite] = np.median(values[finite]) if finite.any() else 0
    centre, width = median_and_sd(values)
    return (values - np.float32(centre)) / np.float32(width) if width > 0 else np.zeros_like(values)


def with_greys_of(standard: np.ndarray, others: Sequence[np.ndarray]) -> np.ndarray:
    """A standardised section with grey values as others have them, by a parabola that rises throughout.

    The parabola fits quantiles of 5 to 95 %, medians over tiles, so that what is damaged in places stands out.
    A section of which no such parabola rises is returned as it is.
    """
    aim = np.mean([_quantiles(other) for other in others], axis=0)
    curve = np.polyfit(_quantiles(standard), aim, 2)
    clipped = standard.clip(-4, 4)
    rises = np.polyval(np.polyder(curve), [clipped.min(), clipped.max()]).min() > 0
    return np.polyval(curve, clipped).astype(np.float32) if rises else standard


def _quantiles(section: np.ndarray) -> np.ndarray:
    """Quantiles of 5 to 95 % of each tile; of each of them, the median over tiles."""
    tiles = [tile for rows in np.array_split(section, TILES) for tile in np.array_split(rows, TILES, axis=1)]
    return np.median([np.quantile(tile, np.linspace(0.05, 0.95, 19)) for tile in tiles], axis=0)


def median_and_sd(section: np.ndarray) -> tuple[float, float]:
    """Median and robust standard deviation, from the interquartile range; the plain one where half of the voxels are
    equal (1-bit data)."""
    low, centre, high = np.quantile(section, (QUANTILES[0], 0.5, QUANTILES[1]))
    width = float(high - low) / NORMAL_IQR
    return float(centre), width or float(section.std())


def constant_fraction(section: np.ndarray) -> float:
    """Fraction of the voxels that have the most frequent value; near 1 in a section that was not imaged."""
    _, counts = np.unique(section, return_counts=True)
    return float(counts.max() / section.size)


def detail(standard: np.ndarray) -> np.ndarray:
    """Natural logarithm of the power in four bands of rising frequency over that in a coarse one, ``(4,)``."""
    height, width = standard.shape
    taper = np.outer(np.hanning(height), np.hanning(width)).astype(np.float32)
    power = np.square(np.abs(np.fft.rfft2(standard.clip(-4, 4) * taper)))
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    found = [power[(frequency >= low) & (frequency < high)].mean() for low, high in BANDS]
    return np.log(np.maximum(found[1:], 1e-12)) - np.log(max(found[0], 1e-12))


def difference(a: np.ndarray, b: np.ndarray, sigma: float = 1.5) -> float:
    """Root mean square difference of two standardised sections, slightly smoothed: 0 for copies."""
    return float(np.sqrt(np.mean(np.square(_gaussian(a.clip(-4, 4) - b.clip(-4, 4), sigma)))))


@dataclass(frozen=True)
class Displacement:
    """Position of a section relative to another.

    Attributes:
        shift_yx: voxels; NaN where the correlation has no single peak.
        likeness: height of the peak, -1 to 1: correlation of the two sections once they are aligned.
    """

    shift_yx: tuple[float, float]
    likeness: float


def band_passed(standard: np.ndarray, coarser: float = 1) -> np.ndarray:
    """Spectrum of the middle of a section, at most 512 x 512 voxels, as :func:`spectra` has it."""
    rows, columns = (min(side, MAX_SIDE) for side in standard.shape)
    return spectra(standard[middle(standard.shape, (rows, columns - columns % 2))], coarser)


def spectra(images: np.ndarray, coarser: float = 1) -> np.ndarray:
    """Spectra of images ``(..., y, x)``, an even number of voxels along x, each of norm 1: ``(..., y, x / 2 + 1)``.

    Each is band-passed to the size of membranes, or ``coarser`` times that size. The half along x that is left out is
    the conjugate of the other.
    """
    from scipy import fft

    rows, columns = images.shape[-2:]
    half = columns // 2 + 1
    taper, band = taper_and_band(rows, columns, coarser)
    clipped = images.clip(-4, 4)
    found = fft.rfft2((clipped - clipped.mean(axis=(-2, -1), keepdims=True)) * taper) * band[:, :half]
    twice = np.full(half, 2, np.float32)  # but for the first and the last, each stands for two of the whole
    twice[[0, -1]] = 1
    norms = np.sqrt((np.square(np.abs(found)) * twice).sum(axis=(-2, -1), keepdims=True))
    return found / np.where(norms > 0, norms, 1)


def correlations(own: np.ndarray, *others: np.ndarray) -> np.ndarray:
    """Correlation of images with others at every shift, mean over the others, ``(..., y, x)``; all given by
    :func:`spectra`."""
    from scipy import fft

    summed = fft.irfft2(np.sum(others, axis=0).conj() * own)
    return summed * (math.prod(summed.shape[-2:]) / len(others))


def displacement(spectrum: np.ndarray, *others: np.ndarray, coarser: float = 1) -> Displacement:
    """Displacement at which a section agrees best with all of the others together; all given by :func:`band_passed`."""
    found = correlations(spectrum, *others)
    return Displacement(distinct_peak(found, 2 * coarser * COARSEST), float(found.max()))


@dataclass(frozen=True)
class Scale:
    """A kind of local damage to look for; lengths are voxels of the section.

    Attributes:
        name: what to look for: lines, which are followed as paths or curves, or clouds, which are round.
        shrink: voxels along y and x that are averaged into one, before anything else.
        sigma: smoothing; of a curve, across it.
        reach: half the side of the surroundings over which the range is taken: tissue may move this far.
        around: sigma of the background of a curve, which is subtracted.
        fill: dark (bright) structures narrower than this are filled in before looking for places that are too dark
            (bright), so that membranes do not hide a fold or a shadow; 0 for lines that are as thin themselves.
        usual: for lines, the deviation that they must exceed on average; 0 for clouds.
        length, directions: of the segments of which a curve is made; 0 for paths.
        floor: smallest standard deviation of the natural logarithm of a section's greatest deviation.
    """

    name: str
    shrink: int
    sigma: float
    reach: float
    around: float = 0
    fill: float = 0
    usual: float = 0
    length: int = 0
    directions: int = 0
    floor: float = 0.3


SCALES = (
    Scale("cracks", 2, 1.0, 4, around=4, usual=0.1, length=16, directions=16, floor=0.17),
    Scale("long folds", 4, 2.6, 4, around=8, usual=0.1, length=40, directions=20, floor=0.17),
    Scale("folds", 2, 1.0, 4, fill=8, usual=0.35),
    Scale("bands", 4, 3.0, 8, usual=0.25),
    Scale("clouds", 4, 4.0, 8, fill=16),
    Scale("large clouds", 8, 12.0, 8, fill=24),
)
MOST = 1.5
"""Robust standard deviations: a voxel of a line counts no more than this, so that a speck makes no line."""


def deviations(standard: np.ndarray, before: np.ndarray, after: np.ndarray, scale: Scale) -> np.ndarray:
    """Map how far a section lies below and above the range of two others.

    Args:
        standard, before, after: standardised sections ``(y, x)``, laid over each other.
        scale: what to look for.

    Returns:
        ``(2, rows, columns)``, float32, at least 0, on the shrunken grid: too dark, too bright. For clouds in robust
        standard deviations; for lines, these times hundred voxels along the best path or curve through each place.
    """
    own, first, second = (block_means(part.clip(-4, 4), (scale.shrink,) * 2) for part in (standard, before, after))
    reach = round(scale.reach / scale.shrink)
    if scale.length:
        length, sigma, around = (part / scale.shrink for part in (scale.length, scale.sigma, scale.around))
        curves = Curves(round(length), sigma, around, scale.directions, reach, scale.usual, MOST)
        return curves_outside(own, first, second, curves) * np.float32(scale.length / 100)
    sections = [_gaussian(part, scale.sigma / scale.shrink) for part in (own, first, second)]
    maps = []
    for sign in (1, -1):
        here, first, second = (sign * part for part in sections)
        if scale.fill:
            here, first, second = (_fill(part, round(scale.fill / scale.shrink)) for part in (here, first, second))
        outside = (_lowest(np.minimum(first, second), 2 * reach + 1) - here).clip(0)
        if scale.usual:
            outside = _paths(outside.clip(0, MOST) - scale.usual) * (scale.shrink / 100)
        maps.append(outside)
    return np.stack(maps).astype(np.float32)


def displaced_parts(standard: np.ndarray, before: np.ndarray, after: np.ndarray) -> float:
    """Displacement of the two sides of a straight line against each other, across the line, in voxels.

    Squares of 96 x 96 voxels are aligned with both other sections at once, by the peak of their correlation; squares
    that have too little in common with them are skipped. The median scatter of either side is subtracted from the
    displacement between their medians, and the line is the one where most remains. The result is 0 where nothing
    remains, or where there are too few squares.

    Args:
        standard, before, after: standardised sections ``(y, x)``, laid over each other.
    """
    starts = [
        evenly_spaced(side - SQUARE + 1, min(SQUARES, (side - SQUARE) // SQUARE_STEP + 1))
        for side in standard.shape
        if side >= SQUARE
    ]
    if len(starts) < 2:
        return 0.0
    corners = [(y, x) for y in starts[0] for x in starts[1]]
    own, *others = (
        spectra(np.stack([section[y : y + SQUARE, x : x + SQUARE] for y, x in corners]))
        for section in (standard, before, after)
    )
    found = correlations(own, *others)
    agree = found.max(axis=(1, 2)) >= ALIKE
    peaks = np.unravel_index(found[agree].reshape(-1, SQUARE**2).argmax(axis=1), (SQUARE, SQUARE))
    moved = np.fft.fftfreq(SQUARE, 1 / SQUARE)[np.array(peaks).T]
    return _across_a_line(np.array(corners, float)[agree], moved) if agree.sum() >= LEAST_SQUARES else 0.0


def _across_a_line(places: np.ndarray, moved: np.ndarray) -> float:
    """Largest displacement across a line, given places of squares and their displacements, both ``(n, 2)`` as y, x."""
    best = 0.0
    for angle in np.linspace(0, np.pi, DIRECTIONS, endpoint=False):
        normal = np.array([np.sin(angle), np.cos(angle)])
        along = places @ normal
        for share in np.linspace(0, 1, DIRECTIONS + 1)[1:-1]:
            far = along > np.quantile(along, share)
            sides = moved[far], moved[~far]
            if min(map(len, sides)) >= LEAST_SQUARES / 2:
                centres = [np.median(side, axis=0) for side in sides]
                scatter = [np.median(np.hypot(*(side - centre).T)) for side, centre in zip(sides, centres, strict=True)]
                best = max(best, abs(float((centres[0] - centres[1]) @ normal)) - float(sum(scatter)))
    return best


def _lowest(image: np.ndarray, size: int) -> np.ndarray:
    from scipy import ndimage

    return ndimage.minimum_filter(image, size, mode="nearest")


def _fill(image: np.ndarray, size: int) -> np.ndarray:
    from scipy import ndimage

    return ndimage.grey_closing(image, (size, size), mode="nearest")


def _paths(gain: np.ndarray) -> np.ndarray:
    """Largest sum along a path through each place, at least 0; paths run down or across, at 45 degrees at most.

    It is 0 where the place itself adds nothing. A path may begin and end anywhere, so its sum is never below 0
    (as in local sequence alignment: Smith & Waterman, J. Mol. Biol. 147, 1981).
    """
    best = np.zeros_like(gain)
    for turned, result in ((gain, best), (gain.T, best.T)):
        ahead, back = _collected(turned), _collected(turned[::-1])[::-1]
        np.maximum(result, np.where(turned > 0, ahead + back - turned, 0), out=result)
    return best


def _collected(gain: np.ndarray) -> np.ndarray:
    """Largest sum of a path that comes from above and ends at each place, that place included."""
    total = np.empty_like(gain)
    above = np.zeros(gain.shape[1] + 2, gain.dtype)
    for row, own in enumerate(gain):
        total[row] = own + np.maximum(np.maximum(above[:-2], above[1:-1]), np.maximum(above[2:], 0))
        above[1:-1] = total[row]
    return total


def _gaussian(image: np.ndarray, sigma: float) -> np.ndarray:
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(image, sigma, mode="nearest", truncate=3)
