"""How fast, how much arithmetic, how much memory? Reconstructions, bare passes of the network, and training.

    python benchmarks/speed.py --json speed.json
    python benchmarks/speed.py --part share

prints a Markdown table for each part; benchmarks/README.md says what each column means.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import psutil
import torch
from _arithmetic import count_flop
from _cases import TRAINING_STEPS, Case, Work, matmul_flop_per_s, parse_config, parse_sizes, timed
from _fresh import in_fresh_process, peak_bytes
from _options import JSON
from _report import RECIPE, Columns, describe_run, print_header, print_table, start, write_json
from _share import COLUMNS as SHARE_COLUMNS
from _share import SHAPES, shares

from emformer_hub.cli.options import DEVICE
from emformer_hub.devices import choose_device, choose_precision, computes_in_bfloat16
from emformer_hub.pretrained import resolve_pretrained
from emformer_hub.training.recipe import Recipe

SWEEP: dict[str, list[Any]] = {
    "factors": [8.0, 4.0, 16.0],
    "shapes": [(16, 96, 96), (32, 96, 96), (16, 192, 192)],
    "tiles": [(16, 64, 64)],
}
"""What is measured if nothing is asked for. The first factor and the first shape are the reference."""
TRAINING_ZYX = (192, 192, 256)
"""Of the volume to train on: the recipe's largest clips fit beside the columns that are held out for validation."""
ATTENTION = {"eager": "eager", "sdpa": "fused"}

COLUMNS: Columns = {
    "model": lambda row: row["model"],
    "what": lambda row: row["what"] + " (default)" * row["default"],
    "factor": lambda row: f"{row['factor']:g}" if row["factor"] else "drawn",
    "volume z,y,x": lambda row: ",".join(map(str, row["volume_zyx"])),
    "tile z,y,x": lambda row: ",".join(map(str, row["tile_zyx"])),
    "attention": lambda row: str(ATTENTION.get(row["attention"], row["attention"])),
    "precision": lambda row: row["precision"],
    "Mvoxel/s (range)": lambda row: "{median:.3f} ({min:.3f}–{max:.3f})".format(
        **{key: rate / 1e6 for key, rate in row["voxels_per_s"].items()}
    ),
    "kFLOP/voxel": lambda row: f"{row['flop_per_voxel'] / 1e3:.1f}",
    "of matrix-product rate": lambda row: f"{row['share_of_matmul_rate']:.0%}",
    "peak memory MB": lambda row: f"{row['peak_memory_bytes'] / 1e6:.0f}",
    "drawing data": lambda row: f"{row['drawing_share']:.1%}" if row["drawing_share"] else "–",
}
GPU_COLUMNS: Columns = {
    "run ms": lambda row: f"{statistics.median(row['seconds']) * 1e3:.2f}",
    "tile to GPU ms": lambda row: f"{row['copy_to_s'] * 1e3:.2f}" if row["copy_to_s"] else "–",
    "result from GPU ms": lambda row: f"{row['copy_from_s'] * 1e3:.2f}" if row["copy_from_s"] else "–",
}
"""Beside the others on a GPU only: a CPU copies nothing."""


def precisions(device: torch.device) -> list[str]:
    """float32, and bfloat16 where the device multiplies it in hardware."""
    return ["float32", "bfloat16"] if computes_in_bfloat16(device) else ["float32"]


def copy_seconds(case: Case, voxels: int, device: torch.device, repeats: int) -> list[float]:
    """Median seconds to copy a tile to the device, and its value and variance back, in float32 as ``reconstruct``."""
    tile, result = torch.zeros(case.tile_zyx), torch.zeros(2, voxels, device=device)
    runs = [[timed(job, device)[0] for _ in range(repeats + 1)] for job in (lambda: tile.to(device), result.cpu)]
    return [statistics.median(seconds[1:]) for seconds in runs]


def resident_peak_bytes(case: Case) -> int:
    """By how much one run raises this process's resident memory, its result excluded; meant for a fresh process."""
    job = case.prepare()
    before = psutil.Process().memory_info().rss
    work = job()
    return peak_bytes() - before - work.array_bytes


def peak_memory_bytes(case: Case, job: Callable[[], Work], device: torch.device) -> int:
    """Memory beyond model, input and result: the GPU's on a GPU, else, and on Apple's, that of a new process."""
    if device.type not in ("cuda", "xpu"):
        return in_fresh_process(resident_peak_bytes, case)
    memory = torch.get_device_module(device)
    before = memory.memory_allocated(device)
    memory.reset_peak_memory_stats(device)
    job()
    return memory.max_memory_allocated(device) - before


