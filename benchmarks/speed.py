"""How fast, how much arithmetic, how much memory? Bare passes of the network and whole reconstructions.

    python benchmarks/speed.py --json speed.json

prints a Markdown table; benchmarks/README.md says what each column means.
"""

from __future__ import annotations

import json
import multiprocessing
import re
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from _report import Columns, OutputFile, describe_run, print_report, start, write_json
from huggingface_hub.errors import StrictDataclassError
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from emformer_hub.configuration_emformer import EMformerConfig
from emformer_hub.devices import choose_device, computes_in_bfloat16
from emformer_hub.errors import InputError
from emformer_hub.geometry import SectionModel
from emformer_hub.modeling_emformer import EMformerModel
from emformer_hub.pretrained import resolve_pretrained
from emformer_hub.reconstruction.runner import default_tile, reconstruct

MATMUL_SIDES = {"cpu": 2048, "cuda": 8192}
"""Side of the square products that measure a device's rate: large enough to keep it busy for the whole product."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
ATTENTION = {"eager": "eager", "sdpa": "fused"}

COLUMNS: Columns = {
    "model": lambda row: row["model"],
    "factor": lambda row: f"{row['factor']:g}",
    "what": lambda row: row["what"],
    "attention": lambda row: ATTENTION[row["attention"]],
    "precision": lambda row: row["precision"],
    "Mvoxel/s (range)": lambda row: "{median:.3f} ({min:.3f}–{max:.3f})".format(
        **{key: rate / 1e6 for key, rate in row["voxels_per_s"].items()}
    ),
    "kFLOP/voxel": lambda row: f"{row['flop_per_voxel'] / 1e3:.1f}",
    "of matrix-product rate": lambda row: f"{row['share_of_matmul_rate']:.0%}",
    "peak memory MB": lambda row: f"{row['peak_memory_bytes'] / 1e6:.0f}",
}

FRESH = multiprocessing.get_context("forkserver")
"""Processes to measure memory in. Not "spawn": across exec, Linux lets a process inherit the peak of its starter."""
FRESH.set_forkserver_preload(["emformer_hub.reconstruction.runner"])  # torch is imported once, not in each


def _fused_cpu_attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


FLOP_FORMULAE = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _fused_cpu_attention}
"""What torch's counter does not know by itself, and would count as nothing."""


@dataclass(frozen=True)
class Case:
    """One thing to measure: a row of the table.

    Attributes:
        model: a name, a folder, a Hub id, or settings of an ``EMformerConfig`` for random weights.
        random: which of the two ``model`` is.
        what: ``pass`` (the network on one tile) or ``reconstruct`` (the main job, one pass over a volume in memory).
        attention: ``eager`` or ``sdpa``; ``reconstruct`` runs the latter.
        shape_zyx: the volume, in sections and lateral voxels; a tile is at most as large as reconstruct's.
    """

    model: str
    random: bool
    factor: float
    what: str
    attention: str
    precision: str
    shape_zyx: tuple[int, int, int]
    device: str
    threads: int

    @property
    def input_zyx(self) -> tuple[int, int, int]:
        if self.what == "reconstruct":
            return self.shape_zyx
        sections, rows, columns = map(min, self.shape_zyx, default_tile(self.shape_zyx[0]))
        return sections, rows, columns

    @property
    def output_voxels(self) -> int:
        sections, rows, columns = self.input_zyx
        return SectionModel(self.factor).num_planes(sections) * rows * columns

    def load(self) -> EMformerModel:
        if not self.random:
            return EMformerModel.from_pretrained(self.model)
        torch.manual_seed(0)
        return EMformerModel(parse_config(self.model))

    def prepare(self) -> Callable[[], None]:
        """Load the model, make the input, and return what is to be measured."""
        torch.set_num_threads(self.threads)
        network = self.load().eval()
        network.to(device=self.device)
        network.set_attn_implementation(self.attention)
        volume = np.random.default_rng(0).integers(0, 256, self.input_zyx).astype(np.uint8)
        clip = torch.from_numpy(volume).to(self.device).float().permute(1, 0, 2)[None] / 255

        def one_pass() -> None:
            with torch.inference_mode(), torch.autocast(clip.device.type, torch.bfloat16, self.precision == "bfloat16"):
                network(clip, self.factor)

        def whole() -> None:
            reconstruct(
                volume,
                factor=self.factor,
                model=network,
                ensemble=1,
                device=self.device,
                precision=self.precision,
                progress=False,
            )

        return one_pass if self.what == "pass" else whole


def parse_config(text: str) -> EMformerConfig:
    """``"hidden_size=64,window_size=[4,4,8]"`` -> a configuration; what is not named has its default."""
    known = {field.name for field in fields(EMformerConfig)}
    settings = {}
    for part in re.split(r",(?=\s*\w+=)", text):
        name, _, value = part.strip().partition("=")
        try:
            settings[name] = json.loads(value)
        except json.JSONDecodeError:
            raise InputError(
                f"{part!r} is not NAME=NUMBER; expected such as hidden_size=64,window_size=[4,4,8]."
            ) from None
        if name not in known:
            raise InputError(f"EMformerConfig has no setting {name!r}; expected such as hidden_size, patch_size.")
    try:
        return EMformerConfig(**settings)
    except StrictDataclassError as error:
        raise InputError(f"configuration {text!r}: {error}") from error


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(job: Callable[[], object], device: torch.device) -> float:
    synchronize(device)
    begin = time.perf_counter()
    job()
    synchronize(device)
    return time.perf_counter() - begin


