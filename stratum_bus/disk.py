"""A server whose disk was full: its streams do not go on by themselves when there is room again.

nats-server keeps the first failed write of a stream in mind and repeats the error for ever; only a
new start of the server mends it. Nothing that was acknowledged is lost by that.
"""

from __future__ import annotations

import re
import shutil

import anyio

from stratum_bus.server import Server

ROOM_BYTES = 8 << 20
"""So much has to be free before a start makes sense."""

POLL_SECONDS = 0.5

_FAILED = re.compile(rb"failed to store a msg on stream '[^'>]*> (\w+)'.*no space left on device")


class _Log:
    """The server's log from now on."""

    def __init__(self, server: Server) -> None:
        self._path = server.data_dir / "server.log"
        self._read_to = self._size()

    def failed(self) -> set[str]:
        """The streams that failed to store since the last call."""
        if self._size() < self._read_to:
            self._read_to = 0  # it was rotated
        try:
            with self._path.open("rb") as file:
                file.seek(self._read_to)
                content = file.read()
        except OSError:
            return set()
        self._read_to += len(content)
        return {match.decode() for match in _FAILED.findall(content)}

    def _size(self) -> int:
        try:
            return self._path.stat().st_size
        except OSError:
            return 0


async def until_wedged(server: Server) -> list[str]:
    """Return the streams that fail to store though the disk has room again, once there are any."""
    log = _Log(server)
    had_room = True
    while True:
        await anyio.sleep(POLL_SECONDS)
        failed = log.failed()
        if failed and had_room and _has_room(server):
            return sorted(failed)
        had_room = _has_room(server)


def _has_room(server: Server) -> bool:
    try:
        return shutil.disk_usage(server.data_dir).free >= ROOM_BYTES
    except OSError:
        return False
