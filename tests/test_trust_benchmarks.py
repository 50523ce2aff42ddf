"""The benchmarks of inpainting, consistency and uncertainty, with interpolation in the place of a network."""

from __future__ import annotations

import inpainting
import numpy as np
import pytest
import torch
from _gaps import Sections, as_imaged, degraded, ends, gaps, interpolated, intervals
from uncertainty import PROBABILITIES, judge

from emformer_hub.geometry import SectionModel
from emformer_hub.interpolation import interpolate
from emformer_hub.modes import Mode
from emformer_hub.processing_emformer import EMformerProcessor, to_dtype
from emformer_hub.projection import project
from emformer_hub.reconstruction import Reconstruction
from emformer_hub.volumes import check_mask
from emformer_hub.volumes.phantom import neuropil

X4 = SectionModel(4)


def restore(
    data: np.ndarray, geometry: SectionModel, mask: np.ndarray | None = None, mode: Mode = "clean"
) -> Reconstruction:
    """Fills by a straight line, then interpolates; certain to one grey level."""
    whole = None if mask is None else check_mask(mask, data.shape).any(axis=(1, 2))
    filled = data.copy()
    if whole is not None:
        filled[whole] = interpolated(data, whole, cubic=False)
    planes = interpolate(filled, geometry, "cubic")
    if mode == "faithful":
        made, sections = (torch.from_numpy(part.astype(np.float32)).transpose(0, 1)[None] for part in (planes, data))
        positions = geometry.plane_positions(len(planes)).tolist()
        planes = project(made, sections, positions, geometry.factor, geometry.thickness)[0].transpose(0, 1).numpy()
    return Reconstruction(to_dtype(planes, data.dtype), np.ones_like(planes), geometry, EMformerProcessor())


@pytest.fixture(scope="module")
def stack() -> Sections:
    return Sections("phantom", degraded(neuropil((100, 64, 48)), X4), X4)


@pytest.mark.parametrize("length", [1, 2, 3])
@pytest.mark.parametrize("depth", [10, 31])
def test_gaps_are_such_as_can_be_filled(depth: int, length: int) -> None:
    for mask in gaps(depth, length):
        check_mask(mask, (depth, 1, 1))
        assert mask.any() and not (mask[0] or mask[-1])
    assert ends(depth, length).sum() == 2 * length


@pytest.mark.parametrize("cubic, degree", [(False, 1), (True, 3)])
@pytest.mark.parametrize("hidden", [[4], [4, 5], [4, 5, 6]])
def test_interpolation_is_exact_for_its_polynomials(cubic: bool, degree: int, hidden: list[int]) -> None:
    data = np.polynomial.Polynomial(range(1, degree + 2))(np.linspace(-1, 1, 12))[:, None, None].astype(np.float64)
    mask = np.isin(np.arange(12), hidden)
    np.testing.assert_allclose(interpolated(data, mask, cubic), data[mask])


def test_beyond_the_last_section_it_is_repeated() -> None:
    data = np.arange(6.0)[:, None, None]
    np.testing.assert_array_equal(interpolated(data, ends(6, 1), cubic=True).ravel(), [1, 4])


def test_a_fill_by_a_line_gains_nothing_over_a_line(stack: Sections) -> None:
    rows = list(inpainting.filled(stack, {"line": restore}))
    assert [row["gap"] for row in rows] == ["1", "2", "3", "1, at the ends", "2, at the ends", "3, at the ends"]
    for row in rows:
        assert abs(row["gain_over_linear_db"]) < 1
        assert row["linear_db"] == pytest.approx(row["psnr_db"] - row["gain_over_linear_db"])


def test_every_part_has_its_rows(monkeypatch: pytest.MonkeyPatch, stack: Sections) -> None:
    monkeypatch.setattr(inpainting, "DISC", 10)
    (joint,) = inpainting.joint(neuropil((160, 32, 32)), {"line": restore})
    assert joint["whole_db"] > joint["missing_db"]
    assert joint["away_whole_db"] == pytest.approx(joint["away_missing_db"], abs=0.01)
    assert len(list(inpainting.damage(stack, {"line": restore}))) == 4
    for row in inpainting.consistency(neuropil((88, 24, 24)), {"line": restore}):
        assert row["faithful"]["relative_rms"] < 1e-3
        assert row["faithful"]["psnr_db"] > row["clean"]["psnr_db"] - 0.01


def test_coverage_and_the_error_of_the_certain_half() -> None:
    rng = np.random.default_rng(0)
    scale = rng.choice([1.0, 10.0], (20, 40, 50))
    error = rng.laplace(scale=scale)
    error *= rng.choice([-1, 1], error.shape)
    figures = judge(error, [scale * -np.log(1 - share) for share in PROBABILITIES], (4, 4, 4))
    assert figures["coverage"] == pytest.approx(PROBABILITIES, abs=0.01)
    assert figures["certain_error"] / figures["error"] == pytest.approx(2 / 11, abs=0.03)
    assert 0 < figures["averages"]["certain_error"] < figures["averages"]["error"] < figures["error"] / 4


def test_intervals_of_a_section_are_means_over_its_planes(stack: Sections) -> None:
    (mask, *_) = gaps(len(stack.data), 1)
    done = restore(stack.data, X4, mask)
    assert intervals(done, 0.5, mask).shape == as_imaged(done.volume, X4, mask).shape == stack.data[mask].shape
    np.testing.assert_allclose(intervals(done, 0.5, mask), done.half_width(0.5)[0, 0, 0], rtol=1e-5)
