"""How a benchmark cuts sections from a truth, and which part of a volume it looks at."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from emformer_hub.errors import InputError
from emformer_hub.geometry import SectionModel
from emformer_hub.volumes.boxes import middle


@dataclass(frozen=True)
class NamedGeometry:
    """A section model and what the table calls it."""

    name: str
    geometry: SectionModel

    @classmethod
    def parse(cls, text: str) -> NamedGeometry:
        """``8:1`` or ``8:1/8`` (FACTOR:THICKNESS). A thickness of 1/factor keeps one plane of each section's slab.

        A single plane begins at a whole one, ``floor((factor - 1) / 2)``: at an integer factor that is plain
        sub-sampling, without averaging two planes.
        """
        try:
            factor_text, thickness_text = text.split(":")
            factor = float(factor_text)
            numerator, *denominator = map(float, thickness_text.split("/"))
            thickness = numerator / math.prod(denominator)
        except (ValueError, ZeroDivisionError):
            raise InputError(
                f"geometry {text!r} is not FACTOR:THICKNESS; expected such as 8:1, 6.7:0.5 or 8:1/8."
            ) from None
        if factor == 1:
            raise InputError(f"geometry {text!r} has factor 1; there is nothing to restore. Give one above 1.")
        single_plane = math.isclose(factor * thickness, 1)
        geometry = SectionModel(factor, thickness, math.floor((factor - 1) / 2) if single_plane else None)
        return cls(f"x{factor_text} t={thickness_text}", geometry)

    def record(self) -> dict[str, Any]:
        geometry = self.geometry
        return {
            "name": self.name,
            "factor": geometry.factor,
            "thickness": geometry.thickness,
            "offset": geometry.offset,
        }


def centre_crop(volume: np.ndarray, crop_zyx: Sequence[int]) -> np.ndarray:
    """The middle ``crop_zyx`` voxels of a volume; an axis that is shorter is kept whole."""
    return volume[middle(volume.shape, crop_zyx)]


def parse_crop(text: str) -> tuple[int, int, int]:
    parts = text.split(",")
    if len(parts) != 3 or not all(part.strip().isdecimal() for part in parts):
        raise InputError(f"crop {text!r} is not three numbers of voxels; expected Z,Y,X, as in 64,128,128.")
    z, y, x = map(int, parts)
    return z, y, x
