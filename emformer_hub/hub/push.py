"""Publishing a model page, a finished run or an adapter on the Hub: one tagged commit, with the code that loads it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import yaml

from emformer_hub.errors import InputError, reason
from emformer_hub.hub.licences import README, licensed
from emformer_hub.hub.remote_code import AUTO_MAPS, remote_code, with_auto_map
from emformer_hub.model_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, WEIGHTS, is_adapter
from emformer_hub.pretrained import HUB_ID, registry

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

RECIPE = "recipe.yaml"
NOT_PUBLISHED = ["log.jsonl", "checkpoint/*", "emformer/*", ".*", "*/.*"]
"""Files of a run that are not published: those for resuming it, and those of a tracker."""
EITHER_OR = ("config.json", WEIGHTS, ADAPTER_CONFIG, ADAPTER_WEIGHTS)
"""Files that make a repository a whole model or an adapter; those of an earlier push must not remain beside a later."""
TRIES = 5


@dataclass(frozen=True)
class Published:
    """Result of a push.

    Attributes:
        url: address of the commit, or of the pull request.
        repo_id, revision: how to load it; the revision is the tag, else the commit, or the branch of the pull request.
        sha256, size: checksum and bytes of the weight file, as the Hub states them.
    """

    url: str
    repo_id: str
    revision: str
    sha256: str
    size: int


def contents(folder: Path, licence: str | None = None) -> dict[str, Path | bytes]:
    """Files of a folder to push, by path in the repository: a file on this machine, or the bytes that replace it.

    Files that only resume a run are left out. The code that loads a whole model is added, and named in its
    configurations. A recipe names its volumes without their folders on this machine.

    Args:
        folder: of a model, a finished run, or an adapter.
        licence: for the page to state; default: what it states.

    Raises:
        InputError: the folder holds neither a whole model nor an adapter, or no licence is stated.
    """
    from huggingface_hub.utils import filter_repo_objects

    adapter = is_adapter(folder)
    for file in (ADAPTER_CONFIG, ADAPTER_WEIGHTS) if adapter else ("config.json", WEIGHTS):
        if not (folder / file).is_file():
            raise InputError(
                f"{folder} holds no {file}; expected a model's folder (config.json, {WEIGHTS}), or an adapter's "
                f"({ADAPTER_CONFIG}, {ADAPTER_WEIGHTS})."
            )
    paths = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    found: dict[str, Path | bytes] = {
        path: folder / path for path in filter_repo_objects(paths, ignore_patterns=NOT_PUBLISHED)
    }
    found[README] = licensed(folder, licence)
    if RECIPE in found:
        recipe = yaml.safe_load((folder / RECIPE).read_text())
        for volume in recipe["volumes"]:
            volume["path"] = Path(volume["path"]).name
        found[RECIPE] = yaml.safe_dump(recipe, sort_keys=False).encode()
    if not adapter:
        found |= remote_code()
        found |= {path: with_auto_map(folder / path) for path in AUTO_MAPS if path in found}
    return found


def check_publishable(base: str | None, repo_id: str) -> None:
    """Raise ``InputError``, before any work, for a bad id, a missing login or permission, or a base on this machine."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, HTTPError, LocalTokenNotFoundError
    from huggingface_hub.utils import validate_repo_id

    if base is not None and base not in registry() and (Path(base).exists() or not HUB_ID.fullmatch(base)):
        raise InputError(f"base {base} is a folder on this machine; publish it first, and give its Hub id as --base.")
    try:
        validate_repo_id(repo_id)
        if not HUB_ID.fullmatch(repo_id):
            raise HFValidationError("It names no owner.")
        user = HfApi().whoami()
    except HFValidationError as error:
        raise InputError(f"{repo_id} cannot be published: {reason(error)}. Expected ORG/NAME.") from error
    except LocalTokenNotFoundError as error:
        raise InputError("publishing needs a login: run 'hf auth login', or set HF_TOKEN.") from error
    except (HTTPError, OSError) as error:
        raise InputError(f"{repo_id} cannot be published: the Hub cannot be used: {reason(error)}.") from error
    _check_rights(user, repo_id)


def _check_rights(user: dict[str, Any], repo_id: str) -> None:
    """Check the owner, organisations and role of a token; a fine-grained token does not state them."""
    role = user.get("auth", {}).get("accessToken", {}).get("role")
    if role == "read":
        raise InputError(
            f"{repo_id} cannot be published: the token of {user['name']} may only read; make one that may write, and "
            f"log in with it: hf auth login."
        )
    owners = [user["name"], *(organisation["name"] for organisation in user.get("orgs", []))]
    owner, _, _ = repo_id.partition("/")
    if role == "write" and owner.lower() not in [name.lower() for name in owners]:
        raise InputError(
            f"{repo_id} cannot be published: {user['name']} may publish as {' or '.join(owners)}, not as {owner}."
        )


