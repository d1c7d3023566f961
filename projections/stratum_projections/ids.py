"""Which sequence an id has: what makes an event count once, and finds the event that caused it.

The table `ids` holds each id's first sequence in the log, by a hash of the id: a scan of it must be
cheap, for there is one for each batch. MD5 is wide enough that no two ids meet by chance, and does
not change with DuckDB's version; who wants two events to count as one can give them one id anyway.
"""

from __future__ import annotations

import pyarrow as pa

from stratum_projections.store import Store

TABLE = "create table ids(key uhugeint, seq bigint)"

_LOOK = (
    """
    create or replace temp table keyed as
    select seq, md5_number(id) as key, md5_number(causationid) as cause from decoded
    """,
    """
    create or replace temp table seen as
    select key, seq from main.ids
    where key in (select key from keyed union all select cause from keyed where cause is not null)
    """,
    """
    create or replace temp table firsts as
    select key, min(seq) as seq from (from seen union all by name select key, seq from keyed)
    group by key
    """,
)
_FOUND = """
    select f.seq = k.seq as first, case when c.seq < k.seq then c.seq end as cause
    from keyed k join firsts f on f.key = k.key left join firsts c on c.key = k.cause
    order by k.seq
"""


def look(store: Store, rows: pa.Table) -> pa.Table:
    """The rows, in order of `seq`, with `first` (no event before it has its id) and `cause`."""
    store.register("decoded", rows.select(["seq", "id", "causationid"]))
    for statement in _LOOK:
        store.execute(statement)
    found = store.arrow(_FOUND)
    for name in ("first", "cause"):
        rows = rows.append_column(name, found[name])
    return rows


def keep(store: Store, first: int, last: int) -> None:
    """Keep the ids of the rows just looked at, from sequence `first` to `last`."""
    store.execute(
        f"""insert into main.ids select key, seq from firsts
            where seq between {first} and {last} and key not in (select key from seen)"""
    )
