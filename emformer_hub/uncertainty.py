"""Calibration of stated uncertainties: the fraction of errors within a multiple of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .errors import InputError, check_number
from .geometry import SectionModel

PROBABILITIES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)
LAPLACE = tuple(round(float(-np.log1p(-p) / np.sqrt(2)), 4) for p in PROBABILITIES)


@dataclass(frozen=True)
class ErrorQuantiles:
    """Quantiles of ``|error| / stated standard deviation``: a monotone map from probability to multiple.

    Errors between planes that were imaged are distributed differently from errors inside a thick section, so there is
    one map for either end of thickness, and a straight line between; and two more for voxels that were masked, of which
    nothing was measured. Measured on data that training did not see; the default is the Laplace distribution that the
    network's scale head is trained for.

    Args:
        full_thickness, single_plane: multiples at ``PROBABILITIES``, at thickness 1 and at thickness 1/factor.
        masked_full_thickness, masked_single_plane: the same for masked voxels; default: those of the others.

    Raises:
        InputError: not as many ascending multiples as there are probabilities.
    """

    full_thickness: Sequence[float] = LAPLACE
    single_plane: Sequence[float] = LAPLACE
    masked_full_thickness: Sequence[float] | None = None
    masked_single_plane: Sequence[float] | None = None

    def __post_init__(self) -> None:
        for name, given in list(vars(self).items()):
            if given is None:
                object.__setattr__(self, name, getattr(self, name.removeprefix("masked_")))
                continue
            multiples = tuple(map(float, given))
            if len(multiples) != len(PROBABILITIES) or not (
                np.isfinite(multiples).all() and np.all(np.diff((0.0, *multiples)) >= 0)
            ):
                raise InputError(
                    f"error_quantiles: {name} is {multiples}; expected {len(PROBABILITIES)} ascending "
                    f"numbers, for the probabilities {PROBABILITIES}."
                )
            object.__setattr__(self, name, multiples)

    def multiple(self, probability: float, geometry: SectionModel, masked: bool = False) -> float:
        """How many stated standard deviations hold the error with this probability, from 0 to 0.99.

        Holds for a voxel in the slab of a section that was measured there, or that was ``masked``.

        Raises:
            InputError: a probability outside that range.
        """
        check_number("probability", probability)
        if not 0 <= probability <= PROBABILITIES[-1]:
            raise InputError(
                f"probability is {probability:g}; expected a fraction from 0 to {PROBABILITIES[-1]}, as in 0.95."
            )
        thinnest = 1 / geometry.factor
        imaged = 1.0 if thinnest == 1 else max(0.0, (geometry.thickness - thinnest) / (1 - thinnest))
        ends = (self.full_thickness, self.single_plane)
        if masked:
            assert self.masked_full_thickness is not None and self.masked_single_plane is not None
            ends = (self.masked_full_thickness, self.masked_single_plane)
        multiples = imaged * np.array(ends[0]) + (1 - imaged) * np.array(ends[1])
        return float(np.interp(probability, (0, *PROBABILITIES), (0, *multiples)))


def sure(width: np.ndarray, tolerance: float, wide: np.ndarray | None) -> np.ndarray:
    """Mask of voxels whose interval is no wider than a tolerance, bool, shape of the width.

    Args:
        width: half width of the interval of each voxel, ``(planes, y, x)``.
        tolerance: largest error, in the unit of the width.
        wide: planes within gaps that are too wide to be predicted, none of which counts, bool ``(planes,)``.
    """
    within = width <= tolerance
    if wide is not None:
        within[wide] = False
    return within


def half_width(
    uncertainty: np.ndarray,
    multiples: tuple[float, float],
    mask: np.ndarray | None = None,
    sections: np.ndarray | None = None,
    lost: np.ndarray | None = None,
) -> np.ndarray:
    """Half width of the interval around each voxel of a result, float32, in the unit of the uncertainty.

    Args:
        uncertainty: stated standard deviations, float32 ``(planes, y, x)``.
        multiples: how many of them hold the error of a measured voxel, and of a masked one
            (:meth:`ErrorQuantiles.multiple`).
        mask: which voxels of the sections were masked, bool ``(sections, y, x)``.
        sections: for each plane, the place in ``mask`` of the section that it lies in; needed with a mask.
        lost: which planes are those of lost sections, all of whose voxels count as masked, bool ``(planes,)``.
    """
    measured, masked = map(np.float32, multiples)
    width = uncertainty * measured
    if mask is not None:
        assert sections is not None
        for plane, section in enumerate(sections):
            hidden = mask[section]
            width[plane][hidden] = uncertainty[plane][hidden] * masked
    if lost is not None:
        width[lost] = uncertainty[lost] * masked
    return width