def push(
    folder: Path,
    repo_id: str,
    *,
    revision: str | None = None,
    licence: str | None = None,
    private: bool = False,
    create_pr: bool = False,
) -> Published:
    """Upload :func:`contents` in one commit, and tag it.

    The commit holds all files, or is not made. If somebody else commits at the same time, it is made again on top of
    that commit. Pushing the same content again changes nothing, but sets a tag that is missing.

    Args:
        folder: folder of a model, a finished run, or an adapter.
        repo_id: ORG/NAME; created if it does not exist.
        licence: for the page to state; default: what it states.
        revision: tag. An existing tag is never moved; it may stay if its weights are the same.
        private: make a new repository private.
        create_pr: propose the commit as a pull request, which is not tagged.

    Raises:
        InputError: as :func:`check_publishable` and :func:`contents`; the tag has other weights; or the upload failed,
            and the message says why.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError

    if revision is not None and create_pr:
        raise InputError("a pull request is not tagged; give --revision or --create-pr, and tag it when it is merged.")
    files = contents(folder, licence)
    adapter = is_adapter(folder)
    base = json.loads((folder / ADAPTER_CONFIG).read_text())["base_model_name_or_path"] if adapter else None
    check_publishable(base, repo_id)
    api = HfApi()
    weights = ADAPTER_WEIGHTS if adapter else WEIGHTS
    try:
        api.create_repo(repo_id, exist_ok=True, private=private)
        tagged = revision in {tag.name for tag in api.list_repo_refs(repo_id).tags}
        if tagged:
            _check_tag(_stated(api, repo_id, str(revision), "", weights), folder / weights)
        message = "EMformer adapter" if adapter else "EMformer weights"
        commit = commit_whole(api, repo_id, files, message, create_pr=create_pr)
        if revision is not None and not tagged:
            api.create_tag(repo_id, tag=revision, revision=commit.oid)
        where = revision or (commit.pr_revision if create_pr else commit.oid)
        return _stated(api, repo_id, str(where), str(commit.pr_url if create_pr else commit.commit_url), weights)
    except InputError:
        raise
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        raise InputError(
            f"{repo_id}: the upload failed: {reason(error)}. The result in {folder} is complete; "
            f"'emformer-hub push {folder} --repo-id {repo_id}' uploads it again."
        ) from error


def _check_tag(there: Published, weights: Path) -> None:
    """Raise ``InputError`` if a tag has other weights: whoever pinned it relies on it."""
    if there.sha256 != hashlib.sha256(weights.read_bytes()).hexdigest():
        raise InputError(
            f"{there.repo_id} has a tag {there.revision} already, of other weights (sha256 {there.sha256[:12]}…); "
            f"a tag is never moved. Give another --revision."
        )


def _stated(api: HfApi, repo_id: str, revision: str, url: str, weights: str) -> Published:
    """Checksum and size of the weights at a revision, from the Hub."""
    (file,) = cast("list[RepoFile]", api.get_paths_info(repo_id, weights, revision=revision))
    return Published(url, repo_id, revision, file.lfs.sha256 if file.lfs else "", file.size)


def commit_whole(
    api: HfApi,
    repo_id: str,
    files: dict[str, Path | bytes],
    message: str,
    *,
    kind: str = "model",
    create_pr: bool = False,
) -> Any:
    """Commit files on top of a repository as it is; try again if somebody else committed first."""
    from huggingface_hub.errors import HfHubHTTPError

    for _ in range(TRIES - 1):
        try:
            return _commit_on_top(api, repo_id, files, message, kind, create_pr)
        except HfHubHTTPError as error:
            if error.response.status_code != 412:
                raise
    return _commit_on_top(api, repo_id, files, message, kind, create_pr)


def _commit_on_top(
    api: HfApi, repo_id: str, files: dict[str, Path | bytes], message: str, kind: str, create_pr: bool
) -> Any:
    """Commit on top of the current state of the repository; an error of status 412 if that changes meanwhile."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    there: Any = api.repo_info(repo_id, repo_type=kind)
    stale = [one.rfilename for one in there.siblings or [] if one.rfilename in set(EITHER_OR) - set(files)]
    return api.create_commit(
        repo_id,
        [
            *(CommitOperationDelete(path) for path in stale),
            *(CommitOperationAdd(path, content) for path, content in files.items()),
        ],
        commit_message=message,
        repo_type=kind,
        parent_commit=there.sha,
        create_pr=create_pr,
    )
