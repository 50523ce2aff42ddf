"""What the figures of an audit mean: a plain verdict for each, with its thresholds and a reason."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from emformer_hub.inspection.alignment import LARGE_SHIFT, MANY

VERDICTS = ("good", "take care", "do not use")
FLAGGED = 0.25
"""Share of flagged sections up to which a stack may be used with care."""


@dataclass(frozen=True)
class Verdict:
    """What one look at a stack says.

    Attributes:
        item: what was looked at.
        verdict: one of ``VERDICTS``.
        figure: what was measured, with its unit.
        thresholds: of ``good`` and of ``take care``, in words.
        reason: a sentence.
    """

    item: str
    verdict: str
    figure: str
    thresholds: str
    reason: str


def judge(figures: dict[str, Any], crop: np.ndarray) -> list[Verdict]:
    """A verdict for each item that was measured."""
    found = figures["left_out"]
    gain = min(found["gain_over_linear_db"], found["gain_over_cubic_db"])
    verdicts = [
        Verdict(
            "sections left out",
            _grade(gain, 0.3, 0.0),
            f"{gain:+.2f} dB over the better interpolation",
            "good from +0.3 dB, take care from 0 dB",
            "Sections that were held back are predicted better than by interpolation."
            if gain >= 0.3
            else "Sections that were held back are hardly predicted better than by interpolation: adapt the model.",
        )
    ]
    plane = figures["in_plane"]
    if plane:
        gain = plane["gain_over_bicubic_db"]
        similar = f"; SSIM {plane['ssim']:.3f}, {plane['bicubic_ssim']:.3f} bicubic" if "ssim" in plane else ""
        verdicts.append(
            Verdict(
                "sharp plane, degraded",
                _grade(gain, 0.3, 0.0),
                f"PSNR {plane['psnr_db']:.1f} dB, {gain:+.2f} dB over bicubic{similar}",
                "good from +0.3 dB, take care from 0 dB",
                "Detail of this stack that was taken away along x is restored better than by interpolation."
                if gain >= 0.3
                else "Detail taken away along x is hardly restored better than by interpolation: adapt the model.",
            )
        )
    shares = {"sharp plane": plane.get("coverage"), "sections left out": found["coverage"]}
    stated = {where: share for where, share in shares.items() if share}
    if stated:
        apart = max(abs(share - float(p)) for one in stated.values() for p, share in one.items())
        verdicts.append(
            Verdict(
                "intervals",
                _grade(-apart, -0.06, -0.15),
                f"errors inside intervals of {', '.join(f'{float(p):.0%}' for p in next(iter(stated.values())))}: "
                + "; ".join(
                    f"{where} {', '.join(f'{share:.0%}' for share in one.values())}" for where, one in stated.items()
                )
                + ("" if found["coverage"] else "; sections left out not calibrated"),
                "good within 6 points, take care within 15",
                "Stated intervals hold the share of errors that they should."
                if apart <= 0.06
                else "Stated intervals hold another share of errors than they should: widen them, or adapt the model, "
                "which measures them anew.",
            )
        )
    bands = figures["isotropy"]["power_ratio"][: figures["isotropy"]["judged"]]
    ratios = [ratio for ratio in bands if ratio]
    worst = max((abs(math.log2(ratio)) for ratio in ratios), default=math.inf)
    verdicts.append(
        Verdict(
            "isotropy of spectra",
            _grade(-worst, -1.0, -3.0),
            "axial over lateral power " + ", ".join(f"{ratio:.2f}" for ratio in ratios),
            "good within a factor of 2 in every band of wavelengths from the section spacing on, take care within 8",
            "Planes carry about as much detail along z as along y and x."
            if worst <= 1
            else "Detail along z is weaker than along y and x: thin structures across z may be missing."
            if min(ratios, default=0) < 0.5
            else "Detail along z is stronger than along y and x: sections jump, or flicker, or detail is made up.",
        )
    )
    halves = figures["halves"]
    if halves["reason"] is None:
        restored, interpolated = halves["resolution_nm"], halves["interpolated_nm"]
        times = restored["z"] / halves["spacing_nm"]
        verdicts.append(
            Verdict(
                "halves of the data",
                _grade(-times, -2.0, -4.0),
                f"they agree down to {restored['z']:.0f} nm along z ({interpolated['z']:.0f} if interpolated), "
                f"{restored['lateral']:.0f} nm laterally ({interpolated['lateral']:.0f})",
                f"along z, good to twice the {halves['spacing_nm']:g} nm between sections of a half, which is what "
                f"they sample, take care to four times",
                "Even and odd sections, restored by themselves, show the same tissue."
                if times <= 2
                else "Even and odd sections, restored by themselves, differ in detail along z: they are far apart for "
                "what they show, or out of alignment, or of uneven brightness.",
            )
        )
    relative = figures["consistency"]["relative_rms"]
    verdicts.append(
        Verdict(
            "agreement with the sections",
            _grade(-relative, -0.1, -0.3),
            f"{figures['consistency']['rms']:.2f} grey levels RMS, {relative:.1%} of a standard deviation",
            "good to 10 %, take care to 30 %",
            "Sections cut from the result are those measured, or nearly."
            if relative <= 0.1
            else "Sections cut from the result differ from those measured: use --consistent.",
        )
    )
    seam = figures["seams"]
    verdicts.append(
        Verdict(
            "seams",
            min(_grade(-seam["relative_rms"], -0.02, -0.1), _grade(-seam["step"], -1.05, -1.25), key=_rank),
            f"{seam['rms']:.3f} grey levels RMS between small tiles and large; steps across their sides are "
            f"{seam['step']:.3f} times as high as without a side",
            "good to 2 % of a standard deviation and 1.05 times, take care to 10 % and 1.25 times",
            "Where blocks meet does not show."
            if seam["relative_rms"] <= 0.02 and seam["step"] <= 1.05
            else "Where blocks meet may show: look at the reconstruction at the sides of its chunks.",
        )
    )
    aligned = figures["alignment"]
    if aligned["reason"] is None:
        told, unclear = aligned["told"], 2 * aligned["told"] < aligned["pairs"]
        shifted = aligned["shifted"] / max(1, told)
        verdicts.append(
            Verdict(
                "alignment of sections",
                min(_grade(-shifted, 0.0, -MANY), VERDICTS[1] if unclear else VERDICTS[0], key=_rank),
                f"{aligned['shifted']} of {told} neighbours shifted by more than {LARGE_SHIFT:g} voxels, at most by "
                f"{aligned['largest_voxels']:g}; {aligned['pairs'] - told} cannot be told",
                f"good if none is and most can be told, take care to {MANY:.0%}",
                "Most neighbouring sections have too little in common to tell whether they are aligned: look at them."
                if unclear
                else "Sections lie above each other."
                if not aligned["shifted"]
                else "Sections are shifted against each other: align the stack first.",
            )
        )
    flagged, depth = figures["quality"]["flagged"], figures["quality"]["sections"]
    verdicts.append(
        Verdict(
            "quality of sections",
            _grade(-len(flagged) / depth, 0.0, -FLAGGED),
            f"{len(flagged)} of {depth} flagged" + "".join(f"; {z} {', '.join(what)}" for z, what in flagged.items()),
            f"good if none is, take care to {FLAGGED:.0%}",
            "No section is missing, copied, blurred, damaged, shifted, or of another brightness or contrast."
            if not flagged
            else "Some sections are not what their neighbours are: look at them with `emformer-hub inspect`, and "
            "replace what is unfit with --repair.",
        )
    )
    saturated = float(((crop == crop.min()) | (crop == crop.max())).mean())
    values = len(np.unique(crop[:: max(1, len(crop) // 8)]))
    verdicts.append(
        Verdict(
            "grey levels",
            VERDICTS[2] if values < 8 else _grade(-saturated, -0.02, -0.2),
            f"{saturated:.1%} at the darkest or brightest level, {values} levels",
            "good to 2 % saturated, take care to 20 %, of 8 levels or more",
            "The input is an image of grey levels."
            if values >= 8 and saturated <= 0.02
            else "Much of the input is black, white, or one of a few levels: export it again.",
        )
    )
    return verdicts


def _grade(value: float, good: float, care: float) -> str:
    return VERDICTS[0] if value >= good else VERDICTS[1] if value >= care else VERDICTS[2]


def _rank(verdict: str) -> int:
    """Higher is better."""
    return -VERDICTS.index(verdict)
