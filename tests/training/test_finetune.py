"""Fine-tuning by the real command: what it leaves behind, what it says, and the equalities that it promises."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tifffile
import torch
from click.testing import CliRunner, Result
from safetensors import safe_open

from emformer_hub.cli import main
from emformer_hub.errors import InputError
from emformer_hub.model_files import is_adapter
from emformer_hub.modeling_emformer import EMformerModel
from emformer_hub.processing_emformer import EMformerProcessor
from emformer_hub.training import loop
from emformer_hub.training.__main__ import command
from emformer_hub.training.loop import train
from emformer_hub.training.recipe import Recipe
from emformer_hub.training.report import (
    IN_PLANE,
    LEFT_OUT,
    Comparison,
    check_licence,
    compare_models,
    licence_of,
    verdict,
)
from emformer_hub.volumes.phantom import neuropil

ROOT = Path(__file__).parents[2]
TINY: dict[str, Any] = {
    "model": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "window_size": [2, 2, 4]},
    "volumes": [{"path": "neuropil.tif", "voxel_size": "8,8,8"}],
    "sampling": {"factor": [1.5, 4, 8], "frames": 4, "rows": 4, "columns": 16},
    "steps": 3,
    "batch_size": 1,
}
RECIPE = """
base: {base}
method: lora
volumes: []
sampling: {{frames: 4, rows: 4, columns: 16}}
minutes: 1.0
batch_size: 2
learning_rate: 0.01
warmup_steps: 2
validate_every: 1000
checkpoint_every: 4
precision: float32
"""
STEPS = 10


@pytest.fixture(scope="module", autouse=True)
def on_the_cpu() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")  # runs are compared digit for digit
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a stack of 40 nm sections, a tiny base, and a recipe for them."""
    folder = tmp_path_factory.mktemp("place")
    volume = neuropil((32, 64, 128))
    tifffile.imwrite(folder / "neuropil.tif", volume)
    tifffile.imwrite(folder / "stack.tif", volume[::2])
    tifffile.imwrite(folder / "three.tif", volume[:3])
    train(Recipe.from_content(TINY, "TINY"), folder / "base", data_root=folder)
    (folder / "tiny.yaml").write_text(RECIPE.format(base=folder / "base"))
    return folder


def arguments(place: Path, output: Path, *options: str, steps: int = STEPS) -> list[str]:
    chosen = ["--volume", str(place / "stack.tif"), "--voxel-size", "40,4,4", "--recipe", str(place / "tiny.yaml")]
    return [*chosen, "--output-dir", str(output), "--factor", "4", "--steps", str(steps), *options]


def run_here(place: Path, output: Path, *options: str, steps: int = STEPS) -> Result:
    return CliRunner().invoke(command, arguments(place, output, *options, steps=steps))


def launch(launcher: list[str], given: list[str], **more: Any) -> subprocess.Popen[str]:
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *launcher, "finetune", *given],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **more,
    )


def losses(output: Path) -> dict[int, float]:
    records = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    return {record["step"]: record["loss"] for record in records if "loss" in record}


def checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def refused(result: Result) -> str:
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.stderr
    return result.stderr


