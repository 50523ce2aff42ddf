"""A second opinion: another model, or another factor, measured on the voxels that an audit holds back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from emformer_hub.audit.held_back import in_plane, left_out, plan_of
from emformer_hub.errors import InputError
from emformer_hub.geometry import SectionModel
from emformer_hub.reconstruction.restorer import Restorer
from emformer_hub.reconstruction.settings import ModelOnce
from emformer_hub.uneven import UnevenSections
from emformer_hub.volumes import StoredArray

CONFIDENCE = 0.95
"""Of the interval of a difference: if it holds 0, there is no difference."""


def with_model(restorer: Restorer, model: ModelOnce, stack: np.ndarray | StoredArray, unmeasured: Any) -> Restorer:
    """Restorer of the same sections by another model, which normalises the whole stack in its own way."""
    statistics = model.processor.measure(stack, unmeasured)
    return replace(restorer, network=model.network, processor=model.processor, statistics=statistics)


def with_factor(restorer: Restorer, geometry: SectionModel) -> Restorer:
    """Restorer of the same sections by the same model at another factor.

    Raises:
        InputError: the geometry is not one of the same sections, or there is nothing to restore between them.
    """
    if isinstance(geometry, UnevenSections) != isinstance(restorer.geometry, UnevenSections) or geometry.factor == 1:
        raise InputError(
            f"factor {geometry.factor:g} cannot be compared with factor {restorer.geometry.factor:g}; expected one "
            f"above 1, of sections whose positions are listed for both or for neither."
        )
    return replace(restorer, geometry=geometry)


def second_opinion(
    restorer: Restorer,
    rival: Restorer,
    wide: np.ndarray,
    crop: np.ndarray,
    unfit: Sequence[int],
    figures: dict[str, Any],
    reconstruction: tuple[np.ndarray, np.ndarray],
) -> tuple[dict[str, Any], np.ndarray]:
    """Measure a rival on what was held back from the audited model, and compare both.

    Args:
        restorer: the audited one.
        rival: the other one.
        wide, crop: the parts of the stack that are audited, ``(sections, y, x)``: for sections left out, for all else.
        unfit: numbers of the unfit sections.
        figures: of the audited one, ``left_out`` and ``in_plane``.
        reconstruction: of the crop by the audited one, and its stated standard deviation, ``(planes, y, x)``.

    Returns:
        Figures, and a map of the gain of the audited one over the rival on sections left out, dB, in blocks of 16 x 16
        voxels. The figures are ``{"left_out", "in_plane", "reconstructions"}``: what :func:`paired` returns, with the
        rival's ``network`` and ``coverage``; and ``{"rms", "relative_rms", "beyond"}``, the RMS difference between the
        reconstructions, in grey levels and in standard deviations of the stack, and the fraction of voxels where they
        differ by more than the audited one's 95 % interval. Of another factor, only sections left out are comparable;
        the others are ``{}``.
    """
    sections, gains = left_out(rival, wide, unfit)
    found: dict[str, Any] = {"left_out": _both(figures["left_out"], sections), "in_plane": {}, "reconstructions": {}}
    if rival.geometry is restorer.geometry:
        if figures["in_plane"]:
            found["in_plane"] = _both(figures["in_plane"], in_plane(crop, rival))
        volume, deviation = reconstruction
        other, _ = rival.restore_all(crop, plan_of(crop.shape, rival))
        difference = np.abs(volume.astype(np.float32) - other)
        rms = float(np.sqrt(np.square(difference).mean()))
        multiple = restorer.processor.interval(CONFIDENCE, restorer.geometry, mode=restorer.mode)
        found["reconstructions"] = {
            "rms": rms,
            "relative_rms": rms / restorer.statistics.std,
            "beyond": round(float((difference > multiple * deviation).mean()), 4),
        }
    return found, gains


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
