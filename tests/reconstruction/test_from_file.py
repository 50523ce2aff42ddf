"""Reconstruction in parts: the same voxels, whatever interrupts it and whoever makes them."""

from __future__ import annotations

import errno
import json
import math
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import zarr
from interruption import Interrupted, interrupted_after
from sketch import SKETCH

from emformer_hub.errors import InputError
from emformer_hub.geometry import VoxelSize
from emformer_hub.reconstruction import Reconstruction, from_file, parts, reconstruct, reconstruct_file
from emformer_hub.reconstruction.blocks import Block
from emformer_hub.reconstruction.forecast import forecast
from emformer_hub.reconstruction.job import Job, make_job, state_folder
from emformer_hub.reconstruction.restorer import Restorer
from emformer_hub.reconstruction.settings import OpenStack
from emformer_hub.volumes import ome_zarr, open_volume, read_volume, write_volume
from emformer_hub.volumes.boxes import parse_region
from emformer_hub.volumes.phantom import neuropil

SIZE = VoxelSize(24, 8, 8)
SETTINGS: dict[str, Any] = {"factor": 3.0, "model": SKETCH, "ensemble": 1, "device": "cpu"}
SETTINGS["precision"] = "float32"  # what is faster is measured, and may differ between processes
TILE = (22, 64, 64)
"""So small that a small volume has many blocks."""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 sections of 60 x 90 voxels, in a memory-mapped TIFF; 4 x 1 x 2 blocks."""
    path = tmp_path_factory.mktemp("stack") / "stack.tif"
    write_volume(path, neuropil((72, 60, 90))[::3].copy(), SIZE, translation_nm=(100, 0, 0))
    return path


@pytest.fixture(scope="module")
def expected(stack: Path) -> Reconstruction:
    return reconstruct(read_volume(stack).data, tile_zyx=TILE, progress=False, **SETTINGS)


def test_the_pyramid_is_made_in_parts_and_goes_on_where_it_stopped(
    stack: Path, expected: Reconstruction, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ome_zarr, "SMALLEST_LEVEL", 10)
    output, told = tmp_path / "out.zarr", []
    for after in (9, 1, 1):  # before the pyramid is complete
        with pytest.raises(Interrupted):
            run(stack, output, resume=bool(told), scheduler=interrupted_after(after), uncertainty=tmp_path / "sure.tif")
        told.append(len(done(output)))
    record = run(stack, output, resume=True, uncertainty=tmp_path / "sure.tif")
    write_volume(tmp_path / "whole.zarr", expected.volume, VoxelSize(8, 8, 8))
    made, whole = (zarr.open_group(tmp_path / name, mode="r") for name in ("out.zarr", "whole.zarr"))
    assert told == [9, 10, 11] and sorted(made.array_keys()) == sorted(whole.array_keys()) == list("01234")
    for level in "01234":
        np.testing.assert_array_equal(made[level][:], whole[level][:])
    seconds = json.loads(record.read_text())["seconds"]
    assert set(seconds) == {"reading", "network", "writing", "pyramid"} and all(s > 0 for s in seconds.values())


def test_a_stack_that_is_only_in_memory_is_reconstructed_as_its_file_is(
    stack: Path, expected: Reconstruction, tmp_path: Path
) -> None:
    volume = open_volume(stack)
    record = run(OpenStack("a layer", volume, stored=False), tmp_path / "out.zarr")
    np.testing.assert_array_equal(read_volume(tmp_path / "out.zarr").data, expected.volume)
    facts = json.loads(record.read_text())
    assert facts["input"] == "a layer" and facts["input_modified"] is None


def test_a_forecast_writes_nothing_and_comes_near(stack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, restore = [0.0], Restorer.restore

    def restore_steadily(restorer: Restorer, seen: np.ndarray, block: Block, *others: Any) -> Any:
        clock[0] += 1e-6 * math.prod(part.stop - part.start for part in block.output)
        return restore(restorer, seen, block, *others)

    monkeypatch.setattr(Restorer, "restore", restore_steadily)
    monkeypatch.setattr(parts, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    job = make_job(stack, tmp_path / "out.zarr", tile_zyx=TILE, voxel_size=SIZE, **SETTINGS)
    expected = forecast(parts.Parts(job, "cpu"))
    assert list(tmp_path.iterdir()) == []
    record = run(stack, tmp_path / "out.zarr")
    took = json.loads(record.read_text())["seconds"]["network"]
    assert (expected.voxels, expected.parts, expected.blocks) == (72 * 60 * 90, 8, 8)
    assert expected.seconds == pytest.approx(took)
    written = sum(file.stat().st_size for file in (tmp_path / "out.zarr").rglob("*"))
    assert 0.4 * written < expected.needs.disk < 3 * written


def test_memory_that_is_too_small_is_told_before_the_work(
    stack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("emformer_hub.reconstruction.forecast.free_memory", lambda device: 10**8)
    with pytest.raises(InputError, match=r"needs about 0\.\d GB of memory, of which 0\.1 are free.*--memory"):
        run(stack, tmp_path / "out.zarr")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each block is a part."""
    monkeypatch.setattr(parts, "PART_VOXELS", 1)


