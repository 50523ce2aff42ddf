"""What did more training buy, and what would still more buy? Finished runs of one network, by training voxels.

    python benchmarks/learning_curve.py --figure learning_curve.png

reads learning_curve.json and prints two Markdown tables; benchmarks/README.md says how to read them.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from _options import OutputFile
from _report import start
from scipy.optimize import curve_fit

RUNS = Path(__file__).with_suffix(".json")
AHEAD = (2, 4, 16)


@dataclass(frozen=True)
class Curve:
    """Gains in dB of finished runs over the voxels that each was trained on, ascending."""

    task: str
    voxels: np.ndarray
    gains: np.ndarray

    @property
    def last_doubling(self) -> float:
        """dB that a doubling of voxels bought between the last run and the last one of at most half as many voxels."""
        half = max(int(np.searchsorted(self.voxels, self.voxels[-1] / 2, side="right")) - 1, 0)
        return float((self.gains[-1] - self.gains[half]) / math.log2(self.voxels[-1] / self.voxels[half]))

    def saturating(self) -> tuple[float, float, float] | None:
        """``gain = limit - loss * (voxels / the most) ** -power`` through at least four runs, else ``None``."""
        if len(self.gains) < 4:
            return None
        spread = max(float(np.ptp(self.gains)), 1e-3)
        bounds = ([self.gains.max(), 0, 0.05], [self.gains.max() + 10 * spread, 20 * spread, 2])
        first = (self.gains.max() + 0.3 * spread, 0.3 * spread, 0.4)
        fitted, _ = curve_fit(_saturating, self.voxels / self.voxels[-1], self.gains, p0=first, bounds=bounds)
        return (float(fitted[0]), float(fitted[1]), float(fitted[2]))

    def forecast(self, times: float) -> tuple[float | None, float]:
        """Gain after so many times the voxels of the last run: by the saturating law, and at the last rate for ever."""
        law = self.saturating()
        return (
            None if law is None else float(_saturating(times, *law)),
            float(self.gains[-1]) + self.last_doubling * math.log2(times),
        )


def _saturating(voxels: Any, limit: float, loss: float, power: float) -> Any:
    return limit - loss * voxels**-power


def read_curves(path: Path) -> tuple[list[dict[str, Any]], list[Curve]]:
    """Runs by ascending voxels, and a curve for each task that at least two of them were measured on."""
    runs = sorted(json.loads(path.read_text()), key=lambda run: run["voxels"])
    curves = []
    for task in dict.fromkeys(task for run in runs for task in run["gains_db"]):
        measured = [(run["voxels"], run["gains_db"][task]) for run in runs if task in run["gains_db"]]
        if len(measured) > 1:
            voxels, gains = map(np.array, zip(*measured, strict=True))
            curves.append(Curve(task, voxels.astype(float), gains))
    return runs, curves


def draw(path: Path, curves: list[Curve]) -> None:
    """Gain over training voxels, and both forecasts up to 16 times as many."""
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    times = np.geomspace(1, AHEAD[-1], 30)
    for place, curve in enumerate(curves):
        colour = colormaps["tab20"](place)
        axes.plot(curve.voxels, curve.gains, "o-", color=colour, ms=4, label=curve.task)
        forecasts = [curve.forecast(factor) for factor in times]
        low = [straight if law is None else law for law, straight in forecasts]
        high = [straight for _, straight in forecasts]
        axes.fill_between(curve.voxels[-1] * times, low, high, color=colour, alpha=0.2, lw=0)
        axes.plot(curve.voxels[-1] * times, low, ":", color=colour, lw=1)
    axes.set_xscale("log")
    axes.set(
        xlabel="training voxels", ylabel="gain over interpolation, dB", title="Finished runs, and forecasts (shaded)"
    )
    axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    figure.savefig(path)


@click.command()
@click.option("--figure", type=OutputFile(), help="Draw the curves (PNG).")
def main(figure: Path | None) -> None:
    """Print gains by training voxels, and forecasts."""
    runs, curves = read_curves(RUNS)
    tasks = [curve.task for curve in curves]
    click.echo("| run | training Mvoxel | " + " | ".join(tasks) + " |")
    click.echo("|" + " --- |" * (len(tasks) + 2))
    for run in runs:
        cells = [f"{run['gains_db'][task]:+.2f}" if task in run["gains_db"] else "" for task in tasks]
        click.echo(f"| {run['run']} | {run['voxels'] / 1e6:.0f} | " + " | ".join(cells) + " |")
    click.echo("\n| task | last doubling dB | " + " | ".join(f"{times} times the voxels" for times in AHEAD) + " |")
    click.echo("|" + " --- |" * (len(AHEAD) + 2))
    for curve in curves:
        cells = []
        for times in AHEAD:
            law, straight = curve.forecast(times)
            cells.append(f"{straight:+.2f}" if law is None else f"{law:+.2f} to {straight:+.2f}")
        click.echo(f"| {curve.task} | {curve.last_doubling:+.3f} | " + " | ".join(cells) + " |")
    if figure:
        draw(figure, curves)


if __name__ == "__main__":
    start(main)
