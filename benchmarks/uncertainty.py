"""Is the stated uncertainty right, on tissue and microscopes that neither training nor calibration saw?

    python benchmarks/uncertainty.py --json uncertainty.json

prints one Markdown table; benchmarks/README.md says what each column means.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
from _gaps import REAL, as_imaged, degraded, gaps, intervals, read_truth, stacks
from _methods import Run, runner
from _options import JSON, MODELS
from _report import DATA, Columns, describe_file, describe_run, print_report, start, write_json

from emformer_hub.audit.held_back import AVERAGED, certainty
from emformer_hub.cli.options import DEVICE
from emformer_hub.geometry import SectionModel

TRUTHS = ("fibsem_fib25_b", "fibsem_tiny")
GEOMETRIES = {
    "x4 t=1": SectionModel(4),
    "x8 t=1": SectionModel(8),
    "x4 t=1/4": SectionModel(4, 1 / 4, 1),
    "x8 t=1/8": SectionModel(8, 1 / 8, 3),
}
LEFT_OUT = (*REAL, "fibsem_epfl_every8th")
PROBABILITIES = (0.5, 0.8, 0.95)
SIDE = 160

COLUMNS: Columns = {
    "data": lambda row: row["data"],
    "what is compared": lambda row: row["compared"],
    "method": lambda row: row["method"],
    "inside 50, 80, 95 % intervals": lambda row: ", ".join(f"{100 * share:.1f}" for share in row["coverage"]),
    "furthest off": lambda row: f"{100 * max(map(abs, np.subtract(row['coverage'], PROBABILITIES))):.1f}",
    "mean absolute error": lambda row: f"{row['error']:.2f}",
    "of the most certain half": lambda row: f"{row['certain_error']:.2f}",
    "share": lambda row: f"{row['certain_error'] / row['error']:.0%}",
    "of averages": lambda row: f"{row['averages']['error']:.2f}",
    "of their most certain half": lambda row: f"{row['averages']['certain_error']:.2f}",
    "share of averages": lambda row: f"{row['averages']['certain_error'] / row['averages']['error']:.0%}",
}


def judge(error: np.ndarray, half_widths: list[np.ndarray], sides: tuple[int, int, int]) -> dict[str, Any]:
    """Coverage of the intervals, and the mean error of the half whose intervals are narrowest: of voxels, of averages.

    Args:
        error: signed, grey levels; half_widths: at ``PROBABILITIES``, same shape.
        sides: of the blocks that are averaged, so that noise of the truth does not hide where errors are small.
    """
    return {
        "coverage": [float((np.abs(error) <= width).mean()) for width in half_widths],
        **certainty(error, half_widths[0], (1, 1, 1)),
        "averages": certainty(error, half_widths[0], sides),
    }


def planes(folder: Path, side: int, runs: dict[str, Run]) -> Iterator[dict[str, Any]]:
    """Every plane of an isotropic volume, restored from sections."""
    for name in TRUTHS:
        truth = read_truth(folder, name, side)
        for geometry_name, geometry in GEOMETRIES.items():
            sections = degraded(truth, geometry)
            there = truth[: geometry.num_planes(len(sections))]
            for method, run in runs.items():
                done = run(sections, geometry)
                error = done.volume.astype(np.float32) - there
                figures = judge(error, [done.half_width(share) for share in PROBABILITIES], (AVERAGED,) * 3)
                yield {"data": name, "compared": f"planes, {geometry_name}", "method": method, **figures}


def left_out(folder: Path, side: int, runs: dict[str, Run]) -> Iterator[dict[str, Any]]:
    """Sections of real stacks that were masked."""
    for stack in stacks(folder, side, LEFT_OUT):
        for method, run in runs.items():
            errors, widths = [], []
            for mask in gaps(len(stack.data), 1):
                done = run(stack.data, stack.geometry, mask=mask)
                section = as_imaged(done.volume, stack.geometry, mask)
                errors.append(section - stack.data[mask].astype(np.float32))
                widths.append([intervals(done, share, mask) for share in PROBABILITIES])
            parts = [np.concatenate(of_one) for of_one in zip(*widths, strict=True)]
            figures = judge(np.concatenate(errors), parts, (1, AVERAGED, AVERAGED))
            yield {"data": stack.name, "compared": "sections left out", "method": method, **figures}


@click.command()
@MODELS
@click.option("--side", type=click.IntRange(min=32), default=SIDE, show_default=True, help="Rows and columns used.")
@DEVICE
@JSON
def main(models: tuple[str, ...], side: int, device: str, json_path: Path | None) -> None:
    """Print a table of how many errors lie within the intervals that were stated."""
    folder = DATA / "eval"
    runs = {Path(name).name: runner(name, device) for name in models}
    run = describe_run(
        device,
        data=[describe_file(folder / f"{name}.tif") for name in (*TRUTHS, *LEFT_OUT)],
        side=side,
    )
    rows = print_report(run, COLUMNS, (row for part in (left_out, planes) for row in part(folder, side, runs)))
    if json_path:
        write_json(json_path, run, rows)


if __name__ == "__main__":
    start(main)
