"""The folder of a finished run on the Hub."""

from __future__ import annotations

import json
from pathlib import Path

from emformer_hub.adapter_folder import ADAPTER_CONFIG, is_adapter
from emformer_hub.errors import InputError

NOT_PUBLISHED = ["checkpoint/*", ".checkpoint*", "log.jsonl", "emformer/*"]


def check_publishable(base: str | None, repo_id: str) -> None:
    """Raise ``InputError`` before the work, not after it: a bad id, no login, or a base that others cannot find."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
    from huggingface_hub.utils import validate_repo_id

    if base is not None and Path(base).exists():
        raise InputError(f"base {base} is a folder of this machine; publish it first, and give its Hub id as --base.")
    try:
        validate_repo_id(repo_id)
        HfApi().whoami()
    except HFValidationError as error:
        raise InputError(f"--push-to-hub {repo_id}: {error} Expected ORG/NAME.") from error
    except LocalTokenNotFoundError as error:
        raise InputError("--push-to-hub needs a login: run 'hf auth login', or set HF_TOKEN.") from error
    except (HfHubHTTPError, OSError) as error:
        raise InputError(f"--push-to-hub {repo_id}: the Hub cannot be used: {str(error).splitlines()[0]}") from error


def push(folder: Path, repo_id: str) -> str:
    """Upload weights or adapter, processor, card, recipe, report and figure in one commit; return its address."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    if is_adapter(folder):
        base = json.loads((folder / ADAPTER_CONFIG).read_text())["base_model_name_or_path"]
        check_publishable(base, repo_id)
    api = HfApi()
    try:
        api.create_repo(repo_id, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id, folder_path=folder, ignore_patterns=NOT_PUBLISHED, commit_message="Fine-tuned weights"
        )
    except (HfHubHTTPError, OSError) as error:
        raise InputError(
            f"{repo_id}: the upload failed: {str(error).splitlines()[0]} The result in {folder} is complete; push it "
            f"again with: hf upload {repo_id} {folder}"
        ) from error
    return str(commit.commit_url)
