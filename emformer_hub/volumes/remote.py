"""Remote volumes: read box by box from a bucket, a web server or the Hub; written into buckets.

TensorStore moves the bytes (extra ``remote``); the module of the format parses them, as it does local ones.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from emformer_hub.errors import InputError
from emformer_hub.volumes.kvstore import DESCRIPTIONS, TIMEOUT_S, not_reached, not_written, open_kvstore

if TYPE_CHECKING:
    from emformer_hub.volumes.remote_store import RemoteStore

_BEFORE = re.compile(r"(precomputed|n5|zarr|zarr2|zarr3|file|brainmaps\+precomputed)://")
_AFTER = re.compile(r"\|(neuroglancer-precomputed|n5|zarr|zarr2|zarr3):?/?$")
SCHEMES = ("https", "http", "s3", "gs", "hf")
BUCKETS = ("s3", "gs")
"""Kinds of addresses that can be written to."""


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


def absolute(path: str | os.PathLike[str] | Remote) -> str:
    """Absolute path; an address is returned without what viewers put around it."""
    found = place(path)
    return found.url if isinstance(found, Remote) else str(found.absolute())


def place(path: str | os.PathLike[str] | Remote) -> Path | Remote:
    """A path, or an address as :class:`Remote`."""
    if isinstance(path, Remote):
        return path
    path = plain_address(path)
    return Remote(os.fspath(path)) if is_url(path) else Path(path)


class Remote:
    """A remote file or folder, with the few methods of ``Path`` that are needed; it may be pickled.

    Buckets of S3 are read and written with the credentials of the usual variables and files, or else without any, at
    ``AWS_ENDPOINT_URL_S3`` or ``AWS_ENDPOINT_URL`` if that is set; those of Google with the default credentials, if
    there are any; the Hub (``hf://datasets/ORG/NAME/PATH``) is read at ``HF_ENDPOINT`` with the token of the login.

    Args:
        url: address.
    """

    def __init__(self, url: str):
        self.url = url.rstrip("/")

    def __str__(self) -> str:
        return self.url

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and str(other) == self.url

    def __hash__(self) -> int:
        return hash(self.url)

    def __truediv__(self, name: str) -> Remote:
        return Remote(f"{self.url}/{name}")

    @property
    def name(self) -> str:
        return self.url.rsplit("/", 1)[-1]

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.name).suffix

    def with_name(self, name: str) -> Remote:
        return Remote(f"{self.url.rsplit('/', 1)[0]}/{name}")

    @property
    def in_bucket(self) -> bool:
        """Whether it can be written to."""
        return self.url.split("://", 1)[0] in BUCKETS

    def is_file(self) -> bool:
        """Whether a file exists. It is read whole, because not every server can read parts of files."""
        return self.read() is not None

    def exists(self) -> bool:
        """Whether a file exists, or a Zarr."""
        return self.is_file() or any((self / name).is_file() for name in DESCRIPTIONS)

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

    def read_bytes(self) -> bytes:
        """Read a file; raises ``FileNotFoundError`` if it does not exist, and as :meth:`read`."""
        content = self.read()
        if content is None:
            raise FileNotFoundError(f"{self.url} does not exist")
        return content

    def read_text(self, encoding: str = "utf-8") -> str:
        """Read a file of text, as :meth:`read_bytes` does."""
        return self.read_bytes().decode(encoding)

    def write_bytes(self, content: bytes) -> None:
        """Write a file of a bucket, whole or not at all; raises ``OSError`` if that is refused."""
        folder, name = self.url.rsplit("/", 1)
        try:
            open_kvstore(folder).write(name, content).result(TIMEOUT_S)
        except (ValueError, TimeoutError) as error:
            raise not_written(self.url, error) from error

    def write_text(self, text: str) -> None:
        """Write a file of text, as :meth:`write_bytes` does."""
        self.write_bytes(text.encode())

    def files(self) -> list[str]:
        """Names of all files of a folder in a bucket, as paths within it.

        Raises:
            InputError: there is no such bucket, or it may not be read.
        """
        try:
            return sorted(key.decode() for key in open_kvstore(self.url).list().result(TIMEOUT_S))
        except (ValueError, OSError, TimeoutError) as error:
            raise not_reached(self.url, error) from error

    def read_files(self) -> dict[str, bytes]:
        """All files of a folder in a bucket that holds small ones, by their paths within it."""
        folder, names = open_kvstore(self.url), self.files()
        reads = [folder.read(name) for name in names]
        return {name: bytes(read.result(TIMEOUT_S).value) for name, read in zip(names, reads, strict=True)}

    def remove(self) -> None:
        """Remove a folder of a bucket; its description goes first, so that nobody takes what is left for a whole."""
        from tensorstore import KvStore

        folder = open_kvstore(self.url)
        try:
            for name in DESCRIPTIONS:
                folder.write(name, None).result(TIMEOUT_S)
            folder.delete_range(KvStore.KeyRange()).result()
        except (ValueError, TimeoutError) as error:
            raise not_written(self.url, error) from error

    def store(self, *, read_only: bool = True) -> RemoteStore:
        """The folder as a store of zarr."""
        from emformer_hub.volumes.remote_store import RemoteStore

        return RemoteStore(self.url, read_only=read_only)


class Unfinished(Remote):
    """A Zarr in a bucket while it is written: its voxels lie where they belong, and what describes them elsewhere.

    Buckets rename nothing. Without a description, nobody can take what is there for a Zarr; once all voxels are
    written, :meth:`complete` puts it in place, that of the whole last.

    Args:
        url: address of the Zarr.
    """

    @property
    def descriptions(self) -> Remote:
        """Hidden folder beside the Zarr."""
        return self.with_name(f".{self.name}.unfinished")

    def __truediv__(self, name: str) -> Remote:
        return (self.descriptions if name in DESCRIPTIONS else Remote(self.url)) / name

    def complete(self) -> None:
        """Put the description in place; raises ``OSError`` if that is refused."""
        described = self.descriptions.read_files()
        for name in sorted(described, key=lambda name: name.count("/"), reverse=True):
            (Remote(self.url) / name).write_bytes(described[name])
        self.descriptions.remove()

    def remove(self) -> None:
        """Remove voxels and description."""
        super().remove()
        self.descriptions.remove()

    def store(self, *, read_only: bool = True) -> RemoteStore:
        """The folder as a store of zarr, in which the descriptions lie too."""
        from emformer_hub.volumes.remote_store import RemoteStore

        return RemoteStore(self.url, read_only=read_only, descriptions=self.descriptions.url)


@contextmanager
def replacing_remote(final: Remote) -> Iterator[Unfinished]:
    """Yield what becomes ``final`` if the block succeeds; what was there is removed first.

    If the block raises anything, nothing is left.

    Raises:
        InputError: the bucket refused.
    """
    unfinished = Unfinished(final.url)
    try:
        unfinished.remove()
        try:
            yield unfinished
            unfinished.complete()
        except BaseException:
            unfinished.remove()
            raise
    except OSError as error:
        raise InputError(f"output {error}") from error
