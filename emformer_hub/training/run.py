"""State of a training run: its folder, its clock, and its progress."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import LoggerType
from tqdm import tqdm

from emformer_hub.errors import InputError
from emformer_hub.training.checkpoint import load_checkpoint, save_checkpoint
from emformer_hub.training.optimizer import Muon
from emformer_hub.training.recipe import Recipe
from emformer_hub.training.sampling import TrainingVolume
from emformer_hub.training.trainee import Average, Trainee, put_weights, trained_weights
from emformer_hub.training.validation import VALIDATION_GEOMETRIES, validate

logger = logging.getLogger(__name__)

CHECKPOINT_SECONDS = 5.0
"""What an interruption may cost, more or less; where writing a checkpoint takes long, it is written less often."""
WRITING = 0.02
"""Share of the time that may go into checkpoints."""
ASKING = 0.1
"""Seconds between two looks of a process at whether the first one is done."""

Result = TypeVar("Result")


def check_tracker(name: str | None) -> None:
    """Raise ``InputError`` for a tracker that Accelerate does not know or that is not installed."""
    known = [kind for kind in LoggerType.list() if kind != "all"]
    if name is not None and name not in known:
        raise InputError(f"--report-to {name}: no such tracker; expected one of {', '.join(sorted(known))}.")
    if name is not None and LoggerType(name) not in get_available_trackers():
        raise InputError(f"--report-to {name}: the tracker is not installed; run: pip install {name.replace('_', '-')}")


class Run:
    """A run: what it trains, where it writes, and its progress. Only the first of several processes writes.

    Attributes:
        recipe: all choices.
        output: folder of the run.
        trainee, model: what is trained, and its network.
        muon: optimizer of the weights.
        average: moving average of the weights, which is what the run is for.
        state: ``step``, ``seconds`` of training, ``voxels`` seen, ``clips`` of a step, those of all processes, and
            ``origin``, the fingerprint of the weights that the run starts from. It is kept with each checkpoint.
    """

    def __init__(self, recipe: Recipe, output: Path, accelerator: Accelerator, trainee: Trainee, muon: Muon):
        self.recipe, self.output, self.accelerator = recipe, output, accelerator
        self.trainee, self.model, self.muon = trainee, trainee.model, muon
        self.average = Average(trainee.model, recipe.ema_decay)
        self.state: dict[str, Any] = {"step": 0, "seconds": 0.0, "voxels": 0, "origin": trainee.origin}
        self.state["clips"] = recipe.batch_size * accelerator.num_processes
        self._start, self._seconds_before = time.monotonic(), 0.0
        self._checkpointed, self._pause, self._waits = self._start, CHECKPOINT_SECONDS, 0

    def resume(self) -> None:
        """Put weights, average, optimizer and state back as the folder's checkpoint has them.

        Raises:
            InputError: the folder holds no checkpoint, or one that started from other weights, or took another number
                of clips a step.
        """
        clips = self.state["clips"]
        weights, averaged, state = load_checkpoint(self.output, self.muon, self.trainee.origin)
        if state.setdefault("clips", clips) != clips:
            raise InputError(
                f"{self.output}: the run took {state['clips']} clips a step, and would now take {clips}: "
                f"{self.recipe.batch_size} in each of {self.accelerator.num_processes} processes. Go on with as many "
                f"processes as then, or with a 'batch_size' in the recipe that makes as many clips."
            )
        self.state = state
        if self.accelerator.is_main_process:
            logger.info("going on after step %d, %.0f s into the training", state["step"], state["seconds"])
        put_weights(self.model, weights)
        self.average.weights = {name: weight.to(self.accelerator.device) for name, weight in averaged.items()}

    def begin(self) -> None:
        """Write the recipe, drop log lines of steps that are taken again, and start the clock."""
        if self.accelerator.is_main_process:
            self.output.mkdir(parents=True, exist_ok=True)
            (self.output / "recipe.yaml").write_text(self.recipe.to_yaml())
            _forget_after(self.output / "log.jsonl", self.state["step"])
        if self.recipe.report_to:
            self.accelerator.init_trackers("emformer")
        self._start = self._checkpointed = time.monotonic()
        self._seconds_before = self.state["seconds"]

    def progress(self) -> float:
        """Finished fraction of the run, by its steps or minutes; the same in every process."""
        state, recipe = self.state, self.recipe
        state["seconds"] = self._seconds_before + time.monotonic() - self._start
        share = state["step"] / recipe.steps if recipe.steps else state["seconds"] / (60 * (recipe.minutes or 1))
        if recipe.minutes and self.accelerator.num_processes > 1:  # clocks differ: the first process's decides
            clock = torch.tensor(share, device=self.accelerator.device)
            torch.distributed.broadcast(clock, 0)
            share = float(clock)
        return share

    def log(self, **record: Any) -> None:
        """Append a record to ``log.jsonl``, and send its numbers to the tracker, if there is one."""
        step = self.state["step"]
        if self.accelerator.is_main_process:
            with (self.output / "log.jsonl").open("a") as file:
                file.write(json.dumps({"step": step, **record}) + "\n")
        if self.recipe.report_to:
            where = "/".join(str(record[name]) for name in ("volume", "geometry") if name in record)
            numbers = {name: value for name, value in record.items() if isinstance(value, int | float)}
            self.accelerator.log({f"{where}/{name}".strip("/"): value for name, value in numbers.items()}, step)

    def checkpoint(self) -> None:
        """Replace the folder's checkpoint by the present weights and state."""
        if self.accelerator.is_main_process:
            begin = time.monotonic()
            save_checkpoint(self.output, trained_weights(self.model), self.average.weights, self.muon, self.state)
            self._checkpointed = time.monotonic()
            self._pause = max(CHECKPOINT_SECONDS, (self._checkpointed - begin) / WRITING)

    def checkpoint_if_due(self) -> None:
        """Write a checkpoint where the recipe's steps or some seconds of training have passed since the last one."""
        due = time.monotonic() - self._checkpointed > self._pause
        if due or self.state["step"] % self.recipe.checkpoint_every == 0:
            self.checkpoint()

    def by_the_first(self, work: Callable[[], Result]) -> Result | None:
        """Let the first process do what the others wait for, however long it takes; ``None`` in the others.

        They ask the store that the processes met at, because a collective operation would give up after some minutes.
        """
        if self.accelerator.num_processes == 1:
            return work()
        store = torch.distributed.distributed_c10d._get_default_store()
        self._waits += 1
        done = f"emformer done {self._waits}"
        if self.accelerator.is_main_process:
            try:
                return work()
            finally:
                store.set(done, "")
        while not store.check([done]):
            time.sleep(ASKING)
        return None

    def validate(self, volumes: Sequence[TrainingVolume]) -> None:
        """Log how good the averaged weights are on columns that training does not see."""
        self.by_the_first(lambda: self._validate(volumes))

    def _validate(self, volumes: Sequence[TrainingVolume]) -> None:
        held = self.average.swapped_into(self.model)
        with self.accelerator.autocast():
            records = validate(self.model, volumes, self.accelerator.device)
            total = len(volumes) * len(VALIDATION_GEOMETRIES)
            for record in tqdm(records, "validation", total, leave=False, mininterval=5):
                self.log(**record)
                logger.info("%s %s: %+.2f dB over cubic interpolation", *list(record.values())[:3])
        put_weights(self.model, held)
        self.model.train()


def _forget_after(log: Path, step: int) -> None:
    """Drop log lines of steps that a resumed run takes again."""
    if log.exists():
        lines = [line for line in log.read_text().splitlines(keepends=True) if json.loads(line)["step"] <= step]
        log.write_text("".join(lines))
