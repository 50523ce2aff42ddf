"""What should agree: spectra, halves and seams of volumes in which it was planted how far they do."""

from __future__ import annotations

import math

import numpy as np
import pytest
from _stubs import stub

from emformer_hub.audit.agreement import (
    agreement_nm,
    alignment,
    even_and_odd,
    halves_agree,
    isotropy,
    seam_score,
    seams,
)
from emformer_hub.geometry import SectionModel, VoxelSize
from emformer_hub.reconstruction.blocks import Block, Plan

ISOTROPIC = VoxelSize(8, 8, 8)
SECTIONS = SectionModel(4.0)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_spectra_of_isotropic_and_of_blurred_noise() -> None:
    white = noise(64, 64, 64)
    same = isotropy(white, ISOTROPIC, spacing_nm=32)
    assert same["power_ratio"] == pytest.approx([1] * 4, abs=0.1) and same["judged"] == 3
    low, high = np.array([1 / 32, 1 / 16, 1 / 8, 1 / 4]), np.array([1 / 16, 1 / 8, 1 / 4, 1 / 2])  # cycles a voxel
    # The mean of two neighbours leaves the power cos²(pi f) along their axis, and a half of it across.
    kept = 0.5 + (np.sin(2 * np.pi * high) - np.sin(2 * np.pi * low)) / (4 * np.pi * (high - low))
    along_z = isotropy((white + np.roll(white, 1, axis=0)) / 2, ISOTROPIC, spacing_nm=32)
    assert along_z["power_ratio"] == pytest.approx((kept / 0.5).tolist(), abs=0.15)
    along_y, along_x = (isotropy((white + np.roll(white, 1, axis)) / 2, ISOTROPIC, spacing_nm=32) for axis in (1, 2))
    for blurred in (along_y, along_x):  # both lateral axes count
        assert blurred["power_ratio"] == pytest.approx((0.5 / ((kept + 0.5) / 2)).tolist(), abs=0.15)


def test_bands_are_of_wavelengths_whatever_the_voxel() -> None:
    found = isotropy(noise(64, 64, 64), VoxelSize(4, 8, 8), spacing_nm=40)
    assert found["bands_per_nm"] == pytest.approx([1 / 256, 1 / 128, 1 / 64, 1 / 32, 1 / 16])
    assert found["judged"] == 3  # the last of them reaches from 64 to 32 nm


@pytest.mark.parametrize(
    "sections",
    [SECTIONS, SectionModel(8, 1 / 8, 3), SectionModel(5.5), SectionModel(3.3, 0.5), SectionModel(7, 0.3)],
)
def test_halves_of_a_stack_sample_what_its_sections_sampled(sections: SectionModel) -> None:
    stack = noise(11, 8, 8)
    whole = sections.matrix(10)
    for first, (half, geometry) in enumerate(even_and_odd(stack, sections)):
        np.testing.assert_array_equal(half, stack[first:10:2])
        np.testing.assert_allclose(geometry.matrix(5), whole[first::2], atol=1e-9)


def test_halves_beyond_the_factors_of_networks_have_pixels_averaged_in_pairs() -> None:
    sections, tissue = SectionModel(10.0), noise(80, 16, 16)
    thick = tissue.reshape(40, 2, 8, 2, 8, 2).mean(axis=(1, 3, 5))  # planes and pixels twice the size
    for first, (half, geometry) in enumerate(even_and_odd(sections.degrade(tissue), sections)):
        assert geometry.factor == 10
        np.testing.assert_allclose(geometry.degrade(thick), half, atol=1e-5)
        assert geometry.centre * 20 == pytest.approx(5 + 10 * first)
    for first, (_, faces) in enumerate(even_and_odd(noise(8, 16, 16), SectionModel(10.0, 0.1, 4))):
        assert faces.thickness == 0.1  # a plane of the thicker ones, around the middle of the face
        assert faces.centre * 20 == pytest.approx(4.5 + 10 * first)


