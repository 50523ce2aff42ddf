"""Flags of a section, and the scores that raise them."""

from __future__ import annotations

from dataclasses import dataclass

LIMITS = {
    "brightness": 4.0,
    "contrast": 4.0,
    "blur": 4.0,
    "duplicate": 5.0,
    "shift": 2.8,
    "unlike": 3.0,
    "gap": 1.7,
    "damage": 3.5,
}
"""Scores at which a section is flagged; chosen on training stacks, see benchmarks/README.md."""
NO_STANDARD = frozenset({"missing", "duplicate", "blurred", "unlike"})
"""Flags of sections that others are not compared with. A shifted one is aligned first; and what is damaged, and where,
is found by this comparison."""
UNFIT = NO_STANDARD | {"shifted", "damaged"}
"""Flags of sections that say nothing about the stack or about distances. Of another brightness or contrast they say as
much as the others, and one that is distant is so from the section before only."""


@dataclass(frozen=True)
class SectionQuality:
    """Flags and scores of a section.

    Attributes:
        section: number, from 0.
        flags: any of ``missing`` (blank, or never imaged), ``duplicate`` (a copy of a neighbour, or the mean of both),
            ``blurred``, ``damaged`` (in places: fold, crack, charging), ``brightness``, ``contrast`` (a jump of
            either), ``shifted`` (against both neighbours, which agree), ``unlike`` (shows other tissue than they do),
            ``distant`` (further from the section before than is usual: a section may be lost between them; never the
            second or the last, and in no stack of which parts were not measured). The first and the last section have
            one neighbour only and are never ``shifted`` or ``unlike``.
        scores: robust scores, 0 to 99, of ``brightness``, ``contrast``, ``blur``, ``duplicate``, ``shift``, ``unlike``,
            ``gap`` (``distant``) and ``damage``; ``constant``, the fraction of voxels that have the same value, 0 to 1;
            ``torn``, by how many voxels parts are displaced against each other. A measure that could not be taken is
            missing.
        shift_yx: displacement from its neighbours, voxels; ``None`` if not flagged ``shifted``.
        detail_lost: fraction of its neighbours' power of fine detail that the section lacks, 0 to 1.
    """

    section: int
    flags: tuple[str, ...]
    scores: dict[str, float]
    shift_yx: tuple[float, float] | None = None
    detail_lost: float = 0.0
