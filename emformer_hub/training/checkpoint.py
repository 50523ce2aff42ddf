"""Checkpoints of a run: safetensors and JSON only, written under a temporary name and renamed."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from emformer_hub.errors import InputError
from emformer_hub.files import open_to_colleagues

LATEST = "checkpoint"


def save_checkpoint(
    run: Path,
    model: dict[str, Tensor],
    average: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
) -> None:
    """Replace the run's checkpoint; the former one stays whole until the new one is.

    Raises:
        InputError: the disk refuses; the former checkpoint stays.
    """
    partial, former = run / f".{LATEST}.partial", run / f".{LATEST}.former"
    shutil.rmtree(partial, ignore_errors=True)
    moments = {
        f"{index}.{name}": value
        for index, entry in optimizer.state_dict()["state"].items()
        for name, value in entry.items()
    }
    try:
        partial.mkdir(parents=True)
        save_file(model, partial / "model.safetensors")
        save_file(average, partial / "average.safetensors")
        save_file(moments, partial / "optimizer.safetensors")
        (partial / "state.json").write_text(json.dumps(state, indent=2))
        open_to_colleagues(partial, like="state.json")
        if (run / LATEST).exists():
            shutil.rmtree(former, ignore_errors=True)
            os.rename(run / LATEST, former)
        os.rename(partial, run / LATEST)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise InputError(
            f"{run}: the checkpoint of step {state['step']} cannot be written ({error}). Free some space and continue "
            f"with --resume from the one before it, which is whole."
        ) from error
    shutil.rmtree(former, ignore_errors=True)


def load_checkpoint(
    run: Path, optimizer: torch.optim.Optimizer, origin: str
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
    """Restore the optimiser in place; return trained weights, their average and the state.

    Args:
        origin: fingerprint of the weights that this run starts from.

    Raises:
        InputError: the run holds no checkpoint, or one that started from other weights.
    """
    folder = next((run / name for name in (LATEST, f".{LATEST}.former") if (run / name / "state.json").exists()), None)
    if folder is None:
        raise InputError(f"{run}: no checkpoint to resume from; start the run without --resume.")
    state = json.loads((folder / "state.json").read_text())
    if state["origin"] != origin:
        raise InputError(
            f"{folder} belongs to a run that started from other weights (SHA-256 {state['origin'][:12]}…, these are "
            f"{origin[:12]}…); give the same base or model as then, or choose another folder."
        )
    content = optimizer.state_dict()
    content["state"] = {}
    for key, value in load_file(folder / "optimizer.safetensors").items():
        index, name = key.split(".", 1)
        content["state"].setdefault(int(index), {})[name] = value
    optimizer.load_state_dict(content)
    return load_file(folder / "model.safetensors"), load_file(folder / "average.safetensors"), state
