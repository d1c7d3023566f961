"""What is printed, and how, on a terminal and elsewhere."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from stratum_cli import failure
from stratum_cli.failure import EXIT_CODES, exit_code, sentence
from stratum_cli.output import Output, cell

Captured = pytest.CaptureFixture[bytes]


def on_a_terminal(*arguments: str, columns: int = 80) -> str:
    """What a process prints on a terminal of this width."""
    master, slave = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": str(columns)}
    process = subprocess.Popen(
        [sys.executable, "-m", "stratum_cli", *arguments],
        stdout=slave, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL, env=environment,
    )  # fmt: skip
    os.close(slave)
    printed = b""
    while True:
        try:
            more = os.read(master, 65_536)
        except OSError:  # how the end of a terminal reads
            break
        if not more:
            break
        printed += more
    os.close(master)
    assert process.wait() == 0
    return printed.decode()


def test_a_listing_is_a_table_on_a_terminal_that_fits_it(bus_url: str) -> None:
    printed = on_a_terminal("--nats-url", bus_url, "stream", "list")
    assert "─" in printed
    assert "\x1b[" in printed
    assert "as declared" in printed


def test_a_long_event_is_cut_to_the_terminal(bus_url: str, log: Any) -> None:
    log.send("editor", "note", "x" * 500)
    arguments = ("--nats-url", bus_url, "tail", "--from", "start", "--count", "1")
    (line,) = on_a_terminal(*arguments, columns=100).splitlines()
    assert (len(line), line[-1]) == (100, "…")


def test_elsewhere_a_listing_is_columns_in_line(capfdbinary: Captured) -> None:
    rows = [{"name": "a", "size": 1}, {"name": "longer", "size": 22}]
    Output().table(rows, {"name": "name", "size": "size"})
    out, _ = capfdbinary.readouterr()
    assert out.decode().splitlines() == ["name    size", "a       1", "longer  22"]


def test_json_is_one_object_a_line_with_all_that_is_known(capfdbinary: Captured) -> None:
    rows: list[dict[str, Any]] = [
        {"name": "a\nb", "raw": msgspec.Raw(b'{\n"x": 1.50}')},
        {"name": "\x9b\x00"},
    ]
    Output(json=True).table(rows, {"name": "name"})
    out, _ = capfdbinary.readouterr()
    assert out.decode().splitlines() == [
        '{"name":"a\\nb","raw":{"x":1.50}}',
        '{"name":"\\u009b\\u0000"}',
    ]


def test_an_empty_listing_says_so_beside_the_data(capfdbinary: Captured) -> None:
    Output().table([], {"name": "name"}, nothing="nobody is here")
    assert capfdbinary.readouterr() == (b"", b"nobody is here\n")
    Output(json=True).table([], {"name": "name"}, nothing="nobody is here")
    assert capfdbinary.readouterr() == (b"", b"")


def test_a_record_is_a_field_a_line(capfdbinary: Captured) -> None:
    Output().record({"agent": "a", "in_hand": 0, "filters": ["x", "y"], "create": None})
    out, _ = capfdbinary.readouterr()
    assert out.decode().splitlines() == [
        "agent    a",
        "in hand  0",
        "filters  x",
        "         y",
        "create",
    ]


def test_values_are_written_as_a_person_would() -> None:
    assert [cell(value) for value in (None, True, 0.5, ["a", "b"], {"a": 1}, "\x1b[2J")] == [
        "", "yes", "0.5", "a, b", '{"a":1}', "\\x1b[2J",
    ]  # fmt: skip


def test_every_error_has_an_exit_code_of_the_table_and_one_line() -> None:
    from stratum_bus import errors

    examples = [
        errors.InvalidName("agent name", "a.b", "it has a dot"),
        errors.NotFound("stream", "X"),
        errors.ConnectionLost("gone"),
        errors.PermissionDenied("inbox.a"),
        errors.NoAnswer("late"),
        errors.QueryError("timeout", "late"),
        errors.StratumError("two\nlines"),
        failure.NoServer("/data"),
        OSError(28, "No space left on device", "/data"),
        KeyError("a mistake of ours"),
    ]
    codes = [exit_code(error) for error in examples]
    assert codes == [2, 3, 4, 5, 6, 6, 1, 4, 1, 1]
    assert set(codes) <= set(EXIT_CODES)
    assert all(len(sentence(error).splitlines()) == 1 for error in examples)
    assert sentence(KeyboardInterrupt()) == ""


def test_a_mistake_of_our_own_is_one_line_unless_asked_for(alone: Any, project: Path) -> None:
    (project / "stratum.toml").write_text('[agents.a]\ncreate = "broken:create"\n')
    (project / "broken.py").write_text("def create():\n    raise KeyError('here')\n")
    arguments = ("--nats-url", "nats://127.0.0.1:1", "agent", "run", "a")
    told = alone(*arguments)
    assert (told.returncode, "--debug" in told.stderr) == (1, True)
    assert "Traceback" not in told.stderr
    assert "Traceback" in alone("--debug", *arguments).stderr
