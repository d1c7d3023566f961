"""Blobs: stored once under their digest, in chunks, and believed only where the digest is right."""

from __future__ import annotations

import hashlib
import os

import msgspec
import pytest

from stratum_bus import blob, subject
from stratum_bus.blob import CHUNK_BYTES, MAX_BYTES
from stratum_bus.bus import Bus, connect
from stratum_bus.errors import BlobError, NoStream, NotFound
from stratum_bus.event import Event, new
from stratum_bus.testing import eventually, fresh, server


def digest_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


async def messages(bus: Bus) -> int:
    state = (await bus.connection.api("STREAM.INFO.BLOBS"))["state"]
    return int(state["messages"])


async def store(bus: Bus, digest: str, payload: bytes, kind: str = "content") -> None:
    """By hand, as any client can."""
    await bus.connection.request(subject.blob(digest), payload, {"Stratum-Blob": kind})


def manifest(*chunks: str) -> bytes:
    return msgspec.json.encode({"size_bytes": 1, "chunks": chunks})


@pytest.mark.parametrize(
    ("size", "stored"),
    [(0, 1), (1, 1), (CHUNK_BYTES, 1), (CHUNK_BYTES + 1, 3), (10 * CHUNK_BYTES, 11)],
)
async def test_what_is_put_is_got_back_whole(bus: Bus, size: int, stored: int) -> None:
    content = os.urandom(size)
    digest = await blob.put(bus.connection, content)
    assert digest == digest_of(content)
    assert await blob.get(bus.connection, digest) == content
    assert await messages(bus) == stored


async def test_the_same_bytes_are_stored_once(bus: Bus) -> None:
    content = os.urandom(CHUNK_BYTES) + bytes(3 * CHUNK_BYTES)  # three chunks are the same
    assert await blob.put(bus.connection, content) == await blob.put(bus.connection, content)
    assert await messages(bus) == 3
    assert await blob.get(bus.connection, digest_of(content)) == content


async def test_the_largest_blob_is_kept_and_a_larger_one_refused_before_it_is_stored(
    bus: Bus,
) -> None:
    largest = bytes(MAX_BYTES)
    with pytest.raises(BlobError, match=r"has 67,108,865 bytes, a blob may have 67,108,864"):
        await blob.put(bus.connection, largest + b"x")
    assert await messages(bus) == 0
    digest = await blob.put(bus.connection, largest)
    assert await blob.get(bus.connection, digest) == largest


async def test_a_blob_that_is_not_there_is_named(bus: Bus) -> None:
    digest = digest_of(b"nothing")
    with pytest.raises(BlobError, match=f"there is no blob {digest}") as missing:
        await blob.get(bus.connection, digest)
    assert missing.value.digest == digest


async def test_damaged_bytes_are_not_handed_out(bus: Bus) -> None:
    digest = digest_of(b"right")
    await store(bus, digest, b"wrong")
    with pytest.raises(BlobError, match=f"blob {digest} is damaged: its bytes have the digest"):
        await blob.get(bus.connection, digest)


CHUNK = digest_of(b"chunk")
WHOLE = digest_of(b"whole")


@pytest.mark.parametrize(
    ("payload", "why"),
    [
        (b"{", "its manifest cannot be read"),
        (b'"\xff"', "its manifest cannot be read"),
        (b'{"size_bytes": 1}', "its manifest cannot be read"),
        (manifest(), "its bytes have the digest"),
        (manifest(CHUNK), "its bytes have the digest"),
        (manifest(CHUNK, digest_of(b"gone")), "is missing"),
        (manifest(WHOLE), "its bytes have the digest"),  # it names itself: no endless loop
        (manifest("no digest"), "which is no digest"),
        (manifest("x" * 5000), "which is no digest"),
        (manifest("*"), "which is no digest"),
    ],
)
async def test_a_damaged_manifest_is_named(bus: Bus, payload: bytes, why: str) -> None:
    await store(bus, CHUNK, b"chunk")
    await store(bus, WHOLE, payload, "manifest")
    with pytest.raises(BlobError, match=why) as damaged:
        await blob.get(bus.connection, WHOLE)
    assert str(damaged.value).startswith(f"blob {WHOLE} is damaged: ")
    assert len(str(damaged.value)) < 400


async def test_a_manifest_cannot_make_more_than_a_blob_may_have(bus: Bus) -> None:
    chunk = bytes(1_000_000)
    await store(bus, digest_of(chunk), chunk)
    await store(bus, WHOLE, manifest(*[digest_of(chunk)] * 1000), "manifest")
    with pytest.raises(BlobError, match="its chunks have more than 64 MiB together"):
        await blob.get(bus.connection, WHOLE)


@pytest.mark.parametrize(
    "dataref",
    ["blob:", "blob:abc", "blob:" + "G" * 64, f"blob:{WHOLE}/../x", "https://x", "blob:*"],
)
async def test_only_a_digest_is_a_reference_to_a_blob(bus: Bus, dataref: str) -> None:
    with pytest.raises(BlobError, match="is not of the form blob:<sha256 in hex>"):
        blob.digest_of(dataref)
    event: Event[None] = Event(id="1", source="/t", type="task", dataref=dataref)
    await bus.publish("inbox.bob.alice.task", event)
    message = await bus.get("LOG", 1)
    if dataref.startswith("blob:"):
        with pytest.raises(BlobError):
            await bus.event(message)
    else:
        assert (await bus.event(message)).data is None


async def test_a_reference_survives_being_written_and_read() -> None:
    assert blob.digest_of(blob.reference(WHOLE)) == WHOLE


async def test_without_the_stream_both_ways_say_so(bus: Bus) -> None:
    await bus.connection.api("STREAM.DELETE.BLOBS")
    with pytest.raises(NoStream, match=r"no stream takes blob\."):
        await blob.put(bus.connection, b"x")
    with pytest.raises(NotFound, match="there is no stream BLOBS"):
        await blob.get(bus.connection, WHOLE)


async def test_blobs_survive_a_kill_of_the_server() -> None:
    with server() as own:
        await fresh(own.url)
        async with connect(own.url, patience_seconds=30) as bus:
            content = os.urandom(4 * CHUNK_BYTES)
            digest = await blob.put(bus.connection, content)
            own.kill()
            await eventually(lambda: not bus.connection.connected)
            own.restart()
            await bus.connection.wait_connected(10)
            assert await blob.get(bus.connection, digest) == content
            assert await blob.put(bus.connection, content) == digest
            await bus.publish("inbox.bob.alice.task", new("task", content.hex(), source="/t"))
