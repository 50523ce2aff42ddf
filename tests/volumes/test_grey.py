"""Grey levels in messages."""

from __future__ import annotations

import pytest

from emformer_hub.volumes.grey import grey_text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.00834, "0.0083"), (0.716, "0.72"), (12.34, "12"), (99.6, "100"), (1294, "1,300"), (65535, "66,000")],
)
def test_grey_levels_of_any_range_are_read_at_a_glance(value: float, text: str) -> None:
    assert grey_text(value) == text


def test_as_many_digits_as_are_asked_for() -> None:
    assert grey_text(1294.7, 3) == "1,290" and grey_text(7.125, 3) == "7.12"
