"""How good a reconstruction is: fidelity to a known truth, resolution by direction, and a picture to look at."""

from emformer_hub.measurement.consistency import Residual, consistency_residual
from emformer_hub.measurement.fidelity import evaluate, grey_range, plane_ssim, psnr, ssim
from emformer_hub.measurement.fsc import FSCCurve, directional_resolution, fsc, resolution
from emformer_hub.measurement.picture import comparison_picture

__all__ = [
    "FSCCurve",
    "Residual",
    "comparison_picture",
    "consistency_residual",
    "directional_resolution",
    "evaluate",
    "fsc",
    "grey_range",
    "plane_ssim",
    "psnr",
    "resolution",
    "ssim",
]
