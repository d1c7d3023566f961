"""Declaring an agent: mistakes surface there, and a handler says by its annotation what it gets."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from stratum_agents import Agent
from stratum_bus import Event, event_type
from stratum_bus.errors import InvalidName
from stratum_bus.schema import TYPES

if TYPE_CHECKING:
    from stratum_agents import Run  # not there when the handlers are declared


class Paper(msgspec.Struct):
    title: str


async def typed(run: Run, event: Event[Paper]) -> None: ...
async def raw(run: Run, event: Event[msgspec.Raw]) -> None: ...
async def plain(run: Run, event: Event[Any]) -> None: ...
async def bare(run: Run, event: Event) -> None: ...  # type: ignore[type-arg]
async def without(run, event): ...  # type: ignore[no-untyped-def]
async def nested(run: Run, event: Event[dict[str, list[Paper]]]) -> None: ...
async def defaulted(run: Run, event: Event[Paper], more: int = 0) -> None: ...
async def starred(*arguments: Any) -> None: ...


class Handlers:
    async def method(self, run: Run, event: Event[Paper]) -> None: ...

    @staticmethod
    async def static(run: Run, event: Event[Paper]) -> None: ...


def logged(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapped(*arguments: Any) -> Any:
        return function(*arguments)

    return wrapped


@pytest.fixture
def agent() -> Agent:
    return Agent("bob")


@pytest.mark.parametrize(
    ("function", "data"),
    [
        (typed, Paper),
        (raw, msgspec.Raw),
        (plain, Any),
        (bare, Any),
        (without, Any),
        (nested, dict[str, list[Paper]]),
        (defaulted, Paper),
        (Handlers().method, Paper),
        (Handlers.static, Paper),
        (logged(typed), Paper),
        (functools.partial(typed), Paper),
    ],
)
def test_a_handler_says_what_data_it_wants(agent: Agent, function: Any, data: Any) -> None:
    assert agent.on("paper.published")(function) is function
    handler = agent.handler_for("paper.published")
    assert handler is not None
    assert (handler.type, handler.function, handler.data) == ("paper.published", function, data)


def test_a_type_that_cannot_be_found_is_said_where_it_is_declared(agent: Agent) -> None:
    class Local(msgspec.Struct): ...

    async def handle(run: Run, event: Event[Local]) -> None: ...

    with pytest.raises(TypeError, match="'Local' is not defined; the type of its event must be"):
        agent.on("x")(handle)
    assert agent.handler_for("x") is None


def sync(run: Run, event: Event[Any]) -> None: ...
async def too_few(run: Run) -> None: ...
async def too_many(run: Run, event: Event[Any], more: int) -> None: ...
async def by_name_only(*, run: Run, event: Event[Any]) -> None: ...


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (sync, "handler sync must be an async function"),
        (too_few, r"handler too_few must take \(run, event\)"),
        (too_many, r"handler too_many must take \(run, event\)"),
        (by_name_only, r"handler by_name_only must take \(run, event\)"),
    ],
)
def test_what_cannot_be_a_handler_is_refused_where_it_is_declared(
    agent: Agent, function: Any, why: str
) -> None:
    with pytest.raises(TypeError, match=why):
        agent.on("x")(function)
    assert agent.handler_for("x") is None


def test_a_type_has_one_handler(agent: Agent) -> None:
    agent.on("x")(plain)
    with pytest.raises(ValueError, match="agent bob already has a handler for x"):
        agent.on("x")(raw)


@pytest.mark.parametrize("name", ["", "a.b", "a b", "*", "x" * 300])
def test_a_bad_name_is_refused(name: str) -> None:
    with pytest.raises(InvalidName, match="agent name"):
        Agent(name)


def test_bad_types_are_refused(agent: Agent) -> None:
    with pytest.raises(InvalidName, match="event type"):
        agent.on("no good")(plain)
    with pytest.raises(InvalidName, match="event type"):
        Agent("bob", follows=["no good"])


@pytest.mark.parametrize("concurrency", [0, -1])
def test_an_agent_that_would_handle_nothing_is_refused(concurrency: int) -> None:
    with pytest.raises(ValueError, match="agent bob: concurrency must be at least 1"):
        Agent("bob", concurrency=concurrency)


@pytest.fixture
def renamed() -> Iterator[None]:
    before = dict(TYPES)
    TYPES.clear()  # another test's agent may have declared one of these
    event_type("paper.published", former=("paper.seen", "paper.found"))(Paper)
    yield
    TYPES.clear()
    TYPES.update(before)


@pytest.mark.parametrize("declared", ["paper.published", "paper.seen"])
@pytest.mark.parametrize("arrives", ["paper.published", "paper.seen", "paper.found"])
def test_a_handler_is_found_by_every_name_its_type_ever_had(
    agent: Agent, renamed: None, declared: str, arrives: str
) -> None:
    agent.on(declared)(typed)
    handler = agent.handler_for(arrives)
    assert handler is not None
    assert handler.function is typed


def test_a_type_without_a_handler_has_none(agent: Agent, renamed: None) -> None:
    agent.on("paper.published")(typed)
    assert agent.handler_for("paper") is None
    assert agent.handler_for("") is None