@pytest.mark.parametrize("axis", ["z", "lateral"])
def test_two_noisy_halves_of_known_power_agree_down_to_where_signal_and_noise_are_equal(axis: str) -> None:
    """Of power S and N the correlation is S / (S + N); S = 8 exp(-(f / w)²) falls to N = 1 at f = w sqrt(ln 8)."""
    frequency = np.fft.fftfreq(96, 8)
    square = frequency[:, None, None] ** 2 + frequency[:, None] ** 2 + frequency**2
    width = 1 / 64
    signal = np.fft.ifftn(np.fft.fftn(noise(96, 96, 96)) * np.sqrt(8 * np.exp(-square / width**2))).real
    halves = [signal + noise(96, 96, 96, seed=seed) for seed in (1, 2)]
    expected = 1 / (width * math.sqrt(math.log(8)))
    assert agreement_nm(*halves, ISOTROPIC, axis) == pytest.approx(expected, rel=0.1)  # type: ignore[arg-type]


def test_halves_that_show_the_same_agree_to_the_last_voxel_and_unrelated_ones_nowhere() -> None:
    restorer, size = stub(SECTIONS), VoxelSize(32, 8, 8)
    same = np.repeat(noise(1, 64, 64), 12, axis=0)
    found = halves_agree(restorer, same, size)
    assert found["reason"] is None and found["spacing_nm"] == 64 and found["plane_nm"] == [8, 8, 8]
    assert found["resolution_nm"]["lateral"] == 16
    assert found["resolution_nm"] == found["interpolated_nm"]  # that is how the stub restores
    unrelated = halves_agree(restorer, noise(24, 128, 128), size)["resolution_nm"]
    assert unrelated["z"] > 4 * 64 and unrelated["lateral"] > 16
    assert halves_agree(stub(SectionModel(10.0)), same, VoxelSize(80, 8, 8))["plane_nm"] == [16, 16, 16]


def test_halves_that_are_too_small_are_left_out_with_the_reason() -> None:
    few = halves_agree(stub(SECTIONS), noise(7, 64, 64), VoxelSize(32, 8, 8))
    assert few == {"reason": "7 sections make halves of 3; it takes 4."}
    thin = halves_agree(stub(SectionModel(1.0)), noise(8, 64, 64), VoxelSize(32, 32, 32))
    assert thin == {"reason": "6 planes lie between sections of both; it takes 8."}


def test_steps_at_the_sides_of_blocks_are_what_was_planted() -> None:
    plan = Plan((8, 64, 128), SectionModel(1.0), (8, 64, 64), (4, 16, 16))
    ramp = np.broadcast_to(np.arange(128, dtype=np.float32), (8, 64, 128))
    side = plan.block_zyx[2]
    assert side < 128 and plan.block_zyx[:2] == (8, 64)
    offset = 2.0 * (np.arange(128) // side % 2)  # up by three rather than by one, and down by one again
    jumps = np.abs(np.diff(ramp[0, 0] + offset))[side - 1 :: side]
    score = seam_score(ramp, ramp + offset.astype(np.float32), plan, grey=20)
    assert set(jumps) == {3, 1} and score["step"] == pytest.approx(jumps.mean())
    assert score["rms"] == pytest.approx(2 * math.sqrt((offset > 0).mean())) and score["maximum"] == 2
    assert score["relative_rms"] == pytest.approx(score["rms"] / 20)
    same = seam_score(ramp, ramp, plan, grey=20)
    assert same == {"rms": 0, "maximum": 0, "relative_rms": 0, "step": 1}


def test_a_network_that_looks_at_one_voxel_has_no_seams_and_one_that_looks_at_its_tile_has() -> None:
    stack = noise(12, 160, 160)

    def shifted(seen: np.ndarray, block: Block, mask: np.ndarray | None) -> np.ndarray:
        offset = 0.5 * (block.x.output.start > 0)
        return restorer.interpolated(seen, block, mask) + np.float32(offset)

    restorer = stub(SECTIONS)
    assert seams(restorer, stack) == {"rms": 0, "maximum": 0, "relative_rms": 0, "step": 1}
    restorer.planes = shifted
    found = seams(restorer, stack)
    assert found["maximum"] == pytest.approx(0.5, abs=1e-5) and found["step"] > 1.005


def test_sections_that_jump_are_counted() -> None:
    texture = noise(256, 256)
    smooth = sum(np.roll(texture, (y, x), (0, 1)) for y in range(4) for x in range(4))
    stack = np.stack([np.roll(smooth, 20 * (z >= 4), axis=1) for z in range(8)])
    assert alignment(stack) == {"reason": None, "pairs": 7, "measured": 7, "shifted": 1, "largest_voxels": 20.0}
    assert alignment(noise(8, 256, 256))["measured"] < 4
    assert "192 x 192" in alignment(noise(8, 256, 128))["reason"]
