"""Does it help biology? Segment the neurons of what was restored, and compare them with those that experts drew.

    python benchmarks/segmentation.py --json segmentation.json --figure segmentation.png
    python benchmarks/segmentation.py --retrain --json retrained.json

prints a Markdown table; benchmarks/README.md says what each column means.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from _figures import BASELINE
from _geometry import NamedGeometry
from _methods import EMformer, Interpolation, Method
from _options import JSON, MODELS, OutputFile
from _report import DATA, Columns, describe_file, describe_run, print_report, start, write_json
from _segmenter import Segmenter, features, score
from skimage.measure import label
from skimage.metrics import contingency_table
from skimage.segmentation import find_boundaries

from emformer_hub.cli.options import DEVICE
from emformer_hub.errors import InputError
from emformer_hub.modes import MODES, Mode
from emformer_hub.processing_emformer import to_dtype
from emformer_hub.reconstruction.restorer import ENSEMBLES
from emformer_hub.volumes import read_volume

TRUTH, NEURONS = "fibsem_fib25_b.tif", "fibsem_fib25_b_neurons.tif"
FACTORS = (8, 4, 10)
GAP = 16
"""Columns between the half that is learnt from and the half that is segmented, voxels."""
MIN_HALF = 24
"""A half is at least so many columns wide; the widest filter of the segmenter reaches 16."""
ISOTROPIC = "isotropic truth"
SCORES = ("voi", "are")
"""What is compared between methods as a share of the gap; smaller is better."""


def over_halves(row: dict[str, Any], figure: str) -> str:
    """A table's cell: the mean over both halves, and in parentheses each."""
    return f"{row[figure]:.3f} ({', '.join(f'{half[figure]:.3f}' for half in row['halves'])})"


def gap_closed(row: dict[str, Any], figure: str) -> str:
    return f"{100 * row['gap_closed'][figure]:.0f} %" if "gap_closed" in row else ""


COLUMNS: Columns = {
    "geometry": lambda row: row["geometry"]["name"] if row["geometry"] else "",
    "method": lambda row: row["method"],
    "VOI bit (halves)": lambda row: over_halves(row, "voi"),
    "split": lambda row: f"{row['voi_split']:.3f}",
    "merge": lambda row: f"{row['voi_merge']:.3f}",
    "VOI gap closed": lambda row: gap_closed(row, "voi"),
    "ARE (halves)": lambda row: over_halves(row, "are"),
    "ARE gap closed": lambda row: gap_closed(row, "are"),
    "boundary F1": lambda row: f"{row['boundary_f1']:.3f}",
    "seconds": lambda row: f"{row['seconds']:.0f}",
}


@dataclass(frozen=True)
class Half:
    """One side of the volume: its columns, and the bodies in it, those that leave and come back counted apart."""

    columns: slice
    bodies: np.ndarray


class Experiment:
    """The volume, its halves, and the segmenters that learnt from the truth of each."""

    def __init__(self, truth: np.ndarray, neurons: np.ndarray, retrain: bool) -> None:
        self.truth, self.neurons, self.retrain = truth, neurons, retrain
        width = (truth.shape[2] - GAP) // 2
        if width < MIN_HALF:
            raise InputError(
                f"the volume is {truth.shape[2]} columns wide; expected at least {2 * MIN_HALF + GAP}, "
                f"for two halves of {MIN_HALF} columns and a gap of {GAP}."
            )
        self.halves = [
            Half(columns, label(neurons[:, :, columns], connectivity=1))
            for columns in (slice(0, width), slice(truth.shape[2] - width, None))
        ]
        self.segmenters: list[Segmenter] = []

    def measure(self, volume: np.ndarray) -> tuple[dict[str, Any], np.ndarray]:
        """Scores of a volume, and its segments ``(z, y, x)``: each half by what was learnt on the other; 0 in the gap.

        The first volume must be the truth: its segmenters serve all others, unless each is to have its own.
        """
        begin = time.perf_counter()
        seen = [features(volume[:, :, half.columns]) for half in self.halves]
        segmenters = self.segmenters
        if self.retrain or not segmenters:
            segmenters = [Segmenter.train(*pair) for pair in zip(seen, (h.bodies for h in self.halves), strict=True)]
            self.segmenters = self.segmenters or segmenters
        segments = np.zeros(volume.shape, np.int32)
        scores = []
        for half, own, segmenter in zip(self.halves, seen, reversed(segmenters), strict=True):
            found = segmenter.segment(own)
            segments[:, :, half.columns] = found
            figures = score(found, half.bodies)
            scores.append({"voi": figures["voi_split"] + figures["voi_merge"], **figures, "stop": segmenter.stop})
        means = {figure: float(np.mean([half[figure] for half in scores])) for figure in scores[0] if figure != "stop"}
        return {**means, "halves": scores, "seconds": time.perf_counter() - begin}, segments


