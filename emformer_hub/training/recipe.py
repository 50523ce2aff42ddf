"""A recipe: every choice of a training run, as a strict YAML file."""

from __future__ import annotations

import dataclasses
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from emformer_hub.devices import check_precision
from emformer_hub.errors import InputError
from emformer_hub.training.sampling import SamplingRanges

METHODS = ("full", "head", "lora", "dora")


@dataclass(frozen=True)
class VolumeEntry:
    """One training volume, or a table of them (:mod:`emformer_hub.training.tables`).

    Args:
        path: relative to the data root.
        voxel_size: Z,Y,X in nm, if not in the file.
        weight, holdout, aligned: as of :class:`~emformer_hub.training.sampling.TrainingVolume`.
        sections: A:B, the first section that is used and the one after the last; all of them by default.
        modality, licence: for the model page: SBF-SEM, ssTEM, FIB-SEM …; what whoever made the data allows.
    """

    path: str
    voxel_size: str | None = None
    weight: float = 1.0
    holdout: float = 0.125
    aligned: bool = True
    sections: str | None = None
    modality: str | None = None
    licence: str | None = None

    @classmethod
    def from_content(cls, content: dict[str, Any], where: str) -> VolumeEntry:
        """Build from plain values; raises ``InputError``, naming ``where``, for an unknown field or a wrong type."""
        return _build(cls, content, where)


@dataclass(frozen=True)
class Recipe:
    """All choices of a run; see ``finetune/recipes/*.yaml`` for the reasons.

    Args:
        volumes: what to learn from.
        model: fields of :class:`EMformerConfig` for training from scratch; or
        base: name, folder or Hub id of the weights to start from.
        method: what is trained: ``full``, all weights; ``head``, the decoder; ``lora`` or ``dora``, an adapter.
        adapter_rank, adapter_alpha: of the low-rank updates, which are multiplied by alpha / rank.
        sampling: geometry and augmentation.
        steps: length of the run in optimiser steps; or
        minutes: its length in minutes of training, resumed parts included.
        batch_size: clips per step and process.
        pieces: in which a batch is computed, one after another: more need less memory and change nothing else.
        memory: GB for the clips of a piece; if given, there are as many pieces as that asks for.
        matrix_learning_rate: of the layers' matrices, which go by Muon.
        learning_rate: of all other parameters, which go by AdamW.
        warmup_steps: over which the rates rise from zero.
        decay: the last share of the run, over which they fall back to zero. A checkpoint from before can be resumed
            with a longer run as if that had been meant from the start.
        weight_decay, clip_norm: decoupled; of the gradient.
        ema_decay: of the averaged weights, which are the ones that are validated and saved.
        precision: of matrix products: auto (bfloat16 where the device computes in it), float32 or bfloat16.
        validate_every, checkpoint_every: in steps.
        report_to: tracker of Accelerate, such as tensorboard, beside ``log.jsonl``.
        workers: processes that prepare clips; 0 prepares them between steps.
        seed: of everything that is drawn.
    """

    volumes: tuple[VolumeEntry, ...]
    model: dict[str, Any] | None = None
    base: str | None = None
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
        if (self.model is None) == (self.base is None):
            raise InputError("the recipe needs exactly one of 'model' (from scratch) and 'base' (to go on from).")
        if self.method not in METHODS:
            raise InputError(f"method is {self.method!r}; expected one of {', '.join(METHODS)}.")
        if self.method != "full" and self.base is None:
            raise InputError(f"method {self.method} adapts weights; give 'base', such as emformer-small.")
        if (self.steps is None) == (self.minutes is None):
            raise InputError("the run needs exactly one of 'steps' and 'minutes' (or --steps, --minutes).")
        for name in (
            "steps",
            "minutes",
            "batch_size",
            "pieces",
            "memory",
            "adapter_rank",
            "adapter_alpha",
            "validate_every",
            "checkpoint_every",
        ):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"{name} is {value}; expected a positive number.")
        if not 0 <= self.decay <= 1:
            raise InputError(f"decay is {self.decay}; expected a share of the run, from 0 to 1.")
        check_precision(self.precision)
        self.sampling.check()

    @classmethod
    def load(cls, path: str | Path, **overrides: Any) -> Recipe:
        """Read a YAML recipe; ``overrides`` that are not None win, and ``steps`` and ``minutes`` replace each other.

        Args:
            path: of a file, or the name of a recipe that comes with the package, such as ``lora``.
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
        """Build from what YAML holds; raises ``InputError`` as ``load`` does, naming ``where`` it stands."""
        return _build(cls, content, where)

    def to_yaml(self) -> str:
        return yaml.safe_dump(_plain(dataclasses.asdict(self)), sort_keys=False)


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


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _build(cls: type, content: Any, where: str) -> Any:
    """Turn plain YAML into a dataclass, strictly."""
    if not isinstance(content, dict):
        raise InputError(f"{where}: expected a mapping, found {content!r}.")
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(content) - set(hints))
    if unknown:
        raise InputError(f"{where}: unknown key {unknown[0]!r}; valid keys are {', '.join(hints)}.")
    required = [f.name for f in dataclasses.fields(cls) if f.default is f.default_factory is dataclasses.MISSING]
    for name in required:
        if name not in content:
            raise InputError(f"{where}: the key {name!r} is missing.")
    return cls(**{key: _convert(hints[key], value, f"{where}: {key}") for key, value in content.items()})


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _convert(next(a for a in arguments if a is not type(None)), value, where)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise InputError(f"{where}: expected a list, found {value!r}.")
        return tuple(_convert(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if dataclasses.is_dataclass(hint):
        return _build(typing.cast(type, hint), value, where)
    if hint is float and not isinstance(value, bool):
        try:
            return float(value)  # YAML reads 1e-3 as text
        except (TypeError, ValueError):
            pass
    expected = origin or hint
    if not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool):
        raise InputError(f"{where}: expected {expected.__name__}, found {value!r}.")
    return value
