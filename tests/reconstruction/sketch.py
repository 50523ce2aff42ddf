"""A model of hardly any arithmetic, for tests of what is made of blocks and files and of nothing that was learned."""

from __future__ import annotations

import atexit
import shutil
import tempfile

import torch

from emformer_hub.configuration_emformer import EMformerConfig
from emformer_hub.modeling_emformer import EMformerModel
from emformer_hub.modes import MODES
from emformer_hub.processing_emformer import EMformerProcessor
from emformer_hub.uncertainty import ErrorQuantiles


def _saved() -> str:
    folder = tempfile.mkdtemp(prefix="sketch-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    torch.manual_seed(0)
    network = EMformerModel(EMformerConfig(hidden_size=8, num_hidden_layers=2, num_attention_heads=1))
    with torch.no_grad():
        for weight in network.parameters():  # so that every layer says something
            weight.add_(0.05 * torch.randn(weight.shape))
    network.save_pretrained(folder)
    processor = EMformerProcessor()
    processor.calibrate(dict.fromkeys(MODES, ErrorQuantiles()))
    processor.save_pretrained(folder)
    return folder


SKETCH = _saved()
"""Folder of the model; the same weights in every process."""
