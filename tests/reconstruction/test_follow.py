"""A stack that grows: what has landed is shown, and the end is what the whole stack gives."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from click.testing import CliRunner, Result

from emformer_hub.cli import main
from emformer_hub.errors import InputError
from emformer_hub.geometry import VoxelSize
from emformer_hub.reconstruction import reconstruct
from emformer_hub.reconstruction.follow import follow, sections_landing
from emformer_hub.reconstruction.from_file import reconstruct_file
from emformer_hub.volumes import read_volume
from emformer_hub.volumes.phantom import neuropil

SIZE = VoxelSize(24, 8, 8)


@pytest.fixture(scope="module")
def stack() -> np.ndarray:
    """30 sections."""
    return neuropil((72, 48, 40))[np.r_[0:72:3, 66:48:-3]].copy()


class Microscope:
    """Writes sections while the program waits for them; its clock runs only then.

    The name of a section is there before all of its voxels are.

    Args:
        folder: folder of the sections.
        stack: all sections, ``(sections, y, x)``.
    """

    def __init__(self, folder: Path, stack: np.ndarray):
        self.folder, self.stack, self.now = folder, stack, 0.0
        self.work: Iterator[None] = iter(())

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        next(self.work, None)

    def land(self, numbers: range) -> None:
        """Write these sections at once."""
        for _ in self.landing(numbers):
            pass

    def landing(self, numbers: range) -> Iterator[None]:
        """Write these sections; every second one is half written when the program looks."""
        for number in numbers:
            file = io.BytesIO()
            tifffile.imwrite(file, self.stack[number])
            voxels, path = file.getvalue(), self.folder / f"s{number:03}.tif"
            path.write_bytes(voxels[: len(voxels) // 2])
            if number % 2:
                yield
            path.write_bytes(voxels)


@pytest.fixture
def microscope(stack: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Microscope:
    folder = tmp_path / "sections"
    folder.mkdir()
    microscope = Microscope(folder, stack)
    monkeypatch.setattr("emformer_hub.reconstruction.follow.time", microscope)
    return microscope


def follow_command(folder: Path, output: Path, idle_s: float) -> Result:
    words = ["reconstruct", folder, output, "--voxel-size", "24,8,8", "--model", "emformer-tiny", "--ensemble", 1]
    return CliRunner().invoke(main, [*map(str, words), "--device", "cpu", "--follow", str(idle_s)])


@pytest.mark.parametrize("factor", [2.5])
def test_the_preview_grows_and_is_near_the_offline_result(
    stack: np.ndarray, microscope: Microscope, tmp_path: Path, factor: float
) -> None:
    told: list[tuple[int, int]] = []
    microscope.land(range(5))
    microscope.work = microscope.landing(range(5, 30))
    settings: dict[str, Any] = {"factor": factor, "model": "emformer-tiny", "device": "cpu"}
    preview = tmp_path / "out.preview.zarr"
    follow(
        microscope.folder,
        preview,
        voxel_size=SIZE,
        idle_s=2.0,
        progress=lambda *so_far: told.append(so_far),
        **settings,
    )
    made = read_volume(preview)
    offline = reconstruct(stack, ensemble=1, progress=False, **settings).volume
    assert len(told) > 2 and told[0][0] < 30 and told[-1] == (30, round(30 * factor))
    assert made.data.shape == offline.shape and made.voxel_size == SIZE.with_z(24 / factor)
    difference = np.abs(made.data.astype(float) - offline)
    assert difference.mean() < 1.5  # grey levels of 255: intensities are measured on what had landed
    assert difference.mean(axis=(1, 2)).max() < 4


def test_it_ends_as_the_offline_result_does(microscope: Microscope, tmp_path: Path) -> None:
    microscope.work = microscope.landing(range(30))
    result = follow_command(microscope.folder, tmp_path / "out.zarr", idle_s=4)
    assert result.exit_code == 0, result.output
    settings: dict[str, Any] = {"factor": 3.0, "model": "emformer-tiny", "ensemble": 1, "device": "cpu"}
    reconstruct_file(microscope.folder, tmp_path / "offline.zarr", voxel_size=SIZE, **settings)
    np.testing.assert_array_equal(read_volume(tmp_path / "out.zarr").data, read_volume(tmp_path / "offline.zarr").data)
    assert "sections have landed" in result.output and not (tmp_path / "out.preview.zarr").exists()


def test_a_section_that_is_half_written_at_the_start_is_waited_for(microscope: Microscope, tmp_path: Path) -> None:
    microscope.land(range(9))
    os.truncate(microscope.folder / "s008.tif", 1000)
    result = follow_command(microscope.folder, tmp_path / "out.zarr", idle_s=1)
    assert result.exit_code == 2 and "(No section has landed for 1 s.)" in result.output


def test_what_never_lands_is_said(microscope: Microscope, tmp_path: Path) -> None:
    folder = microscope.folder
    with pytest.raises(InputError, match=r"is not a folder of sections"):
        next(sections_landing(tmp_path / "missing", 0.2))
    with pytest.raises(InputError, match=r"holds 0 sections, and none has landed for 0\.2 s; expected at least 4"):
        next(sections_landing(folder, 0.2))
    microscope.land(range(6))
    os.truncate(folder / "s005.tif", 900)
    with pytest.raises(InputError, match=r"s005\.tif.*No section has landed for 0\.2 s"):
        list(sections_landing(folder, 0.2))
    (folder / "s005.tif").unlink()
    microscope.land(range(7, 9))
    with pytest.raises(InputError, match=r"lacks the section 5, 6|lacks the sections 5, 6"):
        list(sections_landing(folder, 0.2))
