"""Values that stand for no data are found and named; constant padding at the sides stays out of everything."""

from __future__ import annotations

from itertools import combinations, product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emformer_hub.errors import InputError
from emformer_hub.volumes import StoredArray, check_volume
from emformer_hub.volumes.padding import framed, tissue
from emformer_hub.volumes.phantom import neuropil
from emformer_hub.volumes.unmeasured import (
    filled,
    hidden_voxels,
    margin_value,
    margins,
    measured_box,
    not_measured,
)

from .conftest import make_volume

STACK = np.random.default_rng(0).integers(50, 200, (6, 24, 20)).astype(np.float64)


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        ("float32", 3.4e38),
        ("float32", -3.4e38),
        ("float32", np.finfo(np.float32).max),
        ("float32", 1e30),
        ("float64", 1e35),
        ("float32", np.nan),
        ("float16", np.inf),
        ("float64", -np.inf),
        ("int16", -32768),
        ("float32", -32768),
        ("float64", -9999),
    ],
)
@pytest.mark.parametrize("count", [1, 40])
def test_marks_of_no_data_are_named_with_their_place(dtype: str, value: float, count: int) -> None:
    data = STACK.astype(dtype)
    data[4, 5, 6] = value
    data[5].ravel()[: count - 1] = value
    plural = "" if count == 1 else "s"
    with pytest.raises(InputError, match=rf"a has {count} .*voxel{plural}.* z=4, y=5, x=6.*--repair"):
        check_volume(data, "a")
    mask = np.zeros(data.shape, bool)
    mask[4, 5, 6] = mask[5] = True
    check_volume(data, "a", mask)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float16", "float32", "float64"])
def test_measured_values_are_measured(dtype: str) -> None:
    assert not_measured(make_volume(dtype)) is None


def test_a_value_that_is_not_alone_is_a_grey_value() -> None:
    data = np.linspace(-32768, 32767, 1000).astype(np.int16)
    assert not_measured(data) is None and not_measured(data.astype(np.float32)) is None
    assert not_measured(np.full(10, -32768, np.int16)) is None


@pytest.mark.parametrize("value", [0, 255, 127])
@pytest.mark.parametrize("sides", [(24, 24, 28, 28), (0, 8, 0, 0), (4, 0, 0, 17), (0, 0, 5, 0)], ids=str)
@pytest.mark.parametrize("stored", [False, True], ids=["array", "stored"])
def test_constant_padding_is_found_and_put_back(value: int, sides: tuple[int, ...], stored: bool) -> None:
    top, bottom, left, right = sides
    data = np.pad(STACK.astype(np.uint8), ((0, 0), (top, bottom), (left, right)), constant_values=value)
    volume: Any = StoredArray(data.shape, data.dtype, (1, 8, 8), data.__getitem__) if stored else data
    padding = tissue(volume)
    assert padding is not None and padding.value == value
    np.testing.assert_array_equal(padding.crop(volume)[:], STACK)
    np.testing.assert_array_equal(padding.crop(volume)[1:5:2, 3, ::2], STACK[1:5:2, 3, ::2])
    whole = framed(padding.crop(volume), data.shape[1:], padding, value)
    np.testing.assert_array_equal(whole[:], data)
    np.testing.assert_array_equal(whole[2:4, 1:-1:3, -9:], data[2:4, 1:-1:3, -9:])


def test_padding_that_one_section_does_not_have_is_tissue() -> None:
    data = np.pad(STACK.astype(np.uint8), ((0, 0), (8, 8), (8, 8)))
    data[1, 2, 3] = 9
    padding = tissue(data)
    assert padding is not None and (padding.rows.start, padding.columns.start) == (2, 3)
    data[1, 0, 0] = data[1, -1, -1] = 9
    assert tissue(data) is None


@pytest.mark.parametrize("data", [STACK, np.zeros((6, 24, 20)), np.pad(STACK[:, :9, :9], 20)[20:-20]], ids=str)
def test_a_stack_without_padding_or_without_much_else_is_left_alone(data: np.ndarray) -> None:
    assert tissue(data) is None


# --- margins that differ from section to section ---------------------------------------------------------------------

TISSUE = neuropil((16, 90, 100))[:10]


