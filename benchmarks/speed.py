"""How fast, how much arithmetic, how much memory? Reconstructions, bare passes of the network, and training.

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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import psutil
import torch
from _arithmetic import count_flop
from _report import RECIPE, Columns, OutputFile, describe_run, print_report, start, write_json

from emformer_hub.configuration_emformer import EMformerConfig
from emformer_hub.devices import choose_device, choose_precision
from emformer_hub.errors import InputError
from emformer_hub.geometry import SectionModel, VoxelSize
from emformer_hub.losses import reconstruction_loss
from emformer_hub.modeling_emformer import EMformerModel
from emformer_hub.pretrained import resolve_pretrained
from emformer_hub.processing_emformer import EMformerProcessor
from emformer_hub.reconstruction.in_memory import reconstruct
from emformer_hub.reconstruction.memory import choose_tile
from emformer_hub.training.loop import make_trainable
from emformer_hub.training.recipe import Recipe
from emformer_hub.training.sampling import ClipBatches, TrainingVolume
from emformer_hub.training.trainee import Average, build_config
from emformer_hub.volumes.phantom import neuropil

Sizes = tuple[int, int, int]
"""Of a volume or a tile: sections and lateral voxels, along z, y and x."""

SWEEP: dict[str, list[Any]] = {
    "factors": [8.0, 4.0, 16.0],
    "shapes": [(16, 96, 96), (32, 96, 96), (16, 192, 192)],
    "tiles": [(16, 64, 64)],
}
"""What is measured if nothing is asked for. The first factor and the first shape are the reference."""
TRAINING_ZYX = (192, 192, 256)
"""Of the volume to train on: the recipe's largest clips fit beside the columns that are held out for validation."""
TRAINING_STEPS = 4

MATMUL_SIDE, MATMUL_SIDE_GPU = 2048, 8192
"""Side of the square products that measure a device's rate: large enough to keep it busy for the whole product."""
ATTENTION = {"eager": "eager", "sdpa": "fused"}

FRESH = multiprocessing.get_context("forkserver")
"""Processes to measure memory in. Not "spawn": across exec, Linux lets a process inherit the peak of its starter."""
FRESH.set_forkserver_preload(["emformer_hub.reconstruction.in_memory", "emformer_hub.training.loop"])  # torch: once

