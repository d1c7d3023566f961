"""Every readable event of the log, one row a sequence: one that is stored twice has two rows.

`events` has the columns of `batch`; see `stratum_projections.batch` for their meaning. What cannot
be read is in `quarantine`.
"""

from stratum_projections.batch import COLUMNS
from stratum_projections.projection import Projection

EVENTS = Projection(
    name="events",
    blobs=(),
    repeats=True,
    tables={"events": ", ".join(f"{name} {kind}" for name, kind in COLUMNS.items())},
    statements=(f"insert into events by name select {', '.join(COLUMNS)} from batch",),
)
