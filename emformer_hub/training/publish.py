"""The folder of a finished run on the Hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from emformer_hub.adapter_folder import ADAPTER_CONFIG, ADAPTER_WEIGHTS, is_adapter
from emformer_hub.errors import InputError, reason
from emformer_hub.model_folder import WEIGHTS
from emformer_hub.pretrained import HUB_ID

if TYPE_CHECKING:
    from huggingface_hub import HfApi

RECIPE = "recipe.yaml"
NOT_PUBLISHED = ["log.jsonl", "checkpoint/*", "emformer/*", ".*"]
"""Of a run's folder: what resumes it, and what a tracker wrote."""
EITHER_OR = ("config.json", WEIGHTS, ADAPTER_CONFIG, ADAPTER_WEIGHTS)
"""What makes a repository a whole model or an adapter; an earlier push's may not stay beside a later one's."""
TRIES = 5


def check_publishable(base: str | None, repo_id: str) -> None:
    """Raise ``InputError`` before the work, not after it: a bad id, no login or no right, or a base nobody else has."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, HTTPError, LocalTokenNotFoundError
    from huggingface_hub.utils import validate_repo_id

    if base is not None and Path(base).exists():
        raise InputError(f"base {base} is a folder of this machine; publish it first, and give its Hub id as --base.")
    try:
        validate_repo_id(repo_id)
        if not HUB_ID.fullmatch(repo_id):
            raise HFValidationError("It names no owner.")
        user = HfApi().whoami()
    except HFValidationError as error:
        raise InputError(f"--push-to-hub {repo_id}: {reason(error)}. Expected ORG/NAME.") from error
    except LocalTokenNotFoundError as error:
        raise InputError("--push-to-hub needs a login: run 'hf auth login', or set HF_TOKEN.") from error
    except (HTTPError, OSError) as error:
        raise InputError(f"--push-to-hub {repo_id}: the Hub cannot be used: {reason(error)}.") from error
    _check_rights(user, repo_id)


def _check_rights(user: dict[str, Any], repo_id: str) -> None:
    """What the Hub says of a token: its owner, their organisations, and its role. A fine-grained one does not tell."""
    role = user.get("auth", {}).get("accessToken", {}).get("role")
    if role == "read":
        raise InputError(
            f"--push-to-hub {repo_id}: the token of {user['name']} may only read; make one that may write, and log in "
            f"with it: hf auth login."
        )
    owners = [user["name"], *(organisation["name"] for organisation in user.get("orgs", []))]
    owner, _, _ = repo_id.partition("/")
    if role == "write" and owner.lower() not in [name.lower() for name in owners]:
        raise InputError(
            f"--push-to-hub {repo_id}: {user['name']} may publish as {' or '.join(owners)}, not as {owner}."
        )


def push(folder: Path, repo_id: str) -> str:
    """Upload weights or adapter, processor, card, recipe, report and figure in one commit; return its address.

    The commit holds all of it or does not come about. One that somebody else makes at the same time is never mixed with
    it: then it is made again on top.

    Raises:
        InputError: as :func:`check_publishable`, or the upload failed; the message says why.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HTTPError

    base = json.loads((folder / ADAPTER_CONFIG).read_text())["base_model_name_or_path"] if is_adapter(folder) else None
    check_publishable(base, repo_id)
    api = HfApi()
    try:
        api.create_repo(repo_id, exist_ok=True)
        for _ in range(TRIES - 1):
            try:
                return _commit(api, folder, repo_id)
            except HfHubHTTPError as error:
                if error.response.status_code != 412:  # somebody else's commit came first
                    raise
        return _commit(api, folder, repo_id)
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        raise InputError(
            f"{repo_id}: the upload failed: {reason(error)}. The result in {folder} is complete; the same command with "
            f"--resume uploads it again."
        ) from error


def _content(file: Path) -> Path | bytes:
    """What is uploaded of a file; a recipe calls its volumes by name: folders of this machine tell nobody a thing."""
    if file.name != RECIPE:
        return file
    recipe = yaml.safe_load(file.read_text())
    for volume in recipe["volumes"]:
        volume["path"] = Path(volume["path"]).name
    return yaml.safe_dump(recipe, sort_keys=False).encode()


def _commit(api: HfApi, folder: Path, repo_id: str) -> str:
    """One commit on top of the repository as it is now, or an error of status 412 if it does not stay so."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete
    from huggingface_hub.utils import filter_repo_objects

    there = api.model_info(repo_id)
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    files = list(filter_repo_objects(files, ignore_patterns=NOT_PUBLISHED))
    stale = [one.rfilename for one in there.siblings or [] if one.rfilename in set(EITHER_OR) - set(files)]
    commit = api.create_commit(
        repo_id,
        [
            *(CommitOperationDelete(path) for path in stale),
            *(CommitOperationAdd(path, _content(folder / path)) for path in files),
        ],
        commit_message="Fine-tuned weights",
        parent_commit=there.sha,
    )
    return str(commit.commit_url)
