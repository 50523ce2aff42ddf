"""Adapters on pretrained weights, through PEFT: adding, loading and switching them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from emformer_hub.model_files import attach, model_folder
from emformer_hub.modeling_emformer import EMformerModel
from emformer_hub.pretrained import registry

if TYPE_CHECKING:
    from peft import PeftModel

TARGETS = r"layers\.\d+\.(attention\.(qkv|proj)|mlp\.(conv|fc2))"
"""Matrices and kernels of the layers: everything that mixes tokens, nothing that sets intensities."""


def add_adapter(model: EMformerModel, *, base: str, rank: int, alpha: int, dora: bool = False) -> PeftModel:
    """Freeze a model and add a low-rank update to each matrix of its layers (LoRA; Hu et al. 2021).

    Args:
        model: base model; changed in place.
        base: name, Hub id or folder of the base, to be noted in the adapter with the revision that was loaded.
        rank: rank of the updates.
        alpha: the updates are multiplied by ``alpha / rank``.
        dora: learn the length of each row separately from its direction (DoRA; Liu et al. 2024).
    """
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(model, LoraConfig(r=rank, lora_alpha=alpha, target_modules=TARGETS, use_dora=dora))
    published = registry().get(base)
    config = adapted.peft_config["default"]
    config.base_model_name_or_path = published.repo_id if published else base
    if Path(base).is_dir() and published is None:
        config.base_model_name_or_path = str(Path(base).resolve())  # found from any working folder
    config.revision = model.hub_revision or (published.revision if published else None)
    return adapted


def load_adapter(name: str | Path, **options: Any) -> PeftModel:
    """Load the base that an adapter names, and the adapter on top, unmerged.

    To use one adapter, ``EMformerModel.from_pretrained`` is enough: it merges the two.

    ``load_adapter(FOLDER, NAME)`` of the returned model adds more adapters of the same base, and ``set_adapter(NAME)``
    switches between them.

    Args:
        name: a folder that fine-tuning wrote, or a Hub id.
        options: ``revision`` and ``subfolder`` of the adapter on the Hub, and for both it and its base ``cache_dir``,
            ``force_download``, ``local_files_only`` and ``token``, as in ``from_pretrained``.

    Raises:
        InputError: there is no such adapter, or its base cannot be found or does not fit.
    """
    return attach(model_folder(str(name), **options), EMformerModel.from_pretrained, name=str(name), **options)
