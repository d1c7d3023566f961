"""`stratum tail`, as the process that a user runs and stops."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import pytest

from stratum_bus.testing import fresh, server

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(bus_url: str) -> Iterator[Start]:
    """Start `stratum …` with its output in pipes; what still runs is killed behind the test."""
    started: list[subprocess.Popen[str]] = []

    def run(*arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "stratum_cli", "--nats-url", bus_url, *arguments]
        started.append(
            subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
            )
        )
        return started[-1]

    yield run
    for each in started:
        each.kill()
        each.communicate()


def read_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline()


def test_follows_what_is_stored_and_ends_clean_with_ctrl_c(start: Start, log: Any) -> None:
    log.send("research", "question", "before")
    process = start("tail", "--from", "start")
    assert "before" in read_line(process)
    log.send("research", "question", "later")
    assert "later" in read_line(process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=10)
    assert (process.returncode, out, err) == (130, "", "")


def test_ends_in_silence_when_its_reader_goes_away(start: Start, log: Any) -> None:
    log.send("research", "question", 1)
    process = start("tail", "--from", "start")
    assert read_line(process)
    assert process.stdout and process.stderr
    process.stdout.close()  # nothing more is stored: no write can tell
    assert process.wait(timeout=10) == 141
    assert process.stderr.read() == ""


def test_a_pipe_that_is_closed_while_much_is_written_is_silent(start: Start, log: Any) -> None:
    log.send("research", "question", *range(2000))
    for command in (["tail", "--from", "start"], ["replay", "--from", "start"]):
        process = start(*command)
        assert read_line(process)
        assert process.stdout and process.stderr
        process.stdout.close()
        assert process.wait(timeout=10) == 141
        assert process.stderr.read() == ""


def test_begins_where_it_is_told(stratum: Any, log: Any) -> None:
    log.send("research", "question", "one", "two", "three")
    by_sequence = stratum("tail", "--from", "2", "--count", "1")
    by_time = stratum("tail", "--from", "1h", "--count", "1")
    by_date = stratum("tail", "--from", "2020-01-01", "--count", "1")
    assert '"two"' in by_sequence.stdout
    assert '"one"' in by_time.stdout
    assert '"one"' in by_date.stdout


def test_shows_only_what_the_filters_take(stratum: Any, log: Any) -> None:
    log.send("research", "question", 1)
    log.send("editor", "question", 2)
    log.send("research", "answer", 3)
    filters = ("--filter", "inbox.editor.>", "--filter", "inbox.research.*.answer")
    result = stratum("tail", "--from", "start", "--count", "2", "--json", *filters)
    assert [json.loads(line)["sequence"] for line in result.stdout.splitlines()] == [2, 3]


def test_filters_that_overlap_are_refused_before_the_server_is_asked(alone: Any) -> None:
    result = alone("tail", "--filter", "inbox.>", "--filter", "inbox.*.cli.>")
    assert result.returncode == 2
    assert "overlap" in result.stderr


def test_json_keeps_an_event_on_one_line_whoever_wrote_it(stratum: Any, log: Any) -> None:
    log.store("inbox.a.b.task", b'{\n  "q":\n  "one\\ntwo"\n}')
    log.store("inbox.a.b.task", b"\xff")
    result = stratum("tail", "--from", "start", "--count", "2", "--json")
    readable, unreadable = map(json.loads, result.stdout.splitlines())
    assert readable["event"]["data"] == {"q": "one\ntwo"}
    assert (readable["stream"], readable["subject"]) == ("LOG", "inbox.a.b.task")
    assert (unreadable["unreadable"]["reason"], unreadable["payload_base64"]) == ("utf8", "/w==")


def test_control_characters_of_the_log_do_not_reach_the_terminal(stratum: Any, log: Any) -> None:
    log.store("inbox.a.b.task", '"\x9b2J"'.encode())
    log.store("inbox.a.b.\x1b[31mtask", b"1")
    for options in ((), ("--json",)):
        result = stratum("tail", "--from", "start", "--count", "2", *options)
        assert not {"\x1b", "\x9b"} & set(result.stdout)
        assert "9b2J" in result.stdout


def test_waits_for_a_server_that_was_killed_and_misses_nothing(log: Any) -> None:
    with server() as own:
        anyio.run(fresh, own.url)
        log.url = own.url
        log.send("research", "question", "before")
        command = [sys.executable, "-m", "stratum_cli", "--nats-url", own.url, "tail"]
        process = subprocess.Popen(
            [*command, "--from", "start", "--count", "2"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stderr
        assert "before" in read_line(process)
        own.kill()
        assert process.stderr.readline() == "the server went away; waiting for it\n"
        own.start_blocking()
        log.send("research", "question", "after")
        out, err = process.communicate(timeout=20)
        assert (process.returncode, '"after"' in out, err) == (0, True, "the server is back\n")
