"""The main job: what a reconstruction is, whatever the dtype, factor, tiling and ensemble."""

from __future__ import annotations

import itertools
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from emformer_hub.configuration_emformer import EMformerConfig
from emformer_hub.errors import InputError
from emformer_hub.geometry import SectionModel, VoxelSize
from emformer_hub.interpolation import interpolate
from emformer_hub.modeling_emformer import EMformerModel
from emformer_hub.modes import MODES
from emformer_hub.processing_emformer import EMformerProcessor
from emformer_hub.reconstruction import Reconstruction, blocks, reconstruct
from emformer_hub.uncertainty import LAPLACE, ErrorQuantiles
from emformer_hub.volumes import read_volume, write_volume
from emformer_hub.volumes.phantom import neuropil

FACTORS = [1, 1.5, 4, 6.7, 8.333, 10, 12, 16]


def build(**sizes: int) -> EMformerModel:
    """A model as if trained: no parameter is at the zero that some of them start from."""
    torch.manual_seed(0)
    config = EMformerConfig(**sizes, window_size=(2, 2, 4), num_basis=6, num_scale_basis=3, condition_size=8)
    model = EMformerModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


@pytest.fixture(scope="module")
def tiny() -> EMformerModel:
    return build(hidden_size=16, num_hidden_layers=2)


@pytest.fixture(scope="module")
def cubic() -> EMformerModel:
    """A model that adds nothing: its value is cubic interpolation, its scale one standard deviation."""
    model = build(hidden_size=8, num_hidden_layers=1)
    with torch.no_grad():
        model.decoder.coefficients.weight.zero_()
        model.decoder.coefficients.bias.zero_()
    return model


def run(volume: np.ndarray, model: EMformerModel | str, factor: float = 4, **options) -> Reconstruction:
    return reconstruct(
        volume, factor=factor, model=model, **{"device": "cpu", "precision": "float32", "progress": False} | options
    )


def as_dtype(volume: np.ndarray, dtype: str) -> np.ndarray:
    """The grey levels of ``volume``, spread over the range of another dtype."""
    if np.dtype(dtype).kind == "f":
        return (volume / 255 - 0.3).astype(dtype)
    limits = np.iinfo(dtype)
    return (volume * ((limits.max - limits.min) / 255) + limits.min).astype(dtype)


def expected_cubic(volume: np.ndarray, sections: SectionModel) -> np.ndarray:
    values = interpolate(volume, sections, "cubic")
    if volume.dtype.kind == "f":
        return values.astype(volume.dtype)
    limits = np.iinfo(volume.dtype)
    return np.rint(values).clip(limits.min, limits.max).astype(volume.dtype)


def difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(np.float64) - b).max())


@pytest.fixture(scope="module")
def stack() -> np.ndarray:
    """8 sections of 40 x 24, uint8."""
    stack = neuropil((16, 40, 24), seed=1)[::2].copy()
    stack.flags.writeable = False
    return stack


# --- shape, dtype and value --------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", FACTORS)
def test_any_factor_gives_the_planes_of_the_same_extent(cubic: EMformerModel, stack: np.ndarray, factor: float) -> None:
    result = run(stack, cubic, factor)
    assert result.volume.shape == (round(8 * factor), 40, 24)
    assert result.uncertainty.shape == result.volume.shape
    assert result.factor == factor


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float16", "float32", "float64"])
def test_the_dtype_of_the_input_returns(cubic: EMformerModel, stack: np.ndarray, dtype: str) -> None:
    volume = as_dtype(stack, dtype)
    untouched = volume.copy()
    result = run(volume, cubic, 2.5)
    assert (result.volume.dtype, result.uncertainty.dtype) == (volume.dtype, np.float32)
    np.testing.assert_array_equal(volume, untouched)
    rounding = np.ptp(volume.astype(np.float64)) / 255 if volume.dtype.kind == "f" else 1
    assert difference(result.volume, expected_cubic(volume, SectionModel(2.5))) <= rounding


