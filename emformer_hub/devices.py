"""Devices and precisions that this machine computes with."""

from __future__ import annotations

import time
from functools import lru_cache

import torch

from emformer_hub import machine
from emformer_hub.errors import InputError

GPUS = {"cuda": "NVIDIA or AMD (ROCm)", "xpu": "Intel", "mps": "Apple"}
"""Kinds of GPUs by the names that torch gives them, and their makers."""


def choose_device(name: str | torch.device | None = None) -> torch.device:
    """Device by the name that torch has for it; ``None`` or ``"auto"``: a GPU if there is one, else the CPU.

    Raises:
        InputError: the name is unknown, or the device is not there.
    """
    if name is None or str(name) == "auto":
        return torch.device(_gpu() or "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        device = None
    if device is None or device.type not in ("cpu", *GPUS):
        raise InputError(f"device {name!r} is unknown; expected auto, cpu, {', '.join(GPUS)}, or such as cuda:1.")
    if device.type == "cpu":
        return device
    if device.type != _gpu():
        there = f"torch sees only {_gpu()}" if _gpu() else "torch sees no GPU"
        raise InputError(
            f"device {str(name)!r} was asked for, but {there}; use --device {_gpu() or 'cpu'}, or install the torch "
            f"for {GPUS[device.type]} GPUs: https://pytorch.org/get-started/locally"
        )
    if device.index is not None and device.index >= torch.accelerator.device_count():
        raise InputError(
            f"device {str(name)!r} was asked for, but torch sees {torch.accelerator.device_count()}, counted from 0."
        )
    return device


def choose_devices(names: str | torch.device | None = None) -> list[torch.device]:
    """Devices by their names with commas between them, each once; ``"all"`` are the GPUs that torch sees, or the CPU.

    Raises:
        InputError: as :func:`choose_device`; or a device is named twice.
    """
    if names == "all":
        kind = _gpu()
        return [torch.device(kind, n) for n in range(torch.accelerator.device_count())] if kind else [choose_device()]
    devices = [choose_device(name) for name in (names.split(",") if isinstance(names, str) else [names])]
    if len(set(devices)) < len(devices):
        raise InputError(f"device {names!r} names one twice; expected each once, such as cuda:0,cuda:1.")
    return devices


def _gpu() -> str | None:
    """Kind of GPU that torch sees, if there is one."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found.type if found is not None and found.type in GPUS else None


def describe(device: torch.device) -> str:
    """Name and memory of a GPU; of a CPU its instructions and the threads in use."""
    if device.type == "cpu":
        return f"CPU, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    if device.type == "mps":
        return f"Apple GPU, up to {torch.mps.recommended_max_memory() / 1e9:.0f} GB"
    properties = torch.get_device_module(device).get_device_properties(device)
    return f"{properties.name}, {properties.total_memory / 1e9:.0f} GB"


def computes_in_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 matrix products run in hardware (AVX512-BF16 or AMX on a CPU; Ampere or later on NVIDIA's)."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "xpu":
        return torch.xpu.is_bf16_supported()
    return device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


@lru_cache
def faster_in_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 products are worth their rounding: where they run in hardware, and faster than float32 ones.

    A GPU that has them (Apple's are taken for such that have not), and a CPU with AMX, always gain. AVX512-BF16 alone
    doubles the rate of some CPUs and halves that of others, so there it is measured, once a process, on a product of
    768 x 768 matrices.
    """
    if not computes_in_bfloat16(device) or device.type != "cpu" or torch.cpu._is_amx_tile_supported():
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
    """Bytes of memory that are free: on a GPU its own, else those of this machine, or of this process's container.

    Apple's GPUs share the memory of the machine, and take a part of it at most.
    """
    if device.type in ("cuda", "xpu"):
        return torch.get_device_module(device).mem_get_info(device)[0]
    free = machine.free_memory()
    if device.type == "mps":
        return min(free, torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    return free


def peak_memory(device: torch.device) -> int:
    """Bytes that this process held at its peak: on a GPU in its memory, else in main memory, libraries included."""
    if device.type in ("cuda", "xpu"):
        return torch.get_device_module(device).max_memory_allocated(device)
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
    said = ("can't allocate memory", "MPS backend out of memory")
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in said)


def empty_cache(device: torch.device) -> None:
    """Give memory that torch keeps for later back to a GPU."""
    if device.type != "cpu":
        torch.get_device_module(device).empty_cache()


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """The dtype of matrix products: ``"auto"`` takes bfloat16 where the device is faster in it, else float32.

    Raises:
        InputError: the name is not auto, float32 or bfloat16.
    """
    if check_precision(name) == "auto":
        return torch.bfloat16 if faster_in_bfloat16(device) else torch.float32
    return torch.bfloat16 if name == "bfloat16" else torch.float32
