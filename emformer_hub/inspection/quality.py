"""What can be wrong with a section, and the scores from which it is said."""

from __future__ import annotations

from dataclasses import dataclass

LIMITS = {
    "brightness": 4.0,
    "contrast": 4.0,
    "blur": 4.0,
    "duplicate": 5.0,
    "shift": 2.8,
    "unlike": 3.0,
    "damage": 3.5,
}
"""Scores from which a section is flagged; chosen on training stacks, see benchmarks/README.md."""


@dataclass(frozen=True)
class SectionQuality:
    """What is wrong with a section.

    Attributes:
        section: its number, from 0.
        flags: any of ``missing`` (blank, or never imaged), ``duplicate`` (a copy of a neighbour, or the mean of both),
            ``blurred``, ``damaged`` (in places: fold, crack, charging), ``brightness``, ``contrast`` (a jump of
            either), ``shifted`` (against both neighbours, which agree), ``unlike`` (it does not show what they show).
            The first and the last section have one neighbour only: neither of the last two is said of them.
        scores: robust scores, 0 to 99, of ``brightness``, ``contrast``, ``blur``, ``duplicate``, ``shift``, ``unlike``
            and ``damage``; ``constant``, the share of voxels that have one value, 0 to 1; ``torn``, by how many voxels
            parts are displaced against each other. A measure that could not be taken is left out.
        shift_yx: how far it lies off its neighbours, voxels; ``None`` if not flagged ``shifted``.
        detail_lost: share of the power of fine detail that its neighbours have and it lacks, 0 to 1.
    """

    section: int
    flags: tuple[str, ...]
    scores: dict[str, float]
    shift_yx: tuple[float, float] | None = None
    detail_lost: float = 0.0
