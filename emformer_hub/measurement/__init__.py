"""How good a reconstruction is: fidelity to a known truth, resolution by direction, and a picture to look at."""

from emformer_hub.measurement.compare import comparison_picture
from emformer_hub.measurement.fidelity import evaluate, grey_range, psnr, ssim
from emformer_hub.measurement.fsc import FSCCurve, directional_resolution, fsc, resolution

__all__ = [
    "FSCCurve",
    "comparison_picture",
    "directional_resolution",
    "evaluate",
    "fsc",
    "grey_range",
    "psnr",
    "resolution",
    "ssim",
]
