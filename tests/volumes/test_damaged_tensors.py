"""Chunks of N5 and precomputed that were cut short are refused; what is missing beside tissue is too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emformer_hub.errors import InputError
from emformer_hub.volumes import holes, open_volume, read_volume

from .conftest import make_volume

tensorstore = pytest.importorskip("tensorstore")
STACK = make_volume("uint8", (12, 16, 16))
COMPRESSION: dict[str, dict[str, Any]] = {
    "raw": {"type": "raw"},
    "gzip": {"type": "gzip"},
    "zstd": {"type": "zstd"},
    "blosc": {"type": "blosc", "cname": "lz4", "clevel": 5, "shuffle": 1},
}


def n5(path: Path, compression: str) -> list[Path]:
    spec: dict[str, Any] = {"driver": "n5", "kvstore": f"file://{path}/", "create": True}
    spec["metadata"] = {"dimensions": [16, 16, 12], "blockSize": [8, 8, 4], "dataType": "uint8"}
    spec["metadata"]["compression"] = COMPRESSION[compression]
    tensorstore.open(spec).result().T[...] = STACK
    return sorted(file for file in path.rglob("*") if file.is_file() and file.name != "attributes.json")


def precomputed(path: Path, encoding: str) -> list[Path]:
    spec: dict[str, Any] = {"driver": "neuroglancer_precomputed", "kvstore": f"file://{path}/", "create": True}
    spec["multiscale_metadata"] = {"type": "image", "data_type": "uint8", "num_channels": 1}
    spec["scale_metadata"] = {"size": [16, 16, 12], "resolution": [4, 4, 40], "encoding": encoding}
    spec["scale_metadata"]["chunk_size"] = [8, 8, 4]
    tensorstore.open(spec).result()[..., 0].T[...] = STACK
    return sorted(file for file in path.rglob("*") if file.is_file() and file.name != "info")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.8, 0.99])
@pytest.mark.parametrize("compression", COMPRESSION)
def test_a_block_of_n5_that_was_cut_short_is_refused(tmp_path: Path, compression: str, share: float) -> None:
    block = n5(tmp_path, compression)[5]
    block.write_bytes(block.read_bytes()[: int(share * block.stat().st_size)])
    opened = open_volume(tmp_path).data
    with pytest.raises(InputError, match="cannot be read"):
        opened[:]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.8, 0.99])
@pytest.mark.parametrize("encoding", ["raw", "png"])
def test_a_chunk_of_precomputed_that_was_cut_short_is_refused(tmp_path: Path, encoding: str, share: float) -> None:
    try:
        chunk = precomputed(tmp_path, encoding)[5]
    except ValueError:
        pytest.skip(f"TensorStore writes no {encoding}")
    chunk.write_bytes(chunk.read_bytes()[: int(share * chunk.stat().st_size)])
    opened = open_volume(tmp_path).data
    if encoding == "png" and share == 0.99:  # what is lost is the mark of the end, and no pixel
        np.testing.assert_array_equal(opened[:], STACK)
        return
    with pytest.raises(InputError, match="cannot be read"):
        opened[:]


@pytest.mark.parametrize("kind", ["n5", "precomputed"])
@pytest.mark.parametrize("counted", [True, False], ids=["when opened", "when read"])
def test_a_chunk_that_is_missing_beside_tissue_is_named(
    tmp_path: Path, kind: str, counted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = n5(tmp_path, "gzip") if kind == "n5" else precomputed(tmp_path, "raw")
    lost = next(file for file in files if str(file).endswith("1/0/1" if kind == "n5" else "8-16_0-8_4-8"))
    np.testing.assert_array_equal(open_volume(tmp_path).data[:], STACK)
    lost.unlink()
    if not counted:
        monkeypatch.setattr(holes, "_MOST_COUNTED", 0)
        np.testing.assert_array_equal(open_volume(tmp_path).data[:4], STACK[:4])
    with pytest.raises(InputError, match=rf"{lost.name} is missing .*z 4:8, y 0:8, x 8:16.*--nodata 0"):
        open_volume(tmp_path).data[2:7, 3:6]
    read = read_volume(tmp_path, nodata=0)
    assert (read.data[4:8, :8, 8:] == 0).all() and read.hidden is not None and read.hidden[4:8, :8, 8:].all()


def test_a_precomputed_that_begins_elsewhere_has_its_chunks_there(tmp_path: Path) -> None:
    spec: dict[str, Any] = {"driver": "neuroglancer_precomputed", "kvstore": f"file://{tmp_path}/", "create": True}
    spec["multiscale_metadata"] = {"type": "image", "data_type": "uint8", "num_channels": 1}
    spec["scale_metadata"] = {"size": [16, 16, 12], "resolution": [4, 4, 40], "encoding": "raw"}
    spec["scale_metadata"] |= {"chunk_size": [8, 8, 5], "voxel_offset": [100, 20, 7]}
    tensorstore.open(spec).result()[..., 0].T[...] = STACK
    np.testing.assert_array_equal(open_volume(tmp_path).data[:], STACK)
    lost = next(tmp_path.rglob("108-116_28-36_17-19"))
    lost.unlink()
    with pytest.raises(InputError, match="108-116_28-36_17-19 is missing"):
        open_volume(tmp_path)
