from __future__ import annotations

import numpy as np
import pytest

from emformer_hub.geometry import VoxelSize

ANISOTROPIC = VoxelSize(40, 4.886, 4)  # y and x differ, and y has no short fraction


def make_volume(dtype: str, shape: tuple[int, int, int] = (6, 20, 14)) -> np.ndarray:
    generator = np.random.default_rng(0)
    if np.dtype(dtype).kind == "f":
        return generator.normal(size=shape).astype(dtype)
    limits = np.iinfo(dtype)
    return generator.integers(limits.min, limits.max, shape, dtype, endpoint=True)


@pytest.fixture
def volume() -> np.ndarray:
    return make_volume("uint16")
