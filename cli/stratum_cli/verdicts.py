"""What the comparison of projections with a fresh fold of the log found, as `verify` says it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from stratum_bus.bus import Bus
from stratum_cli.context import Cli
from stratum_projections import found
from stratum_projections.checkpoint import CORE
from stratum_projections.verify import Verdict, verify


async def verdict(cli: Cli, bus: Bus, names: Sequence[str], projector: str) -> Verdict:
    """Compare these projections, () for all, telling how far that is."""

    def tell(what: str, done: int, of: int) -> None:
        unit = "LOG " if what == "building" else "table "
        cli.out.progress(f"{what}: {unit}{done:,} of {of:,}")

    try:
        return await verify(
            bus, path=cli.config.projector.path, projector=projector,
            projections=found.find(cli.config), lake=cli.config.lake.path, names=names,
            progress=tell,
        )  # fmt: skip
    finally:
        cli.out.progress("")


def say(cli: Cli, verdict: Verdict) -> None:
    """A row for each table, then a sentence for each difference and gap; in sum on stderr."""
    differences = {(each.projection, each.table): each for each in verdict.differences}
    rows: list[dict[str, Any]] = []
    for table in verdict.tables:
        difference = differences.get((table.projection, table.table))
        row = {
            "projection": table.projection, "table": table.table, "sequence": table.sequence,
            "rows": table.rows, "same": difference is None,
        }  # fmt: skip
        if difference:
            row |= {"difference": msgspec.to_builtins(difference), "said": str(difference)}
        rows.append(row)
    if cli.out.json:
        rows += [{"same": False, "said": gap} for gap in verdict.gaps]
    else:  # that nothing is quarantined here as there is no news
        rows = [row for row in rows if row["table"] != CORE or row["rows"] or not row["same"]]
    columns = {name: name for name in ("projection", "table", "rows", "same")}
    cli.out.table(rows, columns, nothing="no tables")
    if not cli.out.json:
        for sentence in (*map(str, verdict.differences), *verdict.gaps):
            cli.out.line(sentence, shorten=False)
    for each in verdict.left_out:
        cli.out.talk(f"{each.projection} was left out: {each.why}")
    found = "all is as a fresh fold of the log has it"
    if wrong := len(verdict.differences) + len(verdict.gaps):
        found = f"{wrong} difference{'s' if wrong > 1 else ''}"
    cli.out.talk(f"up to LOG {verdict.sequence:,}, {verdict.messages:,} messages: {found}")
