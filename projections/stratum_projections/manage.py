"""The state of the projections, and commands to the projector that keeps them.

A request to `manage.<projector>` is JSON, `{"do": "list"}`, or `pause`, `resume` or `rebuild` with
`names` (none: all). It is answered with the states after it, or with an error.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import Literal

import anyio
import anyio.to_thread
import msgspec
from anyio.abc import TaskStatus
from msgspec import Struct

from stratum_bus import subject
from stratum_bus.bus import Bus
from stratum_bus.errors import NoStream, ProjectorError, QueryError
from stratum_bus.jetstream import Connection
from stratum_projections import catalog, desk
from stratum_projections.live import Live
from stratum_projections.projection import Projection
from stratum_projections.rebuild import Builder, Building
from stratum_projections.store import Store

TIMEOUT_SECONDS = 30.0

Command = Literal["list", "pause", "resume", "rebuild"]


class State(Struct, frozen=True):
    """A projection now. Its tables reflect `sequence` of the log.

    `status` is live, building (its tables are made, or made anew beside those that are asked) or
    paused. `lag_seconds` is how long the oldest event that it lacks has been known, 0 for none.
    `events`, `batches` and `seconds` (of its statements) count since the projector started.
    """

    name: str
    version: int
    tables: list[str]
    status: str
    sequence: int
    lag_events: int
    lag_seconds: float
    quarantined: int
    events: int
    batches: int
    seconds: float
    building: Building | None = None


class _Request(Struct, frozen=True, forbid_unknown_fields=True):
    do: Command
    names: list[str] = []


class _Refusal(Struct, frozen=True):
    reason: str
    error: str


async def states(bus: Bus, projector: str = "main") -> list[State]:
    """The projections of a running projector.

    Raises QueryError `no_projector` where none runs; ConnectionLost, NoAnswer.
    """
    return await _ask(bus, projector, _Request("list"))


async def pause(bus: Bus, names: Sequence[str], projector: str = "main") -> list[State]:
    """Keep projections from going on, until `resume`. Raises QueryError `unknown`, as `states`."""
    return await _ask(bus, projector, _Request("pause", list(names)))


async def resume(bus: Bus, names: Sequence[str], projector: str = "main") -> list[State]:
    """Let paused projections catch up and go on. Returns when begun; raises as `pause`."""
    return await _ask(bus, projector, _Request("resume", list(names)))


async def rebuild(bus: Bus, names: Sequence[str], projector: str = "main") -> list[State]:
    """Build projections anew beside their tables, which are replaced when that is done.

    Returns when begun; raises as `pause`.
    """
    return await _ask(bus, projector, _Request("rebuild", list(names)))


async def _ask(bus: Bus, projector: str, request: _Request) -> list[State]:
    body = msgspec.json.encode(request)
    try:
        reply = await bus.connection.request(
            _subject(projector), body, timeout_seconds=TIMEOUT_SECONDS
        )
    except NoStream:
        text = f"no projector {projector!r} answers: `stratum up` starts one"
        raise QueryError("no_projector", text) from None
    try:
        return msgspec.json.decode(reply.payload, type=list[State])
    except msgspec.ValidationError:
        refusal = msgspec.json.decode(reply.payload, type=_Refusal)
        raise QueryError(refusal.reason, refusal.error) from None


async def serve(
    connection: Connection,
    live: Live,
    builder: Builder,
    projector: str,
    *,
    task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Answer requests until cancelled; those that change something one after the other."""
    manager = _Manager(live, builder)

    async def answer(payload: bytes) -> list[State] | _Refusal:
        try:
            return await manager.answer(payload)
        except (QueryError, ProjectorError) as error:
            return _Refusal(error.reason, " ".join(str(error).split()))

    await desk.serve(connection, _subject(projector), answer, task_status=task_status)


class _Manager:
    def __init__(self, live: Live, builder: Builder) -> None:
        self._live = live
        self._builder = builder
        self._changing = anyio.Lock()

    async def answer(self, payload: bytes) -> list[State]:
        try:
            request = msgspec.json.decode(payload, type=_Request)
        except msgspec.MsgspecError as error:
            raise QueryError("syntax", f"the request is not understood: {error}") from None
        if request.do != "list":
            async with self._changing:
                await self._change(request.do, self._named(request.names))
        return await anyio.to_thread.run_sync(self._states)

    def _named(self, names: Sequence[str]) -> list[Projection]:
        known = self._live.projections
        if missing := [name for name in names if name not in known]:
            text = f"no projection {missing[0]!r} here; there are {', '.join(sorted(known))}"
            raise QueryError("unknown", text)
        return [known[name] for name in dict.fromkeys(names or known)]

    async def _change(self, do: Command, projections: list[Projection]) -> None:
        live, builder = self._live, self._builder
        if do == "rebuild":
            await builder.rebuild(projections)
            return
        paused = do == "pause"
        async with live.turn:  # the connection is that of the fold
            held = await anyio.to_thread.run_sync(catalog.paused, live.store)
        projections = [p for p in projections if (p.name in held) != paused]
        for projection in projections:
            await builder.stop(live.slot(projection).name)
            async with live.turn:
                live.fold.leave_out(projection.name)
                setting = partial(catalog.set_paused, paused=paused)
                await anyio.to_thread.run_sync(
                    setting, live.store, live.checkpoint, projection.name
                )
        if not paused:
            builder.start([live.slot(projection) for projection in projections])

    def _states(self) -> list[State]:
        live, beside = self._live, self._live.store.beside()
        try:
            held = catalog.paused(beside)
            parked = dict(
                beside.execute(
                    "select projection, count(*) from quarantine "
                    "where projection is not null group by all"
                )
            )
            versions = dict(beside.execute("select name, version from projections"))
            end = live.position.sequence + (live.position.left or 0)
            sequences = {name: live.checkpoint.positions[name] for name in live.projections}
            late = {at: _seconds_behind(beside, at) for at in set(sequences.values()) if at < end}
        finally:
            beside.close()
        found = []
        for name, projection in live.projections.items():
            building = self._builder.building.get(name)
            work = live.fold.work.get(name)
            sequence = sequences[name]
            status = "paused" if name in held else "building" if building else "live"
            found.append(
                State(
                    name, versions[name], list(projection.tables), status, sequence,
                    end - sequence, late.get(sequence, 0.0),
                    parked.get(name, 0), work.events if work else 0, work.batches if work else 0,
                    work.seconds if work else 0.0, building,
                )
            )  # fmt: skip
        return found


def _seconds_behind(store: Store, sequence: int) -> float:
    """How old the event of a sequence is, if there is a table of events that can tell."""
    if not store.execute("select 1 from duckdb_views() where view_name = 'events'"):
        return 0.0
    [(stored,)] = store.execute(
        "select epoch_ms(max(stored)) from events where seq between ? and ?",
        [sequence - 1_000, sequence],
    )
    return max(0.0, time.time() - stored / 1e3) if stored else 0.0


def _subject(projector: str) -> str:
    return f"manage.{subject.token(projector, 'projector name')}"
