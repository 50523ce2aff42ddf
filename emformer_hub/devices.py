"""What the machine at hand computes in."""

from __future__ import annotations

import torch

from emformer_hub.errors import InputError


def choose_device(name: str | torch.device | None = None) -> torch.device:
    """``None`` or ``"auto"``: a GPU if there is one, else the CPU.

    Raises:
        InputError: a named device is not there.
    """
    if name is None or str(name) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"device {name!r} is unknown; expected auto, cpu or cuda.") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError("device 'cuda' was asked for, but torch sees no GPU; use --device cpu, or install CUDA torch.")
    return device


def computes_in_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 matrix products run in hardware (AVX512-BF16 or AMX on a CPU; Ampere or later on a GPU)."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def default_precision(device: torch.device | None = None) -> str:
    """Mixed precision in the words of Accelerate: ``"bf16"`` where the device computes in it, else ``"no"``."""
    return "bf16" if computes_in_bfloat16(device or choose_device()) else "no"
