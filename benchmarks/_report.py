"""What the benchmarks share: where the data lie, the line that says where figures come from, tables, JSON, errors."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click
import torch

from emformer_hub.devices import choose_device, choose_precision, describe
from emformer_hub.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "finetune" / "recipes" / "pretrain.yaml"
DATA = Path(os.environ.get("EMFORMER_DATA", ROOT.parent / "shared" / "data"))

Columns = dict[str, Callable[[dict[str, Any]], str]]
"""Heading -> how a row, as it stands in the JSON, fills the column."""


def describe_run(device: str | torch.device, precision: str | None = None, **more: Any) -> dict[str, Any]:
    """What it takes to get the same figures again: command, commit, torch, device, precision, and ``more``.

    Args:
        device: as users name it, or as chosen.
        precision: of matrix products; by default the one that is chosen on this device.
    """
    device = choose_device(device)
    return {
        "command": shlex.join(["python", *sys.argv]),
        **more,
        "commit": _commit(),
        "torch": torch.__version__,
        "device": f"{device.type} ({describe(device)})",
        "precision": precision or str(choose_precision("auto", device)).removeprefix("torch."),
    }


def describe_file(path: Path) -> dict[str, str]:
    """Name and SHA-256 of a data file."""
    with path.open("rb") as file:
        return {"file": path.name, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def print_header(run: dict[str, Any]) -> None:
    """Print the line that says where the figures come from."""
    click.echo(f"`{run['command']}`  ")
    click.echo(" · ".join(f"{name} {_inline(value)}" for name, value in run.items() if name != "command"))


def print_table(columns: Columns, rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Print a Markdown table, each row as soon as it is measured; return the rows."""
    click.echo("\n| " + " | ".join(columns) + " |")
    click.echo("|" + " --- |" * len(columns))
    finished = []
    for row in rows:
        click.echo("| " + " | ".join(cell(row) for cell in columns.values()) + " |")
        finished.append(row)
    return finished


def print_report(run: dict[str, Any], columns: Columns, rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Print the header and one table; return the rows."""
    print_header(run)
    return print_table(columns, rows)


def write_json(path: Path, run: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """``{"run": ..., "rows": [...]}``; the file appears only when it is complete."""
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(json.dumps({"run": run, "rows": rows}, indent=2, allow_nan=False) + "\n")
    temporary.replace(path)


def start(command: click.Command) -> None:
    """Run a command line; a mistake of the user is a message and exit status 2."""
    try:
        command()
    except InputError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(2)


def _inline(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_inline(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ("; " if value and isinstance(value[0], dict) else ",").join(map(_inline, value))
    if isinstance(value, float):
        return f"{value:.4g}"
    return value[:12] if isinstance(value, str) and len(value) == 64 else str(value)


def _commit() -> str:
    """Short hash of the checkout, with -dirty if tracked files differ from it; ``unknown`` outside a checkout."""
    git = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        found = subprocess.run(git, check=False, cwd=Path(__file__).parent, capture_output=True, text=True)
    except FileNotFoundError:
        return "unknown"
    return found.stdout.strip() or "unknown"
