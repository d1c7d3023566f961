"""A run: one piece of work of an agent, started by one event, that survives crashes.

Each `run.*` call has a position in the handler. What it brought is journaled under that position;
when the handler runs again (after a crash, or at the end of a wait) the same calls return what the
journal holds, and go on live where it ends. Messages and notes are buffered and committed together
with the next entry, all or nothing.
"""

from __future__ import annotations

import base64
import hashlib
import random
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from datetime import datetime, timedelta
from typing import Any, TypeVar, overload

from msgspec.structs import replace

from stratum_agents import steps, waits
from stratum_agents.core import Core, Cursor
from stratum_agents.failure import Ended, RunFailed
from stratum_agents.journal import CONTINUED, Entry
from stratum_agents.recall import Recalled
from stratum_agents.retry import Retry
from stratum_bus import memory, subject
from stratum_bus.bus import Bus
from stratum_bus.event import Event, RawEvent, agent_source, new
from stratum_bus.memory import Memory
from stratum_bus.message import Message
from stratum_bus.publish import Append

T = TypeVar("T")


def run_id(agent: str, event_id: str) -> str:
    """The id of the run that an event starts at an agent: the same whenever it is delivered."""
    digest = hashlib.sha256(f"{agent}\0{event_id}".encode()).digest()
    return "r" + base64.b32encode(digest[:15]).decode().lower()


