"""What training minimises, and what validation reports."""

from __future__ import annotations

import math

import pytest
import torch

from emformer_hub.audit.held_back import psnr_gain
from emformer_hub.losses import (
    ANCHOR,
    SCALE_WEIGHT,
    charbonnier,
    judged_value,
    laplace_nll,
    reconstruction_loss,
    section_means,
)


def errors(count: int = 1000, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_charbonnier_is_squared_below_one_and_absolute_above() -> None:
    assert charbonnier(torch.zeros(5)) == 0
    small, large = 1e-3 * errors(), 1e3 * errors()
    assert charbonnier(small).item() == pytest.approx((small.square() / 2).mean().item(), rel=1e-4)
    assert charbonnier(large).item() == pytest.approx(large.abs().mean().item(), rel=1e-2)


def test_charbonnier_does_not_see_the_sign() -> None:
    assert charbonnier(errors()) == charbonnier(-errors())


def test_a_section_is_the_mean_of_its_planes() -> None:
    planes = torch.arange(2 * 3 * 8 * 5.0).view(2, 3, 8, 5)
    torch.testing.assert_close(
        section_means(planes, 4), torch.stack([planes[:, :, :4].mean(2), planes[:, :, 4:].mean(2)], 2)
    )
    assert torch.equal(section_means(planes, 1), planes)


def test_the_likelihood_is_that_of_a_laplace_distribution() -> None:
    error, scale = errors(), errors(seed=1).exp()
    expected = -torch.distributions.Laplace(0.0, scale).log_prob(error).mean() - math.log(2)
    torch.testing.assert_close(laplace_nll(error, scale), expected)


def test_the_likelihood_is_best_where_the_scale_is_the_expected_error() -> None:
    error = 3 * errors()
    best = error.abs().mean()
    for wrong in (0.5, 0.9, 1.1, 2):
        assert laplace_nll(error, wrong * best) > laplace_nll(error, best)


def clips(seed: int, count: int = 4) -> torch.Tensor:
    return errors(seed=seed).reshape(count, 2, 5, -1)


def test_value_and_scale_do_not_bend_each_other() -> None:
    target, reconstruction = clips(1), clips(0).requires_grad_()
    scale = clips(2).exp().requires_grad_()
    loss, parts = reconstruction_loss(reconstruction, scale, target)
    loss.backward()
    alone = clips(2).exp().requires_grad_()
    (SCALE_WEIGHT * laplace_nll(clips(0) - target, alone)).backward()
    torch.testing.assert_close(scale.grad, alone.grad)
    assert reconstruction.grad is not None and (reconstruction.grad * (reconstruction - target) > 0).all()
    assert set(parts) == {"value", "likelihood", "mae"}
    assert not any(part.requires_grad for part in parts.values())
    torch.testing.assert_close(parts["mae"], (reconstruction - target).abs().mean().detach())


def test_clips_count_by_their_error_over_what_is_expected_of_it() -> None:
    error, scale = clips(0), 0.6 * clips(1).tanh().exp()
    size = torch.tensor([1.0, 0.75, 0.5, 2.0], dtype=error.dtype).view(4, 1, 1, 1)
    even, uneven = (
        reconstruction_loss(factor * error, factor * scale, torch.zeros_like(error))[1]["value"]
        for factor in (torch.ones_like(size), size)
    )
    torch.testing.assert_close(even, uneven)


def test_gain_is_in_decibels_of_the_squared_error() -> None:
    assert psnr_gain(errors(), errors()) == 0
    assert psnr_gain(0.1 * errors(), errors()) == pytest.approx(20, abs=1e-4)
    assert psnr_gain(errors(), 0.1 * errors()) == pytest.approx(-20, abs=1e-4)


def test_noise_that_target_and_sections_share_teaches_the_clean_value_next_to_nothing() -> None:
    """Sections of 4 planes: where their noise is the target's, only what is within a section has a gradient."""
    clean = clips(0, count=1).reshape(1, 2, 20, -1).float().requires_grad_()
    batch = {
        "sections": torch.zeros_like(clean[:, :, :5]),
        "section_mask": torch.zeros_like(clean[:, :, :5], dtype=torch.bool),
        "positions": [(plane + 0.5) / 4 - 0.5 for plane in range(20)],
        "factor": 4.0,
        "thickness": 1.0,
    }
    means, within = [], []
    for independent in (False, True):
        where = torch.full_like(clean, independent, dtype=torch.bool)
        (gradient,) = torch.autograd.grad(judged_value(clean, where, batch).square().sum(), clean)
        parts = gradient.unflatten(2, (5, 4))
        means.append(parts.mean(3))
        within.append(parts - parts.mean(3, keepdim=True))
    torch.testing.assert_close(means[0], ANCHOR**2 * means[1])  # keeps it from drifting
    torch.testing.assert_close(within[0], within[1])
