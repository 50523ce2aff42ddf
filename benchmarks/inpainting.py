"""Does it fill sections that are missing, and does it keep those that are there?

    python benchmarks/inpainting.py --json inpainting.json

prints four Markdown tables; benchmarks/README.md says what each column means.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
from _figures import compare, with_interval
from _gaps import (
    DEGRADED,
    DEGRADED_SECTIONS,
    REAL,
    Sections,
    as_imaged,
    degraded,
    ends,
    gaps,
    interpolated,
    read_truth,
    stacks,
)
from _methods import Run, runner, timed
from _options import JSON, MODELS
from _report import DATA, Columns, describe_file, describe_run, print_header, print_table, start, write_json

from emformer_hub.cli.options import DEVICE
from emformer_hub.geometry import SectionModel
from emformer_hub.measurement import consistency_residual, grey_range, psnr
from emformer_hub.modes import MODES
from emformer_hub.processing_emformer import to_dtype

LENGTHS = (1, 2, 3)
SIDE = 160
AWAY = 2
"""Sections from a gap within which it may be felt."""
DISC = 24
"""Radius of local damage, voxels."""
TENTHS = slice(4, None, 10)
"""The sections that are missing in joint repair."""
CONSISTENCY = {
    "x4 t=1": SectionModel(4),
    "x8 t=1": SectionModel(8),
    "x5.5 t=1": SectionModel(5.5),
    "x4 t=1/4": SectionModel(4, 1 / 4, 1),
    "x8 t=1/8": SectionModel(8, 1 / 8, 3),
    "x5.5 t=1/5.5": SectionModel(5.5, 1 / 5.5, 2),
}
PARTS = ("filled", "damage", "joint", "consistency")

FILLED: Columns = {
    "stack": lambda row: row["data"],
    "sections missing in a row": lambda row: row["gap"],
    "method": lambda row: row["method"],
    "linear dB": lambda row: f"{row['linear_db']:.2f}",
    "cubic dB": lambda row: f"{row['cubic_db']:.2f}",
    "PSNR dB (95 %)": lambda row: with_interval(row, "psnr", ".2f"),
    "gain over linear dB (95 %)": lambda row: with_interval(row, "gain_over_linear", "+.2f"),
    "gain over cubic dB (95 %)": lambda row: with_interval(row, "gain_over_cubic", "+.2f"),
}
DAMAGE: Columns = {
    "stack": FILLED["stack"],
    "method": FILLED["method"],
    "PSNR in the damage dB": lambda row: f"{row['psnr_db']:.2f}",
}
JOINT: Columns = {
    "truth": FILLED["stack"],
    "method": FILLED["method"],
    "PSNR dB, none missing": lambda row: f"{row['whole_db']:.2f}",
    "1 of 10 missing": lambda row: f"{row['missing_db']:.2f}",
    "loss dB": lambda row: f"{row['whole_db'] - row['missing_db']:.2f}",
    "planes of the missing ones: none missing": lambda row: f"{row['filled_whole_db']:.2f}",
    "1 of 10 missing  ": lambda row: f"{row['filled_missing_db']:.2f}",
    "of every other one, from the rest": lambda row: f"{row['between_db']:.2f}",
    f"more than {AWAY} sections off: none missing": lambda row: f"{row['away_whole_db']:.2f}",
    "1 of 10 missing ": lambda row: f"{row['away_missing_db']:.2f}",
    "loss dB ": lambda row: f"{row['away_whole_db'] - row['away_missing_db']:.3f}",
}
CONSISTENT: Columns = {
    "truth": FILLED["stack"],
    "geometry": lambda row: row["geometry"],
    "method": FILLED["method"],
    "PSNR dB": lambda row: f"{row['clean']['psnr_db']:.2f}",
    "residual, grey levels (of range)": lambda row: _residual(row["clean"]),
    "largest": lambda row: f"{row['clean']['maximum']:.1f}",
    "faithful: PSNR dB": lambda row: f"{row['faithful']['psnr_db']:.2f}",
    "residual, grey levels (of range) ": lambda row: _residual(row["faithful"]),
    "largest ": lambda row: f"{row['faithful']['maximum']:.2f}",
}


def _residual(figures: dict[str, float]) -> str:
    return f"{figures['rms']:.3f} ({figures['relative_rms']:.1e})"


def filled(stack: Sections, runs: dict[str, Run]) -> Iterator[dict[str, Any]]:
    """Gaps of each length inside the stack, then at both ends; all of a length are judged together."""
    depth = len(stack.data)
    inside = [(f"{length}", list(gaps(depth, length))) for length in LENGTHS]
    outside = [(f"{length}, at the ends", [ends(depth, length)]) for length in LENGTHS]
    for gap, masks in inside + outside:
        truth = np.concatenate([stack.data[mask] for mask in masks])

        def by_all(fill: Callable[[np.ndarray], np.ndarray], masks: list[np.ndarray] = masks) -> np.ndarray:
            return np.concatenate([fill(mask) for mask in masks])

        fills = {
            "linear": lambda mask: interpolated(stack.data, mask, cubic=False),
            "cubic": lambda mask: interpolated(stack.data, mask, cubic=True),
        } | {name: partial(_by_network, stack, run) for name, run in runs.items()}
        restored = [timed(name, by_all, fill) for name, fill in fills.items()]
        rows = compare(truth, restored, lambda volume: {}, baselines=("linear", "cubic"))
        baselines = {f"{row['method']}_db": row["psnr_db"] for row in rows if row["method"] not in runs}
        common = {"experiment": "sections missing", "data": stack.name, "gap": gap, **baselines}
        yield from ({**common, **row} for row in rows if row["method"] in runs)


def _by_network(stack: Sections, run: Run, mask: np.ndarray) -> np.ndarray:
    done = run(stack.data, stack.geometry, mask=mask)
    return to_dtype(as_imaged(done.volume, stack.geometry, mask), stack.data.dtype)


def damage(stack: Sections, runs: dict[str, Run]) -> Iterator[dict[str, Any]]:
    """A disc in one of ten sections, filled by its own mask or by that of the whole section."""
    (whole, *_) = gaps(len(stack.data), 1)
    _, height, width = stack.data.shape
    y, x = np.ogrid[:height, :width]
    disc = np.hypot(y - height // 2, x - width // 2) < DISC
    mask = whole[:, None, None] & disc
    truth = stack.data[whole][:, disc]

    def row(method: str, sections: np.ndarray) -> dict[str, Any]:
        value = psnr(truth[:, None], to_dtype(sections[:, disc], truth.dtype)[:, None], grey_range(truth))
        return {"experiment": "local damage", "data": stack.name, "method": method, "psnr_db": value}

    for name, cubic in (("linear", False), ("cubic", True)):
        yield row(name, interpolated(stack.data, whole, cubic))
    for name, run in runs.items():
        for what, hidden in (("the damage masked", mask), ("its section masked", whole)):
            volume = run(stack.data, stack.geometry, mask=hidden).volume
            yield row(f"{name}, {what}", as_imaged(volume, stack.geometry, whole))


def joint(truth: np.ndarray, runs: dict[str, Run]) -> Iterator[dict[str, Any]]:
    """The whole volume, restored from all sections and from nine of ten.

    Beside it, for what the planes of a missing section can be known by: those of every other section, restored from the
    rest as sections of twice the factor, which is no repair but a geometry that the weights were trained for.
    """
    geometry = DEGRADED_SECTIONS
    sections = degraded(truth, geometry)
    planes = geometry.num_planes(len(sections))
    mask = np.zeros(len(sections), bool)
    mask[TENTHS] = True
    from_gap = np.abs(np.arange(len(sections))[:, None] - np.flatnonzero(mask)).min(axis=1)
    distance = from_gap[geometry.sections_of(planes)]
    halved = SectionModel(2 * geometry.factor, geometry.thickness / 2, geometry.offset)
    between = geometry.sections_of(planes) % 2 == 1
    for name, run in runs.items():
        whole, missing = (run(sections, geometry, mask=hidden).volume for hidden in (None, mask))
        figures = {
            f"{place}{kind}_db": psnr(truth[:planes][where], volume[where], grey_range(truth))
            for place, where in (("", slice(None)), ("filled_", distance == 0), ("away_", distance > AWAY))
            for kind, volume in (("whole", whole), ("missing", missing))
        }
        rest = run(sections[::2], halved).volume[:planes]
        figures["between_db"] = psnr(truth[:planes][between], rest[between], grey_range(truth))
        yield {"experiment": "joint repair", "data": f"{DEGRADED}, x8 t=1", "method": name, **figures}


def consistency(truth: np.ndarray, runs: dict[str, Run]) -> Iterator[dict[str, Any]]:
    """In either mode: fidelity to the truth, and to the sections."""
    for name, geometry in CONSISTENCY.items():
        sections = degraded(truth, geometry)
        there = truth[: geometry.num_planes(len(sections))]
        for method, run in runs.items():
            row: dict[str, Any] = {"experiment": "consistency", "data": DEGRADED, "geometry": name, "method": method}
            for mode in MODES:
                volume = run(sections, geometry, mode=mode).volume
                residual = consistency_residual(volume, sections, geometry)
                row[mode] = {
                    "psnr_db": psnr(there, volume, grey_range(truth)),
                    "rms": residual.rms,
                    "maximum": residual.maximum,
                    "relative_rms": residual.relative_rms,
                    "relative_maximum": residual.relative_maximum,
                }
            yield row


@click.command()
@MODELS
@click.option(
    "--part", "parts", multiple=True, type=click.Choice(PARTS), default=PARTS, help="Repeatable.  [default: all]"
)
@click.option("--side", type=click.IntRange(min=32), default=SIDE, show_default=True, help="Rows and columns used.")
@DEVICE
@JSON
def main(models: tuple[str, ...], parts: tuple[str, ...], side: int, device: str, json_path: Path | None) -> None:
    """Print tables of filled sections, of repair and reconstruction in one pass, and of consistency."""
    folder = DATA / "eval"
    runs = {Path(name).name: runner(name, device) for name in models}
    run = describe_run(
        device,
        data=[describe_file(folder / f"{name}.tif") for name in (*REAL, DEGRADED)],
        side=side,
    )
    truth = read_truth(folder, DEGRADED, side)
    simulated = Sections(f"{DEGRADED}, x8 t=1", degraded(truth, DEGRADED_SECTIONS), DEGRADED_SECTIONS)
    tables: dict[str, tuple[Columns, Callable[[], Iterator[dict[str, Any]]]]] = {
        "filled": (
            FILLED,
            lambda: (row for stack in (simulated, *stacks(folder, side, aligned=True)) for row in filled(stack, runs)),
        ),
        "damage": (DAMAGE, lambda: damage(simulated, runs)),
        "joint": (JOINT, lambda: joint(truth, runs)),
        "consistency": (CONSISTENT, lambda: consistency(truth, runs)),
    }
    print_header(run)
    rows: list[dict[str, Any]] = []
    for part in parts:
        columns, measure = tables[part]
        rows += print_table(columns, measure())
    if json_path:
        write_json(json_path, run, rows)


if __name__ == "__main__":
    start(main)