def turned(value: int) -> tuple[np.ndarray, np.ndarray]:
    """Sections of which each is shifted and sheared by itself, and where nothing is."""
    outside = np.zeros(TISSUE.shape, bool)
    rows, columns = np.mgrid[:90, :100]
    for z, section in enumerate(outside):
        section[:z] = True
        section |= (columns < 3 * z - rows // 2) | (rows + columns > 188 - 3 * z) | (columns >= 100 - z // 2)
    return np.where(outside, value, TISSUE).astype(np.uint8), outside


@pytest.mark.parametrize("value", [0, 255, 128])
@pytest.mark.parametrize("chunks", [None, (1, 90, 100), (4, 32, 32)], ids=str)
def test_margins_of_sections_that_were_turned_are_found(value: int, chunks: tuple[int, int, int] | None) -> None:
    data, outside = turned(value)
    stored: Any = data if chunks is None else StoredArray(data.shape, data.dtype, chunks, data.__getitem__)
    assert margin_value(stored) == value
    found = margins(stored, value)
    missed = found[:] ^ outside
    assert missed.mean() < 1e-3 and not (missed & (data != value)).any()
    np.testing.assert_array_equal(found[2:7:2, 5:, ::3], found[:][2:7:2, 5:, ::3])
    np.testing.assert_array_equal(found[4, 80:90, 90:100], found[:][4, 80:90, 90:100])


@pytest.mark.parametrize("value", [0, 255])
def test_what_is_saturated_is_no_margin(value: int) -> None:
    """Resin that is brighter than the camera can tell, at all corners: it fades in, with noise."""
    y, x = np.mgrid[:90, :100] - 50
    bright = 130 + 250 * np.clip(np.hypot(y, x) / 8 - 4, 0, 1) + np.random.default_rng(0).normal(0, 15, TISSUE.shape)
    data = bright.clip(0, 255).astype(np.uint8)
    assert (data[:, :8, :8] == 255).mean() > 0.9
    assert margin_value(data if value else 255 - data) is None


def test_a_blank_section_makes_no_margin_and_neither_does_tissue() -> None:
    data = TISSUE.copy()
    assert margin_value(data) is None
    data[4] = 0
    assert margin_value(data) is None
    assert margin_value(np.zeros_like(data)) is None
    assert margin_value(np.full(data.shape, np.nan)) is None


def test_wide_margins_around_little_tissue_are_found() -> None:
    data = np.zeros((6, 1500, 1500), np.uint8)
    data[:, 700:800, 700:790] = TISSUE[:6, :, :].repeat(2, 1)[:, :100, :90]
    assert margin_value(data) == 0


def test_masked_arrays_marks_and_masks_hide() -> None:
    data, _ = turned(0)
    measured = np.ones(data.shape, np.float32)
    measured[2, 3, 4], measured[2, 3, 5] = 0, np.nan
    data[5, 6, 7] = 201
    masked = np.ma.array(np.where(data == 201, 200, data), mask=False)
    masked[1, 1, 1] = np.ma.masked
    hidden = hidden_voxels(masked, "a", 200, measured)
    assert hidden is not None
    expected = (masked.data == 200) | (measured != 1)
    expected[1, 1, 1] = True
    np.testing.assert_array_equal(hidden[:], expected)
    np.testing.assert_array_equal(hidden[1:9:3, ::2, 3], expected[1:9:3, ::2, 3])
    assert hidden_voxels(data, "a") is None


@pytest.mark.parametrize("mark", [3.4e38, -3.4e38, 1e30])
def test_a_huge_mark_need_not_be_typed_to_the_last_digit(mark: float) -> None:
    data = STACK.astype(np.float32)
    data[1, 2, 3] = np.copysign(np.finfo(np.float32).max, mark)
    hidden = hidden_voxels(data, "a", mark)
    assert hidden is not None and np.argwhere(hidden[:]).tolist() == [[1, 2, 3]]


@pytest.mark.parametrize("mark", [-1, 256, 0.5, np.nan, 3.4e38])
def test_a_mark_that_no_voxel_can_have_is_refused(mark: float) -> None:
    with pytest.raises(InputError, match="uint8 voxels, none of which"):
        hidden_voxels(STACK.astype(np.uint8), "a", mark)


def test_filled_sections_look_like_their_neighbours() -> None:
    data = STACK.astype(np.uint8)
    unmeasured = np.zeros(data.shape, bool)
    unmeasured[2, 3:5, 3:5] = unmeasured[3, 3, 3] = unmeasured[:, 9, 9] = unmeasured[4] = True
    stored = StoredArray(data.shape, np.dtype(bool), (1, 24, 20), unmeasured.__getitem__)
    seen = filled(data, stored)[:]
    np.testing.assert_array_equal(seen[2, 3:5, 3:5], data[1, 3:5, 3:5])
    assert seen[3, 3, 3] == data[5, 3, 3] or seen[3, 3, 3] == data[1, 3, 3]
    assert seen[1, 9, 9] == int(np.median(data[1][~unmeasured[1]]))
    np.testing.assert_array_equal(seen[4], data[4])
    np.testing.assert_array_equal(seen[~unmeasured], data[~unmeasured])


@given(st.integers(0, 2**32 - 1), st.floats(0, 0.05))
@settings(max_examples=30, deadline=None)
def test_the_measured_box_is_measured_and_the_largest(seed: int, share: float) -> None:
    shape = (4, 6, 7)
    unmeasured = np.random.default_rng(seed).random(shape) < share
    stored = StoredArray(shape, np.dtype(bool), (1, 6, 7), unmeasured.__getitem__)
    box = measured_box(stored, tuple(slice(0, length) for length in shape))  # type: ignore[arg-type]
    assert not unmeasured[box].any()
    sides = [list(combinations(range(length + 1), 2)) for length in shape]
    largest = max(
        (z[1] - z[0]) * (y[1] - y[0]) * (x[1] - x[0])
        for z, y, x in product(*sides)
        if not unmeasured[slice(*z), slice(*y), slice(*x)].any()
    )
    assert unmeasured[box].size == largest


def test_the_measured_box_of_a_large_stack_is_near_the_largest() -> None:
    data, outside = turned(0)
    stored = margins(data, 0)
    box = measured_box(stored, (slice(0, 10), slice(0, 90), slice(0, 100)))
    assert not outside[box].any() and outside[box].size > 0.4 * outside.size
