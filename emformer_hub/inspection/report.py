"""An inspection as JSON and as a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from emformer_hub.inspection.quality import SectionQuality
from emformer_hub.inspection.spacing import Spacings
from emformer_hub.inspection.stack import StackQuality
from emformer_hub.volumes.grey import grey_text

SHOWN = ("brightness", "contrast", "blur", "duplicate", "shift", "unlike", "gap", "damage")


def as_json(
    shape_zyx: Sequence[int],
    sections: Sequence[SectionQuality],
    flagged: Sequence[int],
    stack: StackQuality,
    spacings: Spacings | None = None,
) -> dict[str, Any]:
    """An inspection ready for JSON.

    Args:
        shape_zyx: shape of the stack.
        sections: one for each section.
        flagged: numbers of the sections that should be replaced whole.
        stack: what holds for all sections together.
        spacings: how far sections lie apart, if that was measured.
    """
    return {
        "shape_zyx": list(shape_zyx),
        "sections": [
            {
                "section": quality.section,
                "flags": list(quality.flags),
                "scores": quality.scores,
                "shift_yx": None if quality.shift_yx is None else list(quality.shift_yx),
                "detail_lost": quality.detail_lost,
            }
            for quality in sections
        ],
        "flagged": list(flagged),
        "stack": stack.to_dict(),
    } | ({} if spacings is None else {"spacing": spacings.to_dict()})


def as_lines(
    sections: Sequence[SectionQuality],
    flagged: Sequence[int],
    stack: StackQuality,
    spacings: Spacings | None = None,
) -> list[str]:
    """The flagged sections, one a line, with their scores; then the stack as a whole."""
    bad = [quality for quality in sections if quality.flags]
    lines = []
    if bad:
        lines.append("section  " + "  ".join(f"{name:>10}" for name in SHOWN) + "  flags")
    for quality in bad:
        cells = [f"{quality.scores[name]:>10.1f}" if name in quality.scores else f"{'-':>10}" for name in SHOWN]
        off = "" if quality.shift_yx is None else " by {:.0f},{:.0f} voxels (y,x)".format(*quality.shift_yx)
        lines.append(f"{quality.section:>7}  " + "  ".join(cells) + "  " + ", ".join(quality.flags) + off)
    count = len(sections)
    lines.append(
        f"{len(bad)} of {count} sections are flagged" + (f"; replace whole: {_numbers(flagged)}" if flagged else "")
    )
    if "median_shift" in stack.alignment:
        shifts = stack.alignment
        lines.append(
            f"alignment  neighbours are shifted by {shifts['median_shift']:.1f} voxels (median), "
            f"{shifts['largest_shift']:.0f} at most"
        )
    if stack.noise is not None:
        level, share = grey_text(stack.noise["grey_levels"], 3), stack.noise["share"]
        lines.append(f"noise      {level} grey levels, {share:.0%} of the variance")
    if stack.factor is None:
        lines.append("factor     cannot be determined")
    else:
        lines.append(f"factor     {stack.factor:g} (from the {stack.factor_source})")
    if spacings is not None:
        lines.append(f"spacing    {spacings.sentence()}")
    return [*lines, *(f"- {remark}" for remark in stack.remarks)]


def _numbers(sections: Sequence[int]) -> str:
    return ", ".join(map(str, sections))
