"""A remote folder as a store of zarr; separate from ``remote.py`` because it imports zarr."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable

from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype

from emformer_hub.volumes.kvstore import DESCRIPTIONS, not_reached, not_written, open_kvstore


class RemoteStore(Store):
    """Store of zarr at an address; it holds no connection and may be pickled.

    Args:
        url: address of the folder.
        read_only: whether nothing may be written.
        descriptions: address of the folder that holds what describes groups and arrays; default: the same.
    """

    def __init__(self, url: str, *, read_only: bool = True, descriptions: str | None = None):
        super().__init__(read_only=read_only)
        self.url, self.descriptions = url, descriptions or url

    def with_read_only(self, read_only: bool = False) -> RemoteStore:
        """The same store, read only or not."""
        return RemoteStore(self.url, read_only=read_only, descriptions=self.descriptions)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemoteStore) and (other.url, other.descriptions) == (self.url, self.descriptions)

    def __hash__(self) -> int:
        return hash(self.url)

    def __str__(self) -> str:
        return self.url

    def _folder(self, key: str) -> str:
        """Address of the folder that a key is looked up in."""
        return self.descriptions if key.rsplit("/", 1)[-1] in DESCRIPTIONS else self.url

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        part = None
        if isinstance(byte_range, RangeByteRequest):
            part = slice(byte_range.start, byte_range.end)
        elif isinstance(byte_range, OffsetByteRequest):
            part = slice(byte_range.offset, None)
        elif isinstance(byte_range, SuffixByteRequest):
            part = slice(-byte_range.suffix, None)
        try:
            result = await open_kvstore(self._folder(key)).read(key, byte_range=part)
        except ValueError as error:
            raise not_reached(f"{self.url}/{key}", error) from error
        return None if result.state == "missing" else prototype.buffer.from_bytes(bytes(result.value))

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        return [await self.get(key, prototype, part) for key, part in key_ranges]

    async def exists(self, key: str) -> bool:
        try:
            result = await open_kvstore(self._folder(key)).read(key)
        except ValueError as error:
            raise not_reached(f"{self.url}/{key}", error) from error
        return result.state != "missing"

    _names: tuple[str, ...] = ()
    """Known names; empty, because web servers do not list them."""
    supports_writes = True
    supports_deletes = False
    supports_listing = False

    async def set(self, key: str, value: Buffer) -> None:
        self._check_writable()
        try:
            await open_kvstore(self._folder(key)).write(key, value.to_bytes())
        except ValueError as error:
            raise not_written(f"{self.url}/{key}", error) from error

    async def delete(self, key: str) -> None:
        raise NotImplementedError(f"nothing is deleted from {self.url}.")

    async def list(self) -> AsyncIterator[str]:
        for name in self._names:
            yield name

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        for name in self._names:
            yield name

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        for name in self._names:
            yield name
