"""The training loop: the same on one CPU and on many GPUs."""

from __future__ import annotations

import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState
from accelerate.utils import parse_flag_from_env, set_seed
from torch import Tensor, nn
from tqdm import tqdm

from emformer_hub.configuration_emformer import EMformerConfig
from emformer_hub.datasets.entry import VolumeEntry
from emformer_hub.devices import choose_device, choose_precision, empty_cache, is_out_of_memory, peak_memory
from emformer_hub.errors import InputError
from emformer_hub.geometry import VoxelSize
from emformer_hub.inspection import alignment_note, section_shifts
from emformer_hub.losses import judged_value, reconstruction_loss, section_means
from emformer_hub.modeling_emformer import EMformerModel
from emformer_hub.modes import MODES
from emformer_hub.processing_emformer import EMformerProcessor
from emformer_hub.training.optimizer import Muon
from emformer_hub.training.recipe import Recipe
from emformer_hub.training.report import write_report
from emformer_hub.training.run import Run, check_tracker
from emformer_hub.training.sampling import ISOTROPIC_WITHIN, ClipBatches, TrainingVolume
from emformer_hub.training.trainee import Trainee, trained_weights
from emformer_hub.training.validation import error_quantiles
from emformer_hub.volumes import open_volume
from emformer_hub.volumes.remote import is_url
from emformer_hub.volumes.stored import cropped
from emformer_hub.volumes.unmeasured import measured_box, unmeasured_in

logger = logging.getLogger(__name__)

Progress = Callable[[dict[str, Any]], None]

CLIPS = ("sections", "section_mask", "target", "independent")
"""Entries of a batch that are stacked clip by clip."""
SETTLING = 1.0
"""Seconds between the last message of several processes and the end of their connections. A thread of Gloo that lets go
of that message needs the interpreter's lock, which the end of the connections holds while it waits for the thread."""
BYTES_PER_TOKEN = 80
"""Memory that a training step keeps, per channel and layer; measured in float32 on a CPU (benchmarks/speed.py), rounded
up."""


def training_device() -> torch.device:
    """Device that Accelerate is to train on: the CPU if ``accelerate launch`` says so, else a GPU if there is one."""
    return choose_device("cpu" if parse_flag_from_env("ACCELERATE_USE_CPU") else None)


def make_accelerator(dtype: torch.dtype, **options: Any) -> Accelerator:
    """Make what puts the network on its device and computes in ``dtype``, whatever this process trained in before.

    Raises:
        InputError: ``accelerate launch`` is set to shard the weights.
    """
    AcceleratorState._reset_state()  # which holds the precision; the processes and their connections stay
    if os.environ.get("ACCELERATE_USE_FSDP") == "true" or os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        raise InputError(
            "accelerate launch is set to shard the weights (FSDP or DeepSpeed). There is nothing to shard: weights, "
            "gradients and optimizer of the largest EMformer take 0.1 GB. Use finetune/accelerate/many-gpu.yaml."
        )
    return Accelerator(mixed_precision="bf16" if dtype == torch.bfloat16 else "no", **options)


def load_volumes(
    recipe: Recipe, data_root: Path, processor: EMformerProcessor, *, check_alignment: bool = True
) -> list[TrainingVolume]:
    """Open the recipe's volumes, on disk where possible; voxel sizes come from the recipe, else from the file.

    With ``check_alignment``, a warning is logged for a volume that is badly aligned and not marked so.
    """
    volumes = []
    for entry in recipe.volumes:
        path, mask = (one if is_url(one) else data_root / one for one in (entry.path, entry.mask or ""))
        volume = open_volume(path, nodata=entry.nodata, mask=mask if entry.mask else None)
        voxel_size = VoxelSize.parse(entry.voxel_size) if entry.voxel_size else volume.voxel_size
        if voxel_size is None:
            raise InputError(
                f"{entry.path}: the file states no voxel size; give --voxel-size Z,Y,X in nm, or voxel_size in a "
                f"recipe or table."
            )
        if voxel_size.z * ISOTROPIC_WITHIN < voxel_size.lateral:
            raise InputError(
                f"{entry.path}: z is finer than y and x in the voxel size {voxel_size}; expected sections at least as "
                f"far apart as pixels. Voxel sizes are given as Z,Y,X; is the order right?"
            )
        data, unmeasured = volume.data, unmeasured_in(volume.data, volume.hidden)
        used = parse_sections(entry, len(data)) if entry.sections else slice(0, len(data))
        box = (used, slice(0, data.shape[1]), slice(0, data.shape[2]))
        statistics = processor.measure(cropped(data, box), None if unmeasured is None else cropped(unmeasured, box))
        if unmeasured is not None:
            box = measured_box(unmeasured, box)
            part = ",".join(f"{side.start}:{side.stop}" for side in box)
            logger.warning("%s: it was measured throughout in %s (z, y, x); training uses this part.", entry.path, part)
        data = volume.data[box] if entry.sections else cropped(volume.data, box)
        if check_alignment and entry.aligned and (note := alignment_note(section_shifts(data))):
            logger.warning("%s: %s Or mark it `aligned: false`, so that clips are single sections.", entry.path, note)
        name = Path(entry.path).name
        volumes.append(
            TrainingVolume(
                name,
                data,
                voxel_size,
                statistics,
                weight=entry.weight,
                holdout=entry.holdout,
                aligned=entry.aligned,
                thickness=entry.thickness,
            )
        )
    return volumes


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


