"""Does a reconstruction agree with the sections that it was made from?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from emformer_hub.errors import InputError
from emformer_hub.geometry import SectionModel
from emformer_hub.measurement.fidelity import grey_range


@dataclass(frozen=True)
class Residual:
    """Difference between sections cut from a reconstruction and the measured ones.

    Attributes:
        rms, maximum: root mean square and largest absolute difference, grey levels.
        data_range: range of the sections' dtype, or maximum - minimum for floats, grey levels.
    """

    rms: float
    maximum: float
    data_range: float

    @property
    def relative_rms(self) -> float:
        """RMS difference as a fraction of the range."""
        return self.rms / self.data_range

    @property
    def relative_maximum(self) -> float:
        """Largest difference as a fraction of the range."""
        return self.maximum / self.data_range


def consistency_residual(
    volume: np.ndarray, sections: np.ndarray, geometry: SectionModel, mask: np.ndarray | None = None
) -> Residual:
    """Cut sections from a reconstruction as the microscope would, and compare them with the measured ones.

    Args:
        volume: ``(planes, y, x)``, in the grey levels of the sections.
        sections: measured sections, ``(sections, y, x)``. Both may be memory-mapped.
        geometry: how sections sample planes.
        mask: bool, ``(sections,)`` or ``(sections, y, x)``; True for voxels to ignore, whatever they hold.

    Raises:
        InputError: the volume does not match the number of sections, or nothing is left to compare.
    """
    expected = (geometry.num_planes(len(sections)), *sections.shape[1:])
    if volume.shape != expected:
        raise InputError(
            f"the volume has shape {volume.shape}; {len(sections)} sections of {sections.shape[1:]} at factor "
            f"{geometry.factor:g} become {expected}."
        )
    squares, count, maximum, low, high = 0.0, 0, 0.0, np.inf, -np.inf
    for z, (cut, section) in enumerate(zip(geometry.degrade(volume), sections, strict=True)):
        counts = np.ones(section.shape, bool) if mask is None else np.broadcast_to(~mask[z], section.shape)
        if not counts.any():
            continue
        measured = section[counts].astype(np.float64)
        difference = np.abs(cut[counts] - measured)
        squares += float(np.square(difference).sum())
        count += difference.size
        maximum = max(maximum, float(difference.max()))
        low, high = min(low, float(measured.min())), max(high, float(measured.max()))
    if not count:
        raise InputError("the mask covers every section; expected some to compare with.")
    return Residual(
        (squares / count) ** 0.5, maximum, grey_range(sections) if sections.dtype.kind != "f" else high - low
    )
