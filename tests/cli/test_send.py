"""`stratum send` and `stratum publish`."""

from __future__ import annotations

import json
from typing import Any

from stratum_bus.bus import Bus
from stratum_bus.message import Message


def stored(log: Any, sequence: int) -> Message:
    async def get(bus: Bus) -> Message:
        return await bus.get("LOG", sequence)

    message: Message = log.do(get)
    return message


def test_sending_prints_where_it_is_stored(stratum: Any, log: Any) -> None:
    result = stratum("send", "research", "question", '{"q": 1}', "--about", "paper-7", "--json")
    told = json.loads(result.stdout)
    message = stored(log, 1)
    event = message.event()
    assert (result.returncode, told["stream"], told["sequence"]) == (0, "LOG", 1)
    assert (told["id"], told["subject"]) == (event.id, "inbox.research.cli.question")
    assert (message.subject, event.source) == (told["subject"], "/agents/cli")
    assert (event.type, event.subject, bytes(event.data)) == ("question", "paper-7", b'{"q": 1}')


def test_publishing_goes_to_the_topic_of_the_type(stratum: Any, log: Any) -> None:
    result = stratum("publish", "price.changed", "7", "--from", "shop")
    assert result.returncode == 0
    assert stored(log, 1).subject == "topic.shop.price.changed"


def test_data_may_come_from_stdin_or_be_left_out(process: Any, stratum: Any, log: Any) -> None:
    process("send", "research", "question", "-", input=b' {"from": "stdin"} ')
    stratum("send", "research", "ping")
    assert json.loads(bytes(stored(log, 1).event().data)) == {"from": "stdin"}
    assert stored(log, 2).event().data is None


def test_the_same_id_is_stored_once_and_said_to_be_there(stratum: Any, log: Any) -> None:
    first = stratum("send", "research", "question", "1", "--id", "order-7", "--json")
    second = stratum("send", "research", "question", "1", "--id", "order-7", "--json")
    assert json.loads(first.stdout)["sequence"] == json.loads(second.stdout)["sequence"] == 1
    assert [json.loads(each.stdout)["duplicate"] for each in (first, second)] == [False, True]
    assert "stored before, as LOG 1" in second.stderr
    assert log.last_sequence() == 1


def test_an_id_that_could_not_stand_in_a_header_is_refused(stratum: Any, log: Any) -> None:
    for id in ("", "a b", "a\nb", "x" * 300):
        result = stratum("send", "research", "question", "1", "--id", id)
        assert (result.returncode, result.stdout) == (2, "")
        assert "--id must" in result.stderr
    assert log.last_sequence() == 0


def test_a_dry_run_stores_nothing_and_needs_no_server(alone: Any) -> None:
    result = alone("send", "research", "question", "[1]", "--dry-run", "--json")
    told = json.loads(result.stdout)
    assert (result.returncode, told["stored"], told["data_bytes"]) == (0, False, 3)
    assert told["subject"] == "inbox.research.cli.question"


def test_a_message_to_an_agent_that_never_ran_is_kept_and_remarked_upon(stratum: Any) -> None:
    result = stratum("send", "newcomer", "question", "1")
    assert result.returncode == 0
    assert "no agent newcomer ever ran" in result.stderr
