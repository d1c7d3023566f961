"""What systemd is told: that all is ready, that the loop runs, that it stops (`Type=notify`)."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from contextlib import suppress

import anyio

PATIENCE_SECONDS = 1.0
"""How long a state may wait for systemd; that the loop runs is said again anyhow."""

READY, STOPPING, WATCHDOG = "READY=1", "STOPPING=1", "WATCHDOG=1"


def tell(state: str, environ: Mapping[str, str] = os.environ) -> bool:
    """Send a state to systemd; False where nobody listens, or does not take it in time."""
    address = environ.get("NOTIFY_SOCKET", "")
    if not address:
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
        out.settimeout(0.0 if state == WATCHDOG else PATIENCE_SECONDS)
        out.sendto(state.encode(), address)
        return True
    return False


async def keep_telling(environ: Mapping[str, str] = os.environ) -> None:
    """Say twice in each WATCHDOG_USEC that the loop runs; without that variable, nothing."""
    every = environ.get("WATCHDOG_USEC", "")
    mine = environ.get("WATCHDOG_PID", "") in ("", str(os.getpid()))
    while every.isdigit() and int(every) and mine:
        tell(WATCHDOG, environ)
        await anyio.sleep(int(every) / 2e6)
