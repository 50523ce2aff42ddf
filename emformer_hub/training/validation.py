"""Validation on columns that training never sees.

How many dB the model gains over cubic interpolation, and how its errors compare with the uncertainty that it states.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from tqdm import tqdm

from emformer_hub.audit.held_back import Restored, restore_degraded
from emformer_hub.geometry import SectionModel
from emformer_hub.modeling_emformer import EMformerModel
from emformer_hub.modes import Mode
from emformer_hub.training.sampling import TrainingVolume
from emformer_hub.uncertainty import PROBABILITIES, ErrorQuantiles

VALIDATION_GEOMETRIES = {
    "x4": SectionModel(4),
    "x8": SectionModel(8),
    "x8_single_plane": SectionModel(8, 1 / 8, 3),
    "x4_not_imaged": SectionModel(4, 1 / 2),
    "x8_not_imaged": SectionModel(8, 1 / 2),
}
"""The last two are judged on planes that no section imaged: their noise is not in the sections."""
FULL_THICKNESS = (SectionModel(4), SectionModel(6.7), SectionModel(8))
SINGLE_PLANE = (SectionModel(4, 1 / 4, 1), SectionModel(6.7, 1 / 6.7, 2), SectionModel(8, 1 / 8, 3))
MAX_FRAMES, MAX_ROWS = 24, 16


def validation_clips(
    volume: TrainingVolume, geometry: SectionModel, *, along_z: bool = False
) -> tuple[np.ndarray, np.ndarray] | None:
    """The held-out columns, degraded along y or z: sections ``(frames, rows, columns)``, planes.

    ``None`` if the volume is too small for four sections.
    """
    depth, height, _ = volume.data.shape if not along_z else np.array(volume.data.shape)[[1, 0, 2]]
    rows = min(MAX_ROWS, geometry.num_sections(height))
    if rows < 4:
        return None
    start = (depth - min(depth, MAX_FRAMES)) // 2
    box = (slice(start, start + MAX_FRAMES), slice(geometry.num_planes(rows)))
    held_out = volume.data[(*(box[::-1] if along_z else box), slice(-volume.holdout_columns, None))]
    target = volume.statistics.normalise(held_out.swapaxes(0, 1) if along_z else held_out)
    degraded = geometry.degrade(target.transpose(1, 0, 2)).transpose(1, 0, 2)
    return degraded, target


def restore(
    model: EMformerModel,
    volume: TrainingVolume,
    geometry: SectionModel,
    device: torch.device,
    *,
    along_z: bool = False,
    mode: Mode = "faithful",
) -> Restored | None:
    """One pass over a volume's validation clip; ``None`` if the volume is too small for the geometry."""
    clips = validation_clips(volume, geometry, along_z=along_z)
    if clips is None:
        return None
    return restore_degraded(
        model,
        *clips,
        geometry,
        device,
        together=volume.aligned,  # a section by itself knows no neighbours
        frame_spacing=max(1.0, volume.anisotropy),
        mode=mode,
    )


def validate(model: EMformerModel, volumes: Sequence[TrainingVolume], device: torch.device) -> Iterator[dict]:
    """Yield one record per volume and geometry: ``{"volume", "geometry", "gain_db", "mae", "mean_scale"}``."""
    model.eval()
    for volume in volumes:
        for name, geometry in VALIDATION_GEOMETRIES.items():
            if restored := restore(model, volume, geometry, device):
                planes = np.full(restored.target.shape[1], True)
                if name.endswith("not_imaged"):
                    planes[geometry.matrix(geometry.num_sections(len(planes))).any(axis=0)] = False
                yield {
                    "volume": volume.name,
                    "geometry": name,
                    "gain_db": round(restored.gain(planes), 3),
                    "mae": float(restored.error.abs().mean()),
                    "mean_scale": float(restored.scale.mean()),
                }


def error_quantiles(
    model: EMformerModel, volumes: Sequence[TrainingVolume], device: torch.device, mode: Mode
) -> ErrorQuantiles | None:
    """Compare the errors of a mode on held-out columns with the stated uncertainty; volumes count by their weight.

    An isotropic volume is degraded along z, as reconstruction meets it: planes differ in brightness and noise as the
    microscope went on, which errors along y know nothing of. ``None`` if no volume is large enough.
    """
    model.eval()
    maps: list[tuple[float, ...]] = []
    for geometries in (FULL_THICKNESS, SINGLE_PLANE):
        quantiles, weights = [], []
        places = list(itertools.product(volumes, geometries))
        for volume, geometry in tqdm(places, f"uncertainty, {mode}", leave=False, mininterval=5):
            if not volume.weight:
                continue
            if restored := restore(model, volume, geometry, device, along_z=volume.isotropic, mode=mode):
                ratios = restored.error.abs() / (math.sqrt(2) * restored.scale)  # of a Laplace scale
                quantiles.append(np.quantile(ratios.cpu().numpy(), PROBABILITIES))
                weights.append(volume.weight)
        if not quantiles:
            return None
        maps.append(tuple(np.average(quantiles, axis=0, weights=weights).round(4).tolist()))
    return ErrorQuantiles(*maps)
