"""Validation on columns that training never sees: how many dB the model gains over cubic interpolation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from emformer_hub.geometry import SectionModel
from emformer_hub.interpolation import interpolation_matrix
from emformer_hub.modeling_emformer import EMformerModel
from emformer_hub.training.losses import psnr_gain
from emformer_hub.training.sampling import TrainingVolume

VALIDATION_GEOMETRIES = {"x4": SectionModel(4), "x8": SectionModel(8), "x8_single_plane": SectionModel(8, 1 / 8, 3)}
MAX_FRAMES, MAX_ROWS = 24, 16


def validation_clips(volume: TrainingVolume, sections: SectionModel) -> tuple[np.ndarray, np.ndarray] | None:
    """The held-out columns, degraded along y: sections ``(frames, rows, columns)``, planes; ``None`` if too small."""
    depth, height, _ = volume.data.shape
    rows = min(MAX_ROWS, sections.num_sections(height))
    if rows < 4:
        return None
    start = (depth - min(depth, MAX_FRAMES)) // 2
    planes = volume.data[start : start + MAX_FRAMES, : sections.num_planes(rows), -volume.holdout_columns :]
    target = volume.statistics.normalise(planes)
    degraded = sections.degrade(target.transpose(1, 0, 2)).transpose(1, 0, 2)
    return degraded, target


@torch.inference_mode()
def validate(model: EMformerModel, volumes: Sequence[TrainingVolume], device: torch.device) -> Iterator[dict]:
    """Yield one record per volume and geometry: ``{"volume", "geometry", "gain_db", "mae", "mean_scale"}``."""
    model.eval()
    for volume in volumes:
        for name, sections in VALIDATION_GEOMETRIES.items():
            clips = validation_clips(volume, sections)
            if clips is None:
                continue
            degraded, target = (torch.from_numpy(clip.astype(np.float32)).to(device) for clip in clips)
            positions = sections.plane_positions(target.shape[1])
            output = model(
                degraded[None],
                sections.factor,
                positions=positions,
                thickness=sections.thickness,
                frame_spacing=max(1.0, volume.anisotropy),
            )
            error = output.reconstruction[0] - target
            matrix = torch.from_numpy(interpolation_matrix(positions, degraded.shape[1], "cubic")).to(device)
            cubic = matrix @ degraded - target
            yield {
                "volume": volume.name,
                "geometry": name,
                "gain_db": round(psnr_gain(error, cubic), 3),
                "mae": float(error.abs().mean()),
                "mean_scale": float(output.scale.mean()),
            }
