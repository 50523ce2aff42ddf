"""How near whole runs come to the rate of the bare network, and the network to that of the machine.

Rows that are compared take turns, so that a busy moment of the machine hits them alike; times are medians.
"""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _arithmetic import count_flop
from _cases import Case, Sizes, matmul_flop_per_s, timed
from _fresh import FACTOR, in_fresh_process, make_stack, one_run
from _report import Columns

from emformer_hub.geometry import SectionModel
from emformer_hub.reconstruction.blocks import make_plan
from emformer_hub.reconstruction.memory import choose_tile

SHAPES: list[Sizes] = [(80, 320, 320), (256, 512, 512)]
"""Of stacks that are reconstructed: sections, rows, columns."""
CLIP_ZYX: Sizes = (32, 128, 128)
"""What the bare network sees: a multiple of its windows, within the memory of any machine."""
OTHER_FACTORS = (4.0, 16.0, 5.5)
LARGE_ZYX: Sizes = (125, 1000, 1000)
"""A stack whose result at factor 8 has a gigavoxel."""
MEMORY_GB = 2.0
MATMUL_ATTEMPTS = 3

PRODUCTS = "{relative:.0%} of the matrix-product rate"
SECONDS = "{relative:.2f} times the seconds of factor 8 for equal tokens, {relative_cpu:.2f} of the processor"
RATE = "{relative:.0%} of the bare network's rate, {relative_cpu:.0%} by the processor's time"
COMPUTED = "{relative:.2f} computed voxels a kept one in 2 GB, tile {tile_zyx}"
PEAK = "{peak_gb:.2f} GB at the peak of its process, libraries included, with --memory 2"

COLUMNS: Columns = {
    "model": lambda row: row["model"],
    "what": lambda row: row["what"],
    "factor": lambda row: f"{row['factor']:g}",
    "sections, y, x": lambda row: ",".join(map(str, row["shape_zyx"])),
    "wall s (range)": lambda row: _range(row["wall_s"]),
    "CPU s": lambda row: f"{statistics.median(row['cpu_s']):.2f}" if row["cpu_s"] else "–",
    "Mvoxel/s": lambda row: f"{row['voxels'] / statistics.median(row['wall_s']) / 1e6:.3f}" if row["wall_s"] else "–",
    "finding": lambda row: row["finding"].format(**row),
}


def shares(
    model: str, random: bool, shapes: list[Sizes], precision: str, device: str, threads: int, repeats: int
) -> Iterator[dict[str, Any]]:
    """Rows of the table of one model; see ``benchmarks/README.md``."""

    def case(what: str, shape: Sizes, factor: float, tile: Sizes | None = None) -> Case:
        return Case(model, random, what, precision, shape, device, threads, factor, given_tile_zyx=tile)

    bare = [case("pass", CLIP_ZYX, factor, CLIP_ZYX) for factor in (FACTOR, *OTHER_FACTORS)]
    cases = [*bare, *(case("reconstruct", shape, FACTOR) for shape in shapes)]
    jobs = [one.prepare() for one in cases]
    flop = count_flop(jobs[0])
    for job in jobs[1 : len(bare) + 1]:  # warms up; larger volumes have nothing left to set up
        job()
    products, turns = [], []
    for _ in range(repeats):
        products.append(matmul_flop_per_s(torch.device(device), precision, MATMUL_ATTEMPTS))
        turns.append([_measured(job, torch.device(device)) for job in jobs])
    wall, cpu, voxels = np.moveaxis(np.array(turns), -1, 0)  # (turns, cases) each
    relative, relative_cpu = (np.median(times / times[:, :1], axis=0) for times in (wall, cpu))
    rows = []
    for index, one in enumerate(cases):
        of_bare, share = one.what == "pass", voxels[0, index] / voxels[0, 0]
        ratios = [relative[index], relative_cpu[index]] if of_bare else share / [relative[index], relative_cpu[index]]
        row = _about(one.what, model, one.factor or FACTOR, one.volume_zyx)
        row |= {"wall_s": wall[:, index].tolist(), "cpu_s": cpu[:, index].tolist(), "voxels": int(voxels[0, index])}
        row |= {"relative": float(ratios[0]), "relative_cpu": float(ratios[1])}
        rows.append(row | {"finding": SECONDS if of_bare else RATE})
    rows[0] |= {"relative": flop / float(np.median(wall[:, 0])) / max(products), "finding": PRODUCTS}
    yield from rows
    yield from _computed(bare[0])
    if not random:
        yield from _peaks(model, shapes, threads)


def _computed(case: Case) -> Iterator[dict[str, Any]]:
    geometry, device = SectionModel(FACTOR), torch.device(case.device)
    tile = choose_tile(LARGE_ZYX, geometry, case.config, device, memory=MEMORY_GB, voxel_bytes=1)
    computed = make_plan(LARGE_ZYX, geometry, case.config, tile).computed / math.prod(LARGE_ZYX)
    about = _about("plan", case.model, FACTOR, LARGE_ZYX)
    yield {**about, "relative": computed, "tile_zyx": list(tile), "finding": COMPUTED}


def _peaks(model: str, shapes: list[Sizes], threads: int) -> Iterator[dict[str, Any]]:
    """One run for each shape, from file to file, in a process of its own."""
    with tempfile.TemporaryDirectory() as name:
        for shape in shapes:
            stack, output = Path(name, f"{shape}.zarr"), Path(name, "out.zarr")
            in_fresh_process(make_stack, stack, shape)
            found = in_fresh_process(one_run, stack, output, model, threads, MEMORY_GB)
            times = {"wall_s": [found["seconds"]], "voxels": int(math.prod(shape) * FACTOR)}
            about = _about("from file to file", model, FACTOR, shape)
            yield {**about, **times, "peak_gb": found["peak_bytes"] / 1e9, "finding": PEAK}


def _about(what: str, model: str, factor: float, shape: Sizes) -> dict[str, Any]:
    about = {"model": model, "what": what, "factor": factor, "shape_zyx": list(shape)}
    return {**about, "wall_s": [], "cpu_s": [], "voxels": 0}


def _measured(job: Callable[[], Any], device: torch.device) -> tuple[float, float, int]:
    """Wall and processor seconds, and voxels of the output."""
    begin = time.process_time()
    wall, work = timed(job, device)
    return wall, time.process_time() - begin, work.voxels


def _range(seconds: list[float]) -> str:
    if not seconds:
        return "–"
    return f"{statistics.median(seconds):.2f} ({min(seconds):.2f}–{max(seconds):.2f})"
