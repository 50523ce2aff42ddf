"""Sections and detail that are held back: errors and intervals of predictions that are known."""

from __future__ import annotations

import math
from statistics import NormalDist
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from _stubs import stub

from emformer_hub.audit.held_back import (
    APART,
    certainty,
    coverage,
    in_plane,
    left_out,
    left_out_errors,
    passes,
    predict_sections,
)
from emformer_hub.errors import InputError
from emformer_hub.geometry import SectionModel
from emformer_hub.interpolation import interpolation_matrix
from emformer_hub.processing_emformer import EMformerProcessor
from emformer_hub.reconstruction.blocks import Block
from emformer_hub.uncertainty import PROBABILITIES

SECTIONS = SectionModel(4.0)
NORMAL = [NormalDist().inv_cdf((1 + p) / 2) for p in PROBABILITIES]
SHARES = {"0.5": 0.5, "0.8": 0.8, "0.95": 0.95}


@pytest.mark.parametrize("depth", [6, 9, 12, 31, 48, 64])
def test_sections_held_back_at_once_are_apart_and_none_is_at_an_end(depth: int) -> None:
    groups = passes(depth)
    hidden = np.concatenate(groups)
    assert len(set(hidden)) == len(hidden) == min(12, depth - 2)
    assert hidden.min() >= 1 and hidden.max() <= depth - 2
    assert all(np.diff(group).min(initial=APART) >= APART for group in groups)


def test_unfit_sections_are_not_held_back_nor_predicted_from() -> None:
    hidden = np.concatenate(passes(20, [3, 10]))
    assert not set(hidden) & {2, 3, 4, 9, 10, 11} and len(hidden) == 12
    assert np.concatenate(passes(6, [4])).tolist() == [1, 2]
    with pytest.raises(InputError, match="3 of 6 sections are missing, copied"):
        passes(6, [0, 2, 4])


def test_errors_of_interpolation_are_those_of_polynomials() -> None:
    z = np.arange(9, dtype=np.float32)[:, None, None]
    texture = np.random.default_rng(0).normal(size=(1, 32, 48)).astype(np.float32)
    hidden = np.arange(1, 8)
    line = texture * z
    straight, _ = left_out_errors(line, hidden, line[hidden] + 5)
    np.testing.assert_allclose(straight["linear"], 0, atol=1e-4)
    np.testing.assert_allclose(straight["network"], 5.0)
    assert straight["gain_over_linear_db"] < -60
    curve = np.broadcast_to(z**2, (9, 32, 48))
    bent, gains = left_out_errors(curve, hidden, curve[hidden] + 0.5)
    np.testing.assert_allclose(bent["linear"], 1.0)  # ((z-1)² + (z+1)²) / 2 - z²
    np.testing.assert_allclose(bent["cubic"][1:-1], 0, atol=1e-3)
    assert bent["gain_over_linear_db"] == pytest.approx(20 * math.log10(2), abs=1e-3)
    assert gains.shape == (2, 3) and gains == pytest.approx(20 * math.log10(2), abs=0.01)


def test_the_map_shows_where_the_network_is_worse() -> None:
    noise = np.random.default_rng(0).normal(size=(8, 32, 32)).astype(np.float32)  # of independent sections the mean of
    hidden = np.arange(2, 6)  # two errs by 1.5 variances
    predicted = np.zeros((4, 32, 32), np.float32)
    predicted[:, :, 16:] = noise[hidden][:, :, 16:] + 3
    _, gains = left_out_errors(noise, hidden, predicted)
    assert gains[:, 0] == pytest.approx(10 * math.log10(1.5), abs=0.5)
    assert gains[:, 1] == pytest.approx(10 * math.log10(1.5 / 9), abs=0.5)


def test_left_out_sections_are_cut_from_planes_that_never_saw_them() -> None:
    hidden, seen_by = np.array([3, 8]), []

    def planes(seen: np.ndarray, block: Block, mask: np.ndarray) -> np.ndarray:
        seen_by.append((block.z.input.start + np.flatnonzero(mask[:, 0, 0])).tolist())
        number = np.arange(block.output[0].start, block.output[0].stop, dtype=np.float32)
        shape = [part.stop - part.start for part in block.output]
        return np.broadcast_to(number[:, None, None], shape) + np.arange(block.x.output.start, block.x.output.stop)

    stack = np.zeros((12, 64, 600), np.float32)
    predicted, deviation = predict_sections(stub(SECTIONS, planes, deviation=2.5), stack, hidden)
    np.testing.assert_allclose(predicted[:, 0], [4 * z + 1.5 + np.arange(600) for z in hidden])  # means of four planes
    np.testing.assert_allclose(deviation, 2.5, rtol=1e-5)  # they err together
    assert len(seen_by) > 1 and all(found == [3, 8] for found in seen_by)


