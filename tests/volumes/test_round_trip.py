"""What is written is read back: every dtype, every spelling of a suffix, the voxel size to the last digit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emformer_hub.errors import InputError
from emformer_hub.geometry import VoxelSize
from emformer_hub.volumes import read_volume, write_volume

from .conftest import ANISOTROPIC, make_volume

SUFFIXES = [".tif", ".tiff", ".ome.tif", ".ome.tiff", ".ome.zarr", ".zarr"]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32", "float64"])
def test_data_and_voxel_size_return_unchanged(tmp_path: Path, suffix: str, dtype: str) -> None:
    data = make_volume(dtype)
    write_volume(tmp_path / f"out{suffix}", data, ANISOTROPIC)
    volume = read_volume(tmp_path / f"out{suffix}")
    assert volume.data.dtype == data.dtype
    np.testing.assert_array_equal(volume.data, data)
    assert volume.voxel_size == ANISOTROPIC
    assert volume.source == ("multiscales" if suffix.endswith("zarr") else "OME-XML")


@pytest.mark.parametrize("suffix", [".tif", ".ome.zarr", ".h5", ".mrc", ".n5", ".precomputed", ""])
def test_views_and_foreign_byte_order_are_written_as_their_values(
    tmp_path: Path, volume: np.ndarray, suffix: str
) -> None:
    view = volume.astype(">u2").transpose(1, 0, 2)[::2]
    write_volume(tmp_path / f"out{suffix}", view, ANISOTROPIC)
    result = read_volume(tmp_path / f"out{suffix}").data
    assert result.dtype == np.uint16 and result.dtype.isnative
    np.testing.assert_array_equal(result, view)


lengths = st.floats(0.01, 1e5)


@settings(max_examples=20, deadline=None)
@given(z=lengths, y=lengths, x=lengths, suffix=st.sampled_from([".tif", ".zarr", ".h5", ".n5", ".precomputed", ""]))
def test_any_voxel_size_survives(
    tmp_path_factory: pytest.TempPathFactory, z: float, y: float, x: float, suffix: str
) -> None:
    path = tmp_path_factory.mktemp("size") / f"out{suffix}"
    write_volume(path, np.arange(8, dtype=np.uint8).reshape(2, 2, 2), VoxelSize(z, y, x))
    read = read_volume(path).voxel_size
    assert read is not None
    np.testing.assert_allclose(read.zyx, (z, y, x), rtol=1e-14)


@pytest.mark.parametrize("suffix", [".tif", ".zarr"])
@pytest.mark.parametrize(
    "data", [np.zeros((4, 4)), np.zeros((0, 4, 4)), np.zeros((4, 4, 4), bool), np.zeros((4, 4, 4), np.int64)]
)
def test_what_cannot_be_stored_is_refused_and_leaves_nothing(tmp_path: Path, suffix: str, data: np.ndarray) -> None:
    with pytest.raises(InputError, match="expected"):
        write_volume(tmp_path / f"out{suffix}", data, ANISOTROPIC)
    assert list(tmp_path.iterdir()) == []
