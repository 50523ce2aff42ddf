"""Interface of the writers of all formats."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from emformer_hub.geometry import VoxelSize
from emformer_hub.volumes.boxes import Box

log = logging.getLogger(__name__)


def first_voxel(
    translation_nm: Sequence[float], voxel_size: VoxelSize, name: str, *, least: int | None = None
) -> tuple[int, int, int]:
    """The voxel, ``(z, y, x)``, that a volume begins with in a format that places volumes by whole voxels.

    Voxel ``n`` has its centre at ``n + 0.5`` voxels there. Where the volume lies otherwise, a warning is logged.

    Args:
        translation_nm: ``(z, y, x)`` centre of the first voxel, nm.
        voxel_size: nm.
        name: name of the format.
        least: first voxel that the format knows, if it knows one.
    """
    z, y, x = (math.floor(at / length) for at, length in zip(translation_nm, voxel_size.zyx, strict=True))
    first = (z, y, x) if least is None else (max(z, least), max(y, least), max(x, least))
    moved = [(n + 0.5) * side - at for n, at, side in zip(first, translation_nm, voxel_size.zyx, strict=True)]
    if any(abs(by) > 1e-6 * side for by, side in zip(moved, voxel_size.zyx, strict=True)):
        log.warning(
            "%s places volumes by whole voxels%s; the output lies %s nm (z,y,x) from where it belongs.",
            name,
            "" if least is None else f" from {least} on",
            ",".join(f"{by:g}" for by in moved),
        )
    return first


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
