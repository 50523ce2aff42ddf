"""Losses that training minimises."""

from typing import Any

import torch
from torch import Tensor

from .errors import InputError
from .projection import project

EXPECTED_ERROR_RANGE = (0.2, 2.0)  # standard deviations of the volume; below 0.1, factor 1 alone would steer AdamW
ANCHOR = 0.1
VALUE_WEIGHT, SCALE_WEIGHT = 0.35, 0.05


def charbonnier(error: Tensor) -> Tensor:
    """Mean of ``sqrt(e^2 + 1) - 1``: half the squared error below one, the absolute error above (Charbonnier 1994)."""
    return (error.square() + 1).sqrt().mean() - 1


def laplace_nll(error: Tensor, scale: Tensor) -> Tensor:
    """Mean negative log-likelihood of errors under a Laplace distribution of that scale, less its constant log 2."""
    return (error.abs() / scale + scale.log()).mean()


def judged_value(clean: Tensor, independent: Tensor, batch: dict[str, Any]) -> Tensor:
    """The part of a reconstruction that is compared with the target.

    Where sections hold noise of the target, the clean value must not learn to keep it: there the faithful one is
    judged, in which noise of the sections is as it was measured, so that only what they do not tell is learned. The
    clean value is judged everywhere else, as in Noise2Noise (Lehtinen et al. 2018): planes that no section imaged,
    masked sections, and sections whose own noise drowns what they share. A tenth of the clean value stays in what is
    judged, a hundredth of its squared error, so that what sections tell cannot drift where nothing else is judged.

    Args:
        clean: the network's value, ``(batch, frames, planes, columns)``.
        independent: bool, of the same shape (:func:`~emformer_hub.training.sampling.draw_clip`).
        batch: arguments of the network.
    """
    faithful = project(
        clean, batch["sections"], batch["positions"], batch["factor"], batch["thickness"], batch["section_mask"]
    )
    return torch.where(independent, clean, torch.lerp(faithful, clean, ANCHOR))


def section_means(planes: Tensor, per_section: int) -> Tensor:
    """Sections as a microscope would image them: the mean of so many planes each.

    The error of a section that is left out is nearly that of each of its planes, so that this holds for scales, too.

    Args:
        planes: ``(batch, frames, sections * per_section, columns)``.
        per_section: planes in each section.

    Returns:
        ``(batch, frames, sections, columns)``.
    """
    return planes.unflatten(2, (-1, per_section)).mean(3)


def reconstruction_loss(reconstruction: Tensor, scale: Tensor, target: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Charbonnier loss on the value, plus the likelihood of its error on the scale.

    A value's error counts in units of the error that the network expects of its clip, so that a small factor, where
    errors are small, teaches as much as a large one. Each enters the other's loss detached: the scale describes the
    value and never bends it.

    Args:
        reconstruction, scale: the network's, ``(batch, frames, planes, columns)``.
        target: the truth, of the same shape.

    Returns:
        The loss, and its parts as numbers: ``value``, ``likelihood`` and ``mae``.

    Raises:
        InputError: a target of another shape.
    """
    if target.shape != reconstruction.shape:
        raise InputError(
            f"the labels are {tuple(target.shape)}, the reconstruction {tuple(reconstruction.shape)}; expected equal "
            f"shapes (batch, frames, planes, columns)."
        )
    error = reconstruction - target
    expected = scale.detach().flatten(1).mean(1).clamp(*EXPECTED_ERROR_RANGE).view(-1, *[1] * (scale.ndim - 1))
    value, likelihood = charbonnier(error / expected), laplace_nll(error.detach(), scale)
    parts = {"value": value.detach(), "likelihood": likelihood.detach(), "mae": error.detach().abs().mean()}
    return VALUE_WEIGHT * value + SCALE_WEIGHT * likelihood, parts
