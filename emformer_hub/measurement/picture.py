"""A picture for the eye: input, interpolation and reconstruction side by side, in the planes that contain z."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from emformer_hub.errors import InputError, import_extra
from emformer_hub.geometry import SectionModel, VoxelSize

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CROP = 160
"""Voxels a side that are shown, from the middle: few enough that each is drawn as whole screen pixels."""
PANEL_PX = 320
GAP_PX, LEFT_PX, TOP_PX, RIGHT_PX, BOTTOM_PX = 8, 34, 44, 70, 10
TITLE_PX = 26
DPI = 100


@dataclass(frozen=True)
class _Column:
    heading: str
    volume: np.ndarray
    coloured: bool = False  # errors and uncertainties are drawn in colour, on a scale of their own


def comparison_picture(
    path: str | os.PathLike[str],
    *,
    sections: np.ndarray,
    interpolated: np.ndarray,
    reconstruction: np.ndarray,
    before: np.ndarray | None = None,
    truth: np.ndarray | None = None,
    uncertainty: np.ndarray | None = None,
    voxel_size: VoxelSize,
    factor: float,
    in_plane: bool = False,
    title: str = "",
    scale_bar_nm: float | None = None,
) -> None:
    """Write a PNG that compares a reconstruction with its input.

    Rows are the central xz and yz planes, or two sections where these were degraded in their plane, cropped to at most
    160 voxels a side around the middle. Columns are the input
    (each section drawn as thick as its spacing), cubic interpolation, EMformer (before fine-tuning, where given, and
    now), and where given the truth with the absolute error, and the uncertainty. Every voxel is drawn as the same whole
    number of screen pixels. Grey levels are shared by all columns, black at the 1st and white at the 99th percentile of
    the input; errors and uncertainty share a colour bar, in grey levels, that ends at their 99th percentile.

    Args:
        path: the picture; the name ends in ``.png``. An existing file is replaced.
        sections: the input, ``(sections, y, x)``.
        interpolated: cubic interpolation of the input, ``(planes, y, x)`` like all that follow.
        reconstruction: the output of the model.
        before: that of the model before it was fine-tuned.
        truth: the isotropic truth, if known.
        uncertainty: stated scale of the error, in grey levels.
        voxel_size: of the planes, not of the sections, nm.
        factor: sections are ``factor * voxel_size.z`` apart.
        in_plane: what was degraded is the plane: all volumes have their axes in the order y, z, x, and the "planes" are
            rows along y.
        title: a line above the picture.
        scale_bar_nm: length of the scale bar; by default a round number near a quarter of the width.

    Raises:
        InputError: shapes do not agree, the folder does not exist, the name does not end in ``.png``, or matplotlib is
            not installed.
    """
    path = Path(path)
    others = {"interpolated": interpolated, "before": before, "truth": truth, "uncertainty": uncertainty}
    _check(path, sections, reconstruction, others, factor)
    import_extra("matplotlib", "evaluate", f"{path} is drawn with matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    z, y, x = (_middle(side) for side in reconstruction.shape)
    as_thick = np.minimum((np.arange(z.start, z.stop) + 0.5) // factor, len(sections) - 1).astype(int)
    coarse, fine = ("rows", "rows") if in_plane else ("sections", "planes")
    columns = [
        _Column(f"Input\n{factor * voxel_size.z:.4g} nm {coarse}", sections[as_thick][:, y, x]),
        _Column(f"Cubic interpolation\n{voxel_size.z:.4g} nm {fine}", interpolated[z, y, x]),
    ]
    if before is not None:
        columns.append(_Column("EMformer\nbefore fine-tuning", before[z, y, x]))
    made = "after fine-tuning" if before is not None else f"{voxel_size.z:.4g} nm {fine}"
    columns.append(_Column(f"EMformer\n{made}", reconstruction[z, y, x]))
    if truth is not None:
        shown_truth = truth[z, y, x]
        columns.append(_Column("Truth", shown_truth))
        difference = reconstruction[z, y, x].astype(np.float32) - shown_truth
        columns.append(_Column("Error\n|EMformer \N{MINUS SIGN} truth|", np.abs(difference), coloured=True))
    if uncertainty is not None:
        columns.append(_Column("Stated uncertainty", uncertainty[z, y, x], coloured=True))

    depth, down, across = z.stop - z.start, y.stop - y.start, x.stop - x.start
    if in_plane:  # label, slice of the cropped volume, voxel edge across
        cuts = sorted({down // 3, 2 * down // 3})
        rows = [(f"xy at z = {y.start + cut}", np.s_[:, cut, :], voxel_size.x) for cut in cuts]
    else:
        rows = [
            (f"xz at y = {y.start + down // 2}", np.s_[:, down // 2, :], voxel_size.x),
            (f"yz at x = {x.start + across // 2}", np.s_[:, :, across // 2], voxel_size.y),
        ]
    zoom = max(1, PANEL_PX // max(depth, down, across))
    widths = [zoom * columns[0].volume[cut].shape[1] for _, cut, _ in rows]
    heights = [max(1, round(zoom * depth * voxel_size.z / across)) for _, _, across in rows]
    top = TOP_PX + (TITLE_PX if title else 0)
    right = RIGHT_PX if columns[-1].coloured else GAP_PX
    size = (
        LEFT_PX + len(columns) * (max(widths) + GAP_PX) - GAP_PX + right,
        top + sum(heights) + GAP_PX + BOTTOM_PX,
    )
    figure = Figure(figsize=(size[0] / DPI, size[1] / DPI), dpi=DPI, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    if title:
        figure.text(LEFT_PX / size[0], 1 - 8 / size[1], title, fontsize=10, fontweight="bold", va="top")

    grey = np.percentile(columns[0].volume, [1, 99])
    colour = (0, max((np.percentile(column.volume, 99) for column in columns if column.coloured), default=1))
    offset = top
    for row, ((label, cut, across), width, height) in enumerate(zip(rows, widths, heights, strict=True)):
        for place, column in enumerate(columns):
            left = LEFT_PX + place * (max(widths) + GAP_PX)
            axes = _add_axes(figure, size, left, offset, width, height)
            low, high = colour if column.coloured else grey
            colormap = "inferno" if column.coloured else "gray"
            image = axes.imshow(
                column.volume[cut], cmap=colormap, vmin=low, vmax=high, interpolation="nearest", aspect="auto"
            )
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            if row == 0:
                axes.set_title(column.heading, fontsize=9, pad=4)
            if place == 0:
                axes.set_ylabel(label, fontsize=9)
                _draw_scale_bar(axes, width / zoom, across, scale_bar_nm)
        if row == 0 and columns[-1].coloured:
            bar_axes = _add_axes(figure, size, left + max(widths) + GAP_PX, offset, 12, height)
            figure.colorbar(image, cax=bar_axes).set_label("grey levels", fontsize=9)
            bar_axes.tick_params(labelsize=8)
        offset += height + GAP_PX

    temporary = path.with_name(f".{path.name}.part")
    canvas.print_png(temporary, pil_kwargs={"optimize": True})
    temporary.replace(path)


def _check(
    path: Path,
    sections: np.ndarray,
    reconstruction: np.ndarray,
    others: dict[str, np.ndarray | None],
    factor: float,
) -> None:
    if path.suffix.lower() != ".png":
        raise InputError(f"picture {str(path)!r} does not end in .png; pictures are written as PNG.")
    if not path.absolute().parent.is_dir():
        raise InputError(f"folder {str(path.parent)!r} of the picture does not exist; create it first.")
    if reconstruction.ndim != 3 or sections.ndim != 3 or sections.shape[1:] != reconstruction.shape[1:]:
        raise InputError(
            f"sections have shape {sections.shape}, reconstruction {reconstruction.shape}; expected (sections, y, x) "
            f"and (planes, y, x) with the same y and x."
        )
    planes = SectionModel(factor).num_planes(len(sections))
    if reconstruction.shape[0] != planes:
        raise InputError(
            f"reconstruction has {reconstruction.shape[0]} planes; {len(sections)} sections at factor {factor:g} make "
            f"{planes}. Check the factor, or crop both to the same extent."
        )
    for name, volume in others.items():
        if volume is not None and volume.shape != reconstruction.shape:
            raise InputError(
                f"{name} has shape {volume.shape}, reconstruction {reconstruction.shape}; expected the same. "
                f"Crop both to the same extent."
            )


def _middle(side: int) -> slice:
    start = max(0, (side - CROP) // 2)
    return slice(start, min(side, start + CROP))


def _add_axes(figure: Figure, size: tuple[int, int], left: int, top: int, width: int, height: int) -> Axes:
    """Axes that cover exactly these pixels, counted from the top left corner."""
    return figure.add_axes((left / size[0], 1 - (top + height) / size[1], width / size[0], height / size[1]))


def _draw_scale_bar(axes: Axes, voxels_across: float, voxel_nm: float, length_nm: float | None) -> None:
    """A white bar with a dark rim in the lower right corner, its length above it."""
    from matplotlib.patheffects import withStroke

    if length_nm is None:
        wanted = voxels_across * voxel_nm / 4
        length_nm = max(
            step * 10.0**power for power in range(-3, 9) for step in (1, 2, 5) if step * 10**power <= wanted
        )
    share = length_nm / (voxels_across * voxel_nm)
    label = f"{length_nm / 1000:g} \N{MICRO SIGN}m" if length_nm >= 1000 else f"{length_nm:g} nm"
    rim = [withStroke(linewidth=2.5, foreground="black")]
    axes.plot(
        [0.96 - share, 0.96],
        [0.05, 0.05],
        color="white",
        lw=3,
        transform=axes.transAxes,
        path_effects=[withStroke(linewidth=5, foreground="black")],
        solid_capstyle="butt",
        scalex=False,
        scaley=False,
    )
    axes.text(
        0.96 - share / 2,
        0.075,
        label,
        color="white",
        fontsize=9,
        ha="center",
        va="bottom",
        transform=axes.transAxes,
        path_effects=rim,
    )
