"""Several devices at one job, imitated by the CPU: the same voxels, and nothing that a GPU of Apple cannot compute."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from sketch import SKETCH
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from emformer_hub.cli import main
from emformer_hub.geometry import VoxelSize
from emformer_hub.reconstruction import parts, reconstruct, reconstruct_file
from emformer_hub.reconstruction.cluster import on_dask
from emformer_hub.reconstruction.restorer import Restorer
from emformer_hub.volumes import read_volume, write_volume
from emformer_hub.volumes.phantom import neuropil

SIZE = VoxelSize(24, 8, 8)
SETTINGS: dict[str, Any] = {"factor": 3.0, "model": SKETCH, "ensemble": 1, "precision": "float32"}
TILE = (22, 64, 64)
TWO = "cuda:0,cuda:1"


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stack") / "stack.tif"
    write_volume(path, neuropil((72, 60, 90))[::3].copy(), SIZE)
    return path


@pytest.fixture
def at_work(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Imitate two GPUs by the CPU, and count the blocks of each; none restores its first before both have one."""
    blocks: dict[str, int] = {}
    both, init, restore = threading.Barrier(2), Restorer.__post_init__, Restorer.restore
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setattr("emformer_hub.reconstruction.memory.free_memory", lambda device: 8 * 10**9)
    monkeypatch.setattr("emformer_hub.reconstruction.forecast.free_memory", lambda device: 8 * 10**9)
    monkeypatch.setattr(parts, "PART_VOXELS", 1)

    def on_the_cpu(restorer: Restorer) -> None:
        restorer.name = str(restorer.device)  # type: ignore[attr-defined]
        restorer.device = torch.device("cpu")
        init(restorer)

    def counted(restorer: Restorer, *arguments: Any) -> Any:
        name = restorer.name  # type: ignore[attr-defined]
        if name not in blocks and "cuda" in name:
            both.wait(60)
        blocks[name] = blocks.get(name, 0) + 1
        return restore(restorer, *arguments)

    monkeypatch.setattr(Restorer, "__post_init__", on_the_cpu)
    monkeypatch.setattr(Restorer, "restore", counted)
    return blocks


def test_two_devices_share_the_parts_and_make_the_same_voxels(
    stack: Path, tmp_path: Path, at_work: dict[str, int]
) -> None:
    told: list[float] = []
    reconstruct_file(
        stack,
        tmp_path / "out.zarr",
        voxel_size=SIZE,
        tile_zyx=TILE,
        device="all",
        progress=lambda done, blocks: told.append(done),
        **SETTINGS,
    )
    assert set(at_work) == {"cuda:0", "cuda:1"} and told[-1] == sum(at_work.values()) > 2
    alone = reconstruct(read_volume(stack).data, tile_zyx=TILE, progress=False, device="cpu", **SETTINGS)
    np.testing.assert_array_equal(read_volume(tmp_path / "out.zarr").data, alone.volume)


def test_what_fails_on_one_device_ends_the_run_which_resumes(
    stack: Path, tmp_path: Path, at_work: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Restorer.restore

    def broken(restorer: Restorer, *arguments: Any) -> Any:
        restored = counted(restorer, *arguments)
        if restorer.name == "cuda:1":  # type: ignore[attr-defined]
            raise RuntimeError("it was unplugged")
        return restored

    settings = {"voxel_size": SIZE, "tile_zyx": TILE, **SETTINGS}
    with monkeypatch.context() as patch:
        patch.setattr(Restorer, "restore", broken)
        with pytest.raises(RuntimeError, match="unplugged"):
            reconstruct_file(stack, tmp_path / "out.zarr", device=TWO, **settings)
    assert not (tmp_path / "out.zarr").exists()
    reconstruct_file(stack, tmp_path / "out.zarr", device="cpu", resume=True, **settings)
    alone = reconstruct(read_volume(stack).data, tile_zyx=TILE, progress=False, device="cpu", **SETTINGS)
    np.testing.assert_array_equal(read_volume(tmp_path / "out.zarr").data, alone.volume)


def test_several_devices_and_dask_are_not_mixed(stack: Path, tmp_path: Path, at_work: dict[str, int]) -> None:
    from emformer_hub.errors import InputError

    with pytest.raises(InputError, match="Dask gives each worker one of its GPUs by itself"):
        reconstruct_file(
            stack, tmp_path / "out.zarr", voxel_size=SIZE, device=TWO, scheduler=on_dask("threads", 2), **SETTINGS
        )


def test_a_device_that_is_not_there_is_a_message(stack: Path, tmp_path: Path) -> None:
    words = ["reconstruct", str(stack), str(tmp_path / "out.zarr"), "--factor", "3", "--device", "gpu"]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 2 and "expected auto, cpu, cuda, xpu, mps" in result.stderr, result.output


class NoFloat64(TorchDispatchMode):
    """What a device without float64 would refuse; what is computed about positions stays on the CPU."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float64:
                assert tensor.ndim <= 2, (func, tensor.shape)  # matrices of positions, and never voxels
        return result


@pytest.mark.parametrize("mode", ["clean", "faithful"])
def test_voxels_are_never_float64(mode: Any) -> None:
    stack = neuropil((18, 24, 24))[::3].astype(np.float64)
    with NoFloat64():
        reconstruct(stack, progress=False, device="cpu", mode=mode, **SETTINGS)
