"""Stored input and output of a model, to check that its weights still give the same result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from emformer_hub.errors import InputError
from emformer_hub.files import open_to_colleagues
from emformer_hub.modeling_emformer import EMformerModel
from emformer_hub.volumes.phantom import neuropil

FILE = "test_tensors.safetensors"
TOLERANCE = 1e-4
"""Standard deviations of the volume, in float32 on a CPU: far below a grey level of 8-bit data."""
CASES: dict[str, dict[str, Any]] = {
    "thick_sections": {"factor": 8.0},
    "fractional_single_planes": {"factor": 6.7, "thickness": 1 / 6.7},
    "missing_section_coarse_frames": {"factor": 4.0, "frame_spacing": 10.0, "masked": 2},
}


def write_test_tensors(model: EMformerModel, folder: Path) -> Path:
    """Write ``test_tensors.safetensors``: ``sections`` and, for each case, ``reconstruction`` and ``scale``."""
    volume = neuropil((16, 48, 32))[:8, ::8].astype(np.float32)  # frames, rows, columns
    sections = torch.from_numpy((volume - volume.mean()) / volume.std())[None].contiguous()
    tensors = {"sections": sections}
    for name, arguments in CASES.items():
        for part, tensor in zip(("reconstruction", "scale"), _run(model, sections, arguments), strict=True):
            tensors[f"{name}.{part}"] = tensor.contiguous()
    path = folder / FILE
    save_file(tensors, path, metadata={"cases": json.dumps(CASES)})
    open_to_colleagues(folder, like="config.json")
    return path


def largest_difference(model: EMformerModel, folder: Path) -> float:
    """Largest difference from the stored output, in standard deviations, when a model runs on a page's stored input.

    Raises:
        InputError: the page holds no test tensors.
    """
    path = folder / FILE
    if not path.is_file():
        raise InputError(f"{path} is missing; expected the stored input and output of the weights.")
    with safe_open(path, "pt") as stored:
        sections = stored.get_tensor("sections")
        return max(
            float((found - stored.get_tensor(f"{name}.{part}")).abs().max())
            for name, arguments in json.loads(stored.metadata()["cases"]).items()
            for part, found in zip(("reconstruction", "scale"), _run(model, sections, arguments), strict=True)
        )


@torch.inference_mode()
def _run(model: EMformerModel, sections: Tensor, arguments: dict[str, Any]) -> tuple[Tensor, Tensor]:
    arguments = dict(arguments)
    if (masked := arguments.pop("masked", None)) is not None:
        arguments["section_mask"] = torch.arange(sections.shape[2]).view(-1, 1) == masked
    out = model.eval()(sections, **arguments)
    return out.reconstruction, out.scale