def matmul_flop_per_s(device: torch.device, precision: str, attempts: int = 10) -> float:
    """The rate of the fastest of several square matrix products, after one to warm up."""
    side = MATMUL_SIDES[device.type]
    a, b = torch.randn(2, side, side, device=device).to(DTYPES[precision])
    seconds = [seconds_of(lambda: torch.matmul(a, b), device) for _ in range(attempts + 1)]
    return 2 * side**3 / min(seconds[1:])


def count_flop(job: Callable[[], None]) -> int:
    """Floating-point operations of matrix products, convolutions and attention; a multiply-add counts as two."""
    with FlopCounterMode(display=False, custom_mapping=FLOP_FORMULAE) as counter:
        job()
    return counter.get_total_flops()


def resident_peak_bytes(case: Case) -> int:
    """By how much one run raises the peak of this process's resident memory; meant for a fresh process."""
    unit = 1 if sys.platform == "darwin" else 1024
    job = case.prepare()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    job()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit


def peak_memory_bytes(case: Case, job: Callable[[], None], device: torch.device) -> int:
    """Memory that one run takes beyond model and input: the GPU's on a GPU, else resident memory of a new process."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        job()
        return torch.cuda.max_memory_allocated(device) - before
    with ProcessPoolExecutor(1, mp_context=FRESH) as pool:
        return pool.submit(resident_peak_bytes, case).result()


def measure(cases: list[Case], device: torch.device, repeats: int, matmul_rates: dict[str, float]) -> Iterator[dict]:
    """The rows of cases that are to be compared: their repeats take turns, so that a busy moment hits them alike."""
    jobs = [case.prepare() for case in cases]
    flop = [count_flop(job) for job in jobs]  # also warms up
    memory = [peak_memory_bytes(case, job, device) for case, job in zip(cases, jobs, strict=True)]
    seconds = [[seconds_of(job, device) for job in jobs] for _ in range(repeats)]
    for index, case in enumerate(cases):
        rates = [case.output_voxels / turn[index] for turn in seconds]
        flop_per_voxel = flop[index] / case.output_voxels
        yield {
            "model": case.model,
            "random_weights": case.random,
            "factor": case.factor,
            "what": case.what,
            "attention": case.attention,
            "precision": case.precision,
            "input_zyx": list(case.input_zyx),
            "output_voxels": case.output_voxels,
            "seconds": [turn[index] for turn in seconds],
            "voxels_per_s": {"median": statistics.median(rates), "min": min(rates), "max": max(rates)},
            "flop_per_voxel": flop_per_voxel,
            "share_of_matmul_rate": flop_per_voxel * statistics.median(rates) / matmul_rates[case.precision],
            "peak_memory_bytes": memory[index],
        }


def parse_shape(text: str) -> tuple[int, int, int]:
    parts = text.split(",")
    if len(parts) != 3 or not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise InputError(f"shape {text!r} is not three sizes; expected SECTIONS,Y,X, as in 16,256,256.")
    sections, rows, columns = map(int, parts)
    return sections, rows, columns


@click.command()
@click.option("--model", "models", multiple=True, help="Name, folder or Hub id, repeatable.  [default: emformer-small]")
@click.option("--config", "configs", multiple=True, metavar="NAME=VALUE,...", help="Random weights of this shape.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--shape", default="16,256,256", show_default=True, metavar="SECTIONS,Y,X", help="Of the input volume.")
@click.option("--factor", "factors", multiple=True, type=float, default=[8], show_default=True, help="Repeatable.")
@click.option("--repeats", type=click.IntRange(1), default=5, show_default=True)
@click.option("--threads", type=click.IntRange(1), help="Of the CPU.  [default: torch's]")
@click.option("--json", "json_path", type=OutputFile(), help="Write everything that was measured.")
def main(
    models: tuple[str, ...],
    configs: tuple[str, ...],
    device: str,
    shape: str,
    factors: tuple[float, ...],
    repeats: int,
    threads: int | None,
    json_path: Path | None,
) -> None:
    """Print a table of speed, arithmetic and memory: bare passes of the network, and whole reconstructions."""
    if threads:
        torch.set_num_threads(threads)
    chosen_device, shape_zyx = choose_device(device), parse_shape(shape)
    names = {config: True for config in configs} | {model: False for model in models} or {"emformer-small": False}
    for name, random in names.items():
        parse_config(name) if random else resolve_pretrained(name)
    precisions = ["float32", "bfloat16"] if computes_in_bfloat16(chosen_device) else ["float32"]
    matmul_rates = {precision: matmul_flop_per_s(chosen_device, precision) for precision in precisions}
    run = describe_run(
        chosen_device,
        "per row",
        shape_zyx=list(shape_zyx),
        repeats=repeats,
        matmul_flop_per_s=matmul_rates,
    )

    def rows() -> Iterator[dict[str, Any]]:
        for name, random in names.items():
            for factor in factors:
                common = (shape_zyx, str(chosen_device), torch.get_num_threads())
                passes = [
                    Case(name, random, factor, "pass", attention, precision, *common)
                    for precision in precisions
                    for attention in ATTENTION
                ]
                whole = replace(passes[-1], what="reconstruct")  # in the precision and attention that are the default
                yield from measure([*passes, whole], chosen_device, repeats, matmul_rates)

    finished = print_report(run, COLUMNS, rows())
    if json_path:
        write_json(json_path, run, finished)


if __name__ == "__main__":
    start(main)
