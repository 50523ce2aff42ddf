"""What is it worth to align a stack by translations as it is read? Shift the sections of a truth, and restore it.

    python benchmarks/alignment.py --json alignment.json

prints a Markdown table; benchmarks/README.md says what each row means.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
from _gaps import measured_moves
from _geometry import parse_crop
from _methods import EMformer
from _options import JSON, MODEL, truth_option
from _report import DATA, Columns, describe_file, describe_run, print_report, start, write_json

from emformer_hub.cli.options import DEVICE
from emformer_hub.errors import InputError
from emformer_hub.geometry import SectionModel
from emformer_hub.measurement import grey_range
from emformer_hub.processing_emformer import to_dtype
from emformer_hub.volumes import Volume, read_volume, translated

COLUMNS: Columns = {
    "sections": lambda row: row["sections"],
    "aligned": lambda row: row["aligned"],
    "PSNR dB": lambda row: f"{row['psnr_db']:.2f}",
    "neighbours apart, voxels": lambda row: f"{row['apart']:.2f}",
}
PLANTED = ("jitter", "drift")


def shifts(kind: str, sections: int, most: int, seed: int) -> np.ndarray:
    """Planted displacement of sections along y and x, whole voxels: of each by itself, or step by step."""
    random = np.random.default_rng(seed).integers(-most, most + 1, (sections, 2))
    return random if kind == "jitter" else np.cumsum(random, axis=0)


def compared(
    truth: np.ndarray, sides: tuple[int, int, int], geometry: SectionModel, most: int, seeds: int, model: EMformer
) -> Iterator[dict[str, Any]]:
    """Rows of the table, each the mean over the seeds.

    Where an alignment lays the tissue cannot be told from the sections, so that planes are compared with the truth at
    the place where their sections came to lie: a misalignment of neighbours counts, one of the frame does not.
    """
    count = geometry.num_sections(sides[0])
    planes = geometry.num_planes(count)
    whole = to_dtype(geometry.degrade(truth[:planes]), truth.dtype)
    inner, outer = sides[1:], whole.shape[1:]
    first = [(long - short) // 2 for long, short in zip(outer, inner, strict=True)]

    def cut(volume: np.ndarray, moved: np.ndarray) -> np.ndarray:
        """The middle of each plane of a volume, whose content is moved."""
        parts = []
        for plane, (y, x) in zip(volume, moved.tolist(), strict=True):
            top, left = first[0] - y, first[1] - x
            if min(top, left, outer[0] - top - inner[0], outer[1] - left - inner[1]) < 0:
                raise InputError(
                    f"{outer} voxels along y and x leave no room for shifts of {y}, {x}; give a smaller --crop."
                )
            parts.append(plane[top : top + inner[0], left : left + inner[1]])
        return np.stack(parts)

    def row(kind: str, aligned: str) -> dict[str, Any]:
        errors, apart = [], []
        for seed in range(seeds if kind != "none" else 1):
            planted = shifts(kind, count, most, seed) if kind != "none" else np.zeros((count, 2), int)
            stack = cut(whole, planted)
            moves = np.zeros_like(planted)
            if aligned == "by measured translations":
                moves = np.array(measured_moves(stack, "stack"))
            left = planted + moves
            read = translated(Volume(stack, None, ""), moves.tolist(), "stack")
            masked = np.ma.masked_array(read.data[:], read.hidden[:] if read.hidden is not None else False)
            made = model.restore(masked, geometry)[0]
            between = [np.interp(geometry.plane_positions(planes), np.arange(count), axis) for axis in left.T]
            expected = cut(truth[:planes], np.rint(np.stack(between, axis=1)).astype(int))
            rim = 2 * most
            inside = (slice(None), slice(rim, -rim), slice(rim, -rim))
            errors.append(np.mean(np.square(made[inside].astype(float) - expected[inside])))
            apart.append(np.sqrt(np.mean(np.square(np.diff(left, axis=0)).sum(axis=1))))
        value = 10 * np.log10(grey_range(truth) ** 2 / np.mean(errors))
        return {"sections": kind, "aligned": aligned, "psnr_db": float(value), "apart": float(np.mean(apart))}

    yield row("none", "as they are")
    for kind in PLANTED:
        yield row(kind, "as they are")
        yield row(kind, "by measured translations")
    yield row("none", "by measured translations")


@click.command()
@truth_option("fibsem_fib25_a.tif of the training data")
@click.option("--crop", metavar="Z,Y,X", default="160,250,250", show_default=True, help="Size of the stack, voxels.")
@click.option("--factor", type=float, default=8.0, show_default=True)
@click.option("--thickness", type=float, default=1.0, show_default=True, help="Imaged fraction of a section's slab.")
@click.option("--most", type=click.IntRange(1), default=8, show_default=True, help="Largest planted shift, voxels.")
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True, help="Number of random shifts.")
@MODEL
@DEVICE
@JSON
def main(
    truth_file: Path | None,
    crop: str,
    factor: float,
    thickness: float,
    most: int,
    seeds: int,
    model: str,
    device: str,
    json_path: Path | None,
) -> None:
    """Print PSNR of a stack that is aligned, misaligned, and aligned as it is read."""
    path = truth_file or DATA / "train" / "fibsem_fib25_a.tif"
    truth, sides = read_volume(path).data, parse_crop(crop)
    run = describe_run(device, data=[describe_file(path)], crop=crop, ensemble=2, factor=factor, most=most)
    made = compared(truth, sides, SectionModel(factor, thickness), most, seeds, EMformer(model, device, ensemble=2))
    rows = print_report(run, COLUMNS, made)
    if json_path:
        write_json(json_path, run, rows)


if __name__ == "__main__":
    start(main)
