"""How fast are other ways to an isotropic volume, and how much memory do they take, in the same run as ours?

    python benchmarks/peers.py --json peers.json

prints two Markdown tables: what was measured, and what papers state; benchmarks/README.md says what each column means.
Speed, arithmetic and memory do not depend on the values of weights, so networks whose weights are not at hand have
random ones; nothing here says how good a result is.
"""

from __future__ import annotations

import importlib.util
import math
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import psutil
import torch
import torch.nn.functional as F
from _arithmetic import count_flop
from _cases import Sizes, parse_sizes, timed
from _fresh import FACTOR, in_fresh_process, peak_bytes
from _options import JSON
from _report import Columns, describe_run, print_header, print_table, start, write_json
from scipy.ndimage import zoom
from torch import Tensor, nn

from emformer_hub.devices import dtype_name, faster_in_bfloat16
from emformer_hub.geometry import SectionModel
from emformer_hub.interpolation import Kind, interpolate
from emformer_hub.loading import load_model
from emformer_hub.processing_emformer import to_dtype
from emformer_hub.reconstruction.in_memory import reconstruct

Job = Callable[[], np.ndarray]
"""Restores a stack: ``(sections, y, x)`` to ``(planes, y, x)``, both uint8."""

SHAPE_ZYX: Sizes = (16, 128, 128)
QUICK_ZYX: Sizes = (4, 32, 32)
SECTIONS = SectionModel(FACTOR)
CPU = torch.device("cpu")
WIDTHS = (32, 64, 128)
"""Channels of the levels of CARE's U-Nets."""
SLICES = 8
"""Slices that IsotropicCARE restores at once."""
CAREAMICS = "CAREamics, 3-D U-Net"
INSTALL = "python -m venv peers && peers/bin/pip install -e . careamics"

STATED: list[dict[str, Any]] = [
    {"method": "VEMamba", "tflop": 0.28, "voxels": 128**3, "passes": 1},
    {"method": "IsoVEM", "tflop": 0.61, "voxels": 128**3, "passes": 8},
    {"method": "EMDiffuse", "tflop": 22.51, "voxels": 128**3, "passes": 1},
]
"""As Gao & Gao state them (VEMamba, CVPR 2026, arXiv 2603.00887), for results that are taken to have 128 voxels a side,
as those of their training have at factors 4 and 8. IsoVEM's program averages eight rotations unless told otherwise."""

MEASURED: Columns = {
    "method": lambda row: row["method"],
    "weights": lambda row: row["weights"],
    "precision": lambda row: row["precision"],
    "Mvoxel/s (range)": lambda row: "{median:.3f} ({min:.3f}–{max:.3f})".format(
        **{key: rate / 1e6 for key, rate in row["voxels_per_s"].items()}
    ),
    "CPU s/Mvoxel": lambda row: f"{1e6 * statistics.median(row['cpu_s']) / row['voxels']:.3f}",
    "kFLOP/voxel": lambda row: f"{row['flop_per_voxel'] / 1e3:.1f}" if row["flop_per_voxel"] else "–",
    "peak memory MB": lambda row: f"{row['peak_memory_bytes'] / 1e6:.0f}",
}
PAPERS: Columns = {
    "method": lambda row: row["method"],
    "kFLOP/voxel, a pass": lambda row: f"{row['flop_per_voxel'] / 1e3:.0f}",
    "passes by default": lambda row: f"{row['passes']}",
    "kFLOP/voxel by default": lambda row: f"{row['passes'] * row['flop_per_voxel'] / 1e3:.0f}",
}


