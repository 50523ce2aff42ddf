"""EMformerProcessor: intensities in, the same intensities out."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from emformer_hub.errors import InputError
from emformer_hub.geometry import SectionModel, VoxelSize
from emformer_hub.loading import load_model
from emformer_hub.modes import MODES
from emformer_hub.processing_emformer import EMformerProcessor
from emformer_hub.reconstruction import reconstruct
from emformer_hub.uncertainty import LAPLACE, ErrorQuantiles
from emformer_hub.volumes import StoredArray, open_volume, write_volume
from emformer_hub.volumes.phantom import neuropil

INTEGERS = ["uint8", "uint16", "int16"]
SHAPE = (4, 24, 32)


def noise(dtype: str, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if np.issubdtype(dtype, np.integer):
        limits = np.iinfo(dtype)
        return rng.integers(limits.min, limits.max, SHAPE, dtype, endpoint=True)
    return rng.normal(300, 20, SHAPE).astype(dtype)


@pytest.fixture
def processor() -> EMformerProcessor:
    return EMformerProcessor()


@given(st.sampled_from(INTEGERS).flatmap(lambda dtype: npst.arrays(dtype, (3, 4, 5))))
def test_integers_come_back_exactly(volume: np.ndarray) -> None:
    processor = EMformerProcessor()
    if volume.min() == volume.max():
        volume[0, 0, 0] ^= 1
    statistics = processor.measure(volume)
    restored = processor.restore(processor.normalise(volume, statistics), statistics)
    assert restored.dtype == volume.dtype
    np.testing.assert_array_equal(restored, volume)


@pytest.mark.parametrize("dtype", INTEGERS)
def test_the_whole_range_of_integers_comes_back_exactly(processor: EMformerProcessor, dtype: str) -> None:
    statistics = processor.measure(noise(dtype))
    limits = np.iinfo(dtype)
    values = np.arange(limits.min, limits.max + 1, dtype=dtype)
    np.testing.assert_array_equal(processor.restore(processor.normalise(values, statistics), statistics), values)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("float64", 1e-6), ("float16", 1e-3)])
def test_floats_come_back_closely(processor: EMformerProcessor, dtype: str, tolerance: float) -> None:
    volume = noise(dtype)
    statistics = processor.measure(volume)
    restored = processor.restore(processor.normalise(volume, statistics), statistics)
    assert restored.dtype == dtype
    np.testing.assert_allclose(restored, volume, rtol=tolerance)


@pytest.mark.parametrize("dtype", [*INTEGERS, "float32"])
def test_normalised_intensities_do_not_depend_on_the_units(dtype: str) -> None:
    processor = EMformerProcessor(percentiles=(0, 100))
    volume = noise(dtype)
    normalised = processor.normalise(volume, processor.measure(volume))
    assert normalised.dtype == np.float32
    assert normalised.mean() == pytest.approx(0, abs=1e-4)
    assert normalised.std() == pytest.approx(1, abs=1e-4)
    in_other_units = volume.astype(np.float64) * 0.03 - 7
    np.testing.assert_allclose(
        processor.normalise(in_other_units, processor.measure(in_other_units)), normalised, atol=1e-4
    )


def test_results_are_rounded_and_clipped_not_wrapped(processor: EMformerProcessor) -> None:
    statistics = processor.measure(noise("uint8"))
    wanted = np.array([-50, -0.4, 0.4, 0.6, 99.6, 254.7, 300])
    restored = processor.restore(((wanted - statistics.mean) / statistics.std).astype(np.float32), statistics)
    np.testing.assert_array_equal(restored, np.array([0, 0, 0, 1, 100, 255, 255], np.uint8))


def test_hot_pixels_do_not_set_the_contrast(processor: EMformerProcessor) -> None:
    clean = np.random.default_rng(0).normal(1000, 50, (8, 64, 64)).clip(0, None).astype(np.uint16)
    hot = clean.copy()
    hot.reshape(-1)[:: hot.size // 50] = 65535
    assert hot.std() > 20 * clean.std()
    expected, found = processor.measure(clean), processor.measure(hot)
    assert found.mean == pytest.approx(expected.mean, abs=0.05 * expected.std)
    assert found.std == pytest.approx(expected.std, rel=0.05)


def test_rare_contrast_is_still_contrast(processor: EMformerProcessor) -> None:
    volume = np.zeros(SHAPE, np.uint8)
    volume[1, 3, 3] = 200  # fewer voxels than the percentiles leave out
    assert processor.measure(volume).std > 0


@pytest.mark.parametrize("dtype", [*INTEGERS, "float32"])
def test_a_constant_volume_is_refused(processor: EMformerProcessor, dtype: str) -> None:
    with pytest.raises(InputError, match="every voxel is 7; expected an image with contrast"):
        processor.measure(np.full(SHAPE, 7, dtype))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_voxels_that_are_not_numbers_are_refused(processor: EMformerProcessor, value: float) -> None:
    volume = noise("float32")
    volume[2, 5, 5] = value
    with pytest.raises(InputError, match="NaN or infinite"):
        processor.measure(volume)


def test_the_scale_is_stretched_and_not_shifted(processor: EMformerProcessor) -> None:
    statistics = processor.measure(noise("uint16"))
    scale = processor.restore_scale(np.array([0, 1, 2.5], np.float32), statistics)
    assert scale.dtype == np.float32
    np.testing.assert_allclose(scale, np.array([0, 1, 2.5]) * statistics.std, rtol=1e-6)


def test_a_volume_on_disk_measures_as_in_memory(processor: EMformerProcessor, tmp_path: Path) -> None:
    volume = noise("uint16")
    mapped = np.memmap(tmp_path / "volume.raw", volume.dtype, "w+", shape=volume.shape)
    mapped[:] = volume
    assert processor.measure(mapped) == processor.measure(volume)


@pytest.mark.parametrize("sample_size", [2**22, 1000])
def test_a_volume_that_stays_on_disk_measures_as_in_memory(tmp_path: Path, sample_size: int) -> None:
    volume = np.random.default_rng(0).integers(0, 60_000, (9, 40, 50), np.uint16)
    write_volume(tmp_path / "a.zarr", volume, VoxelSize(8, 8, 8))
    stored = open_volume(tmp_path / "a.zarr").data
    processor = EMformerProcessor(sample_size=sample_size)
    assert isinstance(stored, StoredArray)
    assert processor.measure(stored) == processor.measure(volume)


def test_a_large_volume_on_disk_is_measured_by_a_few_boxes() -> None:
    """Brightness grows along z and y, so that boxes from one place would not do."""
    read = []

    def voxels(box: tuple[slice, slice, slice]) -> np.ndarray:
        read.append(math.prod(part.stop - part.start for part in box))
        z, y, x = (np.arange(part.start, part.stop, part.step, dtype=np.float32) for part in box)
        return z[:, None, None] / 64 + y[:, None] / 256 + np.zeros_like(x)

    terabyte = StoredArray((6400, 12_800, 12_800), np.dtype("float32"), (64, 256, 256), voxels)
    found = EMformerProcessor(percentiles=(0, 100)).measure(terabyte)
    assert sum(read) <= 2**28 and max(read) <= 2**22
    spread = math.hypot(100, 50) / math.sqrt(12)
    assert found.mean == pytest.approx(75, abs=5 * spread / math.sqrt(len(read)))
    assert found.std == pytest.approx(spread, rel=0.25)


def test_a_large_volume_is_measured_by_a_sample() -> None:
    volume = np.random.default_rng(0).normal(100, 10, (16, 128, 128)).astype(np.float32)
    whole, sampled = EMformerProcessor().measure(volume), EMformerProcessor(sample_size=2**12).measure(volume)
    assert sampled != whole
    assert sampled.mean == pytest.approx(whole.mean, abs=1)
    assert sampled.std == pytest.approx(whole.std, rel=0.1)


def test_settings_survive_saving(tmp_path: Path) -> None:
    EMformerProcessor(percentiles=(1, 98), sample_size=1000).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "emformer"}')  # what makes the folder a model's
    loaded = EMformerProcessor.from_pretrained(tmp_path)
    assert (loaded.percentiles, loaded.sample_size) == ([1, 98], 1000)
    volume = noise("uint8")
    assert loaded.measure(volume) == EMformerProcessor(percentiles=(1, 98), sample_size=1000).measure(volume)


# --- what it knows of the weights' errors ------------------------------------------------------------------------

MEASURED = ErrorQuantiles(full_thickness=tuple(1.5 * m for m in LAPLACE), single_plane=tuple(0.5 * m for m in LAPLACE))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a calibrated processor was saved."""
    processor = EMformerProcessor()
    processor.calibrate({"clean": MEASURED, "faithful": ErrorQuantiles()})
    processor.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "emformer"}')
    return tmp_path


