"""Arrow tables that SQL reads under a name, and statements that are planned once for many of them.

To register a table, and to plan a statement, takes DuckDB longer than a batch of a few hundred
events takes it otherwise. So what is registered is a place, through which one table after the other
of the same columns is read, and a plan is kept for as long as that place is there.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pyarrow as pa

from stratum_projections.select import Reader


class _Place:
    """Where a table of certain columns is read, and the plans that read it, by SQL and schema."""

    def __init__(self, view: str, table: pa.Table) -> None:
        self.view = view
        self.table = table
        self.plans: dict[tuple[str, str], Any] = {}

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        stream: object = self.table.__arrow_c_stream__(requested_schema)  # type: ignore[no-untyped-call]
        return stream


class Given:
    """What is registered at a connection."""

    def __init__(self, connection: Reader) -> None:
        self._connection = connection
        self._places: dict[tuple[str, pa.Schema], _Place] = {}
        self._at: dict[str, _Place] = {}
        self._count = 0

    def put(self, name: str, table: pa.Table) -> None:
        """Make a table readable under a name, in place of what had it before."""
        place = self._places.get((name, table.schema))
        if place is None:
            # Under a name that no other place ever has: what a plan points to must not be replaced.
            self._count += 1
            place = self._places[name, table.schema] = _Place(f"{name} {self._count}", table)
            self._connection.register(place.view, place)
        place.table = table
        if (before := self._at.get(name)) is not place:
            self._connection.execute(f'create or replace temp view {name} as from "{place.view}"')
            self._at[name] = place
            if before is not None:
                before.table = before.table.schema.empty_table()

    def plan(self, name: str, sql: str, schema: str) -> Any:
        """A statement that runs `sql`, which reads what is under `name` and no other table.

        A plan of other tables would be made for how large they are just then, and DuckDB once had
        plans that took what was in them just then for what would ever be.
        """
        plans = self._at[name].plans
        if (schema, sql) not in plans:
            self._count += 1
            self._connection.execute(f"prepare planned_{self._count} as {sql}").fetchall()
            [statement] = self._connection.extract_statements(f"execute planned_{self._count}")
            plans[schema, sql] = statement
        return plans[schema, sql]

    def forget(self) -> None:
        """A transaction was rolled back, and what it had registered may be gone."""
        for place in self._places.values():
            place.table = place.table.schema.empty_table()
            with suppress(Exception):  # it may be gone
                self._connection.unregister(place.view)
        self._places, self._at = {}, {}
