"""A comparison picture: input, interpolation and reconstruction side by side, in planes that contain z."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from emformer_hub.errors import InputError
from emformer_hub.files import replacing
from emformer_hub.geometry import SectionModel, VoxelSize
from emformer_hub.measurement.drawing import check_picture, draw_scale_bar
from emformer_hub.volumes.boxes import middle

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


@dataclass(frozen=True)
class _Row:
    label: str
    cut: tuple[slice | int, ...]  # a plane of the cropped volume
    voxel: float  # length from left to right


def comparison_picture(
    path: str | os.PathLike[str],
    *,
    sections: np.ndarray,
    interpolated: np.ndarray,
    reconstruction: np.ndarray,
    before: np.ndarray | None = None,
    truth: np.ndarray | None = None,
    uncertainty: np.ndarray | None = None,
    voxel_size: VoxelSize | None,
    factor: float,
    in_plane: bool = False,
    title: str = "",
    scale_bar_nm: float | None = None,
) -> None:
    """Write a PNG that compares a reconstruction with its input.

    Rows are the central xz and yz planes, or two sections if the sections were degraded in their plane, cropped to the
    middle, at most 160 voxels along each side. Columns are the input (each section as thick as its spacing), cubic
    interpolation, EMformer (before fine-tuning, if given, and now), and, if given, the truth with the absolute error,
    and the uncertainty. Every voxel is drawn as the same whole number of screen pixels. Grey levels are shared by all
    columns, black at the 1st and white at the 99th percentile of the input; errors and uncertainty share a colour bar,
    in grey levels, that ends at their 99th percentile.

    Args:
        path: the picture; the name ends in ``.png``. An existing file is replaced.
        sections: the input, ``(sections, y, x)``.
        interpolated: cubic interpolation of the input, ``(planes, y, x)`` like all that follow.
        reconstruction: the output of the model.
        before: output of the model before fine-tuning.
        truth: the isotropic truth, if known.
        uncertainty: uncertainty of the reconstruction, in grey levels.
        voxel_size: voxel size of the planes, not of the sections, nm; without it, lengths are in voxels.
        factor: sections are ``factor * voxel_size.z`` apart.
        in_plane: the sections were degraded in their plane: all volumes have the axes y, z, x, and "planes" are rows
            along y.
        title: a line above the picture.
        scale_bar_nm: length of the scale bar, in voxels without a voxel size; by default a round number near a quarter
            of the width.

    Raises:
        InputError: shapes do not agree, the folder does not exist, the name does not end in ``.png``, or matplotlib is
            not installed.
    """
    path = Path(path)
    others = {"interpolated": interpolated, "before": before, "truth": truth, "uncertainty": uncertainty}
    check_picture(path)
    _check_shapes(sections, reconstruction, others, factor)
    box = middle(reconstruction.shape, (CROP,) * 3)
    as_thick = np.minimum((np.arange(box[0].start, box[0].stop) + 0.5) // factor, len(sections) - 1).astype(int)
    if voxel_size is None:
        size, unit, coarse, fine = VoxelSize(1, 1, 1), "voxels", f"every {factor:.4g} voxels", "every voxel"
    else:
        size, unit = voxel_size, "nm"
        coarse, fine = ("rows", "rows") if in_plane else ("sections", "planes")
        coarse, fine = f"{factor * size.z:.4g} nm {coarse}", f"{size.z:.4g} nm {fine}"
    columns = [
        _Column(f"Input\n{coarse}", sections[as_thick][:, *box[1:]]),
        _Column(f"Cubic interpolation\n{fine}", interpolated[box]),
    ]
    if before is not None:
        columns.append(_Column("EMformer\nbefore fine-tuning", before[box]))
    kind = "after fine-tuning" if before is not None else fine
    columns.append(_Column(f"EMformer\n{kind}", reconstruction[box]))
    if truth is not None:
        columns.append(_Column("Truth", truth[box]))
        error = np.abs(reconstruction[box].astype(np.float32) - truth[box])
        columns.append(_Column("Error\n|EMformer \N{MINUS SIGN} truth|", error, coloured=True))
    if uncertainty is not None:
        columns.append(_Column("Stated uncertainty", uncertainty[box], coloured=True))
    with replacing(path) as partial:
        _draw(partial, columns, _rows(box, size, in_plane), size.z, title, scale_bar_nm, unit)


def _rows(box: tuple[slice, ...], voxel_size: VoxelSize, in_plane: bool) -> list[_Row]:
    """The two cuts that are shown of a box."""
    _, y, x = box
    down, across = y.stop - y.start, x.stop - x.start
    if in_plane:
        cuts = sorted({down // 3, 2 * down // 3})
        return [_Row(f"xy at z = {y.start + cut}", np.s_[:, cut, :], voxel_size.x) for cut in cuts]
    return [
        _Row(f"xz at y = {y.start + down // 2}", np.s_[:, down // 2, :], voxel_size.x),
        _Row(f"yz at x = {x.start + across // 2}", np.s_[:, :, across // 2], voxel_size.y),
    ]


def _draw(
    path: Path,
    columns: list[_Column],
    rows: list[_Row],
    plane: float,
    title: str,
    scale_bar: float | None,
    unit: str,
) -> None:
    """Write the picture: every column in every row, each voxel as the same whole number of pixels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    depth = columns[0].volume.shape[0]
    zoom = max(1, PANEL_PX // max(columns[0].volume.shape))
    widths = [zoom * columns[0].volume[row.cut].shape[1] for row in rows]
    heights = [max(1, round(zoom * depth * plane / row.voxel)) for row in rows]
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
    for row, width, height in zip(rows, widths, heights, strict=True):
        for place, column in enumerate(columns):
            left = LEFT_PX + place * (max(widths) + GAP_PX)
            axes = _add_axes(figure, size, left, offset, width, height)
            low, high = colour if column.coloured else grey
            colormap = "inferno" if column.coloured else "gray"
            image = axes.imshow(
                column.volume[row.cut], cmap=colormap, vmin=low, vmax=high, interpolation="nearest", aspect="auto"
            )
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            if row is rows[0]:
                axes.set_title(column.heading, fontsize=9, pad=4)
            if place == 0:
                axes.set_ylabel(row.label, fontsize=9)
                draw_scale_bar(axes, width / zoom * row.voxel, scale_bar, unit)
        if row is rows[0] and columns[-1].coloured:
            bar_axes = _add_axes(figure, size, left + max(widths) + GAP_PX, offset, 12, height)
            figure.colorbar(image, cax=bar_axes).set_label("grey levels", fontsize=9)
            bar_axes.tick_params(labelsize=8)
        offset += height + GAP_PX
    canvas.print_png(path, pil_kwargs={"optimize": True})


def _check_shapes(
    sections: np.ndarray, reconstruction: np.ndarray, others: dict[str, np.ndarray | None], factor: float
) -> None:
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


def _add_axes(figure: Figure, size: tuple[int, int], left: int, top: int, width: int, height: int) -> Axes:
    """Axes that cover exactly these pixels, counted from the top left corner."""
    return figure.add_axes((left / size[0], 1 - (top + height) / size[1], width / size[0], height / size[1]))
