"""`stratum replay`: shown again, or published again where it can do no harm."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from stratum_bus.bus import Bus
from stratum_bus.message import Message


def messages(log: Any, pattern: str, stream: str = "LOG") -> list[Message]:
    async def read(bus: Bus) -> list[Message]:
        async with bus.read(stream, filters=[pattern]) as reader:
            return [message async for message in reader]

    found: list[Message] = log.do(read)
    return found


def test_shows_a_stretch_by_sequence(stratum: Any, log: Any) -> None:
    log.send("research", "question", "a", "b", "c", "d")
    result = stratum("replay", "--from", "2", "--to", "3", "--json")
    shown = [json.loads(line) for line in result.stdout.splitlines()]
    assert [each["event"]["data"] for each in shown] == ["b", "c"]


def test_ends_at_a_time(stratum: Any, log: Any) -> None:
    log.send("research", "question", "a")
    time.sleep(0.01)
    log.send("research", "question", "b")
    end = messages(log, "inbox.>")[0].time.isoformat()
    result = stratum("replay", "--from", "start", "--to", end)
    assert '"a"' in result.stdout
    assert '"b"' not in result.stdout


def test_a_stretch_that_holds_nothing_shows_nothing(stratum: Any, log: Any) -> None:
    log.send("research", "question", "a")
    for where in (("--from", "7"), ("--from", "2", "--to", "1"), ("--from", "start", "--to", "9h")):
        result = stratum("replay", *where)
        assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_speed_keeps_the_pauses(stratum: Any, log: Any) -> None:
    log.send("research", "question", "a")
    time.sleep(0.3)
    log.send("research", "question", "b")
    first, second = messages(log, "inbox.>")
    pause = (second.time_ns - first.time_ns) / 1e9
    began = time.monotonic()
    stratum("replay", "--from", "start", "--speed", "1x")
    took = time.monotonic() - began
    assert took >= pause


def test_publishes_again_to_an_inbox_as_new_events_with_their_cause(stratum: Any, log: Any) -> None:
    log.send("research", "question", "a", "b")
    arguments = ("replay", "--from", "start", "--filter", "inbox.research.>")
    result = stratum(*arguments, "--to-subject", "inbox.research2", "--json")
    assert json.loads(result.stdout) == {
        "to_subject": "inbox.research2",
        "published": 2,
        "left_out": 0,
    }
    originals = messages(log, "inbox.research.>")
    again = messages(log, "inbox.research2.>")
    assert len(originals) == 2
    for original, copy in zip(originals, again, strict=True):
        assert copy.subject == "inbox.research2.billing.question"
        assert copy.event().id != original.event().id
        assert copy.event().causationid == original.event().id
        assert copy.event().data == original.event().data


def test_publishes_again_below_a_topic_with_the_whole_former_subject(
    stratum: Any, log: Any
) -> None:
    log.send("research", "question", "a")
    stratum("replay", "--from", "1", "--filter", "inbox.>", "--to-subject", "topic.replay")
    (copy,) = messages(log, "topic.>")
    assert copy.subject == "topic.replay.inbox.research.billing.question"


def test_publishes_again_to_a_stream_of_the_user(stratum: Any, log: Any) -> None:
    async def create(bus: Bus) -> None:
        body = {"name": "LAB", "subjects": ["lab.>"]}
        await bus.connection.api("STREAM.CREATE.LAB", body)

    log.do(create)
    log.send("research", "question", "a", "b")
    result = stratum("replay", "--from", "start", "--to-subject", "lab.today")
    assert result.returncode == 0
    copies = messages(log, "lab.>", "LAB")
    assert [copy.subject for copy in copies] == ["lab.today.inbox.research.billing.question"] * 2


@pytest.mark.parametrize(
    ("target", "filters", "parts"),
    [
        ("topic.replay", [], ["itself matched by topic.>"]),
        ("inbox.research", ["inbox.research.>"], ["itself matched by inbox.research.>"]),
        ("inbox.research", ["inbox.*.billing.>"], ["itself matched"]),
        ("inbox", ["topic.>"], ["names nobody", "inbox.NAME"]),
        ("inbox.editor.billing", ["topic.>"], ["exactly", "inbox.editor"]),
        ("memory.research", ["inbox.>"], ["an agent's own"]),
        ("control.research", ["inbox.>"], ["an agent's own"]),
        ("run.research", ["inbox.>"], ["an agent's own"]),
        ("blob.x", ["inbox.>"], ["an agent's own"]),
        ("lab.*", ["inbox.>"], ["a plain subject"]),
        ("$JS.API.STREAM", ["inbox.>"], ["a plain subject"]),
        ("lab..x", ["inbox.>"], ["an empty token"]),
    ],
)
def test_a_target_that_could_do_harm_is_refused(
    stratum: Any, log: Any, target: str, filters: list[str], parts: list[str]
) -> None:
    log.send("research", "question", "a")
    options = [part for each in filters for part in ("--filter", each)]
    result = stratum("replay", "--from", "start", "--to-subject", target, *options)
    assert (result.returncode in (2, 5), result.stdout) == (True, "")
    for part in parts:
        assert part in result.stderr
    assert log.last_sequence() == 1


def test_a_subject_that_no_stream_takes_is_said(stratum: Any, log: Any) -> None:
    log.send("research", "question", "a")
    result = stratum("replay", "--from", "start", "--to-subject", "nowhere.x")
    assert (result.returncode, result.stdout) == (3, "")
    assert "no stream takes nowhere.x.inbox.research.billing.question" in result.stderr


def test_what_cannot_be_read_is_named_and_left_out(stratum: Any, log: Any) -> None:
    log.send("research", "question", "a")
    log.store("inbox.research.billing.question", b"\xff")
    log.send("research", "question", "b")
    target = ("--filter", "inbox.research.>", "--to-subject", "inbox.research2")
    result = stratum("replay", "--from", "start", *target, "--json")
    assert result.returncode == 1
    assert json.loads(result.stdout)["left_out"] == 1
    assert "LOG 2 is left out" in result.stderr
    assert len(messages(log, "inbox.research2.>")) == 2


def test_a_dry_run_shows_where_each_would_go(stratum: Any, log: Any) -> None:
    log.send("research", "question", "a")
    target = ("--filter", "inbox.research.>", "--to-subject", "inbox.research2")
    result = stratum("replay", "--from", "start", *target, "--dry-run")
    assert "inbox.research.billing.question -> inbox.research2.billing.question" in result.stdout
    assert log.last_sequence() == 1
