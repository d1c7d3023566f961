"""Values of any size in a journal: what is large is stored once, by hash, and referred to.

A list that grows, such as a conversation whose every step carries all earlier turns, is cut into
groups of the same length from its front. A longer list has the same first groups, so only what is
new is stored: the log grows with the conversation, not with its square.
"""

from __future__ import annotations

from typing import Any

import msgspec

from stratum_bus import blob
from stratum_bus.event import Raw, encode_value
from stratum_bus.jetstream import Connection

INLINE_MAX = 16 * 1024
"""A value up to this many bytes of JSON stands in the entry as it is."""

ELEMENT_MAX = 1024
GROUP = 16

_BLOB, _LIST, _DICT = "$blob", "$list", "$dict"


async def pack(connection: Connection, value: Any, path: str = "$") -> tuple[Any, bool]:
    """The value as it stands in an entry, and whether it refers to blobs.

    Raises EncodeError with the path of what is no JSON, BlobError over 64 MiB, before anything is
    journaled.
    """
    encoded = encode_value(value, path)
    if len(encoded) <= INLINE_MAX:
        return Raw(encoded), False
    return await _pack(connection, msgspec.json.decode(encoded)), True


async def unpack(connection: Connection, raw: Raw) -> Any:
    """The inverse of `pack` for a value that refers to blobs."""
    return await _unpack(connection, msgspec.json.decode(raw))


async def _pack(connection: Connection, value: Any) -> Any:
    if isinstance(value, dict):
        packed = {key: await _small(connection, item) for key, item in value.items()}
        clash = any(key in (_BLOB, _LIST, _DICT) for key in packed)
        return await _whole({_DICT: list(packed.items())} if clash else packed, connection)
    if isinstance(value, list):
        return await _pack_list(connection, [await _small(connection, item) for item in value])
    return await _whole(value, connection)


async def _small(connection: Connection, item: Any) -> Any:
    """An element: itself where it is small, else a reference to it."""
    if isinstance(item, dict) and not item.keys().isdisjoint((_BLOB, _LIST, _DICT)):
        item = {_DICT: [[key, await _small(connection, part)] for key, part in item.items()]}
        return item
    if len(msgspec.json.encode(item)) <= ELEMENT_MAX:
        return item
    if isinstance(item, dict | list):
        item = await _pack(connection, item)
        if len(msgspec.json.encode(item)) <= ELEMENT_MAX:
            return item
    return await _put(connection, item)


async def _pack_list(connection: Connection, items: list[Any]) -> Any:
    if len(items) <= GROUP:
        return items
    full = len(items) // GROUP * GROUP
    groups = [
        (await _put(connection, items[at : at + GROUP]))[_BLOB] for at in range(0, full, GROUP)
    ]
    return {_LIST: await _pack_list(connection, groups), "rest": items[full:]}


async def _whole(value: Any, connection: Connection) -> Any:
    return value if len(msgspec.json.encode(value)) <= INLINE_MAX else await _put(connection, value)


async def _put(connection: Connection, value: Any) -> dict[str, str]:
    return {_BLOB: await blob.put(connection, msgspec.json.encode(value))}


async def _unpack(connection: Connection, value: Any) -> Any:
    if isinstance(value, list):
        return [await _unpack(connection, item) for item in value]
    if not isinstance(value, dict):
        return value
    if _BLOB in value:
        content = await blob.get(connection, value[_BLOB])
        return await _unpack(connection, msgspec.json.decode(content))
    if _LIST in value:
        items: list[Any] = []
        for digest in await _unpack(connection, value[_LIST]):
            items += await _unpack(connection, {_BLOB: digest})
        return items + await _unpack(connection, value["rest"])
    if _DICT in value:
        return {key: await _unpack(connection, item) for key, item in value[_DICT]}
    return {key: await _unpack(connection, item) for key, item in value.items()}
