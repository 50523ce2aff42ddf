"""Verdicts: each follows its thresholds, and says why."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from emformer_hub.audit.verdicts import VERDICTS, judge

SHARES = {"0.5": 0.5, "0.8": 0.8, "0.95": 0.95}
FIGURES: dict[str, Any] = {
    "left_out": {"gain_over_linear_db": 1.0, "gain_over_cubic_db": 1.0, "coverage": SHARES},
    "in_plane": {"gain_over_bicubic_db": 1.0, "psnr_db": 25.0, "ssim": 0.8, "bicubic_ssim": 0.7, "coverage": SHARES},
    "isotropy": {"power_ratio": [1.0, 1.0, 0.01, 0.01], "judged": 2},
    "halves": {
        "reason": None,
        "resolution_nm": {"z": 100.0, "lateral": 40.0},
        "interpolated_nm": {"z": 140.0, "lateral": 50.0},
        "spacing_nm": 64.0,
    },
    "consistency": {"rms": 1.0, "relative_rms": 0.05},
    "seams": {"rms": 0.1, "relative_rms": 0.01, "step": 1.0},
    "quality": {"sections": 20, "flagged": {}},
    "alignment": {"reason": None, "pairs": 20, "measured": 20, "shifted": 0, "largest_voxels": 3.0},
}
GREY = np.random.default_rng(0).integers(1, 255, (8, 64, 64)).astype(np.uint8)


def verdict(item: str, changes: dict[tuple[str, ...], Any], crop: np.ndarray = GREY) -> Any:
    figures = copy.deepcopy(FIGURES)
    for (*way, last), value in changes.items():
        place = figures
        for step in way:
            place = place[step]
        place[last] = value
    return next(one for one in judge(figures, crop) if one.item == item)


def test_all_is_good_where_all_figures_are() -> None:
    verdicts = judge(FIGURES, GREY)
    assert {one.verdict for one in verdicts} == {"good"} and len({one.item for one in verdicts}) == 10


@pytest.mark.parametrize(
    ("place", "value", "item", "expected"),
    [
        (("left_out", "gain_over_cubic_db"), 0.1, "sections left out", "take care"),
        (("left_out", "gain_over_linear_db"), -0.1, "sections left out", "do not use"),
        (("in_plane", "gain_over_bicubic_db"), 0.31, "sharp plane, degraded", "good"),
        (("in_plane", "gain_over_bicubic_db"), 0.29, "sharp plane, degraded", "take care"),
        (("in_plane", "coverage", "0.5"), 0.4, "intervals", "take care"),
        (("left_out", "coverage", "0.95"), 0.79, "intervals", "do not use"),
        (("left_out", "coverage", "0.8"), 0.85, "intervals", "good"),
        (("isotropy", "power_ratio"), [1.0, 0.4, 0.01, 0.01], "isotropy of spectra", "take care"),
        (("isotropy", "power_ratio"), [9.0, 1.0, 0.01, 0.01], "isotropy of spectra", "do not use"),
        (("quality", "flagged"), {"7": ["damaged"]}, "quality of sections", "take care"),
        (("quality", "flagged"), {str(z): ["missing"] for z in range(6)}, "quality of sections", "do not use"),
        (("halves", "resolution_nm", "z"), 127.0, "halves of the data", "good"),
        (("halves", "resolution_nm", "z"), 129.0, "halves of the data", "take care"),
        (("halves", "resolution_nm", "z"), 257.0, "halves of the data", "do not use"),
        (("consistency", "relative_rms"), 0.4, "agreement with the sections", "do not use"),
        (("seams", "relative_rms"), 0.05, "seams", "take care"),
        (("seams", "step"), 1.1, "seams", "take care"),
        (("seams", "step"), 1.3, "seams", "do not use"),
        (("alignment", "shifted"), 1, "alignment of sections", "take care"),
        (("alignment", "shifted"), 3, "alignment of sections", "do not use"),
        (("alignment", "measured"), 9, "alignment of sections", "take care"),
    ],
)
def test_verdicts_follow_their_thresholds(place: tuple[str, ...], value: Any, item: str, expected: str) -> None:
    one, good = verdict(item, {place: value}), verdict(item, {})
    assert one.verdict == expected and one.reason.endswith(".")
    assert (one.reason == good.reason) == (expected == "good")


def test_intervals_of_weights_without_a_calibration_say_so() -> None:
    one = verdict("intervals", {("left_out", "coverage"): None})
    assert one.verdict == "good" and "sections left out not calibrated" in one.figure
    neither = judge({**FIGURES, "in_plane": {}, "left_out": {**FIGURES["left_out"], "coverage": None}}, GREY)
    assert not {"intervals", "sharp plane, degraded"} & {one.item for one in neither}


@pytest.mark.parametrize(("look", "item"), [("halves", "halves of the data"), ("alignment", "alignment of sections")])
def test_what_was_not_looked_at_gets_no_verdict(look: str, item: str) -> None:
    items = {one.item for one in judge({**FIGURES, look: {"reason": "the stack is too small."}}, GREY)}
    assert item not in items and len(items) == 9


@pytest.mark.parametrize(("share", "expected"), [(0.01, "good"), (0.1, "take care"), (0.3, "do not use")])
def test_saturated_voxels_are_counted(share: float, expected: str) -> None:
    crop = GREY.clip(2, 253).ravel()
    crop[: int(share * crop.size)] = 255
    crop[-1] = 0
    one = verdict("grey levels", {}, crop.reshape(GREY.shape))
    assert one.verdict == expected and one.figure.startswith(f"{share:.1%} at")


def test_one_bit_data_is_no_image() -> None:
    one = verdict("grey levels", {}, (GREY > 120).astype(np.uint8))
    assert one.verdict == VERDICTS[2] and "2 levels" in one.figure


@pytest.mark.parametrize(
    ("better", "expected", "reason"),
    [
        ("first", "good", "better than by other at factor 4"),
        (None, "good", "no difference"),
        ("second", "take care", "try it"),
    ],
)
def test_a_second_opinion_asks_for_care_where_it_is_better(better: str | None, expected: str, reason: str) -> None:
    difference = {"difference_db": -0.4, "interval_db": [-0.5, -0.3], "better": better}
    against = {"model": "other", "factor": 4.0, "left_out": difference, "in_plane": {}}
    *_, one = judge({**FIGURES, "against": against}, GREY)
    assert one.item == "second opinion: sections left out" and one.verdict == expected and reason in one.reason
    assert one.figure == "-0.40 dB over other at factor 4, 95 % interval -0.50 to -0.30"


def test_intervals_say_whether_the_surer_half_errs_less() -> None:
    one = verdict("intervals", {("in_plane", "averages"): {"error": 2.0, "certain_error": 1.0}})
    assert "of 4 x 4 voxels, the half stated as surer errs 50% as much as all" in one.figure
