"""A second opinion: another model, or another factor, measured on the voxels that an audit holds back."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from emformer_hub.audit.held_back import in_plane, left_out, plan_of
from emformer_hub.errors import InputError
from emformer_hub.geometry import SectionModel
from emformer_hub.processing_emformer import IntensityStatistics
from emformer_hub.reconstruction.restorer import Restorer
from emformer_hub.reconstruction.settings import ModelOnce
from emformer_hub.uneven import UnevenSections

CONFIDENCE = 0.95
"""Of the interval of a difference: if it holds 0, there is no difference."""


@dataclass(frozen=True)
class Rival:
    """Second opinion.

    Attributes:
        model: the model.
        restorer: restorer of the audited sections by it.
    """

    model: ModelOnce
    restorer: Restorer

    @classmethod
    def of(
        cls,
        against: str | ModelOnce | SectionModel,
        model: ModelOnce,
        restorer: Restorer,
        sections: slice,
        statistics: Callable[[ModelOnce], IntensityStatistics],
    ) -> Rival:
        """Load another model, or take the audited one at another factor.

        Args:
            against: the other model, or how the sections of the stack sample planes at another factor.
            model, restorer: the audited one.
            sections: those of the stack that are audited.
            statistics: measures the whole stack as a model normalises it.

        Raises:
            InputError: the model does not exist; the geometry is not one of the same sections, or leaves nothing to
                restore between them.
        """
        if not isinstance(against, SectionModel):
            other = ModelOnce.of(against)
            settings: dict[str, Any] = {"network": other.network, "processor": other.processor}
            return cls(other, replace(restorer, **settings, statistics=statistics(other)))
        geometry, listed = against.part(sections), isinstance(restorer.geometry, UnevenSections)
        if isinstance(against, UnevenSections) != listed or against.factor == 1:
            raise InputError(
                f"factor {against.factor:g} cannot be compared with factor {restorer.geometry.factor:g}; expected one "
                f"above 1, of sections whose positions are listed for both or for neither."
            )
        return cls(model, replace(restorer, geometry=geometry))


def second_opinion(
    restorer: Restorer,
    rival: Rival,
    wide: np.ndarray,
    crop: np.ndarray,
    unfit: Sequence[int],
    figures: dict[str, Any],
    pictures: dict[str, np.ndarray],
) -> None:
    """Measure a rival on what was held back from the audited model, and compare both.

    Adds ``figures["against"]``: ``{"model", "weights_sha256", "factor", "left_out", "in_plane", "reconstructions"}``,
    what :func:`paired` returns with the rival's ``network`` and ``coverage``, twice; and ``{"rms", "relative_rms",
    "beyond"}``, the RMS difference between the reconstructions, in grey levels and in standard deviations of the stack,
    and the fraction of voxels where they differ by more than the audited one's 95 % interval. Of another factor, only
    sections left out are comparable; the others are ``{}``. Adds ``pictures["against_map"]``: the gain of the audited
    one over the rival on sections left out, dB, in blocks of 16 x 16 voxels.

    Args:
        restorer: the audited one.
        rival: the other one.
        wide, crop: the parts of the stack that are audited, ``(sections, y, x)``: for sections left out, for all else.
        unfit: numbers of the unfit sections.
        figures: of the audited one, ``left_out`` and ``in_plane``.
        pictures: of the audited one, ``left_out_map``, ``reconstruction`` and ``uncertainty``.
    """
    other = rival.restorer
    sections, gains = left_out(other, wide, unfit)
    found: dict[str, Any] = {
        "model": rival.model.name,
        "weights_sha256": rival.model.fingerprint,
        "factor": other.geometry.factor,
        "left_out": _both(figures["left_out"], sections),
        "in_plane": {},
        "reconstructions": {},
    }
    if other.geometry is restorer.geometry:
        if figures["in_plane"]:
            found["in_plane"] = _both(figures["in_plane"], in_plane(crop, other))
        volume, _ = other.restore_all(crop, plan_of(crop.shape, other))
        difference = np.abs(pictures["reconstruction"].astype(np.float32) - volume)
        rms = float(np.sqrt(np.square(difference).mean()))
        multiple = restorer.processor.interval(CONFIDENCE, restorer.geometry, mode=restorer.mode)
        found["reconstructions"] = {
            "rms": rms,
            "relative_rms": rms / restorer.statistics.std,
            "beyond": round(float((difference > multiple * pictures["uncertainty"]).mean()), 4),
        }
    figures["against"] = found
    pictures["against_map"] = pictures["left_out_map"] - gains


def paired(first: Sequence[float], second: Sequence[float]) -> dict[str, Any]:
    """Difference between the errors of two restorers on the same sections.

    The mean over sections of the difference in dB, and its interval by Student's t: what is hard in a section is hard
    for both, and cancels.

    Args:
        first, second: RMS error of each section.

    Returns:
        ``{"difference_db", "interval_db": [low, high] or None, "better": "first", "second" or None}``, positive where
        the first is nearer. One section has no interval. ``better`` is None if the interval holds 0.
    """
    from scipy.special import stdtrit

    tiny = 1e-12
    decibels = 20 * np.log10((np.array(second) + tiny) / (np.array(first) + tiny))
    mean, count = float(decibels.mean()), len(decibels)
    found: dict[str, Any] = {"difference_db": round(mean, 3), "interval_db": None, "better": None}
    if count > 1:
        half = float(stdtrit(count - 1, (1 + CONFIDENCE) / 2) * decibels.std(ddof=1) / math.sqrt(count))
        found["interval_db"] = [round(mean - half, 3), round(mean + half, 3)]
        found["better"] = "first" if mean > half else "second" if mean < -half else None
    return found


def _both(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    return {
        **paired(first["network"], second["network"]),
        "section": second["section"],
        "network": second["network"],
        "coverage": second["coverage"],
    }
