"""An entry of a recipe or table: where a volume is, how it was imaged, and its licence."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from emformer_hub.errors import InputError
from emformer_hub.records import from_plain


@dataclass(frozen=True)
class VolumeEntry:
    """One training volume, or a table of them (:mod:`emformer_hub.datasets.tables`).

    Args:
        path: relative to the data root.
        voxel_size: Z,Y,X in nm, if not in the file.
        weight, holdout, aligned, thickness: see :class:`~emformer_hub.training.sampling.TrainingVolume`.
        nodata, mask: value of voxels that were not measured; a volume, relative to the data root, that is not 0 where
            there is something to learn from.
        sections: A:B, the first section to use and the one after the last; default: all.
        modality, licence: for the model page: SBF-SEM, ssTEM, FIB-SEM …; terms set by the owners of the data.
    """

    path: str
    voxel_size: str | None = None
    weight: float = 1.0
    holdout: float = 0.125
    aligned: bool = True
    thickness: float = 1.0
    nodata: float | None = None
    mask: str | None = None
    sections: str | None = None
    modality: str | None = None
    licence: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.thickness <= 1:
            raise InputError(
                f"{self.path}: thickness is {self.thickness:g}; expected the imaged fraction of the section spacing, "
                f"up to 1 for sections seen through (ssTEM), or 0 for block faces (FIB-SEM, SBF-SEM)."
            )
        if not 0 <= self.holdout < 1:
            raise InputError(f"{self.path}: holdout is {self.holdout:g}; expected a fraction of the columns, below 1.")
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise InputError(f"{self.path}: weight is {self.weight:g}; expected a number from 0 on.")

    @classmethod
    def from_content(cls, content: dict[str, Any], where: str) -> VolumeEntry:
        """Build from plain values; raises ``InputError``, naming ``where``, for an unknown field or a wrong type."""
        return from_plain(cls, content, where)