@pytest.mark.parametrize("thickness", [1.0, 0.25])
@pytest.mark.parametrize("factor", FACTORS)
def test_a_network_that_adds_nothing_interpolates(
    cubic: EMformerModel, stack: np.ndarray, factor: float, thickness: float
) -> None:
    result = run(stack, cubic, factor, thickness=thickness)
    assert difference(result.volume, expected_cubic(stack, SectionModel(factor, thickness))) <= 1


@pytest.mark.parametrize("offset", [0.0, 1.0, 3.0])
def test_planes_lie_where_the_imaged_part_says(cubic: EMformerModel, stack: np.ndarray, offset: float) -> None:
    volume = stack.astype(np.float32)
    expected = interpolate(volume, SectionModel(4, 0.25, offset), "cubic")
    result = run(volume, cubic, 4, thickness=0.25, offset=offset, ensemble=4)
    np.testing.assert_allclose(result.volume, expected, atol=1e-3)
    assert difference(expected, interpolate(volume, SectionModel(4, 0.25), "cubic")) > 10  # the offset matters


@settings(max_examples=15, deadline=None)
@given(
    shape=st.tuples(st.integers(4, 40), st.integers(1, 60), st.integers(5, 60)),
    tile=st.tuples(st.sampled_from([16, 20, 24]), st.sampled_from([40, 48]), st.sampled_from([40, 64])),
    factor=st.floats(1, 3),
    ensemble=st.sampled_from([1, 2, 4]),
)
def test_any_shape_and_any_tiling_interpolates_without_seams(
    cubic: EMformerModel, shape: tuple[int, int, int], tile: tuple[int, int, int], factor: float, ensemble: int
) -> None:
    volume = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    result = run(volume, cubic, factor, tile_zyx=tile, ensemble=ensemble)
    np.testing.assert_allclose(result.volume, interpolate(volume, SectionModel(factor), "cubic"), atol=1e-4)
    np.testing.assert_allclose(result.uncertainty, result.uncertainty[0, 0, 0], rtol=1e-4)


# --- blocks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [2, 3.3])
@pytest.mark.parametrize(
    ("axis", "length", "tile", "halo"), [(0, 80, 60, 18), (1, 128, 104, 40), (2, 168, 120, 48)], ids=["z", "y", "x"]
)
def test_blocks_that_see_as_far_as_the_network_does_leave_no_trace(
    tiny: EMformerModel, monkeypatch: pytest.MonkeyPatch, axis: int, length: int, tile: int, halo: int, factor: float
) -> None:
    shape, tile_zyx, halo_zyx = [6, 8, 16], [999, 999, 999], list(blocks.HALO_ZYX)
    shape[axis], tile_zyx[axis], halo_zyx[axis] = length, tile, halo
    monkeypatch.setattr(blocks, "HALO_ZYX", tuple(halo_zyx))
    volume = np.random.default_rng(0).normal(100, 40, shape).astype(np.float32)
    whole = run(volume, tiny, factor, tile_zyx=(999, 999, 999))
    divided = run(volume, tiny, factor, tile_zyx=tuple(tile_zyx))
    np.testing.assert_allclose(divided.volume, whole.volume, atol=1e-3)
    np.testing.assert_allclose(divided.uncertainty, whole.uncertainty, atol=1e-3)


def test_memory_beside_the_result_does_not_grow_with_the_volume(
    tiny: EMformerModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "HALO_ZYX", (2, 4, 4))

    def beside(side: int) -> int:
        """Bytes of numpy arrays at the peak, less those of the result."""
        volume = np.random.default_rng(0).integers(0, 256, (12, side, side), np.uint8)
        tracemalloc.start()
        result = run(volume, tiny, 16, tile_zyx=(8, 48, 48), ensemble=1)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak - result.volume.nbytes - result.uncertainty.nbytes

    small, large = beside(80), beside(200)  # 2 x 2 and 5 x 5 blocks
    assert 0 < large < 1.25 * small


