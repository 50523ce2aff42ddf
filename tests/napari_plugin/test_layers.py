"""A layer is read as what it is: its voxels, its size, its place; or it is refused with the way out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from emformer_hub.errors import InputError
from emformer_hub.geometry import SectionModel, VoxelSize
from emformer_hub.interpolation import interpolate

pytest.importorskip("napari", reason="needs napari and pytest-qt: make test-napari")

import dask.array as da
from napari.layers import Image, Shapes

from emformer_hub.napari_plugin.layers import interpolated, region_of, stack_of, voxel_size_of

NM = ("nanometer",) * 3


@pytest.mark.parametrize(
    ("scale", "unit", "expected"),
    [
        ((40, 4, 4), "nm", VoxelSize(40, 4, 4)),
        ((0.04, 0.004886, 0.004886), "um", VoxelSize(40, 4.886, 4.886)),
        ((400, 40, 40), "angstrom", VoxelSize(40, 4, 4)),
        ((40, 4, 4), "pixel", None),
        ((1, 1, 1), None, None),
    ],
)
def test_a_voxel_size_is_what_scale_and_units_state(
    scale: tuple[float, ...], unit: str | None, expected: VoxelSize | None
) -> None:
    layer = Image(np.zeros((4, 8, 8), np.uint8), scale=scale, units=None if unit is None else (unit,) * 3)
    assert voxel_size_of(layer) == expected


def test_voxels_are_those_of_the_layer_however_it_holds_them(sections: np.ndarray) -> None:
    lazy = da.from_array(sections, chunks=(4, 16, 16))
    big_endian = sections.astype(">u2")
    for data in (sections, sections[None, None], lazy, lazy[None], [lazy, lazy[:, ::2, ::2]], big_endian):
        stack = stack_of(Image(data, multiscale=isinstance(data, list)), None)
        assert not stack.stored and stack.volume.data.dtype.isnative
        np.testing.assert_array_equal(np.asarray(stack.volume.data[2:9, 3:30, 5:]), sections[2:9, 3:30, 5:])


@pytest.mark.parametrize(
    ("data", "keywords", "message"),
    [
        (np.zeros((6, 40, 40, 3), np.uint8), {"rgb": True}, "Split RGB"),
        (np.zeros((2, 6, 40, 40), np.uint8), {}, "Split Stack"),
        (np.zeros((40, 40), np.uint8), {}, "expected one grey-value stack"),
        (np.zeros((6, 40, 40), np.uint8), {"axis_labels": ("x", "y", "z")}, "expected z, y, x"),
        (np.zeros((6, 40, 40), np.uint8), {"rotate": (0, 0, 30)}, "rotated"),
        (np.zeros((6, 40, 40), np.uint8), {"affine": np.diag([1, 2, 2, 1])}, "scaled in the viewer"),
    ],
)
def test_what_is_no_stack_is_refused_with_the_way_out(data: np.ndarray, keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        stack_of(Image(data, **keywords), None)


def rectangle(z: float, y: tuple[float, float], x: tuple[float, float]) -> np.ndarray:
    return np.array([(z, y[0], x[0]), (z, y[1], x[0]), (z, y[1], x[1]), (z, y[0], x[1])])


def test_a_rectangle_is_a_region_of_the_stack_in_its_voxels() -> None:
    stack = Image(np.zeros((200, 100, 80), np.uint8), scale=(40, 8, 8), units=NM, translate=(400, 80, 0))
    drawn = Shapes([rectangle(4400, (160, 320), (-50, 160))], units=NM, ndim=3)  # on section 100
    assert region_of(drawn, stack) == (slice(68, 132), slice(10, 31), slice(0, 21))
    micrometres = Shapes([rectangle(4.4, (0.16, 0.32), (0, 0.16))], units=("um",) * 3, ndim=3)
    assert region_of(micrometres, stack) == (slice(68, 132), slice(10, 31), slice(0, 21))
    flat = Shapes([rectangle(0, (160, 320), (0, 160))[:, 1:]], units=NM[1:])
    assert region_of(flat, stack) == (slice(68, 132), slice(10, 31), slice(0, 21))


def test_shapes_beside_the_stack_or_none_at_all_are_refused() -> None:
    stack = Image(np.zeros((20, 100, 80), np.uint8), scale=(40, 8, 8), units=NM)
    with pytest.raises(InputError, match="beside layer"):
        region_of(Shapes([rectangle(0, (5000, 6000), (0, 100))], units=NM, ndim=3), stack)
    with pytest.raises(InputError, match="draw a rectangle"):
        region_of(Shapes(ndim=3), stack)


@pytest.mark.parametrize("factor", [3, 4.886])
def test_interpolation_where_it_is_looked_at_is_interpolation(sections: np.ndarray, factor: float) -> None:
    geometry = SectionModel(factor, 0.5)
    whole = interpolate(sections, geometry, "cubic")
    lazy = interpolated(sections, geometry)
    assert lazy.shape == whole.shape
    np.testing.assert_allclose(lazy[:], whole, atol=1e-3)
    np.testing.assert_allclose(lazy[7:20:3, 5:9, 40], whole[7:20:3, 5:9, 40], atol=1e-3)
