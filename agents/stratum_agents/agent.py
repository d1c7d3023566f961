"""An agent: a name, the topics it follows, and a handler for each event type."""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import anyio
import msgspec

from stratum_agents.run import Run
from stratum_bus import subject
from stratum_bus.bus import Bus
from stratum_bus.event import Event
from stratum_bus.schema import TYPES, EventType

Handle = Callable[[Run, Any], Awaitable[Any]]
Task = Callable[[Bus, anyio.Event], Coroutine[Any, Any, None]]
H = TypeVar("H", bound=Handle)
T = TypeVar("T", bound=Task)


SCHEDULED = "stratum.schedule."
"""The type of the event that starts a scheduled run, before the schedule's name."""


class Handler(msgspec.Struct, frozen=True):
    """A handler and the type that it wants the event's data as (`msgspec.Raw`: as it is)."""

    type: str
    function: Handle
    data: Any


class Agent:
    """A named participant with an inbox, an outbox and a memory.

    `follows` are event types of topics it receives beside its inbox. `concurrency` is how many
    events one instance handles at once (1: strictly one after the other).
    """

    def __init__(
        self, name: str, *, follows: tuple[str, ...] | list[str] = (), concurrency: int = 16
    ) -> None:
        self.name = subject.token(name, "agent name")
        self.follows = tuple(subject.event_type(type) for type in follows)
        if concurrency < 1:
            raise ValueError(f"agent {name}: concurrency must be at least 1, not {concurrency}")
        self.concurrency = concurrency
        self.handlers: dict[str, Handler] = {}
        self.schedules: dict[str, str] = {}
        self.tasks: list[Task] = []

    def on(self, type: str) -> Callable[[H], H]:
        """Handle events of this type with `async def handler(run, event: Event[T])`.

        An event of a type without a handler is taken note of and left alone. Raises ValueError
        for a second handler of one type, TypeError for what cannot be a handler.
        """

        def add(function: H) -> H:
            if type in self.handlers:
                raise ValueError(f"agent {self.name} already has a handler for {type}")
            self.handlers[type] = Handler(subject.event_type(type), function, _data_type(function))
            return function

        return add

    def every(self, schedule: str, *, name: str | None = None) -> Callable[[H], H]:
        """Start a run at each time of a schedule that the server keeps, on one instance.

        `schedule` is a Go duration from a second on (`90s`, `1h30m`) or a cron line of six
        fields (seconds first). `name` keeps the schedule's identity; default: the function's.
        """

        def add(function: H) -> H:
            schedule_name = subject.token(name or function.__name__, "schedule name")
            if schedule_name in self.schedules:
                raise ValueError(f"agent {self.name} already has a schedule {schedule_name}")
            pattern = (
                schedule if schedule.startswith("@") or " " in schedule else f"@every {schedule}"
            )
            self.schedules[schedule_name] = pattern
            type = SCHEDULED + schedule_name
            self.handlers[type] = Handler(type, function, _data_type(function))
            return function

        return add

    def task(self, function: T) -> T:
        """Run `async def task(bus, stop)` beside the handlers, as long as the instance lives."""
        self.tasks.append(function)
        return function

    def handler_for(self, type: str) -> Handler | None:
        """The handler of an event type, by its present or a former name."""
        known = TYPES.get(type)
        names = (type, known.name, *known.former) if known else (type,)
        return next((self.handlers[name] for name in names if name in self.handlers), None)

    def types(self) -> list[EventType]:
        """What it handles as data of its own, declared or only named where it is handled."""
        found = [
            TYPES.get(handler.type) or EventType(handler.type, handler.data, 1, (), {})
            for handler in self.handlers.values()
            if handler.data not in (Any, msgspec.Raw)
        ]
        return sorted(found, key=lambda known: known.name)


def _data_type(function: Callable[..., Any]) -> Any:
    """What a handler's second parameter says its event's data is; TypeError for what is none."""
    name = getattr(function, "__qualname__", repr(function))
    signature = inspect.signature(function)
    try:
        signature.bind(None, None)
    except TypeError:
        raise TypeError(f"handler {name} must take (run, event)") from None
    if not inspect.iscoroutinefunction(inspect.unwrap(function)):
        raise TypeError(f"handler {name} must be an async function")
    hint = list(signature.parameters.values())[1].annotation
    if isinstance(hint, str):
        hint = _named(hint, inspect.unwrap(function), name)
    arguments = typing.get_args(hint)
    return arguments[0] if typing.get_origin(hint) is Event and arguments else Any


def _named(hint: str, function: Callable[..., Any], name: str) -> Any:
    """A hint that is written as text; the others are not looked at, they may not be there."""
    while isinstance(function, functools.partial):
        function = function.func
    function = getattr(function, "__func__", function)
    stub = types.SimpleNamespace(__annotations__={"event": hint})
    try:
        return typing.get_type_hints(stub, getattr(function, "__globals__", {}))["event"]
    except NameError as error:
        raise TypeError(
            f"handler {name}: {error}; the type of its event must be a name of the module's top level"
        ) from None
