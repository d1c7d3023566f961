"""What an instance has in hand, kept where it outlives the instance.

The list stands in memory that is shared with whoever started the process, so that after a kill -9
its parent knows to the message what was delivered and not settled, and whose handler had begun.
Keeping it costs a few writes to memory for each message.
"""

from __future__ import annotations

import mmap
import os
import struct
import tempfile
import time
from typing import Protocol

import msgspec

from stratum_bus.heartbeat import InHand
from stratum_bus.message import utc

SLOTS = 1024
"""Messages that the shared list can hold; what is more is known to the instance alone."""

_SLOT = struct.Struct("<QIHBx")  # sequence (0: the slot is free), attempt, stream, begun
_BEGUN = 14
_FREE = bytes(8)
_SIZE = 16
_STREAMS = ("", "LOG", "TIMERS")
_CODES = {name: code for code, name in enumerate(_STREAMS)}


class Left(msgspec.Struct, frozen=True):
    """A message that was in hand when its process ended."""

    stream: str
    sequence: int
    begun: bool
    attempt: int


class Work(Protocol):
    """What a handler does about a message."""

    @property
    def run(self) -> str:
        """The run that it works on."""

    @property
    def step(self) -> str:
        """The position in the run's journal that it has come to."""

    @property
    def appended(self) -> int:
        """How many entries it has added to that journal."""


class _Holding(msgspec.Struct):
    offset: int
    count: int
    subject: str
    attempt: int
    since_ns: int
    event: str = ""
    work: Work | None = None


Key = tuple[str, int]


class Hand:
    """The list of one instance. `descriptor` is that of the shared memory, None: share nothing.

    `pending` is what the server said last about how many messages wait in LOG.
    """

    def __init__(self, descriptor: int | None = None) -> None:
        self._held: dict[Key, _Holding] = {}
        self._free = list(range(0, SLOTS * _SIZE, _SIZE))
        self._memory = mmap.mmap(-1 if descriptor is None else descriptor, SLOTS * _SIZE)
        self._done = 0
        self.pending: int | None = None

    def take(self, stream: str, sequence: int, subject: str, attempt: int, pending: int) -> None:
        """A message was delivered."""
        if stream == "LOG":
            self.pending = pending
        if held := self._held.get((stream, sequence)):
            held.count += 1  # the server took it for lost
            return
        code = _CODES.get(stream, 0)
        offset = self._free.pop() if self._free and code else -1
        self._held[stream, sequence] = _Holding(offset, 1, subject, attempt, time.time_ns())
        if offset >= 0:
            _SLOT.pack_into(self._memory, offset, sequence, attempt, code, 0)

    def begin(self, stream: str, sequence: int, event: str) -> None:
        """Its handler is called now."""
        if held := self._held.get((stream, sequence)):
            held.event = event
            if held.offset >= 0:
                self._memory[held.offset + _BEGUN] = 1

    def works_on(self, stream: str, sequence: int, work: Work) -> None:
        """Its handler works on a run."""
        if held := self._held.get((stream, sequence)):
            held.work = work

    def drop(self, stream: str, sequence: int, *, settled: bool) -> None:
        """It was given back, left to another, or `settled`."""
        self._done += settled
        held = self._held.get((stream, sequence))
        if held is None:
            return
        held.count -= 1
        if held.count:
            return
        del self._held[stream, sequence]
        if held.work is not None:
            self._done += held.work.appended
        if held.offset >= 0:
            self._memory[held.offset : held.offset + len(_FREE)] = _FREE
            self._free.append(held.offset)

    @property
    def progress(self) -> int:
        """How many messages were settled and entries appended. Safe to ask in another thread."""
        works = [held.work for held in list(self._held.values()) if held.work is not None]
        return self._done + sum(work.appended for work in works)

    def in_hand(self) -> list[InHand]:
        """For the heartbeat. Safe to ask in another thread."""
        return [_shown(*key, held) for key, held in list(self._held.items())]


def _shown(stream: str, sequence: int, held: _Holding) -> InHand:
    work = held.work
    return InHand(
        stream=stream, sequence=sequence, subject=held.subject, event=held.event,
        run=work.run if work else "", step=work.step if work else "",
        attempt=held.attempt, since=utc(held.since_ns),
    )  # fmt: skip


class SharedHand:
    """The parent's side: memory for the hand of one child, which gets `descriptor`."""

    def __init__(self) -> None:
        with tempfile.TemporaryFile(prefix="stratum-hand-") as file:
            file.truncate(SLOTS * _SIZE)
            self._memory = mmap.mmap(file.fileno(), SLOTS * _SIZE)
            self.descriptor = os.dup(file.fileno())

    def handed_over(self) -> None:
        """The child has its descriptor."""
        os.close(self.descriptor)
        self.descriptor = -1

    def left(self) -> list[Left]:
        """What the child has in hand, or had when it ended, in the order of the log."""
        found = []
        for offset in range(0, SLOTS * _SIZE, _SIZE):
            sequence, attempt, stream, begun = _SLOT.unpack_from(self._memory, offset)
            if sequence:
                found.append(Left(_STREAMS[stream], sequence, bool(begun), attempt))
        return sorted(found, key=lambda each: (each.stream, each.sequence))

    def close(self) -> None:
        self._memory.close()
        if self.descriptor >= 0:
            self.handed_over()
