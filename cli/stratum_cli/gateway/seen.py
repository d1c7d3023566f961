"""Which ids there are already: beyond the server's dedupe window, what was posted lately is known.

Made from the log alone, so it is the same after a kill and with any number of gateways. It is kept
by the hash of the id, and believed only when the log itself says so.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import anyio
import pyarrow as pa
import pyarrow.compute as pc

from stratum_bus.bulk import read_columns
from stratum_bus.bus import Bus
from stratum_bus.errors import NotFound
from stratum_bus.message import Message

_BATCH = 5_000
_EVERY_SECONDS = 0.25
"""Looking at many at once is cheaper; what was posted here is known without."""

_ID = rb"(?i)\r\nNats-Msg-Id: *(?P<id>[^\r]*)"


class Seen:
    """The sequences of the last `remember` events of LOG and more, by ids.

    Those of `senders` only, which nobody else should send as.
    """

    def __init__(self, senders: Collection[str], remember: int) -> None:
        self._senders = frozenset(senders)
        self._remember = remember
        self._recent: dict[int, int] = {}
        self._older: dict[int, int] = {}
        self.ready = False
        self.sequence = 0
        """Up to where the log is known."""

    def add(self, id: str, sequence: int) -> None:
        if not self._remember:
            return
        if len(self._recent) >= self._remember:
            self._recent, self._older = {}, self._recent
        self._recent[hash(id)] = sequence

    def place(self, id: str) -> int:
        """The sequence at which an event of this id may stand, 0 for none."""
        key = hash(id)
        return self._recent.get(key) or self._older.get(key) or 0

    async def follow(self, bus: Bus) -> None:
        """Read what there is, and then what comes; `ready` when all that was there is known.

        Raises NotFound where the stream is gone, PermissionDenied, ConnectionLost.
        """
        info = await bus.connection.api("STREAM.INFO.LOG")
        last = info["state"]["last_seq"]
        self.ready = last == 0 or not self._remember
        if not self._remember:
            return
        start = max(1, last - self._remember + 1)
        async with read_columns(bus, start=start, follow=True, window=_BATCH) as reading:
            while not reading.ended:
                table = await reading.batch(_BATCH, None if self.ready else 1.0)
                at = self._take(table)
                # what was deleted at its end never comes
                self.ready = self.ready or at >= last or not reading.pending
                if self.ready:
                    await anyio.sleep(_EVERY_SECONDS)

    def _take(self, table: pa.Table) -> int:
        if not table.num_rows:
            return 0
        sequences: Any = table["seq"]
        last: int = sequences[-1].as_py()
        self.sequence = last
        subjects: Any = table["subject"].combine_chunks()
        if isinstance(subjects, pa.ChunkedArray):
            subjects = subjects.chunk(0)
        wanted = pa.array([self._is_ours(each) for each in subjects.dictionary.to_pylist()])
        table = table.filter(wanted.take(subjects.indices))
        if not table.num_rows:
            return last
        found: Any = pc.extract_regex(table["headers"], _ID.decode())
        stored: list[Any] = table["seq"].to_pylist()
        for row, sequence in zip(found.to_pylist(), stored, strict=True):
            if row and (id := row["id"]):
                self.add(id.decode(errors="replace"), sequence)
        return last

    def _is_ours(self, subject: str) -> bool:
        words = subject.split(".", 3)
        if words[0] == "inbox":
            return len(words) > 2 and words[2] in self._senders
        return words[0] == "topic" and len(words) > 1 and words[1] in self._senders


async def same(bus: Bus, sequence: int, id: str) -> Message | None:
    """The message of that sequence where it has that id, else None."""
    try:
        message = await bus.get("LOG", sequence)
    except NotFound:
        return None
    return message if message.id == id else None
