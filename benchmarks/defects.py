"""Does the inspection of a stack find what is wrong, and nothing else? Plant defects in real stacks, and inspect them.

    python benchmarks/defects.py --json defects.json

prints a Markdown table; benchmarks/README.md says what was planted and what each column means.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from _defects import DEFECTS, plant
from _report import Columns, OutputFile, describe_file, describe_run, print_report, start, write_json

from emformer_hub.errors import InputError
from emformer_hub.inspection.sections import inspect_stack
from emformer_hub.volumes import read_volume

DATA = Path(os.environ.get("EMFORMER_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
STACKS = {
    "train": ("sstem_cremi", "sstem_vnc", "sbem_cdeep3m", "sbem_platynereis", "sssem_icon"),
    "eval": ("sstem_cremi", "sbem_cdeep3m", "fibsem_epfl_every8th", "fibsem_fib25_b"),
}
"""The limits of the inspection were chosen on ``train``; no stack of ``eval`` was looked at for it."""
SIDE, DEPTH = 384, 40
KNOWN_BAD = {("eval", "sstem_cremi"): {3, 16}, ("eval", "fibsem_epfl_every8th"): {4}}
"""Sections that are bad as they were measured, to the eye: one is the mean of its neighbours, one is spoilt, one is out
of focus (its mean gradient is 15 % less than that of its neighbours). They are no false alarms."""

COLUMNS: Columns = {
    "stack": lambda row: row["stack"],
    "sections": lambda row: f"{row['sections']}",
    **{name: lambda row, name=name: _share(row["recall"].get(name)) for name in DEFECTS},
    "false alarms": lambda row: f"{row['false_alarms']}",
    "flagged as measured": lambda row: ", ".join(f"{z} {'+'.join(f)}" for z, f in row["as_measured"].items()) or "–",
}


def measure(folder: str, name: str, repeats: int) -> dict[str, Any]:
    """Recall of each defect in a stack, and the flags that it raises as it was measured."""
    data = read_volume(DATA / folder / f"{name}.tif").data
    y, x = (max(0, (side - SIDE) // 2) for side in data.shape[1:])
    clean = np.array(data[:DEPTH, y : y + SIDE, x : x + SIDE])
    flags = {q.section: q.flags for q in inspect_stack(clean).sections if q.flags}
    sound = [z for z in range(1, len(clean) - 1) if z not in flags and z not in KNOWN_BAD.get((folder, name), ())]
    recall = {}
    for number, defect in enumerate(DEFECTS):
        found = Counter()
        for repeat in range(repeats):
            rng = np.random.default_rng((number, repeat, *name.encode()))
            spoilt = clean.copy()
            for z in _apart(rng.permutation(sound).tolist(), max(1, len(clean) // 10)):
                spoilt[z] = plant(clean, z, defect, rng)
                found["planted"] += 1
            planted = [z for z in range(len(clean)) if (spoilt[z] != clean[z]).any()]
            inspection = inspect_stack(spoilt)
            found["found"] += sum(DEFECTS[defect][1] in inspection.sections[z].flags for z in planted)
        recall[defect] = [found["found"], found["planted"]]
    unexplained = [z for z in flags if z not in KNOWN_BAD.get((folder, name), ())]
    return {
        "stack": f"{folder}/{name}",
        "sections": len(clean),
        "recall": recall,
        "false_alarms": len(unexplained),
        "as_measured": flags,
    }


def together(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """All stacks of a folder as one row."""
    recall = {name: np.sum([row["recall"][name] for row in rows], axis=0).tolist() for name in DEFECTS}
    folder = rows[0]["stack"].split("/")[0]
    sections, alarms = (sum(row[key] for row in rows) for key in ("sections", "false_alarms"))
    return {"stack": f"**{folder}**", "sections": sections, "recall": recall, "false_alarms": alarms, "as_measured": {}}


def _apart(numbers: list[int], count: int) -> list[int]:
    """The first so many of the sections that are at least three from one another."""
    chosen: list[int] = []
    for z in numbers:
        if len(chosen) < count and all(abs(z - other) >= 3 for other in chosen):
            chosen.append(z)
    return chosen


def _share(found: list[int] | None) -> str:
    return "–" if not found or not found[1] else f"{100 * found[0] / found[1]:.0f} % ({found[0]}/{found[1]})"


@click.command()
@click.option(
    "--folder", "folders", multiple=True, type=click.Choice(list(STACKS)), default=["eval"], show_default=True
)
@click.option("--stack", "stacks", multiple=True, help="Repeatable.  [default: all of the folder]")
@click.option("--repeats", type=click.IntRange(1), default=4, show_default=True, help="Spoilt copies for each defect.")
@click.option("--json", "json_path", type=OutputFile(), help="Write everything that was measured.")
def main(folders: tuple[str, ...], stacks: tuple[str, ...], repeats: int, json_path: Path | None) -> None:
    """Print the recall of each planted defect, and the false alarms."""
    chosen = [(folder, name) for folder in folders for name in STACKS[folder] if not stacks or name in stacks]
    if not chosen:
        raise InputError(f"no stack {', '.join(stacks)}; expected one of {', '.join(STACKS[folders[0]])}.")
    files = [DATA / folder / f"{name}.tif" for folder, name in chosen]
    for file in files:
        if not file.exists():
            raise InputError(f"{file} does not exist; $EMFORMER_DATA names the folder of the data.")
    run = describe_run(
        torch.device("cpu"),
        "float32",
        data=[describe_file(file) for file in files],
        repeats=repeats,
        side=SIDE,
        depth=DEPTH,
    )

    def rows() -> Iterator[dict[str, Any]]:
        for folder in folders:
            own = []
            for name in [name for of, name in chosen if of == folder]:
                own.append(measure(folder, name, repeats))
                yield own[-1]
            yield together(own)

    finished = print_report(run, COLUMNS, rows())
    if json_path:
        write_json(json_path, run, finished)


if __name__ == "__main__":
    start(main)
