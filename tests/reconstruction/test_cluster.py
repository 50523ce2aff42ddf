"""Parts made by Dask are those that one process makes, whoever is lost on the way."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from sketch import SKETCH

from emformer_hub.errors import InputError
from emformer_hub.geometry import VoxelSize
from emformer_hub.reconstruction import parts, reconstruct_file
from emformer_hub.reconstruction.cluster import device_of, make_part, on_dask, run
from emformer_hub.reconstruction.job import Job
from emformer_hub.reconstruction.parts import Made, parts_of
from emformer_hub.volumes import ome_zarr, read_volume, write_volume
from emformer_hub.volumes.phantom import neuropil

distributed = pytest.importorskip("distributed", reason="Dask is the extra [cluster]")
SETTINGS: dict[str, Any] = {"voxel_size": VoxelSize(24, 8, 8), "factor": 3.0, "model": SKETCH, "ensemble": 1}
SETTINGS |= {"tile_zyx": (22, 64, 64), "device": "cpu"}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stack") / "stack.tif"
    write_volume(path, neuropil((72, 60, 90))[::3].copy(), VoxelSize(24, 8, 8))
    return path


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two worker processes, each with one thread; their parts are blocks."""
    with (
        distributed.LocalCluster(2, threads_per_worker=1, dashboard_address=":0") as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        client.register_plugin(SmallParts())
        yield cluster


class SmallParts(distributed.WorkerPlugin):
    def setup(self, worker: Any) -> None:
        from emformer_hub.reconstruction import parts
        from emformer_hub.volumes import ome_zarr

        parts.PART_VOXELS = 1
        ome_zarr.SMALLEST_LEVEL = 10


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PART_VOXELS", 1)


@pytest.fixture(scope="module")
def expected(stack: Path, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    output = tmp_path_factory.mktemp("expected") / "out.zarr"
    reconstruct_file(stack, output, **SETTINGS)
    return read_volume(output).data


def test_workers_make_the_same_voxels(cluster: Any, stack: Path, expected: np.ndarray, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    scheduler = on_dask(cluster.scheduler_address)
    reconstruct_file(
        stack, tmp_path / "out.zarr", scheduler=scheduler, progress=lambda *done: told.append(done), **SETTINGS
    )
    np.testing.assert_array_equal(read_volume(tmp_path / "out.zarr").data, expected)
    assert told == [(done, 8) for done in range(9)]


def test_workers_make_the_pyramid(
    cluster: Any, stack: Path, expected: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ome_zarr, "SMALLEST_LEVEL", 10)
    reconstruct_file(stack, tmp_path / "out.zarr", scheduler=on_dask(cluster.scheduler_address), **SETTINGS)
    write_volume(tmp_path / "whole.zarr", expected, VoxelSize(8, 8, 8))
    made, whole = (zarr.open_group(tmp_path / name, mode="r") for name in ("out.zarr", "whole.zarr"))
    assert sorted(made.array_keys()) == list("01234")
    for level in "01234":
        np.testing.assert_array_equal(made[level][:], whole[level][:])


def test_a_worker_that_is_killed_loses_nothing(cluster: Any, stack: Path, expected: np.ndarray, tmp_path: Path) -> None:
    inner = on_dask(cluster.scheduler_address)

    def scheduler(job: Job, numbers: list[int], device: str | None) -> Iterator[Made]:
        for made, part in enumerate(inner(job, numbers, device)):
            if made == 1:
                with distributed.Client(cluster, set_as_default=False) as client:
                    pids = client.run(os.getpid)
                os.kill(next(iter(pids.values())), signal.SIGKILL)
            yield part

    reconstruct_file(stack, tmp_path / "out.zarr", scheduler=scheduler, **SETTINGS)
    np.testing.assert_array_equal(read_volume(tmp_path / "out.zarr").data, expected)


def test_threads_of_this_process(stack: Path, expected: np.ndarray, tmp_path: Path) -> None:
    reconstruct_file(stack, tmp_path / "out.zarr", scheduler=on_dask("threads", 2), **SETTINGS)
    np.testing.assert_array_equal(read_volume(tmp_path / "out.zarr").data, expected)


THREE = [torch.device("cuda", number) for number in range(3)]


@pytest.mark.parametrize("device", [None, "auto", "cuda"])
def test_workers_of_a_machine_share_its_gpus(device: str | None) -> None:
    found = [device_of(worker, THREE, device) for worker in range(5)]
    assert found == ["cuda:0", "cuda:1", "cuda:2", "cuda:0", "cuda:1"]
    elsewhere = ("tcp://10.0.0.7:4000", THREE)
    assert [device_of(*worker, device) for worker in ((1, THREE[:1]), (1, [torch.device("cpu")]), elsewhere)] == [
        device
    ] * 3


@pytest.mark.parametrize("device", ["cpu", "cuda:1"])
def test_a_device_that_was_asked_for_is_that_of_every_worker(device: str) -> None:
    assert {device_of(worker, THREE, device) for worker in range(5)} == {device}


@pytest.mark.parametrize("device", ["cpu", "auto", None])
def test_workers_compute_on_the_device_of_the_run(
    stack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str | None
) -> None:
    asked: list[str | None] = []

    def fake_choice(job: Job, device: str | None = None) -> Any:
        asked.append(device)
        return parts_of(job)

    monkeypatch.setattr("emformer_hub.reconstruction.cluster.parts_of", fake_choice)
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    reconstruct_file(stack, tmp_path / "out.zarr", scheduler=on_dask("threads", 1), **SETTINGS | {"device": device})
    planning, *making = asked
    assert planning is None and making == [device] * 8


def test_what_is_no_scheduler_is_said(stack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emformer_hub.reconstruction.cluster.TIMEOUT_S", 2)
    with pytest.raises(InputError, match="scheduler is 'slurm'; expected local, threads, processes, or tcp://"):
        on_dask("slurm")
    with pytest.raises(InputError, match=r"no Dask scheduler at tcp://127\.0\.0\.1:9"):
        reconstruct_file(stack, tmp_path / "out.zarr", scheduler=on_dask("tcp://127.0.0.1:9"), **SETTINGS)


def test_a_scheduler_that_goes_away_leaves_what_is_done(stack: Path, expected: np.ndarray, tmp_path: Path) -> None:
    with distributed.LocalCluster(1, threads_per_worker=1, processes=False, dashboard_address=":0") as cluster:

        def scheduler(job: Job, numbers: list[int], device: str | None) -> Iterator[Made]:
            with distributed.Client(cluster.scheduler_address, set_as_default=False, timeout=60) as client:
                for made, part in enumerate(run(client, make_two, job, numbers)):
                    yield part
                    if made == 1:
                        cluster.close()

        with pytest.raises(InputError, match=r"Finished parts are kept: the same command with --resume"):
            reconstruct_file(stack, tmp_path / "out.zarr", scheduler=scheduler, **SETTINGS)
    reconstruct_file(stack, tmp_path / "out.zarr", resume=True, **SETTINGS)
    np.testing.assert_array_equal(read_volume(tmp_path / "out.zarr").data, expected)


def make_two(job: Job, number: int) -> Made:
    """Make the first two parts at once, and the others never: the worker is closed before."""
    while number > 1 and distributed.get_worker().status == distributed.Status.running:
        time.sleep(0.01)
    if number > 1:
        raise RuntimeError("the worker is closed")
    return make_part(job, number)
