"""WEBKNOSSOS as it is written, read by its authors' library and by this package."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest

from emformer_hub.errors import InputError
from emformer_hub.geometry import VoxelSize
from emformer_hub.volumes import create_volume, open_labels, open_volume, read_volume, write_volume
from emformer_hub.volumes.output import check_writable

wkw = pytest.importorskip("wkw", reason="WEBKNOSSOS is the extra [wkw]")

SIZE = VoxelSize(40, 4.886, 5)
FIRST = (101, 2, 17)
PLACE = (101.5 * 40, 2.5 * 4.886, 17.5 * 5)
"""Centre of the first voxel, where a whole voxel can be."""


@pytest.fixture(scope="module")
def voxels() -> np.ndarray:
    return (np.random.default_rng(0).random((70, 75, 300)) * 100).astype(np.float32)


def stored(folder: Path, first: tuple[int, ...], shape: tuple[int, ...]) -> np.ndarray:
    """Voxels ``(z, y, x)`` of a magnification, as the library of WEBKNOSSOS reads them."""
    with wkw.Dataset.open(str(folder)) as opened:
        return opened.read(first[::-1], shape[::-1])[0].T


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32", "float64"])
def test_voxels_size_and_place_return(tmp_path: Path, voxels: np.ndarray, dtype: str) -> None:
    data = voxels.astype(dtype)
    write_volume(tmp_path / "out.wkw", data, SIZE, translation_nm=PLACE)
    np.testing.assert_array_equal(stored(tmp_path / "out.wkw/color/1", FIRST, data.shape), data)
    described = json.loads((tmp_path / "out.wkw/datasource-properties.json").read_text())
    (layer,) = described["dataLayers"]
    assert described["scale"] == {"factor": [5, 4.886, 40], "unit": "nanometer"}
    assert layer["boundingBox"] == {"topLeft": [17, 2, 101], "width": 300, "height": 75, "depth": 70}
    assert layer["elementClass"] == {"float32": "float", "float64": "double"}.get(dtype, dtype)
    assert [one["mag"] for one in layer["mags"]] == [[1, 1, 1], [2, 2, 1], [4, 4, 1]]
    volume = read_volume(tmp_path / "out.wkw")
    np.testing.assert_array_equal(volume.data, data)
    assert volume.data.dtype == data.dtype and volume.voxel_size == SIZE
    np.testing.assert_allclose(volume.translation_nm or (), PLACE, rtol=1e-12)


def test_coarser_magnifications_are_means_of_what_lies_in_their_voxels(tmp_path: Path, voxels: np.ndarray) -> None:
    write_volume(tmp_path / "out.wkw", voxels, SIZE, translation_nm=PLACE)
    found = stored(tmp_path / "out.wkw/color/2-2-1", (101, 1, 8), (70, 38, 151))
    pairs = np.concatenate([voxels[..., :1], voxels, voxels[..., -1:]], axis=2)  # the layer begins at an odd column
    pairs = np.concatenate([pairs, pairs[:, -1:]], axis=1)
    np.testing.assert_allclose(found, pairs.reshape(70, 38, 2, 151, 2).mean(axis=(2, 4)), rtol=1e-5)
    volume = open_volume(tmp_path / "out.wkw/color/2-2-1")
    np.testing.assert_array_equal(volume.data[:], found)
    assert volume.voxel_size == VoxelSize(40, 9.772, 10)
    assert not stored(tmp_path / "out.wkw/color/1", (0, 0, 0), (9, 2, 9)).any()


def test_labels_are_a_segmentation(tmp_path: Path) -> None:
    labels = np.random.default_rng(0).choice([1, 250, 2**63 + 1], (20, 30, 140)).astype(np.uint64)
    with create_volume(tmp_path / "out.wkw", labels.shape, labels.dtype, VoxelSize(8, 8, 8), labels=True) as writer:
        writer.write(tuple(slice(0, n, 1) for n in labels.shape), labels)
    with pytest.raises(InputError, match="segmentation"):
        open_volume(tmp_path / "out.wkw" / "segmentation")
    np.testing.assert_array_equal(open_labels(tmp_path / "out.wkw" / "segmentation").data[:], labels)
    coarser = stored(tmp_path / "out.wkw/segmentation/2", (0, 0, 0), (10, 15, 70))
    np.testing.assert_array_equal(coarser, labels[::2, ::2, ::2])


def test_a_place_before_the_first_voxel_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = np.arange(64, dtype=np.uint8).reshape(4, 4, 4)
    with caplog.at_level(logging.WARNING):
        write_volume(tmp_path / "out.wkw", data, VoxelSize(8, 8, 8), translation_nm=(-20, 4, 12))
    assert "WEBKNOSSOS places volumes by whole voxels from 0 on" in caplog.text and "24,0,0 nm" in caplog.text
    np.testing.assert_array_equal(stored(tmp_path / "out.wkw/color/1", (0, 0, 1), data.shape), data)


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has only .*\.ome\.zarr"):
        check_writable(tmp_path / "a.wkw", np.dtype("float16"))
    (tmp_path / "a.wkw").mkdir()
    (tmp_path / "a.wkw" / "mine.txt").touch()
    with pytest.raises(InputError, match="never replaced"):
        write_volume(tmp_path / "a.wkw", np.zeros((4, 4, 4), np.uint8), SIZE, overwrite=True)
