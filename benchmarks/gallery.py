"""The pictures of docs/gallery.md, from volumes of which pictures may be shown: interpolation, reconstruction, truth.

    python benchmarks/gallery.py --data-root DIR [--output docs/gallery]

Each is a plane of z and x in the middle of y, a pixel a voxel, in grey levels that all pictures of a volume share.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from PIL import Image

from emformer_hub.geometry import SectionModel
from emformer_hub.interpolation import interpolate
from emformer_hub.processing_emformer import to_dtype
from emformer_hub.reconstruction import reconstruct
from emformer_hub.volumes import read_volume

FOLDER = Path(__file__).parents[1] / "docs" / "gallery"
ROWS = 64
"""Rows of y that are reconstructed around the plane that is shown: as many as the network looks at."""
FLOWN, GAP, MILLISECONDS = 40, 6, 120
"""Planes of the flight through y; pixels between its two pictures; time of a plane."""


@dataclass(frozen=True)
class Example:
    """Sections cut from a volume, and the models that restore them."""

    name: str
    file: str
    geometry: SectionModel
    models: tuple[str, ...] = ("emformer-small",)
    axes: tuple[int, int, int] = (0, 1, 2)  # of the file, that become z, y and x
    with_truth: bool = True


EXAMPLES = (
    Example(
        "fib25-x8",
        "eval/fibsem_fib25_b.tif",
        SectionModel(8),
        ("emformer-small", "emformer-tiny", "emformer-small-multi"),
    ),
    Example("fib25-x8-faces", "eval/fibsem_fib25_b.tif", SectionModel(8, 1 / 8), with_truth=False),
    Example("fib25-x4", "eval/fibsem_fib25_b.tif", SectionModel(4), with_truth=False),
    Example("gala-x8", "train/fibsem_gala.tif", SectionModel(8), axes=(1, 0, 2)),
)


@click.command(help=__doc__)
@click.option("--data-root", type=click.Path(file_okay=False, exists=True, path_type=Path), required=True)
@click.option("--output", type=click.Path(file_okay=False, path_type=Path), default=FOLDER, show_default=True)
def main(data_root: Path, output: Path) -> None:
    output.mkdir(parents=True, exist_ok=True)
    for example in EXAMPLES:
        volumes = restored(example, read_volume(data_root / example.file).data)
        grey = np.percentile(volumes["truth"], [0.5, 99.5])
        for method, volume in volumes.items():
            if method == "truth" and not example.with_truth:
                continue
            picture(volume[:, volume.shape[1] // 2], grey).save(output / f"{example.name}-{method}.png", optimize=True)
        if example is EXAMPLES[0]:
            fly(volumes["cubic"], volumes["emformer-small"], grey, output / f"{example.name}.webp")


def restored(example: Example, stored: np.ndarray) -> dict[str, np.ndarray]:
    """The truth around the plane that is shown, and what each method makes of its sections, ``(z, y, x)``."""
    truth = stored.transpose(example.axes)
    planes = int(truth.shape[0] // example.geometry.factor * example.geometry.factor)
    first = max(0, (truth.shape[1] - ROWS) // 2)
    truth = truth[:planes, first : first + ROWS]
    sections = to_dtype(example.geometry.degrade(truth), truth.dtype)
    volumes = {"truth": truth, "cubic": to_dtype(interpolate(sections, example.geometry, "cubic"), truth.dtype)}
    for model in example.models:
        volumes[model] = reconstruct(sections, geometry=example.geometry, model=model).volume
    return volumes


def picture(plane: np.ndarray, grey: np.ndarray) -> Image.Image:
    """A plane in grey, black and white where ``grey`` says."""
    black, white = grey
    return Image.fromarray(((plane - black) / (white - black) * 255).clip(0, 255).round().astype(np.uint8))


def fly(left: np.ndarray, right: np.ndarray, grey: np.ndarray, path: Path) -> None:
    """Write the planes along y of two volumes, side by side and moving, as WebP."""
    first = (left.shape[1] - FLOWN) // 2
    shown = [*range(first, first + FLOWN), *range(first + FLOWN - 2, first, -1)]  # there and back
    border = np.full((left.shape[0], GAP), grey[1])
    frames = [picture(np.hstack([left[:, y], border, right[:, y]]), grey) for y in shown]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=MILLISECONDS, loop=0, quality=60, method=4)


if __name__ == "__main__":
    main()
