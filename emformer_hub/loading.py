"""Loads a network together with the processor that belongs to its weights."""

from __future__ import annotations

import os
from pathlib import Path

from emformer_hub.errors import InputError
from emformer_hub.modeling_emformer import EMformerModel
from emformer_hub.processing_emformer import EMformerProcessor


def load_model(name: str | Path) -> tuple[EMformerModel, EMformerProcessor]:
    """Load a network, and the processor that was saved and calibrated with it.

    Args:
        name: a published name, the folder of a model or an adapter, or a Hub id.

    Raises:
        InputError: the name is not known, or its files are missing, damaged, or do not belong together.
    """
    from transformers.utils import logging

    if not isinstance(name, str | os.PathLike):
        raise InputError(
            f"model is {name!r}; expected a name, a folder or a Hub id, such as 'emformer-small', or an EMformerModel."
        )
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # it takes no time worth a bar
    try:
        return EMformerModel.from_pretrained(name), EMformerProcessor.from_pretrained(name)
    finally:
        if shown:
            logging.enable_progress_bar()
