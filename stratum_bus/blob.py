"""Content-addressed payloads in the stream BLOBS, each stored once under `blob.<sha256>`.

Up to CHUNK_BYTES a blob is one message. A larger one is a manifest that lists its chunks, each of
them a blob; the manifest comes last, so a blob is there whole or not at all.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any

import msgspec
from anyio import to_thread

from stratum_bus import event, subject
from stratum_bus.errors import BlobError, WrongSequence
from stratum_bus.jetstream import Connection, api_answer
from stratum_bus.patience import patiently
from stratum_bus.read import last
from stratum_bus.tasks import task_group

STREAM = "BLOBS"
CHUNK_BYTES = 512 * 1024
MAX_BYTES = 64 * 1024 * 1024
PREFIX = "blob:"

_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)
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
    digest = dataref.removeprefix(PREFIX)
    if not dataref.startswith(PREFIX) or not _DIGEST.fullmatch(digest):
        raise BlobError(f"dataref {dataref[:80]!r} is not of the form blob:<sha256 in hex>")
    return digest


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
    if len(content) <= CHUNK_BYTES:
        digest = _digest(content)
        await _store(connection, digest, content, "content")
        return digest
    chunks = [content[i : i + CHUNK_BYTES] for i in range(0, len(content), CHUNK_BYTES)]
    # Half a second for the largest: not in the event loop.
    digest, names = await to_thread.run_sync(
        lambda: (_digest(content), [_digest(c) for c in chunks])
    )
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
    names = _chunks_in(message.payload, digest)
    chunks: list[bytes] = []
    size = 0
    for at in range(0, len(names), _AT_ONCE):
        chunks += await _chunks(connection, names[at : at + _AT_ONCE], digest)
        size += sum(len(chunk) for chunk in chunks[at:])
        if size > MAX_BYTES:
            raise _damaged(digest, "its chunks have more than 64 MiB together")
    return await to_thread.run_sync(lambda: _verified(b"".join(chunks), digest))


def _chunks_in(manifest: bytes, digest: str) -> list[str]:
    try:
        return msgspec.json.decode(manifest, type=_Manifest).chunks
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise _damaged(digest, f"its manifest cannot be read: {error}") from error


async def _chunks(connection: Connection, digests: list[str], whole: str) -> list[bytes]:
    found: dict[str, bytes] = {}

    async def fetch(digest: str) -> None:
        if not _DIGEST.fullmatch(digest):
            raise _damaged(whole, f"its manifest names {digest[:80]!r}, which is no digest")
        message = await last(connection, STREAM, subject.blob(digest))
        if message is None:
            raise _damaged(whole, f"its chunk {digest} is missing")
        found[digest] = message.payload

    async with task_group() as tasks:
        for digest in dict.fromkeys(digests):
            tasks.start_soon(fetch, digest)
    return [found[digest] for digest in digests]


async def _store(connection: Connection, digest: str, payload: bytes, kind: str) -> None:
    to = subject.blob(digest)
    headers = {_HEADER: kind, "Nats-Expected-Last-Subject-Sequence": "0"}

    async def attempt() -> None:
        reply = await connection.request(to, payload, headers, timeout_seconds=_PUT_SECONDS)
        try:
            api_answer(reply, to, 0)
        except WrongSequence:
            return  # stored before, under the digest of the same bytes

    await patiently(connection, attempt)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _verified(content: bytes, digest: str) -> bytes:
    found = _digest(content)
    if found != digest:
        raise _damaged(digest, f"its bytes have the digest {found}")
    return content


def _damaged(digest: str, why: str) -> BlobError:
    return BlobError(f"blob {digest} is damaged: {why}", digest=digest)
