"""Steps: something done once, its result journaled; its failures too, and when it is tried again."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable
from datetime import datetime, timedelta
from time import perf_counter
from typing import Any

import anyio
import msgspec

from stratum_agents.core import Core
from stratum_agents.failure import StepFailed, Suspended, failure_of
from stratum_agents.journal import FIRED, STEP_COMPLETED, STEP_FAILED, Entry, Recorded
from stratum_agents.recall import Recalled, nearest
from stratum_agents.retry import Retry, Terminal
from stratum_agents.values import pack, unpack
from stratum_bus import timer
from stratum_bus.errors import EncodeError
from stratum_bus.event import Raw
from stratum_bus.memory import Memory

IN_PROCESS_SECONDS = 5.0
"""Up to this long a worker itself waits before it tries a step again; longer, a timer does."""


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
    kind = _result_kind(function)
    if found := core.recorded(n, asked):
        if found.kind == STEP_FAILED:
            raise _failed(name, found)
        return await core.result(found, kind)
    await core.journal.verify_new()
    failures = core.journal.attempts.get(n, [])
    if failures and failures[-1].entry.until:
        await _backoff(core, n, failures[-1].entry.until)
    for attempt in range(len(failures) + 1, retry.max_attempts + 2):
        core.before_live(n)
        started = perf_counter()
        try:
            value = await _invoke(
                function, f"{core.journal.run}-{n}", arguments, keywords, timeout_seconds
            )
            result, packed = await pack(core.bus.connection, value, "$.result")
        except EncodeError:
            raise
        except Exception as error:
            seconds = perf_counter() - started
            final = attempt >= retry.max_attempts or isinstance(error, (Terminal, *retry.never))
            until = None if final else core.clock() + _delay(retry, attempt)
            entry = Entry(
                n=n, name=asked, error=failure_of(error), attempt=attempt, final=final,
                seconds=seconds, until=until,
            )  # fmt: skip
            await core.append(STEP_FAILED, entry, id=f"{core.journal.run}-{n}-a{attempt}")
            if until is None:
                raise _failed(name, core.journal.decided[n]) from error
            await _backoff(core, n, until)
        else:
            value = await _as_read(core, result, packed, kind)
            entry = Entry(
                n=n, name=asked, result=result, packed=packed, attempt=attempt,
                seconds=perf_counter() - started,
            )  # fmt: skip
            await core.append(STEP_COMPLETED, entry, id=f"{core.journal.run}-{n}")
            return value
    raise AssertionError("a step ends by its result or its last attempt")


async def recall(core: Core, n: str, text: str, kind: str | None, limit: int) -> list[Recalled]:
    """See `Run.recall`."""

    async def search() -> list[Recalled]:
        notes = await Memory(core.bus, core.agent).notes(kind=kind)
        return nearest(text, notes, limit)

    found: list[Recalled] = await step(core, n, "recall", search, (), {}, Retry(), None)
    return found


async def _backoff(core: Core, n: str, until: datetime) -> None:
    """Let the time before another attempt pass, here or by a timer."""
    left = (until - core.clock()).total_seconds()
    if left <= 0 or fired(core, n):
        return
    if left <= IN_PROCESS_SECONDS:
        await anyio.sleep(left)
        return
    core.before_live(n)
    await timer.schedule(core.bus.connection, core.agent, core.journal.run, timer_name(n), until)
    raise Suspended


def timer_name(n: str) -> str:
    """The name of the timer of a position."""
    return "t" + n.replace(".", "-")


def fired(core: Core, n: str) -> Recorded | None:
    """The first firing of a position's timer, if it is there."""
    name = timer_name(n)
    return next((r for r in core.journal.open_inputs(FIRED) if r.entry.name == name), None)


def _delay(retry: Retry, attempt: int) -> timedelta:
    return timedelta(seconds=retry.delay_seconds(attempt))


def _failed(name: str, recorded: Recorded) -> StepFailed:
    assert recorded.entry.error is not None
    return StepFailed(name, recorded.entry.attempt, recorded.entry.error)


async def _as_read(core: Core, result: Raw, packed: bool, kind: Any) -> Any:
    """The value as a later replay will see it; raises where it is not what was annotated."""
    if packed:
        raw = Raw(msgspec.json.encode(result))
        return msgspec.convert(await unpack(core.bus.connection, raw), kind)
    return msgspec.json.decode(result, type=kind)


async def _invoke(
    function: Callable[..., Any],
    key: str,
    arguments: tuple[Any, ...],
    keywords: dict[str, Any],
    timeout_seconds: float | None,
) -> Any:
    if timeout_seconds is not None:
        with anyio.fail_after(timeout_seconds):
            return await _invoke(function, key, arguments, keywords, None)
    if _takes_key(function):
        keywords = {**keywords, "idempotency_key": key}
    if _is_async(function):
        return await function(*arguments, **keywords)
    value = await anyio.to_thread.run_sync(lambda: function(*arguments, **keywords))
    return await value if inspect.isawaitable(value) else value


@functools.lru_cache(maxsize=1024)
def _is_async(function: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(function)


@functools.lru_cache(maxsize=1024)
def _takes_key(function: Callable[..., Any]) -> bool:
    try:
        return "idempotency_key" in inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False


@functools.lru_cache(maxsize=1024)
def _result_kind(function: Callable[..., Any]) -> Any:
    """What a function says it returns, where JSON can be read as that; else anything."""
    try:
        kind = typing.get_type_hints(function).get("return", Any)
        msgspec.json.Decoder(kind)
    except (TypeError, NameError, AttributeError):
        return Any
    return kind
