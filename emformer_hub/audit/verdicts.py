"""What the figures of an audit mean: a plain verdict for each, with its limits and a reason."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from emformer_hub.audit.held_back import AVERAGED
from emformer_hub.inspection.alignment import LARGE_SHIFT, MANY
from emformer_hub.volumes.boxes import evenly_spaced
from emformer_hub.volumes.grey import grey_text

GOOD, CARE, BAD = VERDICTS = ("good", "take care", "do not use")


@dataclass(frozen=True)
class Limit:
    """Limits of a figure for the verdicts good and take care.

    If ``good`` is the larger one, large values are better; otherwise small ones are.
    """

    good: float
    care: float

    def verdict(self, value: float) -> str:
        """One of ``VERDICTS``; a value at a limit still counts as the better one."""
        sign = 1 if self.good > self.care else -1
        return GOOD if sign * value >= sign * self.good else CARE if sign * value >= sign * self.care else BAD


GAIN_DB = Limit(0.3, 0.0)
COVERAGE_OFF = Limit(0.06, 0.15)
"""Difference between the fraction of errors inside an interval and its stated probability."""
DOUBLINGS = Limit(1.0, 3.0)
"""Base-2 logarithm of axial over lateral power, either way, in the worst band."""
SPACINGS = Limit(2.0, 4.0)
"""Axial resolution of two halves of the data, in section spacings of a half: two are what they sample."""
RESIDUAL = Limit(0.1, 0.3)
"""RMS difference from the measured sections, in standard deviations of the stack."""
SEAM_RMS, SEAM_STEP = Limit(0.02, 0.1), Limit(1.05, 1.25)
"""RMS difference between tilings, in standard deviations; height of steps between blocks, relative to elsewhere."""
SHIFTED = Limit(0.0, MANY)
FLAGGED = Limit(0.0, 0.25)
SATURATED = Limit(0.02, 0.2)
FEWEST_LEVELS = 8
"""Least number of different grey levels in an image."""


@dataclass(frozen=True)
class Verdict:
    """What one measurement says about a stack.

    Attributes:
        item: what was measured.
        verdict: one of ``VERDICTS``.
        figure: the result, with its unit.
        thresholds: limits of ``good`` and of ``take care``, in words.
        reason: a sentence.
    """

    item: str
    verdict: str
    figure: str
    thresholds: str
    reason: str


def judge(figures: dict[str, Any], crop: np.ndarray) -> list[Verdict]:
    """A verdict for each item that was measured.

    Args:
        figures: as :attr:`~emformer_hub.audit.audit.Audit.figures` holds them.
        crop: the part of the stack that was audited, ``(sections, y, x)``.
    """
    return list(_verdicts(figures, crop))


def _verdicts(figures: dict[str, Any], crop: np.ndarray) -> Iterator[Verdict]:
    left_out, plane = figures["left_out"], figures["in_plane"]
    yield _sections_left_out(left_out)
    if plane:
        yield _sharp_plane(plane)
    coverage = {"sharp plane": plane.get("coverage"), "sections left out": left_out["coverage"]}
    if any(coverage.values()):
        yield _intervals(coverage, plane.get("averages"))
    yield _spectra(figures["isotropy"])
    if figures["halves"]["reason"] is None:
        yield _halves(figures["halves"])
    yield _agreement(figures["consistency"])
    yield _seams(figures["seams"])
    if figures["alignment"]["reason"] is None:
        yield _alignment(figures["alignment"])
    yield _quality(figures["quality"])
    yield _grey_levels(crop)
    if "against" in figures:
        yield from _second_opinion(figures["against"])


def _sections_left_out(found: dict[str, Any]) -> Verdict:
    gain = min(found["gain_over_linear_db"], found["gain_over_cubic_db"])
    verdict = GAIN_DB.verdict(gain)
    return Verdict(
        "sections left out",
        verdict,
        f"{gain:+.2f} dB over the better interpolation",
        _gain_limits(),
        "Sections that were held back are predicted better than by interpolation."
        if verdict == GOOD
        else "Sections that were held back are hardly predicted better than by interpolation: adapt the model.",
    )


def _sharp_plane(found: dict[str, Any]) -> Verdict:
    gain = found["gain_over_bicubic_db"]
    verdict = GAIN_DB.verdict(gain)
    similar = f"; SSIM {found['ssim']:.3f}, {found['bicubic_ssim']:.3f} bicubic" if "ssim" in found else ""
    return Verdict(
        "sharp plane, degraded",
        verdict,
        f"PSNR {found['psnr_db']:.1f} dB, {gain:+.2f} dB over bicubic{similar}",
        _gain_limits(),
        "Detail of this stack that was removed along x is restored better than by interpolation."
        if verdict == GOOD
        else "Detail that was removed along x is hardly restored better than by interpolation: adapt the model.",
    )


def _gain_limits() -> str:
    return f"good from {GAIN_DB.good:+g} dB, take care from {GAIN_DB.care:g} dB"


def _intervals(coverage: dict[str, dict[str, float] | None], averages: dict[str, float] | None) -> Verdict:
    stated = {where: fractions for where, fractions in coverage.items() if fractions}
    off = max(abs(fraction - float(p)) for fractions in stated.values() for p, fraction in fractions.items())
    verdict = COVERAGE_OFF.verdict(off)
    found = "; ".join(
        f"{where} {', '.join(f'{fraction:.0%}' for fraction in fractions.values())}"
        for where, fractions in stated.items()
    )
    missing = "" if coverage["sections left out"] else "; sections left out not calibrated"
    if averages and averages["error"]:
        share = averages["certain_error"] / averages["error"]
        missing += f"; of {AVERAGED} x {AVERAGED} voxels, the half stated as surer errs {share:.0%} as much as all"
    return Verdict(
        "intervals",
        verdict,
        f"errors inside intervals of {', '.join(f'{float(p):.0%}' for p in next(iter(stated.values())))}: "
        f"{found}{missing}",
        f"good within {100 * COVERAGE_OFF.good:g} points, take care within {100 * COVERAGE_OFF.care:g}",
        "Stated intervals hold the fraction of errors that they should."
        if verdict == GOOD
        else "Stated intervals do not hold the fraction of errors that they should: widen them, or adapt the model, "
        "which calibrates them again.",
    )


def _spectra(found: dict[str, Any]) -> Verdict:
    ratios = [ratio for ratio in found["power_ratio"][: found["judged"]] if ratio]
    verdict = DOUBLINGS.verdict(max((abs(math.log2(ratio)) for ratio in ratios), default=math.inf))
    return Verdict(
        "isotropy of spectra",
        verdict,
        "axial over lateral power " + ", ".join(f"{ratio:.2f}" for ratio in ratios),
        f"good within a factor of {2**DOUBLINGS.good:g} in every band of wavelengths from the section spacing on, take "
        f"care within {2**DOUBLINGS.care:g}",
        "Planes carry about as much detail along z as along y and x."
        if verdict == GOOD
        else "Detail along z is weaker than along y and x: thin structures across z may be missing."
        if min(ratios, default=0) < 1 / 2**DOUBLINGS.good
        else "Detail along z is stronger than along y and x: sections jump, or flicker, or detail is made up.",
    )


def _halves(found: dict[str, Any]) -> Verdict:
    restored, interpolated, spacing = found["resolution_nm"], found["interpolated_nm"], found["spacing_nm"]
    verdict = SPACINGS.verdict(restored["z"] / spacing)
    return Verdict(
        "halves of the data",
        verdict,
        f"they agree down to {restored['z']:.0f} nm along z ({interpolated['z']:.0f} if interpolated), "
        f"{restored['lateral']:.0f} nm laterally ({interpolated['lateral']:.0f})",
        f"along z, good to {SPACINGS.good:g} times the {spacing:g} nm between sections of a half, which is what they "
        f"sample, take care to {SPACINGS.care:g} times",
        "Even and odd sections, restored separately, show the same tissue."
        if verdict == GOOD
        else "Even and odd sections, restored separately, differ in detail along z: they are far apart for what they "
        "show, or out of alignment, or of uneven brightness.",
    )


def _agreement(found: dict[str, Any]) -> Verdict:
    relative = found["relative_rms"]
    verdict = RESIDUAL.verdict(relative)
    return Verdict(
        "agreement with the sections",
        verdict,
        f"{grey_text(found['rms'])} grey levels RMS, {relative:.1%} of a standard deviation",
        f"good to {_percent(RESIDUAL.good)}, take care to {_percent(RESIDUAL.care)}",
        "Sections cut from the result are nearly those that were measured."
        if verdict == GOOD
        else "Sections cut from the result differ from those that were measured by more than their noise, which the "
        "clean mode leaves out, may explain: look at both, or use --mode faithful.",
    )


def _seams(found: dict[str, Any]) -> Verdict:
    verdict = _worse(SEAM_RMS.verdict(found["relative_rms"]), SEAM_STEP.verdict(found["step"]))
    return Verdict(
        "seams",
        verdict,
        f"{grey_text(found['rms'])} grey levels RMS between small tiles and large; steps across their sides are "
        f"{found['step']:.3f} times as high as without a side",
        f"good to {_percent(SEAM_RMS.good)} of a standard deviation and {SEAM_STEP.good:g} times, take care to "
        f"{_percent(SEAM_RMS.care)} and {SEAM_STEP.care:g} times",
        "The places where blocks meet do not show."
        if verdict == GOOD
        else "The places where blocks meet may show: look at the reconstruction at the sides of its chunks.",
    )


def _alignment(found: dict[str, Any]) -> Verdict:
    measured, shifted = found["measured"], found["shifted"]
    unclear = 2 * measured < found["pairs"]
    return Verdict(
        "alignment of sections",
        _worse(SHIFTED.verdict(shifted / max(1, measured)), CARE if unclear else GOOD),
        f"{shifted} of {measured} neighbours shifted by more than {LARGE_SHIFT:g} voxels, at most by "
        f"{found['largest_voxels']:g}; {found['pairs'] - measured} could not be measured",
        f"good if none is and most could be measured, take care to {_percent(SHIFTED.care)}",
        "Most neighbouring sections have too little in common to tell whether they are aligned: look at them."
        if unclear
        else "Neighbouring sections are aligned."
        if not shifted
        else "Sections are shifted against each other: align the stack first.",
    )


def _quality(found: dict[str, Any]) -> Verdict:
    flagged, depth = found["flagged"], found["sections"]
    return Verdict(
        "quality of sections",
        FLAGGED.verdict(len(flagged) / depth),
        f"{len(flagged)} of {depth} flagged" + "".join(f"; {z} {', '.join(what)}" for z, what in flagged.items()),
        f"good if none is, take care to {_percent(FLAGGED.care)}",
        "No section is missing or a copy, or stands out from the others as blurred, damaged, shifted, far off, or of "
        "another brightness or contrast."
        if not flagged
        else "Some sections differ from their neighbours: look at them with `emformer-hub inspect`, and replace "
        "those that are unfit with --repair.",
    )


def _grey_levels(crop: np.ndarray) -> Verdict:
    saturated = float(((crop == crop.min()) | (crop == crop.max())).mean())
    levels = len(np.unique(crop[evenly_spaced(len(crop), 8)]))
    verdict = BAD if levels < FEWEST_LEVELS else SATURATED.verdict(saturated)
    return Verdict(
        "grey levels",
        verdict,
        f"{saturated:.1%} at the darkest or brightest level, {levels} levels",
        f"good to {_percent(SATURATED.good)} saturated, take care to {_percent(SATURATED.care)}, of {FEWEST_LEVELS} "
        f"levels or more",
        "The input is an image of grey levels."
        if verdict == GOOD
        else "Much of the input is black, white, or one of a few levels: export it again.",
    )


def _second_opinion(found: dict[str, Any]) -> Iterator[Verdict]:
    other = f"{found['model']} at factor {found['factor']:g}"
    for item, compared in (("sections left out", found["left_out"]), ("sharp plane, degraded", found["in_plane"])):
        if not compared:
            continue
        interval = compared["interval_db"]
        between = f", 95 % interval {interval[0]:+.2f} to {interval[1]:+.2f}" if interval else ", of a single section"
        worse = compared["better"] == "second"
        yield Verdict(
            f"second opinion: {item}",
            CARE if worse else GOOD,
            f"{compared['difference_db']:+.2f} dB over {other}{between}",
            "take care if the whole interval is below 0 dB",
            f"The other, {other}, predicts them better: try it."
            if worse
            else f"They are predicted better than by {other}."
            if compared["better"]
            else f"There is no difference from {other} that stands out from that between sections.",
        )


def _worse(one: str, other: str) -> str:
    return max(one, other, key=VERDICTS.index)


def _percent(fraction: float) -> str:
    return f"{100 * fraction:g} %"
