"""docs/gateway.md is true: its commands answer what it says, its settings and metrics are those."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import anyio
import pytest

from stratum_bus.gateway import GatewayConfig, TokenConfig
from stratum_bus.testing import fresh, server
from stratum_cli.gateway import access, app, serve, stream
from stratum_cli.gateway.metrics import Metrics
from tests.gateway.process import Gateway

TEXT = (Path(__file__).parents[2] / "docs" / "gateway.md").read_text(encoding="utf-8")
SECRET = "the-secret-of-the-shop"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


def answers(said: str, expected: str) -> bool:
    """`…` stands for anything."""
    pattern = ".*?".join(re.escape(part) for part in expected.split("…"))
    return re.fullmatch(pattern, said, re.DOTALL) is not None


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not there: install it")
def test_the_commands_of_the_page_answer_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [settings] = blocks("toml")
    monkeypatch.setenv("SHOP_TOKEN", SECRET)
    with server() as nats:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(anyio.run, fresh, nats.url).result()
        ours = Gateway(tmp_path, nats.url, settings.partition("[gateway]\n")[2])
        try:
            examples = blocks("console")
            assert len(examples) == 8
            for example in examples:
                command, _, expected = example.removeprefix("$ ").partition("\n")
                said = run(command, ours.port, lines=expected.rstrip("\n").count("\n") + 1)
                assert answers(said.strip(), expected.strip()), (command, said)
        finally:
            ours.kill()


def run(command: str, port: int, lines: int) -> str:
    """What it prints, of that which has no end so many lines."""
    given = {"GATEWAY": f"http://127.0.0.1:{port}", "AUTH": f"Authorization: Bearer {SECRET}"}
    process = subprocess.Popen(
        ["sh", "-c", f"exec {command}"], env={**os.environ, **given},
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    with process.stdout as output:
        if " -sN " not in command:
            said = output.read()
            assert process.wait() == 0
            return said
        said = "".join(output.readline() for _ in range(lines))
    process.terminate()
    process.wait()
    return said


def test_every_setting_and_metric_is_on_the_page() -> None:
    for settings in (GatewayConfig, TokenConfig):
        for name in settings.__struct_fields__:
            if name != "tokens":
                assert f"`{name}`" in TEXT, name
    page = Metrics().page().decode()
    for name, kind in re.findall(r"# TYPE (\w+) (\w+)", page):
        if not name.endswith("_created"):
            assert f"`{name}`" in TEXT, (name, kind)


def test_the_numbers_of_the_page_are_those_of_the_code() -> None:
    defaults = GatewayConfig()
    assert f"| {defaults.max_bytes} |" in TEXT
    assert f"| {defaults.remember} |" in TEXT and f"{defaults.remember:,} events" in TEXT
    assert f"| {defaults.max_streams} |" in TEXT
    assert f"`{defaults.host}`, {defaults.port} |" in TEXT
    assert f"at most {stream.WINDOW_MESSAGES} messages" in TEXT
    assert f"for {stream.STALL_SECONDS:g} s" in TEXT
    assert f"every {stream.HEARTBEAT_SECONDS:g} seconds" in TEXT
    assert f"within {app.BODY_SECONDS:g} s" in TEXT
    assert f"({serve.GRACE_SECONDS} s at most)" in TEXT
    assert f"up to {access.HELD_BYTES >> 20} MiB" in TEXT
