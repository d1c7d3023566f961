"""`stratum stream`: the server's streams against their declaration."""

from __future__ import annotations

import json
from typing import Any

from stratum_bus.bus import Bus


def rows(result: Any) -> dict[str, dict[str, Any]]:
    return {row["stream"]: row for row in map(json.loads, result.stdout.splitlines())}


async def damage(bus: Bus) -> None:
    """HEALTH is gone, LOG has lost an immaterial setting, and there is a stream of somebody's."""
    await bus.connection.api("STREAM.DELETE.HEALTH")
    config = (await bus.connection.api("STREAM.INFO.LOG"))["config"]
    await bus.connection.api("STREAM.UPDATE.LOG", {**config, "description": "changed"})
    await bus.connection.api("STREAM.CREATE.LAB", {"name": "LAB", "subjects": ["lab.>"]})


def test_lists_what_is_declared_and_what_is_there(stratum: Any, log: Any) -> None:
    log.do(damage)
    shown = rows(stratum("stream", "list", "--json"))
    states = {name: row["state"] for name, row in shown.items()}
    assert states == {
        "LOG": "differs",
        "BLOBS": "as declared",
        "TIMERS": "as declared",
        "HEALTH": "missing",
        "ADVISORIES": "as declared",
        "LAB": "not declared",
    }
    assert stratum("stream", "list").stdout.startswith("stream      state")


def test_shows_where_a_stream_differs(stratum: Any, log: Any) -> None:
    log.do(damage)
    result = stratum("stream", "show", "LOG", "--json")
    told = json.loads(result.stdout)
    assert told["state"] == "differs"
    assert told["differences"] == ["description: declared '', is 'changed'"]
    assert "not declared" in stratum("stream", "show", "LAB").stdout


def test_provisioning_mends_and_then_has_nothing_to_do(stratum: Any, log: Any) -> None:
    log.do(damage)
    planned = rows(stratum("stream", "provision", "--dry-run", "--json"))
    assert {name: (row["action"], row["done"]) for name, row in planned.items()} == {
        "LOG": ("update", False),
        "HEALTH": ("create", False),
    }
    done = rows(stratum("stream", "provision", "--json"))
    assert {name: row["done"] for name, row in done.items()} == {"LOG": True, "HEALTH": True}
    again = stratum("stream", "provision")
    assert (again.returncode, again.stdout) == (0, "")
    assert "as declared" in again.stderr


def test_a_change_that_could_lose_data_is_refused_until_it_is_forced(
    stratum: Any, log: Any
) -> None:
    async def widen(bus: Bus) -> None:
        config = (await bus.connection.api("STREAM.INFO.HEALTH"))["config"]
        await bus.connection.api("STREAM.UPDATE.HEALTH", {**config, "max_age": 0})

    log.do(widen)
    refused = stratum("stream", "provision")
    assert (refused.returncode, refused.stdout) == (5, "")
    assert "--force HEALTH" in refused.stderr
    assert stratum("stream", "provision", "--force", "HEALTH").returncode == 0
    assert rows(stratum("stream", "list", "--json"))["HEALTH"]["state"] == "as declared"
