"""What projections could not take in is listed with its reason, and tried again by building anew."""

from __future__ import annotations

from typing import Any

from stratum_projections.quarantine import parked_of_file


def test_what_is_parked_is_listed_with_its_reason_and_its_text(log: Any, tables: Any) -> None:
    log.noted()
    log.add("memory.alice.note", "stratum.memory.noted", {"text": 5})
    log.raw("inbox.bob.alice.task", b"\xff")
    log.add("memory.bob.note", "stratum.memory.revised", {"note": 1})
    tables.apply(log.messages)
    tables.store.close()
    found = parked_of_file(tables.path)
    assert [(each.sequence, each.projection, each.reason) for each in found] == [
        (2, "memory", "data"),
        (3, None, "utf8"),
        (4, "memory", "data"),
    ]
    first, second, _ = found
    assert '"data":{"text":5}' in (first.text or "")
    assert "text" in first.detail and first.subject == "memory.alice.note"
    assert (first.stream, first.time) == ("LOG", log.messages[1].time)
    assert (second.text, second.payload) == (None, b"\xff")
    assert parked_of_file(tables.path, sequence=4) == found[2:]
    assert parked_of_file(tables.path, projections=["memory", "messages"], limit=1) == [first]
    assert not parked_of_file(tables.path, projections=["it's none"])
