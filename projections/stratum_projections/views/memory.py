"""What the agents believe now: one row a note, with its revisions folded in.

The same fold as `stratum_bus.memory.Notes`, and the same Structs read the data: what does not fit
them is quarantined. A change is known by its event's id, so one that is stored twice counts once.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import msgspec
import pyarrow as pa

from stratum_bus.errors import InvalidEvent
from stratum_bus.event import Event, Raw, encode_value, typed
from stratum_bus.memory import NOTED, RETRACTED, REVISED, Noted, Retracted, Revised
from stratum_projections.projection import Projection, Step

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
_PREPARED = {"note": pa.string(), "given": pa.list_(pa.string()), **_FIELDS, "refused": pa.string()}
_KEPT = ("seq", "id", "type", "agent", "kind", "stored", "time", "runid")


def prepare(batch: pa.Table) -> pa.Table:
    """The data of memory events as columns; `given` names the fields that an event sets."""
    columns = [batch[name].to_pylist() for name in ("id", "type", "dataschema", "data")]
    rows = [_row(*values) for values in zip(*columns, strict=True)]
    read = {
        name: pa.array([row.get(name) for row in rows], kind) for name, kind in _PREPARED.items()
    }
    return pa.table({name: batch[name] for name in _KEPT} | read)


def _row(id: str, type: str, dataschema: str | None, data: str | None) -> dict[str, Any]:
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
    return given | {"note": getattr(body, "note", None) or id, "given": list(given)}


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


_NEW = f"""
    insert into memory by name
    select note, agent, kind, {", ".join(_FIELDS)}, time, time as changed, 0 as revisions,
        false as retracted, seq as first_seq, seq as last_seq, runid as run
    from batch
    where type = '{NOTED}'
        and not exists (from memory m where m.note = batch.note and m.agent = batch.agent)
    qualify row_number() over (partition by agent, note order by seq) = 1
"""
# A change counts where its note is there and was not retracted before it, and once.
_CHANGES = f"""
    insert into memory_changes by name
    select seq, id, agent, note, type
    from (
        select *,
            min(seq) filter (where type = '{RETRACTED}') over (partition by agent, note) as ends
        from (
            select b.seq, b.id, b.agent, b.note, b.type
            from batch b
            join memory m on m.note = b.note and m.agent = b.agent and m.first_seq < b.seq
            where b.type <> '{NOTED}' and not m.retracted and not exists (
                from memory_changes c
                where c.id = b.id and c.note = b.note and c.agent = b.agent)
            qualify row_number() over (partition by b.agent, b.note, b.id order by b.seq) = 1
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
        select agent, note, count(*) as changes, max(seq) as last_seq,
            arg_max(time, seq) as changed, bool_or(type = '{RETRACTED}') as retracted,
            {_last(_FIELDS)}
        from batch semi join memory_changes using (seq)
        group by agent, note
    ) c
    where memory.note = c.note and memory.agent = c.agent
"""

MEMORY = Projection(
    name="memory",
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
        "memory_changes": "seq bigint, id varchar, agent varchar, note varchar, type varchar",
    },
    statements=(
        Step(_NEW, (NOTED,)),
        Step(_CHANGES, (REVISED, RETRACTED)),
        Step(_BELIEVE, (REVISED, RETRACTED)),
    ),
)
