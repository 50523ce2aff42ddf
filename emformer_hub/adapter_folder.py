"""The folder of an adapter: a small file of weights, and the name and revision of the base that it belongs to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import safe_open

from .errors import InputError, reason
from .pretrained import loading

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def is_adapter(folder: str | Path) -> bool:
    return (Path(folder) / ADAPTER_CONFIG).is_file()


def attach(folder: str | Path, load_base: Callable[..., Any], *, name: str | None = None, **kwargs: Any) -> Any:
    """Load the base that an adapter's folder names, and the adapter on it: a ``peft.PeftModel``.

    Args:
        folder: of the adapter.
        load_base: called with the base's name, its ``revision`` if it has one, and those of ``kwargs`` that are not
            about where on the Hub the adapter is.
        name: what the user calls the adapter, if not by its folder.

    Raises:
        InputError: the folder holds no adapter, its base cannot be found, or does not fit; or PEFT is not installed,
            as may be where this file travelled with weights on the Hub.
    """
    try:
        from peft import PeftConfig, PeftModel, get_peft_model_state_dict
    except ImportError as error:
        raise InputError("adapters need PEFT; run: pip install peft") from error

    name = name or str(folder)
    for file in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        if not (Path(folder) / file).is_file():
            raise InputError(f"{name} holds no {file}; expected the folder of an adapter, as fine-tuning writes.")
    try:
        with loading(name):
            config = PeftConfig.from_pretrained(str(folder))
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{name}: {ADAPTER_CONFIG} is no configuration of PEFT: {reason(error)}.") from error
    base = config.base_model_name_or_path
    if not isinstance(base, str):
        raise InputError(f"{name}: {ADAPTER_CONFIG} names no base_model_name_or_path; expected a name or a Hub id.")
    kwargs = {key: value for key, value in kwargs.items() if key not in ("revision", "subfolder")}
    if config.revision is not None:
        kwargs["revision"] = config.revision
    try:
        model = load_base(base, **kwargs)
    except InputError as error:
        raise InputError(f"{name} is an adapter on {base!r}, which cannot be loaded: {error}") from error
    try:
        with loading(name):
            adapted = PeftModel.from_pretrained(model, str(folder))
            with safe_open(Path(folder) / ADAPTER_WEIGHTS, "pt") as stored:
                strangers = set(stored.keys()) ^ set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
    except InputError:
        raise
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"{name} is an adapter on other weights than {base!r} is now: {str(error).splitlines()[-1].strip()}"
        ) from error
    if strangers:
        raise InputError(f"{name} is an adapter on another network than {base!r}: {min(strangers)} does not fit.")
    return adapted
