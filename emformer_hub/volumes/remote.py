"""Remote volumes: in a bucket, on a web server, on the Hub. They are read box by box, and never written.

TensorStore fetches them (extra ``remote``); the module of the format parses them, as it does local ones.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from emformer_hub.errors import InputError
from emformer_hub.volumes.kvstore import TIMEOUT_S, not_reached, open_kvstore

if TYPE_CHECKING:
    from emformer_hub.volumes.remote_store import RemoteStore

_BEFORE = re.compile(r"(precomputed|n5|zarr|zarr2|zarr3|file|brainmaps\+precomputed)://")
_AFTER = re.compile(r"\|(neuroglancer-precomputed|n5|zarr|zarr2|zarr3):?/?$")
SCHEMES = ("https", "http", "s3", "gs", "hf")


def plain_address(path: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """An address or path without what viewers put before it: ``precomputed://``, ``n5://``, ``zarr://``, ``file://``.

    Neuroglancer prints ``zarr://s3://bucket/name`` and ``s3://bucket/name/|zarr3:`` for ``s3://bucket/name``.
    """
    if isinstance(path, os.PathLike):
        return path
    text = path.split("|", 1)[0] if _AFTER.search(path) else path
    while found := _BEFORE.match(text):
        text = text[found.end() :]
    return path if text == path else text


def is_url(path: str | os.PathLike[str]) -> bool:
    """Whether a path is an address.

    Raises:
        InputError: an address of an unknown kind.
    """
    scheme, found, _ = os.fspath(plain_address(path)).partition("://")
    if found and scheme not in SCHEMES:
        raise InputError(
            f"{path} is an address of the kind {scheme}://; expected a path, or "
            f"{', '.join(f'{known}://' for known in SCHEMES)}."
        )
    return bool(found)


def absolute(path: str | os.PathLike[str]) -> str:
    """Absolute path; an address is returned without what viewers put around it."""
    path = plain_address(path)
    return os.fspath(path) if is_url(path) else str(Path(path).absolute())


class Remote:
    """A remote file or folder, with the few methods of ``Path`` that readers need; it may be pickled.

    Buckets of S3 are read with the credentials of the usual variables and files, or else without any, at
    ``AWS_ENDPOINT_URL_S3`` or ``AWS_ENDPOINT_URL`` if that is set; those of Google with the default credentials, if
    there are any; the Hub (``hf://datasets/ORG/NAME/PATH``) at ``HF_ENDPOINT`` with the token of the login.

    Args:
        url: address.
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
        """Whether a file exists. It is read whole, because not every server can read parts of files."""
        return self.read() is not None

    is_file = exists

    def read(self, part: slice | None = None) -> bytes | None:
        """Read a file, or a part of it; ``None`` if it does not exist.

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
        """The folder as a store of zarr."""
        from emformer_hub.volumes.remote_store import RemoteStore

        return RemoteStore(self.url)
