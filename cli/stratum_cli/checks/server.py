"""Checks of the server: its streams, who consumes, and what waits."""

from __future__ import annotations

from collections.abc import AsyncIterator

from stratum_bus import dead, jetstream
from stratum_bus.bus import Bus
from stratum_bus.config import Config
from stratum_bus.errors import NotFound
from stratum_bus.stream import examine, load_streams
from stratum_cli import delivery
from stratum_cli.checks.finding import Finding, note, ok, wrong
from stratum_cli.checks.machine import SERVER_MIN

PENDING_MANY = 10_000


async def server(bus: Bus, config: Config) -> AsyncIterator[Finding]:
    """All checks that need a server. Raises BusError where it goes away meanwhile."""
    info = await bus.connection.api("INFO")
    found = f"{jetstream.shown(bus.connection.url)}, {info['streams']} streams, {info['storage']:,} bytes stored"
    limit = info["limits"]["max_storage"]
    if limit > 0 and info["storage"] > 0.9 * limit:
        yield wrong("server", f"{found} of {limit:,}", "raise the account's storage limit")
    else:
        yield ok("server", found)
    async for finding in _streams(bus):
        yield finding
    try:
        async for finding in _agents(bus, config):
            yield finding
    except NotFound:
        return  # without a log nobody consumes it


async def _streams(bus: Bus) -> AsyncIterator[Finding]:
    good = []
    for spec in load_streams():
        change = await examine(bus.connection, spec)
        check = f"stream {spec.name}"
        if change is None:
            good.append(spec.name)
        elif change.action == "create":
            yield wrong(check, "it is missing", "create it with `stratum stream provision`")
        else:
            fields = "; ".join(
                f"{field}: declared {declared!r}, is {is_!r}"
                for field, (declared, is_) in change.fields.items()
            )
            mend = "mend it with `stratum stream provision`"
            if change.destructive:
                mend += f" --force {spec.name}, which may lose data; or declare it as it is"
            yield wrong(check, f"it differs from its declaration ({fields})", mend)
    if good:
        yield ok("streams", f"{', '.join(good)} are as declared")
    try:
        config = (await bus.connection.api("STREAM.INFO.LOG"))["config"]
    except NotFound:
        return
    level = config.get("metadata", {}).get("_nats.ver", "")
    if level and tuple(map(int, level.split(".")[:2])) < SERVER_MIN:
        yield wrong("server version", level, "Stratum needs nats-server 2.14 or newer")


async def _agents(bus: Bus, config: Config) -> AsyncIterator[Finding]:
    everybody = await delivery.receivers(bus)
    for each in everybody:
        check = f"agent {each.name}"
        start = "start it with `stratum up`"
        if each.name in config.agents:
            start += f" or `stratum agent run {each.name}`"
        if each.pending and not each.listening and not each.in_hand:
            yield wrong(check, f"{each.pending:,} messages wait and no instance runs", start)
        elif each.pending > PENDING_MANY:
            mend = "give it more instances, or look at what holds it up in its log"
            yield wrong(check, f"{each.pending:,} messages wait", mend)
        elif each.listening or each.in_hand:
            yield ok(check, f"is running; {each.pending:,} wait, {each.in_hand:,} in hand")
        else:
            yield note(check, "nothing waits, no instance runs")
    ran = {each.name for each in everybody}
    for name in sorted(set(config.agents) - ran):
        yield note(f"agent {name}", "is configured and never ran", "start it with `stratum up`")
    open_letters = [each for each in await dead.letters(bus) if each.state == dead.OPEN]
    if open_letters:
        mend = "look at them with `stratum dead list`, then redrive or drop them"
        yield note("dead letters", f"{len(open_letters):,} are open", mend)
