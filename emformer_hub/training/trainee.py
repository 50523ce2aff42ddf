"""The part of a network to train: all of it, its decoder, or an adapter on its layers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn

from emformer_hub.adapters import add_adapter
from emformer_hub.configuration_emformer import EMformerConfig
from emformer_hub.errors import InputError
from emformer_hub.files import open_to_colleagues
from emformer_hub.model_files import ADAPTER_CONFIG, fingerprint
from emformer_hub.modeling_emformer import EMformerModel
from emformer_hub.training.recipe import Recipe
from emformer_hub.training.widening import widen

if TYPE_CHECKING:
    from peft import PeftModel


def build_config(fields: dict[str, Any]) -> EMformerConfig:
    """Configuration from a recipe's ``model``; ``InputError`` for an unknown field or an impossible network."""
    for name in fields:
        if name not in EMformerConfig.__annotations__:
            raise InputError(
                f"model: unknown field {name!r}; valid fields are {', '.join(EMformerConfig.__annotations__)}."
            )
    try:
        return EMformerConfig(**fields)
    except StrictDataclassError as error:
        raise InputError(f"model: {error}") from error


class Trainee:
    """The network of a run.

    Attributes:
        model: the network; its layers include the adapter, if there is one.
        adapter: PEFT model around the network, if the method is lora or dora.
        origin: SHA-256 of all weights before the first step, to match checkpoints that hold only a part of them.

    Raises:
        InputError: the base cannot be loaded, or the recipe's network cannot be built.
    """

    def __init__(self, recipe: Recipe):
        if recipe.base is not None:
            self.model = EMformerModel.from_pretrained(recipe.base)
            if recipe.widen > 1:
                self.model = widen(self.model, recipe.widen, recipe.seed)
        else:
            self.model = EMformerModel(build_config(recipe.model or {}))
        self.origin = fingerprint(self.model)
        self.adapter: PeftModel | None = None
        if recipe.method == "head":
            self.model.requires_grad_(False)
            self.model.decoder.requires_grad_(True)
        elif recipe.method in ("lora", "dora"):
            assert recipe.base is not None  # the recipe sees to it
            self.adapter = add_adapter(
                self.model,
                base=recipe.base,
                rank=recipe.adapter_rank,
                alpha=recipe.adapter_alpha,
                dora=recipe.method == "dora",
            )

    def save(self, folder: Path) -> None:
        """Write the model, or only the adapter, in the form that ``EMformerModel.from_pretrained`` reads."""
        if self.adapter is None:
            self.model.save_pretrained(folder)
        else:
            self.adapter.save_pretrained(str(folder), save_embedding_layers=False)
            open_to_colleagues(folder, like=ADAPTER_CONFIG)


def trained_weights(model: nn.Module) -> dict[str, Tensor]:
    """Weights that training changes, by name; not copied."""
    return {name: weight.detach() for name, weight in model.named_parameters() if weight.requires_grad}


@torch.no_grad()
def put_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Set the weights that training changes to these values."""
    for name, weight in trained_weights(model).items():
        weight.copy_(weights[name])


class Average:
    """Exponential moving average of the trained weights; at first over fewer steps than it spans later."""

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.weights = {name: weight.clone() for name, weight in trained_weights(model).items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, weight in trained_weights(model).items():
            self.weights[name].lerp_(weight, 1 - decay)

    def swapped_into(self, model: nn.Module) -> dict[str, Tensor]:
        """Put the average into the model; return its former weights, for ``put_weights``."""
        held = {name: weight.clone() for name, weight in trained_weights(model).items()}
        put_weights(model, self.weights)
        return held
