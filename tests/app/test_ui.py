"""What the page does with an upload, without a browser."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

pytest.importorskip("gradio", reason="the page needs the extra [app]")

from emformer_hub.app.ui import Limits, Stopped, make_sample, read_upload, run
from emformer_hub.app.words import FACE, THROUGH
from emformer_hub.errors import InputError
from emformer_hub.geometry import VoxelSize
from emformer_hub.reconstruction import reconstruct
from emformer_hub.volumes import read_volume, write_volume
from emformer_hub.volumes.phantom import neuropil


@pytest.fixture
def stack(tmp_path: Path) -> Path:
    path = tmp_path / "stack.tif"
    write_volume(path, neuropil((24, 32, 48))[::3].copy(), VoxelSize(24, 8, 8), translation_nm=(16, 0, 0))
    return path


def upload(*paths: Path, folder: Path, **changed: Any) -> Any:
    settings = {"voxel_size": "24,8,8", "thickness": FACE, "model": "emformer-tiny", "noise": "left out"}
    settings |= {"device": "cpu", "limits": Limits(), "progress": lambda share, doing: None}
    return run([str(path) for path in paths], folder=folder, **settings | changed)


def test_the_result_is_that_of_the_library_and_can_be_downloaded(stack: Path, tmp_path: Path) -> None:
    views, figures, files = upload(stack, folder=tmp_path)
    expected = reconstruct(
        read_volume(stack).data, factor=3, thickness=1 / 3, model="emformer-tiny", device="cpu", progress=False
    )
    np.testing.assert_array_equal(views.result.volume, expected.volume)
    assert [path.name for path in files] == ["stack_isotropic.ome.tif", "stack_uncertainty.ome.tif"]
    for path, data in zip(files, (expected.volume, expected.uncertainty), strict=True):
        written = read_volume(path)
        np.testing.assert_array_equal(written.data, data)
        assert written.voxel_size == VoxelSize(8, 8, 8)
        assert written.translation_nm == (8, 0, 0)  # the middle of the first plane of the slab whose middle is at 16 nm
    assert "dB" in figures and "24 x 32 x 48 voxels" in figures


def test_noise_of_the_sections_is_kept_if_wished(stack: Path, tmp_path: Path) -> None:
    views, *_ = upload(stack, folder=tmp_path, noise="kept, as it was measured")
    given = read_volume(stack).data
    np.testing.assert_array_equal(views.result.volume[1::3], given)  # of three planes, the middle one is imaged


def test_progress_grows_to_the_end_and_can_stop_the_run(stack: Path, tmp_path: Path) -> None:
    told: list[float] = []
    upload(stack, folder=tmp_path, progress=lambda share, doing: told.append(share))
    assert told[0] == 0 and told[-1] == 1
    assert all(before <= after for before, after in itertools.pairwise(told))

    def stop(share: float, doing: str) -> None:
        raise Stopped

    with pytest.raises(Stopped):
        upload(stack, folder=tmp_path / "none", progress=stop)
    assert not (tmp_path / "none").exists()


def test_images_of_sections_are_put_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    sections = neuropil((16, 16, 16))[:11]
    paths = [tmp_path / f"section_{number}.tif" for number in range(11)]
    for path, section in zip(paths, sections, strict=True):
        tifffile.imwrite(path, section)
    np.testing.assert_array_equal(read_upload([str(path) for path in reversed(paths)]).data, sections)


def test_the_sample_states_its_voxel_size(tmp_path: Path) -> None:
    assert read_volume(make_sample(tmp_path)).voxel_size == VoxelSize(40, 8, 8)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"voxel_size": " "}, "voxel size is missing; give Z,Y,X in nm"),
        ({"voxel_size": "8,8"}, "8,8"),
        ({"voxel_size": "8,8,24"}, "order"),
        ({"limits": Limits(mvoxels=0.03)}, r"24 x 32 x 48 voxels.*at most 0\.03 million.*emformer-hub reconstruct"),
        ({"limits": Limits(minutes=1e-6)}, r"would take about .*run: emformer-hub reconstruct stack\.tif"),
    ],
    ids=["no voxel size", "two lengths", "wrong order", "too large", "too long"],
)
def test_what_cannot_be_done_is_said(stack: Path, tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        upload(stack, folder=tmp_path, **changed)


def test_the_command_in_a_message_does_what_the_page_would_have_done(stack: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--voxel-size 24,8,8 --thickness 0\.3333 --model emformer-tiny"):
        upload(stack, folder=tmp_path, limits=Limits(mvoxels=0))
    with pytest.raises(InputError, match=r"--thickness 1 "):
        upload(stack, folder=tmp_path, limits=Limits(mvoxels=0), thickness=THROUGH)


def test_nothing_uploaded_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no stack yet"):
        upload(folder=tmp_path)