def test_a_memory_map_gives_what_the_array_gives(tiny: EMformerModel, stack: np.ndarray, tmp_path: Path) -> None:
    write_volume(tmp_path / "stack.tif", stack, VoxelSize(40, 4, 4))
    mapped = read_volume(tmp_path / "stack.tif").data
    assert isinstance(mapped, np.memmap)
    np.testing.assert_array_equal(run(mapped, tiny).volume, run(stack, tiny).volume)


def test_the_same_input_gives_the_same_output(tiny: EMformerModel, stack: np.ndarray) -> None:
    first, second = run(stack, tiny), run(stack, tiny)
    np.testing.assert_array_equal(first.volume, second.volume)
    np.testing.assert_array_equal(first.uncertainty, second.uncertainty)


def test_a_loaded_model_states_the_intervals_that_its_name_does(stack: np.ndarray) -> None:
    loaded = EMformerModel.from_pretrained("emformer-tiny")
    named, given = (
        reconstruct(stack, factor=4, model=model, progress=False).half_width(0.9) for model in ("emformer-tiny", loaded)
    )
    np.testing.assert_array_equal(named, given)
    loaded.name_or_path = "a folder that was removed"
    assert (reconstruct(stack, factor=4, model=loaded, progress=False).half_width(0.9) != named).any()


def test_a_folder_is_as_good_as_a_loaded_model(tiny: EMformerModel, stack: np.ndarray, tmp_path: Path) -> None:
    tiny.save_pretrained(tmp_path)
    EMformerProcessor().save_pretrained(tmp_path)
    assert difference(run(stack, str(tmp_path)).volume, run(stack, tiny).volume) <= 1  # attention may be computed fused


# --- ensemble ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ensemble", [2, 4, 8, 16])
def test_y_and_x_are_treated_alike(tiny: EMformerModel, stack: np.ndarray, ensemble: int) -> None:
    volume = stack.astype(np.float32)
    result = run(volume, tiny, 3.3, ensemble=ensemble)
    transposed = run(volume.transpose(0, 2, 1), tiny, 3.3, ensemble=ensemble)
    np.testing.assert_allclose(transposed.volume.transpose(0, 2, 1), result.volume, atol=1e-3)
    np.testing.assert_allclose(transposed.uncertainty.transpose(0, 2, 1), result.uncertainty, rtol=1e-3)


@pytest.mark.parametrize(
    ("ensemble", "axes"), [(4, [0]), (8, [0]), (16, [0, 1, 2])], ids=lambda value: str(value).replace(" ", "")
)
@pytest.mark.parametrize("factor", [4, 1.5])
def test_mirrored_input_gives_mirrored_output(
    tiny: EMformerModel, stack: np.ndarray, ensemble: int, axes: list[int], factor: float
) -> None:
    volume = stack.astype(np.float32)
    result = run(volume, tiny, factor, ensemble=ensemble)
    for axis in axes:
        mirrored = run(np.flip(volume, axis), tiny, factor, ensemble=ensemble)
        np.testing.assert_allclose(np.flip(mirrored.volume, axis), result.volume, atol=1e-3)
        np.testing.assert_allclose(np.flip(mirrored.uncertainty, axis), result.uncertainty, rtol=1e-3)


def test_every_pass_counts(tiny: EMformerModel, stack: np.ndarray) -> None:
    volume = stack.astype(np.float32)
    values = [run(volume, tiny, ensemble=ensemble).volume for ensemble in (1, 2, 4, 8, 16)]
    for fewer, more in itertools.pairwise(values):
        assert difference(fewer, more) > 1e-3


# --- uncertainty -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ensemble", [1, 2])
def test_uncertainty_is_positive(tiny: EMformerModel, stack: np.ndarray, ensemble: int) -> None:
    uncertainty = run(stack, tiny, ensemble=ensemble).uncertainty
    assert np.isfinite(uncertainty).all() and (uncertainty > 0).all()


