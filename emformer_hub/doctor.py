"""What is installed, what the machine has, and what is wrong with either."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from emformer_hub.errors import InputError

LEAST_DISK, LEAST_MEMORY = 1e9, 2e9
"""Free bytes below which fetching a model, or reconstructing, may fail."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        what, found: its name and its state, in words.
        remedy: the command or step that fixes it; ``None`` if nothing is wrong.
    """

    what: str
    found: str
    remedy: str | None = None


def examine() -> list[Finding]:
    """Look at packages, device, memory, cache, network settings and bundled weights, offline; writes nothing."""
    return [*_packages(), _device(), _memory(), *_cache(), _network(), *_weights()]


def _packages() -> Iterator[Finding]:
    from packaging.requirements import Requirement

    yield Finding("python", f"{platform.python_version()} on {platform.platform()}")
    extras: dict[str, list[str]] = {}
    for line in importlib.metadata.requires("emformer-hub") or []:
        requirement = Requirement(line)
        extra = re.search(r"extra == ['\"](\w+)", str(requirement.marker or ""))
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            version = None
        if extra is not None:
            if version is None and extra[1] not in ("all", "dev"):
                extras.setdefault(extra[1], []).append(requirement.name)
        elif version is None:
            yield Finding(requirement.name, "missing", f"pip install '{requirement.name}{requirement.specifier}'")
        elif not requirement.specifier.contains(version, prereleases=True):
            needed = f"'{requirement.name}{requirement.specifier}'"
            yield Finding(requirement.name, f"{version}, too old", f"pip install --upgrade {needed}")
        else:
            yield Finding(requirement.name, version)
    for name, packages in extras.items():
        yield Finding(
            f"[{name}]", f"not installed ({', '.join(packages)}): pip install 'emformer-hub[{name}]' if you need it"
        )


def _device() -> Finding:
    import torch

    from emformer_hub.devices import choose_device, choose_precision, dtype_name

    device = choose_device()
    precision = dtype_name(choose_precision("auto", device))
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found = f"{properties.name}, {properties.total_memory / 1e9:.0f} GB, {precision}"
    else:
        found = f"CPU, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}, {precision}"
    if device.type == "cpu" and shutil.which("nvidia-smi"):
        return Finding(
            "device",
            f"{found}; there is an NVIDIA driver, but torch {torch.__version__} sees no GPU",
            "install torch with CUDA: https://pytorch.org/get-started/locally",
        )
    return Finding("device", found)


def _memory() -> Finding:
    import psutil

    memory = psutil.virtual_memory()
    found = f"{memory.available / 1e9:.1f} GB free of {memory.total / 1e9:.1f}"
    remedy = None if memory.available > LEAST_MEMORY else "close other programs, or crop the stack"
    return Finding("memory", found, remedy)


def _cache() -> Iterator[Finding]:
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    there = cache
    while not there.exists():
        there = there.parent
    if not os.access(there, os.W_OK):
        found = f"{cache} may be read, not written"
        remedy = None if cache.exists() else "set HF_HOME to a folder that you may write to"
        yield Finding("cache", found, remedy)
        return
    free = shutil.disk_usage(there).free
    remedy = None if free > LEAST_DISK else "free some disk, or set HF_HOME to a folder on another one"
    yield Finding("cache", f"{cache}, {free / 1e9:.1f} GB free", remedy)


def _network() -> Finding:
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_OFFLINE:
        return Finding("Hub", "offline (HF_HUB_OFFLINE): bundled weights, folders, and what the cache holds")
    login = "logged in" if get_token() else "no login, which only publishing and private models need: hf auth login"
    return Finding("Hub", f"{constants.ENDPOINT}, {login}")


def _weights() -> Iterator[Finding]:
    from emformer_hub.pretrained import check_sha256, registry

    for weights in registry().values():
        try:
            check_sha256(weights)
        except InputError as error:
            yield Finding(weights.name, str(error), "pip install --force-reinstall --no-deps emformer-hub")
        else:
            yield Finding(weights.name, f"{weights.revision}, whole")
