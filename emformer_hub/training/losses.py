"""What training minimises."""

import torch
from torch import Tensor

CHARBONNIER_EPSILON = 0.3  # standard deviations of the volume: squared error below, absolute error above
SCALE_WEIGHT = 0.05


def charbonnier(error: Tensor, epsilon: float = CHARBONNIER_EPSILON) -> Tensor:
    """Mean of ``sqrt(e^2 + eps^2) - eps`` (Charbonnier et al. 1994)."""
    return (error.square() + epsilon**2).sqrt().mean() - epsilon


def laplace_nll(error: Tensor, scale: Tensor) -> Tensor:
    """Mean negative log-likelihood of errors under a Laplace distribution of that scale, less its constant log 2."""
    return (error.abs() / scale + scale.log()).mean()


def reconstruction_loss(reconstruction: Tensor, scale: Tensor, target: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Charbonnier loss on the value, plus the likelihood of its error on the scale.

    The error enters the likelihood detached, so that the scale describes the value and never bends it.
    """
    error = reconstruction - target
    value, likelihood = charbonnier(error), laplace_nll(error.detach(), scale)
    parts = {"value": value.detach(), "likelihood": likelihood.detach(), "mae": error.detach().abs().mean()}
    return value + SCALE_WEIGHT * likelihood, parts


def psnr_gain(error: Tensor, baseline_error: Tensor) -> float:
    """How many dB the mean squared error lies below the baseline's."""
    return float(10 * torch.log10(baseline_error.square().mean() / error.square().mean()))
