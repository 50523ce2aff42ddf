"""How much better than interpolation? Degrade an isotropic truth along z, reconstruct it, compare with the truth.

    python benchmarks/quality.py --json quality.json

prints a Markdown table; benchmarks/README.md says what each column means.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
from _report import Columns, OutputFile, describe_file, describe_run, print_report, start, write_json

from emformer_hub.devices import choose_device, choose_precision
from emformer_hub.errors import InputError
from emformer_hub.geometry import SectionModel, VoxelSize
from emformer_hub.interpolation import interpolate
from emformer_hub.measurement import comparison_picture, evaluate
from emformer_hub.pretrained import resolve_pretrained
from emformer_hub.processing_emformer import to_dtype
from emformer_hub.reconstruction.runner import ENSEMBLES, Reconstruction, reconstruct
from emformer_hub.volumes import read_volume

DATA = Path(os.environ.get("EMFORMER_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
FIB25 = DATA / "eval" / "fibsem_fib25_b.tif"
FIB25_VOXEL_SIZE = VoxelSize(8, 8, 8)
"""Nominal, of the default truth, whose file does not state it (Takemura et al., PNAS 112(44), 2015)."""

COLUMNS: Columns = {
    "geometry": lambda row: row["geometry"]["name"],
    "method": lambda row: row["method"],
    "PSNR dB": lambda row: f"{row['psnr_db']:.2f}",
    "gain over bicubic dB": lambda row: f"{row['gain_over_bicubic_db']:+.2f}",
    "SSIM 3d": lambda row: f"{row['ssim']['3d']:.4f}",
    "SSIM xy": lambda row: f"{row['ssim']['xy']:.4f}",
    "SSIM xz": lambda row: f"{row['ssim']['xz']:.4f}",
    "SSIM yz": lambda row: f"{row['ssim']['yz']:.4f}",
    "FSC z nm": lambda row: f"{row['fsc']['resolution_nm']['z']:.1f}",
    "FSC lateral nm": lambda row: f"{row['fsc']['resolution_nm']['lateral']:.1f}",
    "seconds": lambda row: f"{row['seconds']:.1f}",
}


@dataclass(frozen=True)
class Geometry:
    """A section model and what the table calls it."""

    name: str
    sections: SectionModel

    @classmethod
    def parse(cls, text: str) -> Geometry:
        """``8:1`` or ``8:1/8`` (FACTOR:THICKNESS). A thickness of 1/factor keeps one plane of each section's slab.

        A single plane begins at a whole one, ``floor((factor - 1) / 2)``: at an integer factor that is plain
        sub-sampling, without averaging two planes.
        """
        try:
            factor_text, thickness_text = text.split(":")
            factor = float(factor_text)
            numerator, *denominator = map(float, thickness_text.split("/"))
            thickness = numerator / math.prod(denominator)
        except (ValueError, ZeroDivisionError):
            raise InputError(
                f"geometry {text!r} is not FACTOR:THICKNESS; expected such as 8:1, 6.7:0.5 or 8:1/8."
            ) from None
        if factor == 1:
            raise InputError(f"geometry {text!r} has factor 1; there is nothing to restore. Give one above 1.")
        single_plane = math.isclose(factor * thickness, 1)
        sections = SectionModel(factor, thickness, math.floor((factor - 1) / 2) if single_plane else None)
        return cls(f"x{factor_text} t={thickness_text}", sections)

    def record(self) -> dict[str, Any]:
        model = self.sections
        return {"name": self.name, "factor": model.factor, "thickness": model.thickness, "offset": model.offset}


def centre_crop(volume: np.ndarray, crop_zyx: list[int]) -> np.ndarray:
    """The middle ``crop_zyx`` voxels of a volume; an axis that is shorter is kept whole."""
    starts = [max(0, (side - wanted) // 2) for side, wanted in zip(volume.shape, crop_zyx, strict=True)]
    return volume[tuple(slice(begin, begin + wanted) for begin, wanted in zip(starts, crop_zyx, strict=True))]


def parse_crop(text: str) -> list[int]:
    parts = text.split(",")
    if len(parts) != 3 or not all(part.strip().isdecimal() for part in parts):
        raise InputError(f"crop {text!r} is not three numbers of voxels; expected Z,Y,X, as in 64,128,128.")
    return [int(part) for part in parts]


def measure(
    truth: np.ndarray,
    geometry: Geometry,
    models: tuple[str, ...],
    ensemble: int,
    device: str,
    voxel_size: VoxelSize,
    figure: Path | None,
) -> list[dict[str, Any]]:
    """The rows of one geometry; draws the first model's picture if ``figure`` names a file."""
    model = geometry.sections
    sections = to_dtype(model.degrade(truth), truth.dtype)
    truth = truth[: model.num_planes(len(sections))]

    def with_emformer(name: str) -> Reconstruction:
        return reconstruct(
            sections,
            factor=model.factor,
            thickness=model.thickness,
            offset=model.offset,
            model=name,
            ensemble=ensemble,
            device=device,
        )

    def row(method: str, volume: np.ndarray, seconds: float) -> dict[str, Any]:
        return {
            "geometry": geometry.record(),
            "method": method,
            **evaluate(volume, truth, voxel_size),
            "seconds": seconds,
        }

    linear, linear_seconds = timed(lambda: to_dtype(interpolate(sections, model, "linear"), truth.dtype))
    cubic, cubic_seconds = timed(lambda: to_dtype(interpolate(sections, model, "cubic"), truth.dtype))
    bicubic_row = row("bicubic", cubic, cubic_seconds)
    rows = [row("trilinear", linear, linear_seconds), bicubic_row]
    for name in models:
        restored, seconds = timed(partial(with_emformer, name))
        rows.append(row(name, restored.volume, seconds))
        if figure and name == models[0]:
            comparison_picture(
                figure,
                sections=sections,
                interpolated=cubic,
                reconstruction=restored.volume,
                truth=truth,
                uncertainty=restored.uncertainty,
                voxel_size=voxel_size,
                factor=model.factor,
                title=f"{name}, {geometry.name}",
            )
    for measured in rows:
        measured["gain_over_bicubic_db"] = measured["psnr_db"] - bicubic_row["psnr_db"]
    return rows