def measure(cases: list[Case], device: torch.device, repeats: int, matmul_rates: dict[str, float]) -> Iterator[dict]:
    """The rows of cases that are to be compared: their repeats take turns, so that a busy moment hits them alike."""
    jobs = [case.prepare() for case in cases]
    flop = [count_flop(job) for job in jobs]  # also warms up
    memory = [peak_memory_bytes(case, job, device) for case, job in zip(cases, jobs, strict=True)]
    turns = [[timed(job, device) for job in jobs] for _ in range(repeats)]
    for index, case in enumerate(cases):
        seconds, works = zip(*(turn[index] for turn in turns), strict=True)
        work, rates = works[0], [works[0].voxels / duration for duration in seconds]
        flop_per_voxel = flop[index] / work.voxels
        drawing = [run.drawing_s / duration for run, duration in zip(works, seconds, strict=True) if run.drawing_s]
        copies = case.what == "pass" and device.type != "cpu"
        copy_to, copy_from = copy_seconds(case, work.voxels, device, repeats) if copies else (None, None)
        yield {
            "model": case.model,
            "random_weights": case.random,
            "what": case.what,
            "factor": case.factor,
            "volume_zyx": list(case.volume_zyx),
            "tile_zyx": list(case.tile_zyx),
            "attention": work.attention,
            "precision": case.precision,
            "output_voxels": work.voxels,
            "seconds": list(seconds),
            "voxels_per_s": {"median": statistics.median(rates), "min": min(rates), "max": max(rates)},
            "flop_per_voxel": flop_per_voxel,
            "share_of_matmul_rate": flop_per_voxel * statistics.median(rates) / matmul_rates[case.precision],
            "peak_memory_bytes": memory[index],
            "drawing_share": statistics.median(drawing) if drawing else None,
            "copy_to_s": copy_to,
            "copy_from_s": copy_from,
        }


@click.command()
@click.option(
    "--part", "parts", type=click.Choice(["sweep", "share"]), multiple=True, default=["sweep"], show_default=True
)
@click.option("--model", "models", multiple=True, help="Name, folder or Hub id, repeatable.  [default: emformer-small]")
@click.option("--config", "configs", multiple=True, metavar="NAME=VALUE,...", help="Random weights of this shape.")
@DEVICE
@click.option("--factor", "factors", multiple=True, type=float, help="Output planes a section, repeatable.")
@click.option("--shape", "shapes", multiple=True, metavar="SECTIONS,Y,X", help="Of the volume, repeatable.")
@click.option("--tile", "tiles", multiple=True, metavar="SECTIONS,Y,X", help="Beside reconstruct's own, repeatable.")
@click.option("--repeats", type=click.IntRange(1), default=3, show_default=True)
@click.option("--threads", type=click.IntRange(1), help="Of the CPU.  [default: torch's]")
@JSON
def main(
    parts: tuple[str, ...],
    models: tuple[str, ...],
    configs: tuple[str, ...],
    device: str,
    factors: tuple[float, ...],
    shapes: tuple[str, ...],
    tiles: tuple[str, ...],
    repeats: int,
    threads: int | None,
    json_path: Path | None,
) -> None:
    """Print a table of speed, arithmetic and memory: reconstructions, bare passes of the network, and training.

    Reconstruction is measured with the first factor and the first shape, the reference, and then with one of the other
    factors, shapes or tiles at a time. Without any of them, a small sweep of all three is measured. The part "share"
    is how much of the bare network's rate whole runs of the shapes reach, by default of 80 x 320 x 320 and 256 x 512 x
    512 voxels at factor 8.
    """
    if threads:
        torch.set_num_threads(threads)
    chosen_device = choose_device(device)
    given: dict[str, list[Any]] = {
        "factors": list(factors),
        "shapes": [parse_sizes("shape", text) for text in shapes],
        "tiles": [parse_sizes("tile", text) for text in tiles],
    }
    sweep = given if any(given.values()) else SWEEP
    factor, *other_factors = sweep["factors"] or SWEEP["factors"][:1]
    shape, *other_shapes = sweep["shapes"] or SWEEP["shapes"][:1]
    names = {config: True for config in configs} | {model: False for model in models} or {"emformer-small": False}
    for name, random in names.items():
        parse_config(name) if random else resolve_pretrained(name)
    precision = str(choose_precision("auto", chosen_device)).removeprefix("torch.")
    matmul_rates = {each: matmul_flop_per_s(chosen_device, each) for each in precisions(chosen_device)}
    recipe = {"recipe": RECIPE.name, "clips a step": Recipe.load(RECIPE).batch_size, "steps": TRAINING_STEPS}
    run = describe_run(chosen_device, "per row", repeats=repeats, train=recipe, matmul_flop_per_s=matmul_rates)

    def rows() -> Iterator[dict[str, Any]]:
        for name, random in names.items():
            where = (str(chosen_device), torch.get_num_threads())
            whole = Case(name, random, "reconstruct", precision, shape, *where, factor)
            wholes = [whole, *(replace(whole, factor=other) for other in other_factors)]
            wholes += [replace(whole, volume_zyx=other) for other in other_shapes]
            wholes += [replace(whole, given_tile_zyx=tile) for tile in sweep["tiles"]]
            bare = replace(whole, what="pass")
            passes = [replace(bare, precision=each, attention=way) for each in matmul_rates for way in ATTENTION]
            training = Case(name, random, "train", precision, TRAINING_ZYX, *where)
            usual = None
            for cases in (wholes, passes, [training]):
                for case, row in zip(cases, measure(cases, chosen_device, repeats, matmul_rates), strict=True):
                    way = (row["attention"], row["precision"])
                    usual = usual or way  # that of the first reconstruction
                    yield row | {"default": way == usual if case.what == "pass" else case.given_tile_zyx is None}

    def shared_rows() -> Iterator[dict[str, Any]]:
        for name, random in names.items():
            where = (precision, str(chosen_device), torch.get_num_threads())
            yield from shares(name, random, given["shapes"] or SHAPES, *where, repeats)

    print_header(run)
    finished = []
    if "sweep" in parts:
        finished += print_table(COLUMNS | (GPU_COLUMNS if chosen_device.type != "cpu" else {}), rows())
    if "share" in parts:
        finished += print_table(SHARE_COLUMNS, shared_rows())
    if json_path:
        write_json(json_path, run, finished)


if __name__ == "__main__":
    start(main)
