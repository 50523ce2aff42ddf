"""The folder of an adapter: a small file of weights, and the name and revision of the base that it belongs to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import InputError
from .pretrained import loading

if TYPE_CHECKING:
    from peft import PeftModel

ADAPTER_CONFIG = "adapter_config.json"


def is_adapter(folder: str | Path) -> bool:
    return (Path(folder) / ADAPTER_CONFIG).is_file()


def attach(folder: str | Path, load_base: Callable[..., Any], **kwargs: Any) -> PeftModel:
    """Load the base that an adapter's folder names, and the adapter on it.

    Args:
        folder: of the adapter.
        load_base: called with the base's name, its ``revision`` if it has one, and ``kwargs``.

    Raises:
        InputError: the folder holds no adapter, its base cannot be found, or does not fit.
    """
    from peft import PeftConfig, PeftModel

    if not is_adapter(folder):
        raise InputError(
            f"{folder} holds no {ADAPTER_CONFIG}; expected the folder of an adapter, as fine-tuning writes."
        )
    with loading(str(folder)):
        config = PeftConfig.from_pretrained(str(folder))
    base = config.base_model_name_or_path
    if config.revision is not None:
        kwargs = {"revision": config.revision, **kwargs}
    try:
        model = load_base(base, **kwargs)
    except InputError as error:
        raise InputError(f"{folder} is an adapter on {base!r}, which cannot be loaded: {error}") from error
    try:
        with loading(str(folder)):
            return PeftModel.from_pretrained(model, str(folder))
    except RuntimeError as error:
        raise InputError(
            f"{folder} is an adapter on other weights than {base!r} is now: {str(error).splitlines()[-1].strip()}"
        ) from error
