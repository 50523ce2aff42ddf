"""What does fine-tuning buy? New instruments, little data, and an instrument spoilt on purpose.

    python benchmarks/finetuning.py --json finetune.json

trains each row (two hours in all on two cores) and prints three Markdown tables; benchmarks/README.md says
what each column means.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from _anisotropic import IN_PLANE_CROP, STACKS, Stack, in_plane, leave_one_out
from _figures import BASELINE
from _geometry import centre_crop
from _methods import EMformer, Interpolation, Method
from _options import JSON
from _report import DATA, Columns, describe_run, print_header, print_table, start, write_json
from safetensors.torch import load_file

from emformer_hub.cli.options import DEVICE
from emformer_hub.datasets.entry import VolumeEntry
from emformer_hub.geometry import SectionModel, VoxelSize
from emformer_hub.measurement import grey_range, psnr
from emformer_hub.model_files import is_adapter
from emformer_hub.modeling_emformer import EMformerModel
from emformer_hub.processing_emformer import to_dtype
from emformer_hub.training.loop import train
from emformer_hub.training.recipe import Recipe
from emformer_hub.training.trainee import trained_weights
from emformer_hub.volumes import read_volume, write_volume

BASE = "emformer-small"
INSTRUMENTS = {
    stack.name: stack
    for stack in (Stack("fibsem_tiny.tif", SectionModel(1), None), STACKS["sbem_cdeep3m"], STACKS["sstem_cremi"])
}
FACTORS = (4.0, 8.0)
"""Of the in-plane test. Learners draw these, and the factor of the sections, which are left out one by one."""
FEW_SECTIONS = (4, 8, 16, 32)
ODD = SectionModel(8.333)
PARTS = ("instruments", "sections", "spoilt")

LEARNED: Columns = {
    "data": lambda row: row["data"],
    "method": lambda row: row["method"],
    "minutes": lambda row: f"{row['minutes']:g}",
    "trained weights": lambda row: f"{row['trained']:,}",
    "file kB": lambda row: f"{row['bytes'] / 1e3:.0f}" if row["bytes"] else "",
}
INSTRUMENT_COLUMNS: Columns = {
    **LEARNED,
    "in plane x4 dB": lambda row: f"{row['in_plane_db'][0]:+.2f}",
    "x8 dB": lambda row: f"{row['in_plane_db'][1]:+.2f}",
    "over zero-shot dB": lambda row: f"{row['over_zero_shot_db']:+.2f}",
    "section left out dB": lambda row: f"{row['left_out_db']:+.2f}",
    "over zero-shot there dB": lambda row: f"{row['left_out_over_zero_shot_db']:+.2f}",
}
SECTIONS_COLUMNS: Columns = {
    "sections": lambda row: str(row["sections"]),
    **{name: cell for name, cell in INSTRUMENT_COLUMNS.items() if name not in LEARNED},
}
SPOILT_COLUMNS: Columns = {**LEARNED, "gain over bicubic dB": lambda row: f"{row['gain_over_bicubic_db']:+.2f}"}


@dataclasses.dataclass(frozen=True)
class Learner:
    """A recipe, and for how long."""

    name: str
    recipe: str | None
    minutes: float = 0.0

    def learn(self, volume: VolumeEntry, factors: tuple[float, ...], folder: Path) -> dict[str, Any]:
        """Train on a volume into ``folder``; ``{"method", "model", "minutes", "trained", "bytes"}``."""
        if self.recipe is None:
            return {"method": self.name, "model": BASE, "minutes": 0.0, "trained": 0, "bytes": 0}
        recipe = Recipe.load(self.recipe, volumes=[dataclasses.asdict(volume)], sampling={"factors": list(factors)})
        recipe = dataclasses.replace(recipe, minutes=self.minutes, steps=None, validate_every=10**9)
        train(recipe, folder)
        if is_adapter(folder):
            kept = folder / "adapter_model.safetensors"
            trained = sum(map(torch.Tensor.numel, load_file(kept).values()))
        else:
            kept = folder / "model.safetensors"
            trained = sum(map(torch.Tensor.numel, trained_weights(EMformerModel.from_pretrained(folder)).values()))
        described = {"method": self.name, "minutes": self.minutes, "trained": trained, "bytes": kept.stat().st_size}
        return {**described, "model": str(folder)}


def measured(stack: Stack, data: np.ndarray, model: str, device: str) -> dict[str, Any]:
    """In-plane gains over bicubic at x4 and x8, and the gain over the mean of both neighbours of a section left out."""
    methods: list[Method] = [Interpolation(BASELINE), EMformer(model, device, ensemble=2)]
    side = min(IN_PLANE_CROP, *data.shape[1:])
    rows = in_plane(stack, [centre_crop(data, [len(data), side, side])], methods)
    gains = [row["gain_over_bicubic_db"] for row in rows if row["method"] == model]
    (left_out,) = [row for row in leave_one_out(stack, [data], methods) if row["method"] == model]
    return {"in_plane_db": gains, "left_out_db": left_out["gain_over_trilinear_db"]}


def beside_zero_shot(rows: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Add the differences from the first row, which is that of the base."""
    first: dict[str, Any] | None = None
    for row in rows:
        first = first or row
        row["over_zero_shot_db"] = float(np.mean(row["in_plane_db"]) - np.mean(first["in_plane_db"]))
        row["left_out_over_zero_shot_db"] = row["left_out_db"] - first["left_out_db"]
        yield row


