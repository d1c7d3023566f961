"""Is every message of the log accounted for? What the tables hold against the stream's own state."""

from __future__ import annotations

from functools import partial
from typing import Any

import anyio.to_thread
import pyarrow as pa
import pyarrow.compute as pc
from msgspec import Struct

from stratum_bus.bus import Bus
from stratum_projections.checkpoint import CORE, STREAM
from stratum_projections.lake.hot import TABLE as EVENTS
from stratum_projections.lake.segment import Folder, Segment, opened
from stratum_projections.standing import Standing
from stratum_projections.store import Store


class Reconciled(Struct):
    """`messages` are those of stream and lake up to where `events` stands; `last` is the stream's
    end. `gaps` are sentences, none where everything is accounted for. `same` is false where the
    tables are of another log, which nothing can be compared with.
    """

    last: int
    messages: int
    gaps: list[str]
    same: bool = True


async def reconcile(
    bus: Bus, store: Store, found: Standing, *, events: str, quarantine: str, lake: str
) -> Reconciled:
    """Compare positions and counts with the stream's state, asked now.

    `events` and `quarantine` are relations of SQL with all rows up to the position of `events`, ""
    where that is not kept. Raises NotFound, ConnectionLost, LakeError.
    """
    info: dict[str, Any] = await bus.connection.api(
        f"STREAM.INFO.{STREAM}", {"deleted_details": True}
    )
    state = info["state"]
    deleted: list[int] = state.get("deleted") or []
    result = Reconciled(state["last_seq"], 0, [])
    if found.created and found.created != info["created"]:
        result.gaps.append(
            f"the tables are of a {STREAM} created at {found.created}, this one was at "
            f"{info['created']}"
        )
        result.same = False
        return result
    for name, position in found.positions.items():
        if position > result.last:
            text = f"{name} stands at {position:,}, and {STREAM} ends at {result.last:,}"
            result.gaps.append(text)
    core = found.positions.get(CORE, 0)
    for name in sorted(found.together):
        if (position := found.positions.get(name, 0)) != core:
            text = f"{name} stands at {position:,}, and those that it moves on with at {core:,}"
            result.gaps.append(text)
    held = state["messages"] + len(deleted) + (state.get("lost") or {}).get("msgs_count", 0)
    if state["messages"] and held != state["last_seq"] - state["first_seq"] + 1:
        result.gaps.append(
            f"{STREAM} itself does not hold what it says: {state['messages']:,} messages"
        )
    if events:
        first, end = max(1, state["first_seq"]), min(found.positions[EVENTS], result.last)
        cold = await anyio.to_thread.run_sync(_in_lake, lake, min(first - 1, end))
        counted = partial(_count, store, events, quarantine, deleted, (first, end), cold)
        result.messages, gaps = await anyio.to_thread.run_sync(counted)
        result.gaps += gaps
    return result


def _in_lake(lake: str, last: int) -> tuple[int, int]:
    """The first sequence that the lake has, and how many messages from there to `last`."""
    segments = (
        [s for s in Folder(lake, STREAM).listing().segments if s.first <= last] if lake else []
    )
    if not segments:
        return last + 1, 0
    return segments[0].first, sum(_rows(segment, last) for segment in segments)


def _rows(segment: Segment, last: int) -> int:
    with opened(segment.path) as file:
        if segment.last <= last:
            return file.metadata.num_rows
        return file.read(columns=["seq"]).filter(pc.field("seq") <= last).num_rows


def _count(
    store: Store,
    events: str,
    quarantine: str,
    deleted: list[int],
    held: tuple[int, int],
    cold: tuple[int, int],
) -> tuple[int, list[str]]:
    """How many messages there are, and what is wrong with the rows that should account for them.

    The stream has those from `held[0]`, the lake `cold[1]` before it, from `cold[0]` on.
    """
    first, end = held
    messages = max(0, end - first + 1) - sum(first <= n <= end for n in deleted) + cold[1]
    store.register("gone", pa.table({"seq": pa.array(deleted, pa.int64())}))
    rows = f"""(select seq from {events} where seq between {cold[0]} and {end} union all
        select distinct seq from {quarantine} where seq between {cold[0]} and {end})"""
    [(count, distinct)] = store.execute(f"select count(*), count(distinct seq) from {rows}")
    gaps = []
    if count != distinct:
        [(twice,)] = store.execute(
            f"select min(seq) from (select seq from {rows} group by seq having count(*) > 1)"
        )
        gaps.append(f"{count - distinct:,} messages are there twice, {STREAM} {twice} first")
    if distinct != messages:
        # Where the lake has holes of its own, only the stream's part has no others.
        low = cold[0] if cold[1] == first - cold[0] else first
        [(missing,)] = store.execute(
            f"""select coalesce(min(n) filter (where seq <> n), max(n) + 1, {low}) from (
                select seq, row_number() over (order by seq) + {low - 1} as n from (
                    select seq from {rows} union select seq from gone) where seq >= {low})"""
        )
        where = f": {STREAM} {missing} is the first that is not" if distinct < messages else ""
        gaps.append(
            f"of {messages:,} messages up to {STREAM} {end:,}, events and quarantine account for "
            f"{distinct:,}{where}"
        )
    return messages, gaps
