"""A paragraph for the methods section of a paper: what was done to a stack, by which versions, and how well."""

from __future__ import annotations

from typing import Any

PAPER = "He et al., bioRxiv 2023.11.22.567807"
MODES = {
    "clean": "without the noise of the sections",
    "faithful": "corrected so that planes average to the measured sections",
}


def statement(facts: dict[str, Any], figures: dict[str, Any]) -> str:
    """Sentences for a methods section, from what an audit found.

    Args:
        facts, figures: of an :class:`~emformer_hub.audit.Audit`.
    """
    sections, *image = facts["shape_zyx"]
    weights = f"model {facts['model']}, SHA-256 of the weights {facts['weights_sha256'][:12]}"
    said = [
        f"The stack of {sections} sections ({_sides(image)} pixels; voxels of {_sides(facts['voxel_size_nm'])} nm, z, "
        f"y and x) was reconstructed to voxels of {_sides(facts['plane_size_nm'])} nm with EMformer ({PAPER}) as "
        f"implemented in emformer-hub {facts['version']} ({weights}; PyTorch {facts['torch']}, {facts['precision']}), "
        f"at factor {facts['factor']:g} and relative section thickness {facts['thickness']:.3g}, "
        f"{MODES[facts['mode']]}, as the mean of {facts['ensemble']} passes.",
    ]
    left_out, in_plane = figures["left_out"], figures["in_plane"]
    held = (
        f"{len(left_out['section'])} sections that were held back were predicted with a mean squared error "
        f"{_compared(left_out['gain_over_linear_db'])} that of linear interpolation"
    )
    if in_plane:
        held += (
            f", and detail removed from the sharp plane was restored with one "
            f"{_compared(in_plane['gain_over_bicubic_db'])} that of bicubic interpolation"
        )
    said.append(f"On the stack itself, without ground truth, {held}.")
    if in_plane:
        shares = (f"{share:.0%} within {float(stated):.0%} intervals" for stated, share in in_plane["coverage"].items())
        said.append(f"Errors in the sharp plane lay within the stated intervals as follows: {', '.join(shares)}.")
    if "against" in figures:
        said.append(_against(figures["against"]))
    rms = figures["consistency"]["relative_rms"]
    said.append(
        f"Sections cut from the reconstruction differed from the measured ones by {rms:.1%} of the standard deviation "
        f"of the grey levels (RMS)."
    )
    return " ".join(said)


def _against(found: dict[str, Any]) -> str:
    """What the second opinion says of the same sections."""
    parts = []
    for where, one in (("sections held back", found["left_out"]), ("the sharp plane", found["in_plane"])):
        if one:
            interval = one["interval_db"]
            between = f" (95% interval over sections {interval[0]:+.2f} to {interval[1]:+.2f} dB)" if interval else ""
            parts.append(f"{_compared(one['difference_db'])} that of the second{between} for {where}")
    weights = f"SHA-256 of the weights {found['weights_sha256'][:12]}"
    return (
        f"As a second opinion, {found['model']} ({weights}) predicted the same "
        f"at factor {found['factor']:g}; the squared error of the first was {' and '.join(parts)}."
    )


def _compared(gain_db: float) -> str:
    """``-1.2`` -> ``"1.2 dB above"``."""
    return f"{abs(gain_db):.2f} dB {'below' if gain_db >= 0 else 'above'}"


def _sides(lengths: list[float]) -> str:
    """``[8, 4.5]`` -> ``"8 \u00d7 4.5"``."""
    return " \u00d7 ".join(f"{length:g}" for length in lengths)
