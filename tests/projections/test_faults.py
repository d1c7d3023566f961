"""What may happen to the file of a projector, to its process and to the server: each ends well.

More of the list: kill -9 at any moment in tests/flow/test_projector.py, an event that breaks a
statement in test_fold.py, writes through the query service in test_disguises.py.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from stratum_bus import connect, testing
from stratum_bus.bus import Bus
from stratum_bus.message import Message
from tests.projections.faults import (
    SMALL,
    WITHIN_SECONDS,
    Process,
    is_right,
    is_root,
    last,
    publish,
    publish_numbers,
    reaches,
    sentence,
    state_of,
)

RandomLog = Callable[[int, int], list[Message]]
Start = Callable[..., Process]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "projection.duckdb"


@pytest.fixture
def start(bus_url: str, path: Path) -> Iterator[Start]:
    """Starts projector processes on one file; they are gone at the end."""
    started: list[Process] = []

    def start_one(*options: str, url: str = bus_url, at: Path = path, **more: int) -> Process:
        started.append(Process(url, at, *(options or ("--config", SMALL)), **more))
        return started[-1]

    yield start_one
    for process in started:
        process.destroy()


async def test_a_file_that_is_deleted_under_a_projector_ends_it_and_is_built_anew(
    bus: Bus, start: Start, path: Path, random_log: RandomLog
) -> None:
    messages = random_log(62, 60)
    process = start()
    await reaches(bus, await publish(bus, messages[:40]))
    os.remove(path)
    end = await publish(bus, messages[40:])
    assert await process.ended() == 1
    assert "was removed" in sentence(process)
    start()
    await reaches(bus, end)
    await is_right(bus, path)


@pytest.mark.parametrize("harm", ["deleted", "damaged", "left alone"])
async def test_a_damaged_write_ahead_log_is_made_good_from_the_log(
    harm: str, bus: Bus, start: Start, path: Path, random_log: RandomLog
) -> None:
    """What it held is read again. The log of a file that was deleted is not taken for another's."""
    messages, wal = random_log(63, 60), path.with_name(f"{path.name}.wal")
    process = start()
    await reaches(bus, await publish(bus, messages[:30]))
    await testing.eventually(lambda: not wal.exists(), within_seconds=WITHIN_SECONDS)
    end = await publish(bus, messages[30:])
    await reaches(bus, end)
    process.child.send_signal(signal.SIGSTOP)
    size = wal.stat().st_size
    process.destroy()
    if harm == "deleted":
        os.remove(wal)
    elif harm == "left alone":
        os.remove(path)
    else:
        with wal.open("r+b") as file:
            file.seek(size // 2)
            file.write(os.urandom(512))
    process = start()
    if harm == "damaged":
        assert await process.ended() == 1
        assert sentence(process).endswith("remove it, and it is built anew")
        os.remove(path)
        process = start()
    await reaches(bus, end)
    anew = [line for line in process.lines if "from the log's beginning" in line]
    assert len(anew) == (harm in ("damaged", "left alone"))
    [begun] = [line for line in process.lines if " at LOG " in line]
    at = int(begun.rpartition(" ")[2])
    assert at == 0 if anew else at >= 30
    await is_right(bus, path)


async def test_a_full_disk_ends_the_projector_with_a_sentence_and_it_goes_on_when_there_is_room(
    bus: Bus, start: Start, path: Path
) -> None:
    end = await publish_numbers(bus, 3_000, "x" * 2_000)
    process = start("--config", '{"batch_events": 100}', file_bytes=3_000_000)
    assert await process.ended() == 1
    assert "cannot write" in sentence(process)
    assert path.name in sentence(process)
    process = start("--config", "{}")
    assert await reaches(bus, end, "select count(*) as n from events") == end
    await is_right(bus, path)
    [begun] = [line for line in process.lines if " at LOG " in line]
    assert 0 < int(begun.rpartition(" ")[2]) < end


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    if not is_root() or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here: run as root where that is allowed")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


async def test_a_disk_without_room_is_said_and_left_as_it_was(
    bus: Bus, start: Start, small_disk: Path
) -> None:
    end, at = await publish_numbers(bus, 4_000, "x" * 2_000), small_disk / "p.duckdb"
    for _ in range(2):
        process = start("--config", '{"batch_events": 100}', at=at)
        assert await process.ended() == 1
        assert "cannot " in sentence(process)
        assert at.name in sentence(process)
    grow = ["mount", "-o", "remount,size=200m", str(small_disk)]
    await anyio.run_process(grow)
    process = start("--config", "{}", at=at)
    assert await reaches(bus, end, "select count(*) as n from events") == end
    await is_right(bus, at)
    assert await process.end() == 0


async def test_a_stopped_projector_keeps_others_from_its_file_and_goes_on_later(
    bus: Bus, start: Start, path: Path, random_log: RandomLog
) -> None:
    messages = random_log(64, 60)
    process = start()
    await reaches(bus, await publish(bus, messages[:30]))
    process.child.send_signal(signal.SIGSTOP)
    await testing.eventually(lambda: state_of(process.child.pid) == "T")
    end = await publish(bus, messages[30:])
    for lock in (True, False):
        if not lock:  # DuckDB's own is left
            path.with_name(f"{path.name}.lock").unlink()
        second = start()
        assert await second.ended() == 1
        assert f"in use by process {process.child.pid}" in sentence(second)
    process.child.send_signal(signal.SIGCONT)
    await reaches(bus, end)
    await is_right(bus, path)


async def test_a_server_killed_while_a_projector_catches_up_and_while_it_is_live_is_waited_for(
    start: Start, path: Path, tmp_path: Path, random_log: RandomLog
) -> None:
    messages = random_log(65, 500)
    with testing.server(tmp_path / "server") as server:
        await testing.fresh(server.url)
        async with connect(server.url, patience_seconds=WITHIN_SECONDS) as bus:
            await publish(bus, messages[:400])
            process = start(url=server.url)
            for moment in (20, 150):
                await reaches(bus, moment)
                await anyio.to_thread.run_sync(server.kill)
                await anyio.to_thread.run_sync(server.restart)
            await reaches(bus, 400)
            for start_at in (400, 450):
                await anyio.to_thread.run_sync(server.kill)
                await anyio.to_thread.run_sync(server.restart)
                await bus.connection.wait_connected(WITHIN_SECONDS)
                end = await publish(bus, messages[start_at : start_at + 50])
                await reaches(bus, end)
            await is_right(bus, path)
            assert process.child.poll() is None


@pytest.mark.parametrize("events", [10, 90])
async def test_a_stream_made_anew_ends_a_projector_before_it_folds_anything_of_it(
    events: int, bus: Bus, bus_url: str, start: Start, path: Path, random_log: RandomLog
) -> None:
    """With fewer events than it had, and with more."""
    messages = random_log(66, 150)
    process = start()
    await reaches(bus, await publish(bus, messages[:50]))
    await testing.fresh(bus_url)
    await publish(bus, messages[50 : 50 + events])
    assert await process.ended() == 1
    assert "stream LOG was " in sentence(process)
    assert sentence(process).endswith("remove that file, and it is built anew")
    os.remove(path)
    start()
    assert await last(bus) == events
    await reaches(bus, events)
    await is_right(bus, path)