@pytest.mark.parametrize("calibrated", [True, False])
def test_coverage_of_left_out_sections_by_the_intervals_of_masked_voxels(calibrated: bool) -> None:
    stack = np.random.default_rng(0).normal(size=(12, 64, 64)).astype(np.float32)
    errors = 3 * np.random.default_rng(1).normal(size=stack.shape).astype(np.float32)

    def planes(seen: np.ndarray, block: Block, mask: np.ndarray) -> np.ndarray:
        return np.repeat((stack + errors)[block.input], 4, axis=0)

    own = {"full_thickness": [9 * multiple for multiple in NORMAL]}
    own |= {"masked_full_thickness": NORMAL, "masked_single_plane": NORMAL} if calibrated else {}
    processor = EMformerProcessor(error_quantiles=own)
    figures, _ = left_out(stub(SECTIONS, planes, deviation=3.0, processor=processor), stack)
    assert figures["section"] == list(range(1, 11))
    assert figures["network"] == pytest.approx([3] * 10, rel=0.05)
    if calibrated:
        assert figures["coverage"] == pytest.approx(SHARES, abs=0.01)
    else:
        assert figures["coverage"] is None


def test_coverage_of_errors_that_are_as_stated() -> None:
    draw = np.random.default_rng(0)
    deviation = draw.uniform(1, 5, 200_000)
    error = draw.normal(size=200_000) * deviation
    multiples = [NormalDist().inv_cdf((1 + p) / 2) for p in (0.5, 0.8, 0.95)]
    assert coverage(error, deviation, multiples) == pytest.approx(SHARES, abs=0.005)
    assert coverage(2 * error, deviation, multiples)["0.8"] == pytest.approx(0.478, abs=0.005)
    laplace = draw.laplace(scale=deviation / math.sqrt(2))
    assert coverage(laplace, deviation, [-math.log(1 - p) / math.sqrt(2) for p in (0.5, 0.8, 0.95)]) == pytest.approx(
        SHARES, abs=0.005
    )


def test_averages_show_where_errors_are_small_though_noise_hides_it_in_voxels() -> None:
    """Half of the volume is wrong by 4 everywhere, which is stated; noise of SD 20 lies over all of it."""
    draw, shape = np.random.default_rng(0), (64, 64, 64)
    wrong = np.arange(64)[:, None, None] < 32
    error, stated = draw.normal(0, 20, shape) + 4 * wrong, np.where(wrong, 4.0, 1.0) * np.ones(shape)
    voxels, averages = (certainty(error, stated, (side,) * 3) for side in (1, 4))
    assert voxels["certain_error"] / voxels["error"] > 0.98
    assert averages["certain_error"] == pytest.approx(math.sqrt(2 / math.pi) * 20 / 8, rel=0.05)
    assert averages["certain_error"] / averages["error"] < 0.7
    blind = certainty(error, draw.uniform(1, 2, shape), (4, 4, 4))
    assert blind["certain_error"] / blind["error"] == pytest.approx(1, abs=0.05)


def test_the_sharp_plane_of_a_network_whose_errors_are_known() -> None:
    """Every row of every section is the same line of noise, which the network knows, but for errors that it states."""
    draw = np.random.default_rng(0)
    line, sigma = draw.normal(size=96).astype(np.float32), 0.25
    crop = np.broadcast_to(line, (16, 64, 96))
    processor = EMformerProcessor(error_quantiles={"full_thickness": NORMAL, "single_plane": NORMAL})
    statistics = processor.measure(crop)
    truth = statistics.normalise(line)[:, None]

    def network(clip: torch.Tensor, factor: float, **settings: Any) -> SimpleNamespace:
        made = torch.from_numpy(truth + sigma * draw.normal(size=(96, 64)).astype(np.float32))
        return SimpleNamespace(reconstruction=made[None, None], scale=torch.full((1, 1, 96, 64), sigma / math.sqrt(2)))

    figures = in_plane(crop, stub(SECTIONS, network=network, processor=processor, statistics=statistics))
    assert figures["psnr_db"] == pytest.approx(20 * math.log10(np.ptp(truth) / sigma), abs=0.05)
    assert figures["coverage"] == pytest.approx(SHARES, abs=0.01)
    assert figures["section"] == list(range(16))
    assert figures["network"] == pytest.approx([sigma * statistics.std] * 16, rel=0.05)
    assert figures["averages"]["error"] == pytest.approx(math.sqrt(2 / math.pi) * sigma * statistics.std / 4, rel=0.05)
    cubic = interpolation_matrix(SECTIONS.plane_positions(96), 24, "cubic") @ SECTIONS.degrade(truth)
    gain = 10 * math.log10(np.square(cubic - truth).mean() / sigma**2)
    assert figures["gain_over_bicubic_db"] == pytest.approx(gain, abs=0.05)
    assert figures["ssim"] > figures["bicubic_ssim"]


def test_a_network_that_interpolates_gains_nothing_on_the_sharp_plane() -> None:
    crop = np.random.default_rng(0).normal(size=(6, 64, 64)).astype(np.float32)

    def network(clip: torch.Tensor, factor: float, positions: np.ndarray, **told: Any) -> SimpleNamespace:
        made = torch.from_numpy(interpolation_matrix(positions, clip.shape[2], "cubic").astype(np.float32)) @ clip
        return SimpleNamespace(reconstruction=made, scale=torch.ones_like(made))

    figures = in_plane(crop, stub(SECTIONS, network=network))
    assert figures["gain_over_bicubic_db"] == pytest.approx(0, abs=1e-3)
    assert figures["ssim"] == figures["bicubic_ssim"]
    assert in_plane(crop[:, :, :40], stub(SectionModel(16), network=network)) == {}
