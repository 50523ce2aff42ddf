"""What is it worth to know where sections lie? Cut a truth into sections of uneven thickness, and restore it.

    python benchmarks/uneven.py --json uneven.json

prints a Markdown table; benchmarks/README.md says what each row means.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from _figures import INTERPOLATIONS
from _geometry import centre_crop, parse_crop
from _methods import EMformer, Interpolation, Method
from _options import JSON, MODEL, truth_option
from _report import DATA, Columns, describe_file, describe_run, print_report, start, write_json

from emformer_hub.cli.options import DEVICE
from emformer_hub.geometry import SectionModel
from emformer_hub.inspection import measure_spacings
from emformer_hub.inspection.spacing import LEAST_SIDE
from emformer_hub.measurement import grey_range, psnr
from emformer_hub.processing_emformer import to_dtype
from emformer_hub.uneven import UnevenSections, jittered
from emformer_hub.volumes import read_volume

COLUMNS: Columns = {
    "sections": lambda row: row["sections"],
    "taken to lie": lambda row: row["taken"],
    "method": lambda row: row["method"],
    "distances wrong by": lambda row: f"{row['wrong']:.1%}",
    "PSNR dB": lambda row: f"{row['psnr_db']:.2f}",
}
KNOWN, MEASURED, EVENLY = "where they do", "where they are measured to", "evenly"


def measured(cut: UnevenSections, even: SectionModel, whole: np.ndarray) -> UnevenSections:
    """The sections of a volume where their likeness to each other says that they lie."""
    found = measure_spacings(to_dtype(cut.degrade(whole), whole.dtype), even.factor)
    centres, depths = zip(*found.z_positions(even.factor, even.thickness), strict=True)
    return UnevenSections(even.factor, centres, depths, cut.extent)


def wrong(cut: SectionModel, take: SectionModel) -> float:
    """Root mean square error of the distances of neighbours, in mean distances."""
    distances = (
        np.diff(one.centres) if isinstance(one, UnevenSections) else np.full(1, one.factor) for one in (cut, take)
    )
    true, taken = distances
    return float(np.sqrt(np.mean(np.square(true - taken)))) / cut.factor


def compared(
    truth: np.ndarray,
    crop: Sequence[int],
    even: SectionModel,
    jitter: float,
    seeds: tuple[int, ...],
    model: EMformer,
) -> Iterator[dict[str, Any]]:
    """Rows of the table: PSNR of the crop for each seed, and their mean; distances are measured in whole sections."""
    part = centre_crop(truth, crop)
    count = even.num_sections(len(part))
    planes = part[: even.num_planes(count)]
    whole = centre_crop(truth, [crop[0], *truth.shape[1:]])[: len(planes)]
    uneven = [jittered(even, count, jitter, seed) for seed in seeds]
    taken_for: dict[str, Sequence[SectionModel]] = {KNOWN: uneven, EVENLY: [even] * len(seeds)}
    if min(whole.shape[1:]) >= LEAST_SIDE:
        taken_for[MEASURED] = [measured(cut, even, whole) for cut in uneven]

    def row(method: Method, sections: str, taken: str) -> dict[str, Any]:
        cuts, takes = [even] if sections == "even" else uneven, taken_for[taken]
        found = []
        for cut, take in zip(cuts, takes, strict=False):
            stack = to_dtype(cut.degrade(planes), truth.dtype)
            found.append(psnr(planes, method.restore(stack, take)[0], grey_range(part)))
        off = float(np.mean([wrong(cut, take) for cut, take in zip(cuts, takes, strict=False)]))
        figures = {"wrong": off, "psnr_db": float(np.mean(found)), "psnr_db_by_seed": found}
        return {"sections": sections, "taken": taken, "method": method.name, **figures}

    yield row(model, "even", EVENLY)
    yield row(model, "uneven", KNOWN)
    if MEASURED in taken_for:
        yield row(model, "uneven", MEASURED)
    yield row(model, "uneven", EVENLY)
    for name in INTERPOLATIONS:
        if name in ("trilinear", "bicubic"):
            yield row(Interpolation(name), "uneven", KNOWN)


@click.command()
@truth_option("fibsem_fib25_a.tif of the training data")
@click.option("--crop", metavar="Z,Y,X", default="160,128,128", show_default=True, help="Only the middle, voxels.")
@click.option("--factor", type=float, default=8.0, show_default=True, help="Of even sections.")
@click.option("--thickness", type=float, default=1.0, show_default=True, help="Imaged fraction of a section's slab.")
@click.option("--jitter", type=click.FloatRange(0, 0.3, min_open=True), default=0.2, show_default=True)
@click.option("--seed", "seeds", type=int, multiple=True, default=(0, 1, 2), show_default=True, help="Repeatable.")
@MODEL
@DEVICE
@JSON
def main(
    truth_file: Path | None,
    crop: str,
    factor: float,
    thickness: float,
    jitter: float,
    seeds: tuple[int, ...],
    model: str,
    device: str,
    json_path: Path | None,
) -> None:
    """Print PSNR with positions known, and not."""
    path = truth_file or DATA / "train" / "fibsem_fib25_a.tif"
    truth = read_volume(path).data
    run = describe_run(device, data=[describe_file(path)], crop=crop, ensemble=2, jitter=jitter, factor=factor)
    even, restorer = SectionModel(factor, thickness), EMformer(model, device, ensemble=2)
    rows = print_report(run, COLUMNS, compared(truth, parse_crop(crop), even, jitter, seeds, restorer))
    if json_path:
        write_json(json_path, run, rows)


if __name__ == "__main__":
    start(main)
