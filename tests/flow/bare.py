"""Connections by the client of docs/protocol.md, which shares no code with us."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PARTICIPANTS = Path(__file__).parent / "participants"


def raw_client(url: str, user: str = "", password: str = "") -> Any:
    """A connection by the client of the page."""
    spec = importlib.util.spec_from_file_location("raw", PARTICIPANTS / "raw.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    host, _, port = url.removeprefix("nats://").partition(":")
    if not user:
        return module.Nats(host, int(port))
    return module.Nats(host, int(port), f"_INBOX_{user}", user=user, **{"pass": password})


@contextmanager
def bare(url: str, user: str = "", password: str = "") -> Iterator[Any]:
    client = raw_client(url, user, password)
    try:
        yield client
    finally:
        client.incoming.close()
        client.socket.close()
