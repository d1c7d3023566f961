"""Where the rows of `stratum sql` come from. Imports Arrow: only for commands that need it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import anyio.to_thread
import pyarrow as pa
from msgspec import Struct

from stratum_bus.config import duration_ns
from stratum_bus.errors import ConnectionLost, QueryError, StratumError
from stratum_cli.context import Cli
from stratum_cli.failure import NoServer, Usage
from stratum_projections import found, moment
from stratum_projections.asof import as_of
from stratum_projections.query import Answer, of_stopped, stream


class Question(Struct, frozen=True):
    """A query, and how it is to be answered."""

    sql: str
    projector: str
    wait_for: int | None
    timeout_seconds: float
    max_rows: int


class Found(Struct, frozen=True):
    """Rows as they come, once; the sequence that they reflect and who has said so."""

    schema: pa.Schema
    batches: AsyncIterator[pa.RecordBatch]
    sequence: int
    who: str


@asynccontextmanager
async def now(cli: Cli, asked: Question) -> AsyncIterator[Found]:
    """The projector's rows, else those of its file where none runs.

    Raises QueryError, PermissionDenied, and NoServer or ConnectionLost where there is no file.
    """
    limits: dict[str, Any] = {
        "wait_for": asked.wait_for,
        "timeout_seconds": asked.timeout_seconds,
        "max_rows": asked.max_rows,
    }
    async with AsyncExitStack() as stack:
        try:
            bus = await stack.enter_async_context(cli.bus())
            rows = await stack.enter_async_context(
                stream(bus, asked.sql, projector=asked.projector, **limits)
            )
        except (NoServer, ConnectionLost) as error:
            silent: StratumError = error
        except QueryError as error:
            if error.reason != "no_projector":
                raise
            silent = error
        else:
            who = f"projector {asked.projector}"
            yield Found(rows.schema, aiter(rows), rows.sequence, who)
            return
    path = Path(cli.config.projector.path)
    lake = cli.config.lake.path
    limits["directories"] = [Path(lake)] if lake else []
    answer = await anyio.to_thread.run_sync(partial(of_stopped, path, asked.sql, silent, **limits))
    yield _of_answer(answer, str(path))


@asynccontextmanager
async def then(cli: Cli, asked: Question, at: int | datetime) -> AsyncIterator[Found]:
    """The rows as of a moment. Raises as `as_of` does, NoServer, and ConfigError."""

    def progress(sequence: int, end: int) -> None:
        cli.out.progress(f"reading the log: {sequence:,} of {end:,}")

    async with cli.bus() as bus:
        answer = await as_of(
            bus, asked.sql, at, folder=Path(cli.config.projector.path).parent,
            projections=found.find(cli.config), lake=cli.config.lake.path, progress=progress,
            timeout_seconds=asked.timeout_seconds, max_rows=asked.max_rows,
        )  # fmt: skip
    cli.out.progress("")
    yield _of_answer(answer, "the log")


def moment_of(text: str) -> tuple[int | datetime, bool]:
    """A sequence; a time in ISO 8601, in UTC if it names no zone; or how long ago, as in -2h.

    Also whether it is clear without that. Raises Usage.
    """
    try:
        ago = timedelta(microseconds=duration_ns(text.strip().removeprefix("-")) // 1000)
        return datetime.now(UTC) - ago, True
    except (ValueError, OverflowError):
        pass
    try:
        at = moment.parse(text)
    except QueryError as error:
        raise Usage(str(error)) from None
    clear = isinstance(at, int) or datetime.fromisoformat(text.strip()).tzinfo is not None
    return at, clear


def _of_answer(answer: Answer, who: str) -> Found:
    async def batches() -> AsyncIterator[pa.RecordBatch]:
        for batch in answer.table.to_batches():
            yield batch

    return Found(answer.table.schema, batches(), answer.sequence, who)
