"""How far each section lies from the next, by how alike the two are: ``measure_spacings``.

The nearer two sections lie, the more alike they are. How likeness falls with distance, the sections tell themselves: if
tissue has no preferred direction, then two sections at some distance are as alike as one section and itself, shifted by
that distance (the idea of Hanslovsky, Bogovic & Saalfeld, Bioinformatics 33, 2017). That holds as well for sections
that are filtered across the shift. So what changes slowly, and says little about small distances, is filtered out along
y before shifts along x, and the other way around.

What a pair of sections says is as uncertain as parts of them differ in it. If spacings scatter no more than that, there
is nothing to correct; else each is drawn towards the mean, the further the less certain it is (empirical Bayes).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from emformer_hub.errors import InputError
from emformer_hub.geometry import FACTOR_MAX
from emformer_hub.inspection import measures
from emformer_hub.inspection.alignment import LARGE_SHIFT
from emformer_hub.volumes import StoredArray
from emformer_hub.volumes.boxes import evenly_spaced, middle
from emformer_hub.volumes.unmeasured import filled, unmeasured_in

LEAST_SIDE, SIDE = 256, 2048
"""Voxels along y and x that sections must have, and that are looked at, at most."""
SLOW = 0.5
"""Standard deviation of the Gaussian whose mean is what changes slowly, in mean distances of sections."""
LAGS = 48
"""Voxels, at most, by which sections are shifted against themselves."""
LOOKED_AT = 24
"""Evenly spaced sections whose likeness to themselves is averaged."""
PARTS = 4
"""Parts along y, and along x, that are compared with each other to tell how certain a measurement is."""
LEAST_PAIRS = 4
CHANCE = 1e-3
"""How often evenly spaced sections may be taken for uneven ones."""
STEADY = 3.0
"""Voxels; 9 of 10 shifts are smaller if a stack is so well aligned that what moves is the tissue."""
STEP = 0.02
"""Difference of likeness over which the slope of its fall is taken."""


@dataclass(frozen=True, eq=False)
class Spacings:
    """Distances of neighbouring sections.

    Attributes:
        spacings: distance within each pair, in mean ones, ``(pairs,)``; 1 where it was not measured, or all are even.
        errors: their standard errors, ``(pairs,)``; NaN where it was not measured.
        unevenness: standard deviation of the true distances, in mean ones; 0 if they scatter no more than measurements
            of evenly spaced sections would.
        error: standard error of what a single pair says, in mean distances.
    """

    spacings: np.ndarray
    errors: np.ndarray
    unevenness: float
    error: float

    def z_positions(self, spacing_nm: float, thickness: float) -> list[tuple[float, float]]:
        """Centre and thickness of each section, nm, as ``UnevenSections.of`` takes them.

        Args:
            spacing_nm: mean distance of neighbouring sections.
            thickness: imaged fraction of the space that a section has, above 0, at most 1.
        """
        spacings = self.spacings * spacing_nm
        centres = spacing_nm / 2 + np.append(0, np.cumsum(spacings))
        room = np.minimum(np.append(spacings[0], spacings), np.append(spacings, spacings[-1]))  # so that none overlap
        return list(zip(centres.tolist(), (thickness * room).tolist(), strict=True))

    def to_dict(self) -> dict[str, Any]:
        """All attributes, ready for JSON; ``None`` for what was not measured."""
        errors = [None if np.isnan(error) else round(error, 4) for error in self.errors.tolist()]
        spacings = [round(spacing, 4) for spacing in self.spacings.tolist()]
        return {**vars(self), "spacings": spacings, "errors": errors}

    def sentence(self) -> str:
        """What was found, for a report: ``uneven by 20%, of which 8% stay unknown (61 of 61 pairs measured)``."""
        pairs = f"({np.isfinite(self.errors).sum()} of {len(self.errors)} pairs measured)"
        if not self.unevenness:
            return f"even, as far as can be told: a pair is measured to {self.error:.0%} {pairs}"
        unknown = float(np.nanmedian(self.errors))
        return f"uneven by {self.unevenness:.0%}, of which {unknown:.0%} stay unknown {pairs}"


def measure_spacings(
    stack: np.ndarray | StoredArray,
    factor: float,
    *,
    hidden: StoredArray | None = None,
    unfit: Sequence[int] = (),
    progress: Callable[[int, int], None] | None = None,
) -> Spacings:
    """Measure how far each section lies from the next, relative to their mean distance.

    Args:
        stack: ``(z, y, x)``, any real dtype that volumes have, at least 256 voxels along y and x; aligned.
        factor: mean distance in lateral voxels, as the voxel size has it.
        hidden: mask of voxels that were not measured, bool ``(z, y, x)``.
        unfit: numbers of sections that say nothing about distance because they are missing, damaged or shifted.
        progress: called with the number of pairs done and of all pairs.

    Raises:
        InputError: sections are too small, or fewer than 4 pairs are sound, aligned and alike enough to be measured.
    """
    count, height, width = stack.shape
    if min(height, width) < LEAST_SIDE:
        raise InputError(
            f"sections of {height} x {width} voxels are too small to tell how far apart they lie; expected at least "
            f"{LEAST_SIDE} along y and x."
        )
    sound = set(range(count)) - set(unfit)
    pairs = [z for z in sorted(sound) if z + 1 in sound]
    unmeasured = unmeasured_in(stack, hidden)
    sections = stack if unmeasured is None else filled(stack, unmeasured)
    part, sigma = middle((height, width), (SIDE, SIDE)), SLOW * min(factor, FACTOR_MAX)
    looked = {pairs[i] for i in evenly_spaced(len(pairs), LOOKED_AT)}
    likeness, curves = np.full((count - 1, 2, PARTS, PARTS), np.nan), []
    shifts = np.full((count - 1, 2), np.nan)
    near, nearest = None, -1
    for done, z in enumerate(pairs, 1):
        here = near if near is not None and nearest == z else _Filtered(sections[z][part], sigma)
        near, nearest = _Filtered(sections[z + 1][part], sigma), z + 1
        shifts[z] = here.shift(near)
        y, x = np.rint(np.nan_to_num(shifts[z])).astype(int)
        likeness[z] = here.likeness(near, (int(y), int(x)))
        if z in looked:
            curves.append(here.curve())
        if progress is not None:
            progress(done, len(pairs))
    lengths = np.hypot(*shifts.T)
    told = np.isfinite(lengths)
    steady = told.any() and np.quantile(lengths[told], 0.9) <= STEADY  # a shift that cannot be told is then none
    falling = np.minimum.accumulate(np.mean(curves or [np.ones((2, 2))], axis=0), axis=1)
    whole = likeness.mean(axis=(2, 3))
    alike = ((whole > falling[:, -1]) & (whole < 1)).all(axis=1)  # neither too far apart to be told, nor copies
    known = alike & np.where(told, lengths <= LARGE_SHIFT, steady)
    if known.sum() < LEAST_PAIRS:
        raise InputError(
            f"{known.sum()} of {count - 1} pairs of neighbouring sections are sound, aligned and alike enough to tell "
            f"how far apart they lie; expected {LEAST_PAIRS} or more. Align the stack first, if it is not."
        )
    return _spacings(likeness, known, falling)


class _Filtered:
    """A section less what changes slowly along y, and less what changes slowly along x, both ``(y, x)``."""

    def __init__(self, section: np.ndarray, sigma: float) -> None:
        from scipy.ndimage import gaussian_filter1d

        standard = measures.standardise(section).clip(-4, 4)
        self._spectrum = measures.band_passed(standard)
        self._images = [standard - gaussian_filter1d(standard, sigma, axis, mode="nearest") for axis in (0, 1)]
        # the variance less noise, which voxels do not share: the covariance at lag 0, extrapolated from the next two
        self._signal = [max((4 * self._at(axis, 1) - self._at(axis, 2)) / 3, 1e-9) for axis in (0, 1)]

    def _at(self, axis: int, lag: int) -> float:
        """Covariance with itself at a shift across the axis along which it was filtered."""
        image = self._images[axis] if axis == 0 else self._images[axis].T
        return float(np.mean(image[:, lag:] * image[:, : image.shape[1] - lag]))

    def curve(self) -> np.ndarray:
        """Likeness to itself at lags from 0 on, of either image, ``(2, lags)``."""
        lags = range(1, min(LAGS, min(self._images[0].shape) // 4) + 1)
        return np.array([[1.0, *(self._at(axis, lag) / self._signal[axis] for lag in lags)] for axis in (0, 1)])

    def shift(self, other: _Filtered) -> tuple[float, float]:
        """Voxels along y and x by which the other section is shifted; NaN if that cannot be told."""
        return measures.displacement(other._spectrum, self._spectrum).shift_yx

    def likeness(self, other: _Filtered, moves: tuple[int, int]) -> np.ndarray:
        """Likeness of this section and one that is shifted, of either image, in parts ``(2, parts, parts)``."""
        shape = self._images[0].shape
        mine, theirs = (
            tuple(
                slice(max(0, sign * step), side + min(0, sign * step)) for step, side in zip(moves, shape, strict=True)
            )
            for sign in (-1, 1)
        )
        found = []
        for axis, image in enumerate(self._images):
            product = image[mine] * other._images[axis][theirs]
            rows, columns = (side // PARTS for side in product.shape)
            parts = product[: rows * PARTS, : columns * PARTS].reshape(PARTS, rows, PARTS, columns).mean(axis=(1, 3))
            found.append(parts / np.sqrt(self._signal[axis] * other._signal[axis]))
        return np.array(found)


def _spacings(likeness: np.ndarray, known: np.ndarray, falling: np.ndarray) -> Spacings:
    """Distances at which sections are so alike.

    Args:
        likeness: of all pairs, ``(pairs, 2, parts, parts)``.
        known: bool ``(pairs,)``, which of them were measured.
        falling: likeness of sections to themselves at lags from 0 on, ``(2, lags)``.
    """
    from scipy.stats import f as variance_ratios

    def distance(likeness: np.ndarray) -> np.ndarray:
        lags = [np.interp(-likeness[:, axis], -falling[axis], np.arange(falling.shape[1])) for axis in (0, 1)]
        return np.mean(lags, axis=0)

    parts = likeness[known].reshape(-1, 2, PARTS**2)
    whole = parts.mean(axis=2)
    scatter = float(whole.mean(axis=1).var(ddof=1))
    by_chance = float(parts.mean(axis=1).var(axis=1, ddof=1).mean()) / PARTS**2
    most = variance_ratios.isf(CHANCE, len(whole) - 1, len(whole) * (PARTS**2 - 1))
    share = 1 - by_chance / scatter if scatter > most * by_chance else 0.0
    drawn = whole.mean(axis=0) + share * (whole - whole.mean(axis=0))
    mean = max(float(distance(drawn).mean()), 1e-9)

    def error(likeness: np.ndarray) -> np.ndarray:
        """What chance makes of the distance, in mean ones."""
        slope = (distance(likeness - STEP) - distance(likeness + STEP)) / (2 * STEP)
        return by_chance**0.5 * slope / mean

    usual = whole.mean(axis=0, keepdims=True)
    spacings, errors = np.ones(len(known)), np.full(len(known), np.nan)
    spacings[known] = distance(drawn) / mean if share else 1.0
    errors[known] = error(drawn) * (share**0.5 if share else 1)
    unevenness = float(error(usual)[0]) * (max(scatter - by_chance, 0) / by_chance) ** 0.5 if share else 0.0
    return Spacings(spacings / spacings.mean(), errors, unevenness, float(error(usual)[0]))
