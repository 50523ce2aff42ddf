"""How far a figure depends on the place: intervals by resampling blocks of a volume."""

from __future__ import annotations

import numpy as np

BLOCKS_PER_AXIS = 3
RESAMPLES = 2000
PERCENTILES = (2.5, 97.5)


def resampled_mse(errors: np.ndarray) -> np.ndarray:
    """Mean squared errors over bootstrap samples of 3 x 3 x 3 blocks, float64 ``(RESAMPLES,)``.

    Neighbouring voxels err together, so blocks are drawn, not voxels (B. Efron, "Bootstrap methods: another look at the
    jackknife", Ann. Stat. 7(1), 1979). Every call draws the same blocks: the ratio of two methods' errors is a paired
    comparison.

    Args:
        errors: ``(z, y, x)``, in any unit.
    """
    totals = np.square(errors.astype(np.float32))
    counts = np.ones((), np.int64)
    for axis, side in enumerate(errors.shape):
        edges = np.linspace(0, side, min(BLOCKS_PER_AXIS, side) + 1).astype(int)
        totals = np.add.reduceat(totals, edges[:-1], axis=axis, dtype=np.float64)
        counts = np.multiply.outer(counts, np.diff(edges))
    drawn = np.random.default_rng(0).integers(totals.size, size=(RESAMPLES, totals.size))
    return totals.ravel()[drawn].sum(axis=1) / counts.ravel()[drawn].sum(axis=1)


def decibel_interval(ratios: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of ratios of mean squared errors, in dB."""
    low, high = np.percentile(10 * np.log10(ratios), PERCENTILES)
    return float(low), float(high)
