"""Remote folders as key-value stores of TensorStore (extra ``remote``), used by all readers of addresses."""

from __future__ import annotations

import json
import os
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from emformer_hub.errors import InputError, import_extra

if TYPE_CHECKING:
    from tensorstore import KvStore

TIMEOUT_S = 60.0
DESCRIPTIONS = ("zarr.json", ".zgroup", ".zattrs", ".zarray", ".zmetadata")
"""Names of the files without which a folder is not a Zarr."""
RETRIES = {"max_retries": 4, "initial_delay": "100ms", "max_delay": "2s"}
CONTEXT: dict[str, Any] = {f"{kind}_request_retries": RETRIES for kind in ("http", "s3", "gcs")}


def not_reached(url: str, error: BaseException) -> InputError:
    """Error for an address that cannot be read."""
    return InputError(
        f"{url} cannot be read: {_said(error)}. Is the address right, is there a network, and may you read there "
        f"(AWS_* variables for s3://, `gcloud auth application-default login` for gs://, a login for hf://)?"
    )


def not_written(url: str, error: BaseException) -> OSError:
    """Error for an address that cannot be written to."""
    return OSError(
        f"{url} cannot be written: {_said(error)}. Does the bucket exist, is there a network, and may you write there "
        f"(AWS_* variables for s3://, `gcloud auth application-default login` for gs://)?"
    )


def _said(error: BaseException) -> str:
    """First line of an error of TensorStore, without the answer of the server in full."""
    lines = str(error).splitlines()
    return lines[0].split(" [http_response", 1)[0][:300] if lines else type(error).__name__


def import_tensorstore(what: object) -> Any:
    return import_extra("tensorstore", "remote", f"{what} is read by TensorStore")


def kvstore_spec(url: str) -> dict[str, Any]:
    """TensorStore's description of a folder.

    Raises:
        InputError: the address does not name a folder.
    """
    scheme, _, rest = url.partition("://")
    first, _, path = rest.partition("/")
    folder = f"{path.rstrip('/')}/" if path else ""
    if scheme == "s3":
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        known = any(name in os.environ for name in ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_ROLE_ARN"))
        known = known or Path(os.path.expanduser("~/.aws/credentials")).exists()
        spec: dict[str, Any] = {"driver": "s3", "bucket": first, "path": folder}
        spec["aws_credentials"] = {"type": "default" if known else "anonymous"}
        if endpoint:
            spec |= {"endpoint": endpoint.rstrip("/"), "aws_region": region or "us-east-1"}
        elif region:
            spec["aws_region"] = region
        return spec
    if scheme == "gs":
        return {"driver": "gcs", "bucket": first, "path": folder}
    headers: list[str] = []
    if scheme == "hf":
        url, headers = _on_hub(url)
    parts = urlsplit(url)
    path = f"{parts.path.rstrip('/')}/"
    return {"driver": "http", "base_url": f"{parts.scheme}://{parts.netloc}", "path": path, "headers": headers}


def _on_hub(url: str) -> tuple[str, list[str]]:
    """Web address of a folder on the Hub, and the headers to send."""
    from huggingface_hub import constants, get_token

    kind, *names = url.removeprefix("hf://").split("/")
    if kind not in ("datasets", "models") or len(names) < 3:
        raise InputError(
            f"{url} does not name a folder on the Hub; expected hf://datasets/ORG/NAME/PATH or hf://models/..."
        )
    org, name, *path = names
    name, _, revision = name.partition("@")
    token = get_token()
    prefix = "datasets/" if kind == "datasets" else ""
    where = f"{constants.ENDPOINT}/{prefix}{org}/{name}/resolve/{revision or 'main'}/{'/'.join(path)}"
    return where, [f"Authorization: Bearer {token}"] if token else []


@lru_cache(maxsize=64)
def _opened(spec: str) -> KvStore:
    tensorstore = import_tensorstore(spec)
    return tensorstore.KvStore.open({**json.loads(spec), "context": CONTEXT}).result(TIMEOUT_S)


def open_kvstore(folder: str) -> KvStore:
    """Open a remote folder, once per process."""
    import_tensorstore(folder)
    return _opened(json.dumps(kvstore_spec(folder)))
