"""Properties of a stack as a whole: alignment, noise, and the apparent distance between sections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from emformer_hub.geometry import FACTOR_MAX, VoxelSize
from emformer_hub.inspection import measures
from emformer_hub.inspection.alignment import LARGE_SHIFT, MAX_SIDE, alignment_note, measured_lengths, section_shifts
from emformer_hub.inspection.quality import UNFIT
from emformer_hub.volumes import StoredArray
from emformer_hub.volumes.boxes import evenly_spaced, middle

LAGS = 40
"""Voxels along y and x at which a section is correlated with itself."""
LOOKED_AT = 24
"""Evenly spaced sections on which noise and spacing are measured."""
MANY = 0.5
SATURATED = 0.1
JITTER = 2.0
"""Median shift of neighbours, voxels, from which it is said that they can be aligned; tissue by itself moves by about
one."""


@dataclass(frozen=True)
class StackQuality:
    """Properties of a stack as a whole.

    Attributes:
        alignment: ``{"median_shift", "largest_shift"}`` between neighbouring sections, voxels; ``{"large_share"}``, the
            fraction of pairs shifted by more than 12 voxels; and ``{"not_measured"}``, the number of pairs whose shift
            cannot be measured.
        noise: standard deviation of the part that is uncorrelated from voxel to voxel, as ``grey_levels`` and as
            ``share`` of the variance, 0 to 1; ``None`` if it cannot be measured.
        factor: recommended factor, section spacing over lateral voxel size; ``None`` if it cannot be determined.
        factor_source: ``voxel size``, ``correlation`` or "".
        estimated_factor: factor from the correlation of sections, whatever the voxel size; ``None`` if there is none.
        remarks: sentences: what is wrong with the stack, what cannot be determined, and why.
    """

    alignment: dict[str, float]
    noise: dict[str, float] | None
    factor: float | None
    factor_source: str
    estimated_factor: float | None
    remarks: list[str]

    def to_dict(self) -> dict[str, Any]:
        return dict(vars(self))


def stack_quality(
    stack: np.ndarray | StoredArray, flags: Sequence[tuple[str, ...]], voxel_size: VoxelSize | None
) -> StackQuality:
    """Judge a stack as a whole, given the flags of each section.

    Args:
        stack: ``(z, y, x)``.
        flags: those of each section, as in ``SectionQuality``.
        voxel_size: nm; if known, it determines the factor.
    """
    remarks = _remarks(flags)
    shifts = section_shifts(stack)
    lengths = measured_lengths(shifts)
    alignment: dict[str, float] = {"not_measured": len(shifts) - len(lengths)}
    if len(lengths):
        alignment |= {
            "median_shift": float(np.median(lengths)),
            "largest_shift": float(lengths.max()),
            "large_share": round(float((lengths > LARGE_SHIFT).mean()), 4),
        }
    note = alignment_note(shifts)
    if note is not None:
        remarks.append(note[0].upper() + note[1:])
    elif alignment.get("median_shift", 0.0) >= JITTER:
        remarks.append(
            f"Neighbouring sections are shifted by {alignment['median_shift']:.1f} voxels (median): "
            f"`--align translation` lays them better over each other, which helps to predict missing ones, too."
        )

    unfit = UNFIT | {"distant"}  # it would count as near the one before
    good = [z for z, flag in enumerate(flags) if not unfit.intersection(flag)]
    pairs = [z for z in good if z + 1 in set(good)]
    looked = [pairs[i] for i in evenly_spaced(len(pairs), LOOKED_AT)]
    lateral, axial, widths, extremes, levels = [], [], [], [], []
    for z in looked or good[:1]:
        raw = _middle(np.asarray(stack[z]))
        extremes.append(float(np.isin(raw, (raw.min(), raw.max())).mean()))
        levels.append(len(np.unique(raw)))
        widths.append(measures.median_and_sd(raw)[1])
        here = measures.standardise(raw).clip(-4, 4)
        lateral.append(_autocorrelation(here))
        if looked:
            near = measures.standardise(_middle(np.asarray(stack[z + 1]))).clip(-4, 4)
            axial.append(_best_correlation(here, near))
    if levels and max(levels) <= 4:
        remarks.append(
            f"Voxels have only {max(levels)} different values: this is not a grey-value image (1 or 2 bit, or labels)."
        )
    elif extremes and np.median(extremes) > SATURATED:
        remarks.append(
            f"{np.median(extremes):.0%} of the voxels have the lowest or the highest value: the stack is saturated, "
            f"and what was clipped is lost."
        )
    noise, estimate = None, None
    if lateral:
        curve = np.median(lateral, axis=0)
        signal = min(1.0, float((4 * curve[1] - curve[2]) / 3))
        share = max(0.0, 1 - signal)
        noise = {"grey_levels": round(float(np.median(widths)) * share**0.5, 4), "share": round(share, 4)}
        if axial:
            estimate, why = _spacing(curve, float(np.median(axial)))
            if estimate is None:
                remarks.append(f"The factor cannot be determined from the sections: {why}.")
    if not looked:
        remarks.append("The factor cannot be determined: there are no two sound sections in succession.")
    factor, source = (None, "") if estimate is None else (estimate, "correlation")
    if voxel_size is not None:
        factor, source = round(voxel_size.z / voxel_size.lateral, 4), "voxel size"
        if estimate is not None and not 0.5 < estimate / factor < 2:
            remarks.append(
                f"The voxel size {voxel_size} says factor {factor:g}, but neighbouring sections are as alike as voxels "
                f"{estimate:.1f} apart: check the voxel size, or the alignment."
            )
    remarks.append(
        "The thickness cannot be determined from the images: take 1 for sections that were seen through (ssTEM), "
        "1 / factor for block faces (FIB-SEM, SBF-SEM)."
    )
    return StackQuality(alignment, noise, factor, source, estimate, remarks)


def _remarks(flags: Sequence[tuple[str, ...]]) -> list[str]:
    count, remarks = len(flags), []
    missing = [z for z, flag in enumerate(flags) if "missing" in flag]
    seen = count - len(missing)
    if seen == 0:
        remarks.append("All sections are blank: was the right file or channel exported?")
    elif seen < 3:
        remarks.append(
            f"Only {seen} section{'s' * (seen != 1)} can be looked at; it takes at least 3 to tell which is at fault."
        )
    elif seen < 8:
        remarks.append(f"With {seen} sections, what is usual in this stack is poorly known; look at them yourself too.")
    neighbours = sum(a + 1 == b for a, b in pairwise(missing))
    if seen and len(missing) > 0.3 * count:
        every = " (every other one)" if not neighbours and len(missing) >= count // 2 else ""
        remarks.append(f"{len(missing)} of {count} sections are missing{every}: between the others, most is guessed.")
    if distant := [f"{z - 1} and {z}" for z, flag in enumerate(flags) if "distant" in flag]:
        remarks.append(
            f"A section may be lost between {', '.join(distant)}: look in the log of the microscope, and list "
            f"positions with `--z-positions`; what `inspect --z-positions` measures there is at most a lower bound."
        )
    wrong = sum(bool(flag) for flag in flags) - len(missing)
    if seen >= 3 and wrong > MANY * seen:
        remarks.append(
            f"{wrong} of {seen} sections are flagged: where most are unlike the others, none is a standard; what the "
            f"scores are compared with is itself in doubt."
        )
    return remarks


def _middle(section: np.ndarray) -> np.ndarray:
    return section[middle(section.shape, (MAX_SIDE, MAX_SIDE))]


def _autocorrelation(section: np.ndarray) -> np.ndarray:
    """Correlation of a section with itself at lags of 0 to 40 voxels, mean of y and x."""
    lags = min(LAGS, min(section.shape) // 2)
    found = [1.0]
    for lag in range(1, lags + 1):
        both = (section[lag:], section[:-lag]), (section[:, lag:], section[:, :-lag])
        found.append(float(np.mean([_correlation(a, b) for a, b in both])))
    return np.array(found)


def _best_correlation(here: np.ndarray, near: np.ndarray, reach: int = 6) -> float:
    """Correlation of two sections, after aligning them within 6 voxels."""
    shift = measures.displacement(measures.band_passed(near), measures.band_passed(here)).shift_yx
    if np.isfinite(shift).all() and max(map(abs, shift)) <= reach:
        near = np.roll(near, [-round(part) for part in shift], axis=(0, 1))
    inner = (slice(reach, -reach),) * 2
    return _correlation(here[inner], near[inner])


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    norm = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / norm if norm > 0 else 0.0


def _spacing(curve: np.ndarray, axial: float) -> tuple[float | None, str]:
    """Lag in voxels at which a section resembles itself as much as its neighbour does; or why there is none.

    White noise lowers both correlations alike, lag 0 apart, and needs no correction.
    """
    if axial < 0.1:
        return None, f"neighbours have too little in common (correlation {axial:.2f})"
    if axial > curve[1]:
        return 1.0, ""
    below = np.flatnonzero(curve < axial)
    if not len(below):
        return None, f"neighbours are less alike (correlation {axial:.2f}) than voxels {len(curve) - 1} apart"
    last = int(below[0])
    lag = last - 1 + (curve[last - 1] - axial) / (curve[last - 1] - curve[last])
    if lag > FACTOR_MAX:
        return None, f"neighbours are as alike as voxels {lag:.0f} apart, beyond the largest factor, {FACTOR_MAX:g}"
    return round(float(lag), 1), ""