class Run:
    """What a handler may ask for. Calls that take a position do so when they are called, so
    `run.gather(run.step(…), run.step(…))` is as deterministic as one after the other.
    """

    def __init__(self, core: Core, cursor: Cursor | None = None) -> None:
        self._core = core
        self._cursor = cursor or Cursor(core)

    @property
    def id(self) -> str:
        return self._core.journal.run

    @property
    def agent(self) -> str:
        return self._core.agent

    @property
    def bus(self) -> Bus:
        """For reading. What is published past the run is not part of it."""
        return self._core.bus

    @property
    def event(self) -> RawEvent:
        """The event that started the run."""
        return self._core.event

    @property
    def message(self) -> Message:
        """The message with that event, as the log holds it."""
        return self._core.message

    @property
    def attempt(self) -> int:
        """Which delivery of the message in hand this is, from 1."""
        return self._core.attempt

    @property
    def memory(self) -> Memory:
        """The agent's memory as it is now; in a step, or where nothing depends on it."""
        return Memory(self.bus, self.agent)

    # Time and chance, the same at every replay.

    def now(self) -> datetime:
        """The time of the last thing that was journaled; at first, when the event was stored."""
        return self._core.now(self._cursor.branch)

    def random(self) -> random.Random:
        """A generator seeded by the run and the position."""
        return random.Random(f"{self.id}/{self._chance('random')}")

    def uuid(self) -> uuid.UUID:
        """An id of the run and the position (UUIDv5)."""
        return uuid.uuid5(uuid.NAMESPACE_OID, f"{self.id}/{self._chance('uuid')}")

    def version(self, name: str, *, since: datetime | None = None) -> bool:
        """Whether this run takes the new way named `name`.

        Runs that had already gone past this point without it, and with `since` those started
        before that time, take the old way for ever.
        """
        return self._core.version(name, since)

    # Steps.

    @overload
    def step(
        self,
        name: str,
        function: Callable[..., Awaitable[T]],
        *arguments: Any,
        retry: Retry | None = None,
        timeout_seconds: float | None = None,
        **keywords: Any,
    ) -> Coroutine[Any, Any, T]: ...

    @overload
    def step(
        self,
        name: str,
        function: Callable[..., T],
        *arguments: Any,
        retry: Retry | None = None,
        timeout_seconds: float | None = None,
        **keywords: Any,
    ) -> Coroutine[Any, Any, T]: ...

    def step(
        self,
        name: str,
        function: Callable[..., Any],
        *arguments: Any,
        retry: Retry | None = None,
        timeout_seconds: float | None = None,
        **keywords: Any,
    ) -> Coroutine[Any, Any, Any]:
        """Do something once and journal what it returned.

        `function` may be async, or plain (it then runs in a thread). Where it has a parameter
        `idempotency_key`, it gets `<run>-<n>`: an effect outside the log may happen again after
        a crash, with the same key. Its result must be JSON (EncodeError names the path) and
        comes back as JSON would make it, or as the function's return annotation. A failing step
        is tried again (`Retry`), then raises StepFailed.
        """
        n = self._cursor.next()
        return steps.step(
            self._core, n, name, function, arguments, keywords, retry or Retry(), timeout_seconds
        )

    def recall(
        self, text: str, *, kind: str | None = None, limit: int = 5
    ) -> Coroutine[Any, Any, list[Recalled]]:
        """Notes of the agent's memory that are near to `text`, best first, as of this moment."""
        n = self._cursor.next()
        return steps.recall(self._core, n, text, kind, limit)

    async def gather(
        self, *branches: Awaitable[Any] | Callable[[Run], Awaitable[Any]]
    ) -> list[Any]:
        """Do several things at once and return their results in order.

        A branch is one call (`run.step(…)`), or a function of a run of its own that makes as
        many calls as it likes. All branches end before the first failure, in their order, is
        raised.
        """
        n, core, cursor = self._cursor.next(), self._core, self._cursor
        core.unrecorded(n, "gather")
        calls: list[Awaitable[Any]] = []
        own: list[str] = []
        for number, branch in enumerate(branches, 1):
            if isinstance(branch, Awaitable):
                calls.append(branch)
            else:
                own.append(f"{n}.{number}")
                core.pass_time(cursor.branch, own[-1])
                calls.append(branch(Run(core, Cursor(core, own[-1]))))
        try:
            return await core.gather(cursor.branch, waits.gather(core, calls))
        finally:
            for name in own:
                core.pass_time(name, cursor.branch)

    # Effects: committed with the next entry.

    def send(
        self, to: str, type: str, data: Any, *, about: str | None = None
    ) -> Coroutine[Any, Any, str]:
        """A message to another agent's inbox; returns the event's id."""
        return self._send(subject.inbox(to, self.agent, type), type, data, about=about)

    def publish(
        self, type: str, data: Any, *, about: str | None = None
    ) -> Coroutine[Any, Any, str]:
        """A message to all who follow the type; returns the event's id."""
        return self._send(subject.topic(self.agent, type), type, data, about=about)

    def signal(self, to: str, run: str, type: str, data: Any) -> Coroutine[Any, Any, str]:
        """A message to one run of an agent, which may wait for its type."""
        return self._send(subject.inbox(to, self.agent, type), type, data, torun=run)

    def remember(
        self,
        kind: str,
        text: str,
        *,
        data: Any = None,
        tags: Sequence[str] = (),
        about: str | None = None,
        score: float | None = None,
        note: str | None = None,
        expected_sequence: int | None = None,
    ) -> Coroutine[Any, Any, str]:
        """A note in the agent's memory; returns its id (`note`, where the id is given).

        With `expected_sequence` it holds only if that is still the last sequence of the memory's
        kind; otherwise the handler is tried again, and can look again.
        """
        n = self._cursor.next()
        id = f"{self.id}-{n}"
        # two runs may note the same: the event's id stays the run's own
        append = memory.noted(
            self.agent, kind, text, data=data, tags=tags, about=about, score=score, note=note, id=id
        )
        append = replace(append, expected_sequence=expected_sequence)
        return self._effect(n, append, note or id)

    def revise(
        self, note: str, kind: str, *, expected_sequence: int | None = None, **changes: Any
    ) -> Coroutine[Any, Any, str]:
        """Change fields of a note (see `memory.Revised`); `expected_sequence` as in `remember`."""
        n = self._cursor.next()
        id = f"{self.id}-{n}"
        append = memory.revised(self.agent, kind, note, id=id, **changes)
        return self._effect(n, replace(append, expected_sequence=expected_sequence), id)

    def retract(self, note: str, kind: str, reason: str = "") -> Coroutine[Any, Any, str]:
        """Take a note back."""
        n = self._cursor.next()
        id = f"{self.id}-{n}"
        return self._effect(n, memory.retracted(self.agent, kind, note, reason, id=id), id)

    # Waiting: costs nothing, the process may die.

    def sleep(
        self, seconds: float = 0.0, *, minutes: float = 0.0, hours: float = 0.0, days: float = 0.0
    ) -> Coroutine[Any, Any, None]:
        """Go on after a time. From about a second on, the server keeps the timer."""
        length = timedelta(seconds=seconds, minutes=minutes, hours=hours, days=days)
        return waits.sleep(self._core, self._cursor.next(), length)

    def wait_for(
        self,
        *types: str,
        timeout_days: float | None = None,
        timeout_seconds: float | None = None,
    ) -> Coroutine[Any, Any, RawEvent]:
        """Wait for an event of one of the types that is addressed to this run (`torun`).

        One that came before the run asked for it counts; each is taken once, in the order of the
        log. Raises WaitTimeout.
        """
        n = self._cursor.next()
        timeout: timedelta | None = None
        if timeout_days is not None or timeout_seconds is not None:
            timeout = timedelta(days=timeout_days or 0, seconds=timeout_seconds or 0)
        return waits.wait_for(self._core, n, list(types), timeout)

    def call(
        self, agent: str, type: str, data: Any, *, timeout_seconds: float | None = None
    ) -> Coroutine[Any, Any, Any]:
        """Have another agent handle an event and return what its handler returned.

        Durable on both sides. Raises CallFailed where its run failed, WaitTimeout.
        """
        n, waiting_at = self._cursor.next(), self._cursor.next()
        timeout = None if timeout_seconds is None else timedelta(seconds=timeout_seconds)

        asking = self._send_at(n, agent, type, data)

        async def call() -> Any:
            sent = await asking
            return await waits.reply(self._core, waiting_at, f"{type} at {agent}", sent, timeout)

        return call()

    async def spawn(self, type: str, data: Any, *, agent: str | None = None) -> Child:
        """Start a run of its own; await `child.result()` for what comes of it.

        Its failure is raised there. Cancelling this run cancels it too.
        """
        n, to = self._cursor.next(), agent or self.agent
        child = Child(self, to, type, await self._send_at(n, to, type, data))
        self._core.children.append((n, to, child.id))
        return child

    # How a run may end.

    def compensate(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Undo: where the run fails or is cancelled, these are called in reverse order, each as
        a step. `function` may have a parameter `idempotency_key`.
        """
        self._core.compensations.append((function, arguments))

    async def continue_as_new(self, data: Any) -> None:
        """End this run and start a new one with a journal of its own, on the same type."""
        n, type = self._cursor.next(), self.event.type
        to = subject.inbox(self.agent, self.agent, type)
        # Whoever called this run waits for what comes of the next one.
        replyto = waits.pass_on(self.event)
        next_event = await self._send(to, type, data, n=n, replyto=replyto)
        entry = Entry(n=n, run=run_id(self.agent, next_event))
        await self._core.append(CONTINUED, entry, id=f"{self.id}-end")
        self._core.stop(Ended())

    def fail(self, reason: str) -> RunFailed:
        """`raise run.fail("…")` ends the run as failed, without another attempt."""
        return RunFailed(reason)

    def _chance(self, asked: str) -> str:
        n = self._cursor.next()
        self._core.unrecorded(n, asked)
        return n

    def _send_at(self, n: str, agent: str, type: str, data: Any) -> Coroutine[Any, Any, str]:
        to = subject.inbox(agent, self.agent, type)
        return self._send(to, type, data, n=n, replyto=f"{self.agent}/{self.id}")

    def _send(
        self,
        to: str,
        type: str,
        data: Any,
        *,
        n: str = "",
        about: str | None = None,
        torun: str | None = None,
        replyto: str | None = None,
    ) -> Coroutine[Any, Any, str]:
        n = n or self._cursor.next()
        event: Event[Any] = new(
            type, data, source=agent_source(self.agent), id=f"{self.id}-{n}", subject=about
        )
        event = replace(event, torun=torun, replyto=replyto)
        return self._effect(n, Append(to, event), event.id)

    async def _effect(self, n: str, append: Append, id: str) -> str:
        self._core.effect(n, append)
        await self._core.flush()
        return id


class Child:
    """A run that was spawned. `id` is its run id at `agent`."""

    def __init__(self, run: Run, agent: str, type: str, event_id: str) -> None:
        self._run = run
        self._event_id = event_id
        self.agent = agent
        self.type = type
        self.id = run_id(agent, event_id)

    def result(self, *, timeout_seconds: float | None = None) -> Coroutine[Any, Any, Any]:
        """Wait for its end and return what its handler returned; CallFailed, WaitTimeout."""
        n = self._run._cursor.next()
        timeout = None if timeout_seconds is None else timedelta(seconds=timeout_seconds)
        what = f"{self.type} at {self.agent}"
        return waits.reply(self._run._core, n, what, self._event_id, timeout)
