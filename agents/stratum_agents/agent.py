"""An agent: a name, the topics it follows, and a handler for each event type."""

from __future__ import annotations

import typing
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import anyio
import msgspec

from stratum_agents.run import Run
from stratum_bus import subject
from stratum_bus.bus import Bus
from stratum_bus.event import Event
from stratum_bus.schema import canonical

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
        self.concurrency = concurrency
        self.handlers: dict[str, Handler] = {}
        self.schedules: dict[str, str] = {}
        self.tasks: list[Task] = []

    def on(self, type: str) -> Callable[[H], H]:
        """Handle events of this type with `async def handler(run, event: Event[T])`.

        An event of a type without a handler is taken note of and left alone. Raises ValueError
        for a second handler of one type.
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
        return self.handlers.get(type) or self.handlers.get(canonical(type))


def _data_type(function: Callable[..., Any]) -> Any:
    """What a handler's second parameter says its event's data is."""
    try:
        hints = typing.get_type_hints(function)
    except NameError as error:
        where = f"handler {function.__qualname__}: {error}"
        raise TypeError(
            f"{where}; its annotations must be names of the module's top level"
        ) from None
    names = list(function.__code__.co_varnames[: function.__code__.co_argcount])
    if len(names) < 2:
        raise TypeError(f"handler {function.__qualname__} must take (run, event)")
    hint = hints.get(names[1], Event[Any])
    arguments = typing.get_args(hint)
    return arguments[0] if typing.get_origin(hint) is Event and arguments else Any
