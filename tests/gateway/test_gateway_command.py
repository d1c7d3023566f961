"""`stratum gateway` and its settings: what it needs, what it refuses, and that `up` runs it."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stratum_bus.config import load
from stratum_bus.errors import ConfigError
from stratum_bus.server import free_port
from stratum_bus.subject import covers, matches
from stratum_cli.main import main
from tests.gateway.process import ANSWER_SECONDS, Client, secret, token

TOKEN = token("shop", 'may = ["topic.>"]')


def test_only_the_gateway_needs_the_extra_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "stratum.toml").write_text(TOKEN)
    code = (
        "import sys; from stratum_cli.main import main\n"
        "print([name for name in ('starlette', 'uvicorn') if name in sys.modules])\n"
        "sys.modules['uvicorn'] = None; sys.exit(main(['gateway']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=clean(), check=False, capture_output=True
    )
    assert done.stdout.strip() == b"[]"
    said = b"stratum: the gateway needs uvicorn: pip install 'stratum-bus[gateway]'"
    assert (done.returncode, done.stderr.strip()) == (1, said)


def clean() -> dict[str, str]:
    """The environment, without anything of Stratum."""
    return {name: value for name, value in os.environ.items() if "STRATUM_" not in name}


def test_it_does_not_begin_where_nobody_could_use_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = tmp_path / "stratum.toml"
    from_environ = '[gateway.tokens.shop]\nsecret_env = "SHOP_SECRET"'
    twice = TOKEN + token("other", "").replace(secret("other"), secret("shop"))
    monkeypatch.chdir(tmp_path)
    for content, environ, code, expected in [
        ("", "", 2, "gateway.tokens: expected at least one token"),
        (from_environ, "", 2, "got no such variable"),
        (from_environ, "short", 2, "got a shorter one"),
        (twice, "", 2, "gateway.tokens.other: expected another secret"),
        (TOKEN, "", 4, "no server runs on"),
    ]:
        settings.write_text(content)
        monkeypatch.setenv("SHOP_SECRET", environ)
        if not environ:
            monkeypatch.delenv("SHOP_SECRET")
        assert main(["gateway", "--port", "0"]) == code
        assert expected in capfd.readouterr().err
    nobody = ("--nats-url", "nats://127.0.0.1:1")
    assert main([*nobody, "gateway", "--port", "0"]) == 4
    assert "cannot connect" in capfd.readouterr().err
    with socket.create_server(("127.0.0.1", 0)) as another:
        port = another.getsockname()[1]
        assert main([*nobody, "gateway", "--port", str(port)]) == 1
    said = f"127.0.0.1:{port} cannot be served (Address already in use)"
    assert said in capfd.readouterr().err


@pytest.mark.parametrize(
    ("settings", "key", "expected"),
    [
        ("[gateway]\nport = 70000", "gateway.port", "<= 65535"),
        ("[gateway]\nmax_bytes = 0", "gateway.max_bytes", ">= 1"),
        ("[gateway.tokens.shop]\nsecrets = 1", "gateway.tokens.shop.secrets", "one of secret"),
        ("[gateway.tokens.shop]", "gateway.tokens.shop", "either secret or secret_env"),
        ('[gateway.tokens.shop]\nsecret = "short"', "gateway.tokens.shop.secret", "16 or more"),
        (token("shop", 'agent = "a.b"'), "gateway.tokens.shop.agent", "an agent name"),
        (token("supervisor", ""), "gateway.tokens.supervisor", "another agent"),
        (token("shop", 'may = ["run.>"]'), "gateway.tokens.shop.may[0]", "inbox, topic"),
        (token("shop", 'may = ["topic.>.a"]'), "gateway.tokens.shop.may[0]", "a subject"),
        (token("shop", 'reads = ["blob.>"]'), "gateway.tokens.shop.reads[0]", "inbox, topic"),
        (token("shop", 'reads = ["topic.a.>", "topic.*.b"]'), "gateway.tokens.shop.reads", "none"),
        (token("shop", "per_second = 0"), "gateway.tokens.shop.per_second", "> 0"),
    ],
)
def test_a_mistake_in_the_settings_is_named(
    tmp_path: Path, settings: str, key: str, expected: str
) -> None:
    file = tmp_path / "stratum.toml"
    file.write_text(settings)
    with pytest.raises(ConfigError) as raised:
        load(file, {})
    assert raised.value.key == key
    assert expected in raised.value.expected


def test_a_secret_may_be_in_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "stratum.toml"
    file.write_text('[gateway.tokens.shop]\nsecret_env = "SHOP_SECRET"')
    for environ, expected in [({"SHOP_SECRET": "s" * 16}, "s" * 16), ({}, "")]:
        config = load(file, environ)
        assert config.gateway and config.gateway.tokens["shop"].secret == expected
    assert load(None, {}).gateway is None


def test_a_filter_covers_another_only_where_it_takes_all_that_it_takes() -> None:
    filters = [
        ">", "topic.>", "topic.*", "topic.a", "topic.*.>", "topic.a.>", "topic.*.b", "topic.a.b",
    ]  # fmt: skip
    subjects = [
        "topic.a", "topic.b", "topic.a.b", "topic.b.b", "topic.a.c", "topic.a.b.c", "x", "x.a",
    ]  # fmt: skip
    for wide in filters:
        for narrow in filters:
            taken = [each for each in subjects if matches(narrow, each)]
            assert covers(wide, narrow) == all(matches(wide, each) for each in taken)


def test_up_runs_it_and_starts_it_again(tmp_path: Path) -> None:
    port, nats_port = free_port(), free_port()
    (tmp_path / "stratum.toml").write_text(
        f"[server]\nport = {nats_port}\n[gateway]\nport = {port}\n{TOKEN}"
    )
    with (tmp_path / "log").open("wb") as log:
        command = [sys.executable, "-m", "stratum_cli", "up"]
        up = subprocess.Popen(command, cwd=tmp_path, env=clean(), stdout=log, stderr=log)
    try:
        event = {"specversion": "1.0", "id": "a", "source": "/tills/1", "type": "sale.made"}
        client = Client(port, secret("shop"))
        first = _post(client, event)
        client.close()
        found = re.search(r"gateway: started.*\(pid (\d+)\)", (tmp_path / "log").read_text())
        assert found, (tmp_path / "log").read_text()
        os.kill(int(found[1]), signal.SIGKILL)
        assert _post(client, event) == first
        client.close()
    finally:
        up.terminate()
        assert up.wait(ANSWER_SECONDS) == 0
    with pytest.raises(OSError):
        client.ask("GET", "/healthz")


def _post(client: Client, event: dict[str, str]) -> list[int]:
    deadline = time.monotonic() + ANSWER_SECONDS
    while True:
        try:
            if (answer := client.post("/topic", event)).status == 202:
                return answer.sequences
        except OSError:
            pass
        assert time.monotonic() < deadline
        time.sleep(0.05)
