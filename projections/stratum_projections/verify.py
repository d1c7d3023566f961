"""Are the tables what the log says? A proof that nothing was skipped, and a comparison row by row.

The messages of stream and lake are counted against the rows that account for them. Then a copy of
the projector's file, of one moment, is compared with a fresh fold of the log up to that moment. A
projection that stands elsewhere, because it was paused or is being built, is compared where it
stands. What cannot be compared is said.
"""

from __future__ import annotations

import shutil
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread
from msgspec import Struct

from stratum_bus.bus import Bus
from stratum_bus.errors import LakeError, ProjectorError, QueryError
from stratum_projections import snapshot
from stratum_projections.batch import COLUMNS
from stratum_projections.build import fold_to
from stratum_projections.checkpoint import CORE, STREAM
from stratum_projections.compare import Difference, compare
from stratum_projections.lake import hot
from stratum_projections.lake.segment import Folder
from stratum_projections.projection import BESIDE, Projection, quoted
from stratum_projections.reconcile import Reconciled, reconcile
from stratum_projections.scratch import scratch
from stratum_projections.standing import Standing, standing
from stratum_projections.store import Store
from stratum_projections.views import SHIPPED

Progress = Callable[[str, int, int], None]
"""Is told what is done (`building`, `comparing`), how far it is, and how far it goes."""

_LIVE, _FRESH = "live", "fresh"
_ATTEMPTS = 3
_COLD = ", ".join(f"{n}::json as {n}" if kind == "json" else n for n, kind in COLUMNS.items())


class Compared(Struct, frozen=True):
    """A table that was looked at: up to which sequence, and how many rows a fresh fold has."""

    projection: str
    table: str
    sequence: int
    rows: int


class LeftOut(Struct, frozen=True):
    """A projection that was not compared, and why."""

    projection: str
    why: str


class Verdict(Struct):
    """`messages` were accounted for, up to `sequence`. `gaps` are sentences about positions and
    counts, `differences` one a table. What was left out is no fault.
    """

    sequence: int = 0
    messages: int = 0
    tables: list[Compared] = []
    gaps: list[str] = []
    differences: list[Difference] = []
    left_out: list[LeftOut] = []

    @property
    def ok(self) -> bool:
        return not self.gaps and not self.differences


async def verify(
    bus: Bus,
    *,
    path: Path | str,
    projector: str = "main",
    projections: Sequence[Projection] = SHIPPED,
    lake: str = "",
    names: Sequence[str] = (),
    progress: Progress | None = None,
) -> Verdict:
    """Compare the tables with the log: of all projections, or of those in `names`.

    The running projector is asked for a copy and goes on; where none runs, its file at `path` is
    copied. Needs as much disk beside the file again, and twice; all of it is given back. Takes as
    long as a rebuild. Raises QueryError: `unknown` for a name, `no_file`, `failed` where the
    projector runs elsewhere; ProjectorError, LakeError `missing`, NotFound, ConnectionLost.
    """
    chosen = _chosen(projections, names)
    folder = Path(path).parent / "verify"
    async with scratch(folder) as own:
        await _copy(bus, projector, Path(path), own / f"{_LIVE}.duckdb")
        found = await anyio.to_thread.run_sync(standing, own / f"{_LIVE}.duckdb")
        if found.watermark and not lake:
            text = f"old rows of {hot.TABLE} are in a lake only: [lake] path in stratum.toml says where"
            raise LakeError("missing", text)
        directories = [own, *([Path(lake)] if lake else [])]
        opening = partial(Store.open, own / f"{_FRESH}.duckdb", directories=directories)
        store = await anyio.to_thread.run_sync(opening)
        try:
            work = _Verifying(
                bus, store, own / f"{_LIVE}.duckdb", found, lake, progress or (lambda *_: None)
            )
            return await work.run(chosen, _strangers(found, projections) if not names else [])
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(store.close)


