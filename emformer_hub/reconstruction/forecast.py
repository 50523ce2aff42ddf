"""What a run from file to file will take of time, memory and disk, and whether this machine has it."""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from pathlib import Path

from emformer_hub.errors import InputError
from emformer_hub.reconstruction.blocks import Plan
from emformer_hub.reconstruction.job import Job, is_zarr_path
from emformer_hub.reconstruction.parts import Parts, part_sides, timed
from emformer_hub.volumes.boxes import within

NETWORK_BYTES = 10**9
"""That the network takes at most for a block of the default tile, on a CPU."""
PARTS_AT_ONCE = 3
"""In memory: one is made, one is written, and input is read ahead."""


@dataclass(frozen=True)
class Needs:
    """What a run takes of a machine, about, and what is there; bytes.

    Attributes:
        disk, free_disk: for the outputs, at the most that lies there at once.
        memory, free_memory: for the network on its largest block, and parts that are read, made and written.
    """

    disk: int
    free_disk: int
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
                f"free. Close other programs, or use another machine."
            )


def needs(job: Job, plan: Plan) -> Needs:
    """What a run takes of this machine."""
    from psutil import virtual_memory

    voxels, disk = math.prod(plan.output_zyx), 0.0
    sizes = [dtype.itemsize for dtype in job.dtypes]
    for path, size in zip(job.outputs, sizes, strict=True):
        # compression saves less than half of an electron micrograph; a pyramid is a seventh of its image
        disk += voxels * size * (8 / 7 / 2 if is_zarr_path(path) else 3 / 2)
    part = math.prod(map(min, part_sides(plan), plan.output_zyx))
    memory = NETWORK_BYTES + PARTS_AT_ONCE * part * sum(sizes)
    free = shutil.disk_usage(Path(job.output).parent).free
    return Needs(int(disk), free, memory, virtual_memory().available)


@dataclass(frozen=True)
class Forecast:
    """What a run will take.

    Attributes:
        needs: of disk and memory.
        voxels, parts, blocks: of the output.
        block_seconds: that the network took for one block, on this device.
    """

    needs: Needs
    voxels: int
    parts: int
    blocks: int
    block_seconds: float

    @property
    def seconds(self) -> float:
        """Of one process; reading, writing and the pyramid add a twentieth or so, on a disk of this machine."""
        return self.blocks * self.block_seconds


def forecast(parts: Parts) -> Forecast:
    """Make one block in the middle of a stack, and estimate from it what the whole takes; nothing is written.

    Raises:
        InputError: the stack cannot be read.
    """
    number = len(parts.boxes) // 2
    whole, seen = parts.plan.seen(parts.boxes[number]), parts.read(number)
    blocks = list(parts.plan.blocks(parts.boxes[number]))
    block = blocks[len(blocks) // 2]
    seconds = min(
        timed(parts.restorer.restore, seen[within(block.seen, whole)], block)[1] for _ in range(2)
    )  # the first one warms up
    voxels = math.prod(parts.plan.output_zyx)
    fraction = math.prod(side.stop - side.start for side in block.owned) / voxels
    of_all = seconds / fraction / len(parts.plan)  # blocks at the end of an axis are smaller
    return Forecast(needs(parts.job, parts.plan), voxels, len(parts.boxes), len(parts.plan), of_all)
