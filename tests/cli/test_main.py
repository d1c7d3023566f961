"""`stratum` itself: help, version, completion, and options on either side of a command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from stratum_cli.failure import EXIT_CODES
from stratum_cli.main import main


def test_help_lists_the_commands_and_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert "replay" in out
    assert all(f"• {code} " in out for code in EXIT_CODES)


def test_a_noun_without_a_verb_shows_its_help_and_is_a_usage_error(alone: Any) -> None:
    result = alone("stream")
    assert (result.returncode, result.stderr) == (2, "")
    assert "provision" in result.stdout


def test_prints_its_version(alone: Any) -> None:
    assert alone("--version").stdout == f"stratum {version('stratum-bus')}\n"


def test_what_starts_fast_imports_neither_tables_nor_agents() -> None:
    heavy = ("duckdb", "pyarrow", "stratum_agents", "stratum_projections", "rich")
    program = f"import sys, stratum_cli.main; print([n for n in {heavy} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert done.stdout.strip() == b"[]"


def test_shared_options_stand_before_or_behind_the_command(
    bus_url: str, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    before = ["--nats-url", bus_url, "--json", "stream", "list"]
    behind = ["stream", "list", "--json", "--nats-url", bus_url]
    both = ["--nats-url", "nats://127.0.0.1:1", "stream", "list", "--json", "--nats-url", bus_url]
    for arguments in (before, behind, both):
        assert main(arguments) == 0
        out, _ = capfdbinary.readouterr()
        assert json.loads(out.splitlines()[0])["stream"] == "LOG"


def test_the_server_is_found_by_the_environment_and_by_the_settings(
    bus_url: str, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["stream", "list"]) == 4
    (project / "stratum.toml").write_text(f'[server]\nurl = "{bus_url}"\n')
    assert main(["stream", "list"]) == 0
    monkeypatch.setenv("STRATUM_NATS_URL", "nats://127.0.0.1:1")
    assert main(["stream", "list"]) == 4


def test_the_server_is_found_by_its_data_folder(
    nats_server: Any, bus_url: str, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert main(["--data-dir", str(nats_server.data_dir), "stream", "list"]) == 0
    assert b"as declared" in capfdbinary.readouterr().out


def test_the_shell_completes_commands_agents_and_streams(project: Path) -> None:
    (project / "stratum.toml").write_text('[agents.research]\ncreate = "a:b"\n')
    for words, position, expected in (
        ("stratum inb", 1, "inbox"),
        ("stratum inbox ", 2, "research"),
        ("stratum tail H", 2, "HEALTH"),
    ):
        environment = {
            **os.environ,
            "_STRATUM_COMPLETE": "complete_bash",
            "COMP_WORDS": words,
            "COMP_CWORD": str(position),
        }
        done = subprocess.run(
            [sys.executable, "-m", "stratum_cli"], env=environment, capture_output=True, check=False
        )
        assert done.stdout.decode().split() == [expected]
