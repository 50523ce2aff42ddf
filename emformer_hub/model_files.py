"""The files of a model, or of an adapter on one: bundled, the user's own, or fetched from the Hub, and checked.

An adapter is a small file of weights, and the name and revision of the base that it belongs to.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import nn

from .errors import InputError, reason
from .pretrained import loading, registry, resolve_pretrained

WEIGHTS = "model.safetensors"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
HUB_OPTIONS = ("revision", "subfolder", "cache_dir", "force_download", "local_files_only", "token")
"""Options of ``from_pretrained`` in transformers: where a model is on the Hub, and how to fetch it."""
SHA256 = re.compile(r"[0-9a-f]{64}")


def model_folder(name: str, revision: str | None = None, subfolder: str = "", **options: Any) -> Path:
    """Folder on this machine with a whole model or an adapter, which is fetched first if it is on the Hub.

    Args:
        name: bundled name, folder or Hub id.
        revision: branch, tag or commit on the Hub.
        subfolder: subfolder with the files.
        options: the other ``HUB_OPTIONS``.

    Raises:
        InputError: the name is not known, the Hub cannot be reached and the cache lacks the files, there is no model in
            safetensors, or the checksum of a file is not the one in the registry or on the Hub.
    """
    source = resolve_pretrained(name, revision)
    if Path(source).is_dir():
        return Path(source) / subfolder
    published = {weights.repo_id: weights for weights in registry().values()}.get(source)
    if revision is None and published is not None:
        revision = published.revision
    with loading(name):
        files = _HubFiles(source, revision, subfolder, options)
        needed = [ADAPTER_CONFIG, ADAPTER_WEIGHTS] if _is_adapter(files) else ["config.json", WEIGHTS]
        found = {file: files.fetch(file) for file in needed}
    missing = [file for file, path in found.items() if path is None]
    if missing:
        raise InputError(
            f"{name} holds no {missing[0]}; expected config.json and {WEIGHTS}, or {ADAPTER_CONFIG} and "
            f"{ADAPTER_WEIGHTS}, as save_pretrained or training wrote them."
        )
    for file, path in found.items():
        if path is not None:
            check_blob(path, f"{name}: {file}")
    if published is not None and (path := found.get(WEIGHTS)) is not None:
        known = {published.revision: published.sha256, **{one.revision: one.sha256 for one in published.replaces}}
        if revision in known:
            _check(path, known[revision], f"{name}: {WEIGHTS} of {revision}", "the registry")
    folders = {path.parent for path in found.values() if path is not None}
    if len(folders) > 1:
        raise InputError(f"{name} changed on the Hub while it was being fetched; load it again.")
    return folders.pop()


def commit_of(folder: Path) -> str | None:
    """Commit on the Hub that a folder of the cache is a copy of; ``None`` for other folders."""
    found = re.search(r"/snapshots/([0-9a-f]{40})(/|$)", folder.as_posix())
    return found[1] if found else None


class _HubFiles:
    """Files of one commit of a Hub id, from the cache where it has them."""

    def __init__(self, repo_id: str, revision: str | None, subfolder: str, options: dict[str, Any]):
        from transformers.utils.hub import resolve_revision

        self.repo_id, self.subfolder, self.options = repo_id, subfolder, options
        shared = {key: value for key, value in options.items() if key in ("token", "local_files_only", "cache_dir")}
        self.revision = resolve_revision(repo_id, revision, **shared)  # as it was given, where that fails

    def fetch(self, file: str) -> Path | None:
        """Fetch a file into the cache; ``None`` if the commit lacks it; ``InputError`` if the download fails."""
        from huggingface_hub import _CACHED_NO_EXIST, hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalEntryNotFoundError, RemoteEntryNotFoundError

        if self._cached(file) is _CACHED_NO_EXIST:
            return None
        try:
            return Path(
                hf_hub_download(
                    self.repo_id, file, subfolder=self.subfolder or None, revision=self.revision, **self.options
                )
            )
        except RemoteEntryNotFoundError:
            return None
        except (HfHubHTTPError, LocalEntryNotFoundError):
            raise
        except (HTTPError, OSError, ValueError) as error:
            raise InputError(f"{self.repo_id}: {file} cannot be fetched: {reason(error)}. Try again.") from error

    def holds(self, file: str) -> bool:
        """Whether the cache has a file."""
        return isinstance(self._cached(file), str)

    def _cached(self, file: str) -> Any:
        from huggingface_hub import try_to_load_from_cache

        path = f"{self.subfolder}/{file}" if self.subfolder else file
        revision = getattr(self.revision, "resolved", self.revision)
        return try_to_load_from_cache(self.repo_id, path, cache_dir=self.options.get("cache_dir"), revision=revision)


def _is_adapter(files: _HubFiles) -> bool:
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return files.fetch(ADAPTER_CONFIG) is not None
    except LocalEntryNotFoundError:  # the Hub is out of reach
        if files.holds(WEIGHTS):  # and was asked when they were fetched
            return False
        raise


def check_blob(path: Path, what: str) -> None:
    """Raise ``InputError`` unless a file of the cache has the checksum that the Hub states.

    Only files of the Hub's large storage are checked: the cache names their content by its SHA-256.
    """
    stated = path.readlink().name if path.is_symlink() else path.name
    if SHA256.fullmatch(stated):
        _check(path, stated, what, "the Hub")


def _check(path: Path, sha256: str, what: str, authority: str) -> None:
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != sha256:
        raise InputError(
            f"{what} is damaged, or was altered: sha256 {found[:12]}…, but {authority} states {sha256[:12]}…. Delete "
            f"{path.resolve()} and load it again; if that does not help, do not use it, and tell its publisher."
        )


def is_adapter(folder: str | Path) -> bool:
    """Whether a folder holds an adapter, and not a whole model."""
    return (Path(folder) / ADAPTER_CONFIG).is_file()


def attach(folder: str | Path, load_base: Callable[..., Any], *, name: str | None = None, **kwargs: Any) -> Any:
    """Load the base that an adapter names, and the adapter on top: a ``peft.PeftModel``.

    Args:
        folder: folder of the adapter.
        load_base: loads the base; called with its name, its ``revision`` if stated, and ``kwargs`` except those that
            locate the adapter on the Hub.
        name: name of the adapter for messages; default: its folder.

    Raises:
        InputError: the folder holds no adapter, its base cannot be found or does not fit, or PEFT is not installed,
            which may happen where this file travelled with weights on the Hub.
    """
    try:
        from peft import PeftConfig, PeftModel, get_peft_model_state_dict
    except ImportError as error:
        raise InputError("adapters need PEFT; run: pip install peft") from error

    name = name or str(folder)
    for file in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        if not (Path(folder) / file).is_file():
            raise InputError(f"{name} holds no {file}; expected the folder of an adapter, as fine-tuning writes.")
    try:
        with loading(name):
            config = PeftConfig.from_pretrained(str(folder))
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{name}: {ADAPTER_CONFIG} is not a configuration of PEFT: {reason(error)}.") from error
    base = config.base_model_name_or_path
    if not isinstance(base, str):
        raise InputError(f"{name}: {ADAPTER_CONFIG} names no base_model_name_or_path; expected a name or a Hub id.")
    kwargs = {key: value for key, value in kwargs.items() if key not in ("revision", "subfolder")}
    if config.revision is not None:
        kwargs["revision"] = config.revision
    try:
        model = load_base(base, **kwargs)
    except InputError as error:
        raise InputError(f"{name} is an adapter on {base!r}, which cannot be loaded: {error}") from error
    try:
        with loading(name):
            adapted = PeftModel.from_pretrained(model, str(folder))
            with safe_open(Path(folder) / ADAPTER_WEIGHTS, "pt") as stored:
                strangers = set(stored.keys()) ^ set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
    except InputError:
        raise
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"{name} is an adapter on other weights than {base!r} is now: {str(error).splitlines()[-1].strip()}"
        ) from error
    if strangers:
        raise InputError(f"{name} is an adapter on another network than {base!r}: {min(strangers)} does not fit.")
    return adapted


def fingerprint(model: nn.Module) -> str:
    """SHA-256 of all weights of a network and their names."""
    digest = hashlib.sha256()
    for name, weight in model.state_dict().items():
        digest.update(name.encode() + weight.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
