"""Volumes that lie elsewhere: in a bucket, on a web server, on the Hub. They are read, a box at a time; never written.

TensorStore fetches (extra ``remote``); what is fetched is parsed by the module of its format, as it is on this machine.
"""

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

    from emformer_hub.volumes.remote_store import RemoteStore

SCHEMES = ("https", "http", "s3", "gs", "hf")
TIMEOUT_S = 60.0
RETRIES = {"max_retries": 4, "initial_delay": "100ms", "max_delay": "2s"}
CONTEXT: dict[str, Any] = {f"{kind}_request_retries": RETRIES for kind in ("http", "s3", "gcs")}


def is_url(path: str | os.PathLike[str]) -> bool:
    """Whether it is an address elsewhere.

    Raises:
        InputError: an address of another kind.
    """
    scheme, found, _ = os.fspath(path).partition("://")
    if found and scheme not in SCHEMES:
        raise InputError(
            f"{path} is an address of the kind {scheme}://; expected a path, or "
            f"{', '.join(f'{known}://' for known in SCHEMES)}."
        )
    return bool(found)


def absolute(path: str | os.PathLike[str]) -> str:
    """A path that means the same in another folder; an address as it is."""
    return os.fspath(path) if is_url(path) else str(Path(path).absolute())


class Remote:
    """A file or folder elsewhere, with the few methods of ``Path`` that readers need. It may be pickled.

    Buckets of S3 are read with the credentials of the usual variables and files, or else without any, at
    ``AWS_ENDPOINT_URL_S3`` or ``AWS_ENDPOINT_URL`` if that is set; those of Google with the default credentials, if
    there are any; the Hub (``hf://datasets/ORG/NAME/PATH``) at ``HF_ENDPOINT`` with the token of the login.

    Args:
        url: its address.
    """

    def __init__(self, url: str):
        self.url = url.rstrip("/")

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str) -> Remote:
        return Remote(f"{self.url}/{name}")

    @property
    def name(self) -> str:
        return self.url.rsplit("/", 1)[-1]

    def exists(self) -> bool:
        """Whether there is a file; folders are none. It is read whole: not every server knows parts of files."""
        return self.read() is not None

    is_file = exists

    def read(self, part: slice | None = None) -> bytes | None:
        """The bytes of a file, or a part of them; ``None`` if there is none.

        Raises:
            InputError: the server cannot be reached, or does not allow it.
        """
        folder, name = self.url.rsplit("/", 1)
        try:
            result = open_kvstore(folder).read(name, byte_range=part).result(TIMEOUT_S)
        except (ValueError, OSError, TimeoutError) as error:
            raise not_reached(self.url, error) from error
        return None if result.state == "missing" else bytes(result.value)

    def store(self) -> RemoteStore:
        """The folder, as zarr sees it."""
        from emformer_hub.volumes.remote_store import RemoteStore

        return RemoteStore(self.url)


def not_reached(url: str, error: BaseException) -> InputError:
    """The error for an address that does not answer as it should."""
    said = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
    return InputError(
        f"{url} cannot be read: {said}. Is the address right, is there a network, and may you read there "
        f"(AWS_* variables for s3://, a login for hf://)?"
    )


def import_tensorstore(what: object) -> Any:
    return import_extra("tensorstore", "remote", f"{what} is read by TensorStore")


def kvstore_spec(url: str) -> dict[str, Any]:
    """TensorStore's description of a folder.

    Raises:
        InputError: no address of a folder.
    """
    scheme, _, rest = url.partition("://")
    first, _, path = rest.partition("/")
    folder = f"{path.rstrip('/')}/" if path else ""
    if scheme == "s3":
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        known = any(name in os.environ for name in ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_ROLE_ARN"))
        known = known or Path("~/.aws/credentials").expanduser().exists()
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
    """Where the Hub serves a folder, and what it asks for."""
    from huggingface_hub import constants, get_token

    kind, *names = url.removeprefix("hf://").split("/")
    if kind not in ("datasets", "models") or len(names) < 3:
        raise InputError(f"{url} names no folder on the Hub; expected hf://datasets/ORG/NAME/PATH or hf://models/...")
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
    """A folder elsewhere, opened once in a process."""
    import_tensorstore(folder)
    return _opened(json.dumps(kvstore_spec(folder)))
