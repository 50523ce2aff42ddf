"""The files of a model, or of an adapter on one: bundled, the user's own, or fetched from the Hub, and checked.

An adapter is a small file of weights, and the name and revision of the base that it belongs to.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub.utils.sha import git_hash
from safetensors import safe_open

from .errors import InputError, ModelNotFoundError, reason
from .pretrained import PretrainedWeights, loading, registry, resolve_pretrained

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

WEIGHTS = "model.safetensors"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
HUB_OPTIONS = ("revision", "subfolder", "cache_dir", "force_download", "local_files_only", "token")
"""Options of ``from_pretrained`` in transformers: where a model is on the Hub, and how to fetch it."""
MISFITS = ("missing_keys", "unexpected_keys", "mismatched_keys")
"""How weights may not fit a network, as ``output_loading_info`` of transformers names it."""
SHA256, GIT_BLOB = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{40}")
SNAPSHOT = re.compile(r"/snapshots/([0-9a-f]{40})(/|$)")


def take_hub_options(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Remove the ``HUB_OPTIONS`` from keyword arguments; return those that say something."""
    taken = {key: kwargs.pop(key) for key in HUB_OPTIONS if key in kwargs}
    return {key: value for key, value in taken.items() if value is not None}


def model_folder(name: str, revision: str | None = None, subfolder: str = "", **options: Any) -> Path:
    """Folder on this machine with a whole model or an adapter, which is fetched first if it is on the Hub.

    Args:
        name: bundled name, folder or Hub id.
        revision: branch, tag or commit on the Hub.
        subfolder: subfolder with the files.
        options: the other ``HUB_OPTIONS``.

    Raises:
        InputError: the name or revision is not known, the Hub cannot be reached and the cache lacks the files, there is
            no model in safetensors, or the checksum of a file is not the one in the registry or on the Hub.
    """
    source = resolve_pretrained(name, revision)
    if Path(source).is_dir():
        return Path(source) / subfolder
    published, revision = _published(source, revision)
    with loading(name):
        files = _HubFiles(name, source, revision, subfolder, options)
        needed = [ADAPTER_CONFIG, ADAPTER_WEIGHTS] if _is_adapter(files) else ["config.json", WEIGHTS]
        found = {file: files.fetch(file) for file in needed}
    missing = [file for file, path in found.items() if path is None]
    if missing:
        raise ModelNotFoundError(
            f"{name} holds no {missing[0]}; expected config.json and {WEIGHTS}, or {ADAPTER_CONFIG} and "
            f"{ADAPTER_WEIGHTS}, as save_pretrained or training wrote them."
        )
    if published is not None and (path := found.get(WEIGHTS)) is not None:
        known = {published.revision: published.sha256, **{one.revision: one.sha256 for one in published.replaces}}
        if revision in known:
            check_content(path, known[revision], f"{name}: {WEIGHTS} of {revision}", "the registry")
    folders = {path.parent for path in found.values() if path is not None}
    if len(folders) > 1:
        raise InputError(f"{name} changed on the Hub while it was being fetched; load it again.")
    return folders.pop()


def model_file(name: str, file: str, revision: str | None = None, subfolder: str = "", **options: Any) -> Path:
    """One file of a model, of the same revision as :func:`model_folder`: fetched if need be, and checked.

    Raises:
        InputError: as :func:`model_folder`; there is no such file.
    """
    source = resolve_pretrained(name, revision)
    if Path(source).is_dir():
        found: Path | None = Path(source) / subfolder / file
    else:
        _, revision = _published(source, revision)
        with loading(name):
            found = _HubFiles(name, source, revision, subfolder, options).fetch(file)
    if found is None or not found.is_file():
        raise ModelNotFoundError(f"{name} holds no {file}; expected a folder that save_pretrained or training wrote.")
    return found


def _published(repo_id: str, revision: str | None) -> tuple[PretrainedWeights | None, str | None]:
    """The registry's entry of a Hub id, if any, and the revision to load: by default the registered one."""
    entry = {weights.repo_id: weights for weights in registry().values()}.get(repo_id)
    return entry, entry.revision if entry is not None and revision is None else revision


def commit_of(folder: Path) -> str | None:
    """Commit on the Hub that a folder of the cache is a copy of; ``None`` for other folders."""
    found = SNAPSHOT.search(folder.as_posix())
    return found[1] if found else None


