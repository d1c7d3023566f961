"""Versioned copies of the DuckDB file, for notebooks and for whoever reads a lot.

The projector makes them on request: `snapshot.<projector>` is answered with where the copy is and
what it reflects. They are in `snapshots/` beside the file, each under a name of its own, because a
process that has opened a file of some name gets to see the same again.
"""

from __future__ import annotations

import os
import socket
from datetime import UTC, datetime
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec
from anyio.abc import TaskStatus
from msgspec import Struct

from stratum_bus import subject
from stratum_bus.bus import Bus
from stratum_bus.errors import NoStream, ProjectorError, QueryError, StratumError
from stratum_bus.jetstream import Connection
from stratum_projections import desk
from stratum_projections.store import Store

KEPT = 3
"""How many copies stay; each new one removes the oldest. Whoever has one open keeps it."""

TIMEOUT_SECONDS = 120.0


class Snapshot(Struct, frozen=True):
    """A copy: where it is on which machine, the sequence it reflects, and its size."""

    path: str
    host: str
    sequence: int
    bytes: int


class _Refusal(Struct, frozen=True):
    error: str


async def ask(
    bus: Bus, *, projector: str = "main", timeout_seconds: float = TIMEOUT_SECONDS
) -> Snapshot:
    """Have a running projector make one.

    Raises QueryError: `no_projector` where none runs, `failed`; ConnectionLost, NoAnswer.
    """
    try:
        reply = await bus.connection.request(_subject(projector), timeout_seconds=timeout_seconds)
    except NoStream:
        text = f"no projector {projector!r} answers: `stratum up` starts one"
        raise QueryError("no_projector", text) from None
    try:
        return msgspec.json.decode(reply.payload, type=Snapshot)
    except msgspec.ValidationError:
        refusal = msgspec.json.decode(reply.payload, type=_Refusal)
        raise QueryError("failed", refusal.error) from None


def of_file(path: Path | str) -> Snapshot:
    """Copy the file of a projector that does not run. Blocking.

    Raises QueryError `no_file`, ProjectorError `locked` where a projector has it, `file`.
    """
    if not Path(path).exists():
        raise QueryError(
            "no_file", f"there is no projection at {path}: `stratum up` starts the projector"
        )
    store = Store.open(path)
    try:
        return take(store)
    finally:
        store.close()


def take(store: Store) -> Snapshot:
    """Copy an open file. Blocking; its writers wait meanwhile. Raises ProjectorError `file`."""
    folder = store.path.parent / "snapshots"
    beside = store.beside()
    new = folder / f".{os.getpid()}.new"
    try:
        folder.mkdir(exist_ok=True)
        sequence = beside.snapshot(new)
        with new.open("rb+") as copy:
            os.fsync(copy.fileno())
        # The time makes the name new: a removed one is still what a process has open by it.
        made = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%f")
        path = folder / f"{store.path.stem}.{sequence}.{made}.duckdb"
        new.replace(path)
        _prune(folder, store.path.stem)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ProjectorError("file", f"cannot write a snapshot to {folder}: {reason}") from error
    finally:
        beside.close()
    return Snapshot(str(path), socket.gethostname(), sequence, path.stat().st_size)


async def serve(
    connection: Connection,
    store: Store,
    projector: str,
    *,
    task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Answer requests until cancelled, one after the other."""
    turn = anyio.Lock()

    async def answer(_: bytes) -> Snapshot | _Refusal:
        async with turn:
            try:
                return await anyio.to_thread.run_sync(take, store)
            except StratumError as error:
                return _Refusal(" ".join(str(error).split()))

    await desk.serve(connection, _subject(projector), answer, task_status=task_status)


def _prune(folder: Path, stem: str) -> None:
    copies = sorted(folder.glob(f"{stem}.*.duckdb"), key=lambda path: path.stat().st_mtime_ns)
    for path in copies[:-KEPT]:
        path.unlink(missing_ok=True)


def _subject(projector: str) -> str:
    return f"snapshot.{subject.token(projector, 'projector name')}"
