"""Masked sections and damage: filled from around, never looked at, and felt nowhere else."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from emformer_hub.configuration_emformer import EMformerConfig
from emformer_hub.errors import InputError
from emformer_hub.geometry import SectionModel
from emformer_hub.measurement import consistency_residual
from emformer_hub.modeling_emformer import EMformerModel
from emformer_hub.modes import MODES, Mode
from emformer_hub.processing_emformer import EMformerProcessor
from emformer_hub.projection import project
from emformer_hub.reconstruction import Reconstruction, reconstruct
from emformer_hub.reconstruction.blocks import make_plan
from emformer_hub.reconstruction.restorer import Restorer
from emformer_hub.uncertainty import LAPLACE, ErrorQuantiles
from emformer_hub.volumes.phantom import neuropil

DEPTH = 12


@pytest.fixture(scope="module")
def model() -> EMformerModel:
    """A model as if trained: no parameter, the mask token neither, is at the zero that some of them start from."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_basis": 6, "num_scale_basis": 3, "condition_size": 8}
    model = EMformerModel(EMformerConfig(**sizes, window_size=(2, 2, 4))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model


@pytest.fixture(scope="module")
def stack() -> np.ndarray:
    """12 sections of 40 x 24, uint8."""
    return neuropil((2 * DEPTH, 40, 24), seed=1)[::2].copy()


def run(volume: np.ndarray, model: EMformerModel, factor: float = 4, **options) -> Reconstruction:
    return reconstruct(
        volume, factor=factor, model=model, **{"device": "cpu", "precision": "float32", "progress": False} | options
    )


def sections(*masked: int, depth: int = DEPTH) -> np.ndarray:
    mask = np.zeros(depth, bool)
    mask[list(masked)] = True
    return mask


def damage() -> np.ndarray:
    mask = np.zeros((DEPTH, 40, 24), bool)
    mask[5, 10:20, 4:12] = True
    mask[6, 12:25, 6:20] = True
    return mask


MASKS = {
    "one": sections(4),
    "three": sections(4, 5, 6),
    "both ends": sections(0, 1, 10, 11),
    "damage": damage(),
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("rubbish, ensemble", [(np.nan, 1), (1e9, 1), (np.inf, 8)])
def test_what_masked_voxels_hold_is_never_looked_at(
    model: EMformerModel, stack: np.ndarray, mask: np.ndarray, rubbish: float, ensemble: int
) -> None:
    volume = stack.astype(np.float32)
    spoilt = volume.copy()
    spoilt[mask] = rubbish
    options = {"mask": mask, "ensemble": ensemble, "mode": MODES[ensemble > 1]}
    expected, found = (run(data, model, 2.5, **options) for data in (volume, spoilt))
    np.testing.assert_array_equal(found.volume, expected.volume)
    np.testing.assert_array_equal(found.uncertainty, expected.uncertainty)
    assert np.isfinite(found.volume).all()


def test_a_mask_of_whole_sections_is_one_of_all_their_voxels(model: EMformerModel, stack: np.ndarray) -> None:
    short, long = sections(3, 4), np.zeros(stack.shape, bool)
    long[[3, 4]] = True
    np.testing.assert_array_equal(run(stack, model, mask=short).volume, run(stack, model, mask=long).volume)


def test_a_mask_changes_what_it_covers(model: EMformerModel, stack: np.ndarray) -> None:
    assert (run(stack, model).volume[16:20] != run(stack, model, mask=sections(4)).volume[16:20]).any()


def test_an_empty_mask_is_none(model: EMformerModel, stack: np.ndarray) -> None:
    np.testing.assert_array_equal(run(stack, model, mask=sections()).volume, run(stack, model).volume)


@pytest.mark.parametrize("mode", MODES)
def test_blocks_that_see_no_mask_are_what_they_are_without_one(
    model: EMformerModel, stack: np.ndarray, mode: Mode
) -> None:
    long = np.concatenate([stack, stack[::-1], stack])
    mask = np.broadcast_to(sections(2, depth=len(long))[:, None, None], long.shape)
    geometry, processor = SectionModel(2.5), EMformerProcessor()
    plan = make_plan(long.shape, geometry, model.config, (20, 64, 64))
    restorer = Restorer(model, processor, geometry, processor.measure(long), 2, torch.device("cpu"), "float32", mode)
    untouched = 0
    for block in plan.blocks():
        with_mask = restorer.restore(long[block.input], block, mask[block.input])
        without = restorer.restore(long[block.input], block)
        same = all((a == b).all() for a, b in zip(with_mask, without, strict=True))
        assert same == (not mask[block.input].any())
        untouched += same
    assert untouched


def test_blocks_in_quarters_take_their_part_of_the_mask(model: EMformerModel, stack: np.ndarray) -> None:
    wide = np.tile(stack, (1, 2, 3))
    mask = np.zeros(wide.shape, bool)
    mask[5, 30:70, 20:60] = True
    geometry, processor = SectionModel(4), EMformerProcessor()
    (block,) = make_plan(wide.shape, geometry, model.config, wide.shape).blocks()
    made = []
    for quarterings in (0, 1):
        restorer = Restorer(model, processor, geometry, processor.measure(wide), 2, torch.device("cpu"), "float32")
        restorer._quarterings = quarterings
        made.append(restorer.restore(wide, block, mask)[0].astype(float))
    assert np.abs(made[0] - made[1]).max() <= 2


def test_statistics_leave_masked_voxels_out(stack: np.ndarray) -> None:
    processor = EMformerProcessor()
    mask = np.broadcast_to(sections(4, 5)[:, None, None], stack.shape)
    spoilt = np.where(mask, 255, stack)
    assert processor.measure(spoilt, mask) == processor.measure(np.delete(stack, [4, 5], axis=0))


@pytest.mark.parametrize(
    "mask, message",
    [
        (sections(3, 4, 5, 6), "sections 3, 4, 5, 6 are masked"),
        (sections(*range(0, DEPTH, 2)), "sections 0, 2, 4, 6 are masked"),
        (np.ones(DEPTH, bool), "leaves 0 of 12"),
        (sections(0, 1, 2, depth=6), "12"),
        (sections(1).astype(np.uint8), "uint8"),
        (np.zeros((DEPTH, 40, 25), bool), r"\(12, 40, 24\)"),
        (np.repeat(damage()[6:7], DEPTH, axis=0), "at y=12, x=6, sections 0, 1, 2, 3"),
    ],
)
def test_a_mask_that_cannot_be_filled_is_refused(
    model: EMformerModel, stack: np.ndarray, mask: np.ndarray, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        run(stack, model, mask=mask)


def test_fewer_than_four_usable_sections_are_refused(model: EMformerModel, stack: np.ndarray) -> None:
    with pytest.raises(InputError, match="leaves 3 of 6"):
        run(stack[:6], model, mask=sections(0, 1, 2, depth=6))


def test_nan_outside_the_mask_is_refused(model: EMformerModel, stack: np.ndarray) -> None:
    volume = stack.astype(np.float32)
    volume[4:6] = np.nan
    with pytest.raises(InputError, match="z=5, y=0, x=0"):
        run(volume, model, mask=sections(4))


# --- consistency -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("thickness", [1.0, 0.4, None])
@pytest.mark.parametrize("factor", [1, 2.5, 4, 5.5])
def test_faithful_planes_give_the_sections(
    model: EMformerModel, stack: np.ndarray, factor: float, thickness: float | None
) -> None:
    geometry = SectionModel(factor, thickness or 1 / factor)
    volume = stack.astype(np.float32)
    plain, made = (
        run(volume, model, factor, thickness=geometry.thickness, mode=mode).volume for mode in ("clean", "faithful")
    )
    assert consistency_residual(made, volume, geometry).maximum < 1e-3
    planes, sections = (torch.from_numpy(part).transpose(0, 1)[None] for part in (plain, volume))
    positions = geometry.plane_positions(len(plain)).tolist()
    expected = project(planes, sections, positions, factor, geometry.thickness)[0].transpose(0, 1)
    np.testing.assert_allclose(made, expected, atol=1e-2)


@pytest.mark.parametrize("factor", [2.5, 4, 5.5])
def test_faithful_in_tiles_is_faithful_as_a_whole(model: EMformerModel, stack: np.ndarray, factor: float) -> None:
    long = np.concatenate([stack, stack[::-1], stack]).astype(np.float32)
    whole, tiled = (
        run(long, model, factor, mode="faithful", tile_zyx=tile).volume for tile in (long.shape, (20, 40, 24))
    )
    assert np.abs(whole - tiled).max() < 1
    residual = consistency_residual(tiled, long, SectionModel(factor))
    assert residual.relative_rms < 1e-3


def test_masked_sections_impose_nothing(model: EMformerModel, stack: np.ndarray) -> None:
    volume = stack.astype(np.float32)
    for mask in (sections(4, 5), damage()):
        made = run(volume, model, 2.5, mask=mask, mode="faithful").volume
        assert consistency_residual(made, volume, SectionModel(2.5), mask).maximum < 1e-3
        assert consistency_residual(made, volume, SectionModel(2.5)).maximum > 1


# --- intervals ---------------------------------------------------------------------------------------------------


def test_masked_voxels_have_intervals_of_their_own(model: EMformerModel, stack: np.ndarray) -> None:
    done = run(stack, model, mask=damage())
    doubled = tuple(2 * multiple for multiple in LAPLACE)
    done.processor.calibrate(dict.fromkeys(MODES, ErrorQuantiles(masked_full_thickness=doubled)))
    hidden = damage()[np.arange(len(done.volume)) // 4]
    ratio = done.half_width(0.8) / done.uncertainty
    np.testing.assert_allclose(ratio[hidden], 2 * ratio[~hidden][0], rtol=1e-5)
    np.testing.assert_allclose(ratio[~hidden], ratio[~hidden][0], rtol=1e-5)


def test_confident_voxels_are_those_of_narrow_intervals(model: EMformerModel, stack: np.ndarray) -> None:
    done = run(stack, model)
    tolerance = float(np.median(done.half_width(0.9)))
    np.testing.assert_array_equal(done.confident(0.9, tolerance), done.half_width(0.9) <= tolerance)
    assert 0.3 < done.confident(0.9, tolerance).mean() < 0.7


@pytest.mark.parametrize("tolerance", [0, -1, np.nan, np.inf])
def test_a_tolerance_is_a_positive_number(model: EMformerModel, stack: np.ndarray, tolerance: float) -> None:
    with pytest.raises(InputError, match="tolerance"):
        run(stack, model).confident(0.9, tolerance)
