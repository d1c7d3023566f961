"""A run that was begun without our code is taken over by an agent in Python, and the other way."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import anyio

from stratum_agents import Agent, Run
from stratum_agents.journal import Journal
from stratum_agents.run import run_id
from stratum_agents.worker import work
from stratum_bus.bus import Bus
from stratum_bus.event import Event, agent_source, new
from stratum_bus.subject import inbox
from stratum_bus.tasks import task_group
from stratum_bus.testing import eventually
from tests.flow.bare import bare

RUN = run_id("tax", "ret-9")
CONSUMER = {
    "name": "tax",
    "durable_name": "tax",
    "ack_policy": "explicit",
    "ack_wait": 30_000_000_000,
    "max_deliver": -1,
    "max_ack_pending": 10_000,
    "filter_subjects": ["inbox.tax.>", "control.tax.run.>"],
}


def append(nats: Any, kind: str, expected: int, data: dict[str, Any]) -> dict[str, Any]:
    """An entry of a worker that shares no code with us, and what the server says."""
    event = {
        "specversion": "1.0", "id": f"{RUN}-{kind}-{expected}.other", "source": "/agents/tax",
        "type": f"stratum.run.{kind}", "causationid": "ret-9", "runid": RUN, "data": data,
    }  # fmt: skip
    headers = {"Nats-Expected-Last-Subject-Sequence": str(expected)}
    answer: dict[str, Any] = nats.request(f"run.tax.{RUN}", json.dumps(event).encode(), headers)
    return answer


def tax(done: list[str]) -> Agent:
    agent = Agent("tax")

    @agent.on("return")
    async def assess(run: Run, event: Event[dict[str, int]]) -> dict[str, float]:
        def step(name: str, value: float) -> float:
            done.append(name)
            return value

        income = await run.step("income", step, "income", 7.0)
        rate = await run.step("rate", step, "rate", 0.2)
        await run.send("billing", "assessed", {"due": income * rate})
        return {"due": income * rate}

    return agent


async def test_an_agent_in_python_goes_on_where_another_worker_stopped(bus: Bus) -> None:
    done: list[str] = []
    asked = new("return", {"year": 2026}, source=agent_source("billing"), id="ret-9")
    place = (await bus.publish(inbox("tax", "billing", "return"), asked)).sequence
    with bare(bus.connection.url) as nats:
        body = {"stream_name": "LOG", "config": CONSUMER}
        nats.request("$JS.API.CONSUMER.CREATE.LOG.tax", json.dumps(body).encode())
        nats.publish("$JS.API.CONSUMER.MSG.NEXT.LOG.tax", b'{"batch": 1}', reply=nats.inbox + ".m")
        _, ack, _, _ = nats.receive()
        assert ack.startswith(f"$JS.ACK.LOG.tax.1.{place}.")
        origin = {"stream": "LOG", "sequence": place, "id": "ret-9"}
        first = {
            "n": "1", "name": "step:income", "result": 1000, "attempt": 1,
            "origin": {**origin, "type": "return", "handler": "return"},
            "holder": f"LOG-{place}", "delivery": 1, "instance": "other",
        }  # fmt: skip
        last = append(nats, "step.completed", 0, first)["seq"]
        stop = anyio.Event()
        async with task_group() as tasks:
            # It starts as the only one that says it lives, and takes back what was in hand.
            tasks.start_soon(partial(work, bus, tax(done), stop=stop))
            sent = await eventually(partial(bus.last, "inbox.billing.tax.assessed"))
            stop.set()
        late = append(nats, "step.completed", last, {"n": "2", "name": "step:rate", "result": 1})
    assert sent is not None
    assert json.loads(sent.payload)["data"] == {"due": 200.0}
    assert done == ["rate"]
    assert late["error"]["err_code"] == 10071
    journal = await Journal(bus, "tax", RUN).load()
    kinds = [recorded.kind for recorded in journal.entries]
    assert kinds == ["step.completed", "resumed", "step.completed", "completed"]


async def test_a_worker_of_another_kind_takes_over_from_an_agent_in_python(bus: Bus) -> None:
    stuck = Agent("tax")
    begun, refused = anyio.Event(), anyio.Event()

    @stuck.on("return")
    async def assess(run: Run, event: Event[dict[str, int]]) -> None:
        await run.step("income", lambda: 1000)
        begun.set()
        await refused.wait()
        await run.send("billing", "assessed", {"due": -1})

    asked = new("return", {"year": 2026}, source=agent_source("billing"), id="ret-9")
    place = (await bus.publish(inbox("tax", "billing", "return"), asked)).sequence
    stop = anyio.Event()
    async with task_group() as tasks:
        tasks.start_soon(partial(work, bus, stuck, stop=stop))
        await begun.wait()
        with bare(bus.connection.url) as nats:
            last = await bus.last(f"run.tax.{RUN}")
            assert last is not None
            known = json.loads(last.payload)
            assert (known["data"]["n"], known["data"]["result"]) == ("1", 1000)
            assert (known["data"]["holder"], known["data"]["delivery"]) == (f"LOG-{place}", 1)
            resumed = {"holder": f"LOG-{place}", "delivery": 2, "instance": "other"}
            at = append(nats, "resumed", last.sequence, resumed)["seq"]
            refused.set()
            end = append(nats, "completed", at, {"name": "end", "result": {"due": 200}})
        assert "error" not in end
        stop.set()
    assert await bus.last("inbox.billing.tax.assessed") is None
    assert (await Journal(bus, "tax", RUN).load()).state == "completed"


def test_the_page_says_of_the_consumer_what_python_says() -> None:
    page = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text(encoding="utf-8")
    said = json.loads(page.partition("CONSUMER.CREATE.LOG.research ")[2].partition("\n")[0])
    ours = {**CONSUMER, "name": "research", "durable_name": "research"}
    filters = ["inbox.research.>", "topic.*.invoice.paid", "control.research.run.>"]
    assert said["config"] == {**ours, "filter_subjects": filters}
