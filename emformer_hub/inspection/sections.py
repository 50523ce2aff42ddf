"""Which sections of a stack are unfit, and why: ``inspect_stack``.

Each section is measured against its neighbours, and each measure is compared with that of the rest of the stack: a
score is the deviation from the running median of the sections around, in robust standard deviations (1.4826 median
absolute deviations, with a floor). A slow drift of brightness, focus or position is therefore not a defect, and every
stack is judged by its own standard.

The stack is read twice, one section at a time, and only a few sections are kept: memory does not grow with their
number. Sections larger than 2048 voxels along a side are averaged over 2 x 2, 3 x 3, ... voxels.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from emformer_hub.errors import InputError
from emformer_hub.geometry import VoxelSize
from emformer_hub.inspection import measures
from emformer_hub.inspection.measures import SCALES
from emformer_hub.inspection.quality import LIMITS, NO_STANDARD, UNFIT, SectionQuality
from emformer_hub.inspection.report import as_json, as_lines
from emformer_hub.inspection.sight import Sight
from emformer_hub.inspection.stack import StackQuality, stack_quality
from emformer_hub.volumes import StoredArray
from emformer_hub.volumes.boxes import evenly_spaced
from emformer_hub.volumes.checks import check_dtype
from emformer_hub.volumes.unmeasured import filled, unmeasured_in

if TYPE_CHECKING:
    from emformer_hub.inspection.measures import Displacement
    from emformer_hub.inspection.spacing import Spacings

BLANK = 0.98
"""Fraction of equal voxels from which on a section counts as missing. Sections of tissue have less than half, even
with a blank rim; a missing one that holds only a label or a scale bar has more."""
AROUND = 4
"""Sections before, and after, over which the running median is taken."""
FLOORS = {
    "brightness": 0.1,
    "contrast": 0.06,
    "blur": 0.12,
    "duplicate": 0.15,
    "shift": 2.4,
    "unlike": 0.2,
    "apart": 0.08,
    "alike": 0.12,
}
"""Smallest standard deviation of each measure, in its unit: robust standard deviations; natural logarithms of robust
standard deviation, power and difference; voxels; natural logarithms of correlation, of the difference of two neighbours
and of their correlation. Even in a stack without variation, a deviation below this times the limit is not a defect."""
FLAGS = {
    "brightness": "brightness",
    "contrast": "contrast",
    "blur": "blurred",
    "duplicate": "duplicate",
    "shift": "shifted",
    "unlike": "unlike",
    "damage": "damaged",
}
BEYOND_USE = 1.4
"""Natural logarithm of power: a section that keeps less than a quarter of its fine detail is beyond use."""
TRUST = {"between": 1.0, "beside": 0.7}
"""Weight of a deviation; it is less certain for a section that has one neighbour only. Where sections are missing, what
is compared lies further apart, and the weight is as much smaller: tissue changes with distance."""
FAR_APART = 2
"""How much coarser a band is tried for sections that have too little in common in the usual one."""
TORN, FOR_TORN = 1.3, 0.7
"""Voxels by which parts of a section may be displaced against each other, and what each further voxel adds to the
damage score."""
HIGHEST = 99.0
LEAST = 0.1
"""Deviation below which differences do not matter: it is added before taking a logarithm."""
BESIDE = 8
"""Inner sections that are also measured as if they were at an end, to learn what is usual there."""


@dataclass(frozen=True, eq=False)
class Inspection:
    """Result of :func:`inspect_stack`.

    Attributes:
        sections: one for each section, in their order.
        stack: properties of the stack as a whole.
        shape_zyx: shape of the stack.
    """

    sections: list[SectionQuality]
    stack: StackQuality
    shape_zyx: tuple[int, int, int]
    _sight: Sight = field(repr=False)
    _usual: dict[str, np.ndarray] = field(repr=False)

    @cached_property
    def flagged(self) -> list[int]:
        """Numbers of the sections that should be replaced as a whole: missing, duplicate, unlike, or blurred beyond use
        (less than a quarter of the power of fine detail remains)."""
        whole = NO_STANDARD - {"blurred"}
        lost = 1 - np.exp(-BEYOND_USE)
        return [
            quality.section
            for quality in self.sections
            if whole.intersection(quality.flags) or ("blurred" in quality.flags and quality.detail_lost > lost)
        ]

    def damage_mask(self, z: int) -> np.ndarray:
        """Mask of the damage in a section, bool ``(y, x)``; False everywhere if it is not flagged ``damaged``.

        A region is marked where the deviation from both neighbours exceeds half the limit, if it reaches the limit
        somewhere, with a margin as wide as tissue may have moved.

        Raises:
            InputError: the stack has no such section, or its file has become unreadable.
        """
        if not 0 <= z < self.shape_zyx[0]:
            raise InputError(f"section {z} does not exist; the stack has sections 0 to {self.shape_zyx[0] - 1}.")
        mask = np.zeros(self.shape_zyx[1:], bool)
        if "damaged" in self.sections[z].flags:
            from scipy import ndimage

            kind, maps = self._sight.deviations(z)
            most = _highest(_peaks(maps), self._usual[kind])  # below the limit if it is torn, too
            least = min(LIMITS["damage"] / TRUST[kind], most)
            for scale, found, usual in zip(SCALES, maps, self._usual[kind].T, strict=True):
                for sign in (0, 1):
                    limit = np.exp(usual[sign, 0] + least * usual[sign, 1]) - LEAST
                    labels, _ = ndimage.label(found[sign] > 0.5 * limit)
                    reached = np.unique(labels[found[sign] >= 0.999 * limit])
                    marked = np.isin(labels, reached[reached > 0])
                    if not scale.length:  # averages along segments reach beyond the damage themselves
                        marked = ndimage.binary_dilation(marked, iterations=round(scale.reach / scale.shrink))
                    _enlarge_into(mask, marked, scale.shrink * self._sight.shrink)
        return mask

    def report(self, spacings: Spacings | None = None) -> dict[str, Any]:
        """The whole inspection, ready for JSON: ``{"shape_zyx", "sections": [{"section", "flags", "scores", "shift_yx",
        "detail_lost"}], "flagged", "stack"}``, and ``"spacing"`` if spacings were measured."""
        return as_json(self.shape_zyx, self.sections, self.flagged, self.stack, spacings)

    def report_lines(self, spacings: Spacings | None = None) -> list[str]:
        """The table that the command line prints: the flagged sections, then the stack."""
        return as_lines(self.sections, self.flagged, self.stack, spacings)


def inspect_stack(
    stack: np.ndarray | StoredArray,
    *,
    voxel_size: VoxelSize | None = None,
    hidden: StoredArray | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Inspection:
    """Find sections that are missing, copied, blurred, damaged, shifted, far from the one before or of another
    brightness, and characterise the stack as a whole.

    Args:
        stack: ``(z, y, x)``, any real dtype that volumes have, at least 32 voxels along y and x. A ``StoredArray`` or a
            memory map is read a section at a time.
        voxel_size: nm; without it, lengths are in voxels.
        hidden: mask of voxels that were not measured, bool ``(z, y, x)``. They, those that a masked array hides, and
            constant margins are looked at as if they were like their neighbours.
        progress: called with the number of steps done and of all steps, two for each section.

    Returns:
        The inspection. A stack that cannot be judged (two sections, all blank, 1-bit, ...) does not raise an error:
        ``stack.remarks`` says what could not be determined, and why.

    Raises:
        InputError: the array is not ``(z, y, x)``, a side is under 32 voxels, the dtype does not hold grey values, or
            scipy is not installed.
    """
    _check(stack)
    shape = (int(stack.shape[0]), int(stack.shape[1]), int(stack.shape[2]))
    unmeasured = unmeasured_in(stack, hidden)
    stack = stack if unmeasured is None else filled(stack, unmeasured)
    sight = Sight(stack)
    report = progress or (lambda done, total: None)
    looks = _first_look(sight, lambda done: report(done, 2 * shape[0]))
    scores, scales, flags = _global_scores(looks, whole=unmeasured is None)
    sight.arrange([look.against for look in looks], flags)

    peaks: dict[str, list[np.ndarray]] = {"between": [], "beside": []}
    found: dict[int, _Compared] = {}
    inner = [z for z in sight.usable if sight.usable[0] < z < sight.usable[-1]]
    also = {inner[i] for i in evenly_spaced(len(inner), BESIDE)}

    def compare(z: int) -> _Compared | None:
        if not sight.comparable(z):
            return None
        kind, maps = sight.deviations(z)
        if kind == "beside":
            return _Compared(kind, _peaks(maps))
        beside = _peaks(sight.deviations(z, beside=True)[1]) if z in also else None
        return _Compared(kind, _peaks(maps), sight.torn(z), beside)

    with ThreadPoolExecutor(sight.at_once) as threads:
        for z, compared in enumerate(threads.map(compare, range(shape[0]))):
            if compared is not None:
                found[z] = compared
                peaks[compared.kind].append(compared.peaks)
                if compared.torn is not None:
                    scores[z]["torn"] = round(compared.torn, 1)
                if compared.beside is not None:
                    peaks["beside"].append(compared.beside)
            report(shape[0] + z + 1, 2 * shape[0])
    usual = {kind: _usual(values) for kind, values in peaks.items() if values}
    for z, (kind, peak, *_) in found.items():
        if len(peaks[kind]) >= 3:
            torn = FOR_TORN * max(0.0, scores[z].get("torn", 0.0) - TORN)
            scores[z]["damage"] = _score(TRUST[kind] * sight.nearness(z) * _highest(peak, usual[kind]) + torn)
            if scores[z]["damage"] >= LIMITS["damage"]:
                flags[z].append("damaged")
    sections = [
        SectionQuality(
            z,
            tuple(flags[z]),
            {name: round(score, 3) for name, score in scores[z].items()},
            sight.shifts.get(z),
            scales[z],
        )
        for z in range(shape[0])
    ]
    quality = stack_quality(stack, [q.flags for q in sections], voxel_size)
    return Inspection(sections, quality, shape, sight, usual)


@dataclass
class _Look:
    """Measures of a section from the first reading."""

    constant: float
    centre: float
    width: float
    detail: np.ndarray
    against: Displacement | None = None
    difference: float | None = None
    alike: float | None = None
    between: float | None = None


class _Compared(NamedTuple):
    """A section beside the others: on which sides of it they lie, the greatest deviations from them, the displacement
    of its parts, and the deviations from sections of one side, where they are asked for."""

    kind: str
    peaks: np.ndarray
    torn: float | None = None
    beside: np.ndarray | None = None


def _first_look(sight: Sight, progress: Callable[[int], None]) -> list[_Look]:
    looks: list[_Look] = []
    window: list[tuple[int, np.ndarray, np.ndarray]] = []  # the last three that are not blank

    for z in range(sight.stack.shape[0]):
        section = sight.raw(z)
        finite = section[np.isfinite(section)] if section.dtype.kind == "f" else section
        constant = measures.constant_fraction(section)
        centre, width = measures.median_and_sd(finite) if finite.size else (0.0, 0.0)
        looks.append(_Look(constant, centre, width, np.full(4, np.nan)))
        progress(z + 1)
        if constant >= BLANK or width == 0:
            continue
        standard = measures.standardise(section)
        looks[z].detail = measures.detail(standard)
        window = [*window[-2:], (z, standard, measures.band_passed(standard))]
        if len(window) >= 2:
            number, previous, spectrum = window[-2]
            looks[number].difference = measures.difference(previous, standard)
            looks[number].alike = measures.displacement(window[-1][2], spectrum).likeness
        if len(window) == 3:
            (_, before, before_spectrum), (inner, here, spectrum), (_, after, after_spectrum) = window
            against = measures.displacement(spectrum, before_spectrum, after_spectrum)
            if not np.isfinite(against.shift_yx).all():
                coarse = [measures.band_passed(part, FAR_APART) for part in (here, before, after)]
                shift = measures.displacement(*coarse, coarser=FAR_APART).shift_yx
                against = measures.Displacement(shift, against.likeness)
            looks[inner].against = against
            looks[inner].between = measures.difference(here, (before + after) / 2)
    return looks


def _global_scores(looks: list[_Look], whole: bool) -> tuple[list[dict[str, float]], list[float], list[list[str]]]:
    """Scores, fraction of lost detail, and flags of each section; local damage is not among them.

    Unless sections are ``whole``, gaps are not looked for: what was filled in is copied from a neighbour.
    """
    count = len(looks)
    blank = np.array([look.constant >= BLANK or look.width == 0 for look in looks])
    scores: list[dict[str, float]] = [{"constant": look.constant} for look in looks]
    flags: list[list[str]] = [["missing"] if lost else [] for lost in blank]
    lost_detail = [0.0] * count
    seen = np.flatnonzero(~blank)
    if len(seen) < 3:
        return scores, lost_detail, flags
    some = [looks[z] for z in seen]
    widths = np.array([look.width for look in some])
    measured = {
        "brightness": np.abs(_deviation(np.array([look.centre for look in some]) / np.median(widths))),
        "contrast": np.abs(_deviation(np.log(widths))),
    }
    drops = np.stack([_deviation(band) for band in np.array([look.detail for look in some]).T])
    blur = np.stack([-drop / _width(drop, FLOORS["blur"]) for drop in drops])
    pairs = np.array([np.nan if look.difference is None else look.difference for look in some])
    ratio = -_deviation(np.log(np.maximum(pairs, 1e-6)))
    likeness = np.array([look.against.likeness if look.against else np.nan for look in some])
    shifts = np.array([look.against.shift_yx if look.against else (np.nan, np.nan) for look in some])
    length = np.hypot(*(shifts - np.nanmedian(shifts, axis=0)).T) if np.isfinite(shifts).any() else np.zeros(len(some))
    between = np.array([np.nan if look.between is None else look.between for look in some])
    copied = -_deviation(np.log(np.maximum(between, 1e-6)))
    unlike = -_deviation(np.log(np.maximum(likeness, 1e-3)))
    nearness = np.ones(len(some))
    nearness[1:-1] = 2 / (seen[2:] - seen[:-2])
    unlike = nearness * unlike
    if np.isfinite(length).any():  # tissue moves from section to section: the usual shift does not count
        length = nearness * length - np.nanmedian(length)
        length = length / _width(length, FLOORS["shift"])
    twin = np.zeros(len(some))
    for i, score in enumerate(ratio / _width(ratio, FLOORS["duplicate"])):
        if np.isfinite(score):
            farther = i + 1
            if i > 0 and i + 2 < len(some) and pairs[i - 1] > pairs[i + 1]:
                farther = i
            twin[farther] = max(twin[farther], score)
    for name, values in measured.items():
        for z, value in zip(seen, values / _width(values, FLOORS[name]), strict=True):
            scores[z][name] = _score(value)
    for i, z in enumerate(seen):
        scores[z]["blur"] = _score(float(np.nanmax(blur[:, i])))
        lost_detail[z] = round(float(1 - np.exp(min(0.0, np.nanmin(drops[:, i])))), 3)
        copy = copied[i] / _width(copied, FLOORS["duplicate"])
        scores[z]["duplicate"] = _score(max(twin[i], copy if np.isfinite(copy) else 0))
        # at fault is the section that both neighbours agree on; they themselves agree with one section of two
        near = slice(max(0, i - 1), i + 2)
        if np.isfinite(length[i]):
            at_fault = length[i] * likeness[i] == np.nanmax(length[near] * likeness[near])
            scores[z]["shift"] = _score(length[i]) if at_fault else 0.0
        elif np.isfinite(unlike[i]) and not (length[near] >= LIMITS["shift"]).any():
            scores[z]["unlike"] = _score(unlike[i] / _width(unlike, FLOORS["unlike"]))
        flags[z] += [flag for name, flag in FLAGS.items() if scores[z].get(name, 0) >= LIMITS[name]]
    alike = np.array([np.nan if look.alike is None else look.alike for look in some])
    for (before, after), gap in zip(pairwise(seen.tolist()), _gaps(pairs, alike), strict=True):
        if whole and after - before == 1 and not UNFIT.intersection(flags[before] + flags[after]):
            scores[after]["gap"] = _score(gap)
            if scores[after]["gap"] >= LIMITS["gap"]:
                flags[after].append("distant")
    return scores, lost_detail, flags


def _gaps(difference: np.ndarray, alike: np.ndarray) -> np.ndarray:
    """How much further apart neighbours seem to be than the pairs before and after, in robust standard deviations.

    A section that is at fault itself is unlike both of its neighbours; where sections are lost, only one pair is. The
    first and the last pair are never far apart: the section at the end may be at fault, and no other pair tells.
    """
    apart = _deviation(np.log(np.maximum(difference, 1e-6)))[:-1]
    unlike = -_deviation(np.log(np.maximum(alike, 1e-3)))[:-1]
    both = (apart / _width(apart, FLOORS["apart"]) + unlike / _width(unlike, FLOORS["alike"])) / 2**0.5
    both = np.nan_to_num(both / _width(both, 1.0))
    gaps = np.zeros(len(both))
    gaps[1:-1] = both[1:-1] - np.maximum(both[:-2], both[2:]).clip(min=0)
    return gaps


def _deviation(values: np.ndarray) -> np.ndarray:
    """Deviation of each value from the median of the four before and the four after it; NaN are skipped."""
    result = np.full(len(values), np.nan)
    for i, value in enumerate(values):
        around = np.concatenate([values[max(0, i - AROUND) : i], values[i + 1 : i + 1 + AROUND]])
        around = around[np.isfinite(around)]
        if len(around) and np.isfinite(value):
            result[i] = value - np.median(around)
    return result


def _width(deviations: np.ndarray, floor: float) -> float:
    """Robust standard deviation of deviations around zero, at least ``floor``."""
    finite = deviations[np.isfinite(deviations)]
    return max(floor, 1.4826 * float(np.median(np.abs(finite)))) if len(finite) else floor


def _score(value: float) -> float:
    return float(np.clip(value, 0, HIGHEST)) if np.isfinite(value) else 0.0


def _peaks(maps: list[np.ndarray]) -> np.ndarray:
    """Natural logarithm of the greatest deviation, ``(2, scales)``: too dark, too bright."""
    return np.log(LEAST + np.array([found.max(axis=(1, 2)) for found in maps]).T)


def _usual(peaks: list[np.ndarray]) -> np.ndarray:
    """Median and robust standard deviation of :func:`_peaks` over sections, ``(2, 2, scales)``."""
    values = np.array(peaks)
    centre = np.median(values, axis=0)
    width = 1.4826 * np.median(np.abs(values - centre), axis=0)
    return np.stack([centre, np.maximum(width, [scale.floor for scale in SCALES])])


def _highest(peaks: np.ndarray, usual: np.ndarray) -> float:
    """Greatest deviation of a section from what is usual, in robust standard deviations, over all scales."""
    centre, width = usual
    return float(((peaks - centre) / width).max())


def _enlarge_into(mask: np.ndarray, marked: np.ndarray, factor: int) -> None:
    """Mark in ``mask`` the voxels that are marked on a grid ``factor`` times as coarse."""
    large = marked.repeat(factor, axis=0).repeat(factor, axis=1)[: mask.shape[0], : mask.shape[1]]
    mask[: large.shape[0], : large.shape[1]] |= large


def _check(stack: np.ndarray | StoredArray) -> None:
    if stack.ndim != 3 or 0 in stack.shape:
        raise InputError(f"the stack has shape {tuple(stack.shape)}; expected one grey-value stack (z, y, x).")
    if np.dtype(stack.dtype) != np.dtype(bool):
        check_dtype(np.dtype(stack.dtype), "the stack")
    if min(stack.shape[1:]) < measures.MIN_SIDE:
        raise InputError(
            f"sections are {stack.shape[1]} x {stack.shape[2]} voxels (y, x); expected at least {measures.MIN_SIDE} a "
            f"side: in less, a defect cannot be distinguished from tissue."
        )