def pieces_of(recipe: Recipe, config: EMformerConfig) -> int:
    """Number of pieces that a batch is computed in: as the recipe says, or as few as fit into its ``memory``."""
    if recipe.memory is None:
        return recipe.pieces
    ranges = recipe.sampling
    tokens = ranges.frames * ranges.rows * ranges.columns / config.patch_size
    clip = BYTES_PER_TOKEN * tokens * config.hidden_size * config.num_hidden_layers
    at_once = max(1, int(recipe.memory * 1e9 / clip))
    return math.ceil(recipe.batch_size / at_once)


def learning_rate_share(progress: float, step: int, recipe: Recipe) -> float:
    """Linear warm-up over steps, a plateau, and a fall to zero (``1 - sqrt``) over the last part of the run.

    A. Hagele et al., "Scaling laws and compute-optimal training beyond fixed training durations", NeurIPS 2024.
    """
    warm = min(1.0, (step + 1) / max(1, recipe.warmup_steps))
    into_decay = max(0.0, min(1.0, progress) - (1 - recipe.decay)) / recipe.decay if recipe.decay else 0.0
    return warm * (1 - math.sqrt(into_decay))


def parse_sections(entry: VolumeEntry, count: int) -> slice:
    """``"A:B"`` of an entry, the first section that is used and the one after the last, of ``count``."""
    parts = str(entry.sections).split(":")
    try:
        first, last = (int(part) if part.strip() else end for part, end in zip(parts, (0, count), strict=True))
    except ValueError:
        raise InputError(f"sections {entry.sections!r} is not A:B, two numbers of sections, as in 0:16.") from None
    if not 0 <= first < last <= count:
        raise InputError(
            f"{entry.path} has {count} sections, 0 to {count - 1}; sections {entry.sections} are not all there."
        )
    return slice(first, last)


