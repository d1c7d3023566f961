"""Steps: something done once, its result journaled; its failures too, and when it is tried again."""

from __future__ import annotations

import hashlib
import inspect
import typing
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from time import perf_counter
from types import FunctionType
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import anyio
import anyio.lowlevel
import msgspec
from msgspec.structs import replace

from stratum_agents.core import Core
from stratum_agents.failure import StepFailed, failure_of
from stratum_agents.journal import FIRED, STEP_COMPLETED, STEP_FAILED, Entry, Recorded
from stratum_agents.recall import Recalled, nearest
from stratum_agents.retry import Retry, Terminal
from stratum_bus import timer
from stratum_bus.event import Raw
from stratum_bus.memory import Memory
from stratum_bus.tasks import own_cancellation

IN_PROCESS_SECONDS = 5.0
"""Up to this long a worker itself waits before it tries a step again; longer, a timer does."""

REPLAYED_AT_ONCE = 200
"""So many steps are replayed before other tasks of the process have their turn."""


async def step(
    core: Core,
    n: str,
    name: str,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    keywords: dict[str, Any],
    retry: Retry,
    timeout_seconds: float | None,
) -> Any:
    """See `Run.step`."""
    asked = f"step:{name}"
    kind = _facts_of(function).kind
    if found := core.recorded(n, asked):
        if len(core.asked) % REPLAYED_AT_ONCE == 0:
            await anyio.lowlevel.checkpoint()
        if found.kind == STEP_FAILED:
            raise _failed(name, found)
        return await core.result(found, kind)
    await core.must(core.journal.verify_new())

    async def call() -> Any:
        return await _invoke(core, n, function, arguments, keywords, timeout_seconds)

    first = Entry(n=n, name=asked, arguments=_digest(arguments, keywords))
    tried = core.journal.attempts.get(n)
    failed: Entry | None = tried[-1].entry if tried else None
    while True:
        if failed is not None:
            await _backoff(core, n, failed)
        core.before_live(n)
        entry, outcome = await _attempt(core, first, name, call, kind, retry, failed)
        if not isinstance(outcome, _Failed):
            await core.append(STEP_COMPLETED, entry, id=f"{core.journal.run}-{n}")
            return outcome
        await core.append(STEP_FAILED, entry, id=f"{core.journal.run}-{n}-a{entry.attempt}")
        if entry.final:
            raise _failed(name, core.journal.decided[n]) from outcome.error
        failed = entry


async def _attempt(
    core: Core,
    first: Entry,
    name: str,
    call: Callable[[], Awaitable[Any]],
    kind: Any,
    retry: Retry,
    failed: Entry | None,
) -> tuple[Entry, Any]:
    """Do it once: the entry to append, and the result as a later replay will see it, or _Failed."""
    attempt = failed.attempt + 1 if failed else 1
    entry = replace(first, attempt=attempt)
    started = perf_counter()
    try:
        value = await core.within_step(first.n, call())
        result, packed = await core.pack(value)
        read = _as_read(name, msgspec.json.encode(value) if packed else result, kind)
    except Exception as error:  # noqa: BLE001 - whatever it raises, the step has failed
        core.check()  # but what we raised ourselves is no failure of the step
        seconds = perf_counter() - started
        final = attempt >= retry.max_attempts or isinstance(error, (Terminal, *retry.never))
        until = None if final else core.clock.now() + _delay(retry, attempt)
        failure = failure_of(error)
        entry = replace(entry, error=failure, final=final, seconds=seconds, until=until)
        return entry, _Failed(error)
    seconds = perf_counter() - started
    return replace(entry, result=result, packed=packed, seconds=seconds), read


def _digest(arguments: tuple[Any, ...], keywords: dict[str, Any]) -> str:
    """See `Entry.arguments`."""
    if not arguments and not keywords:
        return ""
    try:
        encoded = msgspec.json.encode((arguments, keywords))
    except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError):
        return ""
    return hashlib.blake2b(encoded, digest_size=9).hexdigest()


class _Failed:
    def __init__(self, error: Exception) -> None:
        self.error = error


