"""Exporters to be killed: `kill.py URL LAKE DELTA` forks one for each line on stdin and says its id.

Forked, because a new interpreter takes half a second to be ready for what it is killed at.
"""

from __future__ import annotations

import os
import sys

import anyio

from stratum_bus import connect
from stratum_projections.lake.compact import compact
from stratum_projections.lake.delta import Delta
from stratum_projections.lake.export import exporter
from stratum_projections.lake.segment import Folder

SEGMENT_EVENTS = 20


async def export(url: str, folder: Folder, delta: Delta, end: int) -> None:
    """Some segments, then what follows them, until all is done."""
    async with connect(url) as bus, exporter(bus, folder, segment_events=SEGMENT_EVENTS) as ours:
        done = folder.listing().last
        while done < end:
            done = min(done + 8 * SEGMENT_EVENTS, end)
            await ours.export(end=done)
            compact(folder, of_latest_day=4, grace_seconds=0)
            delta.follow()


def main() -> None:
    url, lake, delta = sys.argv[1:]
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            folder = Folder(lake)
            anyio.run(export, url, folder, Delta(delta, folder), int(line))
            os._exit(0)
        print(child, flush=True)
        os.waitpid(child, 0)
        print("ended", flush=True)


if __name__ == "__main__":
    main()
