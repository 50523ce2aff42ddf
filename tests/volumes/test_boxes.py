"""Parts of volumes, and samples of their sections."""

from __future__ import annotations

import numpy as np
import pytest

from emformer_hub.volumes.boxes import block_means, evenly_spaced


@pytest.mark.parametrize(("count", "most"), [(0, 3), (1, 3), (3, 3), (7, 3), (64, 12), (1000, 64)])
def test_a_sample_is_evenly_spaced_with_both_ends(count: int, most: int) -> None:
    chosen = evenly_spaced(count, most)
    assert len(chosen) == min(count, most)
    assert chosen[:1] == list(range(count))[:1] and chosen[-1:] == list(range(count))[-1:]
    assert np.ptp(np.diff(chosen)) <= 1 if len(chosen) > 1 else True
    if most % 2 or count < most:  # no half to be rounded in the middle: the same from either end
        assert chosen == [count - 1 - number for number in reversed(chosen)]


def test_means_of_blocks_leave_out_what_fills_none() -> None:
    values = np.arange(2 * 5 * 7, dtype=np.float32).reshape(2, 5, 7)
    means = block_means(values, (1, 4, 3))
    assert means.shape == (2, 1, 2)
    np.testing.assert_allclose(means[1, 0, 1], values[1, :4, 3:6].mean())
