"""How sections are displaced against the ones before, place by place, and which translations undo it.

The shift of a section is searched for over its middle, and refined by patches all over it, each of which is correlated
with the patch of the section before that it should lie on. Where a smooth field remains once all are shifted, the
section is turned or deformed.

Tissue itself moves between sections, a little and steadily, where processes run obliquely. Adding up shifts as they are
measured takes this for drift, and shears the tissue. :func:`translations_of` therefore tells three random processes
apart by the correlation of successive shifts: the jitter of each section, drift from section to section, and the motion
of tissue, which is left alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from emformer_hub.errors import InputError
from emformer_hub.files import replacing
from emformer_hub.inspection.alignment import COARSEST, taper_and_band
from emformer_hub.volumes import StoredArray
from emformer_hub.volumes.boxes import middle
from emformer_hub.volumes.unmeasured import filled

FIELD = 1024
"""Side of the middle in which the shift of a section is searched for, voxels."""
PATCH, LEAST_STEP, MOST_PATCHES = 160, 40, 8
"""Side of a patch, least distance of neighbouring patches, both in voxels, and most patches along y and along x."""
PEAK_RATIO, PEAK_RADIUS = 1.3, 5
"""Least ratio of the highest peak to the second-highest: aligned sections reach it in 98 % of pairs over a field of 250
x 250 voxels, unrelated ones in 2 %. Radius, in voxels, over which the sharpness of a peak is told."""
NEAR, NEARLY = 24, 0.8
"""Where no peak is distinct, one within so many voxels counts, if it is nearly as high as any other: in less than half
of the pairs, or the sections show nothing of each other."""
REACH = 4
"""Sections back to which one is compared: at most 3 in a row may show nothing that the others do."""
MOTION, LASTING = 1.0, 0.5
"""Standard deviation along y and x, in voxels, by which tissue moves from section to section, and correlation of one
such step with the next. Aligned stacks (FIB-SEM, SBF-SEM, ssSEM; 8 to 80 nm) have 0.5 to 0.9 voxels; -0.1 to 0.6."""
DEFORMED, MANY = 3.5, 1 / 3
"""Root mean square, in voxels, of the smooth field that remains in a section that counts as deformed: it reaches 2.3 in
aligned stacks, and is 2.5 in sections of 512 x 512 voxels that are turned by one degree against each other, 5 by two.
Share of such sections from which on translations are refused."""
LEAST_PATCHES = {2: 12, 1: 6}
"""Patches that it takes to fit a polynomial of this degree."""


@dataclass(frozen=True, eq=False)
class Displacements:
    """Displacement of sections against the ones before them.

    Attributes:
        num_sections: number of sections of the stack.
        pairs: numbers of both sections of each pair, ``(pairs, 2)``; sections between them show nothing.
        shifts: displacement of the second section as a whole, along y and x, in voxels, ``(pairs, 2)``.
        patches: displacement of each patch along x and y, in voxels; sharpness of its peak; ratio of the peak to the
            second one: float32 ``(4, pairs, rows, columns)``, NaN where there is none.
        step: distance from one patch of 160 x 160 voxels to the next, in voxels.
    """

    num_sections: int
    pairs: np.ndarray
    shifts: np.ndarray
    patches: np.ndarray
    step: int

    @property
    def deformed(self) -> list[int]:
        """Sections that are turned or deformed against the one before, or of which less than half is found there."""
        fields = zip(self.pairs[:, 1].tolist(), np.moveaxis(self.patches, 1, 0), strict=True)
        return [z for z, field in fields if _share_found(field) < 0.5 or _smooth_rms(field) > DEFORMED]

    def save(self, path: Path) -> None:
        """Write a NumPy ``.npz`` with ``flow``, the field that SOFIMA's ``flow_utils`` and ``mesh`` take: float32
        ``(4, pairs, rows, columns)``, from a section to the one before: x, y, sharpness, ratio. Beside it ``pairs``,
        ``patch_size`` and ``step``."""
        flow = self.patches * np.array([-1, -1, 1, 1], np.float32)[:, None, None, None]
        with replacing(path) as unfinished, unfinished.open("wb") as file:
            np.savez_compressed(file, flow=flow, pairs=self.pairs, patch_size=PATCH, step=self.step)


def measure_displacements(
    volume: np.ndarray | StoredArray,
    hidden: StoredArray | None = None,
    progress: Callable[[int, int], None] = lambda done, sections: None,
) -> Displacements:
    """Measure how each section is displaced against the one before, or against one of the 4 before it.

    Shifts of up to about a quarter of the middle 1024 x 1024 voxels are found.

    Args:
        volume: ``(z, y, x)``, any real dtype.
        hidden: mask of voxels that were not measured, bool ``(z, y, x)``.
        progress: called with the number of sections that were looked at, and of all.

    Raises:
        InputError: sections are smaller than 160 x 160 voxels; more than 3 in a row show nothing that those before them
            do, or most of them hardly anything.
    """
    if min(volume.shape[1:]) < PATCH:
        raise InputError(
            f"sections have {volume.shape[1]} x {volume.shape[2]} voxels; expected at least {PATCH} x {PATCH}, or "
            f"displacements are found by chance. Measure them on larger sections, and give --align the file."
        )
    stack = volume if hidden is None else filled(volume, hidden)
    step = max(LEAST_STEP, *(-(-(length - PATCH) // (MOST_PATCHES - 1)) for length in stack.shape[1:]))
    placed: list[tuple[int, np.ndarray]] = []
    pairs, shifts, patches, distinct = [], [], [], 0
    for z in range(len(stack)):
        section = np.asarray(stack[z]).astype(np.float32)
        progress(z + 1, len(stack))
        if not np.isfinite(section).all() or not np.ptp(section):
            continue
        found = _found_before([one for one in reversed(placed) if z - one[0] <= REACH], section)
        if found is not None:
            before, other, shift, sure = found
            distinct += sure
            field = _patches(other, section, shift, step)
            known = field[3] > PEAK_RATIO
            pairs.append((before, z))
            shifts.append(np.median(field[1::-1, known], axis=1) if known.sum() > 2 else np.array(shift, float))
            patches.append(field)
        elif len(placed) > 1:
            _check_reach(z - placed[-1][0], placed[-1][0])
            continue
        else:
            placed.clear()  # nothing is found in the first one: begin with this one
        placed = [*placed[-REACH + 1 :], (z, section)]
    if placed:
        _check_reach(len(stack) - placed[-1][0], placed[-1][0])
    if 2 * distinct <= len(pairs):
        raise InputError(
            f"{len(pairs) - distinct} of {len(stack)} sections have too little in common with those before them; their "
            f"displacement cannot be measured. Look through the stack: does it show one place?"
        )
    return Displacements(len(stack), np.array(pairs), np.array(shifts), np.stack(patches, axis=1), step)


def translations_of(displacements: Displacements) -> tuple[tuple[float, float], ...]:
    """Translations that undo jitter and drift of the sections, along y and x, in voxels, for each section of the stack.

    Their median is zero. A section that nothing is known of is moved as the one before it. Steps are taken as the sum
    of three stationary random processes: jitter, whose successive steps have correlation -1/2, drift, which has none,
    and the motion of tissue. Their variances follow from the covariances of successive steps, and jitter and drift are
    estimated by their conditional mean.
    """
    positions = {int(displacements.pairs[0, 0]): np.zeros(2)}
    for (before, z), shift in zip(displacements.pairs.tolist(), displacements.shifts, strict=True):
        positions[z] = positions[before] + shift
    steps = np.diff(np.array(list(positions.values())), axis=0)
    moved = dict(zip(positions, np.stack([_jitter_and_drift(steps[:, axis]) for axis in (0, 1)], axis=1), strict=True))
    centre = np.median(list(moved.values()), axis=0)
    found = moved[next(iter(moved))]
    translations = []
    for z in range(displacements.num_sections):
        found = moved.get(z, found)
        y, x = (round(float(value), 2) + 0.0 for value in centre - found)  # no negative zero
        translations.append((y, x))
    return tuple(translations)


def check_translations_suffice(displacements: Displacements, name: str) -> None:
    """Raise ``InputError`` if so many sections are turned or deformed that translations do not align them."""
    deformed, count = displacements.deformed, len(displacements.pairs)
    if len(deformed) < MANY * count:
        return
    few = ", ".join(map(str, deformed[:5])) + (", ..." if len(deformed) > 5 else "")
    raise InputError(
        f"{len(deformed)} of {count} sections of {name} are turned, deformed or damaged against the one before "
        f"({few}): translations do not align them. Align the stack elastically, for instance with SOFIMA, whose flow "
        f"field `emformer-hub inspect {name} --displacements flow.npz` writes, with feabas, or with TrakEM2 in Fiji; "
        f"then reconstruct the result."
    )


def _check_reach(distance: int, last: int) -> None:
    if distance > REACH:
        raise InputError(
            f"sections {last + 1} to {last + distance - 1} show nothing that those before them do, or are shifted by "
            f"more than a quarter of their width; their displacement cannot be measured. Look at them; reconstruct "
            f"the parts of the stack on either side by themselves, with --roi, or leave them out of the stack."
        )


def _jitter_and_drift(steps: np.ndarray) -> np.ndarray:
    """Position of each section but for the motion of tissue, from steps between neighbours, ``(steps + 1,)``."""
    from scipy.linalg import solve_toeplitz

    count, motion = len(steps), MOTION**2
    successive = float((steps[1:] * steps[:-1]).mean()) if count > 1 else 0.0
    jitter = max(0.0, LASTING * motion - successive)
    drift = max(0.0, float((steps**2).mean()) - 2 * jitter - motion)
    covariance = motion * LASTING ** np.arange(count)
    covariance[0] += 2 * jitter + drift
    covariance[1:2] -= jitter
    weights = solve_toeplitz(covariance, steps)
    return jitter * (np.append(0, weights) - np.append(weights, 0)) + drift * np.append(0, np.cumsum(weights))


def _found_before(
    others: list[tuple[int, np.ndarray]], section: np.ndarray
) -> tuple[int, np.ndarray, tuple[int, int], bool] | None:
    """The number of the section that another one shows again, that section, their shift in whole voxels, and whether
    its peak is distinct.

    Of those before it, the nearest with a distinct peak; else the one that comes nearest to a distinct peak near zero.
    """
    nearly: list[tuple[float, int, np.ndarray, tuple[int, int]]] = []
    part = middle(section.shape, (FIELD, FIELD))
    for number, other in others:
        correlation = _correlation(other[part], section[part])
        for within in (None, NEAR):
            y, x, _, ratio = _peak(correlation, within)
            if within is None and ratio > PEAK_RATIO:
                return number, other, (round(y), round(x)), True
        nearly.append((ratio, number, other, (round(y), round(x))))
    best = max(nearly, key=lambda one: one[:2], default=None)
    return None if best is None or best[0] < NEARLY else (*best[1:], False)


def _patches(before: np.ndarray, after: np.ndarray, shift: tuple[int, int], step: int) -> np.ndarray:
    """Displacements of patches, as in :class:`Displacements`, ``(4, rows, columns)``."""
    starts = [np.arange(0, length - PATCH + 1, step) for length in after.shape]
    found = np.full((4, *map(len, starts)), np.nan, np.float32)
    for place in np.ndindex(*found.shape[1:]):
        y, x = (int(part[number]) for part, number in zip(starts, place, strict=True))
        other = before[max(0, y - shift[0]) :, max(0, x - shift[1]) :][:PATCH, :PATCH]
        here = after[y : y + PATCH, x : x + PATCH]
        if y >= shift[0] and x >= shift[1] and other.shape == here.shape and np.ptp(other) and np.ptp(here):
            along_y, along_x, sharpness, ratio = _peak(_correlation(other, here))
            found[(slice(None), *place)] = along_x + shift[1], along_y + shift[0], sharpness, ratio
    return found


def _correlation(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Correlation of two band-passed images at every shift of the second against the first, ``(y, x)``.

    Frequencies count by the square root of their power: half way to phase correlation, so that no texture outweighs
    the others.
    """
    taper, band = _taper(*before.shape), taper_and_band(*before.shape)[1]
    first, second = (np.fft.fft2((part - part.mean()) * taper) * band for part in (before, after))
    cross = first.conj() * second
    magnitude = np.abs(cross)
    return np.fft.ifft2(cross / np.sqrt(np.maximum(magnitude, 1e-12 * magnitude.max()))).real


