"""Does it scale? Memory against size, what the runner costs, workers, planning, and what terabytes would take.

    python benchmarks/scale.py --json scale.json

prints six Markdown tables (half an hour on two cores); benchmarks/README.md says what each column means.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import zarr
from _fresh import FACTOR, in_fresh_process, make_stack, one_run, peak_bytes
from _options import JSON
from _pipeline import Cluster, Stage, bounds, simulate
from _report import Columns, describe_run, print_header, print_table, start, write_json

from emformer_hub.configuration_emformer import EMformerConfig
from emformer_hub.devices import choose_device, choose_precision, dtype_name
from emformer_hub.geometry import SectionModel, VoxelSize
from emformer_hub.modeling_emformer import EMformerModel
from emformer_hub.processing_emformer import EMformerProcessor
from emformer_hub.reconstruction.blocks import make_plan
from emformer_hub.reconstruction.cluster import on_dask
from emformer_hub.reconstruction.cluster import run as give_out
from emformer_hub.reconstruction.from_file import reconstruct_file
from emformer_hub.reconstruction.job import Job, make_job
from emformer_hub.reconstruction.parts import Made, Parts, here, part_sides, parts_of
from emformer_hub.volumes import boxes, open_volume

SIZES = {"0.06": (32, 512, 512), "0.25": (32, 1024, 1024), "1": (64, 1448, 1448)}
"""Gigavoxels of a result, and sections, rows and columns of the stack."""
CHEAP = EMformerConfig(hidden_size=8, num_hidden_layers=1, num_basis=6, num_scale_basis=3, condition_size=8)
"""A network whose results are of no use: what is measured is all that is around it."""
WORKERS = (1, 2, 4)
"""Processes of one thread each."""
BLOCKS = 100_000
JOB: dict[str, Any] = {"voxel_size": VoxelSize(8 * FACTOR, 8, 8), "factor": FACTOR}

MEMORY: Columns = {
    "result Gvoxel": lambda row: row["gigavoxels"],
    "peak memory GB": lambda row: f"{row['peak_bytes'] / 1e9:.2f}",
    "seconds": lambda row: f"{row['seconds']:.0f}",
    "Mvoxel/s": lambda row: f"{row['voxels'] / row['seconds'] / 1e6:.2f}",
}
OVERHEAD: Columns = {
    "model": lambda row: row["model"],
    "network alone s": lambda row: f"{row['network_s']:.1f}",
    "from file to file s": lambda row: f"{row['whole_s']:.1f}",
    "overhead": lambda row: f"{100 * (row['whole_s'] / row['network_s'] - 1):+.1f} %",
}
SCALING: Columns = {
    "workers": lambda row: f"{row['workers']}",
    "parts": lambda row: f"{row['parts']}",
    "seconds": lambda row: f"{row['seconds']:.0f}",
    "times as fast": lambda row: f"{row['speedup']:.2f}",
    "same voxels": lambda row: "yes" if row["same"] else "NO",
}
PLANNING: Columns = {
    "blocks": lambda row: f"{row['blocks']:,}",
    "parts": lambda row: f"{row['parts']:,}",
    "result Tvoxel": lambda row: f"{row['voxels'] / 1e12:.2f}",
    "planned in s": lambda row: f"{row['plan_s']:.1f}",
    "given out in s": lambda row: f"{row['give_out_s']:.0f}",
    "peak memory GB": lambda row: f"{row['peak_bytes'] / 1e9:.2f}",
}
COSTS: Columns = {
    "model": lambda row: f"{row['model']}, {row['ensemble']} passes",
    "network": lambda row: f"{row['network']:,.0f}",
    "reading": lambda row: f"{row['reading']:.1f}",
    "writing": lambda row: f"{row['writing']:.1f}",
    "pyramid": lambda row: f"{row['pyramid']:.1f}",
    "GB read": lambda row: f"{row['bytes_read'] / 1e9:.2f}",
    "GB written": lambda row: f"{row['bytes_written'] / 1e9:.2f}",
}
FORECAST: Columns = {
    "result TB": lambda row: f"{row['terabytes']:g}",
    "workers": lambda row: f"{row['workers']:,}",
    "each": lambda row: "2 cores" if row["times_as_fast"] == 1 else f"{row['times_as_fast']:g} x as fast",
    "days": lambda row: f"{row['seconds'] / 86400:.1f}",
    "at least": lambda row: f"{max(row['bounds'].values()) / 86400:.1f}",
    "held up by": lambda row: max(row["bounds"], key=row["bounds"].get),
    "core hours": lambda row: f"{row['core_hours']:,.0f}",
    "TB stored": lambda row: f"{row['stored_tb']:.1f}",
    "computing $": lambda row: f"{row['price_computing']:,.0f}" if row["times_as_fast"] == 1 else "-",
    "a month of storage $": lambda row: f"{row['price_month']:,.0f}",
}
PARTS = ["memory", "overhead", "workers", "planning", "forecast"]
TERABYTES = {1: (32, 320), 10: (320, 3200), 100: (3200, 32000)}
"""Of 8-bit voxels in a result, and the workers that make it."""
FASTER = 100
"""Times as fast as two cores: a worker with an accelerator, as an assumption."""
STORAGE_RATE = 5e9
"""Bytes a second, of all workers together: a parallel file system or a bucket."""
GIVE_OUT_RATE = 300.0
"""Parts a second: what the table of planning finds on two cores."""
CORE_HOUR, TB_MONTH = 0.04, 23.0
"""Dollars: list prices of the large clouds are near."""


def make_model(folder: Path) -> str:
    torch.manual_seed(0)
    EMformerModel(CHEAP).save_pretrained(folder)
    EMformerProcessor().save_pretrained(folder)
    return str(folder)


def memory(folder: Path, sizes: dict[str, tuple[int, int, int]]) -> Iterator[dict[str, Any]]:
    """One run for each size, in a process of its own."""
    model = make_model(folder / "cheap")
    for gigavoxels, shape in sizes.items():
        in_fresh_process(make_stack, folder / f"{gigavoxels}.zarr", shape)
        found = in_fresh_process(
            one_run, folder / f"{gigavoxels}.zarr", folder / "out.zarr", model, torch.get_num_threads()
        )
        yield {"gigavoxels": gigavoxels, "voxels": int(np.prod(shape) * FACTOR), **found}


def overhead(folder: Path, model: str, shape: tuple[int, int, int]) -> Iterator[dict[str, Any]]:
    """The same parts by the network alone, from memory to memory, and from file to file."""
    make_stack(folder / "stack.zarr", shape)
    one_run(
        folder / "stack.zarr", folder / "out.zarr", model, torch.get_num_threads()
    )  # warms up, and loads the weights
    parts: Parts | None = None

    def alone(job: Job, numbers: list[int], device: str | None) -> Iterable[Made]:
        nonlocal parts
        parts = parts_of(job)
        return here(job, numbers, device)

    begin = time.perf_counter()
    settings: dict[str, Any] = {"factor": FACTOR, "model": model, "ensemble": 1, "overwrite": True}
    reconstruct_file(
        folder / "stack.zarr", folder / "out.zarr", voxel_size=VoxelSize(8 * FACTOR, 8, 8), scheduler=alone, **settings
    )
    whole = time.perf_counter() - begin
    assert parts is not None
    read = [parts.read(number) for number in range(len(parts.boxes))]
    begin = time.perf_counter()
    for number, seen in enumerate(read):
        parts.make(number, seen)
    yield {"model": model, "network_s": time.perf_counter() - begin, "whole_s": whole}


def scaling(folder: Path, model: str, shape: tuple[int, int, int]) -> Iterator[dict[str, Any]]:
    """The same run by more and more Dask workers, each a process with one thread; starting them counts."""
    in_fresh_process(make_stack, folder / "stack.zarr", shape)
    first: dict[str, Any] = {}
    precision = dtype_name(choose_precision("auto", choose_device()))  # measured once: it may differ between processes
    for workers in WORKERS:
        output = folder / f"{workers}.zarr"
        row = in_fresh_process(by_workers, folder / "stack.zarr", output, model, workers, precision)
        first = first or row
        same = row["checksum"] == first["checksum"]
        yield {**row, "workers": workers, "speedup": first["seconds"] / row["seconds"], "same": same}


def by_workers(stack: Path, output: Path, model: str, workers: int, precision: str) -> dict[str, Any]:
    begin = time.perf_counter()
    settings: dict[str, Any] = {"factor": FACTOR, "model": model, "ensemble": 1, "precision": precision}
    record = reconstruct_file(
        stack, output, voxel_size=VoxelSize(8 * FACTOR, 8, 8), scheduler=on_dask("processes", workers), **settings
    )
    seconds = time.perf_counter() - begin
    checksum = hashlib.sha256()
    data = open_volume(output).data
    for plane in range(data.shape[0]):
        checksum.update(np.asarray(data[plane : plane + 1]).tobytes())
    parts = json.loads(record.read_text())["parts"]
    return {"model": model, "seconds": seconds, "parts": parts, "checksum": checksum.hexdigest()}


def costs(folder: Path, model: str, shape: tuple[int, int, int]) -> dict[str, Any]:
    """What a gigavoxel takes: seconds of this machine, and bytes."""
    make_stack(folder / "stack.zarr", shape)
    ensemble = 2
    record = reconstruct_file(
        folder / "stack.zarr",
        folder / "costs.zarr",
        **JOB,
        model=model,
        ensemble=ensemble,
    )
    facts, voxels = json.loads(record.read_text()), open_volume(folder / "costs.zarr").data.size
    parts = Parts(make_job(folder / "stack.zarr", folder / "no.zarr", **JOB, model=model))
    seen = sum(parts.read(number).voxels.nbytes for number in range(len(parts.boxes)))
    written = sum(file.stat().st_size for file in (folder / "costs.zarr").rglob("*") if file.is_file())
    per_gigavoxel = {name: seconds / voxels * 1e9 for name, seconds in facts["seconds"].items()}
    sizes = {"bytes_read": seen / voxels * 1e9, "bytes_written": written / voxels * 1e9}
    return {"model": model, "ensemble": ensemble, "part_voxels": voxels / facts["parts"], **per_gigavoxel, **sizes}


def forecast(cost: dict[str, Any], wanted: dict[int, tuple[int, int]] = TERABYTES) -> Iterator[dict[str, Any]]:
    """What terabytes take, by the costs of a gigavoxel on this machine and the model of a cluster."""
    for terabytes, few_and_many in wanted.items():
        for workers in few_and_many:
            yield _forecast(cost, terabytes, workers, 1)
        yield _forecast(cost, terabytes, few_and_many[0], FASTER)


def _forecast(cost: dict[str, Any], terabytes: int, workers: int, times_as_fast: float) -> dict[str, Any]:
    gigavoxels, part = terabytes * 1e3, cost["part_voxels"] / 1e9
    disk_s = cost["reading"] + cost["writing"]
    moved = cost["bytes_read"] + cost["bytes_written"]
    stages = [Stage(int(gigavoxels / part), part * (cost["network"] / times_as_fast + disk_s), part * moved)]
    while stages[-1].parts > 1:  # a level has an eighth of the parts of the one before
        seconds, size = part * 7 * cost["pyramid"], part * 9 * cost["bytes_written"]
        stages.append(Stage(-(-stages[-1].parts // 8), seconds, size))
    cluster = Cluster(workers, STORAGE_RATE, GIVE_OUT_RATE)
    core_hours = 2 * workers * bounds(stages, cluster)["workers"] / 3600
    stored = gigavoxels * cost["bytes_written"] / 1e12
    return {
        "terabytes": terabytes,
        "workers": workers,
        "times_as_fast": times_as_fast,
        "seconds": simulate(stages, cluster),
        "bounds": bounds(stages, cluster),
        "core_hours": core_hours,
        "stored_tb": stored,
        "price_computing": core_hours * CORE_HOUR,
        "price_month": stored * TB_MONTH,
    }


def nothing(job: None, number: int) -> int:
    return number


def planning(blocks: int) -> dict[str, Any]:
    """Plan a volume of so many blocks, and give out its parts, as a run does, to a worker that does nothing."""
    from distributed import Client, LocalCluster

    begin = time.perf_counter()
    columns = 96 * blocks // 200  # 20 blocks along z, 10 along y
    plan = make_plan((640, 960, columns), SectionModel(FACTOR), EMformerConfig(), (48, 128, 128))
    divided = boxes(plan.output_zyx, part_sides(plan))
    count = sum(map(plan.num_blocks, divided))
    planned = time.perf_counter() - begin
    begin = time.perf_counter()
    with (
        LocalCluster(1, threads_per_worker=2, processes=False, dashboard_address=":0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        given = sum(1 for _ in give_out(client, nothing, None, list(range(len(divided)))))
    assert (given, count) == (len(divided), len(plan))
    return {
        "blocks": count,
        "parts": len(divided),
        "voxels": int(np.prod(plan.output_zyx)),
        "plan_s": planned,
        "give_out_s": time.perf_counter() - begin,
        "peak_bytes": peak_bytes(),
    }


@click.command(help=__doc__)
@click.option(
    "--part", "chosen", type=click.Choice(["memory", "overhead", "workers", "planning", "forecast"]), multiple=True
)
@click.option("--size", "sizes", type=click.Choice(list(SIZES)), multiple=True, help="Gigavoxels.  [default: all]")
@click.option("--blocks", type=int, default=BLOCKS, show_default=True)
@click.option("--model", default="emformer-small", show_default=True, help="Of the tables of overhead and workers.")
@JSON
def main(chosen: tuple[str, ...], sizes: tuple[str, ...], blocks: int, model: str, json_path: Path | None) -> None:
    device = choose_device()
    precision = str(choose_precision("auto", device)).removeprefix("torch.")
    run = describe_run(device, precision, factor=FACTOR, zarr=zarr.__version__)
    print_header(run)
    finished: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        wanted = {name: shape for name, shape in SIZES.items() if not sizes or name in sizes}
        tables = {
            "memory": (MEMORY, lambda: memory(Path(folder), wanted)),
            "overhead": (OVERHEAD, lambda: overhead(Path(folder), model, SIZES["0.06"])),
            "workers": (SCALING, lambda: scaling(Path(folder), model, SIZES["0.25"])),
            "planning": (PLANNING, lambda: iter([in_fresh_process(planning, blocks)])),
        }
        for name, (columns, rows) in tables.items():
            if not chosen or name in chosen:
                finished += [{"table": name, **row} for row in print_table(columns, rows())]
        if not chosen or "forecast" in chosen:
            (cost,) = print_table(COSTS, iter([in_fresh_process(costs, Path(folder), model, SIZES["0.06"])]))
            expected = print_table(FORECAST, forecast(cost))
            finished += [{"table": "costs", **cost}, *({"table": "forecast", **row} for row in expected)]
    if json_path:
        write_json(json_path, run, finished)


if __name__ == "__main__":
    start(main)