def test_a_calibration_survives_saving(folder: Path) -> None:
    loaded = EMformerProcessor.from_pretrained(folder)
    assert ErrorQuantiles(**loaded.error_quantiles["clean"]) == MEASURED
    for sections in (SectionModel(4), SectionModel(4, 1 / 4), SectionModel(6.7, 0.5)):
        assert loaded.interval(0.95, sections) == MEASURED.multiple(0.95, sections)
        assert loaded.interval(0.95, sections) != EMformerProcessor().interval(0.95, sections)
    for sections in (SectionModel(4), SectionModel(8, 1 / 8)):
        assert loaded.interval(0.95, sections, mode="faithful") == EMformerProcessor().interval(0.95, sections)
    with pytest.raises(InputError, match="mode is 'noisy'"):
        loaded.interval(0.95, SectionModel(4), mode="noisy")  # type: ignore[arg-type]


def test_of_the_planes_of_a_section_one_combination_is_measured(folder: Path) -> None:
    loaded = EMformerProcessor.from_pretrained(folder)  # faithful: LAPLACE; clean: half of it for single planes
    for planes in (1, 1.5, 2, 4, 8):
        sections = SectionModel(8, planes / 8)
        thin = tuple((1 / planes + 0.5 * (1 - 1 / planes)) * multiple for multiple in LAPLACE)
        expected = ErrorQuantiles(single_plane=thin).multiple(0.5, sections)
        assert loaded.interval(0.5, sections, mode="faithful") == pytest.approx(expected)