def _peak(correlation: np.ndarray, within: int | None = None) -> tuple[float, float, float, float]:
    """Place of the highest peak along y and x, to a fraction of a voxel; its sharpness, and its ratio to the second.

    Sharpness is the ratio to the lowest value around. The place is the vertex of a parabola along each axis. With
    ``within``, it is the highest peak of those no further from zero.
    """
    distance = _distances(correlation.shape)
    candidates = correlation if within is None else np.where(distance <= within, correlation, -np.inf)
    peak = np.unravel_index(int(candidates.argmax()), correlation.shape)
    around = np.roll(correlation, (-peak[0], -peak[1]), axis=(0, 1))
    top, place = float(around[0, 0]), []
    if top <= 0:
        return 0.0, 0.0, 0.0, 0.0
    for number, line in zip(peak, (around[:, 0], around[0]), strict=True):
        curvature = float(line[-1] + line[1] - 2 * top)
        whole = number - len(line) * (number > len(line) // 2)
        place.append(float(whole) + (0.5 * float(line[-1] - line[1]) / curvature if curvature < 0 else 0.0))
    elsewhere, lowest = around[distance > 2 * COARSEST], float(around[distance <= PEAK_RADIUS].min())
    second = float(elsewhere.max(initial=0.0))
    sharpness, ratio = (top / max(abs(other), 1e-6 * top) for other in (lowest, second))
    return place[0], place[1], sharpness, ratio


@lru_cache(maxsize=4)
def _taper(rows: int, columns: int) -> np.ndarray:
    """A taper that leaves most of an image as it is: unlike a bell, it uses nearly all that there is to be found."""
    from scipy.signal.windows import tukey

    return np.outer(tukey(rows, 0.25), tukey(columns, 0.25)).astype(np.float32)


@lru_cache(maxsize=4)
def _distances(shape: tuple[int, int]) -> np.ndarray:
    """Distance of each shift from zero, in voxels, in the order of Fourier transforms."""
    y, x = (np.fft.fftfreq(n, 1 / n) for n in shape)
    return np.hypot(y[:, None], x)


def _share_found(field: np.ndarray) -> float:
    """Share of the patches of a field ``(4, rows, columns)`` that have a distinct peak, of those that overlap."""
    ratios = field[3][np.isfinite(field[3])]
    return float((ratios > PEAK_RATIO).mean()) if ratios.size else 1.0


def _smooth_rms(field: np.ndarray) -> float:
    """Root mean square of what a polynomial in y and x says of a field ``(4, rows, columns)``, its mean left out.

    It is of degree 2, or 1 if there are few patches; 0 if there are too few. Patches far from it are left out.
    """
    known = (field[3] > PEAK_RATIO).ravel()
    degree = next((degree for degree, least in LEAST_PATCHES.items() if known.sum() >= least), 0)
    if not degree or min(field.shape[1:]) <= degree:
        return 0.0
    y, x = (part.ravel() for part in np.meshgrid(*(np.linspace(-1, 1, n) for n in field.shape[1:]), indexing="ij"))
    terms = np.stack([y**a * x**b for a in range(degree + 1) for b in range(degree + 1 - a)], axis=1)
    moved, used = field[:2].reshape(2, -1).T, known
    for _ in range(4):
        fitted = terms @ np.linalg.lstsq(terms[used], moved[used], rcond=None)[0]
        away = np.hypot(*(moved - fitted).T)
        used = known & (away < 3 * max(1.0, float(np.median(away[used]))))
        if used.sum() < LEAST_PATCHES[degree]:
            return 0.0
    return float(np.sqrt(np.square(fitted - fitted.mean(axis=0)).sum(axis=1).mean()))
