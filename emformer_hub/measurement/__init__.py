"""How good a reconstruction is: fidelity to a known truth, resolution by direction, and a picture to look at; and how
well the sections of a stack are aligned."""

from emformer_hub.measurement.alignment import alignment_note, section_shifts
from emformer_hub.measurement.compare import comparison_picture
from emformer_hub.measurement.consistency import Residual, consistency_residual
from emformer_hub.measurement.fidelity import evaluate, grey_range, plane_ssim, psnr, ssim
from emformer_hub.measurement.fsc import FSCCurve, directional_resolution, fsc, resolution

__all__ = [
    "FSCCurve",
    "Residual",
    "alignment_note",
    "comparison_picture",
    "consistency_residual",
    "directional_resolution",
    "evaluate",
    "fsc",
    "grey_range",
    "plane_ssim",
    "psnr",
    "resolution",
    "section_shifts",
    "ssim",
]
