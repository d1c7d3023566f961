"""Journals of runs, a batch of them: what became in it of each run, each of its calls, each timer.

The entries of one batch are folded here, in their order, into pieces: at most a few rows for each
run, call and timer that the batch touches. The SQL of `runs` lays the pieces onto what earlier
batches left open. A piece that may go on with something open says so (`goes_on`); in what follows
an end in the same batch it never does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import msgspec
import pyarrow as pa
from msgspec.structs import astuple

from stratum_projections.views.columns import lists
from stratum_projections.views.entry import (
    CALLS,
    ENDS,
    INPUTS,
    PREFIX,
    TIMEOUT,
    Entry,
    Origin,
    decode,
    sender_of,
)

_READ = ("seq", "agent", "run", "type", "step", "causationid", "correlationid", "cause", "data")
_TIME = pa.timestamp("us", "UTC")
_TIMES = {"started", "ended", "due", "closed_time"}
_FLAGS = {"goes_on", "latest", "resumed_first", "paused", "paused_if_new"}
_NUMBERS = {
    *("seq", "first_seq", "last_seq", "ended_seq", "closed_seq", "timer_seq", "event_seq"),
    *("attempts", "steps", "resumed", "takeovers", "sent", "noted", "spent_us"),
}
"""The types of columns; all others are text."""


Time = int
"""Microseconds since 1970."""


class Piece(msgspec.Struct, kw_only=True):
    """What every row of the table has. `latest` is the last one of its key in the batch."""

    what: str = ""
    agent: str = ""
    run: str = ""
    goes_on: bool = False
    latest: bool = True
    first_seq: int | None = None
    last_seq: int | None = None
    started: Time | None = None
    ended: Time | None = None
    status: str | None = None
    error: str | None = None
    attempts: int = 0


class Closable(Piece, kw_only=True):
    """`closed` says how a timer ended: fired or cancelled; `timer` is its name, in TIMERS too."""

    n: str | None = None
    kind: str | None = None
    name: str | None = None
    timer: str | None = None
    due: Time | None = None
    closed: str | None = None
    closed_seq: int | None = None
    closed_time: Time | None = None

    def close(self, seq: int, time: Time, how: str) -> None:
        """The first that says so counts."""
        if self.closed is None:
            self.closed, self.closed_seq, self.closed_time = how, seq, time


class RunPiece(Piece, kw_only=True):
    """A run. Of what is not given, nothing has changed; without `first_seq` only inputs came.

    `paused_if_new` is for a run that begins here: what was asked before it began does not count.
    """

    what: str = "run"
    ended_seq: int | None = None
    event: str | None = None
    event_seq: int | None = None
    event_type: str | None = None
    handler: str | None = None
    steps: int = 0
    resumed: int = 0
    takeovers: int = 0
    sent: int = 0
    noted: int = 0
    parent: str | None = None
    forked_from: str | None = None
    forked_at: str | None = None
    next: str | None = None
    instance: str | None = None
    correlationid: str | None = None
    resumed_first: bool | None = None
    paused: bool | None = None
    paused_if_new: bool | None = None


class StepPiece(Closable, kw_only=True):
    """A call. What `closed` says is of the timer that an earlier batch left to it."""

    what: str = "step"
    spent_us: int | None = None
    timer_seq: int | None = None


class TimerPiece(Closable, kw_only=True):
    """A timer that was set in this batch; or one of an earlier batch, which `fired`."""

    what: str = "timer"


class Refused(msgspec.Struct):
    """An entry that cannot be read."""

    seq: int
    refused: str


class _Run:
    """What of one run stands in the batch."""

    def __init__(self, piece: RunPiece) -> None:
        self.piece = piece
        self.running: bool | None = None  # None: as earlier batches left it
        self.calls: dict[str, StepPiece] = {}
        self.timers: dict[str, TimerPiece] = {}


def prepare(batch: pa.Table) -> pa.Table:
    """The pieces of a batch of journal entries. Damaged entries are refused."""
    fold, refused = _Fold(), list[Refused]()
    columns = lists(batch, _READ)
    times = batch["time"].cast(pa.int64()).to_pylist()
    rows: Iterable[list[Any]] = map(list, zip(times, *columns, strict=True))
    for time, seq, agent, run, type, step, *about, data in rows:
        try:
            # Without data it is in a blob, and little is known of it.
            entry = Entry(n=step or "") if data is None else decode(data)
        except msgspec.DecodeError as error:
            refused.append(Refused(seq, f"no journal entry: {error}"))
            continue
        fold.add(_At(seq, time), (agent, run), type[len(PREFIX) :], entry, about)
    tables = (
        _table(RunPiece, fold.runs), _table(StepPiece, fold.steps),
        _table(TimerPiece, fold.timers), _table(Refused, refused),
    )  # fmt: skip
    return pa.concat_tables(tables, promote_options="default")


class _At(NamedTuple):
    """Where in the log, and when."""

    seq: int
    time: Time


class _Fold:
    """The pieces so far."""

    def __init__(self) -> None:
        self.runs: list[RunPiece] = []
        self.steps: list[StepPiece] = []
        self.timers: list[TimerPiece] = []
        self._runs: dict[tuple[str, str], _Run] = {}

    def add(self, at: _At, key: tuple[str, str], kind: str, entry: Entry, about: list[Any]) -> None:
        """Take in the next entry."""
        run = self._runs.get(key)
        if run is None or run.piece.ended is not None:
            if run is not None:
                if kind in INPUTS:
                    return  # it came too late
                run.piece.latest = False
                for call in run.calls.values():
                    call.latest = False
            agent, name = key
            piece = RunPiece(agent=agent, run=name, goes_on=run is None)
            run = self._runs[key] = _Run(piece)
            self.runs.append(piece)
        run.piece.last_seq = at.seq
        if kind in INPUTS:
            self._input(run, at, kind, entry)
            return
        if run.piece.first_seq is None:
            _begin(run.piece, at, kind, entry, about)
        self._own(run, at, kind, entry)

    def _input(self, run: _Run, at: _At, kind: str, entry: Entry) -> None:
        piece = run.piece
        if kind in ("pause.requested", "continue.requested"):
            piece.paused = piece.paused_if_new = kind == "pause.requested"
        elif kind == "fired":
            timer = run.timers.pop(entry.name, None)
            if timer is not None:
                call = run.calls[timer.n or ""]
                call.timer = call.timer_seq = None
            elif piece.goes_on:
                timer = TimerPiece(what="fired", agent=piece.agent, run=piece.run, timer=entry.name)
                self.timers.append(timer)
            if timer is not None:
                timer.close(at.seq, at.time, "fired")

    def _own(self, run: _Run, at: _At, kind: str, entry: Entry) -> None:
        """An entry of the run's owner."""
        piece = run.piece
        if kind in CALLS:
            if entry.n:
                self._call(run, at, kind, entry)
        elif kind == "resumed":
            piece.resumed += 1
            piece.takeovers += run.running is True
        elif kind == "suspended" and entry.reason == "paused":
            piece.paused = piece.paused_if_new = True
        elif kind == "continued":
            piece.next = entry.run
        for subject in entry.subjects():
            piece.sent += subject.startswith(("inbox.", "topic."))
            piece.noted += subject.startswith("memory.")
        piece.instance = entry.instance or piece.instance
        piece.status = "waiting" if entry.suspends else "running"
        piece.error = None
        if kind in ENDS or kind == "parked":
            piece.status, piece.error = kind, entry.failure()
        run.running = piece.status == "running"
        if kind in ENDS:
            piece.ended, piece.ended_seq = at.time, at.seq
            for call in run.calls.values():
                if call.ended is None:
                    call.status, call.ended, call.due = "abandoned", at.time, None
            for timer in run.timers.values():
                timer.close(at.seq, at.time, "cancelled")

    def _call(self, run: _Run, at: _At, kind: str, entry: Entry) -> None:
        """An entry that says what came of a call, so far or in the end."""
        call = self._call_at(run, at, entry)
        is_step = kind == "step.completed" or kind == "step.failed"
        # With it the time that the call had been given is over, or does not matter any more.
        how = "fired" if is_step or entry.reason == TIMEOUT else "cancelled"
        timer = run.timers.pop(call.timer, None) if call.timer else None
        if timer is not None or call.goes_on:
            (timer or call).close(at.seq, at.time - entry.spent_us, how)
        call.last_seq, call.due, call.timer, call.timer_seq = at.seq, None, None, None
        if call.kind is None:
            call.kind, call.name = entry.call()
        if is_step:
            run.piece.attempts += 1
            run.piece.steps += kind == "step.completed"
            call.attempts = max(call.attempts, entry.attempt)
            call.spent_us = (call.spent_us or 0) + entry.spent_us
            call.error = entry.failure() or call.error
        if kind == "waiting" or (kind == "step.failed" and not entry.final):
            call.status = "waiting" if kind == "waiting" else "retrying"
            if entry.until is not None:
                self._set_timer(run, call, at, entry)
            return
        call.status, call.ended = "failed" if kind == "step.failed" else "completed", at.time
        if kind == "wait.completed" and entry.reason == TIMEOUT and entry.name != "sleep":
            call.status = "timeout"

    def _call_at(self, run: _Run, at: _At, entry: Entry) -> StepPiece:
        known = run.calls.get(entry.n)
        if known is not None:
            if known.ended is None:
                return known
            known.latest = False
        piece = run.piece
        call = run.calls[entry.n] = StepPiece(
            agent=piece.agent, run=piece.run, goes_on=piece.goes_on and known is None, n=entry.n,
            first_seq=at.seq, started=at.time - entry.spent_us,
        )  # fmt: skip
        self.steps.append(call)
        return call

    def _set_timer(self, run: _Run, call: StepPiece, at: _At, entry: Entry) -> None:
        kind, name = entry.call()
        timer = TimerPiece(
            agent=call.agent, run=call.run, n=entry.n, timer=entry.timer(), kind=kind, name=name,
            first_seq=at.seq, started=at.time, due=entry.until_us,
        )  # fmt: skip
        self.timers.append(timer)
        run.timers[entry.timer()] = timer
        call.due, call.timer, call.timer_seq = timer.due, timer.timer, at.seq


