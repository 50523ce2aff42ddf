"""Real anisotropic stacks, which have no isotropic truth: what can be held out of them, and predicted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
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


@dataclass(frozen=True)
class Stack:
    """A real stack and how its sections sample tissue.

    Args:
        file: in the evaluation data.
        geometry: factor from the section spacing to the lateral voxel size; thickness 1 where sections are seen
            through, a single plane where they are block faces.
        lateral_nm: lateral voxel size; ``None`` where it is unknown.
        first: section from which on all were measured; where sections are left out, those before have no part.
    """

    file: str
    geometry: SectionModel
    lateral_nm: float | None
    first: int = 0

    @property
    def name(self) -> str:
        return self.file.removesuffix(".tif")

    def read(self, folder: Path) -> np.ndarray:
        return read_volume(folder / self.file).data


STACKS = {
    stack.name: stack
    for stack in (
        # SBF-SEM of unknown voxel size. In the part of the block that training may see, neighbouring sections correlate
        # as a plane does with itself 6 voxels further.
        Stack("sbem_cdeep3m.tif", SectionModel(6, 1 / 6, 2), None),
        # Section 3 was lost, and is the mean of 2 and 4 (``emformer-hub inspect`` finds it).
        Stack("sstem_cremi.tif", SectionModel(10), 4.0, first=4),
        Stack("fibsem_epfl_every8th.tif", SectionModel(8, 1 / 8, 3), 5.0),
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


def leave_one_out(stack: Stack, data: np.ndarray, methods: list[Method]) -> list[dict[str, Any]]:
    """Hide each inner section in turn, predict it from the others, and compare all of them with what was measured.

    An EMformer predicts through its section mask, interpolation keeps to the sections' centres (``NEIGHBOURS``). Other
    methods cannot leave a section out.
    """
    inner = range(1, len(data) - 1)
    predictions: dict[str, Callable[[int], np.ndarray]] = {
        name: partial(_by_neighbours, data, weights) for name, weights in NEIGHBOURS.items()
    }
    for method in methods:
        if isinstance(method, EMformer):
            predictions[method.name] = partial(_by_network, data, stack.geometry, method)
    restored = [timed(name, _of_all, predict, inner) for name, predict in predictions.items()]
    rows = compare(data[1:-1], restored, lambda volume: {}, baselines=(BASELINE, "trilinear"))
    common = {"experiment": "section left out", "data": stack.name, "shape_zyx": list(data[1:-1].shape)}
    return [{**common, **row} for row in rows]


def _of_all(predict: Callable[[int], np.ndarray], sections: Iterable[int]) -> np.ndarray:
    return np.stack([predict(section) for section in sections])


def _by_neighbours(data: np.ndarray, weights: dict[int, float], hidden: int) -> np.ndarray:
    last = len(data) - 1
    section = sum(
        weight * data[min(max(hidden + step, 0), last)].astype(np.float32) for step, weight in weights.items()
    )
    return to_dtype(np.asarray(section), data.dtype)


def _by_network(data: np.ndarray, geometry: SectionModel, method: EMformer, hidden: int) -> np.ndarray:
    window = window_around(hidden, len(data))
    return method.restore_section(data[window], hidden - window.start, geometry)


def in_plane(stack: Stack, data: np.ndarray, methods: list[Method]) -> Iterator[dict[str, Any]]:
    """Degrade the plane along y, restore it with z as frames at their true spacing, and compare it with itself.

    A stack of too few sections for a Fourier shell correlation has none in its rows.
    """
    spacing = stack.geometry.factor
    unit = "voxels" if stack.lateral_nm is None else "nm"
    side = stack.lateral_nm or 1.0
    voxel_size = VoxelSize(spacing * side, side, side)
    for factor in IN_PLANE_FACTORS:
        geometry = SectionModel(factor)
        rows_zx = to_dtype(geometry.degrade(data.transpose(1, 0, 2)), data.dtype)  # (rows, z, x)
        truth = data[:, : geometry.num_planes(len(rows_zx))]
        restored = [timed(method.name, _along_y, method, rows_zx, geometry, spacing) for method in methods]

        def detail(volume: np.ndarray, truth: np.ndarray = truth) -> dict[str, Any]:
            if min(truth.shape) < SHORTEST_SIDE:
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


def _along_y(method: Method, rows_zx: np.ndarray, geometry: SectionModel, spacing: float) -> np.ndarray:
    return method.restore_in_plane(rows_zx, geometry, spacing).transpose(1, 0, 2)
