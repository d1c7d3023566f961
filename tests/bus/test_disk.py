"""A server whose disk was full for a while, on a small file system of its own."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from stratum_bus import connect
from stratum_bus.bus import Bus
from stratum_bus.consume import ensure_consumer
from stratum_bus.disk import until_wedged
from stratum_bus.errors import BusError, StorageFull
from stratum_bus.event import new
from stratum_bus.server import Server, free_port
from stratum_bus.stream import load_streams, provision


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    mount = ["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", str(tmp_path)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small file system cannot be mounted: run as root to test a full disk")
    yield tmp_path
    subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


def fill(folder: Path) -> Path:
    """Take all that is left."""
    ballast = folder / "ballast"
    descriptor = os.open(ballast, os.O_WRONLY | os.O_CREAT)
    for size in (1 << 16, 1):
        try:
            while True:
                os.write(descriptor, b"x" * size)
        except OSError:
            continue
    os.close(descriptor)
    return ballast


async def stores(bus: Bus) -> bool:
    try:
        with anyio.fail_after(1):
            await bus.publish("inbox.a.b.task", new("task", "x" * 2000, source="/test"))
    except (BusError, TimeoutError):
        return False
    return True


async def test_a_server_whose_disk_was_full_is_found_wedged_only_once_there_is_room(
    small_disk: Path,
) -> None:
    server = Server(small_disk / "data", port=free_port())
    await server.start()
    try:
        async with connect(server.url) as bus:
            await provision(bus.connection, load_streams())
            assert await stores(bus)
            ballast = fill(small_disk)
            with anyio.move_on_after(2.5) as waited:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(stores, bus)
                    await until_wedged(server)
            assert waited.cancelled_caught
            with pytest.raises(StorageFull):
                await ensure_consumer(bus, "a", ["inbox.a.>"])
            ballast.unlink()
            found: list[str] = []

            async def watch() -> None:
                found.extend(await until_wedged(server))

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(watch)
                while not found:
                    assert not await stores(bus)
            assert found == ["LOG"]
            server.kill()
            await server.start()
            await bus.connection.wait_connected(10)
            assert await stores(bus)
    finally:
        server.stop()
