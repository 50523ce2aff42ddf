"""The training loop: the same on one CPU and on many GPUs."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from tqdm import tqdm

from emformer_hub.configuration_emformer import EMformerConfig
from emformer_hub.devices import choose_device, choose_precision
from emformer_hub.errors import InputError
from emformer_hub.geometry import VoxelSize
from emformer_hub.measurement import alignment_note
from emformer_hub.modeling_emformer import EMformerModel
from emformer_hub.processing_emformer import EMformerProcessor
from emformer_hub.training.checkpoint import load_checkpoint, save_checkpoint
from emformer_hub.training.losses import reconstruction_loss
from emformer_hub.training.optimizer import Muon
from emformer_hub.training.recipe import Recipe
from emformer_hub.training.sampling import ClipBatches, TrainingVolume
from emformer_hub.training.validation import error_quantiles, validate
from emformer_hub.volumes import open_volume

logger = logging.getLogger(__name__)


def load_volumes(
    recipe: Recipe, data_root: Path, processor: EMformerProcessor, *, check_alignment: bool = True
) -> list[TrainingVolume]:
    """Open the recipe's volumes, on disk where possible; voxel sizes come from the recipe, else from the file.

    With ``check_alignment``, a warning is logged for a volume that is badly aligned and not marked so.
    """
    volumes = []
    for entry in recipe.volumes:
        volume = open_volume(data_root / entry.path)
        voxel_size = VoxelSize.parse(entry.voxel_size) if entry.voxel_size else volume.voxel_size
        if voxel_size is None:
            raise InputError(f"{entry.path}: the file states no voxel size; give voxel_size: Z,Y,X (nm) in the recipe.")
        statistics = processor.measure(volume.data)
        if check_alignment and entry.aligned and (note := alignment_note(volume.data)):
            logger.warning("%s: %s", entry.path, note)
        volumes.append(
            TrainingVolume(entry.path, volume.data, voxel_size, statistics, entry.weight, entry.holdout, entry.aligned)
        )
    return volumes


def build_config(fields: dict[str, Any]) -> EMformerConfig:
    """The recipe's ``model``; raises ``InputError`` for an unknown field or a network that cannot be built."""
    for name in fields:
        if name not in EMformerConfig.__annotations__:
            raise InputError(
                f"model: unknown field {name!r}; valid fields are {', '.join(EMformerConfig.__annotations__)}."
            )
    try:
        return EMformerConfig(**fields)
    except StrictDataclassError as error:
        raise InputError(f"model: {error}") from error


