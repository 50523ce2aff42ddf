"""How do errors compare with the uncertainty that is stated? Measured on ``train/``, kept with the weights.

    python benchmarks/calibrate.py --model emformer-small --output model_cards/emformer-small

prints a Markdown table; benchmarks/README.md says what is measured on what.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import click
import numpy as np
from _gaps import Sections, as_imaged, degraded, gaps, lateral_middle
from _methods import Run, runner
from _options import MODEL
from _report import DATA, Columns, describe_file, describe_run, print_report, start

from emformer_hub.cli.options import DEVICE
from emformer_hub.geometry import SectionModel
from emformer_hub.modes import MODES
from emformer_hub.processing_emformer import EMformerProcessor
from emformer_hub.reconstruction import Reconstruction
from emformer_hub.uncertainty import PROBABILITIES, ErrorQuantiles
from emformer_hub.volumes import read_volume

TRUTH = "fibsem_fib25_a"
HELD_OUT = 64
"""Columns at the end of a volume that training never sees; as many beside them are context."""
PLANES, ROWS = 256, 128
THICK = {"x4 t=1": SectionModel(4), "x6.7 t=1": SectionModel(6.7), "x8 t=1": SectionModel(8)}
THIN = {
    "x4 t=1/4": SectionModel(4, 1 / 4, 1),
    "x6.7 t=1/6.7": SectionModel(6.7, 1 / 6.7, 2),
    "x8 t=1/8": SectionModel(8, 1 / 8, 3),
}
STACKS = {
    "sssem_icon": SectionModel(5),
    "sstem_bock11": SectionModel(11.25),
}
"""Of licences that allow any use of what is measured on them."""
SIDE = 128
FEWEST = 6
"""Sections of a truth, below which it says too little of a factor."""

COLUMNS: Columns = {
    "mode": lambda row: row["mode"],
    "map": lambda row: row["map"],
    "data": lambda row: row["data"],
    "compared": lambda row: row["compared"],
    "multiples that hold 50, 80, 95 %": lambda row: ", ".join(
        f"{row['multiples'][PROBABILITIES.index(share)]:.3f}" for share in (0.5, 0.8, 0.95)
    ),
}


UNSEEN = "fibsem_gala"
"""Another isotropic volume, of an instrument that emformer-small was not trained on."""


def multiples(error: np.ndarray, stated: np.ndarray) -> list[float]:
    return [float(q) for q in np.quantile(np.abs(error) / stated, PROBABILITIES)]


def planes(data: str, truth: np.ndarray, run: Run) -> Iterator[dict[str, Any]]:
    """The last columns of an isotropic volume: all planes, and of the thickest sections those that were masked."""
    for kind, geometries in (("full_thickness", THICK), ("single_plane", THIN)):
        for name, geometry in geometries.items():
            sections = degraded(truth, geometry)
            if len(sections) < FEWEST:
                continue
            there = truth[: geometry.num_planes(len(sections))].astype(np.float32)
            done = run(sections, geometry)
            yield of_planes(kind, data, name, done, there, slice(None))
            last = (sections, geometry, there, name)
        sections, geometry, there, name = last
        (mask, *_) = gaps(len(sections), 1)
        done = run(sections, geometry, mask=mask)
        where = mask[geometry.sections_of(len(there))]
        yield of_planes(f"masked_{kind}", data, f"{name}, masked", done, there, where)


def of_planes(kind: str, data: str, name: str, done: Reconstruction, truth: np.ndarray, where: Any) -> dict[str, Any]:
    inside = (where, slice(None), slice(-HELD_OUT, None))
    found = multiples((done.volume - truth)[inside], done.uncertainty[inside])
    return {"map": kind, "data": data, "compared": f"planes, {name}", "multiples": found}


def of_sections(stack: Sections, masks: list[np.ndarray], run: Run) -> dict[str, Any]:
    """Sections that were masked, as they are imaged: planes of one section are taken to err together."""
    errors, stated = [], []
    for mask in masks:
        done = run(stack.data, stack.geometry, mask=mask)
        errors.append((as_imaged(done.volume, stack.geometry, mask) - stack.data[mask])[:, :, -HELD_OUT:])
        stated.append(as_imaged(done.uncertainty, stack.geometry, mask)[:, :, -HELD_OUT:])
    found = multiples(np.concatenate(errors), np.concatenate(stated))
    return {"data": stack.name, "compared": "sections left out", "multiples": found}


def left_out(folder: Path, run: Run) -> Iterator[dict[str, Any]]:
    """The last columns of real stacks, in which sections were masked."""
    for name, geometry in STACKS.items():
        data = lateral_middle(read_volume(folder / f"{name}.tif").data[:, :, -2 * HELD_OUT :], SIDE)
        stack = Sections(name, np.ascontiguousarray(data), geometry)
        kind = "masked_full_thickness" if geometry.thickness == 1 else "masked_single_plane"
        yield {"map": kind, **of_sections(stack, list(gaps(len(stack.data), 1)), run)}


@click.command()
@MODEL
@click.option("--output", type=click.Path(path_type=Path), help="Folder whose processor keeps the maps.")
@DEVICE
def main(model: str, output: Path | None, device: str) -> None:
    """Print how many times the stated uncertainty holds which share of errors."""
    folder = DATA / "train"
    header = describe_run(
        device,
        data=[describe_file(folder / f"{name}.tif") for name in (TRUTH, UNSEEN, *STACKS)],
    )
    truths = {
        TRUTH: read_volume(folder / f"{TRUTH}.tif").data[:PLANES, :ROWS, -2 * HELD_OUT :],
        UNSEEN: np.ascontiguousarray(read_volume(folder / f"{UNSEEN}.tif").data.transpose(1, 0, 2)),
    }
    rows = print_report(header, COLUMNS, measured(folder, truths, model, device))
    if output:
        processor = EMformerProcessor.from_pretrained(model)
        processor.calibrate({mode: quantiles([row for row in rows if row["mode"] == mode]) for mode in MODES})
        (written,) = processor.save_pretrained(output)
        click.echo(f"{written}: sha256 {hashlib.sha256(Path(written).read_bytes()).hexdigest()}")


def measured(folder: Path, truths: dict[str, np.ndarray], model: str, device: str) -> Iterator[dict[str, Any]]:
    for mode in MODES:
        run = partial(runner(model, device), mode=mode)
        parts = [left_out(folder, run), *(planes(name, truth, run) for name, truth in truths.items())]
        for row in chain.from_iterable(parts):
            yield {"mode": mode, **row}


def quantiles(rows: list[dict[str, Any]]) -> ErrorQuantiles:
    """The mean over what was measured for each map."""
    kinds = dict.fromkeys(row["map"] for row in rows)
    means = {kind: np.mean([row["multiples"] for row in rows if row["map"] == kind], axis=0) for kind in kinds}
    return ErrorQuantiles(**{kind: mean.round(4).tolist() for kind, mean in means.items()})


if __name__ == "__main__":
    start(main)
