"""Content-addressed payloads in the stream BLOBS, each stored once under `blob.<sha256>`.

Up to CHUNK_BYTES a blob is one message. A larger one is a manifest that lists its chunks, each of
them a blob; the manifest comes last, so a blob is there whole or not at all.
"""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec

from stratum_bus import event, subject
from stratum_bus.errors import BlobError, WrongSequence
from stratum_bus.jetstream import Connection, api_answer
from stratum_bus.read import last
from stratum_bus.tasks import task_group

STREAM = "BLOBS"
CHUNK_BYTES = 512 * 1024
MAX_BYTES = 64 * 1024 * 1024
PREFIX = "blob:"

_HEADER = "Stratum-Blob"
_AT_ONCE = 8
_PUT_SECONDS = 10.0


class _Manifest(msgspec.Struct):
    size_bytes: int
    chunks: list[str]


def reference(digest: str) -> str:
    """The `dataref` of a blob."""
    return PREFIX + digest


def digest_of(dataref: str) -> str:
    """The digest in a `dataref`; raises BlobError for one that refers to something else."""
    if not dataref.startswith(PREFIX):
        raise BlobError(f"dataref {dataref!r} is not of the form blob:<sha256>")
    return dataref.removeprefix(PREFIX)


def if_large(data: Any, limit_bytes: int) -> bytes | None:
    """The data as JSON where it is longer than the limit; raises EncodeError."""
    encoded = event.encode_value(data, "$.data")
    return encoded if len(encoded) > limit_bytes else None


async def put(connection: Connection, content: bytes) -> str:
    """Store a blob of at most 64 MiB and return its digest; one already there is not stored again.

    Raises BlobError for a larger one, before anything is stored, and what a publish raises.
    """
    if len(content) > MAX_BYTES:
        raise BlobError(
            f"the value has {len(content):,} bytes, a blob may have {MAX_BYTES:,} (64 MiB): "
            "split it, or keep it in an object store and send its address"
        )
    digest = hashlib.sha256(content).hexdigest()
    if len(content) <= CHUNK_BYTES:
        await _store(connection, digest, content, "content")
        return digest
    chunks = [content[i : i + CHUNK_BYTES] for i in range(0, len(content), CHUNK_BYTES)]
    names = [hashlib.sha256(chunk).hexdigest() for chunk in chunks]
    for at in range(0, len(chunks), _AT_ONCE):
        part = zip(names[at : at + _AT_ONCE], chunks[at : at + _AT_ONCE], strict=True)
        async with task_group() as tasks:
            for name, chunk in part:
                tasks.start_soon(_store, connection, name, chunk, "content")
    manifest = msgspec.json.encode(_Manifest(len(content), names))
    await _store(connection, digest, manifest, "manifest")
    return digest


async def get(connection: Connection, digest: str) -> bytes:
    """The content of a blob; raises BlobError where it is missing or does not match its digest."""
    message = await last(connection, STREAM, subject.blob(digest))
    if message is None:
        raise BlobError(f"there is no blob {digest}", digest=digest)
    if (message.headers or {}).get(_HEADER) != "manifest":
        return _verified(message.payload, digest)
    try:
        manifest = msgspec.json.decode(message.payload, type=_Manifest)
    except msgspec.MsgspecError as error:
        raise BlobError(f"the manifest of blob {digest} is damaged: {error}") from error
    return _verified(b"".join([await get(connection, name) for name in manifest.chunks]), digest)


async def _store(connection: Connection, digest: str, payload: bytes, kind: str) -> None:
    to = subject.blob(digest)
    headers = {_HEADER: kind, "Nats-Expected-Last-Subject-Sequence": "0"}
    reply = await connection.request(to, payload, headers, timeout_seconds=_PUT_SECONDS)
    try:
        api_answer(reply, to, 0)
    except WrongSequence:
        return  # stored before, under the digest of the same bytes


def _verified(content: bytes, digest: str) -> bytes:
    found = hashlib.sha256(content).hexdigest()
    if found != digest:
        raise BlobError(f"blob {digest} is damaged: its bytes have the digest {found}")
    return content