def test_a_calibration_from_before_there_were_modes_counts_for_both() -> None:
    loaded = EMformerProcessor(error_quantiles={name: list(values) for name, values in vars(MEASURED).items()})
    for mode in MODES:
        assert loaded.interval(0.95, SectionModel(4), mode=mode) == MEASURED.multiple(0.95, SectionModel(4))


def test_a_processor_saved_before_there_was_calibration_takes_errors_for_laplacian(folder: Path) -> None:
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    del settings["error_quantiles"]
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    loaded = EMformerProcessor.from_pretrained(folder)
    for mode in MODES:
        assert ErrorQuantiles(**loaded.error_quantiles[mode]) == ErrorQuantiles()


def test_quantiles_that_are_no_map_are_refused() -> None:
    with pytest.raises(InputError, match=r"error_quantiles: single_plane is .* expected 12 ascending numbers"):
        EMformerProcessor(error_quantiles={"single_plane": [0.5, 1.0]})


# --- loading -----------------------------------------------------------------------------------------------------


def test_unknown_name_is_refused() -> None:
    with pytest.raises(InputError, match="'emformer-smal' is not known"):
        EMformerProcessor.from_pretrained("emformer-smal")


@pytest.mark.parametrize("spoilt", [{"full": [1.0]}, {"single_plane": ["a"] * 12}])
def test_quantiles_of_other_names_or_kinds_are_refused(spoilt: dict[str, list]) -> None:
    with pytest.raises(InputError, match=r"error_quantiles: .*; expected numbers for full_thickness and single_plane"):
        EMformerProcessor(error_quantiles=spoilt)


# --- called as the processors of transformers are ----------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
def test_a_stack_goes_there_and_back_as_in_reconstruct(dtype: str) -> None:
    stacks = [neuropil((48, 20, 24), seed)[::4].astype(dtype) for seed in (0, 1)]
    model, processor = load_model("emformer-tiny")
    inputs = processor(stacks)
    assert inputs["sections"].shape == (2, 20, 12, 24) and inputs["sections"].dtype == torch.float32
    with torch.inference_mode():
        outputs = model(**inputs, factor=4)
    found = processor.post_process(outputs, inputs.statistics)
    settings = {"model": "emformer-tiny", "ensemble": 1, "precision": "float32", "device": "cpu", "progress": False}
    for stack, one in zip(stacks, found, strict=True):
        expected = reconstruct(stack, factor=4, **settings)
        assert one["reconstruction"].dtype == stack.dtype
        np.testing.assert_allclose(one["reconstruction"], expected.volume, atol=1e-3 if dtype == "float32" else 1)
        np.testing.assert_allclose(one["uncertainty"], expected.uncertainty, rtol=1e-3)


def test_what_is_masked_is_not_looked_at(processor: EMformerProcessor) -> None:
    stack, mask = noise("float32"), np.zeros(SHAPE, bool)
    mask[1] = True
    hidden = np.where(mask, np.nan, stack)
    found, expected = processor(hidden, mask), processor(np.where(mask, 7, stack), torch.from_numpy(mask))
    assert torch.equal(found["sections"], expected["sections"]) and found["sections"].isfinite().all()
    assert torch.equal(found["section_mask"][0].swapaxes(0, 1), torch.from_numpy(mask))
    assert isinstance(processor(stack, return_tensors="np")["sections"], np.ndarray)


@pytest.mark.parametrize(
    ("volumes", "masks", "told"),
    [
        (np.zeros((3, 4)), None, r"volumes have the shapes \(3, 4\); expected \(z, y, x\)"),
        ([], None, "volumes have the shapes none"),
        ([noise("uint8"), noise("uint8")[1:]], None, r"have the shapes \[\(3, 24, 32\), \(4, 24, 32\)\]"),
        (noise("uint8"), np.zeros((3, 24, 32), bool), "expected one for all"),
    ],
)
def test_volumes_of_other_shapes_are_refused(
    processor: EMformerProcessor, volumes: object, masks: object, told: str
) -> None:
    with pytest.raises(InputError, match=told):
        processor(volumes, masks)
    with pytest.raises(InputError, match="unexpected keyword argument 'mask'; did you mean 'masks'"):
        processor(noise("uint8"), mask=np.zeros(SHAPE, bool))


def test_clips_of_several_geometries_make_a_batch(processor: EMformerProcessor) -> None:
    def example(planes: int, factor: float) -> dict[str, object]:
        return {"sections": np.zeros((2, 3, 8), "f4"), "labels": np.ones((2, planes, 8), "f4"), "factor": factor}

    batch = processor.collate([example(6, 2.0), example(12, 4.0)])
    assert batch["labels"].shape == (2, 2, 12, 8) and batch["factor"].tolist() == [2.0, 4.0]
    assert batch["labels"][0, :, 6:].isnan().all() and batch["labels"][1].eq(1).all()
    with pytest.raises(InputError, match="expected the same keys in each"):
        processor.collate([example(6, 2.0), {"sections": np.zeros((2, 3, 8))}])
