"""Whether neighbouring sections lie above each other: how far each is shifted against the one before.

Both sections of a pair are band-passed and tapered, and correlated at every shift at once by Fourier transform. A shift
counts only where the correlation has one distinct peak. Tissue itself moves between sections, where processes run
obliquely, so that shifts of a few voxels say nothing; and a drift that small but steady goes unseen.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from emformer_hub.volumes import StoredArray
from emformer_hub.volumes.boxes import evenly_spaced, middle

MAX_PAIRS, MAX_SIDE = 64, 512
FINEST, COARSEST = 2.0, 8.0
"""Standard deviations, in voxels, of the two Gaussians whose difference is looked at: membranes, neither noise nor
gradients of brightness."""
DISTINCT = 1.5
"""How many times the second-highest peak the highest must be. Unrelated images reach less in 95 % of pairs, aligned
sections over a field of 512 x 512 voxels more in 99 %, over one of 256 x 256 more in 94 %."""
LARGE_SHIFT = 12.0
"""Voxels. Over the middle 512 x 512 voxels of aligned stacks shifts reach 1 (FIB-SEM, 8 nm), 3 (SBF-SEM), 8 (every 8th
plane of a FIB-SEM), 10 and 11 voxels (ssTEM); in a stack known to be badly aligned 28 % are larger, up to 28 voxels."""
MANY = 0.1
"""Share of the pairs. At a tenth, two of three clips of 12 sections hold a jump; a damaged section in a large stack is
no reason to give up all neighbours."""


def section_shifts(volume: np.ndarray | StoredArray) -> np.ndarray:
    """How far sections are displaced against the one before them, along y and x, in whole voxels.

    Looks at the middle of the sections, at most 512 x 512 voxels, and reads no more than that. Shifts up to about a
    quarter of that field are found.

    Args:
        volume: ``(z, y, x)``, any real dtype.

    Returns:
        ``(pairs, 2)``, float64: one row for each pair of neighbours, in their order, at most 64 of them, evenly spaced
        over the volume. NaN where none can be told: a section is blank, or the two have too little in common.
    """
    depth, height, width = volume.shape
    pairs = evenly_spaced(depth - 1, MAX_PAIRS)
    y, x = middle((height, width), (MAX_SIDE, MAX_SIDE))
    taper, band = taper_and_band(y.stop - y.start, x.stop - x.start)
    shifts = np.full((len(pairs), 2), np.nan)
    for pair, z in enumerate(pairs):
        sections = volume[z : z + 2, y, x].astype(np.float32)
        if all(np.isfinite(section).all() and np.ptp(section) > 0 for section in sections):
            before, after = (np.fft.fft2((section - section.mean()) * taper) * band for section in sections)
            shifts[pair] = distinct_peak(np.fft.ifft2(before.conj() * after).real)
    return shifts


def alignment_note(volume: np.ndarray | StoredArray) -> str | None:
    """A sentence about a stack ``(z, y, x)`` whose sections do not lie above each other; ``None`` if they do.

    Said of a stack in which at least a tenth of the pairs of :func:`section_shifts` are shifted by more than 12 voxels,
    or in which no shift can be told for most of them.
    """
    shifts = section_shifts(volume)
    told = told_lengths(shifts)
    if 2 * len(told) < len(shifts):
        return (
            f"{len(shifts) - len(told)} of {len(shifts)} neighbouring sections have too little in common to tell "
            f"whether they are aligned; look through the stack, and if they do not show the same place, align it first."
        )
    large = int((told > LARGE_SHIFT).sum())
    if not large or large < MANY * len(told):
        return None
    return (
        f"{large} of {len(told)} neighbouring sections are shifted against each other by more than {LARGE_SHIFT:g} "
        f"voxels, at most by {told.max():.0f}; align the stack first."
    )


@lru_cache(maxsize=4)
def taper_and_band(rows: int, columns: int, coarser: float = 1) -> tuple[np.ndarray, np.ndarray]:
    """What an image is multiplied by, and what its spectrum is, ``(y, x)``, float32: structures as large as membranes,
    or so many times as large, remain."""
    taper = np.outer(np.hanning(rows), np.hanning(columns)).astype(np.float32)
    frequency = np.hypot(np.fft.fftfreq(rows)[:, None], np.fft.fftfreq(columns))  # cycles a voxel
    fine, coarse = (np.exp(-2 * (np.pi * sigma * frequency) ** 2) for sigma in (coarser * FINEST, coarser * COARSEST))
    return taper, (fine - coarse).astype(np.float32)


def told_lengths(shifts: np.ndarray) -> np.ndarray:
    """How long those of :func:`section_shifts` are that could be told, voxels."""
    return np.hypot(*shifts[~np.isnan(shifts).any(axis=1)].T)


def distinct_peak(correlation: np.ndarray, width: float = 2 * COARSEST) -> tuple[float, float]:
    """The shift ``(y, x)`` at which a map of all of them ``(y, x)`` peaks; NaN if it peaks as well elsewhere, that is,
    by more than so many voxels off."""
    peak = np.unravel_index(int(correlation.argmax()), correlation.shape)
    shifts_y, shifts_x = (np.fft.fftfreq(side, 1 / side) for side in correlation.shape)
    around = np.roll(correlation, (-peak[0], -peak[1]), axis=(0, 1))
    elsewhere = around[np.hypot(shifts_y[:, None], shifts_x) > width]
    if not elsewhere.size or not around[0, 0] > DISTINCT * elsewhere.max():
        return np.nan, np.nan
    return float(shifts_y[peak[0]]), float(shifts_x[peak[1]])
