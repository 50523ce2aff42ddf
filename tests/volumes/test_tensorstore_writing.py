"""N5 and precomputed: what is written is read back, by this package and as their specifications lay it out."""

from __future__ import annotations

import gzip
import json
import logging
from pathlib import Path

import numpy as np
import pytest

from emformer_hub.errors import InputError
from emformer_hub.geometry import VoxelSize
from emformer_hub.reconstruction import reconstruct, reconstruct_file
from emformer_hub.volumes import open_volume, read_volume, write_volume
from emformer_hub.volumes.output import check_writable
from emformer_hub.volumes.phantom import neuropil

pytest.importorskip("tensorstore", reason="N5 and precomputed are the extra [remote]")

SIZE = VoxelSize(40, 4.886, 5)
PLACE = (100.5 * 40, 2.5 * 4.886, 17.5 * 5)
"""Centre of the first voxel, where precomputed can put it."""


@pytest.fixture(scope="module")
def voxels() -> np.ndarray:
    return (np.random.default_rng(0).random((70, 75, 133)) * 100).astype(np.float32)


@pytest.mark.parametrize("suffix", [".n5", ".precomputed"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_voxels_size_and_place_return(tmp_path: Path, voxels: np.ndarray, suffix: str, dtype: str) -> None:
    data = voxels.astype(dtype)
    write_volume(tmp_path / f"out{suffix}", data, SIZE, translation_nm=PLACE)
    volume = read_volume(tmp_path / f"out{suffix}")
    np.testing.assert_array_equal(volume.data, data)
    assert volume.data.dtype == data.dtype and volume.voxel_size == SIZE
    np.testing.assert_allclose(volume.translation_nm or (), PLACE, rtol=1e-12)


def test_precomputed_lies_on_the_disk_as_its_specification_says(tmp_path: Path, voxels: np.ndarray) -> None:
    path = tmp_path / "out.precomputed"
    write_volume(path, voxels, SIZE, translation_nm=PLACE)
    info = json.loads((path / "info").read_text())
    assert (info["type"], info["data_type"], info["num_channels"]) == ("image", "float32", 1)
    finest, coarser = info["scales"]
    assert (finest["resolution"], finest["size"], finest["voxel_offset"]) == (
        [5, 4.886, 40],
        [133, 75, 70],
        [17, 2, 100],
    )
    assert (coarser["resolution"], coarser["size"]) == ([10, 9.772, 40], [67, 38, 70])
    chunk = (path / finest["key"] / "81-145_66-77_100-164").read_bytes()  # x, y, z, from the offset on
    found = np.frombuffer(chunk, "<f4").reshape(64, 11, 64)
    np.testing.assert_array_equal(found, voxels[:64, 64:, 64:128])


def test_n5_lies_on_the_disk_as_its_specification_says(tmp_path: Path, voxels: np.ndarray) -> None:
    path = tmp_path / "out.n5"
    write_volume(path, voxels, SIZE)
    attributes = json.loads((path / "s0" / "attributes.json").read_text())
    assert attributes["dimensions"] == [133, 75, 70] and attributes["blockSize"] == [64, 64, 64]
    assert attributes["pixelResolution"] == {"unit": "nm", "dimensions": [5, 4.886, 40]}
    block = (path / "s0" / "1" / "1" / "0").read_bytes()  # x, y, z; a header of 2 + 2 + 3 * 4 bytes, big-endian
    assert list(np.frombuffer(block[4:16], ">u4")) == [64, 64, 64]
    found = np.frombuffer(gzip.decompress(block[16:]), ">f4").reshape(64, 64, 64)[:, :11]  # beyond the end, zeros
    np.testing.assert_array_equal(found, voxels[:64, 64:, 64:128])


@pytest.mark.parametrize("level", ["n5", "precomputed"])
def test_coarser_levels_are_means(tmp_path: Path, voxels: np.ndarray, level: str) -> None:
    write_volume(tmp_path / f"out.{level}", voxels, SIZE)
    if level == "n5":
        coarser = read_volume(tmp_path / "out.n5" / "s1")
        found, size = coarser.data, coarser.voxel_size
        assert size == VoxelSize(40, 9.772, 10)
    else:
        info = json.loads((tmp_path / "out.precomputed" / "info").read_text())
        info["scales"] = info["scales"][1:]
        (tmp_path / "out.precomputed" / "info").write_text(json.dumps(info))
        found = open_volume(tmp_path / "out.precomputed").data[:]
    expected = voxels[:, :74, :132].reshape(70, 37, 2, 66, 2).mean(axis=(2, 4))
    np.testing.assert_allclose(found[:, :37, :66], expected, rtol=1e-5)


def test_a_place_between_voxels_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = np.arange(64, dtype=np.uint8).reshape(4, 4, 4)
    with caplog.at_level(logging.WARNING):
        write_volume(tmp_path / "out.precomputed", data, VoxelSize(8, 8, 8), translation_nm=(6, 4, 4))
    assert "2,0,0 nm (z,y,x) from where it belongs" in caplog.text.replace("-", "")
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        write_volume(tmp_path / "there.precomputed", data, VoxelSize(8, 8, 8), translation_nm=(4, 4, 12))
    assert caplog.text == ""


@pytest.mark.parametrize(("name", "dtype"), [("a.n5", "float16"), ("a.precomputed", "float64"), ("a.mrc", "float64")])
def test_voxels_that_a_format_has_not_are_refused(tmp_path: Path, name: str, dtype: str) -> None:
    with pytest.raises(InputError, match=r"has only .*\.ome\.zarr"):
        check_writable(tmp_path / name, np.dtype(dtype))


def test_a_folder_of_something_else_is_never_replaced(tmp_path: Path) -> None:
    for name in ("a.n5", "a.precomputed"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.txt").touch()
        with pytest.raises(InputError, match="never replaced"):
            write_volume(tmp_path / name, np.zeros((4, 4, 4), np.uint8), SIZE, overwrite=True)


@pytest.mark.parametrize("suffix", [".n5", ".precomputed"])
def test_a_stack_is_reconstructed_into_them(tmp_path: Path, suffix: str) -> None:
    stack, size = neuropil((36, 40, 40))[::3].copy(), VoxelSize(24, 8, 8)
    write_volume(tmp_path / f"stack{suffix}", stack, size, translation_nm=(12, 4, 4))
    output = tmp_path / f"out{suffix}"
    uncertainty = tmp_path / f"sure{suffix}"
    settings = {"factor": 3.0, "model": "emformer-tiny", "ensemble": 1}
    reconstruct_file(tmp_path / f"stack{suffix}", output, voxel_size=size, uncertainty=uncertainty, **settings)
    expected = reconstruct(stack, progress=False, **settings)
    made = read_volume(output)
    np.testing.assert_array_equal(made.data, expected.volume)
    np.testing.assert_array_equal(read_volume(uncertainty).data, expected.uncertainty)
    assert made.voxel_size == VoxelSize(8, 8, 8) and made.translation_nm == (4, 4, 4)