def timed(job: Callable[[], Any]) -> tuple[Any, float]:
    """What ``job`` returns, and the wall time it took in seconds."""
    begin = time.perf_counter()
    return job(), time.perf_counter() - begin


@click.command()
@click.option(
    "--truth",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help=f"Isotropic volume.  [default: {FIB25.name}]",
)
@click.option("--voxel-size", metavar="Z,Y,X", help="Of the truth, nm.  [default: what the file states]")
@click.option("--model", "models", multiple=True, default=["emformer-small"], show_default=True, help="Repeatable.")
@click.option(
    "--ensemble",
    type=click.Choice([str(n) for n in ENSEMBLES]),
    default="2",
    show_default=True,
    help="Passes to average.",
)
@click.option(
    "--geometry",
    "geometries",
    multiple=True,
    default=["8:1", "4:1", "6.7:1", "8:1/8"],
    show_default=True,
    metavar="FACTOR:THICKNESS",
    help="How sections sample the truth; 1/FACTOR picks single planes. Repeatable.",
)
@click.option("--crop", metavar="Z,Y,X", help="Only the middle of the truth, voxels: a quick look.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
@click.option("--json", "json_path", type=OutputFile(), help="Write everything that was measured.")
@click.option("--figure", type=OutputFile(), help="Write a comparison picture (PNG) of the first geometry and model.")
def main(
    truth: Path | None,
    voxel_size: str | None,
    models: tuple[str, ...],
    ensemble: str,
    geometries: tuple[str, ...],
    crop: str | None,
    device: str,
    json_path: Path | None,
    figure: Path | None,
) -> None:
    """Print a table of reconstruction quality against interpolation, on a truth degraded along z."""
    chosen = [Geometry.parse(text) for text in geometries]
    for name in models:
        resolve_pretrained(name)  # an unknown one is reported before the work, not after it
    path = truth or FIB25
    volume = read_volume(path)
    size = VoxelSize.parse(voxel_size) if voxel_size else volume.voxel_size or (None if truth else FIB25_VOXEL_SIZE)
    if size is None:
        raise InputError(f"{path} does not state its voxel size; give --voxel-size Z,Y,X in nm.")
    data = centre_crop(volume.data, parse_crop(crop)) if crop else volume.data
    torch_device = choose_device(device)
    run = describe_run(
        torch_device,
        str(choose_precision("auto", torch_device)).removeprefix("torch."),
        data=describe_file(path),
        shape_zyx=list(data.shape),
        voxel_size_nm=list(size.zyx),
        ensemble=int(ensemble),
    )

    def rows() -> Iterator[dict[str, Any]]:
        for geometry in chosen:
            picture = figure if geometry is chosen[0] else None
            yield from measure(data, geometry, models, int(ensemble), device, size, picture)

    finished = print_report(run, COLUMNS, rows())
    if json_path:
        write_json(json_path, run, finished)


if __name__ == "__main__":
    start(main)
