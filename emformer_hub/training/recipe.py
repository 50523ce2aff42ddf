"""A recipe: every choice of a training run, as a strict YAML file."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from emformer_hub.datasets.entry import VolumeEntry
from emformer_hub.datasets.tables import with_tables_read
from emformer_hub.devices import check_precision
from emformer_hub.errors import InputError
from emformer_hub.records import from_plain, to_plain
from emformer_hub.training.ranges import SamplingRanges

METHODS = ("full", "head", "lora", "dora")


@dataclass(frozen=True)
class Recipe:
    """All choices of a run; see ``finetune/recipes/*.yaml`` for the reasons.

    Args:
        volumes: volumes to train on.
        model: fields of :class:`EMformerConfig` for training from scratch; or
        base: name, folder or Hub id of the weights to start from.
        widen: channels and attention heads of the network for one of the base's, 1 or more; above 1 a wider network
            starts from what the base computes (:func:`~emformer_hub.training.widening.widen`).
        method: what is trained: ``full``, all weights; ``head``, the decoder; ``lora`` or ``dora``, an adapter.
        adapter_rank, adapter_alpha: rank of the low-rank updates, and alpha: they are multiplied by alpha / rank.
        sampling: geometry and augmentation.
        steps: length of the run in optimiser steps; or
        minutes: its length in minutes of training, resumed parts included.
        batch_size: clips per step and process.
        pieces: number of pieces that a batch is computed in; more of them need less memory and change nothing else.
        memory: GB for the clips of a piece; if given, it determines the number of pieces.
        matrix_learning_rate: learning rate of the layers' matrices, which Muon updates.
        learning_rate: learning rate of all other parameters, which AdamW updates.
        warmup_steps: steps over which the learning rates rise from zero.
        decay: fraction of the run, at its end, over which they fall back to zero. An earlier checkpoint can be resumed
            with a longer run as if that had been planned from the start.
        weight_decay, clip_norm: decoupled weight decay, and largest norm of the gradient.
        ema_decay: decay of the moving average of the weights, which is validated and saved.
        precision: precision of matrix products: auto (bfloat16 where the device computes in it), float32 or bfloat16.
        validate_every, checkpoint_every: intervals, in steps.
        report_to: tracker of Accelerate, such as tensorboard, beside ``log.jsonl``.
        workers: processes that prepare clips; 0 prepares them between steps.
        seed: seed of all random numbers.
    """

    volumes: tuple[VolumeEntry, ...]
    model: dict[str, Any] | None = None
    base: str | None = None
    widen: int = 1
    method: str = "full"
    adapter_rank: int = 4
    adapter_alpha: int = 8
    sampling: SamplingRanges = field(default_factory=SamplingRanges)
    steps: int | None = None
    minutes: float | None = None
    batch_size: int = 4
    pieces: int = 1
    memory: float | None = None
    matrix_learning_rate: float = 2e-2
    learning_rate: float = 2e-3
    warmup_steps: int = 200
    decay: float = 0.5
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    ema_decay: float = 0.999
    precision: str = "auto"
    validate_every: int = 500
    checkpoint_every: int = 250
    workers: int = 0
    report_to: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.volumes:
            raise InputError("the recipe names no volumes; list at least one under 'volumes'.")
        if not any(volume.weight for volume in self.volumes):
            raise InputError("every volume has weight 0; give those to learn from a positive one.")
        if (self.model is None) == (self.base is None):
            raise InputError("the recipe needs exactly one of 'model' (from scratch) and 'base' (to continue from).")
        if self.method not in METHODS:
            raise InputError(f"method is {self.method!r}; expected one of {', '.join(METHODS)}.")
        if self.method != "full" and self.base is None:
            raise InputError(f"method {self.method} adapts weights; give 'base', such as emformer-small.")
        if self.widen != 1 and (self.base is None or self.method != "full"):
            raise InputError(
                f"widen is {self.widen}; it starts a wider network from a base and trains all of it, so give 'base' "
                f"and 'method: full', or leave it out."
            )
        if (self.steps is None) == (self.minutes is None):
            raise InputError("the run needs exactly one of 'steps' and 'minutes' (or --steps, --minutes).")
        for name in (
            "steps",
            "minutes",
            "batch_size",
            "pieces",
            "widen",
            "memory",
            "adapter_rank",
            "adapter_alpha",
            "clip_norm",
            "validate_every",
            "checkpoint_every",
        ):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"{name} is {value}; expected a positive number.")
        for name in ("learning_rate", "matrix_learning_rate", "warmup_steps", "weight_decay", "workers", "seed"):
            if not getattr(self, name) >= 0:
                raise InputError(f"{name} is {getattr(self, name)}; expected a number from 0 on.")
        if not 0 <= self.decay <= 1:
            raise InputError(f"decay is {self.decay}; expected a fraction of the run, from 0 to 1.")
        if not 0 <= self.ema_decay < 1:
            raise InputError(f"ema_decay is {self.ema_decay}; expected a number from 0 to below 1.")
        check_precision(self.precision)
        self.sampling.check()

    @classmethod
    def load(cls, path: str | Path, **overrides: Any) -> Recipe:
        """Read a YAML recipe; ``overrides`` that are not None win, and ``steps`` and ``minutes`` replace each other.

        Args:
            path: path of a file, or the name of a recipe that comes with the package, such as ``lora``.
            overrides: recipe keys; those of ``sampling`` one by one.

        Raises:
            InputError: not readable, an unknown key (the valid ones are named), a wrong type or a missing choice.
        """
        path = find_recipe(path)
        try:
            content = yaml.safe_load(path.read_text())
        except OSError as error:
            raise InputError(f"{path}: cannot read the recipe ({error.strerror}).") from error
        except yaml.YAMLError as error:
            raise InputError(f"{path}: not valid YAML: {error}") from error
        if not isinstance(content, dict):
            raise InputError(f"{path}: expected a mapping of recipe keys, found {type(content).__name__}.")
        given = {key: value for key, value in overrides.items() if value is not None}
        if "sampling" in given:
            given["sampling"] = {**content.get("sampling", {}), **given["sampling"]}
        if "steps" in given or "minutes" in given:
            content = {key: value for key, value in content.items() if key not in ("steps", "minutes")}
        return cls.from_content({**content, **given}, str(path))

    @classmethod
    def from_content(cls, content: dict[str, Any], where: str) -> Recipe:
        """Build a recipe from the content of a YAML file; raises ``InputError`` as ``load`` does, naming ``where`` it
        stands."""
        return from_plain(cls, content, where)

    def with_tables_read(self, data_root: Path) -> Recipe:
        """The recipe with each table among its volumes replaced by the rows of that table."""
        return dataclasses.replace(self, volumes=with_tables_read(self.volumes, data_root))

    def to_yaml(self) -> str:
        return yaml.safe_dump(to_plain(dataclasses.asdict(self)), sort_keys=False)


def find_recipe(name: str | Path) -> Path:
    """The file of a recipe that comes with the package, by name; anything else is a path."""
    folder = Path(__file__).parents[1] / "recipes"  # of an installed package
    if not folder.exists():
        folder = Path(__file__).parents[2] / "finetune" / "recipes"
    known = {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    path = Path(name)
    if path.suffix or path.exists() or path.parent != Path():
        return path
    if str(name) not in known:
        raise InputError(f"recipe {str(name)!r} is not known; expected one of {', '.join(known)}, or a YAML file.")
    return known[str(name)]
