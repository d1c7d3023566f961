"""The gateway's process: the bus, the ids that are known, and the HTTP server."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Callable, Iterator

import anyio
import uvicorn

from stratum_bus import service
from stratum_bus.bus import Bus, connect
from stratum_bus.errors import PermissionDenied, StratumError
from stratum_bus.gateway import GatewayConfig
from stratum_bus.tasks import task_group
from stratum_cli.gateway.app import Gateway
from stratum_cli.gateway.connection import Connection

log = logging.getLogger("stratum.gateway")

GRACE_SECONDS = 5
"""How long posts that are being stored may take when it stops."""

Say = Callable[[str], None]


async def serve(config: GatewayConfig, url: str, say: Say) -> None:
    """Until SIGTERM or SIGINT; then finish what was begun. `say` gets a line for each fact.

    Raises ConnectionLost without a NATS server, StratumError where the port cannot be had.
    """
    logging.getLogger("uvicorn").setLevel(logging.CRITICAL)
    listener = _listen(config.host, config.port)
    with contextlib.closing(listener):
        host, port = listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host

        async def main(stop: anyio.Event) -> None:
            bus_of = connect(url, name="gateway", patience_seconds=config.patience_seconds)
            async with bus_of as bus, task_group() as tasks:
                gateway = Gateway(bus, config, stop)
                server = _server(gateway)
                bus.connection.on_change(lambda denied: _tell(bus, denied))
                tasks.start_soon(gateway.seen.follow, bus)
                tasks.start_soon(_stop_with, server, stop)
                service.log_to_stderr("gateway")
                say(f"gateway: listening at http://{shown}:{port}")
                await server.serve(sockets=[listener])
                tasks.cancel_scope.cancel()

        await service.run(main)


def _tell(bus: Bus, denied: PermissionDenied | None) -> None:
    if denied is not None:
        log.error("%s", denied)
    elif bus.connection.connected:
        log.info("the connection to the server is back")
    else:
        log.warning("the connection to the server broke: posts are answered with 503")


class _Server(uvicorn.Server):
    """Signals are ours."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _server(gateway: Gateway) -> _Server:
    return _Server(
        uvicorn.Config(
            gateway.app(),
            http=Connection,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
    )


async def _stop_with(server: uvicorn.Server, stop: anyio.Event) -> None:
    await stop.wait()
    server.should_exit = True


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        text = f"{host}:{port} cannot be served ({reason}): set gateway.port to another"
        raise StratumError(text) from error
