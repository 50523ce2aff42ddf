"""Whether neighbouring sections are aligned: how far each is shifted against the one before.

Both sections of a pair are band-passed and tapered, and correlated at every shift at once by Fourier transform. A shift
counts only where the correlation has one distinct peak. Tissue itself moves between sections where processes run
obliquely, so shifts of a few voxels mean nothing; and a small but steady drift goes unseen.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from emformer_hub.volumes import StoredArray
from emformer_hub.volumes.boxes import evenly_spaced, middle

MAX_PAIRS, MAX_SIDE = 64, 512
LEAST_FIELD = 128
"""Side, in voxels, of the smallest sections of which alignment is judged before a reconstruction."""
FINEST, COARSEST = 2.0, 8.0
"""Standard deviations, in voxels, of the two Gaussians whose difference passes membranes, but neither noise nor
gradients of brightness."""
DISTINCT = 1.5
"""Least ratio of the highest peak to the second-highest. Unrelated images reach less in 95 % of pairs, aligned
sections over a field of 512 x 512 voxels more in 99 %, over one of 256 x 256 more in 94 %."""
LARGE_SHIFT = 12.0
"""Voxels. Over the middle 512 x 512 voxels of aligned stacks shifts reach 1 (FIB-SEM, 8 nm), 3 (SBF-SEM), 8 (every 8th
plane of a FIB-SEM), 10 and 11 voxels (ssTEM); in a stack known to be badly aligned 28 % are larger, up to 28 voxels."""
MANY = 0.1
"""Fraction of the pairs. At a tenth, two of three clips of 12 sections hold a jump; one damaged section in a large
stack is not a reason to distrust all neighbours."""


def section_shifts(volume: np.ndarray | StoredArray) -> np.ndarray:
    """Shift of sections against the one before them, along y and x, in whole voxels.

    Reads only the middle of the sections, at most 512 x 512 voxels. Shifts up to about a
    quarter of that field are found.

    Args:
        volume: ``(z, y, x)``, any real dtype.

    Returns:
        ``(pairs, 2)``, float64: one row for each pair of neighbours, in their order, at most 64 of them, evenly spaced
        over the volume. NaN where no shift can be measured: a section is blank, or the two have too little in common.
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


def alignment_note(shifts: np.ndarray, *, moved: bool = False) -> str | None:
    """A sentence about a stack whose sections are not aligned; ``None`` if they are.

    It says what to do: align the stack, or doubt the translations if its sections were ``moved`` already. A stack
    counts as badly aligned if at least a tenth of the pairs are shifted by more than 12 voxels, or if no shift can be
    measured for most of them.

    Args:
        shifts: those of the stack, voxels, ``(pairs, 2)`` (:func:`section_shifts`).
        moved: whether its sections were translated already.
    """
    measured = measured_lengths(shifts)
    if 2 * len(measured) < len(shifts):
        return (
            f"{len(shifts) - len(measured)} of {len(shifts)} neighbouring sections have too little in common to tell "
            f"whether they are aligned; look through the stack"
            + (" as it is moved." if moved else ", and if they do not show the same place, align it first.")
        )
    large = int((measured > LARGE_SHIFT).sum())
    if not large or large < MANY * len(measured):
        return None
    return (
        f"{large} of {len(measured)} neighbouring sections are shifted against each other by more than {LARGE_SHIFT:g} "
        f"voxels, at most by {measured.max():.0f}"
        + (
            ", although they were moved to align them: are the translations those of this stack, and of the right sign?"
            if moved
            else "; align the stack first, or try `--align translation`."
        )
    )


@lru_cache(maxsize=4)
def taper_and_band(rows: int, columns: int, coarser: float = 1) -> tuple[np.ndarray, np.ndarray]:
    """A taper to multiply an image by, and a band-pass for its spectrum, both ``(y, x)``, float32.

    Structures of the size of membranes, or ``coarser`` times that size, remain.
    """
    taper = np.outer(np.hanning(rows), np.hanning(columns)).astype(np.float32)
    frequency = np.hypot(np.fft.fftfreq(rows)[:, None], np.fft.fftfreq(columns))  # cycles a voxel
    fine, coarse = (np.exp(-2 * (np.pi * sigma * frequency) ** 2) for sigma in (coarser * FINEST, coarser * COARSEST))
    return taper, (fine - coarse).astype(np.float32)


def measured_lengths(shifts: np.ndarray) -> np.ndarray:
    """Lengths, in voxels, of those :func:`section_shifts` that could be measured."""
    return np.hypot(*shifts[~np.isnan(shifts).any(axis=1)].T)


def distinct_peak(correlation: np.ndarray, width: float = 2 * COARSEST) -> tuple[float, float]:
    """Shift ``(y, x)`` at which a correlation map ``(y, x)`` peaks; NaN if it has a second peak more than ``width``
    voxels away."""
    peak = np.unravel_index(int(correlation.argmax()), correlation.shape)
    shifts_y, shifts_x = (np.fft.fftfreq(side, 1 / side) for side in correlation.shape)
    around = np.roll(correlation, (-peak[0], -peak[1]), axis=(0, 1))
    elsewhere = around[np.hypot(shifts_y[:, None], shifts_x) > width]
    if not elsewhere.size or not around[0, 0] > DISTINCT * elsewhere.max():
        return np.nan, np.nan
    return float(shifts_y[peak[0]]), float(shifts_x[peak[1]])
