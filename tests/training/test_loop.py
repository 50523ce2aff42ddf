"""The training command: what it leaves behind, how it resumes, how it fails."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
import tifffile
import torch
import yaml
import zarr
from click.testing import CliRunner, Result
from safetensors.torch import load_file

from emformer_hub.errors import InputError
from emformer_hub.geometry import SectionModel, VoxelSize
from emformer_hub.losses import reconstruction_loss
from emformer_hub.modeling_emformer import EMformerModel
from emformer_hub.modes import MODES
from emformer_hub.processing_emformer import EMformerProcessor
from emformer_hub.training import checkpoint, loop
from emformer_hub.training import run as training_run
from emformer_hub.training.__main__ import command
from emformer_hub.training.loop import learning_rate_share, load_volumes, train
from emformer_hub.training.ranges import SamplingRanges
from emformer_hub.training.recipe import Recipe
from emformer_hub.training.sampling import ClipBatches, TrainingVolume
from emformer_hub.training.validation import VALIDATION_GEOMETRIES, error_quantiles, validation_clips
from emformer_hub.volumes import StoredArray, write_volume
from emformer_hub.volumes.phantom import neuropil

ROOT = Path(__file__).parents[2]
STEPS, CHECKPOINT_EVERY = 16, 4
TINY: dict[str, Any] = {
    "model": {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "window_size": [2, 2, 4],
        "num_basis": 6,
        "num_scale_basis": 3,
        "condition_size": 8,
    },
    "volumes": [{"path": "neuropil.tif", "voxel_size": "8,8,8"}],
    "sampling": {"factor": [1.5, 4, 8], "frames": 4, "rows": 4, "columns": 16},
    "steps": STEPS,
    "batch_size": 2,
    "warmup_steps": 2,
    "checkpoint_every": CHECKPOINT_EVERY,
    "validate_every": 1000,
    "precision": "float32",
}


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")  # runs are compared digit for digit


@pytest.fixture(scope="module")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    tifffile.imwrite(folder / "neuropil.tif", neuropil((32, 48, 128)))
    tifffile.imwrite(folder / "narrow.tif", neuropil((32, 48, 20)))
    return folder


def recipe(folder: Path, **changes: Any) -> Path:
    """The tiny recipe with keys replaced, or left out where the value is ``None``."""
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in {**TINY, **changes}.items() if value is not None}))
    return path


def launch(*launcher: str, output: Path, data_root: Path) -> subprocess.Popen[str]:
    """The training command in a process of its own, with one thread and without the user's Accelerate settings."""
    arguments = ["--recipe", str(recipe(output.parent)), "--data-root", str(data_root), "--output-dir", str(output)]
    environment = {
        **os.environ,
        "ACCELERATE_USE_CPU": "true",
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HOME": str(output.parent / "huggingface"),
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.Popen(
        [sys.executable, *launcher, "finetune", *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> None:
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors


def run_here(output: Path, data_root: Path, *options: str, **changes: Any) -> Result:
    """The command in this process, which is faster."""
    output.parent.mkdir(exist_ok=True)
    arguments = ["--recipe", str(recipe(output.parent, **changes)), "--data-root", str(data_root)]
    return CliRunner().invoke(command, [*arguments, "--output-dir", str(output), *options])


def train_here(output: Path, data_root: Path, resume: bool = False, **changes: Any) -> Path:
    output.parent.mkdir(exist_ok=True)
    train(Recipe.load(recipe(output.parent, **changes)), output, data_root=data_root, resume=resume)
    return output


def records(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]


def losses(output: Path) -> dict[int, set[float]]:
    """All losses that were logged for a step: a resumed run may log the steps after its checkpoint twice."""
    found = defaultdict(set)
    for record in records(output):
        if "loss" in record:
            found[record["step"]].add(record["loss"])
    return dict(found)


def assert_same_weights(found: Path, expected: Path) -> None:
    weights = load_file(found)
    for name, weight in load_file(expected).items():
        assert torch.equal(weights[name], weight), name


def fingerprint(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, data_root: Path) -> Path:
    """An uninterrupted run of the command as the documents give it."""
    output = tmp_path_factory.mktemp("finished") / "run"
    finish(launch("-m", "accelerate.commands.accelerate_cli", "launch", output=output, data_root=data_root))
    return output


# --- what a run leaves -------------------------------------------------------------------------------------------


def test_a_run_leaves_a_model_that_loads(finished: Path) -> None:
    model = EMformerModel.from_pretrained(finished)
    assert model.config.hidden_size == 16
    assert not model.training
    volume = neuropil((16, 16, 16))
    processor = EMformerProcessor.from_pretrained(finished)
    sections = torch.from_numpy(processor.normalise(volume, processor.measure(volume)))[None]
    assert model(sections, 4).reconstruction.isfinite().all()


def test_the_saved_weights_are_the_averaged_ones(finished: Path) -> None:
    assert_same_weights(finished / "model.safetensors", finished / "checkpoint" / "average.safetensors")
    trained = load_file(finished / "checkpoint" / "model.safetensors")
    averaged = load_file(finished / "model.safetensors")
    assert any(not torch.equal(weight, averaged[name]) for name, weight in trained.items())


def test_the_processor_knows_the_errors_of_the_saved_weights(finished: Path, data_root: Path) -> None:
    kept, default = EMformerProcessor.from_pretrained(finished), EMformerProcessor()
    volumes = load_volumes(Recipe.load(finished / "recipe.yaml"), data_root, kept)
    for mode in MODES:
        for name, multiples in kept.error_quantiles[mode].items():
            assert multiples != default.error_quantiles[mode][name]
            assert np.diff([0, *multiples]).min() > 0
        measured = error_quantiles(EMformerModel.from_pretrained(finished), volumes, torch.device("cpu"), mode)
        for name, multiples in vars(measured).items():
            np.testing.assert_allclose(kept.error_quantiles[mode][name], multiples, atol=1e-3)


def test_the_log_holds_every_step_and_the_validation(finished: Path) -> None:
    logged = losses(finished)
    assert list(logged) == list(range(1, STEPS + 1))
    assert all(len(values) == 1 and np.isfinite(list(values)).all() for values in logged.values())
    steps = [record for record in records(finished) if "loss" in record]
    assert all(1.5 <= record["factor"] <= 8 and record["gradient_norm"] >= 0 for record in steps)
    assert np.diff([record["voxels"] for record in steps]).min() > 0
    validation = [record for record in records(finished) if "gain_db" in record]
    assert [(record["volume"], record["geometry"]) for record in validation] == [
        ("neuropil.tif", geometry) for geometry in VALIDATION_GEOMETRIES
    ]
    assert all(np.isfinite(record["gain_db"]) and record["mean_scale"] > 0 for record in validation)


def test_the_recipe_is_kept_with_the_weights(finished: Path) -> None:
    assert Recipe.load(finished / "recipe.yaml") == Recipe.load(recipe(finished.parent))


def test_nothing_pickled_and_nothing_temporary_is_left(finished: Path) -> None:
    suffixes = {path.suffix for path in finished.rglob("*") if path.is_file()}
    assert suffixes == {".json", ".jsonl", ".safetensors", ".yaml"}
    assert [path.name for path in finished.iterdir() if path.name.startswith(".")] == []


def test_training_learns(tmp_path: Path, data_root: Path) -> None:
    sampling = {**TINY["sampling"], "factor": [4, 4, 4], "full_thickness": 1.0}  # one task, undamaged
    chances = ["blur", "contrast", "invert", "noise", "jump", "charging", "jitter", "mask", "local_mask"]
    sampling |= dict.fromkeys(chances, 0.0)
    output = train_here(
        tmp_path / "run", data_root, sampling=sampling, steps=60, checkpoint_every=1000, learning_rate=5e-3
    )
    gains = {record["geometry"]: record["gain_db"] for record in records(output) if "gain_db" in record}
    assert gains["x4"] > 0.2  # dB over cubic interpolation, on columns that training has not seen


def test_training_goes_on_from_given_weights(tmp_path: Path, data_root: Path, finished: Path) -> None:
    still = {"learning_rate": 0.0, "matrix_learning_rate": 0.0, "steps": 2}
    output = train_here(tmp_path / "run", data_root, model=None, base=str(finished), **still)
    assert_same_weights(output / "model.safetensors", finished / "model.safetensors")


def test_sections_that_are_left_out_are_judged_by_what_was_measured(
    tmp_path: Path, data_root: Path, finished: Path
) -> None:
    """Some planes a section, whose mean is the section that the network did not see."""
    still = {"learning_rate": 0.0, "matrix_learning_rate": 0.0, "steps": 1, "batch_size": 1}
    chosen = {
        "base": str(finished),
        "volumes": [{"path": "neuropil.tif", "voxel_size": "32,8,8"}],
        "sampling": {"left_out": 1.0, "frames": 4, "rows": 4, "columns": 16},
    }
    output = train_here(tmp_path / "run", data_root, model=None, **still, **chosen)
    (logged,) = (record["loss"] for record in records(output) if "loss" in record)

    run = Recipe.load(output / "recipe.yaml")
    volumes = load_volumes(run, data_root, EMformerProcessor.from_pretrained(finished))
    batch = ClipBatches(volumes, run.sampling, seed=run.seed, batch_size=1).batch(0)
    asked = ("sections", "factor", "positions", "thickness", "frame_spacing", "section_mask")
    with torch.no_grad():
        out = EMformerModel.from_pretrained(finished)(**{name: batch[name] for name in asked})
    shape = (1, 4, batch["target"].shape[2], batch["planes_per_section"], 16)
    assert shape[3] > 1
    loss, _ = reconstruction_loss(
        out.reconstruction.view(shape).mean(3), out.scale.view(shape).mean(3), batch["target"]
    )
    assert logged == pytest.approx(loss.item(), rel=1e-5)


def test_validation_does_not_disturb_training(tmp_path: Path, data_root: Path) -> None:
    runs = [train_here(tmp_path / f"every{n}", data_root, steps=5, validate_every=n) for n in (2, 1000)]
    assert losses(runs[0]) == losses(runs[1])
    assert_same_weights(runs[0] / "model.safetensors", runs[1] / "model.safetensors")


def test_workers_change_nothing(tmp_path: Path, data_root: Path) -> None:
    runs = [train_here(tmp_path / f"workers{n}", data_root, steps=5, workers=n) for n in (0, 2)]
    assert losses(runs[0]) == losses(runs[1])


def test_a_run_ends_when_its_minutes_are_over(tmp_path: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(step=0.125)  # advances each time that it is looked at
    monkeypatch.setattr("emformer_hub.training.run.time", SimpleNamespace(monotonic=lambda: next(clock)))
    output = train_here(tmp_path / "run", data_root, steps=None, minutes=0.02)
    seconds = [record["seconds"] for record in records(output) if "seconds" in record]
    assert len(seconds) == 3 and seconds[-1] >= 1.2 > max(seconds[:-1])  # it is looked at three times a step
    assert EMformerModel.from_pretrained(output).config.hidden_size == 16


def shares(progress: Iterable[float], step: int = 100, **changes: Any) -> list[float]:
    schedule = Recipe.from_content({**TINY, "warmup_steps": 4, **changes}, "tiny")
    return [learning_rate_share(done, step, schedule) for done in progress]


def test_the_learning_rate_warms_up() -> None:
    assert [shares([0], step)[0] for step in range(5)] == [0.25, 0.5, 0.75, 1, 1]
    assert shares([0], 0, warmup_steps=0) == [1]


@pytest.mark.parametrize("decay", [0.25, 0.5, 1])
def test_the_learning_rate_stays_until_it_falls_to_zero(decay: float) -> None:
    assert set(shares(np.linspace(0, 1 - decay, 20), decay=decay)) == {1}
    assert np.diff(shares(np.linspace(1 - decay, 1, 20), decay=decay)).max() < 0
    assert shares([1 - 0.75 * decay, 1, 1.2], decay=decay) == pytest.approx([0.5, 0, 0])


def test_without_decay_the_learning_rate_never_falls() -> None:
    assert set(shares(np.linspace(0, 1.2, 20), decay=0)) == {1}


# --- volumes on disk ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stored_root(tmp_path_factory: pytest.TempPathFactory, data_root: Path) -> Path:
    """The volume of ``data_root`` in every format that stays on disk."""
    folder, data = tmp_path_factory.mktemp("stored"), tifffile.imread(data_root / "neuropil.tif")
    tifffile.imwrite(folder / "neuropil.tif", data)
    write_volume(folder / "neuropil.zarr", data, VoxelSize(8, 8, 8))
    zarr.create_array(folder / "chunks.zarr", data=data, chunks=(5, 16, 24))
    with h5py.File(folder / "neuropil.h5", "w") as file:
        file.create_dataset("em/raw", data=data, chunks=(8, 8, 32), compression="gzip")
        file.create_dataset("em/labels", data=data.astype(np.uint64))
    return folder


def opened(folder: Path, path: str, **changes: Any) -> list[TrainingVolume]:
    entry = {"path": path, "voxel_size": "8,8,8", **changes}
    return load_volumes(Recipe.from_content({**TINY, "volumes": [entry]}, "tiny"), folder, EMformerProcessor())


@pytest.mark.parametrize("path", ["neuropil.zarr", "chunks.zarr", "neuropil.h5:/em/raw"])
@pytest.mark.parametrize("workers", [0, 2])
def test_every_format_gives_the_same_batches(stored_root: Path, path: str, workers: int) -> None:
    mapped, stored = opened(stored_root, "neuropil.tif"), opened(stored_root, path)
    assert isinstance(mapped[0].data, np.memmap) and isinstance(stored[0].data, StoredArray)
    assert stored[0].statistics == mapped[0].statistics
    ranges = SamplingRanges(frames=4, rows=4, columns=16)
    expected = ClipBatches(mapped, ranges, seed=0, batch_size=2)
    batches = ClipBatches(stored, ranges, seed=0, batch_size=2)
    loader = torch.utils.data.DataLoader(batches, batch_size=None, num_workers=workers)
    for index, found in enumerate(islice(loader, 8)):
        for name, value in expected.batch(index).items():
            if name == "volume":  # called as the file, or the dataset in it
                continue
            np.testing.assert_array_equal(found[name], value, err_msg=name)
    for found, clip in zip(*(validation_clips(v[0], SectionModel(4)) for v in (stored, mapped)), strict=True):
        np.testing.assert_array_equal(found, clip)


def test_a_run_on_stored_volumes_gives_the_same_losses(stored_root: Path, tmp_path: Path) -> None:
    paths = {"tif": ("neuropil.tif", 0), "h5": ("neuropil.h5:/em/raw", 1)}
    runs = [
        train_here(
            tmp_path / name, stored_root, steps=3, workers=workers, volumes=[{"path": path, "voxel_size": "8,8,8"}]
        )
        for name, (path, workers) in paths.items()
    ]
    assert losses(runs[0]) == losses(runs[1])
    assert_same_weights(runs[0] / "model.safetensors", runs[1] / "model.safetensors")


SAMPLE_A_LARGE_VOLUME = """
import re, sys
from pathlib import Path
from emformer_hub.processing_emformer import EMformerProcessor
from emformer_hub.training.loop import load_volumes
from emformer_hub.training.recipe import Recipe
from emformer_hub.training.ranges import SamplingRanges
from emformer_hub.training.sampling import ClipBatches

def memory(name): return 1024 * int(re.search(rf"{name}:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

content = {"volumes": [{"path": "large.zarr", "voxel_size": "8,8,8"}], "base": "emformer-small", "steps": 1}
before = memory("VmRSS")
volumes = load_volumes(Recipe.from_content(content, "large"), Path(sys.argv[1]), EMformerProcessor())
batches = ClipBatches(volumes, SamplingRanges(), seed=0, batch_size=2)
for index in range(20):
    batches.batch(index)
print(volumes[0].data.size, memory("VmHWM") - before)
"""


@pytest.mark.slow
def test_a_volume_may_be_much_larger_than_memory(tmp_path: Path) -> None:
    """One chunk of tissue, linked to wherever a chunk is: 16 GB that take 4 MB of disk."""
    if not Path("/proc/self/status").exists():
        pytest.skip("the peak of a process's memory is read from /proc, which only Linux has")
    counts, chunk = (16, 16, 16), (64, 256, 256)
    shape = tuple(count * side for count, side in zip(counts, chunk, strict=True))
    array = zarr.create_array(tmp_path / "large.zarr", shape=shape, dtype="uint8", chunks=chunk)
    array[: chunk[0], : chunk[1], : chunk[2]] = neuropil(chunk)
    first = tmp_path / "large.zarr" / "c" / "0" / "0" / "0"
    for z, y, x in np.ndindex(counts):
        target = tmp_path / "large.zarr" / "c" / str(z) / str(y) / str(x)
        if target != first:
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(first, target)
    command = [sys.executable, "-c", SAMPLE_A_LARGE_VOLUME, str(tmp_path)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    size, grown = map(int, run.stdout.split())
    assert size == 2**34
    assert grown < 400 * 2**20, grown


# --- alignment ---------------------------------------------------------------------------------------------------


def shaken(folder: Path) -> None:
    """A volume whose every second section is displaced by 20 voxels."""
    data = neuropil((16, 128, 192))
    tifffile.imwrite(folder / "shaken.tif", np.stack([np.roll(s, 20 * (z % 2), 0) for z, s in enumerate(data)]))


def test_a_badly_aligned_volume_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shaken(tmp_path)
    opened(tmp_path, "shaken.tif")
    (warning,) = caplog.messages
    assert warning.startswith("shaken.tif: 15 of 15 neighbouring sections are shifted against each other")


def test_no_warning_where_none_is_due(tmp_path: Path, data_root: Path, caplog: pytest.LogCaptureFixture) -> None:
    shaken(tmp_path)
    opened(tmp_path, "shaken.tif", aligned=False)
    opened(data_root, "neuropil.tif")
    assert caplog.messages == []


# --- interrupted and resumed -------------------------------------------------------------------------------------


def test_a_run_that_its_progress_stops_loses_no_step(data_root: Path, tmp_path: Path) -> None:
    class Stopped(Exception):
        pass

    def stop_at_three(record: dict[str, Any]) -> None:
        shares.append(record["done"])
        if record["step"] == 3:
            raise Stopped

    shares: list[float] = []
    chosen, stopped = Recipe.load(recipe(tmp_path, steps=6)), tmp_path / "stopped"
    with pytest.raises(Stopped):
        train(chosen, stopped, data_root=data_root, progress=stop_at_three)
    assert shares == [1 / 6, 2 / 6, 3 / 6]
    train(chosen, stopped, data_root=data_root, resume=True, progress=lambda record: shares.append(record["done"]))
    assert shares == [step / 6 for step in range(1, 7)]
    whole = train_here(tmp_path / "whole", data_root, steps=6)
    assert losses(stopped) == losses(whole)  # each step once, and the same
    assert_same_weights(stopped / "model.safetensors", whole / "model.safetensors")


def test_a_killed_run_resumes_as_if_nothing_had_happened(
    tmp_path: Path, data_root: Path, finished: Path, killed_after: Callable[[int], list[str]]
) -> None:
    output = tmp_path / "run"
    process = launch(*killed_after(CHECKPOINT_EVERY + 2), output=output, data_root=data_root)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == -signal.SIGKILL, errors
    assert (output / "checkpoint" / "state.json").exists()
    assert not (output / "model.safetensors").exists()

    train_here(output, data_root, resume=True)
    assert losses(output) == losses(finished)
    for weights in ("model.safetensors", "checkpoint/model.safetensors", "checkpoint/optimizer.safetensors"):
        assert_same_weights(output / weights, finished / weights)


def interrupt_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Ctrl-C in the middle of a step, counted from 1."""
    calls, loss = iter(range(1, 10**6)), loop.reconstruction_loss

    def interrupted(*arguments: Any) -> Any:
        if next(calls) == step:
            raise KeyboardInterrupt
        return loss(*arguments)

    monkeypatch.setattr(loop, "reconstruction_loss", interrupted)


@pytest.mark.parametrize("step", [2, 6], ids=["before the first checkpoint", "after it"])
def test_an_interrupted_run_resumes(
    tmp_path: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    whole = train_here(tmp_path / "whole", data_root, steps=8)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_at(patch, step)
        train_here(tmp_path / "run", data_root, steps=8)
    resumed = train_here(tmp_path / "run", data_root, steps=8, resume=True)
    assert losses(resumed) == losses(whole)
    assert_same_weights(resumed / "model.safetensors", whole / "model.safetensors")


def test_a_checkpoint_of_the_plateau_goes_on_as_if_the_run_had_always_been_longer(
    tmp_path: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shorter run has begun to fall when it is interrupted; its checkpoint is from where it begins."""
    whole = train_here(tmp_path / "whole", data_root, steps=3 * CHECKPOINT_EVERY, decay=0.5)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training_run, "CHECKPOINT_SECONDS", 1e9)  # however slow the machine is
        interrupt_at(patch, CHECKPOINT_EVERY + 3)
        train_here(tmp_path / "run", data_root, steps=2 * CHECKPOINT_EVERY, decay=0.5)
    resumed = train_here(tmp_path / "run", data_root, steps=3 * CHECKPOINT_EVERY, decay=0.5, resume=True)
    assert losses(resumed) == losses(whole)
    assert_same_weights(resumed / "model.safetensors", whole / "model.safetensors")


def test_checkpoints_are_written_by_time_too_and_a_resumed_run_says_where_it_starts(
    tmp_path: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training_run, "CHECKPOINT_SECONDS", 0.0)
        patch.setattr(training_run, "WRITING", 1e9)
        interrupt_at(patch, CHECKPOINT_EVERY - 1)
        train_here(tmp_path / "run", data_root, steps=CHECKPOINT_EVERY)
    state = json.loads((tmp_path / "run" / "checkpoint" / "state.json").read_text())
    assert state["step"] == CHECKPOINT_EVERY - 2  # the last one that was finished
    said: list[str] = []
    monkeypatch.setattr(training_run.logger, "info", lambda text, *values: said.append(text % values))
    train_here(tmp_path / "run", data_root, steps=CHECKPOINT_EVERY, resume=True)
    assert said[0] == f"going on after step {state['step']}, {state['seconds']:.0f} s into the training"


def test_a_run_is_not_resumed_with_more_clips_a_step(tmp_path: Path, data_root: Path) -> None:
    """As it would be by another number of processes."""
    run = train_here(tmp_path / "run", data_root, steps=1, batch_size=2)
    with pytest.raises(InputError, match=r"took 2 clips a step, and would now take 3: 3 in each of 1 processes"):
        train_here(run, data_root, steps=2, batch_size=3, resume=True)
    assert max(losses(train_here(run, data_root, steps=2, batch_size=2, resume=True))) == 2


def test_a_checkpoint_cut_off_while_it_was_replaced_is_not_lost(
    tmp_path: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between setting the old checkpoint aside and putting the new one in place, and then once more."""
    run = train_here(tmp_path / "run", data_root, steps=CHECKPOINT_EVERY)
    (run / "checkpoint").rename(run / ".checkpoint.former")

    def full(*arguments: Any) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch, pytest.raises(InputError, match="no space"):
        patch.setattr(checkpoint, "save_file", full)
        train_here(run, data_root, steps=2 * CHECKPOINT_EVERY, resume=True)
    train_here(run, data_root, steps=2 * CHECKPOINT_EVERY, resume=True)
    assert max(losses(run)) == 2 * CHECKPOINT_EVERY


def test_there_must_be_a_checkpoint_to_resume_from(tmp_path: Path, data_root: Path) -> None:
    result = run_here(tmp_path / "run", data_root, "--resume")
    assert result.exit_code == 2
    assert "no checkpoint to resume from; start the run without --resume" in result.stderr


def test_a_second_start_loses_nothing(data_root: Path, finished: Path) -> None:
    before = fingerprint(finished)
    result = run_here(finished, data_root, "--steps", "3", "--seed", "7")
    assert result.exit_code == 2
    assert "already holds a run; add --resume to continue it, or choose another folder" in result.stderr
    assert fingerprint(finished) == before


# --- what cannot work --------------------------------------------------------------------------------------------


def stopped(result: Result) -> str:
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.stderr
    return result.stderr


def test_a_missing_volume_is_named(tmp_path: Path, data_root: Path) -> None:
    error = stopped(run_here(tmp_path / "run", data_root, volumes=[{"path": "lost.tif", "voxel_size": "8,8,8"}]))
    assert "lost.tif does not exist" in error
    assert not (tmp_path / "run").exists()


def test_a_missing_voxel_size_is_asked_for(tmp_path: Path, data_root: Path) -> None:
    error = stopped(run_here(tmp_path / "run", data_root, volumes=[{"path": "neuropil.tif"}]))
    assert "neuropil.tif: the file states no voxel size" in error


def test_a_volume_with_no_columns_left_for_training_is_refused(tmp_path: Path, data_root: Path) -> None:
    error = stopped(run_here(tmp_path / "run", data_root, volumes=[{"path": "narrow.tif", "voxel_size": "8,8,8"}]))
    assert "narrow.tif" in error


@pytest.mark.parametrize("model", [{"hiden_size": 16}, {"hidden_size": "wide"}, {"hidden_size": 15}])
def test_a_model_that_cannot_be_built_is_refused(tmp_path: Path, data_root: Path, model: dict[str, Any]) -> None:
    error = stopped(run_here(tmp_path / "run", data_root, model=model))
    assert next(iter(model)) in error


def test_unknown_base_weights_are_refused(tmp_path: Path, data_root: Path) -> None:
    assert "'nowhere' is not known" in stopped(run_here(tmp_path / "run", data_root, model=None, base="nowhere"))


def test_steps_and_minutes_exclude_each_other(tmp_path: Path, data_root: Path) -> None:
    assert "exclude each other" in stopped(run_here(tmp_path / "run", data_root, "--steps", "3", "--minutes", "1"))


def test_a_missing_recipe_is_named(tmp_path: Path) -> None:
    result = CliRunner().invoke(
        command, ["--recipe", str(tmp_path / "none.yaml"), "--output-dir", str(tmp_path / "run")]
    )
    assert "none.yaml: cannot read the recipe" in stopped(result)


def test_a_loss_that_is_no_number_keeps_the_last_checkpoint(
    tmp_path: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, loss = iter(range(10**6)), loop.reconstruction_loss

    def broken(reconstruction: torch.Tensor, scale: torch.Tensor, target: torch.Tensor) -> Any:
        factor = float("nan") if next(calls) >= CHECKPOINT_EVERY + 1 else 1.0
        return loss(factor * reconstruction, scale, target)

    monkeypatch.setattr(loop, "reconstruction_loss", broken)
    output = tmp_path / "run"
    message = r"the loss is nan at step 5, on neuropil\.tif; the last checkpoint .* is good.*learning_rate"
    with pytest.raises(InputError, match=message):
        train_here(output, data_root)
    assert json.loads((output / "checkpoint" / "state.json").read_text())["step"] == CHECKPOINT_EVERY
    for weights in ("model", "average"):
        kept = load_file(output / "checkpoint" / f"{weights}.safetensors")
        assert all(weight.isfinite().all() for weight in kept.values())


def test_a_process_may_train_in_one_precision_then_in_another(tmp_path: Path, data_root: Path) -> None:
    for precision in ("float32", "bfloat16"):
        result = run_here(tmp_path / precision, data_root, steps=2, precision=precision)
        assert result.exit_code == 0, result.output
