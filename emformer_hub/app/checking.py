"""What an inspection found, as a table to choose from, on the page in the browser and in napari."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from emformer_hub.inspection import Inspection
    from emformer_hub.reconstruction.repair import Repair


class Flagged(NamedTuple):
    """A flagged section: its number, from 0, its flags and highest score in words, and whether a repair takes it."""

    section: int
    flags: str
    score: str
    repaired: bool


def flagged(inspection: Inspection, repair: Repair) -> list[Flagged]:
    """The flagged sections of an inspection; ``repair`` is what an automatic one would replace."""
    rows = []
    for quality in inspection.sections:
        if quality.flags:
            name, score = max(quality.scores.items(), key=lambda score: score[1] * (score[0] != "constant"))
            said = "" if "missing" in quality.flags else f"{name} {score:.1f}"
            rows.append(Flagged(quality.section, ", ".join(quality.flags), said, quality.section in repair.reasons))
    return rows


def chosen_repair(reasons: Mapping[int, str], automatic: Repair | None) -> Repair:
    """The repair of the sections that were chosen: in places, where an automatic one would replace only places."""
    from emformer_hub.reconstruction.repair import Repair

    found = {} if automatic is None else automatic.damage
    damage = {section: mask for section, mask in found.items() if section in reasons}
    return Repair(dict(sorted(reasons.items())), damage)