def instruments(stacks: tuple[str, ...], learners: list[Learner], runs: Path, device: str) -> Iterator[dict[str, Any]]:
    """One half of an unseen stack's sections to learn from, the other half to test on."""
    for stack in map(INSTRUMENTS.__getitem__, stacks):
        path = DATA / "eval" / stack.file
        (data,), ((first, _),) = stack.read(DATA / "eval"), stack.runs
        half = len(data) // 2
        size, thickness = f"{stack.geometry.factor:g},1,1", stack.geometry.thickness
        entry = VolumeEntry(str(path), size, thickness=thickness, sections=f"{first}:{first + half}")

        def rows(stack: Stack = stack, data: np.ndarray = data[half:], entry: VolumeEntry = entry) -> Iterator[Any]:
            for learner in learners:
                row = learner.learn(entry, (stack.geometry.factor, *FACTORS), runs / f"{stack.name}-{learner.name}")
                yield {"data": stack.name, **row, **measured(stack, data, row["model"], device)}

        yield from beside_zero_shot(rows())


def few_sections(learner: Learner, runs: Path, device: str) -> Iterator[dict[str, Any]]:
    """Learn from the first sections of one ssTEM stack, test on half of another of the same instrument."""
    stack = STACKS["sstem_cremi"]
    (data,) = stack.read(DATA / "eval")
    data = data[len(data) // 2 :]

    def rows() -> Iterator[dict[str, Any]]:
        yield {"sections": 0, "method": "zero-shot", **measured(stack, data, BASE, device)}
        for count in FEW_SECTIONS:
            entry = VolumeEntry(str(DATA / "train" / stack.file), "40,4,4", sections=f"0:{count}")
            row = learner.learn(entry, (stack.geometry.factor, *FACTORS), runs / f"{stack.name}-{count}-sections")
            yield {"sections": count, **row, **measured(stack, data, row["model"], device)}

    yield from beside_zero_shot(rows())


def spoil(volume: np.ndarray) -> np.ndarray:
    """Another instrument: softer, noisy, inverted, with a gamma. 8-bit in and out; the same noise every time."""
    from scipy.ndimage import gaussian_filter

    soft = gaussian_filter(volume.astype(np.float32), 1.0) / 255
    inverted = 255 * (1 - soft) ** 0.6
    return to_dtype(inverted + np.random.default_rng(0).normal(0, 6, volume.shape), np.dtype(np.uint8))


def spoilt(learners: list[Learner], runs: Path, device: str) -> Iterator[dict[str, Any]]:
    """Learn from sections of a spoilt volume at an odd factor, test on the same treatment of another place."""
    size = VoxelSize(8 * ODD.factor, 8, 8)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "spoilt.tif"
        treated = spoil(read_volume(DATA / "train" / "fibsem_fib25_a.tif").data)
        write_volume(path, to_dtype(ODD.degrade(treated), treated.dtype), size)
        truth = spoil(read_volume(DATA / "eval" / "fibsem_fib25_b.tif").data)
        sections = to_dtype(ODD.degrade(truth), truth.dtype)
        truth = truth[: ODD.num_planes(len(sections))]
        baseline = psnr(truth, Interpolation(BASELINE).restore(sections, ODD)[0], grey_range(truth))
        for learner in learners:
            row = learner.learn(VolumeEntry(str(path)), (ODD.factor,), runs / f"spoilt-{learner.name}")
            restored, _ = EMformer(row["model"], device, ensemble=2).restore(sections, ODD)
            gain = psnr(truth, restored, grey_range(truth)) - baseline
            yield {"data": f"fibsem_fib25_b, spoilt, x{ODD.factor:g}", **row, "gain_over_bicubic_db": gain}


@click.command()
@click.option("--part", "parts", multiple=True, type=click.Choice(PARTS), default=PARTS, show_default=True)
@click.option("--method", "methods", multiple=True, type=click.Choice(["lora", "full"]), default=["lora", "full"])
@click.option(
    "--stack",
    "stacks",
    multiple=True,
    type=click.Choice(list(INSTRUMENTS)),
    default=list(INSTRUMENTS),
    help="Repeatable.",
)
@click.option("--minutes", type=float, default=5.0, show_default=True, help="Of fine-tuning, each.")
@click.option("--scratch-minutes", type=float, default=30.0, show_default=True, help="Of training from scratch.")
@click.option("--runs", type=click.Path(path_type=Path), help="Keep the runs there.  [default: nowhere]")
@DEVICE
@JSON
def main(
    parts: tuple[str, ...],
    methods: tuple[str, ...],
    stacks: tuple[str, ...],
    minutes: float,
    scratch_minutes: float,
    runs: Path | None,
    device: str,
    json_path: Path | None,
) -> None:
    """Print what fine-tuning buys over the base, beside full training and training from scratch."""
    lora = Learner("lora", "lora", minutes)
    tuned = [Learner(method, method, minutes) for method in methods]
    zero_shot, scratch = Learner("zero-shot", None), Learner("from scratch", "pretrain", scratch_minutes)
    run = describe_run(device, base=BASE)
    print_header(run)
    with tempfile.TemporaryDirectory() as temporary:
        folder = runs or Path(temporary)
        rows = []
        if "instruments" in parts:
            rows += print_table(INSTRUMENT_COLUMNS, instruments(stacks, [zero_shot, *tuned], folder, device))
        if "sections" in parts:
            rows += print_table(SECTIONS_COLUMNS, few_sections(lora, folder, device))
        if "spoilt" in parts:
            rows += print_table(SPOILT_COLUMNS, spoilt([zero_shot, *tuned, scratch], folder, device))
    if json_path:
        write_json(json_path, run, rows)


if __name__ == "__main__":
    start(main)
