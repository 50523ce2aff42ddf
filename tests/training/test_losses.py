"""What training minimises, and what validation reports."""

from __future__ import annotations

import math

import pytest
import torch

from emformer_hub.training.losses import CHARBONNIER_EPSILON, charbonnier, laplace_nll, psnr_gain, reconstruction_loss


def errors(count: int = 1000, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_charbonnier_is_squared_below_epsilon_and_absolute_above() -> None:
    assert charbonnier(torch.zeros(5)) == 0
    small, large = 1e-3 * CHARBONNIER_EPSILON * errors(), 1e3 * CHARBONNIER_EPSILON * errors()
    expected = (small.square() / (2 * CHARBONNIER_EPSILON)).mean().item()
    assert charbonnier(small).item() == pytest.approx(expected, rel=1e-4)
    assert charbonnier(large).item() == pytest.approx(large.abs().mean().item(), rel=1e-2)


def test_charbonnier_does_not_see_the_sign() -> None:
    assert charbonnier(errors()) == charbonnier(-errors())


def test_the_likelihood_is_that_of_a_laplace_distribution() -> None:
    error, scale = errors(), errors(seed=1).exp()
    expected = -torch.distributions.Laplace(0.0, scale).log_prob(error).mean() - math.log(2)
    torch.testing.assert_close(laplace_nll(error, scale), expected)


def test_the_likelihood_is_best_where_the_scale_is_the_expected_error() -> None:
    error = 3 * errors()
    best = error.abs().mean()
    for wrong in (0.5, 0.9, 1.1, 2):
        assert laplace_nll(error, wrong * best) > laplace_nll(error, best)


def test_the_scale_describes_the_value_and_never_bends_it() -> None:
    target, reconstruction = errors(seed=1), errors().requires_grad_()
    scale = errors(seed=2).exp().requires_grad_()
    loss, parts = reconstruction_loss(reconstruction, scale, target)
    loss.backward()
    assert scale.grad is not None and scale.grad.abs().max() > 0
    alone = errors().requires_grad_()
    charbonnier(alone - target).backward()
    torch.testing.assert_close(reconstruction.grad, alone.grad)
    assert set(parts) == {"value", "likelihood", "mae"}
    assert not any(part.requires_grad for part in parts.values())
    torch.testing.assert_close(parts["mae"], (reconstruction - target).abs().mean().detach())


def test_gain_is_in_decibels_of_the_squared_error() -> None:
    assert psnr_gain(errors(), errors()) == 0
    assert psnr_gain(0.1 * errors(), errors()) == pytest.approx(20, abs=1e-4)
    assert psnr_gain(errors(), 0.1 * errors()) == pytest.approx(-20, abs=1e-4)