def run(stack: Path | OpenStack, output: Path, **changed: Any) -> Path:
    return reconstruct_file(stack, output, **{"voxel_size": SIZE, "tile_zyx": TILE} | SETTINGS | changed)


def check(output: Path, expected: np.ndarray) -> None:
    made = read_volume(output)
    np.testing.assert_array_equal(made.data, expected)
    assert made.voxel_size == VoxelSize(8, 8, 8)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_parts_make_what_memory_makes(stack: Path, expected: Reconstruction, tmp_path: Path, version: str) -> None:
    record = run(stack, tmp_path / "out.zarr", uncertainty=tmp_path / "sure.zarr", ome_zarr=version)
    check(tmp_path / "out.zarr", expected.volume)
    check(tmp_path / "sure.zarr", expected.uncertainty)
    assert read_volume(tmp_path / "out.zarr").translation_nm == (92, 0, 0)
    assert zarr.open_array(tmp_path / "out.zarr" / "0", mode="r").nchunks >= 8
    facts = json.loads(record.read_text())
    assert facts["parts"] == 8 and facts["model"] == SKETCH and len(facts["weights"]) == 64
    assert {path.name for path in tmp_path.iterdir()} == {"out.zarr", "sure.zarr", "out.zarr.json"}


@pytest.mark.parametrize("output", ["out.tif", "out.h5", "out.mrc", "out"])
def test_any_format_holds_the_same_voxels(stack: Path, expected: Reconstruction, tmp_path: Path, output: str) -> None:
    run(stack, tmp_path / output, uncertainty=tmp_path / "sure.tif")
    check(tmp_path / output, expected.volume)
    check(tmp_path / "sure.tif", expected.uncertainty)
    assert {path.name for path in tmp_path.iterdir()} == {output, "sure.tif", f"{output}.json"}


def test_a_compressed_input_on_disk_gives_the_same(stack: Path, expected: Reconstruction, tmp_path: Path) -> None:
    write_volume(tmp_path / "in.zarr", read_volume(stack).data, SIZE)
    run(tmp_path / "in.zarr", tmp_path / "out.zarr")
    check(tmp_path / "out.zarr", expected.volume)


def test_a_region_is_made_with_the_intensities_of_the_whole(stack: Path, tmp_path: Path) -> None:
    run(stack, tmp_path / "out.zarr", region=parse_region("4:20,10:50,20:60"))
    made = read_volume(tmp_path / "out.zarr")
    assert made.data.shape == (48, 40, 40)
    assert made.translation_nm == (100 - 8 + 4 * 24, 10 * 8, 20 * 8)
    with pytest.raises(InputError, match=r"region 4:25,0:9,0:9 is not all there: .* is 0:24,0:60,0:90"):
        run(stack, tmp_path / "other.zarr", region=parse_region("4:25,0:9,0:9"))