def compare(
    experiment: Experiment, geometries: list[NamedGeometry], methods: list[Method], figure: Path | None
) -> Iterator[dict[str, Any]]:
    """The row of the truth, then one row a method and geometry; draws the first geometry if ``figure`` names a file."""
    truth = experiment.truth
    ideal, segments = experiment.measure(truth)
    yield {"geometry": None, "method": ISOTROPIC, **ideal}
    for geometry in geometries:
        sections = to_dtype(geometry.geometry.degrade(truth), truth.dtype)
        panels = {ISOTROPIC: (truth, segments)}
        rows = []
        for method in methods:
            restored, _ = method.restore(sections, geometry.geometry)
            scores, found = experiment.measure(restored)
            panels[method.name] = (restored, found)
            rows.append({"geometry": geometry.record(), "method": method.name, **scores})
        base = next(row for row in rows if row["method"] == BASELINE)
        for row in rows:
            gaps = {name: base[name] - ideal[name] for name in SCORES}
            if row is not base and min(gaps.values()) > 0:
                row["gap_closed"] = {name: (base[name] - row[name]) / gap for name, gap in gaps.items()}
            yield row
        if figure and geometry is geometries[0]:
            panels.pop("nearest", None)
            draw(figure, panels | {"experts": (truth, experiment.neurons)}, experiment, geometry.name)


def draw(path: Path, panels: dict[str, tuple[np.ndarray, np.ndarray]], experiment: Experiment, geometry: str) -> None:
    """An xz cut of each panel: the image, and its segments, each in the colour of the body that it overlaps most."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    colours = np.random.default_rng(1).uniform(0.25, 1, (int(experiment.neurons.max()) + 1, 3))
    row = experiment.truth.shape[1] // 2
    figure = Figure(figsize=(2.6 * len(panels), 5.6), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, len(panels))
    for (name, (volume, segments)), (above, below) in zip(panels.items(), axes.T, strict=True):
        cut = segments[:, row]
        shown = colours[_most_overlapped(segments, experiment.neurons)[cut]]
        shown[find_boundaries(cut, mode="inner")] = 0
        shown[cut == 0] = 1
        above.imshow(volume[:, row], cmap="gray", vmin=experiment.truth.min(), vmax=experiment.truth.max())
        below.imshow(shown, interpolation="nearest")
        above.set_title(name, fontsize=10)
        for axis in (above, below):
            axis.set_axis_off()
    figure.suptitle(f"{geometry}, xz: image, and segments in the colour of the body they overlap most", fontsize=10)
    figure.savefig(path)


def _most_overlapped(segments: np.ndarray, bodies: np.ndarray) -> np.ndarray:
    """The body with which each segment, by its number, shares most voxels."""
    return np.asarray(contingency_table(segments, bodies).argmax(axis=1)).ravel()


def read(truth_file: Path, neurons_file: Path, factors: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Both volumes, cut to the first planes that whole sections of every factor fill."""
    truth, neurons = read_volume(truth_file).data, read_volume(neurons_file).data
    if truth.shape != neurons.shape:
        raise InputError(
            f"{truth_file.name} is {truth.shape} voxels, {neurons_file.name} {neurons.shape}; "
            "expected the same shape, z, y, x."
        )
    step = math.lcm(*factors)
    planes = len(truth) // step * step
    if not planes:
        raise InputError(
            f"{truth_file.name} has {len(truth)} planes; factors {', '.join(map(str, factors))} together need {step}. "
            "Give one factor at a time."
        )
    return truth[:planes], neurons[:planes].astype(np.int32)


@click.command()
@click.option(
    "--truth",
    "truth_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help=f"Isotropic volume, 8-bit.  [default: {TRUTH} of the evaluation data]",
)
@click.option(
    "--neurons",
    "neurons_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help=f"Its bodies, by number; 0 is none.  [default: {NEURONS} of the evaluation data]",
)
@click.option(
    "--factor",
    "factors",
    type=click.IntRange(2, 16),
    multiple=True,
    default=FACTORS,
    show_default=True,
    help="Repeatable.",
)
@click.option("--single-planes", is_flag=True, help="Sections are every FACTOR-th plane, not means over FACTOR planes.")
@click.option("--retrain", is_flag=True, help="Train the segmenter anew on each method's volume, as a lab would.")
@MODELS
@click.option(
    "--mode",
    "modes",
    multiple=True,
    type=click.Choice(MODES),
    default=MODES,
    show_default=True,
    help="What models do with the noise of sections. Repeatable.",
)
@click.option(
    "--ensemble",
    type=click.Choice([str(n) for n in ENSEMBLES]),
    default="2",
    show_default=True,
    help="Passes to average.",
)
@DEVICE
@JSON
@click.option("--figure", type=OutputFile(), help="Draw a cut through the segments of the first factor (PNG).")
def main(
    truth_file: Path | None,
    neurons_file: Path | None,
    factors: tuple[int, ...],
    single_planes: bool,
    retrain: bool,
    models: tuple[str, ...],
    modes: tuple[Mode, ...],
    ensemble: str,
    device: str,
    json_path: Path | None,
    figure: Path | None,
) -> None:
    """Print how well neurons can be segmented in what was restored."""
    files = [truth_file or DATA / "eval" / TRUTH, neurons_file or DATA / "eval" / NEURONS]
    truth, neurons = read(files[0], files[1], list(factors))
    experiment = Experiment(truth, neurons, retrain)
    geometries = [NamedGeometry.parse(f"{factor}:1/{factor}" if single_planes else f"{factor}:1") for factor in factors]
    methods: list[Method] = [Interpolation("nearest"), Interpolation(BASELINE)]
    methods += [EMformer(name, device, int(ensemble), mode) for name in models for mode in modes]
    run = describe_run(
        device,
        data=[describe_file(path) for path in files],
        planes=len(experiment.truth),
        ensemble=int(ensemble),
        segmenter="trained anew for each method" if retrain else "trained on the isotropic truth",
    )
    rows = print_report(run, COLUMNS, compare(experiment, geometries, methods, figure))
    if json_path:
        write_json(json_path, run, rows)


if __name__ == "__main__":
    start(main)
