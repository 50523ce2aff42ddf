"""Is the gain smooth in the factor? Degrade a truth by every factor from 2 to 16, in steps of 0.7, and restore it.

    python benchmarks/factors.py --json factors.json --figure factors.png

prints a Markdown table; benchmarks/README.md says what each column means.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
from _figures import BASELINE
from _geometry import NamedGeometry, centre_crop, parse_crop
from _methods import EMformer, Interpolation
from _options import JSON, MODELS, OutputFile, truth_option
from _report import DATA, Columns, describe_file, describe_run, print_report, start, write_json

from emformer_hub.cli.options import DEVICE
from emformer_hub.measurement import grey_range, psnr
from emformer_hub.processing_emformer import to_dtype
from emformer_hub.volumes import read_volume

FACTORS = tuple(round(2 + 0.7 * step, 1) for step in range(21))
THICKNESSES = {"thickness 1": "{0}:1", "single planes": "{0}:1/{0}"}


def _gain(thickness: str, row: dict[str, Any]) -> str:
    return f"{row['gain_over_bicubic_db'][thickness]:+.2f}"


COLUMNS: Columns = {
    "factor": lambda row: f"{row['factor']:g}",
    "model": lambda row: row["method"],
    **{f"gain over bicubic dB, {name}": partial(_gain, name) for name in THICKNESSES},
}


def sweep(truth: np.ndarray, factor: float, models: list[EMformer]) -> Iterator[dict[str, Any]]:
    """One row a model: gains over bicubic interpolation of the same sections, at either thickness."""
    gains: dict[str, dict[str, float]] = {model.name: {} for model in models}
    for name, text in THICKNESSES.items():
        geometry = NamedGeometry.parse(text.format(factor)).geometry
        sections = to_dtype(geometry.degrade(truth), truth.dtype)
        planes = truth[: geometry.num_planes(len(sections))]
        baseline = psnr(planes, Interpolation(BASELINE).restore(sections, geometry)[0], grey_range(planes))
        for model in models:
            restored = psnr(planes, model.restore(sections, geometry)[0], grey_range(planes))
            gains[model.name][name] = restored - baseline
    for model in models:
        yield {"factor": factor, "method": model.name, "gain_over_bicubic_db": gains[model.name]}


def draw(path: Path, rows: list[dict[str, Any]], data: str) -> None:
    """Gain against factor, a line for each model and thickness."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.6), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for place, model in enumerate(dict.fromkeys(row["method"] for row in rows)):
        own = [row for row in rows if row["method"] == model]
        for name, style in zip(THICKNESSES, ("o-", "s--"), strict=True):
            gains = [row["gain_over_bicubic_db"][name] for row in own]
            axes.plot([row["factor"] for row in own], gains, style, ms=3, color=f"C{place}", label=f"{model}, {name}")
    axes.axhline(0, color="black", lw=0.8)
    axes.set(xlabel="anisotropy factor", ylabel="gain over bicubic, dB", title=f"{data}, one set of weights a line")
    axes.legend(fontsize=8)
    figure.savefig(path)


@click.command()
@truth_option("fibsem_fib25_b.tif of the evaluation data")
@click.option("--crop", metavar="Z,Y,X", default="160,160,160", show_default=True, help="Only the middle, voxels.")
@MODELS
@click.option(
    "--factor", "factors", type=float, multiple=True, default=FACTORS, help="Repeatable.  [default: 2 to 16 by 0.7]"
)
@DEVICE
@JSON
@click.option("--figure", type=OutputFile(), help="Draw gain against factor (PNG).")
def main(
    truth_file: Path | None,
    crop: str,
    models: tuple[str, ...],
    factors: tuple[float, ...],
    device: str,
    json_path: Path | None,
    figure: Path | None,
) -> None:
    """Print the gain over bicubic interpolation, factor by factor."""
    path = truth_file or DATA / "eval" / "fibsem_fib25_b.tif"
    truth = centre_crop(read_volume(path).data, parse_crop(crop))
    methods = [EMformer(name, device, ensemble=2) for name in models]
    run = describe_run(
        device,
        data=[describe_file(path)],
        crop=crop,
        ensemble=2,
    )
    rows = print_report(run, COLUMNS, (row for factor in factors for row in sweep(truth, factor, methods)))
    if json_path:
        write_json(json_path, run, rows)
    if figure:
        draw(figure, rows, path.stem)


if __name__ == "__main__":
    start(main)
