"""Forks and redriving: what a new run shares of another one, and what it does anew."""

from __future__ import annotations

from typing import Any

import pytest

from stratum_agents.agent import Agent
from stratum_agents.failure import CallFailed, StepFailed
from stratum_agents.fork import fork, redrive
from stratum_agents.retry import Retry, Terminal
from stratum_agents.run import Run
from stratum_agents.testing import Kit, runs
from stratum_bus import dead
from stratum_bus.bus import Bus
from stratum_bus.errors import NotFound
from stratum_bus.event import Event


class Order:
    """An agent with steps, messages and a payment that can be told to fail."""

    def __init__(self, *, undo: bool = False) -> None:
        self.done: list[str] = []
        self.broken = False
        self.rejected = False
        self.agent = Agent("shop")

        @self.agent.on("order.placed")
        async def handle(run: Run, event: Event[dict[str, Any]]) -> str:
            price = await run.step("price", self.price)
            await run.send("stock", "reserve", {"price": price})
            if undo:
                run.compensate(self.undo)
            paid = await run.step("pay", self.pay, price, retry=Retry(max_attempts=1))
            await run.send("door", "greet", {"paid": paid})
            if self.rejected:
                raise run.fail("no more of these")
            return paid

    async def price(self) -> int:
        self.done.append("price")
        return 42

    async def pay(self, price: int) -> str:
        self.done.append(f"pay {price}")
        if self.broken:
            raise Terminal("no money")
        return f"paid {price}"

    async def undo(self) -> None:
        self.done.append("undo")


async def letter(bus: Bus) -> dead.Letter:
    [found] = await dead.letters(bus)
    return found


async def subjects(kit: Kit, filter: str) -> list[str]:
    return [event.type for event in await kit.events(filter)]


async def test_a_fork_shares_what_was_before_and_does_the_rest_live(bus: Bus) -> None:
    order = Order()
    async with runs(bus, order.agent) as kit:
        run = await kit.start("order.placed", {})
        order.done.clear()
        new = await fork(bus, "shop", run, "pay", {"price": 7})
        await kit.settle()
        assert order.done == ["pay 7"]
        assert await kit.result(new) == "paid 7"
        journal = await kit.journal(new, "shop")
        assert (journal.forked_from, journal.state) == (run, "completed")
        assert await subjects(kit, "inbox.stock.>") == ["reserve"]
        assert await subjects(kit, "inbox.door.>") == ["greet", "greet"]
        assert (await kit.journal(run)).state == "completed"


async def test_a_fork_at_a_message_sends_it_anew(bus: Bus) -> None:
    order = Order()
    async with runs(bus, order.agent) as kit:
        run = await kit.start("order.placed", {})
        order.done.clear()
        new = await fork(bus, "shop", run, "2")
        await kit.settle()
        assert order.done == ["pay 42"]
        assert await kit.result(new) == "paid 42"
        assert await subjects(kit, "inbox.stock.>") == ["reserve", "reserve"]


async def test_a_fork_of_a_fork_has_the_prefix_of_both(bus: Bus) -> None:
    order = Order()
    async with runs(bus, order.agent) as kit:
        run = await kit.start("order.placed", {})
        first = await fork(bus, "shop", run, "pay", {"price": 7})
        await kit.settle()
        order.done.clear()
        second = await fork(bus, "shop", first, "4")
        await kit.settle()
        assert order.done == []
        assert await kit.result(second) == "paid 7"


@pytest.mark.parametrize(
    ("at", "sets", "said"),
    [
        ("9", {}, "no position or step 9 in the journal of run {run}; it has 1, 2, 3, 4"),
        ("", {}, r"no position or step \(none\)"),
        ("c1", {}, "no position or step c1"),
        ("pay", {"pay": 1}, "no step pay that run {run} has done before position 3"),
    ],
)
async def test_a_fork_at_nothing_names_what_there_is(
    bus: Bus, at: str, sets: dict[str, Any], said: str
) -> None:
    order = Order()
    async with runs(bus, order.agent) as kit:
        run = await kit.start("order.placed", {})
        with pytest.raises(NotFound, match=said.format(run=run)):
            await fork(bus, "shop", run, at, sets)


async def test_a_failed_run_is_redriven_from_the_step_that_failed(bus: Bus) -> None:
    order = Order()
    order.broken = True
    async with runs(bus, order.agent) as kit:
        run = await kit.start("order.placed", {})
        assert (await kit.journal(run)).state == "failed"
        order.broken = False
        order.done.clear()
        new = await redrive(bus, await letter(bus), "there is money now")
        await kit.settle()
        assert order.done == ["pay 42"]
        assert await kit.result(new) == "paid 42"
        assert (await letter(bus)).state == dead.REDRIVEN
        assert await subjects(kit, "inbox.stock.>") == ["reserve"]


async def test_a_run_that_failed_behind_its_steps_keeps_them_all(bus: Bus) -> None:
    order = Order()
    order.rejected = True
    async with runs(bus, order.agent) as kit:
        await kit.start("order.placed", {})
        order.rejected = False
        order.done.clear()
        new = await redrive(bus, await letter(bus))
        await kit.settle()
        assert order.done == []
        assert await kit.result(new) == "paid 42"
        assert await subjects(kit, "inbox.stock.>") == ["reserve"]
        assert await subjects(kit, "inbox.door.>") == ["greet"]


async def test_a_run_that_undid_its_steps_begins_anew(bus: Bus) -> None:
    order = Order(undo=True)
    order.broken = True
    async with runs(bus, order.agent) as kit:
        await kit.start("order.placed", {})
        assert order.done == ["price", "pay 42", "undo"]
        order.broken = False
        order.done.clear()
        new = await redrive(bus, await letter(bus))
        await kit.settle()
        assert order.done == ["price", "pay 42"]
        assert await kit.result(new) == "paid 42"


async def test_a_failed_call_is_made_again(bus: Bus) -> None:
    caller, helper = Agent("caller"), Agent("helper")
    broken = True

    @caller.on("question")
    async def ask(run: Run, event: Event[None]) -> Any:
        await run.step("think", _nothing)
        try:
            return await run.call("helper", "task", {"n": 1})
        except CallFailed as error:
            raise run.fail("the helper failed") from error

    @helper.on("task")
    async def help(run: Run, event: Event[dict[str, int]]) -> int:
        if broken:
            raise run.fail("not today")
        return event.data["n"] + 1

    async with runs(bus, caller, helper) as kit:
        await kit.start("question")
        broken = False
        [own] = await dead.letters(bus, "caller")
        new = await redrive(bus, own)
        await kit.settle()
        assert await kit.result(new) == 2


async def test_a_step_that_failed_in_a_branch_is_done_again(bus: Bus) -> None:
    agent, done, broken = Agent("both"), list[str](), True

    async def left() -> str:
        done.append("left")
        if broken:
            raise Terminal("no")
        return "l"

    async def right() -> str:
        done.append("right")
        return "r"

    @agent.on("go")
    async def go(run: Run, event: Event[None]) -> list[str]:
        try:
            return await run.gather(run.step("left", left), run.step("right", right))
        except StepFailed as error:
            raise run.fail("one side is missing") from error

    async with runs(bus, agent) as kit:
        await kit.start("go")
        broken = False
        done.clear()
        new = await redrive(bus, await letter(bus))
        await kit.settle()
        assert await kit.result(new) == ["l", "r"]
        assert "left" in done


async def _nothing() -> None:
    pass
