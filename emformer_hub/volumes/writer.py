"""Interface of the writers of all formats."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from emformer_hub.volumes.boxes import Box


class VolumeWriter(Protocol):
    """A volume that is being written, box by box, in any order.

    A writer holds no open file: it may be pickled, and other processes may write with copies of it. Boxes that are
    written at the same time must consist of different, whole parts.
    """

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of the volume, ``(z, y, x)``."""

    @property
    def dtype(self) -> np.dtype:
        """Data type of the voxels in the file."""

    @property
    def part_zyx(self) -> tuple[int, int, int]:
        """Sides of a part, (z, y, x), in voxels; parts tile the volume from its first voxel on."""

    def write(self, box: Box, voxels: np.ndarray) -> None:
        """Write a box of whole parts, steps of 1; raises ``OSError`` if the disk refuses."""

    def finish(self) -> None:
        """Complete the file after all voxels are written; may be called again."""
