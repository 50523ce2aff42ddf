"""Held-out columns: what the model makes of them, and how its errors compare with what it states."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from emformer_hub.configuration_emformer import EMformerConfig
from emformer_hub.geometry import SectionModel, VoxelSize
from emformer_hub.modeling_emformer import EMformerModel
from emformer_hub.modes import MODES, Mode
from emformer_hub.processing_emformer import EMformerProcessor
from emformer_hub.training.sampling import TrainingVolume
from emformer_hub.training.validation import FULL_THICKNESS, SINGLE_PLANE, error_quantiles, restore
from emformer_hub.volumes.phantom import neuropil

CPU = torch.device("cpu")
MODE: Mode = "faithful"


@pytest.fixture(scope="module")
def model() -> EMformerModel:
    """As if trained: no parameter is at the zero that some of them start from."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "window_size": (2, 2, 4)}
    model = EMformerModel(EMformerConfig(**sizes, num_basis=6, num_scale_basis=3, condition_size=8)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model


def test_modes_differ_on_imaged_planes_alone(model: EMformerModel, tissue: np.ndarray) -> None:
    sections = SectionModel(4, 1 / 2)
    clean, faithful = (restore(model, volume(tissue), sections, CPU, mode=mode) for mode in MODES)
    assert clean is not None and faithful is not None
    imaged = sections.matrix(8).any(axis=0)
    torch.testing.assert_close(clean.error[:, :32][:, ~imaged], faithful.error[:, :32][:, ~imaged])
    assert (clean.error[:, :32][:, imaged] - faithful.error[:, :32][:, imaged]).abs().mean() > 1e-3


def volume(data: np.ndarray, **changes: Any) -> TrainingVolume:
    return TrainingVolume("test", data, VoxelSize(8, 8, 8), EMformerProcessor().measure(data), **changes)


@pytest.fixture(scope="module")
def tissue() -> np.ndarray:
    return neuropil((64, 32, 128))


def ratios(model: EMformerModel, training: TrainingVolume, sections: SectionModel) -> np.ndarray:
    """Errors over the standard deviation of the Laplace distribution that is stated for them."""
    restored = restore(model, training, sections, CPU, along_z=True)
    assert restored is not None
    return (restored.error.abs() / (np.sqrt(2) * restored.scale)).numpy().ravel()


@pytest.mark.parametrize("geometries", [FULL_THICKNESS, SINGLE_PLANE], ids=["full thickness", "single plane"])
@pytest.mark.parametrize("probability", [0.25, 0.5, 0.9, 0.95, 0.99])
def test_errors_lie_within_the_multiple_as_often_as_it_says(
    model: EMformerModel, tissue: np.ndarray, geometries: tuple[SectionModel, ...], probability: float
) -> None:
    quantiles = error_quantiles(model, [volume(tissue)], CPU, MODE)
    assert quantiles is not None
    shares = [
        (ratios(model, volume(tissue), sections) <= quantiles.multiple(probability, sections)).mean()
        for sections in geometries
    ]
    assert np.mean(shares) == pytest.approx(probability, abs=0.03)  # the mean of quantiles, not that of shares


def test_an_anisotropic_volume_is_calibrated_along_y(model: EMformerModel, tissue: np.ndarray) -> None:
    turned = np.ascontiguousarray(tissue.swapaxes(0, 1))  # whose y is the other's z
    statistics = EMformerProcessor().measure(tissue)
    coarse = TrainingVolume("test", turned, VoxelSize(8.9, 8, 8), statistics)  # hardly coarser, but not isotropic
    fine = error_quantiles(model, [TrainingVolume("test", tissue, VoxelSize(8, 8, 8), statistics)], CPU, MODE)
    found = error_quantiles(model, [coarse], CPU, MODE)
    np.testing.assert_allclose(found.full_thickness, fine.full_thickness, rtol=0.05)  # the frame spacing differs


def test_volumes_count_by_their_weight(model: EMformerModel, tissue: np.ndarray) -> None:
    other = np.random.default_rng(0).integers(0, 256, tissue.shape, np.uint8)
    alone = [error_quantiles(model, [volume(data)], CPU, MODE) for data in (tissue, other)]
    assert error_quantiles(model, [volume(tissue, weight=2.0), volume(other, weight=0.0)], CPU, MODE) == alone[0]
    together = error_quantiles(model, [volume(tissue, weight=3.0), volume(other)], CPU, MODE)
    for name, multiples in vars(together).items():
        first, second = (np.array(getattr(quantiles, name)) for quantiles in alone)
        assert not np.allclose(first, second, atol=0.01)
        np.testing.assert_allclose(multiples, (3 * first + second) / 4, atol=2e-4)  # they are rounded


def test_a_volume_too_small_for_four_sections_tells_nothing(model: EMformerModel, tissue: np.ndarray) -> None:
    small = volume(tissue[:15, :16])
    assert restore(model, small, SectionModel(4), CPU, along_z=True) is None
    assert error_quantiles(model, [small], CPU, MODE) is None
    assert error_quantiles(model, [small, volume(tissue, weight=0.0)], CPU, MODE) is None
    assert error_quantiles(model, [small, volume(tissue)], CPU, MODE) == error_quantiles(
        model, [volume(tissue)], CPU, "faithful"
    )


def test_only_held_out_columns_count(model: EMformerModel, tissue: np.ndarray) -> None:
    training = volume(tissue)
    changed = tissue.copy()
    changed[:, :, : -training.holdout_columns] = 0
    same_statistics = TrainingVolume("test", changed, training.voxel_size, training.statistics)
    assert error_quantiles(model, [same_statistics], CPU, MODE) == error_quantiles(model, [training], CPU, "faithful")


@pytest.mark.parametrize("aligned", [True, False])
def test_sections_know_their_neighbours_only_if_aligned(
    model: EMformerModel, tissue: np.ndarray, aligned: bool
) -> None:
    training = volume(tissue, aligned=aligned)
    alone = TrainingVolume("test", tissue[27:28], training.voxel_size, training.statistics, aligned=False)
    # the middle 24 of 64 sections are looked at: the 27th is their seventh
    whole, single = (restore(model, which, SectionModel(4), CPU) for which in (training, alone))
    assert whole is not None and single is not None
    assert torch.allclose(whole.error[7:8], single.error, atol=1e-4) != aligned
    torch.testing.assert_close(whole.cubic_error[7:8], single.cubic_error)
