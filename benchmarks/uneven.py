"""What is it worth to know where sections lie? Cut a truth into sections of uneven thickness, and restore it.

    python benchmarks/uneven.py --json uneven.json

prints a Markdown table; benchmarks/README.md says what each row means.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
from _figures import INTERPOLATIONS
from _geometry import centre_crop, parse_crop
from _methods import EMformer, Interpolation, Method
from _report import DATA, Columns, OutputFile, describe_file, describe_run, print_report, start, write_json

from emformer_hub.cli.options import DEVICE
from emformer_hub.geometry import SectionModel
from emformer_hub.measurement import grey_range, psnr
from emformer_hub.pretrained import resolve_pretrained
from emformer_hub.processing_emformer import to_dtype
from emformer_hub.uneven import jittered
from emformer_hub.volumes import read_volume

COLUMNS: Columns = {
    "sections": lambda row: row["sections"],
    "taken to lie": lambda row: row["taken"],
    "method": lambda row: row["method"],
    "PSNR dB": lambda row: f"{row['psnr_db']:.2f}",
}
KNOWN, EVENLY = "where they do", "evenly"


def compared(
    truth: np.ndarray, even: SectionModel, jitter: float, seeds: tuple[int, ...], model: EMformer
) -> Iterator[dict[str, Any]]:
    """Rows of the table: PSNR for each seed, and their mean."""
    count = even.num_sections(len(truth))
    planes = truth[: even.num_planes(count)]
    uneven = [jittered(even, count, jitter, seed) for seed in seeds]

    def row(method: Method, sections: str, taken: str) -> dict[str, Any]:
        cuts, takes = ([even] if sections == "even" else uneven), (uneven if taken == KNOWN else [even] * len(seeds))
        found = []
        for cut, take in zip(cuts, takes, strict=False):
            stack = to_dtype(cut.degrade(planes), truth.dtype)
            found.append(psnr(planes, method.restore(stack, take)[0], grey_range(truth)))
        figures = {"psnr_db": float(np.mean(found)), "psnr_db_by_seed": found}
        return {"sections": sections, "taken": taken, "method": method.name, **figures}

    yield row(model, "even", EVENLY)
    yield row(model, "uneven", KNOWN)
    yield row(model, "uneven", EVENLY)
    for name in INTERPOLATIONS:
        if name in ("trilinear", "bicubic"):
            yield row(Interpolation(name), "uneven", KNOWN)


@click.command()
@click.option(
    "--truth",
    "truth_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Isotropic volume.  [default: fibsem_fib25_a.tif of the training data]",
)
@click.option("--crop", metavar="Z,Y,X", default="160,128,128", show_default=True, help="Only the middle, voxels.")
@click.option("--factor", type=float, default=8.0, show_default=True, help="Of even sections.")
@click.option("--thickness", type=float, default=1.0, show_default=True, help="Imaged fraction of a section's slab.")
@click.option("--jitter", type=click.FloatRange(0, 0.3, min_open=True), default=0.2, show_default=True)
@click.option("--seed", "seeds", type=int, multiple=True, default=(0, 1, 2), show_default=True, help="Repeatable.")
@click.option("--model", default="emformer-small", show_default=True)
@DEVICE
@click.option("--json", "json_path", type=OutputFile(), help="Write everything that was measured.")
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
    resolve_pretrained(model)  # an unknown one is reported before the work, not after it
    path = truth_file or DATA / "train" / "fibsem_fib25_a.tif"
    truth = centre_crop(read_volume(path).data, parse_crop(crop))
    run = describe_run(device, data=[describe_file(path)], crop=crop, ensemble=2, jitter=jitter, factor=factor)
    even = SectionModel(factor, thickness)
    rows = print_report(run, COLUMNS, compared(truth, even, jitter, seeds, EMformer(model, device, ensemble=2)))
    if json_path:
        write_json(json_path, run, rows)


if __name__ == "__main__":
    start(main)