def _chosen(projections: Sequence[Projection], names: Sequence[str]) -> list[Projection]:
    known = {projection.name for projection in projections}
    if unknown := [name for name in names if name not in known]:
        there = ", ".join(sorted(known))
        raise QueryError("unknown", f"there is no projection {unknown[0]!r}: there are {there}")
    return [projection for projection in projections if not names or projection.name in names]


def _strangers(found: Standing, projections: Sequence[Projection]) -> list[LeftOut]:
    known = {CORE, *(projection.name for projection in projections)}
    why = "the file has it, and it is not among the projections of this project"
    left_out = []
    for name, version in sorted(found.versions.items()):
        if name.endswith(BESIDE):
            at = found.positions.get(name, 0)
            text = f"version {version} is being built beside it and stands at {at:,}"
            left_out.append(LeftOut(name.removesuffix(BESIDE), text))
        elif name not in known:
            left_out.append(LeftOut(name, why))
    return left_out


async def _copy(bus: Bus, projector: str, path: Path, to: Path) -> None:
    """The projector's file as it is at one moment."""
    try:
        made = await snapshot.ask(bus, projector=projector)
    except QueryError as error:
        if error.reason != "no_projector":
            raise
        await anyio.to_thread.run_sync(_copy_closed, path, to)
        return
    if made.host != socket.gethostname():
        text = f"projector {projector!r} runs on {made.host}: verify it there"
        raise QueryError("failed", text)
    await anyio.to_thread.run_sync(shutil.move, made.path, to)


def _copy_closed(path: Path, to: Path) -> None:
    if not path.exists():
        text = f"there is no projection at {path}: `stratum up` starts the projector"
        raise QueryError("no_file", text)
    store = Store.open(path)
    try:
        store.snapshot(to)
    finally:
        store.close()


