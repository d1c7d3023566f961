"""Which sequence an id has: what makes an event count once, and finds the event that caused it.

The table `ids` holds each id's first sequence in the log, by a hash of the id: a scan of it must be
cheap, for there is one for each batch. MD5 is wide enough that no two ids meet by chance, and does
not change with DuckDB's version; who wants two events to count as one can give them one id anyway.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from stratum_projections.batch import Column, one_piece
from stratum_projections.store import Store

TABLE = "create table ids(key uhugeint, seq bigint)"

# All that can be seen in the batch itself is left to Arrow: for a small batch, what takes DuckDB long
# is each operator of a plan.
_KNOWN = """
    select w.id, i.seq from wanted w join main.ids i on i.key = md5_number(w.id)
"""
_KEEP = "insert into main.ids select md5_number(id), seq from kept"


def look(store: Store, rows: pa.Table) -> pa.Table:
    """The rows, in order of `seq`, with `first` (no event before it has its id) and `cause`."""
    seq, id, causation = (one_piece(rows[name]) for name in ("seq", "id", "causationid"))
    here = id.dictionary_encode()
    store.register(
        "wanted", pa.table({"id": pa.concat_arrays([here.dictionary, causation]).unique()})
    )
    known = store.repeat(_KNOWN)
    known_id = pa.array([id for id, _ in known], pa.string())
    known_seq = pa.array([seq for _, seq in known], pa.int64())

    def stored(ids: Column) -> Column:
        return known_seq.take(pc.index_in(ids, value_set=known_id))

    # An id's number is new, and higher than those before it, where it stands for the first time.
    numbers = pc.pairwise_diff(pc.cumulative_max(here.indices))
    begins = seq.filter(pc.fill_null(pc.greater(numbers, pa.scalar(0)), pa.scalar(value=True)))
    firsts = pc.min_element_wise(stored(here.dictionary), begins)
    cause = pc.coalesce(
        firsts.take(pc.index_in(causation, value_set=here.dictionary)), stored(causation)
    )
    before = pc.if_else(pc.less(cause, seq), cause, pa.scalar(None, pa.int64()))
    first = pc.equal(firsts.take(here.indices), seq)
    return rows.append_column("first", first).append_column("cause", before)


def keep(store: Store, rows: pa.Table) -> None:
    """Keep the ids of rows that were looked at."""
    store.register("kept", rows.filter(rows["first"]).select(["seq", "id"]))
    store.repeat_planned(_KEEP, reads="kept")
