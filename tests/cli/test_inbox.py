"""`stratum inbox` and `stratum outbox`: what came, what went, and how far it is."""

from __future__ import annotations

import json
from typing import Any

import anyio

from stratum_bus.bus import Bus
from stratum_bus.consume import Delivery, Outcome, Reject, ensure_consumer
from stratum_bus.subject import inbox_filters


def rows(result: Any) -> list[dict[str, Any]]:
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def reject_bad(delivery: Delivery) -> Outcome | None:
    return Reject("bad") if bytes(delivery.event.data) == b'"bad"' else None


def test_says_what_became_of_each_message(stratum: Any, log: Any) -> None:
    log.send("editor", "note", "good", "bad")
    log.handle("editor", 2, reject_bad)
    log.send("editor", "note", "new")
    shown = rows(stratum("inbox", "editor", "--json"))
    assert [(each["event"]["data"], each["state"]) for each in shown] == [
        ("good", "handled"),
        ("bad", "dead"),
        ("new", "pending"),
    ]
    assert {each["from"] for each in shown} == {"billing"}
    waiting = rows(stratum("inbox", "editor", "--pending", "--json"))
    assert [each["event"]["data"] for each in waiting] == ["new"]


def test_a_message_in_hand_is_neither_pending_nor_handled(stratum: Any, log: Any) -> None:
    log.send("editor", "note", 1, 2)

    async def take_one(bus: Bus) -> None:
        await ensure_consumer(bus, "editor", inbox_filters("editor"))
        reply, taken = bus.connection.new_inbox(), anyio.Event()
        async with bus.connection.subscribe(reply, lambda _: taken.set()):
            next_one = "$JS.API.CONSUMER.MSG.NEXT.LOG.editor"
            await bus.connection.send(next_one, b"1", reply=reply)
            await taken.wait()

    log.do(take_one)
    shown = rows(stratum("inbox", "editor", "--json"))
    assert [each["state"] for each in shown] == ["in hand", "pending"]


def test_holds_what_came_by_topics_that_the_agent_follows(stratum: Any, log: Any) -> None:
    stratum("publish", "price.changed", "1", "--from", "shop")
    log.handle("editor", 1, follows=["price.changed"])
    (shown,) = rows(stratum("inbox", "editor", "--json"))
    assert (shown["subject"], shown["state"]) == ("topic.shop.price.changed", "handled")


def test_mail_for_an_agent_that_never_ran_is_shown_as_pending(stratum: Any, log: Any) -> None:
    log.send("newcomer", "note", 1)
    (shown,) = rows(stratum("inbox", "newcomer", "--json"))
    assert shown["state"] == "pending"


def test_shows_the_newest_in_order_however_much_lies_between(stratum: Any, log: Any) -> None:
    log.send("editor", "note", *range(4))
    log.send("noise", "note", *range(6000))
    shown = rows(stratum("inbox", "editor", "--limit", "3", "--json"))
    assert [each["event"]["data"] for each in shown] == [1, 2, 3]
    assert len(rows(stratum("inbox", "editor", "--limit", "0", "--json"))) == 4


def test_a_known_agent_without_mail_has_an_empty_inbox(stratum: Any, project: Any) -> None:
    (project / "stratum.toml").write_text('[agents.editor]\ncreate = "editor:create"\n')
    for noun in ("inbox", "outbox", "memory"):
        result = stratum(noun, "editor")
        assert (result.returncode, result.stdout) == (0, "")
        assert "editor" in result.stderr


def test_the_outbox_says_what_became_of_it_at_each_receiver(stratum: Any, log: Any) -> None:
    log.send("editor", "note", "to editor")
    log.send("nobody", "note", "to nobody")
    stratum("publish", "price.changed", '"to all"', "--from", "billing")
    log.handle("editor", 2, follows=["price.changed"])
    log.handle("buyer", 1, follows=["price.changed"])
    shown = rows(stratum("outbox", "billing", "--json"))
    assert [(each["event"]["data"], each["to"], each["deliveries"]) for each in shown] == [
        ("to editor", "editor", {"editor": "handled"}),
        ("to nobody", "nobody", {}),
        ("to all", "(all who follow)", {"buyer": "handled", "editor": "handled"}),
    ]
    table = stratum("outbox", "billing").stdout
    assert "handled at buyer, handled at editor" in table
    assert "nobody takes it" in table
