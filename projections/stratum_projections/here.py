"""A query in one call, of the platform that runs in this folder, as the `stratum` command finds it."""

from __future__ import annotations

from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import anyio.to_thread
import pyarrow as pa

from stratum_bus import config as configs
from stratum_bus import connect
from stratum_bus.bus import Bus
from stratum_bus.config import Config
from stratum_bus.data_dir import locate
from stratum_bus.errors import ConnectionLost, QueryError, StratumError
from stratum_projections import asof, found, moment
from stratum_projections.query import MAX_ROWS, TIMEOUT_SECONDS, ask, of_stopped


async def query(
    sql: str,
    *,
    bus: Bus | None = None,
    url: str | None = None,
    projector: str = "main",
    wait_for: int | None = None,
    as_of: int | str | datetime | None = None,
    timeout_seconds: float = TIMEOUT_SECONDS,
    max_rows: int = MAX_ROWS,
) -> pa.Table:
    """The rows of one SELECT: `table = await query("select * from memory")`.

    The projector is asked on the open `bus`, else on the server at `url`, else on the one that the
    `stratum` command would take in this folder (STRATUM_NATS_URL, stratum.toml, .stratum); where
    none runs there, its file is read. `wait_for` is a sequence of the log that the rows must
    reflect, as `bus.publish` returns it. `as_of` answers from the log up to a sequence or a time,
    as text in ISO 8601 too, in UTC if it names no zone: the tables of then are folded anew.

    Raises what `ask` and `query_file` do, with `as_of` what `asof.as_of` does; ConfigError.
    """
    if as_of is not None and wait_for is not None:
        raise ValueError("as_of and wait_for exclude each other: a moment of the log is there")
    limits: dict[str, Any] = {"timeout_seconds": timeout_seconds, "max_rows": max_rows}
    config = configs.load() if as_of is not None or not (bus or url) else None

    async def on(bus: Bus) -> pa.Table:
        if as_of is not None and config is not None:
            return await _then(bus, sql, as_of, config, limits)
        return (await ask(bus, sql, projector=projector, wait_for=wait_for, **limits)).table

    if bus is not None:
        return await on(bus)
    silent: StratumError = QueryError("no_projector", "no server runs here: see `stratum up`")
    if there := url or (_url(config) if config else ""):
        try:
            async with connect(there, name="stratum-query") as own:
                return await on(own)
        except ConnectionLost as error:
            silent = error
        except QueryError as error:
            if error.reason != "no_projector":
                raise
            silent = error
    if url or as_of is not None or config is None:
        raise silent
    path = Path(config.projector.path)
    limits["directories"] = [Path(config.lake.path)] if config.lake.path else []
    read = partial(of_stopped, path, sql, silent, wait_for=wait_for, **limits)
    return (await anyio.to_thread.run_sync(read)).table


async def _then(
    bus: Bus, sql: str, at: int | str | datetime, config: Config, limits: dict[str, Any]
) -> pa.Table:
    at = moment.parse(at) if isinstance(at, str) else at
    answer = await asof.as_of(
        bus, sql, at, folder=Path(config.projector.path).parent, projections=found.find(config),
        lake=config.lake.path, **limits,
    )  # fmt: skip
    return answer.table


def _url(config: Config) -> str:
    """The server of the settings, "" for none that runs."""
    if config.server.url:
        return config.server.url
    running = locate(config.server.data_dir)
    return running.url if running else ""