class _HubFiles:
    """Files of one commit of a Hub id, from the cache where it has them, each compared with its checksum."""

    def __init__(self, name: str, repo_id: str, revision: str | None, subfolder: str, options: dict[str, Any]):
        from transformers.utils.hub import resolve_revision

        self.name, self.repo_id, self.subfolder, self.options = name, repo_id, subfolder, options
        shared = {key: value for key, value in options.items() if key in ("token", "local_files_only", "cache_dir")}
        self.revision = resolve_revision(repo_id, revision, **shared)  # as it was given, where that fails

    def fetch(self, file: str) -> Path | None:
        """Fetch a file into the cache and check it; ``None`` if the commit lacks it.

        Raises:
            InputError: the download fails, there is no such revision, or the content is not what the Hub states.
        """
        from huggingface_hub import _CACHED_NO_EXIST, hf_hub_download
        from huggingface_hub.errors import (
            HfHubHTTPError,
            HTTPError,
            LocalEntryNotFoundError,
            RemoteEntryNotFoundError,
            RevisionNotFoundError,
        )

        if self._cached(file) is _CACHED_NO_EXIST:
            return None
        try:
            path = Path(
                hf_hub_download(
                    self.repo_id, file, subfolder=self.subfolder or None, revision=self.revision, **self.options
                )
            )
        except RemoteEntryNotFoundError:
            return None
        except RevisionNotFoundError as error:
            raise ModelNotFoundError(
                f"{self.name} has no revision {self.revision!r} on the Hub; expected one of "
                f"{', '.join(self._revisions())}, or a commit."
            ) from error
        except (HfHubHTTPError, LocalEntryNotFoundError):
            raise
        except (HTTPError, OSError, ValueError) as error:
            raise ModelNotFoundError(
                f"{self.repo_id}: {file} cannot be fetched: {reason(error)}. Try again."
            ) from error
        check_blob(path, f"{self.name}: {file}")
        return path

    def holds(self, file: str) -> bool:
        """Whether the cache has a file."""
        return isinstance(self._cached(file), str)

    def _revisions(self) -> list[str]:
        """Tags and branches on the Hub, newest tag first."""
        from huggingface_hub import HfApi

        refs = HfApi().list_repo_refs(self.repo_id, token=self.options.get("token"))
        return [*(tag.name for tag in reversed(refs.tags)), *(branch.name for branch in refs.branches)]

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

    A file of the cache is a link to its content, which is named by its SHA-256 if it came from the Hub's large storage,
    and by its git hash otherwise. A file that took the place of a link must be the content of one all the same, except
    on a file system without links, where nothing is stated.
    """
    if path.is_symlink():
        return check_content(path, path.readlink().name, what, "the Hub")
    snapshot = SNAPSHOT.search(path.as_posix())
    blobs = Path(path.as_posix()[: snapshot.start()]) / "blobs" if snapshot else None
    stated = {blob.name for blob in blobs.iterdir()} if blobs is not None and blobs.is_dir() else set()
    if stated and not stated & {content_hash(path, length) for length in (40, 64)}:
        raise InputError(
            f"{what} was altered: {path} took the place of what was fetched. Delete it and load it again; if that does "
            f"not help, do not use it, and tell its publisher."
        )


def check_content(path: Path, stated: str, what: str, authority: str) -> None:
    """Raise ``InputError`` unless a file has the SHA-256 or git hash that is stated; of no other name is one known."""
    if not (SHA256.fullmatch(stated) or GIT_BLOB.fullmatch(stated)):
        return
    found, kind = content_hash(path, len(stated)), "sha256" if SHA256.fullmatch(stated) else "git hash"
    if found != stated:
        raise InputError(
            f"{what} is damaged, or was altered: {kind} {found[:12]}…, but {authority} states {stated[:12]}…. Delete "
            f"{path.resolve()} and load it again; if that does not help, do not use it, and tell its publisher."
        )


def content_hash(path: Path, length: int) -> str:
    """The hash of a file with so many digits: 64, its SHA-256; 40, that by which git names it."""
    content = path.read_bytes()
    return hashlib.sha256(content).hexdigest() if length == 64 else git_hash(content)


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
            raise ModelNotFoundError(
                f"{name} holds no {file}; expected the folder of an adapter, as fine-tuning writes."
            )
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


def check_fit(name: str, info: dict[str, Any], model: PreTrainedModel, *, resized: bool = False) -> None:
    """Raise ``InputError`` unless the weights of a file are those of the network, one by one.

    What a model has around the network, as ``emformer`` within it, may be new, and what was around the network that was
    saved may be left out; transformers reports both.

    Args:
        name: of the weights, for messages.
        info: what transformers found when it loaded them.
        model: what was loaded, with the configuration that was saved beside the weights.
        resized: whether weights of another shape may have been left out.
    """
    faults = {kind: sorted(map(str, info[kind])) for kind in MISFITS}
    prefix = f"{model.base_model_prefix}."
    if hasattr(model, model.base_model_prefix):
        faults["missing_keys"] = [key for key in faults["missing_keys"] if key.startswith(prefix)]
    elif type(model).__name__ not in (model.config.architectures or [type(model).__name__]):
        faults["unexpected_keys"] = [key for key in faults["unexpected_keys"] if key.startswith(prefix)]
    if resized:
        del faults["mismatched_keys"]
    for kind, keys in faults.items():
        if keys:
            raise InputError(
                f"{name}: the weights do not fit the config: {kind.replace('_', ' ')} {', '.join(keys[:3])}"
                f"{' …' if len(keys) > 3 else ''}. Were config.json and model.safetensors saved together, "
                f"by this version of emformer_hub?"
            )


def fingerprint(model: nn.Module) -> str:
    """SHA-256 of all weights of a network and their names."""
    digest = hashlib.sha256()
    for name, weight in model.state_dict().items():
        digest.update(name.encode() + weight.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