class UNet(nn.Module):
    """U-Net with the default sizes of CSBDeep's CARE: two levels, two convolutions each, 5 x 5 or 3 x 3 x 3 kernels.

    Written after its defaults, as its source has them (Weigert et al., Nat. Methods 15, 2018); random weights.
    """

    def __init__(self, dimensions: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d if dimensions == 2 else nn.Conv3d
        self.pool = F.max_pool2d if dimensions == 2 else F.max_pool3d
        self.kernel = 5 if dimensions == 2 else 3
        first, second, third = WIDTHS
        self.down = nn.ModuleList([self._pair(1, first, first), self._pair(first, second, second)])
        self.bottom = self._pair(second, third, second)
        self.up = nn.ModuleList([self._pair(2 * second, second, first), self._pair(2 * first, first, first)])
        self.out = self.convolution(first, 1, kernel_size=1)

    def _pair(self, before: int, between: int, after: int) -> nn.Sequential:
        first, second = (
            self.convolution(*widths, kernel_size=self.kernel, padding="same")
            for widths in ((before, between), (between, after))
        )
        return nn.Sequential(first, nn.ReLU(), second, nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, 1, ...)``, sides multiples of 4 -> the same."""
        y, skipped = x, []
        for level in self.down:
            skipped.append(level(y))
            y = self.pool(skipped[-1], 2)
        y = self.bottom(y)
        for level in self.up:
            y = level(torch.cat([F.interpolate(y, scale_factor=2), skipped.pop()], 1))
        return x + self.out(y)


def emformer(model: str, ensemble: int, precision: str = "auto") -> Callable[[np.ndarray], Job]:
    """Ours, through ``reconstruct``."""

    def prepare(stack: np.ndarray) -> Job:
        network, _ = load_model(model)
        settings: dict[str, Any] = {"ensemble": ensemble, "precision": precision, "device": CPU, "progress": False}
        return lambda: reconstruct(stack, factor=FACTOR, model=network, **settings).volume

    return prepare


def interpolation(kind: Kind) -> Callable[[np.ndarray], Job]:
    """Along z, at the true section centres."""
    return lambda stack: lambda: to_dtype(interpolate(stack, SECTIONS, kind), stack.dtype)


def cubic_zoom(stack: np.ndarray) -> Job:
    """SciPy's spline of degree 3."""
    return lambda: zoom(stack, (FACTOR, 1, 1), order=3)


def sliced_unet(stack: np.ndarray) -> Job:
    """Interpolated linearly; the xz and the yz slices restored, eight at a time; the geometric mean of both."""
    network = _random(lambda: UNet(2))

    @torch.inference_mode()
    def job() -> np.ndarray:
        volume = _interpolated(stack)
        results = []
        for axis in (1, 2):
            slices = volume.movedim(axis, 0)[:, None].contiguous()
            restored = torch.cat([network(some) for some in slices.split(SLICES)])
            results.append(restored[:, 0].movedim(0, axis))
        return _as_image(torch.sqrt(results[0].clamp_min(0) * results[1].clamp_min(0)))

    return job


def whole_unet(stack: np.ndarray) -> Job:
    """Interpolated linearly; all of it restored at once."""
    return _whole(stack, _random(lambda: UNet(3)))


def careamics_unet(stack: np.ndarray) -> Job:
    """The 3-D network that CAREamics makes by default, on all at once, as it predicts unless tiles are asked for."""
    from careamics.config.architectures import UNetConfig
    from careamics.models.model_factory import model_factory

    return _whole(stack, _random(lambda: model_factory(UNetConfig(architecture="UNet", conv_dims=3))))


METHODS: dict[str, tuple[str, str, Callable[[np.ndarray], Job]]] = {
    "emformer-small, as by default: 2 passes": ("published", "auto", emformer("emformer-small", 2)),
    "emformer-small, 1 pass": ("published", "auto", emformer("emformer-small", 1)),
    "emformer-small, 1 pass, float32": ("published", "float32", emformer("emformer-small", 1, "float32")),
    "emformer-tiny, 1 pass": ("published", "auto", emformer("emformer-tiny", 1)),
    "trilinear": ("–", "float32", interpolation("linear")),
    "bicubic": ("–", "float32", interpolation("cubic")),
    "scipy.ndimage.zoom, order 3": ("–", "float64", cubic_zoom),
    "IsotropicCARE, 2-D U-Net, both orientations": ("random", "float32", sliced_unet),
    "CARE, 3-D U-Net": ("random", "float32", whole_unet),
    CAREAMICS: ("random", "float32", careamics_unet),
}
"""What the weights are, the precision of matrix products, and how the job is made."""


def there() -> list[str]:
    """The methods whose packages are installed."""
    return [name for name in METHODS if name != CAREAMICS or importlib.util.find_spec("careamics")]


def make_job(method: str, shape: Sizes) -> Job:
    stack = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    return METHODS[method][2](stack)


def resident_peak(method: str, shape: Sizes, threads: int) -> int:
    """Bytes that one run needs at its peak beyond libraries, weights and input; meant for a fresh process."""
    torch.set_num_threads(threads)
    job = make_job(method, shape)
    before = psutil.Process().memory_info().rss
    job()
    return peak_bytes() - before


def measure(methods: list[str], shape: Sizes, repeats: int) -> Iterator[dict[str, Any]]:
    """A row for each method; they take turns, so that a busy moment of the machine hits all alike."""
    chosen = torch.bfloat16 if faster_in_bfloat16(CPU) else torch.float32  # which multiplies matrices, once
    jobs = [make_job(method, shape) for method in methods]
    flop = [count_flop(job) for job in jobs]  # also warms up
    memory = [in_fresh_process(resident_peak, method, shape, torch.get_num_threads()) for method in methods]
    turns = [[_timed(job) for job in jobs] for _ in range(repeats)]
    voxels = int(FACTOR) * math.prod(shape)
    for index, method in enumerate(methods):
        wall, cpu = zip(*(turn[index] for turn in turns), strict=True)
        rates = [voxels / seconds for seconds in wall]
        weights, precision, _ = METHODS[method]
        yield {
            "method": method,
            "weights": weights,
            "precision": dtype_name(chosen) if precision == "auto" else precision,
            "voxels": voxels,
            "wall_s": list(wall),
            "cpu_s": list(cpu),
            "voxels_per_s": {"median": statistics.median(rates), "min": min(rates), "max": max(rates)},
            "flop_per_voxel": flop[index] / voxels,
            "peak_memory_bytes": memory[index],
        }


def _timed(job: Job) -> tuple[float, float]:
    begin = time.process_time()
    wall, _ = timed(job, CPU)
    return wall, time.process_time() - begin


def _interpolated(stack: np.ndarray) -> Tensor:
    """Planes of a linear zoom, float32, from 0 to 1."""
    return torch.from_numpy(zoom(stack.astype(np.float32) / 255, (FACTOR, 1, 1), order=1))


def _as_image(volume: Tensor) -> np.ndarray:
    return to_dtype(255 * volume.numpy(), np.dtype(np.uint8))


def _random(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make().eval()


def _whole(stack: np.ndarray, network: nn.Module) -> Job:
    @torch.inference_mode()
    def job() -> np.ndarray:
        return _as_image(network(_interpolated(stack)[None, None])[0, 0])

    return job


@click.command()
@click.option("--shape", default=",".join(map(str, SHAPE_ZYX)), show_default=True, metavar="SECTIONS,Y,X")
@click.option("--repeats", type=click.IntRange(1), default=5, show_default=True)
@click.option("--threads", type=click.IntRange(1), help="Of the CPU.  [default: torch's]")
@click.option("--quick", is_flag=True, help="A tiny volume, once: does it run?")
@JSON
def main(shape: str, repeats: int, threads: int | None, quick: bool, json_path: Path | None) -> None:
    """Print tables of the speed, arithmetic and memory of other methods and ours, on a CPU, at factor 8."""
    if threads:
        torch.set_num_threads(threads)
    sizes = QUICK_ZYX if quick else parse_sizes("shape", shape)
    methods = there()
    run = describe_run("cpu", "per row", stack_zyx=list(sizes), repeats=1 if quick else repeats)
    print_header(run)
    rows = print_table(MEASURED, measure(methods, sizes, run["repeats"]))
    if CAREAMICS not in methods:
        click.echo(f"\n{CAREAMICS}: not installed, so it has no row; in an environment with both it has: `{INSTALL}`")
    stated = [{**one, "flop_per_voxel": 1e12 * one["tflop"] / one["voxels"]} for one in STATED]
    rows += print_table(PAPERS, stated)
    if json_path:
        write_json(json_path, run, rows)


if __name__ == "__main__":
    start(main)
