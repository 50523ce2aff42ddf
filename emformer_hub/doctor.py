"""What is installed, what the machine has and has fetched, and what is wrong with any of it."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import os
import platform
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from emformer_hub.errors import InputError, reason
from emformer_hub.machine import free_memory

LEAST_DISK, LEAST_MEMORY = 1e9, 2e9
"""Free bytes below which fetching a model, or reconstructing, may fail."""
SECONDS = 5.0
"""How long the Hub may take to answer."""
REINSTALL = "pip install --force-reinstall --no-deps emformer-hub"


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
    """Look at packages, device, memory, cache and bundled weights, and ask the Hub for an answer; writes nothing."""
    found = [*_packages(), *_installation(), _device(), _memory(), *_cache(), _network()]
    return [*found, *_cached_models(), *_weights()]


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

    from emformer_hub.devices import choose_devices, choose_precision, describe, dtype_name

    devices = choose_devices("all")
    device = devices[0]
    found = "; ".join([*map(describe, devices), dtype_name(choose_precision("auto", device))])
    if device.type == "cpu" and shutil.which("nvidia-smi"):
        return Finding(
            "device",
            f"{found}; there is an NVIDIA driver, but torch {torch.__version__} sees no GPU",
            "install torch with CUDA: https://pytorch.org/get-started/locally",
        )
    return Finding("device", found)


def _memory() -> Finding:
    import psutil

    free = free_memory()
    found = f"{free / 1e9:.1f} GB free of {psutil.virtual_memory().total / 1e9:.1f}"
    remedy = None if free > LEAST_MEMORY else "close other programs, or crop the stack"
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
    from huggingface_hub import HfApi, constants, get_session, get_token
    from huggingface_hub.errors import HTTPError

    if constants.HF_HUB_OFFLINE:
        return Finding("Hub", "offline (HF_HUB_OFFLINE): bundled weights, folders, and what the cache holds")
    try:
        answer = get_session().head(constants.ENDPOINT, timeout=SECONDS)
        if answer.status_code >= 500:
            return Finding("Hub", f"{constants.ENDPOINT} answers {answer.status_code}", "try again later")
        if not get_token():
            login = "no login, which only publishing and private models need: hf auth login"
            return Finding("Hub", f"{constants.ENDPOINT} answers, {login}")
        return Finding("Hub", f"{constants.ENDPOINT} answers, logged in as {HfApi().whoami()['name']}")
    except (HTTPError, OSError) as error:
        if getattr(error, "response", None) is not None:
            return Finding("Hub", f"the login is refused: {reason(error)}", "hf auth login, or unset HF_TOKEN")
        return Finding(
            "Hub",
            f"{constants.ENDPOINT} does not answer: {reason(error)}",
            "look at the network and its proxy (HTTPS_PROXY), or set HF_HUB_OFFLINE=1: bundled weights need no Hub",
        )


def _cached_models() -> Iterator[Finding]:
    """Compare files of our models in the cache, and of code that was imported from there, with their checksums."""
    from huggingface_hub import constants
    from transformers.utils import HF_MODULES_CACHE

    from emformer_hub.model_files import check_blob

    checked = 0
    for snapshot in sorted(Path(constants.HF_HUB_CACHE).glob("models--*/snapshots/*")):
        name = snapshot.parts[-3].removeprefix("models--").replace("--", "/")
        for path in sorted(snapshot.rglob("*")) if _is_ours(name, snapshot) else ():
            if not path.is_dir():
                what = f"{name}: {path.relative_to(snapshot).as_posix()}"
                checked += 1
                try:
                    check_blob(path, what)
                except FileNotFoundError:
                    yield Finding("cached models", f"{what} is gone", f"rm {path}")
                except InputError as error:
                    yield Finding("cached models", str(error), f"rm {path.resolve()}")
        for path in sorted(Path(HF_MODULES_CACHE).glob(f"transformers_modules/*/*/{snapshot.name}/*.py")):
            origin = snapshot / path.name
            if origin.is_file() and path.read_bytes() != origin.read_bytes():
                yield Finding("cached models", f"{path} is not the code of {name}", f"rm {path}")
    yield Finding("cached models", f"{checked} files compared with their checksums")


def _is_ours(name: str, snapshot: Path) -> bool:
    files = [snapshot / file for file in ("config.json", "adapter_config.json", "preprocessor_config.json")]
    return "emformer" in name or any(b"emformer" in file.read_bytes().lower() for file in files if file.is_file())


def _installation() -> Iterator[Finding]:
    """Compare the files of an installed wheel with the checksums that it came with; a checkout has none."""
    distribution = importlib.metadata.distribution("emformer-hub")
    stated = {file: file.hash for file in distribution.files or [] if file.parts[0] == "emformer_hub" and file.hash}
    if not stated or not Path(__file__).samefile(str(distribution.locate_file("emformer_hub/doctor.py"))):
        return
    altered = []
    for file, checksum in stated.items():
        path = Path(str(file.locate()))
        found = hashlib.new(checksum.mode, path.read_bytes()).digest() if path.is_file() else b""
        if base64.urlsafe_b64encode(found).rstrip(b"=").decode() != checksum.value:
            altered.append(str(file))
    if altered:
        yield Finding("installation", f"{altered[0]} was altered ({len(altered)} in all)", REINSTALL)
    else:
        yield Finding("installation", f"{len(stated)} files, whole")


def _weights() -> Iterator[Finding]:
    from emformer_hub.pretrained import check_bundle, registry

    for weights in registry().values():
        try:
            check_bundle(weights)
        except InputError as error:
            yield Finding(weights.name, str(error), REINSTALL)
        else:
            yield Finding(weights.name, f"{weights.revision}, whole")
