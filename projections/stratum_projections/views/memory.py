"""What the agents believe now: one row a note, with its revisions folded in.

`memory`, one row a note, also one that was retracted:
  note, agent      its id (the event's, or one that the agent gave it: then the first note of that
                   id counts) and whose memory it is in
  kind, text, data, tags, about, score, valid_from, valid_to
                   as they are now; NULL where the agent does not say
  time, changed    when it was noted, and last changed, by the agent's clock
  revisions        changes so far, the retraction too
  retracted        whether the agent has taken it back; nothing changes it any more then
  first_seq, last_seq
                   the events that made it and changed it last
  run              the run that noted it; NULL where no run did

`memory_changes`, one row a change that counted: its event (`seq`, `id`, `type`), the note, and the
note's `first_seq`. `memory_keys` and `memory_named` find notes by their ids; a key is a digest of
agent and note, so that little is looked through.

The same fold as `stratum_bus.memory.Notes`, and the same Structs read the data: what does not fit
them is quarantined.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import msgspec
import pyarrow as pa

from stratum_bus.errors import InvalidEvent
from stratum_bus.event import Event, Raw, encode_value, typed
from stratum_bus.memory import NOTED, RETRACTED, REVISED, Noted, Retracted, Revised
from stratum_projections.projection import Projection, Step
from stratum_projections.views.columns import lists

_STRUCTS: dict[str, type[msgspec.Struct]] = {NOTED: Noted, REVISED: Revised, RETRACTED: Retracted}
_FIELDS = {
    "text": pa.string(),
    "data": pa.string(),
    "tags": pa.list_(pa.string()),
    "about": pa.string(),
    "score": pa.float64(),
    "valid_from": pa.timestamp("us", "UTC"),
    "valid_to": pa.timestamp("us", "UTC"),
}
_PREPARED = {
    "note": pa.string(),
    "key": pa.int64(),
    "named": pa.bool_(),
    "given": pa.list_(pa.string()),
    **_FIELDS,
    "refused": pa.string(),
}
_KEPT = ("seq", "id", "type", "agent", "kind", "stored", "time", "runid")


def prepare(batch: pa.Table) -> pa.Table:
    """The data of memory events as columns; `given` names the fields that an event sets."""
    columns = lists(batch, ("agent", "id", "type", "dataschema", "data"))
    rows = [_row(*values) for values in zip(*columns, strict=True)]
    read = {
        name: pa.array([row.get(name) for row in rows], kind) for name, kind in _PREPARED.items()
    }
    return pa.table({name: batch[name] for name in _KEPT} | read)


def _row(
    agent: str, id: str, type: str, dataschema: str | None, data: str | None
) -> dict[str, Any]:
    raw = Raw(data) if data is not None else None
    event: Event[Any] = Event(id=id, source="-", type=type, dataschema=dataschema, data=raw)
    try:
        body = typed(event, _STRUCTS[type]).data
    except InvalidEvent as error:
        return {"refused": error.detail}
    given = {
        field: value
        for field in _FIELDS
        if (value := getattr(body, field, msgspec.UNSET)) is not msgspec.UNSET
    }
    if given.get("data") is not None:
        given["data"] = encode_value(given["data"]).decode()
    for field in ("valid_from", "valid_to"):
        given |= _in_utc(field, given.get(field))
    named = getattr(body, "note", None)
    note = named or id
    more = {"note": note, "key": _key(agent, note), "named": bool(named), "given": list(given)}
    return given | more


def _key(agent: str, note: str) -> int:
    digest = hashlib.blake2b(f"{agent}/{note}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, signed=True)


def _in_utc(field: str, time: datetime | None) -> dict[str, datetime]:
    if time is None:
        return {}
    return {field: time.replace(tzinfo=UTC) if time.tzinfo is None else time}


def _last(fields: Iterable[str]) -> str:
    return ", ".join(
        f"last({f} order by seq) filter (where list_contains(given, '{f}')) as {f}, "
        f"bool_or(list_contains(given, '{f}')) as {f}_given"
        for f in fields
    )


# An id that an event got by itself can only be taken by one that was given.
_NEW = f"""
    insert into memory by name
    with fresh as (
        select * from batch where type = '{NOTED}'
        qualify row_number() over (partition by agent, note order by seq) = 1
    ), places as (
        select k.seq from fresh f join memory_keys k on k.key = f.key where f.named
        union all
        select k.seq from fresh f join memory_named k on k.key = f.key where not f.named
    ), known as (
        select m.agent, m.note from places p join memory m on m.first_seq = p.seq
    )
    select note, agent, kind, {", ".join(_FIELDS)}, time, time as changed, 0 as revisions,
        false as retracted, seq as first_seq, seq as last_seq, runid as run
    from fresh anti join known using (agent, note)
"""
_MADE = f"""(
    select b.key, b.seq, b.named
    from batch b join memory m on m.first_seq = b.seq where b.type = '{NOTED}'
)"""
# A change counts where its note is there and was not retracted before it.
_CHANGES = f"""
    insert into memory_changes by name
    select seq, id, agent, note, type, first_seq
    from (
        select *,
            min(seq) filter (where type = '{RETRACTED}') over (partition by first_seq) as ends
        from (
            select b.seq, b.id, b.agent, b.note, b.type, m.first_seq
            from batch b
            join memory_keys k on k.key = b.key
            join memory m on m.first_seq = k.seq
            where b.type <> '{NOTED}' and m.note = b.note and m.agent = b.agent
                and m.first_seq < b.seq and not m.retracted
        )
    )
    where ends is null or seq <= ends
"""
_SET = ", ".join(f"{f} = case when c.{f}_given then c.{f} else memory.{f} end" for f in _FIELDS)
_BELIEVE = f"""
    update memory
    set {_SET}, changed = c.changed, last_seq = c.last_seq, retracted = c.retracted,
        revisions = memory.revisions + c.changes
    from (
        select first_seq, count(*) as changes, max(seq) as last_seq,
            arg_max(time, seq) as changed, bool_or(type = '{RETRACTED}') as retracted,
            {_last(_FIELDS)}
        from (select b.*, m.first_seq from batch b join memory_changes m on m.seq = b.seq)
        group by first_seq
    ) c
    where memory.first_seq = c.first_seq
"""

MEMORY = Projection(
    name="memory",
    version=2,
    roles=("memory",),
    types=tuple(_STRUCTS),
    prepare=prepare,
    tables={
        "memory": """
            note varchar, agent varchar, kind varchar, text varchar, data json, tags varchar[],
            about varchar, score double, valid_from timestamptz, valid_to timestamptz,
            time timestamptz, changed timestamptz, revisions bigint, retracted boolean,
            first_seq bigint, last_seq bigint, run varchar
        """,
        "memory_changes": """
            seq bigint, id varchar, agent varchar, note varchar, type varchar, first_seq bigint
        """,
        "memory_keys": "key bigint, seq bigint",
        "memory_named": "key bigint, seq bigint",
    },
    statements=(
        Step(_NEW, (NOTED,)),
        Step(f"insert into memory_keys select key, seq from {_MADE}", (NOTED,)),
        Step(f"insert into memory_named select key, seq from {_MADE} where named", (NOTED,)),
        Step(_CHANGES, (REVISED, RETRACTED)),
        Step(_BELIEVE, (REVISED, RETRACTED)),
    ),
)
