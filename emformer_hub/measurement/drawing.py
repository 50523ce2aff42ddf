"""Parts that pictures of volumes share: file names and the scale bar."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from emformer_hub.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def check_picture(path: Path) -> None:
    """Raise ``InputError`` unless a name ends in ``.png`` and its folder exists."""
    if path.suffix.lower() != ".png":
        raise InputError(f"picture {str(path)!r} does not end in .png; pictures are written as PNG.")
    if not path.absolute().parent.is_dir():
        raise InputError(f"folder {str(path.parent)!r} of the picture does not exist; create it first.")


def draw_scale_bar(axes: Axes, width: float, length: float | None = None, unit: str = "nm") -> None:
    """Draw a white bar with a dark rim into the lower right corner, its length above it.

    Args:
        axes: axes of an image.
        width: width of the image.
        length: length of the bar; by default a round number near a quarter of the width.
        unit: unit of both.
    """
    from matplotlib.patheffects import withStroke

    if length is None:
        wanted = width / 4
        length = max(step * 10.0**power for power in range(-3, 9) for step in (1, 2, 5) if step * 10**power <= wanted)
    fraction = length / width
    micrometres = unit == "nm" and length >= 1000
    label = f"{length / 1000:g} \N{MICRO SIGN}m" if micrometres else f"{length:g} {unit}"
    rim = [withStroke(linewidth=2.5, foreground="black")]
    axes.plot(
        [0.96 - fraction, 0.96],
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
        0.96 - fraction / 2,
        0.075,
        label,
        color="white",
        fontsize=9,
        ha="center",
        va="bottom",
        transform=axes.transAxes,
        path_effects=rim,
    )
