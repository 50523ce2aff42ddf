"""A stack that grows: what has landed is shown, and the end is what the whole stack gives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from click.testing import CliRunner

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


def land(folder: Path, stack: np.ndarray, numbers: range, pause_s: float = 0.0) -> None:
    """Write sections as a microscope does: the name is there before all of its voxels are."""
    for number in numbers:
        tifffile.imwrite(folder / "whole.part", stack[number])
        voxels = (folder / "whole.part").read_bytes()
        with (folder / f"s{number:03}.tif").open("wb") as file:
            file.write(voxels[: len(voxels) // 2])
            file.flush()
            time.sleep(pause_s)
            file.write(voxels[len(voxels) // 2 :])
    (folder / "whole.part").unlink()


@pytest.mark.parametrize("factor", [2.5])
def test_the_preview_grows_and_is_near_the_offline_result(stack: np.ndarray, tmp_path: Path, factor: float) -> None:
    folder, told = tmp_path / "sections", []
    folder.mkdir()
    land(folder, stack, range(5))
    thread = threading.Thread(target=land, args=(folder, stack, range(5, 30), 0.1))
    thread.start()
    settings: dict[str, Any] = {"factor": factor, "model": "emformer-tiny", "device": "cpu"}
    preview = tmp_path / "out.preview.zarr"
    follow(folder, preview, voxel_size=SIZE, idle_s=2.0, told=lambda *so_far: told.append(so_far), **settings)
    thread.join()
    made = read_volume(preview)
    offline = reconstruct(stack, ensemble=1, progress=False, **settings).volume
    assert len(told) > 2 and told[0][0] < 30 and told[-1] == (30, round(30 * factor))
    assert made.data.shape == offline.shape and made.voxel_size == SIZE.with_z(24 / factor)
    difference = np.abs(made.data.astype(float) - offline)
    assert difference.mean() < 1.5  # grey levels of 255: intensities are measured on what had landed
    assert difference.mean(axis=(1, 2)).max() < 4


def test_it_ends_as_the_offline_result_does(stack: np.ndarray, tmp_path: Path) -> None:
    folder = tmp_path / "sections"
    folder.mkdir()
    words = [
        "--voxel-size",
        "24,8,8",
        "--model",
        "emformer-tiny",
        "--ensemble",
        "1",
        "--device",
        "cpu",
        "--follow",
        "4",
    ]
    command = [sys.executable, "-m", "emformer_hub.cli", "reconstruct", str(folder), str(tmp_path / "out.zarr"), *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    land(folder, stack, range(30), 0.1)
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 0, printed
    precision = json.loads((tmp_path / "out.zarr.json").read_text())["precision"]  # chosen by the speed of the moment
    settings: dict[str, Any] = {"factor": 3.0, "model": "emformer-tiny", "ensemble": 1, "device": "cpu"}
    settings["precision"] = precision
    reconstruct_file(folder, tmp_path / "offline.zarr", voxel_size=SIZE, **settings)
    np.testing.assert_array_equal(read_volume(tmp_path / "out.zarr").data, read_volume(tmp_path / "offline.zarr").data)
    assert "sections have landed" in printed and not (tmp_path / "out.preview.zarr").exists()


def test_a_section_that_is_half_written_at_the_start_is_waited_for(stack: np.ndarray, tmp_path: Path) -> None:
    folder = tmp_path / "sections"
    folder.mkdir()
    land(folder, stack, range(9))
    os.truncate(folder / "s008.tif", 1000)
    words = [
        "--voxel-size",
        "24,8,8",
        "--model",
        "emformer-tiny",
        "--ensemble",
        "1",
        "--device",
        "cpu",
        "--follow",
        "1",
    ]
    result = CliRunner().invoke(main, ["reconstruct", str(folder), str(tmp_path / "out.zarr"), *words])
    assert result.exit_code == 2 and "(No section has landed for 1 s.)" in result.output


def test_what_never_lands_is_said(stack: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is not a folder of sections"):
        next(sections_landing(tmp_path / "missing", 0.2))
    with pytest.raises(InputError, match=r"holds 0 sections, and none has landed for 0\.2 s; expected at least 4"):
        next(sections_landing(tmp_path, 0.2))
    land(tmp_path, stack, range(6))
    os.truncate(tmp_path / "s005.tif", 900)
    with pytest.raises(InputError, match=r"s005\.tif.*No section has landed for 0\.2 s"):
        list(sections_landing(tmp_path, 0.2))
    (tmp_path / "s005.tif").unlink()
    land(tmp_path, stack, range(7, 9))
    with pytest.raises(InputError, match=r"lacks the section 5, 6|lacks the sections 5, 6"):
        list(sections_landing(tmp_path, 0.2))
