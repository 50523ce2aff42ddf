"""Runs from file to file in processes of their own, whose peak of memory is that of the run."""

from __future__ import annotations

import multiprocessing
import resource
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from emformer_hub.geometry import VoxelSize
from emformer_hub.reconstruction.from_file import reconstruct_file
from emformer_hub.volumes import write_volume
from emformer_hub.volumes.phantom import neuropil

FACTOR = 8.0
PHANTOM_ZYX = (32, 128, 128)
FRESH = multiprocessing.get_context("forkserver")
"""Processes to measure memory in. Not "spawn": across exec, Linux lets a process inherit the peak of its starter."""
FRESH.set_forkserver_preload(["emformer_hub.reconstruction.in_memory", "emformer_hub.training.loop"])  # torch: once


def peak_bytes() -> int:
    """Most resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def in_fresh_process(function: Any, *arguments: Any) -> Any:
    with ProcessPoolExecutor(1, mp_context=FRESH) as pool:
        return pool.submit(function, *arguments).result()


def make_stack(path: Path, shape_zyx: tuple[int, int, int]) -> None:
    """The same phantom, mirrored over and over; in memory at once here, never in what is measured."""
    phantom = neuropil(PHANTOM_ZYX)
    z, y, x = (
        np.pad(np.arange(n), (0, max(0, m - n)), "symmetric")[:m] for n, m in zip(phantom.shape, shape_zyx, strict=True)
    )
    write_volume(path, phantom[np.ix_(z, y, x)], VoxelSize(8 * FACTOR, 8, 8))


def one_run(stack: Path, output: Path, model: str, threads: int, memory: float | None = None) -> dict[str, Any]:
    """Seconds and peak of one pass at factor 8, from file to file, in so many gigabytes."""
    torch.set_num_threads(threads)
    begin = time.perf_counter()
    settings: dict[str, Any] = {"factor": FACTOR, "model": model, "ensemble": 1, "overwrite": True, "memory": memory}
    reconstruct_file(stack, output, voxel_size=VoxelSize(8 * FACTOR, 8, 8), **settings)
    return {"seconds": time.perf_counter() - begin, "peak_bytes": peak_bytes()}
