"""Values of any size in a journal: what is large is stored once, by hash, and referred to.

A list that grows, such as a conversation whose every step carries all earlier turns, is cut into
groups of the same length from its front. A longer list has the same first groups, so only what is
new is stored: the log grows with the conversation, not with its square.
"""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec

from stratum_bus import blob
from stratum_bus.event import Raw, encode_value
from stratum_bus.jetstream import Connection

INLINE_MAX = 16 * 1024
"""A value up to this many bytes of JSON stands in the entry as it is."""

ELEMENT_MAX = 1024
GROUP = 16

KEPT_MAX_BYTES = 16 << 20
"""So much of what was fetched is kept while a run is in hand."""

_BLOB, _LIST, _DICT = "$blob", "$list", "$dict"


class Blobs:
    """The blobs of a run in hand: each is stored or fetched once.

    Every step of a long conversation refers to all of it; without this its requests, if not its
    bytes, would grow with the square.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._stored: set[str] = set()
        self._content: dict[str, bytes] = {}
        self._kept_bytes = 0

    async def pack(self, value: Any, path: str = "$") -> tuple[Any, bool]:
        """The value as it stands in an entry, and whether it refers to blobs.

        Raises EncodeError with the path of what is no JSON, BlobError over 64 MiB, before anything
        is journaled.
        """
        encoded = encode_value(value, path)
        if len(encoded) <= INLINE_MAX:
            return Raw(encoded), False
        value = msgspec.json.decode(encoded)
        if b"$" in encoded or b"\\u0024" in encoded:
            value = _escaped(value)
        return await _pack(self, value), True

    async def unpack(self, raw: Raw) -> Any:
        """The inverse of `pack` for a value that refers to blobs. Raises BlobError."""
        return await _unpack(self, msgspec.json.decode(raw))

    async def put(self, value: Any) -> dict[str, str]:
        content = msgspec.json.encode(value)
        digest = hashlib.sha256(content).hexdigest()
        if digest not in self._stored:
            await blob.put(self._connection, content)
            self._stored.add(digest)
        return {_BLOB: digest}

    async def get(self, digest: str) -> Any:
        if (content := self._content.get(digest)) is None:
            content = await blob.get(self._connection, digest)
            self._stored.add(digest)
            if self._kept_bytes + len(content) <= KEPT_MAX_BYTES:
                self._content[digest] = content
                self._kept_bytes += len(content)
        return msgspec.json.decode(content)


async def unpack(connection: Connection, raw: Raw) -> Any:
    """A packed value on its own. Raises BlobError."""
    return await Blobs(connection).unpack(raw)


def _escaped(value: Any) -> Any:
    """A value in which nothing of the user's can be taken for a mark of ours."""
    if isinstance(value, list):
        return [_escaped(item) for item in value]
    if not isinstance(value, dict):
        return value
    if value.keys().isdisjoint((_BLOB, _LIST, _DICT)):
        return {key: _escaped(item) for key, item in value.items()}
    return {_DICT: [[key, _escaped(item)] for key, item in value.items()]}


async def _pack(blobs: Blobs, value: Any) -> Any:
    if isinstance(value, dict):
        packed = {key: await _small(blobs, item) for key, item in value.items()}
        return await _whole(blobs, packed)
    if isinstance(value, list):
        return await _pack_list(blobs, [await _small(blobs, item) for item in value])
    return await _whole(blobs, value)


async def _small(blobs: Blobs, item: Any) -> Any:
    """An element: itself where it is small, else a reference to it."""
    if len(msgspec.json.encode(item)) <= ELEMENT_MAX:
        return item
    if isinstance(item, dict | list):
        item = await _pack(blobs, item)
        if len(msgspec.json.encode(item)) <= ELEMENT_MAX:
            return item
    return await blobs.put(item)


async def _pack_list(blobs: Blobs, items: list[Any]) -> Any:
    if len(items) <= GROUP:
        return items
    full = len(items) // GROUP * GROUP
    groups = [(await blobs.put(items[at : at + GROUP]))[_BLOB] for at in range(0, full, GROUP)]
    return {_LIST: await _pack_list(blobs, groups), "rest": items[full:]}


async def _whole(blobs: Blobs, value: Any) -> Any:
    return value if len(msgspec.json.encode(value)) <= INLINE_MAX else await blobs.put(value)


async def _unpack(blobs: Blobs, value: Any) -> Any:
    if isinstance(value, list):
        return [await _unpack(blobs, item) for item in value]
    if not isinstance(value, dict):
        return value
    if _BLOB in value:
        return await _unpack(blobs, await blobs.get(value[_BLOB]))
    if _LIST in value:
        items: list[Any] = []
        for digest in await _unpack(blobs, value[_LIST]):
            items += await _unpack(blobs, {_BLOB: digest})
        return items + await _unpack(blobs, value["rest"])
    if _DICT in value:
        return dict(await _unpack(blobs, value[_DICT]))
    return {key: await _unpack(blobs, item) for key, item in value.items()}