def test_uncertainty_is_the_standard_deviation_of_the_stated_distribution(
    cubic: EMformerModel, stack: np.ndarray
) -> None:
    # a Laplace distribution of scale 1, in standard deviations of the volume; the passes agree
    volume = stack.astype(np.float32)
    clipped = volume.clip(*np.percentile(volume, [0.5, 99.5]))
    np.testing.assert_allclose(run(volume, cubic).uncertainty, np.sqrt(2) * clipped.std(), rtol=1e-3)


def test_the_truth_lies_farther_away_with_a_higher_probability(tiny: EMformerModel, stack: np.ndarray) -> None:
    result = run(stack, tiny)
    widths = [result.half_width(probability) for probability in (0.5, 0.9, 0.95, 0.99)]
    assert all(width.shape == result.volume.shape and width.dtype == np.float32 for width in widths)
    assert all((narrow < wide).all() for narrow, wide in itertools.pairwise(widths))
    assert not result.half_width(0).any()
    with pytest.raises(InputError, match=r"probability is 95; expected a fraction from 0 to 0\.99, as in 0\.95"):
        result.half_width(95)


@pytest.mark.parametrize(("thickness", "times"), [(1.0, 3), (0.25, 2), (0.625, 2.5)])
def test_half_widths_are_the_uncertainty_times_what_the_weights_folder_says(
    tiny: EMformerModel, stack: np.ndarray, tmp_path: Path, thickness: float, times: float
) -> None:
    processor = EMformerProcessor()
    quantiles = ErrorQuantiles(*(tuple(n * multiple for multiple in LAPLACE) for n in (3, 2)))
    processor.calibrate(dict.fromkeys(MODES, quantiles))
    tiny.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    result = run(stack, str(tmp_path), 4, thickness=thickness)
    for probability in (0.5, 0.95):
        interval = processor.interval(probability, SectionModel(4, thickness))
        assert interval == pytest.approx(times * EMformerProcessor().interval(probability, SectionModel(4, thickness)))
        np.testing.assert_allclose(result.half_width(probability), result.uncertainty * interval, rtol=1e-6)


def test_grey_levels_in_other_units_give_the_result_in_those_units(tiny: EMformerModel, stack: np.ndarray) -> None:
    in_8_bit, in_16_bit = run(stack, tiny), run(stack.astype(np.uint16) * 257, tiny)
    assert difference(in_16_bit.volume, in_8_bit.volume.astype(np.float64) * 257) <= 257 / 2 + 1  # 8-bit rounding
    np.testing.assert_allclose(in_16_bit.uncertainty, in_8_bit.uncertainty * 257, rtol=1e-3)
    in_float = run(stack.astype(np.float32) / 1000 - 5, tiny)
    assert difference(((in_float.volume + 5) * 1000).clip(0, 255), in_8_bit.volume) <= 0.5 + 0.01
    np.testing.assert_allclose(in_float.uncertainty * 1000, in_8_bit.uncertainty, rtol=1e-3)


# --- options -----------------------------------------------------------------------------------------------------


def test_bfloat16_is_close_to_float32(tiny: EMformerModel, stack: np.ndarray) -> None:
    found, expected = run(stack, tiny, precision="bfloat16"), run(stack, tiny)
    assert 0 < np.abs(found.volume.astype(float) - expected.volume).mean() < 0.5
    assert set(np.unique(run(stack, tiny, precision="auto").volume)) <= set(range(256))


