import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emformer_hub.errors import InputError
from emformer_hub.geometry import SectionModel, VoxelSize
from emformer_hub.interpolation import interpolate
from emformer_hub.measurement import evaluate, psnr, ssim
from emformer_hub.volumes.phantom import neuropil

VOXEL = VoxelSize(8, 8, 8)


@pytest.fixture(scope="module")
def truth():
    return neuropil((80, 32, 40))


@pytest.fixture(scope="module")
def noisy(truth):
    noise = np.random.default_rng(0).normal(0, 10, truth.shape)
    return np.clip(np.rint(truth + noise), 0, 255).astype(np.uint8)


@given(error=st.integers(1, 100))
def test_psnr_of_a_constant_error_is_the_textbook_value(error):
    volume = np.full((2, 3, 4), 100, np.uint8)
    assert psnr(volume, volume + np.uint8(error), 255) == pytest.approx(20 * math.log10(255 / error))


def test_psnr_does_not_wrap_around_in_uint8_and_does_not_depend_on_scale(truth, noisy):
    assert psnr(truth, noisy, 255) == pytest.approx(psnr(noisy, truth, 255))
    assert psnr(truth / 255, noisy / 255, 1.0) == pytest.approx(psnr(truth, noisy, 255))
    assert psnr(truth, truth, 255) == math.inf


def test_ssim_of_the_volume_equals_scikit_image(truth, noisy):
    metrics = pytest.importorskip("skimage.metrics")
    expected = metrics.structural_similarity(
        truth, noisy, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    assert ssim(truth, noisy, 255)["3d"] == pytest.approx(expected, abs=1e-9)


def test_ssim_is_one_for_equal_volumes_and_lower_in_the_planes_that_lost_detail(truth):
    assert ssim(truth, truth, 255) == pytest.approx({"3d": 1, "xy": 1, "xz": 1, "yz": 1})
    model = SectionModel(8)
    score = ssim(truth, interpolate(model.degrade(truth), model, "linear"), 255)
    assert max(score["xz"], score["yz"]) < score["xy"] < 1


def test_evaluate_gathers_everything_fit_for_json(truth, noisy):
    result = evaluate(noisy, truth, VoxelSize(8, 4, 5))
    assert result["psnr_db"] == psnr(truth, noisy, 255)
    assert result["ssim"] == ssim(truth, noisy, 255)
    assert set(result["fsc"]["resolution_nm"]) == {"z", "lateral", "all"}
    assert result["fsc"]["threshold"] == 0.5
    assert result["shape_zyx"] == [80, 32, 40]
    assert result["voxel_size_nm"] == [8, 4, 5]
    assert json.loads(json.dumps(result)) == result


def test_cubic_interpolation_restores_more_than_repeating_sections(truth):
    model = SectionModel(4)
    sections = model.degrade(truth)
    nearest, cubic = (evaluate(interpolate(sections, model, kind), truth, VOXEL) for kind in ("nearest", "cubic"))
    assert cubic["psnr_db"] > nearest["psnr_db"] + 1
    assert cubic["ssim"]["3d"] > nearest["ssim"]["3d"]
    assert cubic["fsc"]["resolution_nm"]["z"] > 1.5 * cubic["fsc"]["resolution_nm"]["lateral"]


def test_the_data_range_is_that_of_the_dtype_or_of_the_float_truth(truth, noisy):
    scaled = truth.astype(np.float32) / 255
    result = evaluate(noisy.astype(np.float32) / 255, scaled, VOXEL)
    assert result["psnr_db"] == pytest.approx(psnr(truth, noisy, float(truth.max()) - float(truth.min())), abs=1e-4)
    wide = evaluate(noisy.astype(np.uint16) * 257, truth.astype(np.uint16) * 257, VOXEL)
    assert wide["psnr_db"] == pytest.approx(psnr(truth, noisy, 255))
    assert evaluate(noisy.astype(np.float32), truth, VOXEL)["psnr_db"] == pytest.approx(psnr(truth, noisy, 255))


def test_lengths_that_differ_along_z_say_how_to_crop(truth, noisy):
    with pytest.raises(InputError, match=r"Only z differs.*a\[:77\] with b\[:77\]"):
        evaluate(noisy[:77], truth, VOXEL)
    with pytest.raises(InputError, match="Crop both"):
        evaluate(noisy[:, :20], truth, VOXEL)


def test_mistakes_are_explained(truth, noisy):
    with pytest.raises(InputError, match="different scales"):
        evaluate(noisy.astype(np.uint16), truth, VOXEL)
    with pytest.raises(InputError, match="at least 11"):
        ssim(truth[:10], noisy[:10], 255)
    with pytest.raises(InputError, match="data range"):
        psnr(truth, noisy, 0)
    with pytest.raises(InputError, match="dtype bool"):
        psnr(truth > 100, noisy > 100, 1)
