"""Every command explains itself, and docs/cli.md says the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stratum_cli.failure import EXIT_CODES
from stratum_cli.reference import commands, reference

PAGE = Path(__file__).parents[1] / "docs" / "cli.md"
COMMANDS = dict(commands())


def test_the_page_is_what_the_commands_say() -> None:
    assert PAGE.read_text(encoding="utf-8") == reference(), "docs/cli.md is stale: run `make docs`"


@pytest.mark.parametrize("path", COMMANDS)
def test_every_command_and_option_has_a_help(path: str) -> None:
    command: Any = COMMANDS[path]
    assert command.help and command.help[0].isupper()
    first = command.help.strip().splitlines()[0]
    assert first.endswith("."), f"{path}: {first}"
    for parameter in command.params:
        assert parameter.help, f"{path}: {parameter.name} has no help"
        assert parameter.help[0].isupper() or not parameter.help[0].isalpha() or path
        assert f"## {path}\n" in PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", COMMANDS)
def test_every_command_takes_the_shared_options(path: str) -> None:
    names = {option for parameter in COMMANDS[path].params for option in parameter.opts}
    assert {"--json", "--nats-url", "--data-dir", "--config", "--debug"} <= names


def test_what_changes_state_has_a_dry_run() -> None:
    changing = ("send", "publish", "replay", "stream provision", "dead redrive", "dead drop")
    runs = ("run cancel", "run pause", "run resume", "run fork")
    for path in (*changing, *runs, "research read"):
        names = {option for each in COMMANDS[f"stratum {path}"].params for option in each.opts}
        assert "--dry-run" in names, path


def test_every_exit_code_is_documented() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for code, meaning in EXIT_CODES.items():
        assert f"| {code} | {meaning} |" in page
