"""A remote folder as a store of zarr; separate from ``remote.py`` because it imports zarr."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable

from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype

from emformer_hub.volumes.kvstore import not_reached, open_kvstore


class RemoteStore(Store):
    """Read-only store; it holds no connection and may be pickled."""

    def __init__(self, url: str):
        super().__init__(read_only=True)
        self.url = url

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemoteStore) and other.url == self.url

    def __hash__(self) -> int:
        return hash(self.url)

    def __str__(self) -> str:
        return self.url

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        part = None
        if isinstance(byte_range, RangeByteRequest):
            part = slice(byte_range.start, byte_range.end)
        elif isinstance(byte_range, OffsetByteRequest):
            part = slice(byte_range.offset, None)
        elif isinstance(byte_range, SuffixByteRequest):
            part = slice(-byte_range.suffix, None)
        try:
            result = await open_kvstore(self.url).read(key, byte_range=part)
        except ValueError as error:
            raise not_reached(f"{self.url}/{key}", error) from error
        return None if result.state == "missing" else prototype.buffer.from_bytes(bytes(result.value))

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        return [await self.get(key, prototype, part) for key, part in key_ranges]

    async def exists(self, key: str) -> bool:
        try:
            result = await open_kvstore(self.url).read(key)
        except ValueError as error:
            raise not_reached(f"{self.url}/{key}", error) from error
        return result.state != "missing"

    _names: tuple[str, ...] = ()
    """Known names; empty, because web servers do not list them."""
    supports_writes = False
    supports_deletes = False
    supports_listing = False

    async def set(self, key: str, value: Buffer) -> None:
        raise NotImplementedError(f"{self.url} is read only.")

    async def delete(self, key: str) -> None:
        raise NotImplementedError(f"{self.url} is read only.")

    async def list(self) -> AsyncIterator[str]:
        for name in self._names:
            yield name

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        for name in self._names:
            yield name

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        for name in self._names:
            yield name