def _begin(piece: RunPiece, at: _At, kind: str, entry: Entry, about: list[Any]) -> None:
    """What the first entry of a run says, should the run begin with it."""
    causationid, piece.correlationid, cause = about
    origin = entry.origin or Origin()
    piece.first_seq, piece.started = at.seq, at.time - entry.spent_us
    piece.event, piece.event_type = origin.id or causationid, origin.type or None
    piece.event_seq = cause or (origin.sequence if origin.stream == "LOG" else None)
    piece.handler = origin.handler or None
    piece.parent = sender_of(piece.event)
    piece.resumed_first, piece.paused_if_new = kind == "resumed", None
    if kind == "forked":
        piece.forked_from, piece.forked_at = entry.run, entry.at


def _table(kind: type[msgspec.Struct], rows: Sequence[msgspec.Struct]) -> pa.Table:
    names = kind.__struct_fields__
    columns = zip(*map(astuple, rows), strict=True) if rows else ((),) * len(names)
    return pa.table(
        {n: _array(values, _type_of(n)) for n, values in zip(names, columns, strict=True)}
    )


def _type_of(name: str) -> pa.DataType:
    if name in _TIMES:
        return _TIME
    if name in _FLAGS:
        return pa.bool_()
    return pa.int64() if name in _NUMBERS else pa.string()


def _array(values: Sequence[Any], kind: pa.DataType) -> pa.Array[Any]:
    return pa.array(values, pa.int64()).cast(kind) if kind == _TIME else pa.array(values, kind)
