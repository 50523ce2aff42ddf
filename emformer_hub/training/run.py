"""State of a training run: its folder, its clock, and its progress."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from emformer_hub.training.checkpoint import load_checkpoint, save_checkpoint
from emformer_hub.training.optimizer import Muon
from emformer_hub.training.recipe import Recipe
from emformer_hub.training.sampling import TrainingVolume
from emformer_hub.training.trainee import Average, Trainee, put_weights, trained_weights
from emformer_hub.training.validation import validate

logger = logging.getLogger(__name__)


class Run:
    """A run: what it trains, where it writes, and its progress. Only the first of several processes writes.

    Attributes:
        recipe: all choices.
        output: folder of the run.
        trainee, model: what is trained, and its network.
        muon: optimizer of the weights.
        average: moving average of the weights, which is what the run is for.
        state: ``step``, ``seconds`` of training, ``voxels`` seen, and ``origin``, the fingerprint of the weights that
            the run starts from. It is kept with each checkpoint.
    """

    def __init__(self, recipe: Recipe, output: Path, accelerator: Accelerator, trainee: Trainee, muon: Muon):
        self.recipe, self.output, self.accelerator = recipe, output, accelerator
        self.trainee, self.model, self.muon = trainee, trainee.model, muon
        self.average = Average(trainee.model, recipe.ema_decay)
        self.state: dict[str, Any] = {"step": 0, "seconds": 0.0, "voxels": 0, "origin": trainee.origin}
        self._start, self._seconds_before = time.monotonic(), 0.0

    def resume(self) -> None:
        """Put weights, average, optimizer and state back as the folder's checkpoint has them.

        Raises:
            InputError: the folder holds no checkpoint, or one that started from other weights.
        """
        weights, averaged, self.state = load_checkpoint(self.output, self.muon, self.trainee.origin)
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
        self._start, self._seconds_before = time.monotonic(), self.state["seconds"]

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
            save_checkpoint(self.output, trained_weights(self.model), self.average.weights, self.muon, self.state)

    def validate(self, volumes: Sequence[TrainingVolume]) -> None:
        """Log how good the averaged weights are on columns that training does not see."""
        if not self.accelerator.is_main_process:
            return
        held = self.average.swapped_into(self.model)
        with self.accelerator.autocast():
            for record in validate(self.model, volumes, self.accelerator.device):
                self.log(**record)
                logger.info("%s %s: %+.2f dB over cubic interpolation", *list(record.values())[:3])
        put_weights(self.model, held)
        self.model.train()


def _forget_after(log: Path, step: int) -> None:
    """Drop log lines of steps that a resumed run takes again."""
    if log.exists():
        lines = [line for line in log.read_text().splitlines(keepends=True) if json.loads(line)["step"] <= step]
        log.write_text("".join(lines))
