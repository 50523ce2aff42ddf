"""Which network learns most in the same minutes? Variants of a recipe, trained one after the other, and their gains.

    python benchmarks/architecture.py --minutes 6 --threads 1 --variant model.attention_every=1

prints a Markdown table: the recipe as it is, then each variant. What followed from such tables is in
benchmarks/architecture.md. Gains are measured on the columns that the recipe holds out of its training volumes.
"""

from __future__ import annotations

import dataclasses
import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import torch
import yaml
from _arithmetic import count_flop
from _options import JSON
from _report import DATA, RECIPE, Columns, describe_run, print_header, print_table, start, write_json

from emformer_hub.devices import choose_device, choose_precision
from emformer_hub.errors import InputError
from emformer_hub.modeling_emformer import EMformerModel
from emformer_hub.training.loop import train
from emformer_hub.training.recipe import Recipe
from emformer_hub.training.trainee import build_config
from emformer_hub.training.validation import VALIDATION_GEOMETRIES

FACTOR, CLIP = 8.0, (1, 64, 16, 128)
"""Where arithmetic is counted: batch, frames, sections, columns."""


def varied(recipe: Recipe, text: str) -> Recipe:
    """A recipe with ``"model.attention_every=1,learning_rate=0.001"`` in place of what it says there.

    Raises:
        InputError: not NAME=VALUE, an unknown name, or a value of the wrong type.
    """
    content = yaml.safe_load(recipe.to_yaml())
    for part in re.split(r",(?=\s*[\w.]+=)", text):
        path, equals, value = part.strip().partition("=")
        if not equals:
            raise InputError(f"variant {part!r} is not NAME=VALUE; expected such as model.patch_size=4.")
        *sections, name = path.split(".")
        place = content
        for section in sections:
            place = place.get(section)
            if not isinstance(place, dict):
                raise InputError(f"variant {part!r}: the recipe has no section {section!r}.")
        place[name] = yaml.safe_load(value)
    changed = Recipe.from_content(content, f"variant {text!r}")
    build_config(changed.model or {})  # an unknown field is reported before the work, not after it
    return changed


def measure(name: str, recipe: Recipe, data_root: Path) -> dict[str, Any]:
    """Train in a folder that is thrown away; the row of the table."""
    with tempfile.TemporaryDirectory() as folder:
        train(recipe, Path(folder) / "run", data_root=data_root)
        log = [json.loads(line) for line in (Path(folder) / "run" / "log.jsonl").read_text().splitlines()]
        model = EMformerModel.from_pretrained(Path(folder) / "run")
    last = next(record for record in reversed(log) if "loss" in record)
    with torch.inference_mode():
        flop = count_flop(lambda: model(torch.randn(CLIP), FACTOR))
    return {
        "variant": name,
        "recipe": dataclasses.asdict(recipe),
        "parameters": model.num_parameters(),
        "flop_per_voxel": flop / (FACTOR * torch.Size(CLIP).numel()),
        "steps": last["step"],
        "seconds": last["seconds"],
        "voxels": last["voxels"],
        "gains": [r for r in log if "gain_db" in r and r["step"] == last["step"]],
    }


def columns(recipe: Recipe) -> Columns:
    def gain(volume: str, geometry: str) -> Any:
        def cell(row: dict[str, Any]) -> str:
            found = [g["gain_db"] for g in row["gains"] if (g["volume"], g["geometry"]) == (volume, geometry)]
            return f"{found[0]:+.2f}" if found else "–"

        return cell

    gains = {
        f"{Path(entry.path).stem} {geometry.replace('_', ' ')} dB": gain(entry.path, geometry)
        for entry in recipe.volumes
        for geometry in VALIDATION_GEOMETRIES
    }
    return {
        "variant": lambda row: row["variant"],
        "parameters M": lambda row: f"{row['parameters'] / 1e6:.2f}",
        f"kFLOP/voxel at x{FACTOR:g}": lambda row: f"{row['flop_per_voxel'] / 1e3:.1f}",
        "steps": lambda row: str(row["steps"]),
        "training Mvoxel": lambda row: f"{row['voxels'] / 1e6:.0f}",
        "Mvoxel/s": lambda row: f"{row['voxels'] / row['seconds'] / 1e6:.3f}",
        **gains,
    }


@click.command()
@click.option(
    "--recipe",
    "recipe_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    default=RECIPE,
    help=f"What is varied.  [default: {RECIPE.name}]",
)
@click.option("--variant", "variants", multiple=True, metavar="NAME=VALUE,...", help="Repeatable.")
@click.option("--minutes", type=float, default=6, show_default=True, help="Of training, for each.")
@click.option("--seed", "seeds", type=int, multiple=True, default=[0], show_default=True, help="Repeatable.")
@click.option("--threads", type=click.IntRange(1), help="Of the CPU.  [default: torch's]")
@click.option(
    "--data-root", type=click.Path(path_type=Path), default=DATA / "train", help="What volume paths are relative to."
)
@JSON
def main(
    recipe_file: Path,
    variants: tuple[str, ...],
    minutes: float,
    seeds: tuple[int, ...],
    threads: int | None,
    data_root: Path,
    json_path: Path | None,
) -> None:
    """Train variants of a recipe for equal minutes, and print what each gained over cubic interpolation."""
    if threads:
        torch.set_num_threads(threads)
    recipe = Recipe.load(recipe_file, minutes=minutes)
    chosen = {"as it is": recipe} | {text: varied(recipe, text) for text in variants}
    device = choose_device()
    precision = str(choose_precision(recipe.precision, device)).removeprefix("torch.")
    run = describe_run(device, precision, recipe=recipe_file.name, minutes=minutes)

    def rows() -> Iterator[dict[str, Any]]:
        for name, variant in chosen.items():
            for seed in seeds:
                label = name if len(seeds) == 1 else f"{name}, seed {seed}"
                yield measure(label, dataclasses.replace(variant, seed=seed), data_root)

    print_header(run)
    finished = print_table(columns(recipe), rows())
    if json_path:
        write_json(json_path, run, finished)


if __name__ == "__main__":
    start(main)
