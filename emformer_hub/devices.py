"""Devices and precisions that this machine computes with."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import torch

from emformer_hub.errors import InputError

CONTROL_GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
"""The groups of this process, and the folder of all of them, on Linux."""


def choose_device(name: str | torch.device | None = None) -> torch.device:
    """``None`` or ``"auto"``: a GPU if there is one, else the CPU.

    Raises:
        InputError: a named device is not there.
    """
    if name is None or str(name) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise InputError(f"device {name!r} is unknown; expected auto, cpu or cuda.")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError("device 'cuda' was asked for, but torch sees no GPU; use --device cpu, or install CUDA torch.")
    return device


def computes_in_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 matrix products run in hardware (AVX512-BF16 or AMX on a CPU; Ampere or later on a GPU)."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


@lru_cache
def faster_in_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 products are worth their rounding: where they run in hardware, and faster than float32 ones.

    A GPU, and a CPU with AMX, always gain. AVX512-BF16 alone doubles the rate of some CPUs and halves that of others,
    so there it is measured, once a process, on a product of 768 x 768 matrices.
    """
    if not computes_in_bfloat16(device) or device.type == "cuda" or torch.cpu._is_amx_tile_supported():
        return computes_in_bfloat16(device)
    matrix = torch.ones(768, 768)
    return _seconds_of_product(matrix.bfloat16()) < _seconds_of_product(matrix)


def _seconds_of_product(matrix: torch.Tensor) -> float:
    """The fastest of five, after one that sets the kernel up."""
    times = []
    for _ in range(6):
        begin = time.perf_counter()
        torch.matmul(matrix, matrix)
        times.append(time.perf_counter() - begin)
    return min(times[1:])


def free_memory(device: torch.device) -> int:
    """Bytes of memory that are free: on a GPU its own, else those of this machine, or of this process's container."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    import psutil

    return min([psutil.virtual_memory().available, *_left_in_container()])


def _left_in_container() -> Iterator[int]:
    """Bytes that the control groups of this process (Linux, version 2) allow beyond those in use."""
    membership, root = CONTROL_GROUPS
    try:
        (group, *_) = membership.read_text().partition("0::/")[2].splitlines() or [""]
    except OSError:
        return
    for folder in (root / group, *(root / group).parents):
        with suppress(OSError, ValueError, IndexError):  # "max" is no limit, and not a number
            limit, used = (int((folder / f"memory.{name}").read_text()) for name in ("max", "current"))
            cached = int((folder / "memory.stat").read_text().split("inactive_file ")[1].split()[0])
            yield max(0, limit - used + cached)


def peak_memory(device: torch.device) -> int:
    """Bytes that this process held at its peak: on a GPU in its memory, else in main memory, libraries included."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import sys

    try:
        import resource
    except ImportError:  # on Windows
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def check_precision(name: str) -> str:
    """Return ``name`` if it is auto, float32 or bfloat16, else raise ``InputError``."""
    if name not in ("auto", "float32", "bfloat16"):
        raise InputError(f"precision is {name!r}; expected auto, float32 or bfloat16.")
    return name


def dtype_name(dtype: torch.dtype) -> str:
    """``torch.bfloat16`` -> ``"bfloat16"``."""
    return str(dtype).removeprefix("torch.")


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error says that memory was exhausted; on a CPU, torch has no class of its own for that."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """The dtype of matrix products: ``"auto"`` takes bfloat16 where the device is faster in it, else float32.

    Raises:
        InputError: the name is not auto, float32 or bfloat16.
    """
    if check_precision(name) == "auto":
        return torch.bfloat16 if faster_in_bfloat16(device) else torch.float32
    return torch.bfloat16 if name == "bfloat16" else torch.float32
