"""Which sections of a stack are unfit, and why: ``inspect_stack``; and how well neighbouring sections are aligned."""

from emformer_hub.inspection.alignment import alignment_note, section_shifts
from emformer_hub.inspection.displacements import Displacements, measure_displacements, translations_of
from emformer_hub.inspection.sections import Inspection, inspect_stack
from emformer_hub.inspection.spacing import Spacings, measure_spacings

__all__ = [
    "Displacements",
    "Inspection",
    "Spacings",
    "alignment_note",
    "inspect_stack",
    "measure_displacements",
    "measure_spacings",
    "section_shifts",
    "translations_of",
]
