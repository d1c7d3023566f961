"""`stratum gateway` and its settings: what it needs, what it refuses, and that `up` runs it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from stratum_bus.config import load
from stratum_bus.errors import ConfigError
from stratum_bus.server import free_port
from stratum_bus.subject import covers, matches
from stratum_cli.main import main
from tests.gateway.process import ANSWER_SECONDS, Client, secret, token

TOKEN = token("shop", 'may = ["topic.>"]')


def run(
    folder: Path, *arguments: str, environ: Mapping[str, str] | None = None, code: str = ""
) -> tuple[int, str]:
    """A command line in a process of its own; its exit code and what it said."""
    clean = {name: value for name, value in os.environ.items() if "STRATUM_" not in name}
    command = ["-c", code] if code else ["-m", "stratum_cli"]
    done = subprocess.run(
        [sys.executable, *command, *arguments], cwd=folder, env={**clean, **(environ or {})},
        capture_output=True, text=True, timeout=ANSWER_SECONDS, check=False,
    )  # fmt: skip
    return done.returncode, done.stderr.strip()


def test_without_the_extra_it_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "stratum.toml").write_text(TOKEN)
    for missing in ("starlette", "uvicorn"):
        code = (
            f"import sys; sys.modules['{missing}'] = None\n"
            "from stratum_cli.main import main; sys.exit(main())"
        )
        assert run(tmp_path, "gateway", code=code) == (
            1, f"stratum: the gateway needs {missing}: pip install 'stratum-bus[gateway]'"
        )  # fmt: skip


def test_nobody_needs_the_extra_for_anything_else() -> None:
    program = "import sys, stratum_cli.main; print([n for n in ('starlette', 'uvicorn') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert done.stdout.strip() == b"[]"


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
    code, said = run(tmp_path, "--nats-url", "nats://127.0.0.1:1", "gateway", "--port", "0")
    assert (code, "cannot connect" in said) == (4, True), said


def test_a_port_that_another_has_is_named(tmp_path: Path, shared: object) -> None:
    port = getattr(shared, "port")  # noqa: B009 - any gateway will do
    (tmp_path / "stratum.toml").write_text(TOKEN)
    code, said = run(tmp_path, "--nats-url", "nats://127.0.0.1:1", "gateway", "--port", str(port))
    assert (code, f"127.0.0.1:{port} cannot be served (Address already in use)" in said) == (
        1,
        True,
    )


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
        clean = {name: value for name, value in os.environ.items() if "STRATUM_" not in name}
        command = [sys.executable, "-m", "stratum_cli", "up"]
        up = subprocess.Popen(command, cwd=tmp_path, env=clean, stdout=log, stderr=log)
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
