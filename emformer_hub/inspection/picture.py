"""A picture of an inspection: the scores of all sections, and the flagged sections themselves."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from emformer_hub.files import replacing
from emformer_hub.inspection.quality import LIMITS
from emformer_hub.inspection.report import SHOWN
from emformer_hub.inspection.sections import Inspection
from emformer_hub.measurement.drawing import check_picture
from emformer_hub.volumes import StoredArray
from emformer_hub.volumes.boxes import evenly_spaced

PICTURES, COLUMNS, LONGEST = 24, 6, 320
LIMIT_COLOUR, FLAG_COLOUR = "#b03030", "#d95f02"


def quality_picture(path: str | os.PathLike[str], inspection: Inspection, stack: np.ndarray | StoredArray) -> None:
    """Write a PNG: above, the scores of all sections, as fractions of the limit; below, up to 24 flagged sections, what
    is damaged outlined.

    Args:
        path: the picture; the name ends in ``.png``. An existing file is replaced.
        inspection: inspection of the stack.
        stack: ``(z, y, x)``, the one that was inspected.

    Raises:
        InputError: the name does not end in ``.png``, the folder does not exist, or matplotlib is not installed.
    """
    path = Path(path)
    check_picture(path)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    bad = [quality for quality in inspection.sections if quality.flags]
    shown = bad[:PICTURES]
    rows = -(-len(shown) // COLUMNS)
    figure = Figure(figsize=(12, 3.6 + 2.3 * rows), dpi=100, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(1 + rows, COLUMNS, height_ratios=[1.5] + [1] * rows)
    axes = figure.add_subplot(grid[0, :])
    table = np.full((len(SHOWN) + 1, len(inspection.sections)), np.nan)
    for z, quality in enumerate(inspection.sections):
        table[0, z] = 2.0 if "missing" in quality.flags else 0.0
        for row, name in enumerate(SHOWN, 1):
            table[row, z] = quality.scores.get(name, np.nan) / LIMITS[name]
    image = axes.imshow(table, cmap="OrRd", vmin=0, vmax=2, aspect="auto", interpolation="nearest")
    for row, z in np.argwhere(table >= 1):
        axes.text(z, row, "×", ha="center", va="center", fontsize=8)
    axes.set_yticks(range(len(SHOWN) + 1), ["missing", *SHOWN], fontsize=8)
    axes.set_xlabel("section", fontsize=8)
    axes.set_facecolor("#dddddd")
    axes.set_title(
        f"{len(bad)} of {len(inspection.sections)} sections are flagged (×: score beyond the limit; grey: unknown)",
        fontsize=10,
    )
    figure.colorbar(image, ax=axes, pad=0.01).set_label("score / limit", fontsize=8)
    black, white = _grey(inspection, stack)
    for place, quality in enumerate(shown):
        axes = figure.add_subplot(grid[1 + place // COLUMNS, place % COLUMNS])
        step = max(1, -(-max(inspection.shape_zyx[1:]) // LONGEST))
        axes.imshow(
            np.asarray(stack[quality.section])[::step, ::step].astype(float), cmap="gray", vmin=black, vmax=white
        )
        mask = inspection.damage_mask(quality.section)[::step, ::step]
        if mask.any():
            axes.contour(mask, levels=[0.5], colors=[FLAG_COLOUR], linewidths=1)
        axes.set_title(f"{quality.section}: {', '.join(quality.flags)}", fontsize=8, color=LIMIT_COLOUR)
        axes.set(xticks=[], yticks=[])
    with replacing(path) as partial:
        figure.savefig(partial, format="png")


def _grey(inspection: Inspection, stack: np.ndarray | StoredArray) -> tuple[float, float]:
    """Black and white of the pictures: the 1st and 99th percentile of a few sections that are not missing."""
    there = [q.section for q in inspection.sections if "missing" not in q.flags] or [0]
    some = [there[i] for i in evenly_spaced(len(there), 5)]
    sample = np.concatenate([np.asarray(stack[z])[::4, ::4].ravel() for z in some]).astype(float)
    sample = sample[np.isfinite(sample)]
    black, white = np.percentile(sample, [1, 99]) if sample.size else (0.0, 1.0)
    return float(black), float(max(white, black + 1e-6))
