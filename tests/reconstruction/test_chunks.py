"""Chunks of the size that is asked for, with the same voxels, in every format that has chunks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tensorstore
import zarr
from click.testing import CliRunner
from sketch import SKETCH

from emformer_hub.cli import main
from emformer_hub.errors import InputError
from emformer_hub.geometry import VoxelSize
from emformer_hub.reconstruction import parts, reconstruct, reconstruct_file
from emformer_hub.reconstruction.job import Job
from emformer_hub.volumes import read_volume, write_volume
from emformer_hub.volumes.phantom import neuropil

SIZE = VoxelSize(24, 8, 8)
SETTINGS: dict[str, Any] = {"factor": 3.0, "model": SKETCH, "ensemble": 1, "device": "cpu"}
SETTINGS["precision"] = "float32"
TILE = (22, 64, 64)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stack") / "stack.tif"
    write_volume(path, neuropil((72, 60, 90))[::3].copy(), SIZE)
    return path


@pytest.fixture(scope="module")
def expected(stack: Path) -> np.ndarray:
    return reconstruct(read_volume(stack).data, tile_zyx=TILE, progress=False, **SETTINGS).volume


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PART_VOXELS", 1)


def run(stack: Path, output: Path, chunk_zyx: object, **changed: Any) -> dict[str, Any]:
    settings = {"voxel_size": SIZE, "tile_zyx": TILE, "chunk_zyx": chunk_zyx} | SETTINGS | changed
    return json.loads(reconstruct_file(stack, output, **settings).read_text())


def chunks(path: Path) -> tuple[int, ...]:
    """Sides of the chunks of the finest level, (z, y, x), as the libraries of the formats state them."""
    if path.suffix == ".zarr":
        return zarr.open_group(path, mode="r")["0"].chunks
    if path.suffix == ".h5":
        with h5py.File(path) as file:
            return file["volumes/raw"].chunks
    if path.suffix == ".n5":
        return tuple(json.loads((path / "s0/attributes.json").read_text())["blockSize"][::-1])
    spec = {"driver": "neuroglancer_precomputed", "kvstore": {"driver": "file", "path": f"{path}/"}}
    return tensorstore.open({**spec, "open": True}).result().chunk_layout.read_chunk.shape[2::-1]


@pytest.mark.parametrize(
    ("name", "chunk"),
    [
        ("out.zarr", (6, 16, 16)),  # of which the parts of the run consist
        ("out.zarr", (16, 24, 40)),
        ("old.zarr", (16, 500, 40)),
        ("out.n5", (1, 500, 500)),
        ("out.precomputed", (6, 16, 24)),
        ("out.h5", (16, 24, 500)),
    ],
)
def test_an_output_has_the_chunks_that_were_asked_for(
    stack: Path, expected: np.ndarray, tmp_path: Path, name: str, chunk: tuple[int, int, int]
) -> None:
    version = "0.4" if name == "old.zarr" else "0.5"
    record = run(stack, tmp_path / name, chunk, ome_zarr=version, uncertainty=tmp_path / f"sure{Path(name).suffix}")
    np.testing.assert_array_equal(read_volume(tmp_path / name).data, expected)
    whole = chunk if name == "out.precomputed" else tuple(map(min, chunk, expected.shape))
    assert chunks(tmp_path / name) == chunks(tmp_path / f"sure{Path(name).suffix}") == whole
    assert record["chunk_zyx"] == list(chunk)
    assert [path.name for path in tmp_path.iterdir() if path.name[0] == "."] == []


class Interrupted(Exception):
    pass


def interrupted(job: Job, numbers: list[int], device: str | None) -> Iterator[parts.Made]:
    made = parts.here(job, numbers, device)
    yield next(made)
    raise Interrupted


def test_a_resumed_run_keeps_its_chunks(stack: Path, expected: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        run(stack, tmp_path / "out.n5", (16, 24, 40), scheduler=interrupted)
    with pytest.raises(InputError, match=r"chunk_zyx was \(16, 24, 40\), is \(16, 24, 32\)"):
        run(stack, tmp_path / "out.n5", (16, 24, 32), resume=True)
    assert run(stack, tmp_path / "out.n5", None, resume=True)["made_now"] == 7
    np.testing.assert_array_equal(read_volume(tmp_path / "out.n5").data, expected)
    assert chunks(tmp_path / "out.n5") == (16, 24, 40)


@pytest.mark.parametrize(
    ("name", "chunk", "said"),
    [
        ("out.tif", "64,64,64", "no chunks; leave out --chunks, or choose"),
        ("out.mrc", "64,64,64", "no chunks"),
        ("out", "64,64,64", "no chunks"),
        ("out.wkw", "64,64,64", "blocks of 32 voxels, always; leave out --chunks"),
        ("out.zarr", "64,0,64", "each at least 1"),
        ("out.zarr", "4096,4096,4096", "at most 268,435,456 voxels"),
        ("out.zarr", "64,64", "chunks '64,64' is not three sizes"),
    ],
)
def test_chunks_that_there_cannot_be_are_refused(stack: Path, tmp_path: Path, name: str, chunk: str, said: str) -> None:
    call = ["reconstruct", str(stack), str(tmp_path / name), "--factor", "3", "--model", SKETCH]
    result = CliRunner().invoke(main, [*call, "--chunks", chunk])
    assert result.exit_code == 2 and said in " ".join(result.output.split())
    assert list(tmp_path.iterdir()) == []
    result = CliRunner().invoke(main, [*call[:2], str(tmp_path / "a.zarr"), *call[3:], "--chunks", "64,64,64",
                                       "--uncertainty", str(tmp_path / "sure.tif")])  # fmt: skip
    assert result.exit_code == 2 and "sure.tif has no chunks" in " ".join(result.output.split())
