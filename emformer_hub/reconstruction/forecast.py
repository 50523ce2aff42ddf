"""The time, memory and disk that a run from file to file needs, and whether this machine has them."""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from emformer_hub.devices import free_memory
from emformer_hub.errors import InputError
from emformer_hub.reconstruction.job import is_zarr_path
from emformer_hub.reconstruction.memory import block_bytes
from emformer_hub.reconstruction.parts import Parts, timed
from emformer_hub.volumes.boxes import within


@dataclass(frozen=True)
class Needs:
    """Estimated needs of a run, and what this machine has, in bytes.

    Attributes:
        disk, free_disk: disk that the outputs take up at their peak, and free disk.
        bucket: what outputs at addresses take up there.
        memory, free_memory: memory for the largest block and what is read and written meanwhile, and free memory; on
            a GPU its own.
    """

    disk: int
    free_disk: int
    bucket: int
    memory: int
    free_memory: int

    def check(self, output: str) -> None:
        """Raise ``InputError`` if the run does not fit."""
        if self.disk > self.free_disk:
            raise InputError(
                f"{output} needs about {self.disk / 1e9:.1f} GB of disk, of which {self.free_disk / 1e9:.1f} are free. "
                f"Free some, choose another folder, or a part of the stack with --roi."
            )
        if self.memory > self.free_memory:
            raise InputError(
                f"{output} needs about {self.memory / 1e9:.1f} GB of memory, of which {self.free_memory / 1e9:.1f} are "
                f"free. Give less to the run with --memory, or close other programs."
            )


def needs(parts: Parts) -> Needs:
    """Disk and memory that a run needs on this machine."""
    job, plan = parts.job, parts.plan
    voxels, used = math.prod(plan.output_zyx), {True: 0.0, False: 0.0}
    sizes = [dtype.itemsize for dtype in job.dtypes]
    for path, size in zip(job.outputs, sizes, strict=True):
        # compression saves less than half of an electron micrograph; a pyramid is a seventh of its image
        here = isinstance(path, Path)
        used[here] += voxels * size * (8 / 7 / 2 if is_zarr_path(path) else 1)
        used[here] += 0 if parts.is_made_in_place(path) else voxels * size / 2
    free = min((shutil.disk_usage(path.parent).free for path in job.outputs if isinstance(path, Path)), default=0)
    config, device = parts.restorer.network.config, parts.restorer.device
    memory = block_bytes(plan, config, device, np.dtype(job.input_dtype).itemsize)
    return Needs(int(used[True]), free, int(used[False]), int(memory), free_memory(device))


@dataclass(frozen=True)
class Forecast:
    """Estimated time and needs of a run.

    Attributes:
        needs: disk and memory.
        voxels, parts, blocks: numbers of voxels, parts and blocks of the output.
        block_seconds: seconds that the network took for one block on this device.
    """

    needs: Needs
    voxels: int
    parts: int
    blocks: int
    block_seconds: float

    @property
    def seconds(self) -> float:
        """Seconds of one process; reading, writing and the pyramid add about a twentieth on a local disk."""
        return self.blocks * self.block_seconds


def forecast(parts: Parts) -> Forecast:
    """Compute one block in the middle of a stack and estimate from it what the run needs; nothing is written.

    Raises:
        InputError: the stack cannot be read.
    """
    number = len(parts.boxes) // 2
    whole, seen = parts.plan.input_box(parts.boxes[number]), parts.read(number)
    blocks = list(parts.plan.blocks(parts.boxes[number]))
    block = blocks[len(blocks) // 2]
    seconds = min(
        timed(parts.restorer.restore, seen.voxels[within(block.input, whole)], block)[1] for _ in range(2)
    )  # the first one warms up
    voxels = math.prod(parts.plan.output_zyx)
    fraction = math.prod(side.stop - side.start for side in block.output) / voxels
    of_all = seconds / fraction / len(parts.plan)  # blocks at the end of an axis are smaller
    return Forecast(needs(parts), voxels, len(parts.boxes), len(parts.plan), of_all)
