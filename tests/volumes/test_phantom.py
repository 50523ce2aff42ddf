import numpy as np
import pytest

from emformer_hub.errors import InputError
from emformer_hub.volumes.phantom import neuropil

SHAPE = (72, 80, 64)


@pytest.fixture(scope="module")
def volume():
    return neuropil(SHAPE, seed=3)


def test_the_same_seed_gives_the_same_volume_and_another_seed_another(volume):
    assert volume.shape == SHAPE
    assert volume.dtype == np.uint8
    assert np.array_equal(volume, neuropil(SHAPE, seed=3))
    assert not np.array_equal(volume, neuropil(SHAPE, seed=4))


def test_grey_levels_are_those_of_stained_tissue(volume):
    assert 110 < volume.mean() < 160
    assert 0.1 < (volume < 100).mean() < 0.5  # membranes and mitochondria
    assert (volume > 150).mean() > 0.25  # cytoplasm
    assert ((volume == 0) | (volume == 255)).mean() < 0.01


def test_no_axis_differs_from_another():
    """Isotropy, which self-supervision rests on: neighbours differ equally along z, y and x, near and far."""
    volumes = [neuropil((112, 112, 112), seed=seed).astype(np.float32) for seed in range(3)]
    for step in (1, 2, 4, 8):
        changes = [
            np.mean(
                [np.square(v.take(range(step, 112), axis) - v.take(range(112 - step), axis)).mean() for v in volumes]
            )
            for axis in range(3)
        ]
        assert max(changes) < 1.1 * min(changes)


def test_detail_is_lost_when_sections_are_thick(volume):
    thick = volume.reshape(9, 8, *SHAPE[1:]).mean(axis=1)
    repeated = thick.repeat(8, axis=0)
    assert np.square(repeated - volume).mean() > 2 * 8.0**2  # well beyond the noise


def test_odd_and_flat_shapes_work():
    assert neuropil((17, 33, 16)).shape == (17, 33, 16)


def test_too_small_a_shape_is_explained():
    with pytest.raises(InputError, match="at least 16"):
        neuropil((8, 64, 64))
