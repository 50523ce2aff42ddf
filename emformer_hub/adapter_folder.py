"""The folder of an adapter: a small file of weights, and the name and revision of the base that it belongs to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import InputError
from .pretrained import loading

if TYPE_CHECKING:
    from peft import PeftModel

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def is_adapter(folder: str | Path) -> bool:
    return (Path(folder) / ADAPTER_CONFIG).is_file()


def attach(folder: str | Path, load_base: Callable[..., Any], *, name: str | None = None, **kwargs: Any) -> PeftModel:
    """Load the base that an adapter's folder names, and the adapter on it.

    Args:
        folder: of the adapter.
        load_base: called with the base's name, its ``revision`` if it has one, and ``kwargs``.
        name: what the user calls the adapter, if not by its folder.

    Raises:
        InputError: the folder holds no adapter, its base cannot be found, or does not fit.
    """
    from peft import PeftConfig, PeftModel

    name = name or str(folder)
    for file in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        if not (Path(folder) / file).is_file():
            raise InputError(f"{name} holds no {file}; expected the folder of an adapter, as fine-tuning writes.")
    with loading(name):
        config = PeftConfig.from_pretrained(str(folder))
    base = config.base_model_name_or_path
    if config.revision is not None:
        kwargs["revision"] = config.revision
    try:
        model = load_base(base, **kwargs)
    except InputError as error:
        raise InputError(f"{name} is an adapter on {base!r}, which cannot be loaded: {error}") from error
    try:
        with loading(name):
            return PeftModel.from_pretrained(model, str(folder))
    except RuntimeError as error:
        raise InputError(
            f"{name} is an adapter on other weights than {base!r} is now: {str(error).splitlines()[-1].strip()}"
        ) from error
