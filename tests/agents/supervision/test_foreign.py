"""An agent in another language that sends no heartbeats: what it had in hand is known to the server."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from stratum_bus.testing import eventually

FOREIGN = """
import asyncio, os, signal
import nats


async def main():
    client = await nats.connect(os.environ["STRATUM_NATS_URL"])
    stream = client.jetstream()
    name = os.environ["STRATUM_AGENT"]
    config = nats.js.api.ConsumerConfig(
        durable_name=name, name=name, ack_policy="explicit", ack_wait=600,
        filter_subjects=[f"inbox.{name}.>"],
    )
    await stream.add_consumer("LOG", config)
    inbox = await stream.pull_subscribe_bind(consumer=name, stream="LOG")
    while True:
        try:
            [message] = await inbox.fetch(1, timeout=60)
        except nats.errors.TimeoutError:
            continue
        if message.subject.endswith(".poison"):
            os.kill(os.getpid(), signal.SIGKILL)
        await client.publish(f"topic.{name}.done", b"{}")
        await message.ack_sync()


asyncio.run(main())
"""


async def test_a_poison_event_of_an_agent_without_heartbeats_is_parked_without_waiting_for_it(
    supervise: Any, tmp_path: Path
) -> None:
    (tmp_path / "foreign.py").write_text(FOREIGN)
    command = [sys.executable, "foreign.py"]
    toml = f"[supervisor]\nfirst_delay_seconds = 0.05\n[agents.other]\ncommand = {command!r}\n"
    async with supervise(toml) as house:
        bad = await house.send("poison", to="other")
        await house.send("work", to="other")

        async def done() -> bool:
            return bool(await house.events("topic.other.done"))

        await eventually(done, within_seconds=30)  # its ack_wait is ten minutes
        [letter] = await house.events("dead.other.>")
        ends = await house.events("control.other.ended")
    assert letter["data"]["origin"]["sequence"] == bad
    deaths = [held["deaths"] for end in ends[:3] for held in end["data"]["held"]]
    assert deaths == [1, 2, 3]
