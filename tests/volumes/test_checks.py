"""What a volume must be, and whether the message says where it is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emformer_hub.errors import InputError
from emformer_hub.volumes import check_volume, read_volume, write_volume

from .conftest import ANISOTROPIC, make_volume


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float16", "float32", "float64", ">u2"])
def test_images_pass(dtype: str) -> None:
    check_volume(make_volume(np.dtype(dtype).newbyteorder("=").name).astype(dtype), "a.tif")


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((20, 14), "2-D image"),
        ((20, 14, 3), "RGB"),
        ((6, 20, 14, 4), "RGB"),
        ((2, 6, 20, 14), "4 of them longer than 1.*[Cc]hoose one channel"),
        ((1, 6, 20, 14), "3 of them longer than 1.*Remove the axes of length 1"),
        ((3, 20, 14), "3 sections.*at least 4"),
        ((1, 20, 14), r"1 section \("),
        ((6, 0, 14), "empty"),
    ],
)
def test_shapes_that_are_no_stack(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(InputError, match=rf"a\.tif.*{message}"):
        check_volume(np.arange(np.prod(shape), dtype=np.float32).reshape(shape), "a.tif")


@pytest.mark.parametrize("dtype", ["bool", "int64", "complex64", "uint32", "int8"])
def test_dtypes_that_are_refused(dtype: str) -> None:
    with pytest.raises(InputError, match=rf"a\.tif holds {dtype}.*expected.*uint8.*Convert"):
        check_volume(np.zeros((6, 20, 14), dtype), "a.tif")


@given(
    broken=st.sets(st.tuples(st.integers(0, 4), st.integers(0, 5), st.integers(0, 6)), min_size=1, max_size=9),
    value=st.sampled_from([np.nan, np.inf, -np.inf]),
)
def test_non_finite_voxels_are_counted_and_the_first_is_named(broken: set[tuple[int, int, int]], value: float) -> None:
    data = make_volume("float32", (5, 6, 7))
    for position in broken:
        data[position] = value
    z, y, x = min(broken)
    with pytest.raises(
        InputError, match=rf"has {len(broken)} NaN or infinite voxels?, the first at z={z}, y={y}, x={x};"
    ):
        check_volume(data, "a.tif")


def test_a_constant_volume_is_refused_and_one_voxel_makes_an_image() -> None:
    data = np.full((5, 6, 7), 7, np.uint8)
    with pytest.raises(InputError, match="constant: every voxel is 7"):
        check_volume(data, "a.tif")
    data[-1, -1, -1] = 8
    check_volume(data, "a.tif")


def test_memory_maps_are_checked_in_place(tmp_path: Path) -> None:
    data = make_volume("float32")
    data[3, 2, 1] = np.nan
    write_volume(tmp_path / "a.tif", data, ANISOTROPIC)
    mapped = read_volume(tmp_path / "a.tif").data
    with pytest.raises(InputError, match="1 NaN or infinite voxel, the first at z=3, y=2, x=1;"):
        check_volume(mapped, "a.tif")
