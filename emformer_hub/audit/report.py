"""Report of an audit: one self-contained HTML file, and the same content as JSON."""

from __future__ import annotations

import base64
import io
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2
import numpy as np

from emformer_hub.audit.audit import Audit
from emformer_hub.audit.held_back import MAP_BLOCK
from emformer_hub.errors import InputError
from emformer_hub.files import check_file, replacing
from emformer_hub.measurement.drawing import draw_scale_bar
from emformer_hub.volumes.grey import grey_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TEMPLATE = Path(__file__).with_name("report.html.jinja")
COLUMNS = ("input", "interpolation", "reconstruction", "uncertainty")


def json_path(page: Path) -> Path:
    """Path of the JSON file beside the page."""
    return page.with_suffix(".json")


def check_report(page: Path, overwrite: bool) -> None:
    """Raise ``InputError`` if a report cannot be written there."""
    if page.suffix != ".html":
        raise InputError(f"output {page} is a page; expected a name that ends in .html. Its JSON is written beside it.")
    for path in (page, json_path(page)):
        check_file(path, overwrite)


def write_report(audit: Audit, page: Path) -> None:
    """Write the page and the JSON file, each whole or not at all.

    Raises:
        InputError: the disk refuses.
    """
    with replacing(json_path(page)) as partial:
        partial.write_text(json.dumps(audit.report(), indent=2, allow_nan=False) + "\n")
    with replacing(page) as partial:
        partial.write_text(html(audit), encoding="utf-8")


def html(audit: Audit) -> str:
    """Render the page."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters["grey_text"] = grey_text
    pictures = {
        "planes": _picture(lambda figure: _planes(figure, audit), (12, 9.5)),
        "left_out": _picture(lambda figure: _left_out(figure, audit), (10, 3.4)),
        "spectra": _picture(lambda figure: _spectra(figure, audit), (10, 3.2)),
    }
    if "against" in audit.figures:
        pictures["against"] = _picture(lambda figure: _against(figure, audit), (10, 3.4))
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(**audit.report(), pictures=pictures)


def _picture(draw: Callable[[Figure], None], inches: tuple[float, float]) -> str:
    """Draw a figure; return it as a data URL."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=inches, dpi=110, layout="constrained")
    draw(figure)
    file = io.BytesIO()
    figure.savefig(file, format="jpeg", pil_kwargs={"quality": 88})
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def _planes(figure: Figure, audit: Audit) -> None:
    pictures, facts = audit.pictures, audit.facts
    section_nm, plane_nm = facts["voxel_size_nm"], facts["plane_size_nm"]
    axes = figure.subplots(3, 4)
    grey = pictures["input"]
    black, white = np.percentile(grey, [0.5, 99.5])
    largest = float(np.percentile(pictures["uncertainty"], 99.5))
    for column, name in enumerate(COLUMNS):
        volume = pictures[name]
        size = section_nm if name == "input" else plane_nm
        middle = [length // 2 for length in volume.shape]
        square = round(size[2] * volume.shape[2] / size[0])  # of the planes: no higher than the cuts are wide
        top = max(0, (volume.shape[0] - square) // 2)
        shown = volume[top : top + square]
        cuts = (volume[middle[0]], shown[:, middle[1]], shown[:, :, middle[2]])
        sides = ((size[1], size[2]), (size[0], size[2]), (size[0], size[1]))
        for row, (cut, (down, across), plane) in enumerate(zip(cuts, sides, ("xy", "xz", "yz"), strict=True)):
            axis: Axes = axes[row, column]
            extent = (0.0, cut.shape[1] * across, cut.shape[0] * down, 0.0)
            sure = name == "uncertainty"
            image = axis.imshow(
                cut,
                cmap="magma" if sure else "gray",
                vmin=0 if sure else black,
                vmax=largest if sure else white,
                extent=extent,
                interpolation="nearest",
            )
            axis.set(xticks=[], yticks=[], title=f"{name}, {plane}")
            if sure and row == 0:
                figure.colorbar(image, ax=axis, shrink=0.7, label="grey levels")
            if column == 0:
                draw_scale_bar(axis, extent[1])


def _left_out(figure: Figure, audit: Audit) -> None:
    found = audit.figures["left_out"]
    curve, area = figure.subplots(1, 2, width_ratios=[2, 1])
    sections = np.array(found["section"]) + audit.facts["left_out_region"][0][0]
    for name, style in (("linear", "s--"), ("cubic", "^:"), ("network", "o-")):
        curve.plot(sections, found[name], style, label=name, markersize=4)
    curve.set(xlabel="section left out", ylabel="RMS error, grey levels", ylim=(0, None))
    curve.legend(frameon=False)
    _map(figure, area, audit, audit.pictures["left_out_map"], "gain over linear, dB")


def _against(figure: Figure, audit: Audit) -> None:
    """What the second opinion finds on each section left out, and where in the plane."""
    first, second = audit.figures["left_out"], audit.figures["against"]["left_out"]
    curve, area = figure.subplots(1, 2, width_ratios=[2, 1])
    sections = np.array(first["section"]) + audit.facts["left_out_region"][0][0]
    curve.plot(sections, first["network"], "o-", label="audited", markersize=4)
    curve.plot(sections, second["network"], "s--", label="second opinion", markersize=4)
    curve.set(xlabel="section left out", ylabel="RMS error, grey levels", ylim=(0, None))
    curve.legend(frameon=False)
    _map(figure, area, audit, audit.pictures["against_map"], "gain over the second, dB")


def _map(figure: Figure, area: Axes, audit: Audit, gains: np.ndarray, title: str) -> None:
    most = max(0.5, float(np.abs(gains).max()))
    size = audit.facts["voxel_size_nm"]
    extent = (0.0, gains.shape[1] * MAP_BLOCK * size[2] / 1000, gains.shape[0] * MAP_BLOCK * size[1] / 1000, 0.0)
    image = area.imshow(gains, cmap="RdBu", vmin=-most, vmax=most, extent=extent)
    area.set(xlabel="x, \u00b5m", ylabel="y, \u00b5m", title=title)
    figure.colorbar(image, ax=area)


def _spectra(figure: Figure, audit: Audit) -> None:
    found = audit.figures["isotropy"]
    ratio, share = figure.subplots(1, 2)
    edges = found["bands_per_nm"]
    names = [f"{1 / high:.0f}\u2013{1 / low:.0f}" for low, high in itertools.pairwise(edges)]
    judged = found["judged"]
    colours = ["#4477aa"] * judged + ["#bbbbbb"] * (len(names) - judged)
    ratio.bar(names, [value or 0 for value in found["power_ratio"]], color=colours)
    ratio.axhline(1, color="black", linewidth=1)
    ratio.set(xlabel="wavelength, nm", ylabel="axial / lateral power", title="isotropy of spectra")
    stated = {
        "sharp plane": audit.figures["in_plane"].get("coverage"),
        "sections left out": audit.figures["left_out"]["coverage"],
    }
    if not any(stated.values()):
        share.axis("off")
        return
    share.plot([0, 1], [0, 1], color="black", linewidth=1)
    for (name, inside), style in zip(stated.items(), ("o-", "s--"), strict=True):
        if inside:
            share.plot([float(p) for p in inside], list(inside.values()), style, label=name)
    share.legend(frameon=False)
    share.set(xlabel="probability stated", ylabel="share of errors inside", title="intervals", xlim=(0, 1), ylim=(0, 1))
