"""A clock that somebody else may set, for every Python process that finds this on its path.

A process looks at its own number in the file CHAOS_CLOCKS and adds it, in seconds, to whatever the
system says that the time is: in `time.time`, `time.time_ns` and `datetime.now`. Monotonic clocks go on
as they are, as when somebody sets the clock of a machine.
"""

from __future__ import annotations

import ctypes
import datetime
import gc
import mmap
import os
import struct
import time

OFFSET = struct.Struct("d")
"""Of the process `pid`, in the file at `pid * OFFSET.size`."""


def follow(path: str) -> None:
    """From now on this process goes by the file."""
    place = os.getpid() * OFFSET.size
    page = place // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
    with open(path, "r+b") as file:
        memory = mmap.mmap(file.fileno(), mmap.ALLOCATIONGRANULARITY, offset=page)
    place -= page
    OFFSET.pack_into(memory, place, 0.0)  # it may have been that of another process
    system_time, system_time_ns = time.time, time.time_ns

    def offset() -> float:
        seconds: float = OFFSET.unpack_from(memory, place)[0]
        return seconds

    def now(cls: type[datetime.datetime], tz: datetime.tzinfo | None = None) -> datetime.datetime:
        return cls.fromtimestamp(system_time() + offset(), tz)

    time.time = lambda: system_time() + offset()
    time.time_ns = lambda: system_time_ns() + int(offset() * 1e9)
    # A built-in type takes no new methods, but the dictionary behind it does.
    [methods, *_] = gc.get_referents(datetime.datetime.__dict__)
    methods["now"] = classmethod(now)
    ctypes.pythonapi.PyType_Modified(ctypes.py_object(datetime.datetime))


if clocks := os.environ.get("CHAOS_CLOCKS"):
    follow(clocks)
