"""What the page shows is what the volumes hold, true to scale."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from emformer_hub.app.views import ACROSS, Views, picture_file
from emformer_hub.geometry import SectionModel, VoxelSize
from emformer_hub.interpolation import interpolate
from emformer_hub.processing_emformer import EMformerProcessor
from emformer_hub.reconstruction import Reconstruction
from emformer_hub.volumes.phantom import neuropil

FACTOR = 4


@pytest.fixture(scope="module")
def views() -> Views:
    """Voxels of 10 nm along x and y, 20 nm along z; black is 0 and white is 200."""
    truth = neuropil((48, 24, 40))
    stack = SectionModel(FACTOR).degrade(truth)
    stack = 200 * (stack - np.percentile(stack, 0.5)) / np.ptp(np.percentile(stack, [0.5, 99.5]))
    uncertainty = np.linspace(1, 3, truth.size, dtype=np.float32).reshape(truth.shape)
    result = Reconstruction(truth.astype(np.float32), uncertainty, SectionModel(FACTOR), EMformerProcessor())
    return Views(stack, result, VoxelSize(20, 10, 10))


def grey(plane: np.ndarray) -> np.ndarray:
    return (255 * (plane / 200).clip(0, 1)).astype(np.uint8)


def voxels(image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The picture with one pixel a voxel, once it is clear that every voxel is a box of one colour."""
    rows, columns = (pixels // count for pixels, count in zip(image.shape, shape, strict=False))
    small = image[::rows, ::columns]
    np.testing.assert_array_equal(small.repeat(rows, 0).repeat(columns, 1), image)
    assert small.shape[:2] == shape
    return small


@pytest.mark.parametrize("plane", ["xz", "yz", "xy"])
@pytest.mark.parametrize("position", [0, 7, 23])
def test_each_panel_is_that_plane_of_its_volume(views: Views, plane: str, position: int) -> None:
    expected = {
        "input": interpolate(views.stack, views.result.geometry, "nearest"),
        "interpolation": interpolate(views.stack, views.result.geometry, "cubic"),
        "reconstruction": views.result.volume,
    }
    for panel, volume in expected.items():
        cut = volume.take(position, ACROSS[plane])
        shown = voxels(getattr(views, panel)(plane, position), cut.shape)
        assert np.abs(shown.astype(int) - grey(cut)).max() <= 1


@pytest.mark.parametrize("plane", ["xz", "yz", "xy"])
def test_pictures_are_true_to_scale_and_not_small(views: Views, plane: str) -> None:
    image = views.reconstruction(plane, 0)
    lengths = [
        count * size
        for axis, (count, size) in enumerate(zip(views.result.volume.shape, views.voxel_size.zyx, strict=True))
        if axis != ACROSS[plane]
    ]
    assert image.shape[0] / image.shape[1] == pytest.approx(lengths[0] / lengths[1])
    assert max(image.shape) >= 500
    assert views.input(plane, 0).shape == views.interpolation(plane, 0).shape == image.shape


def test_uncertain_voxels_are_coloured_and_certain_ones_stay_grey(views: Views) -> None:
    picture = voxels(views.reconstruction("xz", 12, uncertainty=True), (48, 40)).astype(int)
    colour = picture[..., 0] - picture[..., 2]
    assert (colour[0] == 0).all()  # the uncertainty of the phantom grows along z
    assert colour[-1].mean() > 100
    least, most = views.uncertainty_range
    assert 1 < least < most < 3


def test_a_picture_shown_again_is_the_same_file_untouched(tmp_path: Path) -> None:
    image = np.arange(12, dtype=np.uint8).reshape(3, 4)
    first = picture_file(image, tmp_path)
    written = Path(first).stat()
    assert picture_file(image, tmp_path) == first != picture_file(image[::-1], tmp_path)
    assert (Path(first).stat().st_ino, Path(first).stat().st_mtime_ns) == (written.st_ino, written.st_mtime_ns)
    np.testing.assert_array_equal(np.asarray(Image.open(first)), image)
