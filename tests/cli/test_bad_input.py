"""Bad input, each by a real process: one sentence, its exit code, no traceback, nothing stored."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

LONG = "n" * 300
MIB = 1024 * 1024


def must_refuse(result: Any, code: int, *parts: str) -> None:
    """One line on stderr that says all `parts`, nothing on stdout, and the exit code."""
    assert "Traceback" not in result.stderr
    assert (result.returncode, result.stdout) == (code, ""), result
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("stratum: ")
    for part in parts:
        assert part in lines[0]


@pytest.mark.parametrize(
    ("arguments", "code", "parts"),
    [
        (["tial"], 2, ["No such command 'tial'", "'tail'"]),
        (["send", "research"], 2, ["Missing argument 'TYPE'"]),
        (["tail", "NOPE"], 3, ["there is no stream NOPE", "LOG"]),
        (["inbox", "nobody"], 3, ["there is no agent nobody"]),
        (["agent", "run", "nobody"], 2, ["stratum.toml", "agents.nobody"]),
        (["tail", "--from", "yesterday"], 2, ["--from 'yesterday'", "a sequence", "15m"]),
        (["tail", "--filter", "inbox.>.x"], 2, ["filter 'inbox.>.x'", "at the end"]),
    ],
)
def test_a_wrong_command_line_is_answered_by_one_sentence(
    process: Any, arguments: list[str], code: int, parts: list[str]
) -> None:
    must_refuse(process(*arguments), code, *parts)


@pytest.mark.parametrize(
    ("arguments", "code", "parts"),
    [
        (["stream", "shwo", "LOG"], 2, ["No such command", "stratum stream --help"]),
        (["tail", "--foo"], 2, ["No such option: --foo"]),
        (["tail", "LOG.x"], 2, ["stream name 'LOG.x'", "a dot"]),
        (["stream", "show", "NOPE"], 3, ["there is no stream NOPE"]),
        (["agent", "show", "nobody"], 3, ["there is no agent nobody"]),
        (["dead", "show", "17"], 3, ["there is no dead letter 17"]),
        (["replay", "--from", "0"], 2, ["--from '0'", "no position"]),
        (["memory", "a", "--as-of", "-3"], 2, ["--as-of '-3'"]),
        (["replay", "--from", "1", "--speed", "fast"], 2, ["--speed 'fast'", "10x"]),
        (["stream", "provision", "--force", "NOPE"], 3, ["no declared stream NOPE"]),
        (["replay", "NOPE", "--from", "1"], 3, ["there is no stream NOPE"]),
        (["outbox", "nobody"], 3, ["there is no agent nobody"]),
        (["memory", "nobody"], 3, ["there is no agent nobody"]),
        (["dead", "list", "nobody"], 3, ["there is no agent nobody"]),
    ],
)
def test_every_noun_answers_a_mistake_by_one_sentence(
    stratum: Any, arguments: list[str], code: int, parts: list[str]
) -> None:
    must_refuse(stratum(*arguments), code, *parts)


@pytest.mark.parametrize(
    ("data", "parts"),
    [
        ("hello", ["not JSON", '"hello"', "both kinds of quotes"]),
        ("{q: 1}", ["not JSON", "double quotes"]),
        ('{"q": 1', ["not JSON", "truncated"]),
        ("", ["not JSON", "null"]),
        ("[" * 5000, ["nested too deep"]),
        (os.fsdecode(b'"\xff"'), ["DATA is not UTF-8"]),
    ],
)
def test_data_that_is_no_json_is_refused_and_not_stored(
    process: Any, log: Any, data: str, parts: list[str]
) -> None:
    must_refuse(process("send", "research", "question", data), 2, *parts)
    assert log.last_sequence() == 0


def test_stdin_that_is_no_text_is_refused(process: Any, log: Any) -> None:
    result = process("send", "research", "question", "-", input=b'"\xff\xfe"')
    must_refuse(result, 2, "stdin is not UTF-8")
    assert log.last_sequence() == 0


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("a.b", "a dot"),
        ("a b", "a space"),
        ("*", "a wildcard"),
        (">", "a wildcard"),
        ("", "at least one character"),
        (LONG, "300 characters, at most 64"),
    ],
)
def test_a_name_that_can_be_no_agent_is_refused(
    process: Any, stratum: Any, log: Any, name: str, rule: str
) -> None:
    must_refuse(process("send", name, "question", "1"), 2, "agent name", rule)
    must_refuse(stratum("send", "research", "question", "1", "--from", name), 2, "sender", rule)
    for noun in (["inbox"], ["outbox"], ["memory"], ["agent", "show"], ["dead", "list"]):
        must_refuse(stratum(*noun, name), 2, "agent name", rule)
    assert log.last_sequence() == 0


def test_a_value_over_the_blob_limit_is_refused_before_anything_is_stored(
    process: Any, log: Any
) -> None:
    result = process("send", "research", "scan", "-", input=b'"' + b"x" * (64 * MIB) + b'"')
    must_refuse(result, 5, "64 MiB", "object store")
    assert log.last_sequence() == 0


def test_a_value_below_the_blob_limit_is_stored(process: Any, log: Any) -> None:
    result = process("send", "research", "scan", "-", input=b'"' + b"x" * (3 * MIB) + b'"')
    assert (result.returncode, log.last_sequence()) == (0, 1)


def test_without_a_server_the_sentence_says_how_to_start_one(alone: Any, project: Path) -> None:
    must_refuse(alone("inbox", "research"), 4, "no server runs on", ".stratum", "`stratum up`")
    must_refuse(alone("--data-dir", "elsewhere", "tail"), 4, str(project / "elsewhere"))
    address = "nats://127.0.0.1:1"
    must_refuse(alone("tail", "--nats-url", address), 4, address, "no server answers")


@pytest.mark.parametrize(
    ("toml", "parts"),
    [
        ("[server]\nprot = 1", ["server.prot", "unknown key", "did you mean port"]),
        ('[server]\nport = "x"', ["server.port", "a whole number", 'the text "x"']),
        ("[agents.a]\ninstances = 2", ["agents.a:", "create", "command", "got none"]),
        ("server = [", ["TOML"]),
    ],
)
def test_a_mistake_in_the_settings_names_the_key(
    alone: Any, project: Path, toml: str, parts: list[str]
) -> None:
    (project / "stratum.toml").write_text(toml)
    must_refuse(alone("inbox", "research"), 2, "stratum.toml: ", *parts)


def test_settings_that_are_not_there_are_named(alone: Any) -> None:
    must_refuse(alone("--config", "other.toml", "tail"), 2, "other.toml", "No such file")


def test_events_that_cannot_be_read_are_shown_with_the_reason(process: Any, log: Any) -> None:
    log.store("inbox.a.b.task", b"\xff\xfe")
    log.store("inbox.a.b.task", b"{nonsense")
    log.store("inbox.a.b.task", b'{"specversion": "1.0", "id": 7, "source": "/x", "type": "task"}')
    log.store("inbox.a.b.task", b'{"fine": true}')
    result = process("tail", "--from", "start", "--count", "4")
    assert (result.returncode, result.stderr) == (0, "")
    first, second, third, fourth = result.stdout.splitlines()
    assert "unreadable (utf8)" in first
    assert "unreadable (json)" in second
    assert "unreadable (shape)" in third
    assert fourth.endswith('inbox.a.b.task  {"fine":true}')
    assert "unreadable (json)" in process("inbox", "a").stdout


def test_a_query_is_refused_in_one_sentence(alone: Any) -> None:
    must_refuse(alone("sql", "select 1"), 4, "no server runs on")
    must_refuse(alone("sql", " "), 2, "the query is empty")


def test_output_that_cannot_be_written_is_said(project: Path) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "stratum_cli", "--version"],
            stdout=full, stderr=subprocess.PIPE, timeout=30, check=False,
        )  # fmt: skip
    assert (done.returncode, b"Traceback" in done.stderr) == (5, False)
    assert b"stdout cannot be written: No space left" in done.stderr