def test_a_run_goes_on_where_it_stopped(stack: Path, expected: Reconstruction, tmp_path: Path) -> None:
    output = tmp_path / "out.zarr"
    with pytest.raises(Interrupted):
        run(stack, output, scheduler=interrupted_after(5))
    assert not output.exists()
    told: list[tuple[int, int]] = []
    record = run(stack, output, resume=True, progress=lambda *done: told.append(done))
    check(output, expected.volume)
    assert told[0] == (5, 8) and told[-1] == (8, 8)
    assert json.loads(record.read_text())["made_now"] == 3


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({}, r"did not finish \(3 of 8 parts are done\); add --resume"),
        ({"resume": True, "ensemble": 2}, r"another one: ensemble was 1, is 2"),
        ({"resume": True, "factor": 4.0}, r"another one: factor was 3\.0, is 4\.0"),
        ({"resume": True, "model": "emformer-small"}, rf"another one: model was '{SKETCH}'.*weights was"),
        ({"resume": True, "tile_zyx": (22, 64, 80)}, r"another one: tile_zyx was \(22, 64, 64\), is \(22, 64, 80\)"),
    ],
    ids=["not resumed", "ensemble", "factor", "model", "tile"],
)
def test_an_unfinished_run_is_neither_lost_nor_mixed_with_another(
    stack: Path, expected: Reconstruction, tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    output = tmp_path / "out.zarr"
    with pytest.raises(Interrupted):
        run(stack, output, scheduler=interrupted_after(3))
    with pytest.raises(InputError, match=message):
        run(stack, output, **changed)
    run(stack, output, resume=True)
    check(output, expected.volume)


def test_a_resumed_run_keeps_the_precision_that_it_began_with(stack: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.zarr"
    for precision in ("float32", "bfloat16"):
        with pytest.raises(Interrupted):
            run(stack, output, scheduler=interrupted_after(7), precision=precision, overwrite=True)
        record = run(stack, output, resume=True, precision="auto")
        assert json.loads(record.read_text())["precision"] == precision


def test_a_resumed_run_keeps_its_tile(stack: Path, tmp_path: Path) -> None:
    output, settings = tmp_path / "out.zarr", {"tile_zyx": None, "memory": 4}
    whole = json.loads(run(stack, tmp_path / "whole.zarr", **settings).read_text())
    with pytest.raises(Interrupted):
        run(stack, output, scheduler=interrupted_after(1), workers=2, **settings)
    record = json.loads(run(stack, output, resume=True, **settings).read_text())
    assert record["tile_zyx"] != whole["tile_zyx"] and record["parts"] > record["made_now"] > 0


def test_an_unfinished_run_of_another_version_is_told(stack: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.zarr"
    with pytest.raises(Interrupted):
        run(stack, output, scheduler=interrupted_after(1))
    file = state_folder(output) / "job.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "version": "0.1.0", "sharpened": True}))
    with pytest.raises(InputError, match=r"job\.json belongs to version 0\.1\.0 .*begin again with --overwrite"):
        run(stack, output, resume=True)


def test_an_unfinished_run_is_forgotten_when_that_is_asked_for(
    stack: Path, expected: Reconstruction, tmp_path: Path
) -> None:
    with pytest.raises(Interrupted):
        run(stack, tmp_path / "out.zarr", scheduler=interrupted_after(3), factor=5)
    run(stack, tmp_path / "out.zarr", overwrite=True)
    check(tmp_path / "out.zarr", expected.volume)


def test_a_line_that_was_cut_does_not_count(stack: Path, expected: Reconstruction, tmp_path: Path) -> None:
    output = tmp_path / "out.zarr"
    with pytest.raises(Interrupted):
        run(stack, output, scheduler=interrupted_after(1))
    with (state_folder(output) / "done").open("a") as file:
        file.write("1")  # of 12, of 17, or of nothing: the disk was full
    told: list[tuple[int, int]] = []
    run(stack, output, resume=True, progress=lambda *done: told.append(done))
    assert told[0] == (1, 8) and told[-1] == (8, 8)
    check(output, expected.volume)


def test_a_disk_that_fills_up_keeps_what_is_done(
    stack: Path, expected: Reconstruction, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, write = tmp_path / "out.zarr", ome_zarr.OMEZarrWriter.write

    def full(writer: Any, box: Any, voxels: np.ndarray) -> None:
        if len(done(output)) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(writer, box, voxels)

    with monkeypatch.context() as patch:
        patch.setattr(ome_zarr.OMEZarrWriter, "write", full)
        with pytest.raises(InputError, match=r"No space left on device. Finished parts are kept: .*--resume"):
            run(stack, output)
    told: list[tuple[int, int]] = []
    run(stack, output, resume=True, progress=lambda *done: told.append(done))
    assert told[0] == (3, 8)
    check(output, expected.volume)


def test_there_is_nothing_to_resume(stack: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no unfinished run"):
        run(stack, tmp_path / "out.zarr", resume=True)
    assert list(tmp_path.iterdir()) == []
    run(stack, tmp_path / "out.zarr")
    with pytest.raises(InputError, match="is complete; there is nothing to resume"):
        run(stack, tmp_path / "out.zarr", resume=True)


def test_a_run_that_was_killed_between_its_two_outputs_goes_on(
    stack: Path, expected: Reconstruction, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs = {"output": tmp_path / "out.zarr", "uncertainty": tmp_path / "sure.zarr"}

    def once(new: Path, target: Path, put: Any = from_file.put_in_place) -> None:
        put(new, target)
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(from_file, "put_in_place", once)
        with pytest.raises(Interrupted):
            run(stack, **outputs)
    run(stack, **outputs, resume=True)
    check(tmp_path / "out.zarr", expected.volume)
    check(tmp_path / "sure.zarr", expected.uncertainty)


def test_an_input_that_changed_meanwhile_is_noticed(stack: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.tif"
    mine.write_bytes(stack.read_bytes())
    with pytest.raises(Interrupted):
        run(mine, tmp_path / "out.zarr", scheduler=interrupted_after(3))
    write_volume(mine, 255 - read_volume(stack).data, SIZE, overwrite=True)
    with pytest.raises(InputError, match="input_modified was"):
        run(mine, tmp_path / "out.zarr", resume=True)


def test_two_runs_of_one_output_do_not_mix(stack: Path, tmp_path: Path) -> None:
    def second(job: Job, numbers: list[int], device: str | None) -> Any:
        with pytest.raises(InputError, match="being made by another run"):
            run(stack, tmp_path / "out.zarr")
        return parts.here(job, numbers, device)

    run(stack, tmp_path / "out.zarr", scheduler=second)
    assert (tmp_path / "out.zarr").is_dir()


def test_a_disk_that_is_too_small_is_told_before_the_work(
    stack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(InputError, match=r"needs about .* GB of disk, of which 0\.0 are free"):
        run(stack, tmp_path / "out.zarr")
    assert list(tmp_path.iterdir()) == []


def test_voxels_that_are_no_numbers_are_named_by_place(stack: Path, tmp_path: Path) -> None:
    data = read_volume(stack).data.astype(np.float32)
    data[20, 30, 70] = np.nan
    data[:, ::2, ::2][20, 15, 35] = 0  # not among those that are measured
    data[20, 31, 71] = np.nan
    write_volume(tmp_path / "in.zarr", data, SIZE)
    with pytest.raises(InputError, match=r"NaN or infinite"):
        run(tmp_path / "in.zarr", tmp_path / "out.zarr")
    assert not (tmp_path / "out.zarr").exists()


COMMAND = """
import sys
from emformer_hub.reconstruction import parts
from emformer_hub.volumes import ome_zarr
from emformer_hub.cli import main
parts.PART_VOXELS = 1
ome_zarr.SMALLEST_LEVEL = 30
{first}
main(sys.argv[1:])
"""
KILLED = """
import os, signal
from emformer_hub.volumes.ome_zarr import OMEZarrWriter
calls, write = iter(range(10**6)), OMEZarrWriter.write
def killed(writer, box, voxels):
    if next(calls) == {after}:
        write(writer, (*box[:2], slice(box[2].start, box[2].start + 16, 1)), voxels[:, :, :16])
        os.kill(os.getpid(), signal.SIGKILL)
    write(writer, box, voxels)
OMEZarrWriter.write = killed
"""
"""Ends the process while it writes a part, after so many others: some of its voxels are on the disk by then."""


def start(stack: Path, output: Path, *words: str, first: str = "") -> subprocess.Popen[str]:
    """The real command, with small blocks and parts."""
    arguments = ["reconstruct", str(stack), str(output), "--model", SKETCH, "--ensemble", "1", *words]
    arguments += ["--tile", ",".join(map(str, TILE)), "--precision", "float32"]
    code = COMMAND.format(first=first)
    return subprocess.Popen([sys.executable, "-c", code, *arguments], stderr=subprocess.PIPE, text=True)


def kill_and_resume(stack: Path, output: Path, moment: float) -> None:
    """Kill the command this many seconds after its first part, if it still runs then, and resume it."""
    process = start(stack, output)
    while process.poll() is None and not done(output):
        time.sleep(0.005)
    time.sleep(moment)
    if process.poll() is None:
        process.send_signal(signal.SIGKILL)
        process.wait()
        check_done(output)
        process = start(stack, output, "--resume")
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0 or "is complete; there is nothing to resume" in errors, errors


def check_done(output: Path) -> None:
    """No part is made twice but the one in flight."""
    numbers = [line.split()[0] for line in done(output)]
    assert len(numbers) == len(set(numbers))


def done(output: Path) -> list[str]:
    file = state_folder(output) / "done"
    return file.read_text().splitlines() if file.exists() else []


def test_killed_and_resumed_gives_the_same_voxels(
    stack: Path, expected: Reconstruction, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ome_zarr, "SMALLEST_LEVEL", 30)  # as in the command
    output = tmp_path / "out.zarr"
    for words in ([], ["--resume"]):
        before = len(done(output))
        process = start(stack, output, *words, first=KILLED.format(after=2))
        _, errors = process.communicate(timeout=600)
        assert process.returncode == -signal.SIGKILL, errors
        assert len(done(output)) == before + 2
        check_done(output)
    run(stack, output, resume=True)
    check(output, expected.volume)
    assert {path.name for path in tmp_path.iterdir()} == {"out.zarr", "out.zarr.json"}


@pytest.mark.slow
def test_killed_at_twenty_moments(stack: Path, expected: Reconstruction, tmp_path: Path) -> None:
    draw = random.Random(0)
    for number in range(20):
        output = tmp_path / f"{number}.zarr"
        kill_and_resume(stack, output, draw.uniform(0, 1.5))
        check(output, expected.volume)
