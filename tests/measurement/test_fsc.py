import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emformer_hub.errors import InputError
from emformer_hub.geometry import VoxelSize
from emformer_hub.measurement import FSCCurve, directional_resolution, fsc, resolution

CUBE = VoxelSize(8, 8, 8)
DIRECTIONS = [None, "z", "y", "x", "lateral"]


def white(shape=(48, 48, 48), seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def frequencies(shape, voxel_size):
    return np.meshgrid(*(np.fft.fftfreq(n, d) for n, d in zip(shape, voxel_size.zyx, strict=True)), indexing="ij")


def filtered(volume, keep):
    return np.fft.ifftn(np.fft.fftn(volume) * keep).real


@pytest.mark.parametrize("axis", DIRECTIONS)
@given(shape=st.tuples(*[st.integers(8, 21)] * 3), voxel=st.tuples(*[st.floats(4, 10)] * 3))
@settings(max_examples=20)
def test_equal_volumes_agree_everywhere_at_any_shape_and_voxel_size(axis, shape, voxel):
    volume, voxel_size = white(shape), VoxelSize(*voxel)
    curve = fsc(volume, volume, voxel_size, axis=axis)
    np.testing.assert_allclose(curve.correlation, 1, atol=1e-5)
    assert (curve.counts > 0).all()
    concerned = {None: voxel, "z": voxel[:1], "y": voxel[1:2], "x": voxel[2:], "lateral": voxel[1:]}[axis]
    assert resolution(curve) == pytest.approx(2 * max(concerned))


@pytest.mark.parametrize("axis", DIRECTIONS)
def test_unrelated_noise_does_not_correlate(axis):
    curve = fsc(white(seed=0), white(seed=1), CUBE, axis=axis)
    populated = curve.counts > 200
    assert np.abs(curve.correlation[populated]).max() < 0.3
    assert abs(np.average(curve.correlation, weights=curve.counts)) < 0.02


@given(gain=st.floats(0.01, 1000), offset=st.floats(-1000, 1000))
def test_the_scale_of_grey_levels_does_not_matter(gain, offset):
    a, b = white((16, 16, 16)), white((16, 16, 16)) + white((16, 16, 16), seed=1)
    expected = fsc(a, b, CUBE).correlation
    np.testing.assert_allclose(fsc(a, gain * b.astype(float) + offset, CUBE).correlation, expected, atol=1e-2)
    np.testing.assert_allclose(fsc(b, a, CUBE).correlation, expected, atol=1e-5)


def test_the_transform_counts_every_coefficient_once():
    """All shells together hold the ball of frequencies up to Nyquist, counted on the full, not the half spectrum."""
    shape = (16, 16, 16)
    curve = fsc(white(shape), white(shape), VoxelSize(1, 1, 1))
    radius = np.sqrt(sum(k**2 for k in frequencies(shape, VoxelSize(1, 1, 1)))) * 16
    assert curve.counts.tolist() == [int((np.rint(radius) == shell).sum()) for shell in range(1, 9)]


@pytest.mark.parametrize("cutoff_nm", [24.0, 32.0, 50.0])
def test_a_known_cutoff_is_found(cutoff_nm):
    truth = white((64, 64, 64))
    radius = np.sqrt(sum(k**2 for k in frequencies(truth.shape, CUBE)))
    estimate = filtered(truth, radius < 1 / cutoff_nm) + 0.1 * white(truth.shape, seed=1)
    for found in directional_resolution(truth, estimate, CUBE).values():
        assert found == pytest.approx(cutoff_nm, rel=0.1)


def test_the_crossing_is_where_signal_equals_noise_as_theory_says():
    """Signal H k and noise of deviation s: correlation H / sqrt(H^2 + s^2) is 0.5 where H = s / sqrt(3)."""
    truth = white((64, 64, 64))
    radius = np.sqrt(sum(k**2 for k in frequencies(truth.shape, CUBE)))
    width = 1 / 40
    estimate = filtered(truth, np.exp(-((radius / width) ** 2) / 2)) + 0.3 * white(truth.shape, seed=1)
    expected = 1 / (width * np.sqrt(-2 * np.log(0.3 / np.sqrt(3))))
    assert resolution(fsc(truth, estimate, CUBE)) == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize(
    ("shape", "voxel_size"), [((48, 64, 64), CUBE), ((32, 64, 80), VoxelSize(16, 8, 8)), ((64, 48, 64), CUBE)]
)
def test_loss_along_z_only_is_seen_along_z_only(shape, voxel_size):
    truth = white(shape)
    kz, _, _ = frequencies(shape, voxel_size)
    estimate = filtered(truth, np.abs(kz) < 1 / 80) + 0.1 * white(shape, seed=1)
    found = directional_resolution(truth, estimate, voxel_size)
    rim = np.cos(np.radians(30))  # kz = 1/80 is met at a higher frequency towards the rim of the cone
    assert 80 * rim * 0.95 < found["z"] < 80 * 1.05
    assert found["lateral"] < 30
    assert found["lateral"] < found["all"] < found["z"]
    assert resolution(fsc(truth, estimate, voxel_size, axis="y")) < 30


def test_turning_both_volumes_turns_the_axes():
    truth = white((24, 32, 40))
    estimate = truth + np.cumsum(white((24, 32, 40), seed=1), axis=0)
    turned = fsc(truth.transpose(2, 1, 0), estimate.transpose(2, 1, 0), VoxelSize(4, 5, 6), axis="x")
    straight = fsc(truth, estimate, VoxelSize(6, 5, 4), axis="z")
    np.testing.assert_allclose(turned.correlation, straight.correlation, atol=1e-4)
    np.testing.assert_allclose(turned.frequency, straight.frequency)
    assert np.array_equal(turned.counts, straight.counts)


def test_the_crossing_is_interpolated_and_the_ends_are_the_limits():
    def curve(*correlation):
        shells = np.arange(1, len(correlation) + 1)
        return FSCCurve(shells / 100, np.array(correlation), shells)

    assert resolution(curve(1.0, 0.75, 0.25, 0.9)) == pytest.approx(1 / 0.025)
    assert resolution(curve(1.0, 0.9, 0.6)) == pytest.approx(100 / 3)
    assert resolution(curve(0.2, 0.1)) == pytest.approx(100)
    assert resolution(curve(1.0, 0.75, 0.25), threshold=0.75) == pytest.approx(50)


def test_mistakes_are_explained():
    volume = white((16, 16, 16))
    with pytest.raises(InputError, match="z, y, x, lateral"):
        fsc(volume, volume, CUBE, axis="w")
    with pytest.raises(InputError, match="nothing to correlate"):
        fsc(volume, np.full_like(volume, 7), CUBE)
    with pytest.raises(InputError, match="at least 8"):
        fsc(volume[:4], volume[:4], CUBE)
    with pytest.raises(InputError, match="less than two voxels"):
        fsc(volume, volume, VoxelSize(100, 4, 4))
    with pytest.raises(InputError, match="not finite"):
        fsc(volume, np.where(volume > 2, np.nan, volume), CUBE)
