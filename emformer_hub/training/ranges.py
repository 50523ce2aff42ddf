"""Choices of a recipe: which geometries and which damage training clips go through."""

from __future__ import annotations

import math
from dataclasses import dataclass

from emformer_hub.errors import InputError
from emformer_hub.geometry import SectionModel

MIN_ROWS, MIN_COLUMNS = 4, 16
"""Of a clip."""
AMOUNTS = ("thickness", "noise_max")
"""Choices that are numbers, but no fraction of the clips."""


@dataclass(frozen=True)
class SamplingRanges:
    """Choices of a recipe: the geometry and the damage that training clips go through.

    Args:
        factor: anisotropy factors are drawn between the first and the last, around the second (log-triangular).
        factors: if given, they are drawn from these alone.
        full_thickness, single_plane: fractions of clips with thickness 1 and 1/factor; the rest lies between.
        thickness: if given, that of every clip, or 1/factor where that is more.
        frame_stride_one: fraction of clips from isotropic volumes whose frames are one voxel apart.
        frame_stride_max: the largest frame stride otherwise (log-uniform).
        frames, rows, columns: size of a clip; rows are sections.
        rescale: fraction of clips with larger or smaller voxels, by a factor within ``rescale_range`` (log-uniform).
        blur: fraction of clips from a softer instrument: sections and target are smoothed, with a standard deviation
            of up to 0.7 voxels; along frames only where they are one voxel apart.
        sharpen: fraction of the other clips that are sharpened in the same way, as some instruments do.
        tone: fraction of clips with another curve of grey values: a gamma, or some of a histogram equalisation.
        contrast: fraction of clips with changed gain and brightness.
        invert: fraction of clips with inverted contrast.
        voxel_noise: fraction of clips with noise put on the voxels that sections are cut from, white or smooth along
            some axes, and not on the target; up to ``noise_max`` standard deviations of the volume.
        noise: fraction of clips with white noise put on the sections, up to ``noise_max`` standard deviations.
        jump: fraction of clips in which single sections change in brightness and contrast.
        charging: fraction of clips in which single sections carry a smooth gradient of brightness.
        jitter: fraction of clips in which single sections are shifted by one voxel along the columns.
        mask: fraction of clips in which 1-3 neighbouring sections are missing.
        local_mask: fraction of clips in which an ellipse is missing from 1-3 neighbouring sections.
        left_out: fraction of clips from anisotropic stacks whose rows are the stack's own sections; 1-3 neighbouring
            ones are missing, and they alone are judged, by what was measured.
    """

    factor: tuple[float, ...] = (1.2, 7.0, 16.0)
    factors: tuple[float, ...] = ()
    full_thickness: float = 0.5
    single_plane: float = 0.25
    thickness: float | None = None
    frame_stride_one: float = 0.6
    frame_stride_max: int = 12
    frames: int = 12
    rows: int = 12
    columns: int = 64
    rescale: float = 0.0
    rescale_range: tuple[float, ...] = (0.6, 1.6)
    blur: float = 0.05
    sharpen: float = 0.0
    tone: float = 0.0
    contrast: float = 0.5
    invert: float = 0.05
    voxel_noise: float = 0.0
    noise: float = 0.1
    noise_max: float = 0.3
    jump: float = 0.1
    charging: float = 0.05
    jitter: float = 0.05
    mask: float = 0.15
    local_mask: float = 0.05
    left_out: float = 0.0

    def thickness_at(self, factor: float, otherwise: float = 1.0) -> float:
        """Imaged fraction of a section's slab: the recipe's, or else ``otherwise``; one plane at the least."""
        return max(otherwise if self.thickness is None else self.thickness, 1 / factor)

    def check(self) -> None:
        """Raise ``InputError`` for what no clip can be drawn with."""
        if len(self.factor) != 3:
            raise InputError(f"sampling: factor is {self.factor}; expected lowest, most frequent, highest.")
        if len(self.rescale_range) != 2 or not 0 < self.rescale_range[0] <= self.rescale_range[1]:
            raise InputError(f"sampling: rescale_range is {self.rescale_range}; expected smallest, largest factor.")
        for name, value in vars(self).items():
            if name not in AMOUNTS and isinstance(value, float) and not 0 <= value <= 1:
                raise InputError(f"sampling: {name} is {value:g}; expected a fraction of the clips, from 0 to 1.")
        if not (math.isfinite(self.noise_max) and self.noise_max >= 0):
            raise InputError(f"sampling: noise_max is {self.noise_max:g}; expected standard deviations, from 0 on.")
        least = {"frame_stride_max": 1, "frames": 1, "rows": MIN_ROWS, "columns": MIN_COLUMNS}
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                raise InputError(f"sampling: {name} is {getattr(self, name)}; expected {smallest} or more.")
        for factor in (*self.factor, *self.factors):
            SectionModel(factor, 1.0 if self.thickness is None else self.thickness)
