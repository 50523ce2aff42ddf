"""Does the inspection of a stack find what is wrong, and nothing else? Plant defects in real stacks, and inspect them.

    python benchmarks/defects.py --json defects.json

prints a Markdown table; benchmarks/README.md says what was planted and what each column means.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from _defects import DEFECTS, HARMLESS, drifting, plant_all
from _options import JSON
from _report import DATA, Columns, describe_file, describe_run, print_report, start, write_json

from emformer_hub.errors import InputError
from emformer_hub.inspection.sections import inspect_stack
from emformer_hub.volumes import read_volume
from emformer_hub.volumes.boxes import middle

STACKS = {
    "train": ("sstem_cremi", "sstem_vnc", "sbem_cdeep3m", "sbem_platynereis", "sssem_icon"),
    "eval": ("sstem_cremi", "sbem_cdeep3m", "fibsem_epfl_every8th", "fibsem_fib25_b"),
    "fields": ("sstem_vnc", "sssem_icon"),
}
"""Scales and limits of the inspection were chosen on ``train``; no stack of ``eval`` was looked at for it. ``fields``
are places of two stacks of ``train`` that the scales were not chosen on: ``eval`` has no ssSEM."""
FIELDS = {"sstem_vnc": (slice(640, 1024), slice(640, 1024)), "sssem_icon": (slice(263, 525), slice(0, 525))}
SIDE, DEPTH, APART = 384, 40, 4
KNOWN_BAD = {("eval", "sstem_cremi"): {3, 16}, ("eval", "fibsem_epfl_every8th"): {4}}
"""Sections that are bad as they were measured, to the eye: one is the mean of its neighbours, one is spoilt, one is out
of focus (its mean gradient is 15 % less than that of its neighbours). They are no false alarms."""
DAMAGE = ("fold", "crack")
DECK = tuple(
    card
    for number, name in enumerate(name for name in (*DEFECTS, *HARMLESS) if name not in DAMAGE)
    for card in (DAMAGE[number % 2], name)
)
"""What is dealt out to the sections of a copy, in turn: every second one is a fold or a crack."""


def _share(found: list[int] | None) -> str:
    return "–" if not found or not found[1] else f"{100 * found[0] / found[1]:.0f} % ({found[0]}/{found[1]})"


def _recall(name: str, row: dict[str, Any]) -> str:
    return _share(row["recall"].get(name))


COLUMNS: Columns = {
    "stack": lambda row: row["stack"],
    "sections": lambda row: f"{row['sections']}",
    **{name: partial(_recall, name) for name in (*DEFECTS, *HARMLESS)},
    "harmless, called damaged": lambda row: _share(row["mistaken"]),
    "false alarms": lambda row: f"{row['false_alarms']}",
    "flagged as measured": lambda row: ", ".join(f"{z} {'+'.join(f)}" for z, f in row["as_measured"].items()) or "–",
}


def measure(folder: str, name: str, repeats: int, deck: tuple[str, ...]) -> dict[str, Any]:
    """Recall of each defect in a stack, and the flags that it raises as it was measured."""
    data = read_volume(_file(folder, name)).data
    y, x = FIELDS[name] if folder == "fields" else (middle(data.shape[1:], (SIDE, SIDE)))
    clean = np.array(data[:DEPTH, y, x])
    flags = {q.section: q.flags for q in inspect_stack(clean).sections if q.flags}
    known = KNOWN_BAD.get((folder, name), set())
    sound = [z for z in range(1, len(clean) - 2) if z not in flags and z not in known]
    found: Counter[str] = Counter()
    planted: Counter[str] = Counter()
    mistaken: Counter[bool] = Counter()
    cards = cycle(deck)
    for repeat in range(repeats):
        rng = np.random.default_rng((repeat, *f"{folder}/{name}".encode()))
        chosen = {z: next(cards) for z in _apart(rng.permutation(sound).tolist())}
        spoilt, there = plant_all(clean, chosen, rng)
        sections = inspect_stack(spoilt).sections
        for z, (defect, changed) in there.items():
            if changed:
                wanted = HARMLESS.get(defect) or {DEFECTS[defect][1]}
                planted[defect] += 1
                found[defect] += bool(wanted.intersection(sections[z].flags))
                if "damaged" not in wanted and "missing" not in wanted:
                    mistaken["damaged" in sections[z].flags] += 1
    aged = inspect_stack(drifting(clean, np.random.default_rng(len(clean)))).sections
    for z in sound:
        mistaken["damaged" in aged[z].flags] += 1
    return {
        "stack": f"{folder}/{name}",
        "sections": len(clean),
        "recall": {defect: [found[defect], planted[defect]] for defect in dict.fromkeys(deck)},
        "mistaken": [mistaken[True], mistaken.total()],
        "false_alarms": len(set(flags) - known),
        "as_measured": flags,
    }


def together(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """All stacks as one row."""
    recall = {name: np.sum([row["recall"][name] for row in rows], axis=0).tolist() for name in rows[0]["recall"]}
    sections, alarms = (sum(row[key] for row in rows) for key in ("sections", "false_alarms"))
    mistaken = np.sum([row["mistaken"] for row in rows], axis=0).tolist()
    return {
        "stack": "**all**",
        "sections": sections,
        "recall": recall,
        "mistaken": mistaken,
        "false_alarms": alarms,
        "as_measured": {},
    }


def _apart(numbers: list[int]) -> list[int]:
    """Those of the sections that are at least four from each one before."""
    chosen: list[int] = []
    for z in numbers:
        if all(abs(z - other) >= APART for other in chosen):
            chosen.append(z)
    return chosen


def _file(folder: str, name: str) -> Path:
    return DATA / ("train" if folder == "fields" else folder) / f"{name}.tif"


@click.command()
@click.option(
    "--folder", "folders", multiple=True, type=click.Choice(list(STACKS)), default=["eval", "fields"], show_default=True
)
@click.option("--stack", "stacks", multiple=True, help="Repeatable.  [default: all of the folder]")
@click.option(
    "--defect", "deck", multiple=True, type=click.Choice(dict.fromkeys(DECK)), help="Repeatable.  [default: each]"
)
@click.option("--repeats", type=click.IntRange(1), default=8, show_default=True, help="Spoilt copies of each stack.")
@JSON
def main(
    folders: tuple[str, ...], stacks: tuple[str, ...], deck: tuple[str, ...], repeats: int, json_path: Path | None
) -> None:
    """Print the recall of each planted defect, and the false alarms."""
    chosen = [(folder, name) for folder in folders for name in STACKS[folder] if not stacks or name in stacks]
    if not chosen:
        raise InputError(f"no stack {', '.join(stacks)}; expected one of {', '.join(STACKS[folders[0]])}.")
    files = [_file(folder, name) for folder, name in chosen]
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
        own = []
        for folder, name in chosen:
            own.append(measure(folder, name, repeats, deck or DECK))
            yield own[-1]
        yield together(own)

    finished = print_report(run, COLUMNS, rows())
    if json_path:
        write_json(json_path, run, finished)


if __name__ == "__main__":
    start(main)
