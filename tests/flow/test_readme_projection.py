"""The README's table in ten lines: written, filled and queried as it says."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from stratum_bus.server import free_port
from stratum_cli.main import main

README = Path(__file__).parents[2] / "README.md"
SECTION = README.read_text(encoding="utf-8").partition("## A table in ten lines")[2]
BLOCKS = re.findall(r"^```\w+\n(.*?)^```", SECTION.partition("\n## ")[0], re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder; what was started in it is stopped."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    main(["down"])


def start() -> int:
    """`stratum up` in a process of its own: it leaves one behind."""
    up = [sys.executable, "-m", "stratum_cli", "up", "--detach"]
    return subprocess.run(up, check=False).returncode


@pytest.mark.timeout(120)
def test_the_table_is_filled_and_queried(
    folder: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    view, settings, commands, python = BLOCKS
    assert len(view[view.index("GREETINGS") :].splitlines()) <= 10
    (folder / "views").mkdir()
    (folder / "views" / "greetings.py").write_text(view)
    (folder / "stratum.toml").write_text(f"{settings}[server]\nport = {free_port()}\n")

    def run(line: str) -> list[list[str]]:
        """The words of what a command prints."""
        words = shlex.split(line.removeprefix("$ "), comments=True)
        assert words[0] == "stratum"
        capfdbinary.readouterr()
        code = start() if words[1] == "up" else main(words[1:])
        out, err = capfdbinary.readouterr()
        assert code == 0, f"{line}: {err.decode()}"
        return [line.split() for line in out.decode().splitlines()]

    up, send, sql, *others = commands.splitlines()
    run(up)
    run(send)
    while not (answer := run(sql)):  # the projector is as fast as it is
        time.sleep(0.1)
    assert answer[1:] == [["door", "1"]]
    assert ["greetings"] in [row[:1] for row in run(others[0])]
    assert ["greetings", "greetings", "1", "yes"] in run(others[1])
    module: dict[str, Any] = {}
    code = compile(python, str(README), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)

    async def run_page() -> None:
        await eval(code, module)

    anyio.run(run_page)
    [row] = module["table"].to_pylist()
    assert (row["sender"], row["receiver"], row["text"]) == ("cli", "door", "Hello, Ada!")