COLUMNS: Columns = {
    "model": lambda row: row["model"],
    "what": lambda row: row["what"] + " (default)" * row["default"],
    "factor": lambda row: f"{row['factor']:g}" if row["factor"] else "drawn",
    "volume z,y,x": lambda row: ",".join(map(str, row["volume_zyx"])),
    "tile z,y,x": lambda row: ",".join(map(str, row["tile_zyx"])),
    "attention": lambda row: ATTENTION.get(row["attention"], row["attention"]),
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


@dataclass(frozen=True)
class Work:
    """What one run of a case did.

    Attributes:
        voxels: of the output.
        attention: that the network ran with, as transformers calls it.
        array_bytes: size of the arrays that it returned, in main memory.
        drawing_s: seconds that it waited for training data.
    """

    voxels: int
    attention: str
    array_bytes: int = 0
    drawing_s: float | None = None


@dataclass(frozen=True)
class Case:
    """One thing to measure: a row of the table.

    Attributes:
        model: a name, a folder, a Hub id, or settings of an ``EMformerConfig`` for random weights.
        random: which of the two ``model`` is.
        what: ``reconstruct`` (the main job, one pass over a volume in memory), ``pass`` (the network on one tile), or
            ``train`` (some steps of training on the volume).
        precision: of matrix products, ``float32`` or ``bfloat16``.
        volume_zyx: the volume, in voxels along z, y and x.
        threads: of the CPU.
        factor: output planes a section; None where training draws it.
        attention: of the network, ``eager`` or ``sdpa``; None leaves it as the package sets it.
        given_tile_zyx: of ``reconstruct``; None is its default.
    """

    model: str
    random: bool
    what: str
    precision: str
    volume_zyx: Sizes
    device: str
    threads: int
    factor: float | None = None
    attention: str | None = None
    given_tile_zyx: Sizes | None = None

    @property
    def tile_zyx(self) -> Sizes:
        """The largest input of the network: at most the volume; in training a clip's sections, frames and columns."""
        if self.what == "train":
            sampling = Recipe.load(RECIPE).sampling
            return sampling.rows, sampling.frames, sampling.columns
        chosen = self.given_tile_zyx or choose_tile(
            self.volume_zyx, SectionModel(self.factor), self.config, torch.device(self.device), voxel_bytes=1
        )
        z, y, x = map(min, self.volume_zyx, chosen)
        return z, y, x

    @property
    def config(self) -> EMformerConfig:
        return parse_config(self.model) if self.random else EMformerConfig.from_pretrained(self.model)

    def load(self) -> EMformerModel:
        if not self.random:
            return EMformerModel.from_pretrained(self.model)
        torch.manual_seed(0)
        return EMformerModel(self.config).eval()

    def prepare(self) -> Callable[[], Work]:
        """Load the model, make the input, and return what is to be measured."""
        torch.set_num_threads(self.threads)
        network = self.load()
        network.to(device=self.device)
        if self.attention:
            network.set_attn_implementation(self.attention)
        return {"reconstruct": self._reconstruct, "pass": self._pass, "train": self._train}[self.what](network)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(torch.device(self.device).type, torch.bfloat16, self.precision == "bfloat16")

    def _reconstruct(self, network: EMformerModel) -> Callable[[], Work]:
        volume = np.random.default_rng(0).integers(0, 256, self.volume_zyx, np.uint8)
        settings: dict[str, Any] = {"factor": self.factor, "precision": self.precision, "tile_zyx": self.given_tile_zyx}

        def whole() -> Work:
            result = reconstruct(volume, model=network, ensemble=1, device=self.device, progress=False, **settings)
            array_bytes = result.volume.nbytes + result.uncertainty.nbytes
            return Work(result.volume.size, network.config._attn_implementation, array_bytes)

        return whole

    def _pass(self, network: EMformerModel) -> Callable[[], Work]:
        z, y, x = self.tile_zyx
        clip = torch.randn(1, y, z, x, device=self.device)  # frames, sections, columns

        def one_pass() -> Work:
            with torch.inference_mode(), self._autocast():
                out = network(clip, self.factor)
            return Work(out.reconstruction.numel(), network.config._attn_implementation)

        return one_pass

    def _train(self, network: EMformerModel) -> Callable[[], Work]:
        """The steps of ``emformer_hub.training.loop`` with the recipe's data, the same ones in every run."""
        recipe = Recipe.load(RECIPE)
        phantom = neuropil((64, 64, 128))  # reflected, because a large one takes long to make
        phantom = np.pad(phantom, [(0, n) for n in np.subtract(self.volume_zyx, phantom.shape)], "symmetric")
        volume = TrainingVolume("phantom", phantom, VoxelSize(8, 8, 8), EMformerProcessor().measure(phantom))
        batches = ClipBatches([volume], recipe.sampling, seed=recipe.seed, batch_size=recipe.batch_size)
        loader = torch.utils.data.DataLoader(
            batches, batch_size=None, num_workers=recipe.workers, pin_memory=network.device.type == "cuda"
        )
        network.train()
        optimizer = make_trainable(network, recipe, network.device, getattr(torch, self.precision))
        average = Average(network, recipe.ema_decay)

        def steps() -> Work:
            stream, drawing_s, voxels = iter(loader), 0.0, 0
            for step in range(TRAINING_STEPS):
                begin = time.perf_counter()
                batch = next(stream)
                drawing_s += time.perf_counter() - begin
                target = batch.pop("target").to(network.device)
                for name in ("independent", "volume"):  # which only the loss and the log look at
                    batch.pop(name, None)
                for name in ("sections", "section_mask"):
                    batch[name] = batch[name].to(network.device)
                with self._autocast():
                    out = network(**batch)
                loss, _ = reconstruction_loss(out.reconstruction, out.scale, target)
                loss.backward()
                norm = torch.nn.utils.clip_grad_norm_(network.parameters(), recipe.clip_norm)
                optimizer.step()
                optimizer.zero_grad()
                average.update(network, step + 1)
                float(norm)  # waits for the device, as the loop does to log it
                voxels += target.numel()
            return Work(voxels, network.config._attn_implementation, drawing_s=drawing_s)

        return steps


def parse_config(text: str) -> EMformerConfig:
    """``"hidden_size=64,window_size=[4,4,8]"`` -> a configuration; what is not named has its default."""
    settings = {}
    for part in re.split(r",(?=\s*\w+=)", text):
        name, _, value = part.strip().partition("=")
        try:
            settings[name] = json.loads(value)
        except json.JSONDecodeError:
            raise InputError(
                f"{part!r} is not NAME=NUMBER; expected such as hidden_size=64,window_size=[4,4,8]."
            ) from None
    return build_config(settings)


def timed(job: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    """Seconds until the device has finished, and what the job returns."""
    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    synchronize()
    begin = time.perf_counter()
    result = job()
    synchronize()
    return time.perf_counter() - begin, result


def precisions(device: torch.device) -> list[str]:
    """float32, and bfloat16 where the device multiplies it in hardware or the package chooses it."""
    if device.type == "cuda":
        hardware = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        hardware = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return ["float32", "bfloat16"] if hardware or choose_precision("auto", device) == torch.bfloat16 else ["float32"]


def matmul_flop_per_s(device: torch.device, precision: str, attempts: int = 10) -> float:
    """The rate of the fastest of several square matrix products, after one to warm up."""
    side = MATMUL_SIDE if device.type == "cpu" else MATMUL_SIDE_GPU
    a, b = torch.randn(2, side, side, device=device).to(getattr(torch, precision))
    seconds = [timed(lambda: torch.matmul(a, b), device)[0] for _ in range(attempts + 1)]
    return 2 * side**3 / min(seconds[1:])


def copy_seconds(case: Case, voxels: int, device: torch.device, repeats: int) -> list[float]:
    """Median seconds to copy a tile to the device, and its value and variance back, in float32 as ``reconstruct``."""
    tile, result = torch.zeros(case.tile_zyx), torch.zeros(2, voxels, device=device)
    runs = [[timed(job, device)[0] for _ in range(repeats + 1)] for job in (lambda: tile.to(device), result.cpu)]
    return [statistics.median(seconds[1:]) for seconds in runs]


def resident_peak_bytes(case: Case) -> int:
    """By how much one run raises this process's resident memory, its result excluded; meant for a fresh process."""
    unit = 1 if sys.platform == "darwin" else 1024
    job = case.prepare()
    before = psutil.Process().memory_info().rss
    work = job()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit - before - work.array_bytes


def peak_memory_bytes(case: Case, job: Callable[[], Work], device: torch.device) -> int:
    """Memory beyond model, input and result: the GPU's on a GPU, else resident memory of a new process."""
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
    turns = [[timed(job, device) for job in jobs] for _ in range(repeats)]
    for index, case in enumerate(cases):
        seconds, works = zip(*(turn[index] for turn in turns), strict=True)
        work, rates = works[0], [works[0].voxels / duration for duration in seconds]
        flop_per_voxel = flop[index] / work.voxels
        drawing = [run.drawing_s / duration for run, duration in zip(works, seconds, strict=True) if run.drawing_s]
        copies = case.what == "pass" and device.type == "cuda"
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


def parse_sizes(name: str, text: str) -> Sizes:
    """``"16,256,256"`` -> sizes along z, y and x; raises ``InputError`` that names the option."""
    parts = text.split(",")
    if len(parts) != 3 or not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise InputError(f"{name} {text!r} is not three sizes; expected SECTIONS,Y,X, as in 16,256,256.")
    z, y, x = map(int, parts)
    return z, y, x


@click.command()
@click.option("--model", "models", multiple=True, help="Name, folder or Hub id, repeatable.  [default: emformer-small]")
@click.option("--config", "configs", multiple=True, metavar="NAME=VALUE,...", help="Random weights of this shape.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--factor", "factors", multiple=True, type=float, help="Output planes a section, repeatable.")
@click.option("--shape", "shapes", multiple=True, metavar="SECTIONS,Y,X", help="Of the volume, repeatable.")
@click.option("--tile", "tiles", multiple=True, metavar="SECTIONS,Y,X", help="Beside reconstruct's own, repeatable.")
@click.option("--repeats", type=click.IntRange(1), default=3, show_default=True)
@click.option("--threads", type=click.IntRange(1), help="Of the CPU.  [default: torch's]")
@click.option("--json", "json_path", type=OutputFile(), help="Write everything that was measured.")
def main(
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
    factors, shapes or tiles at a time. Without any of them, a small sweep of all three is measured.
    """
    if threads:
        torch.set_num_threads(threads)
    chosen_device = choose_device(device)
    given = {
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

    finished = print_report(run, COLUMNS | (GPU_COLUMNS if chosen_device.type == "cuda" else {}), rows())
    if json_path:
        write_json(json_path, run, finished)


if __name__ == "__main__":
    start(main)
