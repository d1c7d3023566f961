"""A fold up to a chosen sequence gives what a projector that was stopped there would have."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest

from stratum_bus.bus import Bus
from stratum_bus.errors import LakeError, ProjectorError
from stratum_bus.memory import Memory
from stratum_bus.message import Message
from stratum_projections import SHIPPED, query_file
from stratum_projections.build import build
from stratum_projections.scratch import scratch

RandomLog = Callable[[int, int], list[Message]]
Open = Callable[..., Any]


async def publish(bus: Bus, messages: Sequence[Message]) -> list[Message]:
    """Store the messages of a hand-made log; returns them as they stand in the stream."""
    for message in messages:
        headers = {k: v for k, v in (message.headers or {}).items() if k != "Nats-Msg-Id"}
        await bus.connection.request(message.subject, message.payload, headers)
    async with bus.read() as reader:
        return [message async for message in reader]


async def test_it_ends_at_exactly_the_sequence_and_can_go_on(
    bus: Bus, tmp_path: Path, random_log: RandomLog, open_tables: Open
) -> None:
    log = await publish(bus, random_log(21, 90))
    told: list[tuple[int, int]] = []
    for end in (1, 41, 90):
        await build(
            bus, tmp_path / "built.duckdb", SHIPPED, end=end, progress=lambda *at: told.append(at)
        )
        by_hand = open_tables(f"hand{end}")
        by_hand.apply(log[:end])
        built = open_tables("built")
        assert built.dump() == by_hand.dump()
        built.store.close()
    assert told == [(1, 1), (41, 41), (90, 90)]


async def test_a_note_kept_as_a_blob_is_brought_in(bus: Bus, tmp_path: Path) -> None:
    await Memory(bus, "alice").note("x" * 100_000)
    await build(bus, tmp_path / "built.duckdb", SHIPPED, end=1)
    found = query_file(tmp_path / "built.duckdb", "select length(text) as n from memory").table
    assert found.to_pylist() == [{"n": 100_000}]


async def test_what_cannot_be_reached_is_said(
    bus: Bus, tmp_path: Path, random_log: RandomLog
) -> None:
    path = tmp_path / "built.duckdb"
    with pytest.raises(ProjectorError, match="LOG ends at 0, before 5"):
        await build(bus, path, SHIPPED, end=5)
    await publish(bus, random_log(22, 5))
    await build(bus, path, SHIPPED, end=5)
    with pytest.raises(ProjectorError, match="reflects LOG 5 already, behind 3"):
        await build(bus, path, SHIPPED, end=3)


async def test_a_log_without_its_beginning_is_refused(
    bus: Bus, tmp_path: Path, random_log: RandomLog
) -> None:
    await publish(bus, random_log(23, 20))
    await trim(bus, 10)
    with pytest.raises(
        LakeError, match="LOG begins at 11 and what was before it is needed, from 1"
    ):
        await build(bus, tmp_path / "built.duckdb", SHIPPED, end=20)


async def test_another_log_of_that_name_is_refused(
    bus: Bus, tmp_path: Path, random_log: RandomLog
) -> None:
    await publish(bus, random_log(24, 5))
    await build(bus, tmp_path / "built.duckdb", SHIPPED, end=2)
    await make_anew(bus)
    await publish(bus, random_log(24, 5))
    with pytest.raises(ProjectorError, match="LOG was made anew at"):
        await build(bus, tmp_path / "built.duckdb", SHIPPED, end=5)


async def make_anew(bus: Bus) -> None:
    config = (await bus.connection.api("STREAM.INFO.LOG"))["config"]
    await bus.connection.api("STREAM.DELETE.LOG")
    await bus.connection.api("STREAM.CREATE.LOG", config)


async def trim(bus: Bus, keep: int) -> None:
    """As a limit of the stream does."""
    config = (await bus.connection.api("STREAM.INFO.LOG"))["config"]
    await bus.connection.api("STREAM.UPDATE.LOG", {**config, "max_msgs": keep})


async def test_temporary_files_go_at_the_end_and_when_cancelled(tmp_path: Path) -> None:
    async with scratch(tmp_path) as folder:
        (folder / "x").write_text("x")
    with anyio.CancelScope() as scope:
        async with scratch(tmp_path) as folder:
            (folder / "x").write_text("x")
            scope.cancel()
            await anyio.sleep_forever()
    assert os.listdir(tmp_path) == [".lock"]


PROGRAM = """
import pathlib, sys, anyio
from stratum_projections.scratch import scratch

async def main():
    async with scratch(pathlib.Path(sys.argv[1])) as folder:
        (folder / "half").write_text("x")
        print(flush=True)
        sys.stdin.read()

anyio.run(main)
"""


async def test_what_a_killed_process_left_goes_with_the_next(tmp_path: Path) -> None:
    def there() -> int:
        return sum(name.startswith(".work-") for name in os.listdir(tmp_path))

    async with await anyio.open_process([sys.executable, "-c", PROGRAM, str(tmp_path)]) as other:
        assert other.stdout and await other.stdout.receive(1) == b"\n"
        async with scratch(tmp_path):
            assert there() == 2  # it lives
        other.kill()
        await other.wait()
    assert there() == 1
    async with scratch(tmp_path):
        assert there() == 1
