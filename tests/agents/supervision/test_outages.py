"""The supervisor when its surroundings fail: the server, the webhook, its own predecessor."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import anyio
import msgspec

from stratum_agents.supervision.policy import Again, GiveUp, History, after_end
from stratum_bus.control import Ended
from stratum_bus.supervision import SupervisorConfig
from stratum_bus.testing import eventually, fresh, server

WORKER = '[agents.worker]\ncreate = "supervised_agents:create"\n'
FAILING = (
    "[supervisor]\nrestarts = 2\nfirst_delay_seconds = 0.01\nspares = 0\n{more}\n"
    '[agents.worker]\ncommand = ["sh", "-c", "exit 3"]\n'
)


async def test_what_ends_while_the_server_is_away_is_started_when_it_is_back(
    supervise: Any,
) -> None:
    with server() as own:
        await fresh(own.url)
        async with supervise(WORKER, url=own.url) as house:
            (first,) = await house.until_ready()
            await house.send("job", steps=20, seconds=0.02)
            await house.until_steps(3)
            own.kill()
            await eventually(lambda: not house.bus.connection.connected)
            os.kill(first.pid, signal.SIGKILL)
            await eventually(lambda: not house.running())
            assert not [line for line in house.lines if "given up" in line]
            await anyio.to_thread.run_sync(own.restart)
            second = await house.until_replaced(first.pid)
            assert await house.until_steps(20) == [*range(20)]
            events = await eventually(lambda: _until(house, f"started-{second.instance}"))
    ids = [each["id"] for each in events]
    expected = [
        f"started-{first.instance}",
        f"ended-{first.instance}",
        f"cmd-restart-ended-{first.instance}",
        f"started-{second.instance}",
    ]
    assert [id for id in ids if id in expected] == expected


async def _until(house: Any, id: str) -> list[Any]:
    events: list[Any] = await house.events("control.worker.>")
    return events if id in [each["id"] for each in events] else []


async def test_the_decisions_follow_again_from_what_stands_in_the_log(supervise: Any) -> None:
    async with supervise(FAILING.format(more="")) as house:
        await eventually(lambda: house.events("control.worker.quarantine"), within_seconds=15)
        events = await house.events("control.worker.>")
    settings = SupervisorConfig(restarts=2, first_delay_seconds=0.01)
    history, decided = History(), []
    for number, each in enumerate(each for each in events if each["id"].startswith("ended-")):
        ended = msgspec.convert(each["data"], Ended)
        history, decision = after_end(
            settings, history, instance=ended.instance, code=ended.code,
            lived_seconds=ended.seconds, now=float(number),
        )  # fmt: skip
        name = "restart" if isinstance(decision, Again) else "quarantine"
        decided.append(f"cmd-{name}-{each['id']}")
    assert isinstance(decision, GiveUp)
    given = [each["id"] for each in events if each["id"].startswith(("cmd-r", "cmd-q"))]
    assert given == decided


async def test_a_webhook_is_called_with_what_needs_a_person(supervise: Any) -> None:
    with webhook(200) as (url, bodies):
        async with supervise(FAILING.format(more=f'notify_url = "{url}"')) as house:
            (told,) = await eventually(lambda: house.events("inbox.operator.>"), within_seconds=15)
            (body,) = await eventually(lambda: bodies)
    assert json.loads(body)["data"] == told["data"]
    assert json.loads(body)["specversion"] == "1.0"


async def test_a_webhook_that_fails_is_said_in_the_outcome(supervise: Any) -> None:
    with webhook(500) as (url, _):
        async with supervise(FAILING.format(more=f'notify_url = "{url}"')) as house:
            (escalate,) = await eventually(
                lambda: house.events("control.worker.escalate"), within_seconds=15
            )
            outcome = await house.outcome(escalate["id"])
    assert not outcome.done
    assert "it is in the inbox of operator; notify_url: HTTP Error 500" in outcome.detail


@contextmanager
def webhook(status: int) -> Iterator[tuple[str, list[bytes]]]:
    bodies: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(status)
            self.end_headers()

        def log_message(self, format: str, *arguments: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.server_port}/told", bodies
        finally:
            listening.shutdown()
            thread.join()


async def test_suspicions_outlive_the_supervisor_that_had_them(supervise: Any) -> None:
    async with supervise("[supervisor]\nspares = 0\n" + WORKER) as house:
        await house.until_ready()
        sequence = await house.send("job", steps=1, seconds=100)
        (one,) = house.running()
        await eventually(lambda: any(left.begun for left in one.left()))
        os.kill(one.pid, signal.SIGKILL)
        await house.until_replaced(one.pid)
        before = dict(house.supervisor.keepers["worker"].aftermath._suspects)
        assert before[f"LOG-{sequence}"].deaths == 1
        await house.order("stop")  # its end is an event too, and says nothing against the message
    async with supervise("[supervisor]\nspares = 0\n" + WORKER) as house:
        assert dict(house.supervisor.keepers["worker"].aftermath._suspects) == before
