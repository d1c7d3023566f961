"""`stratum health`: the picture, the incidents, the story."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from stratum_bus import control, heartbeat, subject
from stratum_bus.bus import Bus
from stratum_bus.control import Command, Ended, Outcome, Started
from stratum_bus.event import encode, new
from stratum_bus.heartbeat import Beat
from stratum_bus.testing import eventually
from stratum_projections.health.incident import Asked, Finding, Incident, closing, commanding
from stratum_projections.health.incident import opening as opening_of

NOW_NS = 1_767_225_600_000_000_000

FINDING = Finding(
    kind="dead", agent="research", instance="1-a", since_ns=NOW_NS, first=17,
    text="nothing was heard of it for 1.6 s", evidence={"last_beat": 17},
    commands=(Asked("restart", Command(instance="1-a", reason="nothing is heard of it")),),
)  # fmt: skip


@pytest.fixture
def story(log: Any) -> None:
    """An instance was started, fell silent and was restarted; another incident is still open."""

    async def tell(bus: Bus) -> None:
        async def say(name: str, data: Any, id: str | None = None) -> None:
            event = new(control.PREFIX + name, data, source="/supervisor", id=id)
            await bus.publish(subject.control("research", name), event)

        await say("started", Started(instance="1-a", pid=7))
        opened = opening_of(FINDING, NOW_NS)
        ask = FINDING.commands[0]
        command = commanding(FINDING.id, "research", ask.name, ask.what, NOW_NS)
        await bus.commit([opened, command])
        await say("ended", Ended(instance="1-a", pid=7, code=-9, signal="SIGKILL", wanted=True))
        await say("started", Started(instance="1-b", pid=8, command=command.event.id))
        await say("outcome", Outcome(command=command.event.id, done=True, detail="started again"))
        assert isinstance(opened.event.data, Incident)
        over = closing(FINDING.id, opened.event.data, "1-b has taken its place", "restart", NOW_NS)
        await bus.commit([over])
        lag = Finding(
            kind="lag", agent="editor", since_ns=NOW_NS, first=3, text="900 messages wait for it",
            evidence={"pending": 900},
        )  # fmt: skip
        await bus.commit([opening_of(lag, NOW_NS)])

    log.do(tell)


def beat(log: Any, name: str, instance: str, **fields: Any) -> None:
    said = Beat(
        name=name, instance=instance, kind=fields.pop("kind", "agent"), state="working", pid=8,
        host="here", version="1", started=datetime.now(UTC), every_seconds=0.5,
        resident_bytes=64 << 20, holds=2, **fields,
    )  # fmt: skip
    payload = encode(new(heartbeat.TYPE, said, source="/test"))

    async def send(bus: Bus) -> None:
        before = (await bus.connection.api("STREAM.INFO.HEALTH"))["state"]["last_seq"]
        await bus.connection.send(subject.health(name, instance), payload)

        async def stored() -> bool:
            info = await bus.connection.api("STREAM.INFO.HEALTH")
            return bool(info["state"]["last_seq"] > before)

        await eventually(stored)

    log.do(send)


def rows(result: Any) -> list[dict[str, Any]]:
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.mark.usefixtures("story")
def test_the_picture_shows_who_beats_and_what_is_wrong(stratum: Any, log: Any) -> None:
    beat(log, "research", "1-b")
    beat(log, "health", "h1", kind="health")
    [own, health] = rows(stratum("health", "--json"))
    assert (own["agent"], own["instance"], own["state"]) == ("research", "1-b", "working")
    assert (own["in_hand"], own["restarts"], own["incidents"]) == (2, 1, [])
    assert health["kind"] == "health"
    shown = stratum("health")
    assert "64 MiB" in shown.stdout
    assert "editor lag since" in shown.stdout
    assert shown.stderr == ""


def test_without_a_health_projector_it_says_that_nothing_is_judged(stratum: Any, log: Any) -> None:
    beat(log, "research", "1-b")
    assert "nothing is judged" in stratum("health").stderr


def test_an_agent_that_is_configured_and_does_not_run_is_in_the_picture(
    stratum: Any, project: Any
) -> None:
    (project / "stratum.toml").write_text('[agents.research]\ncreate = "a:b"\n')
    [row] = rows(stratum("health", "--json"))
    assert (row["agent"], row["state"]) == ("research", "not running")


@pytest.mark.usefixtures("story")
def test_incidents_are_listed_with_their_evidence_and_end(stratum: Any) -> None:
    closed, still = rows(stratum("health", "incidents", "--json"))
    assert (closed["kind"], closed["status"], closed["command"]) == ("dead", "closed", "restart")
    assert (closed["over"], closed["evidence"]) == ("1-b has taken its place", {"last_beat": 17})
    assert closed["sequence"] < closed["closed_sequence"]
    assert [row["kind"] for row in rows(stratum("health", "incidents", "--open", "--json"))] == [
        "lag"
    ]
    of_one = rows(stratum("health", "incidents", "--agent", "editor", "--json"))
    assert [row["incident"] for row in of_one] == [still["incident"]]
    since = str(still["sequence"])
    assert rows(stratum("health", "incidents", "--since", since, "--json")) == [still]
    nothing = stratum("health", "incidents", "--open", "--agent", "research")
    assert (nothing.stdout, nothing.stderr) == ("", "nothing is wrong\n")


@pytest.mark.usefixtures("story")
def test_the_story_says_what_was_seen_decided_and_happened_in_order(stratum: Any) -> None:
    told = rows(stratum("health", "why", "research", "--json"))
    assert [(row["what"], row["name"]) for row in told] == [
        ("happened", "started"),
        ("seen", "incident"),
        ("decided", "restart"),
        ("happened", "ended"),
        ("happened", "started"),
        ("happened", "outcome"),
        ("seen", "incident"),
    ]
    sequences = [row["sequence"] for row in told]
    assert sequences == sorted(sequences)
    assert told[2]["of"] == told[1]["id"]
    assert told[5]["of"] == told[4]["of"] == told[2]["id"]
    text = stratum("health", "why", "research").stdout
    assert "nothing was heard of it for 1.6 s (last_beat 17)" in text
    assert "1-a (pid 7) ended as it was told" in text


def test_a_name_that_nobody_has_is_refused(stratum: Any) -> None:
    unknown = stratum("health", "why", "nobody")
    assert (unknown.returncode, "there is no agent nobody" in unknown.stderr) == (3, True)
    wrong = stratum("health", "incidents", "--since", "yesterday")
    assert (wrong.returncode, "is no position" in wrong.stderr) == (2, True)


@pytest.mark.usefixtures("story")
def test_options_count_before_and_behind_the_noun(stratum: Any) -> None:
    for line in (("--json", "health", "incidents"), ("health", "--json", "incidents")):
        assert len(rows(stratum(*line))) == 2
