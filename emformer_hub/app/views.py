"""Pictures for the page: planes of a volume, true to scale, with the uncertainty as an overlay."""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from emformer_hub.geometry import VoxelSize
from emformer_hub.interpolation import interpolate, interpolation_matrix
from emformer_hub.reconstruction import Reconstruction

Plane = Literal["xz", "yz", "xy"]
ACROSS: dict[str, int] = {"xy": 0, "yz": 2, "xz": 1}
"""Axis (z, y, x) perpendicular to each plane."""
PANEL_PX = 512
"""Least pixels of the longer side of a picture, so that small stacks are shown large enough."""
COLOUR = np.array([255, 64, 0], np.float32)
"""Colour of uncertainty; the larger it is, the more opaque."""


@dataclass(frozen=True)
class Views:
    """Pictures of a stack and its reconstruction.

    Args:
        stack: the input, ``(sections, y, x)``.
        result: its reconstruction.
        voxel_size: voxel size of the reconstruction, nm.
    """

    stack: np.ndarray
    result: Reconstruction
    voxel_size: VoxelSize

    def length(self, plane: Plane) -> int:
        """Number of planes of this orientation."""
        return self.result.volume.shape[ACROSS[plane]]

    def input(self, plane: Plane, position: int) -> np.ndarray:
        """Sections without interpolation, each as thick as its spacing: grey, uint8 ``(rows, columns)``."""
        return self._grey(self._interpolated("nearest", plane, position), plane)

    def interpolation(self, plane: Plane, position: int) -> np.ndarray:
        """Cubic interpolation along z: grey, uint8 ``(rows, columns)``."""
        return self._grey(self._interpolated("cubic", plane, position), plane)

    def reconstruction(self, plane: Plane, position: int, *, uncertainty: bool = False) -> np.ndarray:
        """Output of the model: grey, uint8 ``(rows, columns)``; with uncertainty, RGB ``(rows, columns, 3)``."""
        axis = ACROSS[plane]
        grey = self._grey(self.result.volume.take(position, axis), plane)
        if not uncertainty:
            return grey
        least, most = self.uncertainty_range
        share = ((self.result.uncertainty.take(position, axis) - least) / (most - least)).clip(0, 1)
        opacity = 0.8 * self._scaled(share, plane)[..., None]
        return (grey[..., None] * (1 - opacity) + COLOUR * opacity).astype(np.uint8)

    @cached_property
    def uncertainty_range(self) -> tuple[float, float]:
        """Uncertainties drawn without colour and in full colour, grey levels: 5th and 99th percentile."""
        stride = max(1, self.result.uncertainty.size // 2**24)
        least, most = np.percentile(self.result.uncertainty[::stride], [5, 99])
        return float(least), float(max(most, least + 1e-6))

    @cached_property
    def _limits(self) -> tuple[float, float]:
        """Grey levels shown as black and white: the input's 0.5th and 99.5th percentile."""
        low, high = np.percentile(self.stack, [0.5, 99.5])
        return float(low), float(max(high, low + 1e-6))

    def _interpolated(self, kind: Literal["nearest", "cubic"], plane: Plane, position: int) -> np.ndarray:
        """One plane of an interpolation, without computing the others."""
        if plane == "xy":
            weights = interpolation_matrix(self.result.geometry.plane_positions(1, position), len(self.stack), kind)[0]
            used = np.flatnonzero(weights)
            return np.tensordot(weights[used], self.stack[used].astype(np.float32), axes=1)
        cut = np.s_[:, position : position + 1, :] if plane == "xz" else np.s_[:, :, position : position + 1]
        return interpolate(self.stack[cut], self.result.geometry, kind).squeeze(ACROSS[plane])

    def _grey(self, image: np.ndarray, plane: Plane) -> np.ndarray:
        low, high = self._limits
        return self._scaled((255 * ((image - low) / (high - low)).clip(0, 1)).astype(np.uint8), plane)

    def _scaled(self, image: np.ndarray, plane: Plane) -> np.ndarray:
        """Enlarge every voxel to whole pixels, true to its shape, so that the display smooths nothing."""
        sizes = [length for axis, length in enumerate(self.voxel_size.zyx) if axis != ACROSS[plane]]
        zoom = max(1, -(-PANEL_PX // max(image.shape)))
        rows, columns = (max(1, round(zoom * size / min(sizes))) for size in sizes)
        return image.repeat(rows, axis=0).repeat(columns, axis=1)


def picture_file(image: np.ndarray, folder: Path) -> str:
    """Path of a PNG in a folder, named by its content and written once.

    A page takes it instead of the array: Gradio writes an array whenever it is shown, again under the name that a
    browser may be reading, and the picture breaks off. A file it copies once.
    """
    png = io.BytesIO()
    Image.fromarray(image).save(png, "png")
    path = folder / f"{hashlib.sha256(png.getvalue()).hexdigest()}.png"
    if not path.exists():
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
            file.write(png.getvalue())
        os.replace(file.name, path)
    return str(path)
