"""Values that stand for no data are found and named; constant padding at the sides stays out of everything."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from emformer_hub.errors import InputError
from emformer_hub.volumes import StoredArray, check_volume
from emformer_hub.volumes.unmeasured import framed, not_measured, tissue

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