class Average:
    """Exponential moving average of weights, slow only after as many steps as it spans."""

    def __init__(self, model: EMformerModel, decay: float):
        self.decay = decay
        self.weights = {name: weight.detach().clone() for name, weight in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: EMformerModel, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, weight in model.state_dict().items():
            self.weights[name].lerp_(weight, 1 - decay)

    def swapped_into(self, model: EMformerModel) -> dict[str, Tensor]:
        """Put the average into the model; return what it held, for ``load_state_dict``."""
        held = {name: weight.clone() for name, weight in model.state_dict().items()}
        model.load_state_dict(self.weights)
        return held


def make_trainable(model: EMformerModel, recipe: Recipe, device: torch.device, dtype: torch.dtype) -> Muon:
    """Give a model the attention that trains fastest in ``dtype`` on ``device``; return its optimizer."""
    if device.type == "cpu" and dtype == torch.bfloat16:
        model.set_attn_implementation("eager")  # the backward pass of fused attention takes 4 times as long there
    return Muon(
        model,
        learning_rate=recipe.learning_rate,
        matrix_learning_rate=recipe.matrix_learning_rate,
        weight_decay=recipe.weight_decay,
    )


def learning_rate_share(progress: float, step: int, recipe: Recipe) -> float:
    """Linear warm-up over steps, a plateau, and a fall to zero (``1 - sqrt``) over the last part of the run.

    A. Hagele et al., "Scaling laws and compute-optimal training beyond fixed training durations", NeurIPS 2024.
    """
    warm = min(1.0, (step + 1) / max(1, recipe.warmup_steps))
    into_decay = max(0.0, min(1.0, progress) - (1 - recipe.decay)) / recipe.decay if recipe.decay else 0.0
    return warm * (1 - math.sqrt(into_decay))


def train(recipe: Recipe, output: Path, *, data_root: Path = Path(), resume: bool = False) -> Path:
    """Train by self-supervision and save the averaged weights, config and processor to ``output``.

    Args:
        recipe: all choices.
        output: folder of the run: weights, ``checkpoint/``, ``recipe.yaml`` and ``log.jsonl``.
        data_root: what volume paths are relative to.
        resume: go on from the folder's checkpoint. With ``steps``, losses equal those of an uninterrupted run.

    Returns:
        ``output``, which :meth:`EMformerModel.from_pretrained` loads.

    Raises:
        InputError: a volume is unusable, the folder holds another run, or the loss is no longer finite (the last good
            checkpoint stays).
    """
    if not resume and (output / "log.jsonl").exists():
        raise InputError(f"{output} holds another run; add --resume to go on with it, or choose another folder.")
    dtype = choose_precision(recipe.precision, choose_device())
    accelerator = Accelerator(mixed_precision="bf16" if dtype == torch.bfloat16 else "no")
    set_seed(recipe.seed)
    processor = EMformerProcessor()
    volumes = load_volumes(recipe, data_root, processor, check_alignment=accelerator.is_main_process)
    if recipe.base is not None:
        model = EMformerModel.from_pretrained(recipe.base)
    else:
        model = EMformerModel(build_config(recipe.model or {}))
    muon = make_trainable(model, recipe, accelerator.device, dtype)
    wrapped, optimizer = accelerator.prepare(model, muon)
    average = Average(model, recipe.ema_decay)
    state: dict[str, Any] = {"step": 0, "seconds": 0.0, "voxels": 0}
    if resume:
        weights, averaged, state = load_checkpoint(output, muon)
        model.load_state_dict(weights)
        average.weights = {name: weight.to(accelerator.device) for name, weight in averaged.items()}
    batches = ClipBatches(
        volumes,
        recipe.sampling,
        seed=recipe.seed,
        batch_size=recipe.batch_size,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        start=state["step"],
    )
    loader = torch.utils.data.DataLoader(
        batches, batch_size=None, num_workers=recipe.workers, pin_memory=accelerator.device.type == "cuda"
    )

    if accelerator.is_main_process:
        output.mkdir(parents=True, exist_ok=True)
        (output / "recipe.yaml").write_text(recipe.to_yaml())
        _forget_after(output / "log.jsonl", state["step"])

    def log(**record: Any) -> None:
        if accelerator.is_main_process:
            with (output / "log.jsonl").open("a") as file:
                file.write(json.dumps({"step": state["step"], **record}) + "\n")

    def checkpoint() -> None:
        if accelerator.is_main_process:
            save_checkpoint(output, model.state_dict(), average.weights, muon, state)

    def measure() -> None:
        if accelerator.is_main_process:
            _validate(model, average, volumes, accelerator, log)

    session_start, seconds_before = time.monotonic(), state["seconds"]

    def progress() -> float:
        state["seconds"] = seconds_before + time.monotonic() - session_start
        share = state["step"] / recipe.steps if recipe.steps else state["seconds"] / (60 * (recipe.minutes or 1))
        if recipe.minutes and accelerator.num_processes > 1:  # clocks differ: the first process's decides
            clock = torch.tensor(share, device=accelerator.device)
            torch.distributed.broadcast(clock, 0)
            share = float(clock)
        return share

    if not resume:
        checkpoint()  # whatever stops the run from here on, it can be resumed
    bar = tqdm(total=1000, unit="‰", disable=not accelerator.is_main_process, mininterval=5)
    stream = iter(loader)
    while (done := progress()) < 1:
        muon.set_share(learning_rate_share(done, state["step"], recipe))
        batch = next(stream)
        target = batch.pop("target").to(accelerator.device)
        for name in ("sections", "section_mask"):
            batch[name] = batch[name].to(accelerator.device)
        out = wrapped(**batch)
        loss, parts = reconstruction_loss(out.reconstruction, out.scale, target)
        if not torch.isfinite(loss):
            raise InputError(
                f"the loss is {loss.item()} at step {state['step']}; the last checkpoint in {output} is good. "
                f"Lower learning_rate, or look for damaged voxels in the volumes."
            )
        accelerator.backward(loss)
        norm = accelerator.clip_grad_norm_(model.parameters(), recipe.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        state["step"] += 1
        state["voxels"] += target.numel() * accelerator.num_processes
        average.update(model, state["step"])
        progress()
        log(
            loss=loss.item(),
            **{name: value.item() for name, value in parts.items()},
            factor=batch["factor"],
            gradient_norm=float(norm),
            seconds=round(state["seconds"], 2),
            voxels=state["voxels"],
        )
        bar.update(int(1000 * done) - bar.n)
        if state["step"] % recipe.checkpoint_every == 0:
            checkpoint()
        if state["step"] % recipe.validate_every == 0:
            measure()
    bar.close()
    checkpoint()
    measure()
    if accelerator.is_main_process:
        average.swapped_into(model)
        if (quantiles := error_quantiles(model, volumes, accelerator.device)) is not None:
            processor.calibrate(quantiles)
        model.save_pretrained(output)
        processor.save_pretrained(output)
    accelerator.wait_for_everyone()
    return output


def _forget_after(log: Path, step: int) -> None:
    """Drop log lines of steps that a resumed run takes again."""
    if log.exists():
        lines = [line for line in log.read_text().splitlines(keepends=True) if json.loads(line)["step"] <= step]
        log.write_text("".join(lines))


def _validate(
    model: EMformerModel,
    average: Average,
    volumes: list[TrainingVolume],
    accelerator: Accelerator,
    log: Callable[..., None],
) -> None:
    held = average.swapped_into(model)
    with accelerator.autocast():
        for record in validate(model, volumes, accelerator.device):
            log(**record)
            logger.info("%s %s: %+.2f dB over cubic interpolation", *list(record.values())[:3])
    model.load_state_dict(held)
    model.train()
