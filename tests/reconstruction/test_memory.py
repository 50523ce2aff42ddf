"""The tile that makes the most of the memory there is."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from emformer_hub import devices, machine
from emformer_hub.configuration_emformer import EMformerConfig
from emformer_hub.errors import InputError
from emformer_hub.geometry import SectionModel
from emformer_hub.reconstruction import memory
from emformer_hub.reconstruction.blocks import Plan, make_plan
from emformer_hub.reconstruction.memory import block_bytes, choose_memory, choose_tile
from emformer_hub.reconstruction.parts import chunk_sides

CPU, CONFIG = torch.device("cpu"), EMformerConfig()
SHAPES = [((125, 1000, 1000), 8), ((1000, 1000, 1000), 1), ((300, 2000, 1500), 4.886), ((62, 1000, 1000), 16)]


def plan_of(shape: tuple[int, int, int], factor: float, gigabytes: float, **options: int) -> Plan:
    sections = SectionModel(factor)
    tile = choose_tile(shape, sections, CONFIG, CPU, memory=gigabytes, voxel_bytes=1, **options)
    return make_plan(shape, sections, CONFIG, tile)


@pytest.mark.parametrize(("shape", "factor"), SHAPES)
def test_more_memory_computes_fewer_voxels_twice(shape: tuple[int, int, int], factor: float) -> None:
    plans = {gigabytes: plan_of(shape, factor, gigabytes) for gigabytes in (1, 2, 4, 8)}
    assert all(block_bytes(plan, CONFIG, CPU, 1) <= gigabytes * 1e9 for gigabytes, plan in plans.items())
    excess = [plan.computed / math.prod(shape) for plan in plans.values()]
    assert excess == sorted(excess, reverse=True)
    assert excess[1] < 1.4 and excess[-1] < 1.2


def test_a_stack_that_memory_holds_is_one_block() -> None:
    assert len(plan_of((80, 320, 320), 8, 4)) == 1


@pytest.mark.parametrize("workers", [2, 3, 16])
def test_each_of_several_workers_has_two_blocks_or_more(workers: int) -> None:
    assert len(plan_of((80, 320, 320), 8, 4, workers=workers)) >= 2 * workers


def test_too_little_memory_is_refused_with_what_is_needed() -> None:
    with pytest.raises(InputError, match=r"memory is 0\.5 GB; the smallest blocks need about (0\.\d)") as found:
        plan_of((500, 1000, 1000), 8, 0.5)
    needed = float(str(found.value).split("about ")[1].split(". ")[0])
    plan_of((500, 1000, 1000), 8, needed + 0.1)
    with pytest.raises(InputError, match="memory is -1 GB; expected a positive number"):
        plan_of((500, 1000, 1000), 8, -1)


@pytest.mark.parametrize(("free", "workers", "expected"), [(64, 1, 8), (15, 1, 4), (64, 8, 4), (0.2, 1, 1)])
def test_the_default_is_coarse(monkeypatch: pytest.MonkeyPatch, free: float, workers: int, expected: int) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda device: free * 1e9)
    assert choose_memory(None, CPU, workers) == expected * 1e9
    assert choose_memory(3.5, CPU, workers) == 3.5e9


def test_a_container_has_the_memory_that_it_is_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = tmp_path / "slurm" / "job"
    job.mkdir(parents=True)
    for folder, limit in ((job, "max"), (job.parent, str(10**9))):
        (folder / "memory.max").write_text(limit + "\n")
        (folder / "memory.current").write_text("900000000\n")
        (folder / "memory.stat").write_text("anon 5\ninactive_file 300000000\n")
    (tmp_path / "cgroup").write_text("4:memory:/other\n0::/slurm/job\n")
    monkeypatch.setattr(machine, "CONTROL_GROUPS", (tmp_path / "cgroup", tmp_path))
    assert devices.free_memory(CPU) == machine.free_memory() == 400_000_000


def test_every_dtype_counts() -> None:
    plan = plan_of((125, 1000, 1000), 8, 2)
    needs = [block_bytes(plan, CONFIG, CPU, np.dtype(dtype).itemsize) for dtype in ("uint8", "uint16", "float64")]
    assert needs == sorted(needs) and needs[0] < needs[-1]


@pytest.mark.parametrize(("shape", "factor"), SHAPES)
@pytest.mark.parametrize("gigabytes", [1, 2, 8])
def test_chunks_of_a_large_block_stay_small_and_are_whole(
    shape: tuple[int, int, int], factor: float, gigabytes: float
) -> None:
    plan = plan_of(shape, factor, gigabytes)
    for chunk, block, length in zip(chunk_sides(plan), plan.block_zyx, plan.output_zyx, strict=True):
        assert 32 <= chunk <= 128 and (block % chunk == 0 or block >= length)
