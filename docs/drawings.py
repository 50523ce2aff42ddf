"""Draws the pictures of docs/design/, from the functions that they explain: python docs/drawings.py."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from emformer_hub.configuration_emformer import EMformerConfig
from emformer_hub.geometry import SectionModel
from emformer_hub.interpolation import interpolate
from emformer_hub.processing_emformer import EMformerProcessor
from emformer_hub.projection import project
from emformer_hub.reconstruction.blocks import make_plan
from emformer_hub.uncertainty import PROBABILITIES, ErrorQuantiles

FOLDER = Path(__file__).parent / "design"
GREY, BLUE, RED, ORANGE = "#8a8f98", "#4477aa", "#cc3311", "#e08214"
"""Seen on white and on black alike."""
STYLE = {
    "svg.hashsalt": "emformer",  # the same file each time
    "svg.fonttype": "none",
    "font.size": 9,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), GREY),
}


def main(folder: Path = FOLDER) -> None:
    with matplotlib.rc_context(STYLE):
        for draw, inches in (
            (geometry, (8, 3.6)),
            (consistency, (8, 2.8)),
            (blocks, (4.6, 4.2)),
            (uncertainty, (5.2, 3.2)),
        ):
            figure = Figure(figsize=inches, layout="constrained")
            draw(figure)
            figure.savefig(folder / f"{draw.__name__}.svg", transparent=True, metadata={"Date": None})


def geometry(figure: Figure) -> None:
    """Sections, their slabs and the planes between, for a section that is seen through and for a block face."""
    axes = figure.subplots(2, 1, sharex=True)
    for axis, thickness, title in zip(
        axes, (1.0, 0.25), ("seen through: thickness 1", "block face: thickness 1/4"), strict=True
    ):
        model = SectionModel(4.0, thickness)
        for section in range(4):
            start = section * model.factor
            axis.add_patch(Rectangle((start, 0), model.factor, 1, fill=False, edgecolor=GREY, linewidth=1.4))
            axis.add_patch(
                Rectangle((start + model.offset, 0), thickness * model.factor, 1, color=BLUE, alpha=0.45, linewidth=0)
            )
            axis.text(start + model.factor / 2, 1.08, f"section {section}", ha="center")
        positions = np.arange(model.num_planes(4)) + 0.5
        axis.plot(positions, np.full(len(positions), -0.28), "|", color=RED, markersize=11)
        axis.text(-0.25, -0.28, "planes", ha="right", va="center", color=RED)
        axis.text(-0.25, 0.5, title.replace(": ", ":\n"), ha="right", va="center")
        axis.set(xlim=(-3.6, 16.4), ylim=(-0.55, 1.4), yticks=[], xticks=[])
        axis.set_frame_on(False)


def consistency(figure: Figure) -> None:
    """A line along z before and after it is made to agree with the sections."""
    rng = np.random.default_rng(3)
    model = SectionModel(6.0, 1.0)
    truth = np.convolve(rng.normal(size=80), np.hanning(11), "same")[:48]
    sections = model.degrade(truth[:, None, None]) + 0.25 * rng.normal(size=(8, 1, 1))
    clean = interpolate(sections, SectionModel(6.0), "cubic")[:, 0, 0] * 0.9
    given, measured = (torch.tensor(part, dtype=torch.float32).reshape(1, 1, -1, 1) for part in (clean, sections))
    faithful = project(given, measured, None, 6.0, 1.0).flatten().numpy()
    axes = figure.subplots(1, 2, sharey=True)
    for axis, line, title in zip(axes, (clean, faithful), ("x", "x + A⁺(y − A x)"), strict=True):
        means = model.degrade(line[:, None, None].astype(np.float64))[:, 0, 0]
        for section, (wanted, mean) in enumerate(zip(sections[:, 0, 0], means, strict=True)):
            ends = (section * 6, section * 6 + 6)
            axis.plot(ends, (wanted, wanted), color=BLUE, linewidth=2.5, label="measured, y" if not section else None)
            axis.plot(ends, (mean, mean), color=RED, linewidth=1.2, label="mean of its planes" if not section else None)
        axis.plot(np.arange(48) + 0.5, line, color=GREY, linewidth=1.2, label="planes")
        axis.set(title=title, xlabel="z, planes", yticks=[])
    axes[0].legend(frameon=False, fontsize=8)


def blocks(figure: Figure) -> None:
    """Blocks of a plan, and what one of them looks at."""
    plan = make_plan((48, 320, 320), SectionModel(8.0), EMformerConfig(), (48, 160, 160))
    axis = figure.subplots()
    every = [block for block in plan.blocks() if block.z.output.start == 0]
    for block in every:
        _outline(axis, block.output[1:], edgecolor=GREY, fill=False, linewidth=1.2)
    chosen = every[len(every) // 2]
    _outline(axis, chosen.input[1:], color=ORANGE, alpha=0.3, linewidth=0)
    _outline(axis, chosen.output[1:], color=BLUE, alpha=0.6, linewidth=0)
    axis.set(xlim=(-4, 324), ylim=(324, -4), xlabel="x, voxels", ylabel="y, voxels", aspect="equal")
    axis.text(0.5, 1.02, "blue: computed and kept; orange: only looked at", ha="center", transform=axis.transAxes)


def _outline(axis: Axes, box: tuple[slice, ...], **style: object) -> None:
    y, x = box
    axis.add_patch(Rectangle((x.start, y.start), x.stop - x.start, y.stop - y.start, **style))


def uncertainty(figure: Figure) -> None:
    """What is stated against what holds: the multiples that are stored with weights."""
    stored = ErrorQuantiles(**EMformerProcessor.from_pretrained("emformer-small").error_quantiles["clean"])
    laplace = ErrorQuantiles()
    axis = figure.subplots()
    axis.plot(PROBABILITIES, laplace.full_thickness, "--", color=GREY, label="Laplace, as trained for")
    axis.plot(PROBABILITIES, stored.full_thickness, "o-", color=BLUE, markersize=3, label="measured: seen through")
    axis.plot(PROBABILITIES, stored.single_plane, "s-", color=RED, markersize=3, label="measured: block faces")
    axis.set(xlabel="fraction of errors", ylabel="stated standard deviations that hold it")
    axis.legend(frameon=False)


if __name__ == "__main__":
    main()
