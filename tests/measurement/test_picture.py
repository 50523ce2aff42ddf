import sys

import numpy as np
import pytest

from emformer_hub.errors import InputError
from emformer_hub.geometry import SectionModel, VoxelSize
from emformer_hub.interpolation import interpolate
from emformer_hub.measurement import comparison_picture
from emformer_hub.volumes.phantom import neuropil

pytest.importorskip("matplotlib")
image_module = pytest.importorskip("PIL.Image")


@pytest.fixture(scope="module")
def volumes():
    truth = neuropil((41, 48, 64))
    model = SectionModel(6.8)
    sections = model.degrade(truth)
    cubic = interpolate(sections, model, "cubic")
    return {
        "sections": sections,
        "interpolated": cubic,
        "reconstruction": cubic,
        "voxel_size": VoxelSize(5, 5, 5),
        "factor": 6.8,
    }, truth[: len(cubic)]


def pixels(path):
    with image_module.open(path) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB")).astype(int)


def test_columns_are_added_for_what_is_known(volumes, tmp_path):
    base, truth = volumes
    extras = [{}, {"uncertainty": np.abs(truth - 128.0)}, {"truth": truth}]
    widths = []
    for number, extra in enumerate(extras):
        comparison_picture(tmp_path / f"{number}.png", **base, **extra)
        widths.append(pixels(tmp_path / f"{number}.png").shape[1])
    assert widths == sorted(set(widths))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["0.png", "1.png", "2.png"]


def test_every_voxel_is_a_whole_block_of_pixels_with_the_shown_grey_level(volumes, tmp_path):
    base, _ = volumes
    comparison_picture(tmp_path / "a.png", **base, title="a title")
    picture = pixels(tmp_path / "a.png")
    low, high = np.percentile(interpolate(base["sections"], SectionModel(6.8), "nearest"), [1, 99])
    plane = base["reconstruction"][:, 24, :]
    expected = np.clip((plane - low) / (high - low), 0, 1)
    zoom = 320 // 64
    height, width = plane.shape[0] * zoom, plane.shape[1] * zoom
    left = picture.shape[1] - 8 - width  # the last column ends a gap before the right edge
    top = 44 + 26
    panel = picture[top : top + height, left : left + width]
    blocks = panel.reshape(plane.shape[0], zoom, plane.shape[1], zoom, 3)
    assert (blocks == blocks[:, :1, :, :1]).all()
    np.testing.assert_allclose(blocks[:, 0, :, 0, 0] / 255, expected, atol=0.02)


def test_in_plane_shows_two_sections_and_says_which(volumes, tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    labels, shown = [], []
    monkeypatch.setattr(Axes, "set_ylabel", lambda axes, label, **_: labels.append(label))
    monkeypatch.setattr(Axes, "imshow", lambda axes, plane, **_: shown.append(plane))
    base, _ = volumes
    comparison_picture(tmp_path / "a.png", **base, in_plane=True)
    assert labels == ["xy at z = 16", "xy at z = 32"]
    np.testing.assert_array_equal(shown[-1], base["reconstruction"][:, 32, :])


def test_without_a_voxel_size_lengths_are_voxels(volumes, tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    words = []
    monkeypatch.setattr(Axes, "set_title", lambda axes, label, **_: words.append(label))
    monkeypatch.setattr(Axes, "text", lambda axes, x, y, label, **_: words.append(label))
    comparison_picture(tmp_path / "a.png", **{**volumes[0], "voxel_size": None})
    assert words == [
        "Input\nevery 6.8 voxels",
        "10 voxels",
        "Cubic interpolation\nevery voxel",
        "EMformer\nevery voxel",
        "10 voxels",
    ]


def test_a_large_volume_makes_a_small_file_and_leaves_pyplot_alone(tmp_path):
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 256, (176, 200, 180)).astype(np.uint8)  # noise: the hardest to compress
    model = SectionModel(8)
    sections = model.degrade(truth)
    cubic = interpolate(sections, model, "cubic")
    before = "matplotlib.pyplot" in sys.modules
    comparison_picture(
        tmp_path / "large.png",
        sections=sections,
        interpolated=cubic,
        reconstruction=truth,
        truth=truth,
        uncertainty=cubic,
        voxel_size=VoxelSize(4, 4, 4),
        factor=8,
        scale_bar_nm=100,
    )
    assert (tmp_path / "large.png").stat().st_size < 1_500_000
    assert ("matplotlib.pyplot" in sys.modules) == before


def test_mistakes_are_explained(volumes, tmp_path):
    base, truth = volumes
    with pytest.raises(InputError, match=r"\.png"):
        comparison_picture(tmp_path / "a.jpg", **base)
    with pytest.raises(InputError, match="does not exist"):
        comparison_picture(tmp_path / "nowhere" / "a.png", **base)
    with pytest.raises(InputError, match="truth has shape"):
        comparison_picture(tmp_path / "a.png", **base, truth=truth[1:])
    with pytest.raises(InputError, match="Check the factor"):
        comparison_picture(tmp_path / "a.png", **{**base, "factor": 8})
    assert not list(tmp_path.iterdir())