async def recall(core: Core, n: str, text: str, kind: str | None, limit: int) -> list[Recalled]:
    """See `Run.recall`."""

    async def search() -> list[Recalled]:
        notes = await Memory(core.bus, core.agent).notes(kind=kind)
        return nearest(text, notes, limit)

    found: list[Recalled] = await step(core, n, "recall", search, (), {}, Retry(), None)
    return found


async def _backoff(core: Core, n: str, failed: Entry) -> None:
    """Let the time before another attempt pass, here or by a timer."""
    name, until = f"{timer_name(n)}-a{failed.attempt}", failed.until
    assert until is not None

    def is_over() -> bool:
        return until <= core.clock.now() or fired(core, name) is not None

    if is_over():
        return
    if (until - core.clock.now()).total_seconds() <= IN_PROCESS_SECONDS:
        await core.clock.wait_until(until)
        return
    core.before_live(n)
    await set_timer(core, name, until)
    core.suspend(n, is_over)


async def set_timer(core: Core, name: str, at: datetime) -> None:
    """Have the server's timer of that name fire at a time of the run's clock."""
    connection, run = core.bus.connection, core.journal.run
    at = core.clock.on_server(at)
    await core.must(timer.schedule(connection, core.agent, run, name, at))


def timer_name(n: str) -> str:
    """The name of the timer of a position."""
    return "t" + n.replace(".", "-")


def fired(core: Core, name: str) -> Recorded | None:
    """The first firing of a timer, if it is there."""
    return next((r for r in core.journal.open_inputs(FIRED) if r.entry.name == name), None)


def _delay(retry: Retry, attempt: int) -> timedelta:
    return timedelta(seconds=retry.delay_seconds(attempt))


def _failed(name: str, recorded: Recorded) -> StepFailed:
    assert recorded.entry.error is not None
    return StepFailed(name, recorded.entry.attempt, recorded.entry.error)


async def _invoke(
    core: Core,
    n: str,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    keywords: dict[str, Any],
    timeout_seconds: float | None,
) -> Any:
    """Call it; a plain function in a thread, which is left to itself where its time is over."""
    if timeout_seconds is not None:
        with anyio.move_on_after(timeout_seconds):
            return await _call(core, n, function, arguments, keywords, abandon=True)
        raise TimeoutError(f"it took longer than {timeout_seconds:g} s")
    return await _call(core, n, function, arguments, keywords, abandon=False)


async def _call(
    core: Core,
    n: str,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    keywords: dict[str, Any],
    *,
    abandon: bool,
) -> Any:
    facts = _facts_of(function)
    if facts.takes_key:
        keywords = {**keywords, "idempotency_key": f"{core.journal.run}-{n}"}
    with own_cancellation():
        if facts.is_async:
            return await function(*arguments, **keywords)
        value = await anyio.to_thread.run_sync(
            lambda: function(*arguments, **keywords), abandon_on_cancel=abandon
        )
        return await value if inspect.isawaitable(value) else value


def _as_read(name: str, encoded: bytes | Raw, kind: Any) -> Any:
    """The result as JSON makes it; raises Terminal where it is not what was annotated."""
    try:
        return msgspec.json.decode(encoded, type=kind)
    except msgspec.ValidationError as error:
        raise Terminal(f"the result is not what {name} says it returns: {error}") from error


class _Facts(NamedTuple):
    """What is to be known of a step's function; `kind` is what it says it returns."""

    is_async: bool
    takes_key: bool
    kind: Any


# Not kept longer than the function: a closure holds on to its run.
_known: WeakKeyDictionary[FunctionType, _Facts] = WeakKeyDictionary()


def _facts_of(function: Callable[..., Any]) -> _Facts:
    if not isinstance(function, FunctionType):
        return _look_at(function)
    if (facts := _known.get(function)) is None:
        facts = _known[function] = _look_at(function)
    return facts


def _look_at(function: Callable[..., Any]) -> _Facts:
    try:
        takes_key = "idempotency_key" in inspect.signature(function).parameters
    except (TypeError, ValueError):
        takes_key = False
    try:
        kind = typing.get_type_hints(function).get("return", Any)
        msgspec.json.Decoder(kind)  # else anything that JSON can be
    except (TypeError, NameError, AttributeError):
        kind = Any
    return _Facts(inspect.iscoroutinefunction(function), takes_key, kind)