@pytest.mark.parametrize("device", [None, "auto", "cpu", torch.device("cpu")], ids=str)
def test_devices_by_any_name(tiny: EMformerModel, stack: np.ndarray, device: str | torch.device | None) -> None:
    assert difference(run(stack, tiny, device=device).volume, run(stack, tiny).volume) <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"factor": 0.5}, "factor is 0.5; expected 1 to 16"),
        ({"factor": 17}, "factor is 17; expected 1 to 16"),
        ({"factor": float("nan")}, "factor is nan; expected 1 to 16"),
        ({"thickness": 0}, r"thickness is 0; expected .* \(0, 1\]"),
        ({"thickness": 1.1}, "thickness is 1.1; expected"),
        ({"thickness": 0.5, "offset": 3}, "offset is 3 planes; expected 0 to 2"),
        ({"ensemble": 3}, "ensemble is 3; expected one of 1, 2, 4, 8, 16"),
        ({"ensemble": 0}, "ensemble is 0; expected one of"),
        ({"precision": "fp8"}, "precision is 'fp8'; expected auto, float32 or bfloat16"),
        ({"device": "tpu"}, "device 'tpu' is unknown; expected auto, cpu, cuda, xpu, mps"),
        ({"tile_zyx": (24, 16, 192)}, "tile_zyx .*halo of .*expected at least"),
        ({"tile_zyx": (4, 192, 192)}, "tile_zyx .*halo of .*expected at least"),
        ({"model": "emformer-huge"}, "model 'emformer-huge' is not known; expected one of .*emformer-small"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_bad_arguments_are_named(tiny: EMformerModel, stack: np.ndarray, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        run(stack, **{"model": tiny} | options)


def nan_at(volume: np.ndarray, value: float) -> np.ndarray:
    damaged = volume.astype(np.float32)
    damaged[2, 3, 4] = value
    return damaged


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda stack: stack[0], "2-D image"),
        (lambda stack: np.stack([stack] * 3, axis=-1), "RGB"),
        (lambda stack: stack[:3], "3 sections.*at least 4"),
        (lambda stack: nan_at(stack, np.nan), "1 NaN or infinite voxel, the first at z=2, y=3, x=4"),
        (lambda stack: nan_at(stack, -np.inf), "1 NaN or infinite voxel"),
        (lambda stack: np.full_like(stack, 7), "constant: every voxel is 7"),
        (lambda stack: stack.astype(np.int64), "int64 voxels; expected"),
    ],
    ids=["2-D", "RGB", "3 sections", "NaN", "infinite", "constant", "int64"],
)
def test_bad_volumes_are_named(tiny: EMformerModel, stack: np.ndarray, spoil, message: str) -> None:
    with pytest.raises(InputError, match=message):
        run(spoil(stack), tiny)


# --- memory ------------------------------------------------------------------------------------------------------


class SmallMemory:
    """Runs out of memory where the network sees more than so many voxels."""

    def __init__(self, model: EMformerModel, voxels: int, monkeypatch: pytest.MonkeyPatch):
        self.largest = 0
        stream = model.stream

        def limited(clip: torch.Tensor, *arguments: object, **options: object) -> object:
            if clip.numel() > voxels:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            self.largest = max(self.largest, clip.numel())
            return stream(clip, *arguments, **options)

        monkeypatch.setattr(model, "stream", limited)


def test_blocks_that_memory_does_not_hold_are_made_in_quarters(
    tiny: EMformerModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    volume = neuropil((16, 96, 120))
    whole = run(volume, tiny)
    memory = SmallMemory(tiny, volume.size // 2, monkeypatch)
    quartered = run(volume, tiny)
    assert 0 < memory.largest <= volume.size // 2
    assert difference(quartered.volume, whole.volume) <= 1  # grey level
    assert "not enough memory on cpu (CUDA out of memory" in caplog.text


def test_too_little_memory_for_any_block_is_said(tiny: EMformerModel, monkeypatch: pytest.MonkeyPatch) -> None:
    SmallMemory(tiny, 100, monkeypatch)
    with pytest.raises(InputError, match=r"not enough memory on cpu, even for the smallest blocks.*another device"):
        run(neuropil((16, 96, 120)), tiny)
