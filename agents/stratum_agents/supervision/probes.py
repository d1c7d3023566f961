"""Liveness, readiness and metrics over HTTP, in a thread of its own.

`/healthz` is 200 as long as the supervisor's loop runs, `/readyz` while all that is to run does and
answers, `/metrics` is for Prometheus.
"""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import anyio
import anyio.to_thread
import msgspec
from msgspec import Struct

from stratum_agents.supervision.metrics import Metrics
from stratum_bus.errors import StratumError
from stratum_bus.tasks import task_group

TICK_SECONDS = 0.5
LIVE_SECONDS = 10.0
"""A loop that has not run for so long is not alive."""

_TEXT, _JSON = "text/plain; version=0.0.4; charset=utf-8", "application/json"


class Part(Struct, frozen=True):
    """One program: how many processes are wanted and run, and whether they answer."""

    wanted: int
    running: int
    ready: bool
    quarantined: bool


class Status(Struct, frozen=True):
    """What /readyz answers; `connected`: to the NATS server."""

    ready: bool
    connected: bool
    parts: dict[str, Part]


@asynccontextmanager
async def probes(
    host: str, port: int, status: Callable[[], Status], metrics: Metrics
) -> AsyncIterator[int]:
    """Serve as long as the context; yields the port (0 asks for a free one).

    Raises StratumError where the port cannot be had.
    """
    try:
        server = _Server((host, port), _Handler)
    except OSError as error:
        text = f"{host}:{port} cannot be served ({error.strerror}): set supervisor.http_port to another"
        raise StratumError(text) from error
    server.pulse, server.status, server.metrics = time.monotonic(), status(), metrics
    thread = threading.Thread(target=server.serve_forever, args=(0.1,), name="probes", daemon=True)
    thread.start()
    try:
        async with task_group() as tasks:
            tasks.start_soon(_beat, server, status)
            yield server.server_address[1]
            tasks.cancel_scope.cancel()
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(server.shutdown)
        server.server_close()


async def _beat(server: _Server, status: Callable[[], Status]) -> None:
    """What the thread answers is made here, in the loop that it is about."""
    while True:
        server.pulse, server.status = time.monotonic(), status()
        await anyio.sleep(TICK_SECONDS)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    pulse: float
    status: Status
    metrics: Metrics


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = 5.0

    def do_GET(self) -> None:
        match self.path.partition("?")[0]:
            case "/healthz":
                silent = time.monotonic() - self.server.pulse
                alive = silent < LIVE_SECONDS
                said = b"ok\n" if alive else f"the loop has not run for {silent:.0f} s\n".encode()
                self._answer(alive, _TEXT, said)
            case "/readyz":
                status = self.server.status
                self._answer(status.ready, _JSON, msgspec.json.encode(status) + b"\n")
            case "/metrics":
                self._answer(True, _TEXT, self.server.metrics.page())
            case _:
                self.send_error(404, "there are /healthz, /readyz and /metrics")

    def _answer(self, well: bool, kind: str, body: bytes) -> None:
        self.send_response(200 if well else 503)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Probes come every few seconds: nobody wants to read of them."""