class Gradients:
    """Forward and backward passes of a batch, in as few successive pieces as memory allows; the sum is the same."""

    def __init__(self, accelerator: Accelerator, network: nn.Module, pieces: int):
        self.accelerator, self.network, self.pieces = accelerator, network, pieces

    def add(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Add the gradients of a batch to those of the weights; return its losses, ``loss`` first.

        Raises:
            InputError: not even one clip fits into memory, or, with several processes, not this piece of the batch.
        """
        while True:
            try:
                return self._add(batch)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                clips = len(batch["target"])
                if self.pieces >= clips or self.accelerator.num_processes > 1:
                    raise InputError(
                        f"out of memory with {math.ceil(clips / self.pieces)} clips at a time. Raise 'pieces' in the "
                        f"recipe, or make the clips smaller: 'columns', 'rows', 'frames' under 'sampling'."
                    ) from error
                self.pieces = min(2 * self.pieces, clips)
                logger.warning("out of memory: continuing with each batch in %d pieces", self.pieces)
            self.network.zero_grad()
            empty_cache(self.accelerator.device)

    def _add(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        shared = {name: value for name, value in batch.items() if name not in CLIPS}
        planes = shared.pop("planes_per_section", None)
        split = (batch[name].tensor_split(min(self.pieces, len(batch[name]))) for name in CLIPS)
        pieces = [dict(zip(CLIPS, piece, strict=True)) for piece in zip(*split, strict=True)]
        sums: dict[str, Tensor] = {}
        for number, piece in enumerate(pieces, start=1):
            piece = {name: tensor.to(self.accelerator.device) for name, tensor in piece.items()}
            target, independent = piece.pop("target"), piece.pop("independent")
            share = len(target) / len(batch["target"])
            waiting = self.accelerator.no_sync(self.network) if number < len(pieces) else nullcontext()
            with waiting:
                out = self.network(**piece, **shared)
                if planes is None:
                    value, scale = judged_value(out.reconstruction, independent, {**piece, **shared}), out.scale
                else:
                    value, scale = (section_means(each, planes) for each in (out.reconstruction, out.scale))
                loss, parts = reconstruction_loss(value, scale, target)
                self.accelerator.backward(share * loss if share < 1 else loss)
            for name, value in {"loss": loss.detach(), **parts}.items():
                sums[name] = sums.get(name, 0) + share * value
        return sums


def train(
    recipe: Recipe,
    output: Path,
    *,
    data_root: Path = Path(),
    resume: bool = False,
    progress: Progress = lambda record: None,
) -> str | None:
    """Train by self-supervision and save the averaged weights, or the adapter, and the processor to ``output``.

    Args:
        recipe: all choices.
        output: folder of the run: weights, ``checkpoint/``, ``recipe.yaml`` and ``log.jsonl``.
        data_root: folder that volume paths are relative to.
        resume: continue from the folder's checkpoint. With ``steps``, losses equal those of an uninterrupted run.
        progress: called after each step with its record of ``log.jsonl``, and ``done``, the finished fraction of the
            run. What it raises ends the run, which can be resumed from there.

    Returns:
        Whether it helped, as a table and a sentence, if the recipe has a base and this is the first process. The same
        is in the folder as ``report.json`` and, with a picture, ``README.md``.

    Raises:
        InputError: a volume is unusable, the folder holds another run, the tracker is not installed, or the loss is no
            longer finite (the last good checkpoint stays).
    """
    if not resume and (output / "log.jsonl").exists():
        raise InputError(f"{output} already holds a run; add --resume to continue it, or choose another folder.")
    check_tracker(recipe.report_to)
    dtype = choose_precision(recipe.precision, training_device())
    accelerator = make_accelerator(dtype, log_with=recipe.report_to, project_dir=output)
    recipe = recipe.with_tables_read(data_root)
    set_seed(recipe.seed)
    processor = EMformerProcessor.from_pretrained(recipe.base) if recipe.base else EMformerProcessor()
    volumes = load_volumes(recipe, data_root, processor, check_alignment=accelerator.is_main_process)
    trainee = Trainee(recipe)
    muon = make_trainable(trainee.model, recipe, accelerator.device, dtype)
    network, optimizer = accelerator.prepare(trainee.model, muon)
    run = Run(recipe, output, accelerator, trainee, muon)
    if resume:
        run.resume()
    loader = _loader(recipe, volumes, accelerator, run.state["step"])
    run.begin()
    if not resume:
        run.checkpoint()  # whatever stops the run from here on, it can be resumed
    gradients = Gradients(accelerator, network, pieces_of(recipe, trainee.model.config))
    _take_steps(run, iter(loader), gradients, optimizer, volumes, progress)
    run.checkpoint()
    run.validate(volumes)
    report = run.by_the_first(lambda: _save_result(run, processor, volumes))
    accelerator.wait_for_everyone()
    if accelerator.num_processes > 1:
        time.sleep(SETTLING)
    accelerator.end_training()
    return report


def _loader(
    recipe: Recipe, volumes: list[TrainingVolume], accelerator: Accelerator, start: int
) -> torch.utils.data.DataLoader:
    """The batches of this process from step ``start`` on."""
    batches = ClipBatches(
        volumes,
        recipe.sampling,
        seed=recipe.seed,
        batch_size=recipe.batch_size,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        start=start,
    )
    return torch.utils.data.DataLoader(
        batches,
        batch_size=None,
        num_workers=recipe.workers,
        pin_memory=accelerator.device.type == "cuda",
        # a fork of a process in which TensorStore has opened a volume must not use it
        multiprocessing_context="spawn" if recipe.workers and "tensorstore" in sys.modules else None,
    )


def _take_steps(
    run: Run,
    batches: Iterator[dict[str, Any]],
    gradients: Gradients,
    optimizer: AcceleratedOptimizer,
    volumes: list[TrainingVolume],
    progress: Progress,
) -> None:
    """Train until the steps or minutes of the recipe are over, with checkpoints and validation on the way.

    Raises:
        InputError: the loss is no longer finite.
    """
    recipe, state, accelerator = run.recipe, run.state, run.accelerator
    bar = tqdm(total=1000, unit="‰", disable=not accelerator.is_main_process, mininterval=5)
    while (done := run.progress()) < 1:
        run.muon.set_share(learning_rate_share(done, state["step"], recipe))
        batch = next(batches)
        source = batch.pop("volume")
        losses = gradients.add(batch)
        if not torch.isfinite(losses["loss"]):
            raise InputError(
                f"the loss is {losses['loss'].item()} at step {state['step']}, on {source}; the last checkpoint in "
                f"{run.output} is good. Lower learning_rate, or look for damaged voxels in that volume."
            )
        norm = accelerator.clip_grad_norm_(run.model.parameters(), recipe.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        state["step"] += 1
        state["voxels"] += batch["target"].numel() * accelerator.num_processes
        run.average.update(run.model, state["step"])
        so_far = run.progress()
        record = {
            **{name: value.item() for name, value in losses.items()},
            "factor": batch["factor"],
            "gradient_norm": float(norm),
            "seconds": round(state["seconds"], 2),
            "voxels": state["voxels"],
        }
        run.log(**record)
        bar.update(int(1000 * done) - bar.n)
        run.checkpoint_if_due()
        if state["step"] % recipe.validate_every == 0:
            run.validate(volumes)
        try:
            progress({"step": state["step"], **record, "done": so_far})
        except BaseException:
            run.checkpoint()
            raise
    bar.close()


def _save_result(run: Run, processor: EMformerProcessor, volumes: list[TrainingVolume]) -> str | None:
    """Save the averaged weights and the calibrated processor; return the report, if the recipe has a base."""
    run.average.swapped_into(run.model)
    device = run.accelerator.device
    logger.info("measuring how errors compare with the stated uncertainty, and whether it helped")
    quantiles = {mode: error_quantiles(run.model, volumes, device, mode) for mode in MODES}
    if measured := {mode: found for mode, found in quantiles.items() if found is not None}:
        processor.calibrate(measured)
    run.trainee.save(run.output)
    processor.save_pretrained(run.output)
    if run.recipe.base is None:
        return None
    base = EMformerModel.from_pretrained(run.recipe.base).to(device)
    return write_report(run.output, base, run.model, volumes, run.recipe)


def dry_run(recipe: Recipe, *, data_root: Path = Path()) -> str:
    """Estimate weights, memory, steps and time of a run from three of its steps, in words; writes nothing.

    Raises:
        InputError: as :func:`train`.
    """
    dtype = choose_precision(recipe.precision, training_device())
    accelerator = make_accelerator(dtype)
    recipe = recipe.with_tables_read(data_root)
    set_seed(recipe.seed)
    volumes = load_volumes(recipe, data_root, EMformerProcessor())
    model = Trainee(recipe).model
    muon = make_trainable(model, recipe, accelerator.device, dtype)
    network, optimizer = accelerator.prepare(model, muon)
    batches = ClipBatches(volumes, recipe.sampling, seed=recipe.seed, batch_size=recipe.batch_size)
    gradients = Gradients(accelerator, network, pieces_of(recipe, model.config))
    muon.set_share(0)
    seconds = []
    for step in range(4):
        begin = time.monotonic()
        batch = batches.batch(step)
        del batch["volume"]
        gradients.add(batch)
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.monotonic() - begin)
    a_step = sum(seconds[1:]) / 3  # the first one sets up
    steps = recipe.steps or math.ceil(60 * (recipe.minutes or 0) / a_step)
    trained, total = sum(map(Tensor.numel, trained_weights(model).values())), model.num_parameters()
    peak = peak_memory(accelerator.device) / 1e9
    return "\n".join(
        [
            f"method       {recipe.method}",
            f"trained      {trained:,} of {total:,} weights ({100 * trained / total:.1f} %)",
            f"clips        {recipe.batch_size} a step and process, in {gradients.pieces} piece(s)",
            f"memory       {peak:.1f} GB at its peak, with everything ({accelerator.device})",
            f"a step       {a_step:.2f} s",
            f"steps        {steps:,}",
            f"time         {steps * a_step / 60:.1f} min, without validation",
        ]
    )
