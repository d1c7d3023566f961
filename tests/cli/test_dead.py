"""`stratum dead`: looked at, redriven, dropped."""

from __future__ import annotations

import json
from typing import Any

import pytest

from stratum_bus.consume import Reject


@pytest.fixture
def letters(log: Any) -> list[int]:
    """Two messages that the editor rejected; their sequences."""
    sequences: list[int] = log.send("editor", "note", "bad", "worse")
    log.handle("editor", 2, lambda _: Reject("no such paper"))
    return sequences


def rows(result: Any) -> list[dict[str, Any]]:
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_lists_open_letters_with_their_reason_and_origin(stratum: Any, letters: list[int]) -> None:
    shown = rows(stratum("dead", "list", "--json"))
    assert sorted(each["origin"] for each in shown) == [f"LOG {letter}" for letter in letters]
    assert {(each["agent"], each["type"], each["reason"]) for each in shown} == {
        ("editor", "note", "rejected")
    }
    assert "no such paper" in stratum("dead", "list", "editor").stdout


def test_shows_a_letter_with_its_original(stratum: Any, letters: list[int]) -> None:
    (shown,) = rows(stratum("dead", "show", str(letters[0]), "--json"))
    assert shown["original"]["event"]["data"] == "bad"
    by_id = stratum("dead", "show", shown["letter"])
    assert (by_id.returncode, "no such paper" in by_id.stdout) == (0, True)


def test_redriving_sends_the_original_again_once(
    stratum: Any, log: Any, letters: list[int]
) -> None:
    before = log.last_sequence()
    (planned,) = rows(stratum("dead", "redrive", str(letters[0]), "--dry-run", "--json"))
    assert (planned["redriven"], log.last_sequence()) == (False, before)
    (done,) = rows(stratum("dead", "redrive", str(letters[0]), "--reason", "mended", "--json"))
    assert done["redriven"]
    (message,) = rows(stratum("inbox", "editor", "--pending", "--json"))
    assert (message["event"]["data"], message["sequence"]) == ("bad", done["sequence"])
    again = stratum("dead", "redrive", str(letters[0]))
    assert (again.returncode, "already redriven" in again.stderr) == (5, True)


def test_dropped_letters_are_kept_but_no_longer_open(stratum: Any, letters: list[int]) -> None:
    assert len(rows(stratum("dead", "drop", "--all-of", "editor", "--json"))) == 2
    nothing = stratum("dead", "list")
    assert (nothing.stdout, "no open dead letters" in nothing.stderr) == ("", True)
    assert len(rows(stratum("dead", "list", "--state", "dropped", "--json"))) == 2


def test_nothing_is_decided_where_one_of_the_letters_is_unknown(
    stratum: Any, log: Any, letters: list[int]
) -> None:
    before = log.last_sequence()
    result = stratum("dead", "drop", str(letters[0]), "99")
    assert (result.returncode, log.last_sequence()) == (3, before)
    unnamed = stratum("dead", "drop")
    assert (unnamed.returncode, "--all-of AGENT" in unnamed.stderr) == (2, True)


def test_an_original_that_cannot_be_read_cannot_be_redriven(stratum: Any, log: Any) -> None:
    log.store("inbox.editor.billing.note", b"\xff")
    log.bury_unreadable("editor")
    for options in ((), ("--dry-run",)):
        result = stratum("dead", "redrive", "1", *options)
        assert (result.returncode, result.stdout) == (5, "")
        assert "not a readable event" in result.stderr


def test_shows_what_happened_to_a_message_that_killed_its_agent(
    stratum: Any, log: Any, letters: list[int]
) -> None:
    held = [{"stream": "LOG", "sequence": letters[0], "begun": True, "deaths": 1}]
    ended = {"instance": "1-x", "pid": 7, "code": -9, "signal": "SIGKILL"}
    log.store("control.editor.ended", json.dumps({**ended, "held": held}).encode())
    log.store("control.editor.ended", json.dumps(ended).encode())
    shown = stratum("dead", "show", str(letters[0]))
    assert shown.stdout.count("1-x (pid 7) ended by itself after 0.0 s: SIGKILL") == 1
    (row,) = rows(stratum("dead", "show", str(letters[0]), "--json"))
    assert [each["name"] for each in row["history"]] == ["ended"]
    (other,) = rows(stratum("dead", "show", str(letters[1]), "--json"))
    assert other["history"] == []