@pytest.fixture(scope="module")
def finished(place: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run by ``python finetune``, and what it printed; nothing that libraries warn they will change."""
    output = tmp_path_factory.mktemp("runs") / "mine"
    process = launch(["-W", "error::FutureWarning"], arguments(place, output))
    printed, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    return output, printed


# --- what it leaves behind ---------------------------------------------------------------------------------------


def test_the_folder_is_a_model(finished: tuple[Path, str], place: Path) -> None:
    output, _ = finished
    assert is_adapter(output)
    model, base = EMformerModel.from_pretrained(output), EMformerModel.from_pretrained(place / "base")
    clip = torch.randn(1, 4, 4, 16, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert not torch.equal(model(clip, 4.0).reconstruction, base(clip, 4.0).reconstruction)
    quantiles = EMformerProcessor.from_pretrained(output).error_quantiles
    assert quantiles != EMformerProcessor.from_pretrained(place / "base").error_quantiles
    present = {path.name for path in output.iterdir()}
    assert {"README.md", "recipe.yaml", "log.jsonl", "report.json", "comparison.png"} <= present


def test_checkpoints_hold_the_adapter_and_not_the_base(finished: tuple[Path, str]) -> None:
    for path in (finished[0] / "checkpoint").glob("*.safetensors"):
        with safe_open(path, "pt") as tensors:
            names = list(tensors.keys())
        assert names and all("lora_" in name or path.stem == "optimizer" for name in names)
        assert len(names) <= 3 * 2 * 8


def test_it_ends_with_whether_it_helped(finished: tuple[Path, str]) -> None:
    output, printed = finished
    report = json.loads((output / "report.json").read_text())
    assert printed.strip().endswith(report["verdict"])
    assert {row["task"] for row in report["rows"]} == {"degraded in plane", "section left out"}
    for row in report["rows"]:
        assert row["difference"] == pytest.approx(row["after"] - row["before"])
        assert f"{row['after']:+.2f}" in printed
    card = (output / "README.md").read_text()
    assert report["verdict"] in card and "base_model_relation: adapter" in card


def test_a_factor_of_one_is_judged_by_the_section_left_out(place: Path, tmp_path: Path) -> None:
    given = [word for word in arguments(place, tmp_path / "run", steps=2) if word not in ("--factor", "4")]
    result = CliRunner().invoke(command, [*given, "--factor", "1"])
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert [row["task"] for row in report["rows"]] == ["section left out"]
    assert "where a section was left out" in report["verdict"] and "nan" not in report["verdict"]
    assert not (tmp_path / "run" / "comparison.png").exists()


@pytest.mark.parametrize(
    ("volume", "recipe", "said"), [(1.0, None, "x10 t=1"), (0.0, None, "x10 t=0.1"), (1.0, 0.5, "x10 t=0.5")]
)
def test_a_section_is_left_out_as_thick_as_it_is(place: Path, volume: float, recipe: float | None, said: str) -> None:
    volumes = [{"path": "stack.tif", "voxel_size": "40,4,4", "thickness": volume}]
    chosen = Recipe.load("lora", base=str(place / "base"), volumes=volumes, sampling={"thickness": recipe})
    base = EMformerModel.from_pretrained(place / "base")
    rows = compare_models(base, base, loop.load_volumes(chosen, place, EMformerProcessor()), chosen)
    assert [row.geometry for row in rows if row.task == LEFT_OUT] == [said]


@pytest.mark.parametrize(
    ("in_plane", "left_out", "begins"),
    [
        (
            [0.3, 0.1],
            [0.0],
            "It helped: +0.20 dB (+0.16 to +0.24) on average on held-out columns, and +0.00 dB",
        ),
        ([0.3], [-0.03], "It helped: +0.30 dB"),  # real sections are as before, to the noise of the comparison
        ([0.3, -0.3], [0.5], "No certain difference: +0.00 dB"),
        (
            [0.05],
            [-0.04],
            "No certain difference: +0.05 dB (+0.01 to +0.09) on average on held-out",
        ),
        ([-0.1], [0.1], "It did not help: -0.10 dB"),
        ([0.3], [0.1, -0.2], "Take care: +0.30 dB (+0.26 to +0.34) on average on held-out columns, and -0.20 dB"),
        ([0.3], [], "It helped: +0.30 dB (+0.26 to +0.34) on average on held-out columns."),
        ([], [0.3], "It helped: +0.30 dB (+0.26 to +0.34) on average where a section was left out."),
        ([], [0.03], "No certain difference: +0.03 dB"),
        ([], [], "The volumes are too small to tell"),
    ],
)
def test_the_verdict_is_plain_and_sure(in_plane: list[float], left_out: list[float], begins: str) -> None:
    tasks = [(IN_PLANE, gain) for gain in in_plane] + [(LEFT_OUT, gain) for gain in left_out]
    rows = [
        Comparison("stack", task, "x4 t=1", "bicubic", 1.0, 1.0 + gain, (gain - 0.04, gain + 0.04))
        for task, gain in tasks
    ]
    assert verdict(rows).startswith(begins)


@pytest.mark.parametrize("method", ["full", "head", pytest.param("dora", marks=pytest.mark.slow)])
def test_other_methods_leave_models_too(place: Path, tmp_path: Path, method: str) -> None:
    result = run_here(place, tmp_path / "run", "--method", method, steps=3)
    assert result.exit_code == 0, result.output
    assert is_adapter(tmp_path / "run") == (method == "dora")
    model, base = EMformerModel.from_pretrained(tmp_path / "run"), EMformerModel.from_pretrained(place / "base")
    if method != "dora":
        changed = {name for name, weight in model.state_dict().items() if not weight.equal(base.state_dict()[name])}
        assert changed and (method == "full" or all(name.startswith("decoder.") for name in changed))


def test_only_the_named_sections_are_used(place: Path, tmp_path: Path) -> None:
    volume = tifffile.imread(place / "stack.tif")
    tifffile.imwrite(tmp_path / "stack.tif", volume[2:10])
    whole = run_here(place, tmp_path / "whole", "--sections", "2:10", steps=3)
    cropped = CliRunner().invoke(
        command, [*arguments(place, tmp_path / "cropped", steps=3), "--volume", str(tmp_path / "stack.tif")][2:]
    )
    assert whole.exit_code == cropped.exit_code == 0, whole.output + cropped.output
    assert losses(tmp_path / "whole") == losses(tmp_path / "cropped")


# --- equalities --------------------------------------------------------------------------------------------------


def test_a_killed_run_resumes_digit_for_digit(
    finished: tuple[Path, str], place: Path, tmp_path: Path, killed_after: Callable[[int], list[str]]
) -> None:
    output = tmp_path / "run"
    process = launch(killed_after(6), arguments(place, output))
    _, errors = process.communicate(timeout=600)
    assert process.returncode == -signal.SIGKILL, errors
    assert not is_adapter(output)
    resumed = run_here(place, output, "--resume")
    assert resumed.exit_code == 0, resumed.output
    assert losses(output) == losses(finished[0])
    name = "adapter_model.safetensors"
    assert checksum(output / name) == checksum(finished[0] / name)


def test_two_processes_of_one_clip_equal_one_of_two(finished: tuple[Path, str], place: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "single.yaml"
    recipe.write_text((place / "tiny.yaml").read_text().replace("batch_size: 2", "batch_size: 1"))
    given = [*arguments(place, tmp_path / "two"), "--recipe", str(recipe)]
    launcher = ["-m", "accelerate.commands.accelerate_cli", "launch", "--multi_gpu", "--num_processes", "2"]
    process = launch([*launcher, "--main_process_port", "0"], given)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    together, alone = EMformerModel.from_pretrained(tmp_path / "two"), EMformerModel.from_pretrained(finished[0])
    for name, weight in alone.state_dict().items():
        torch.testing.assert_close(together.state_dict()[name], weight, rtol=0, atol=1e-4)


def test_the_command_takes_the_stack_as_it_is_and_the_same_seed_gives_the_same_weights(
    finished: tuple[Path, str], place: Path, tmp_path: Path
) -> None:
    stack, *options = arguments(place, tmp_path / "run")[1:]
    result = CliRunner().invoke(main, ["finetune", stack, *options])
    assert result.exit_code == 0, result.output
    assert losses(tmp_path / "run") == losses(finished[0])
    name = "adapter_model.safetensors"
    assert checksum(tmp_path / "run" / name) == checksum(finished[0] / name)
    other = CliRunner().invoke(main, ["finetune", stack, *options])
    assert "already holds a run; add --resume" in refused(other)


def test_a_base_in_a_folder_is_found_from_anywhere(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    assert run_here(place, tmp_path / "run", "--base", "base", steps=2).exit_code == 0
    expected = EMformerModel.from_pretrained(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    found = EMformerModel.from_pretrained("run")
    for name, weight in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], weight)


SLOW_VALIDATION = """
import sys, time
from datetime import timedelta
from accelerate.utils import InitProcessGroupKwargs
from emformer_hub.training import loop, run
from emformer_hub.training.__main__ import main

make, validate = loop.make_accelerator, run.validate
impatient = InitProcessGroupKwargs(timeout=timedelta(seconds=20))
loop.make_accelerator = lambda *args, **options: make(*args, **options, kwargs_handlers=[impatient])
run.validate = lambda *args: (time.sleep(30), validate(*args))[1]
main()
"""


@pytest.mark.slow
def test_processes_wait_for_a_validation_of_any_length(place: Path, tmp_path: Path) -> None:
    (tmp_path / "finetune").write_text(SLOW_VALIDATION)
    recipe = tmp_path / "often.yaml"
    recipe.write_text((place / "tiny.yaml").read_text().replace("validate_every: 1000", "validate_every: 2"))
    launcher = ["-m", "accelerate.commands.accelerate_cli", "launch", "--multi_gpu", "--num_processes", "2"]
    given = [*arguments(place, tmp_path / "two", steps=3), "--recipe", str(recipe)]
    environment = {"PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    process = subprocess.run(
        [sys.executable, *launcher, "--main_process_port", "0", "finetune", *given],
        check=False,
        cwd=tmp_path,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", **environment},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert process.returncode == 0, process.stderr
    assert is_adapter(tmp_path / "two")


def test_pieces_of_a_batch_add_up_to_it(finished: tuple[Path, str], place: Path, tmp_path: Path) -> None:
    result = run_here(place, tmp_path / "run", "--memory", "1e-6")  # one clip at a time
    assert result.exit_code == 0, result.output
    for step, loss in losses(finished[0]).items():
        assert losses(tmp_path / "run")[step] == pytest.approx(loss, abs=1e-4)


def test_out_of_memory_goes_on_in_smaller_pieces(
    finished: tuple[Path, str], place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = loop.reconstruction_loss

    def small_device(reconstruction: torch.Tensor, *others: torch.Tensor) -> Any:
        if len(reconstruction) > 1:
            raise torch.OutOfMemoryError("out of memory")
        return loss(reconstruction, *others)

    monkeypatch.setattr(loop, "reconstruction_loss", small_device)
    result = run_here(place, tmp_path / "run")
    assert result.exit_code == 0, result.output
    for step, value in losses(finished[0]).items():
        assert losses(tmp_path / "run")[step] == pytest.approx(value, abs=1e-4)


def test_a_clip_that_does_not_fit_is_said(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*tensors: torch.Tensor) -> Any:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(loop, "reconstruction_loss", no_memory)
    assert "out of memory with 1 clips at a time. Raise 'pieces'" in refused(run_here(place, tmp_path / "run"))


# --- before the work ---------------------------------------------------------------------------------------------


def test_a_dry_run_says_what_it_would_take_and_writes_nothing(place: Path, tmp_path: Path) -> None:
    result = run_here(place, tmp_path / "run", "--dry-run", steps=100)
    assert result.exit_code == 0, result.output
    for word in ("method       lora", "trained", "memory", "a step", "steps        100", "time"):
        assert word in result.output
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sections", "0:3"], "stack.tif has 3 sections; training takes clips of at least 4"),
        (["--sections", "4:99"], "stack.tif has 16 sections, 0 to 15; sections 4:99 are not all there"),
        (["--sections", "4-9"], "sections '4-9' is not A:B"),
        (["--voxel-size", "4,4,40"], "is the order right"),
        (["--method", "lore"], "method is 'lore'; expected one of full, head, lora, dora"),
        (["--factor", "40"], "anisotropy factor is 40; expected 1 to 16"),
        (["--thickness", "4"], "section thickness is 4"),
        (["--base", "emformer-smal"], "model 'emformer-smal' is not known; expected one of emformer-small"),
        (["--report-to", "aim"], "--report-to aim: the tracker is not installed; run: pip install aim"),
        (["--report-to", "tensorbord"], "--report-to tensorbord: no such tracker; expected one of aim, .*tensorboard"),
        (["--recipe", "lorra"], "recipe 'lorra' is not known; expected one of .*lora"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(
    place: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    error = refused(run_here(place, tmp_path / "run", *options))
    assert __import__("re").search(message, error), error
    assert not (tmp_path / "run").exists()


def test_a_licence_that_does_not_follow_is_asked_for_before_the_work() -> None:
    def recipe(licence: str | None) -> Recipe:
        return Recipe.load("lora", volumes=[{"path": "stack.tif", "licence": licence}])

    with pytest.raises(
        InputError, match=r"emformer-small: cc-by-4.0, stack.tif: not known\). Give the volumes' with --lic"
    ):
        check_licence(recipe(None))
    check_licence(recipe("CC BY-NC 4.0"))
    assert licence_of(recipe("CC BY-NC 4.0")) == "cc-by-nc-4.0"


def test_a_file_without_a_voxel_size_says_which_option_states_it(place: Path, tmp_path: Path) -> None:
    given = [word for word in arguments(place, tmp_path / "run") if word not in ("--voxel-size", "40,4,4")]
    assert "states no voxel size; give --voxel-size Z,Y,X" in refused(CliRunner().invoke(command, given))


@pytest.mark.parametrize("sharding", ["FSDP", "DEEPSPEED"])
def test_sharding_is_refused_with_the_reason(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sharding: str
) -> None:
    monkeypatch.setenv(f"ACCELERATE_USE_{sharding}", "true")  # as accelerate launch --use_fsdp sets it
    assert "There is nothing to shard" in refused(run_here(place, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_of_another_base_is_refused(place: Path, tmp_path: Path) -> None:
    assert run_here(place, tmp_path / "run", steps=2).exit_code == 0
    more = {**TINY, "seed": 1}
    train(Recipe.from_content(more, "more"), tmp_path / "other", data_root=place)
    before = checksum(tmp_path / "run" / "checkpoint" / "model.safetensors")
    error = refused(run_here(place, tmp_path / "run", "--base", str(tmp_path / "other"), "--resume"))
    assert "belongs to a run that started from other weights" in error
    assert checksum(tmp_path / "run" / "checkpoint" / "model.safetensors") == before


def test_a_full_disk_keeps_the_last_checkpoint(place: Path, tmp_path: Path) -> None:
    assert run_here(place, tmp_path / "run", steps=2).exit_code == 0
    before = checksum(tmp_path / "run" / "checkpoint" / "model.safetensors")

    def no_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8000, 8000))

    process = launch([], arguments(place, tmp_path / "run", "--resume"), preexec_fn=no_room)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 2, errors
    assert "cannot be written" in errors and "continue with --resume" in errors
    assert checksum(tmp_path / "run" / "checkpoint" / "model.safetensors") == before
    resumed = run_here(place, tmp_path / "run", "--resume")
    assert resumed.exit_code == 0, resumed.output