class _Verifying:
    """One verification: `store` is the fresh fold, `copy` what is compared with it."""

    def __init__(
        self, bus: Bus, store: Store, copy: Path, found: Standing, lake: str, progress: Progress
    ) -> None:
        self._bus = bus
        self._store = store
        self._copy = copy
        self._found = found
        self._lake = lake
        self._progress = progress
        self._verdict = Verdict()
        self._tables = 0

    async def run(self, chosen: list[Projection], left_out: list[LeftOut]) -> Verdict:
        verdict, found = self._verdict, self._found
        verdict.left_out += left_out
        verdict.sequence = found.positions.get(CORE, 0)
        async with self._attached():
            counted = await self._reconcile()
        if not counted.same:
            return verdict
        folded = [each for each in chosen if self._comparable(each, counted.last)]
        at = {each.name: found.positions[each.name] for each in folded}
        core = min(verdict.sequence, counted.last)
        self._tables = sum(len(each.tables) + 1 for each in folded) + 2
        for end in sorted({core, *at.values()}):
            behind = [each for each in folded if at[each.name] >= end]
            told = partial(self._progress, "building")
            await fold_to(self._bus, self._store, behind, end=end, lake=self._lake, progress=told)
            async with self._attached():
                for projection in behind:
                    if at[projection.name] == end:
                        await self._projection(projection, end)
                if end == core:
                    await self._core(end)
        return verdict

    @asynccontextmanager
    async def _attached(self) -> AsyncIterator[None]:
        """With the copy beside the fold; not while folding, which looks for its own tables."""
        attach = f"attach {quoted(str(self._copy))} as {_LIVE} (read_only)"
        await anyio.to_thread.run_sync(self._store.execute, attach)
        try:
            yield
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(self._store.execute, f"detach {_LIVE}")

    async def _projection(self, projection: Projection, end: int) -> None:
        for table in projection.tables:
            await self._table(projection.name, table, end)
        refused = f"projection = {quoted(projection.name)}"
        await self._quarantine(projection.name, refused, end)

    async def _core(self, end: int) -> None:
        await self._quarantine(CORE, "projection is null", end)
        live, fresh = (f"(from {side}.main.ids where seq <= {end})" for side in (_LIVE, _FRESH))
        await anyio.to_thread.run_sync(self._note, CORE, "ids", end, live, fresh)

    async def _reconcile(self) -> Reconciled:
        events = ""
        if hot.TABLE in self._found.versions and hot.TABLE in self._found.positions:
            events = await anyio.to_thread.run_sync(self._live, hot.TABLE)
        else:
            why = "the file does not have it, and nothing else counts the messages"
            self._verdict.left_out.append(LeftOut(hot.TABLE, why))
        counted = await reconcile(
            self._bus,
            self._store,
            self._found,
            events=events,
            quarantine=f"(select seq from {_LIVE}.main.quarantine "
            f"where projection is null or projection = {quoted(hot.TABLE)})",
            lake=self._lake,
        )
        self._verdict.messages, self._verdict.gaps = counted.messages, counted.gaps
        return counted

    def _comparable(self, projection: Projection, last: int) -> bool:
        """Whether it can be compared; where not, the verdict says why."""
        version = self._found.versions.get(projection.name)
        position = self._found.positions.get(projection.name)
        why = ""
        if version is None or position is None:
            why = "the file does not have it: the projector makes it when it starts"
        elif version != projection.version:
            why = f"the file has version {version}, and {projection.version} is not built yet"
        elif position > last:
            why = f"it stands at {position:,}, which the log does not have"
        if why:
            self._verdict.left_out.append(LeftOut(projection.name, why))
        return not why

    async def _table(self, projection: str, table: str, end: int) -> None:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                await anyio.to_thread.run_sync(self._compare, projection, table, end)
                return
            except ProjectorError:
                # A compaction of the lake may have replaced what was listed.
                if table != hot.TABLE or attempt == _ATTEMPTS:
                    raise

    def _compare(self, projection: str, table: str, end: int) -> None:
        columns = {side: self._columns(side, table) for side in (_LIVE, _FRESH)}
        if columns[_LIVE] != columns[_FRESH]:
            what = "has other columns" if columns[_LIVE] else "is not there"
            text = f"projection {projection}, table {table}: it {what}"
            self._verdict.gaps.append(text)
            return
        self._note(projection, table, end, self._live(table), f'{_FRESH}.main."{table}"')

    def _columns(self, side: str, table: str) -> list[tuple[str, str]]:
        return [
            (str(name), str(kind))
            for name, kind in self._store.execute(
                f"""select column_name, data_type from information_schema.columns
                    where table_catalog = {quoted(side)} and table_schema = 'main'
                        and table_name = {quoted(table)} order by ordinal_position"""
            )
        ]

    async def _quarantine(self, projection: str, condition: str, end: int) -> None:
        live, fresh = (
            f"(from {side}.main.quarantine where {condition} and seq <= {end})"
            for side in (_LIVE, _FRESH)
        )
        await anyio.to_thread.run_sync(self._note, projection, "quarantine", end, live, fresh)

    def _note(self, projection: str, table: str, end: int, live: str, fresh: str) -> None:
        rows, difference = compare(
            self._store, live, fresh, projection=projection, table=table, sequence=end
        )
        verdict = self._verdict
        verdict.tables.append(Compared(projection, table, end, rows))
        if difference:
            verdict.differences.append(difference)
        self._progress("comparing", len(verdict.tables), self._tables)

    def _live(self, table: str) -> str:
        """The table in the copy; `events` with those rows that only the lake still has."""
        name = f'{_LIVE}.main."{table}"'
        mark = self._found.watermark
        if table != hot.TABLE or not mark:
            return name
        segments = hot.below(Folder(self._lake, STREAM).listing(), mark)
        cold = f"union all by name select {_COLD} from {hot.files(segments)}" if segments else ""
        return f"""(select {", ".join(COLUMNS)} from {name} where seq > {mark} {cold}
            where seq <= {mark} and unreadable is null)"""
