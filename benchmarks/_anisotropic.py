"""Real anisotropic stacks, which have no isotropic truth: what can be held out of them, and predicted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from _figures import BASELINE, compare, with_interval
from _methods import EMformer, Method, timed
from _report import Columns

from emformer_hub.audit.held_back import window_around
from emformer_hub.geometry import SectionModel, VoxelSize
from emformer_hub.measurement import fsc, resolution
from emformer_hub.measurement.fsc import SHORTEST_SIDE
from emformer_hub.processing_emformer import to_dtype
from emformer_hub.volumes import read_volume

HIDDEN_CROP, IN_PLANE_CROP = 192, 512
"""Voxels a side, from the middle of the plane, in either experiment."""
NEIGHBOURS = {
    "nearest": {-1: 1.0},
    "trilinear": {-1: 0.5, 1: 0.5},
    BASELINE: {-2: -1 / 6, -1: 2 / 3, 1: 2 / 3, 2: -1 / 6},
}
"""Weights of the sections around a hidden one: a straight line through two, the cubic polynomial through four."""
IN_PLANE_FACTORS = (4.0, 8.0)

Predict = Callable[[np.ndarray, int], np.ndarray]
"""A section of a run, ``(y, x)``, predicted from the others."""


@dataclass(frozen=True)
class Stack:
    """A real stack and how its sections sample tissue.

    Args:
        file: in the evaluation data.
        geometry: factor from the section spacing to the lateral voxel size; thickness 1 where sections are seen
            through, a single plane where they are block faces.
        lateral_nm: lateral voxel size; ``None`` where it is unknown.
        runs: first section, and the one after the last, of each run of sections that follow each other, all measured;
            by default the whole file is one.
    """

    file: str
    geometry: SectionModel
    lateral_nm: float | None
    runs: tuple[tuple[int, int | None], ...] = ((0, None),)

    @property
    def name(self) -> str:
        return self.file.removesuffix(".tif")

    def read(self, folder: Path) -> list[np.ndarray]:
        """Its runs, each ``(z, y, x)``."""
        data = read_volume(folder / self.file).data
        return [data[first:end] for first, end in self.runs]


STACKS = {
    stack.name: stack
    for stack in (
        # SBF-SEM of unknown voxel size. In the part of the block that training may see, neighbouring sections correlate
        # as a plane does with itself 6 voxels further.
        Stack("sbem_cdeep3m.tif", SectionModel(6, 1 / 6, 2), None),
        # Section 3 was lost, and is the mean of 2 and 4 (``emformer-hub inspect`` finds it).
        Stack("sstem_cremi.tif", SectionModel(10), 4.0, runs=((4, None),)),
        Stack("fibsem_epfl_every8th.tif", SectionModel(8, 1 / 8, 3), 5.0),
        # Every second section of SBF-SEM, in runs that do not follow each other.
        Stack("sbem_hela.tif", SectionModel(10, 1 / 10, 4), 10.0, runs=((0, 3), (3, 8), (8, 13), (13, 19), (19, 24))),
        # Unrelated images of TEM, so there is nothing to leave out.
        Stack("tem2d_myelin.tif", SectionModel(1), None, runs=tuple((z, z + 1) for z in range(8))),
    )
}

HIDDEN_COLUMNS: Columns = {
    "stack": lambda row: row["data"],
    "method": lambda row: row["method"],
    "PSNR dB (95 %)": lambda row: with_interval(row, "psnr", ".2f"),
    "gain over trilinear dB (95 %)": lambda row: with_interval(row, "gain_over_trilinear", "+.2f"),
    "gain over bicubic dB (95 %)": lambda row: with_interval(row, "gain_over_bicubic", "+.2f"),
    "seconds": lambda row: f"{row['seconds']:.1f}",
}
IN_PLANE_COLUMNS: Columns = {
    "stack": HIDDEN_COLUMNS["stack"],
    "geometry along y": lambda row: row["geometry"]["name"],
    "method": HIDDEN_COLUMNS["method"],
    "PSNR dB (95 %)": HIDDEN_COLUMNS["PSNR dB (95 %)"],
    "gain over bicubic dB (95 %)": HIDDEN_COLUMNS["gain over bicubic dB (95 %)"],
    "FSC y": lambda row: _with_unit(row["fsc"], "y"),
    "FSC x": lambda row: _with_unit(row["fsc"], "x"),
    "seconds": HIDDEN_COLUMNS["seconds"],
}


def _with_unit(fsc: dict[str, Any] | None, axis: str) -> str:
    return f"{fsc['resolution'][axis]:.1f} {fsc['unit']}" if fsc else ""


def leave_one_out(stack: Stack, runs: list[np.ndarray], methods: list[Method]) -> list[dict[str, Any]]:
    """Hide each inner section of each run in turn, predict it from the others, and compare all with what was measured.

    An EMformer predicts through its section mask, interpolation keeps to the sections' centres (``NEIGHBOURS``). Other
    methods cannot leave a section out. A stack without three sections in succession has no rows.
    """
    runs = [run for run in runs if len(run) > 2]
    if not runs:
        return []
    predictions: dict[str, Predict] = {name: partial(_by_neighbours, weights) for name, weights in NEIGHBOURS.items()}
    for method in methods:
        if isinstance(method, EMformer):
            predictions[method.name] = partial(_by_network, stack.geometry, method)
    restored = [timed(name, _of_all, predict, runs) for name, predict in predictions.items()]
    hidden = np.concatenate([run[1:-1] for run in runs])
    rows = compare(hidden, restored, lambda volume: {}, baselines=(BASELINE, "trilinear"))
    common = {"experiment": "section left out", "data": stack.name, "shape_zyx": list(hidden.shape)}
    return [{**common, **row} for row in rows]


def _of_all(predict: Predict, runs: list[np.ndarray]) -> np.ndarray:
    return np.stack([predict(run, section) for run in runs for section in range(1, len(run) - 1)])


def _by_neighbours(weights: dict[int, float], data: np.ndarray, hidden: int) -> np.ndarray:
    last = len(data) - 1
    section = sum(
        weight * data[min(max(hidden + step, 0), last)].astype(np.float32) for step, weight in weights.items()
    )
    return to_dtype(np.asarray(section), data.dtype)


def _by_network(geometry: SectionModel, method: EMformer, data: np.ndarray, hidden: int) -> np.ndarray:
    window = window_around(hidden, len(data))
    return method.restore_section(data[window], hidden - window.start, geometry)


def in_plane(stack: Stack, runs: list[np.ndarray], methods: list[Method]) -> Iterator[dict[str, Any]]:
    """Degrade the plane along y, restore it with z as frames at their true spacing, and compare it with itself.

    A stack of several runs, or of too few sections for a Fourier shell correlation, has none in its rows.
    """
    spacing = stack.geometry.factor
    unit = "voxels" if stack.lateral_nm is None else "nm"
    side = stack.lateral_nm or 1.0
    voxel_size = VoxelSize(spacing * side, side, side)
    for factor in IN_PLANE_FACTORS:
        geometry = SectionModel(factor)
        rows_zx = [to_dtype(geometry.degrade(run.transpose(1, 0, 2)), run.dtype) for run in runs]  # (rows, z, x)
        truth = np.concatenate(runs)[:, : geometry.num_planes(len(rows_zx[0]))]
        restored = [timed(method.name, _along_y, method, rows_zx, geometry, spacing) for method in methods]

        def detail(volume: np.ndarray, truth: np.ndarray = truth) -> dict[str, Any]:
            if len(runs) > 1 or min(truth.shape) < SHORTEST_SIDE:
                return {"fsc": None}
            finest = {axis: resolution(fsc(truth, volume, voxel_size, axis=axis)) for axis in ("y", "x")}
            return {"fsc": {"resolution": finest, "unit": unit}}

        common = {
            "experiment": "degraded in plane",
            "data": stack.name,
            "geometry": {"name": f"x{factor:g} t=1", "factor": factor, "thickness": 1.0},
            "frame_spacing": spacing,
            "shape_zyx": list(truth.shape),
        }
        yield from ({**common, **row} for row in compare(truth, restored, detail))


def _along_y(method: Method, runs_zx: list[np.ndarray], geometry: SectionModel, spacing: float) -> np.ndarray:
    restored = [method.restore_in_plane(rows_zx, geometry, spacing) for rows_zx in runs_zx]
    return np.concatenate(restored, axis=1).transpose(1, 0, 2)
