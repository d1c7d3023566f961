"""What stratum.toml may say, and what is answered to what it may not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from msgspec import Struct

from stratum_bus.config import Config, duration_ns, load, settings, sync_interval
from stratum_bus.errors import ConfigError

COMPLETE = """
[server]
port = 4333
data_dir = "state"
sync = "1s"

[projector]
path = "tables/projection.duckdb"
query_seconds = 3

[agents.research]
create = "stratum_agents.research:create"
instances = 2

[agents.research.settings]
interests = ["flaky tests"]
threshold = 0.3
"""

SERVER_KEYS = "one of url, port, data_dir, sync, max_store_bytes"
SECTIONS = "one of server, projector, lake, health, supervisor, gateway, agents"
SYNC = "always, or an interval such as 1s or 500ms"
CREATE = "module:callable, as in my_agents.research:create"
AGENT_KEYS = (
    "one of create, command, instances, concurrency, max_attempts, ack_wait_seconds, "
    "grace_seconds, settings"
)
EITHER = "either create (a callable in Python) or command (a command line)"
OWN = "another name: this one is Stratum's own"
A_NAME = "a name (it has a space; only A-Z a-z 0-9 _ - may be used)"
NAME = "an agent name (it has %s; only A-Z a-z 0-9 _ - may be used)"
RESEARCH_KEYS = "one of interests, threshold, feeds, labels, proxy"


class Feed(Struct):
    url: str
    pages: int = 1


class Research(Struct, frozen=True):
    interests: list[str]
    threshold: float = 0.5
    feeds: list[Feed] = []
    labels: dict[str, Feed] = {}
    proxy: Feed | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise ValueError("threshold must be between 0 and 1")


def read(folder: Path, text: str, environ: dict[str, str] | None = None) -> Config:
    file = folder / "stratum.toml"
    file.write_text(text, encoding="utf-8")
    return load(file, environ or {})


def test_without_a_file_the_defaults_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = load(environ={})
    assert config.server.url is None
    assert config.server.port is None
    assert config.server.sync == "always"
    assert config.server.data_dir == str(tmp_path / ".stratum")
    assert config.projector.path == str(tmp_path / ".stratum" / "projection.duckdb")
    assert (config.projector.batch_events, config.projector.batch_milliseconds) == (5000, 100)
    assert (config.projector.query_seconds, config.projector.query_rows) == (10, 1_000_000)
    assert config.agents == {}
    assert (config.health.dead.seconds, config.health.poison.deaths) == (1.5, 3)


def test_the_file_of_the_working_folder_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "stratum.toml").write_text("[server]\nport = 4444\n")
    monkeypatch.chdir(tmp_path)
    assert load(environ={}).server.port == 4444


def test_relative_paths_are_taken_from_the_files_folder(tmp_path: Path) -> None:
    config = read(tmp_path, COMPLETE)
    assert config.server.data_dir == str(tmp_path / "state")
    assert config.projector.path == str(tmp_path / "tables" / "projection.duckdb")
    assert config.folder == str(tmp_path)
    assert config.agents["research"].instances == 2
    assert config.agents["research"].ack_wait_seconds == 30


def test_thresholds_of_health_hold_for_all_agents_or_for_one(tmp_path: Path) -> None:
    text = "[health.stuck]\nseconds = 60\n[health.agents.slow.stuck]\nseconds = 1800"
    health = read(tmp_path, text).health
    assert (health.of("quick").stuck.seconds, health.of("slow").stuck.seconds) == (60, 1800)
    assert health.of("slow").blocked == health.blocked


def test_thresholds_that_contradict_each_other_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"health.looping.*9 repeats do not fit among 3 calls"):
        read(tmp_path, "[health.looping]\nrepeats = 9\namong = 3")
    with pytest.raises(ConfigError, match=r"health.full.*warning_ratio"):
        read(tmp_path, "[health.full]\nwarning_ratio = 0.99")
    with pytest.raises(ConfigError, match=r'health.agents."a b": expected an agent name'):
        read(tmp_path, '[health.agents."a b"]')


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    environ = {"STRATUM_NATS_URL": "nats://bus:4222", "STRATUM_DATA_DIR": str(elsewhere)}
    config = read(tmp_path, '[server]\nurl = "nats://other"', environ)
    assert config.server.url == "nats://bus:4222"
    assert config.server.data_dir == str(elsewhere)
    assert config.projector.path == str(elsewhere / "projection.duckdb")


@pytest.mark.parametrize(
    ("text", "key", "expected", "got"),
    [
        ("[server]\nprot = 1", "server.prot", SERVER_KEYS, "an unknown key; did you mean port?"),
        ("[sevrer]\n", "sevrer", SECTIONS, "an unknown key; did you mean server?"),
        ("colour = 3", "colour", SECTIONS, "an unknown key"),
        ("server = 3", "server", "a table", "3"),
        ('[server]\nport = "4222"', "server.port", "a whole number", 'the text "4222"'),
        ("[server]\nport = true", "server.port", "a whole number", "true"),
        ("[server]\nport = 70000", "server.port", "a whole number <= 65535", "70000"),
        ("[server]\ndata_dir = []", "server.data_dir", "text", "a list"),
        ("[projector]\nquery_seconds = 0", "projector.query_seconds", "a number > 0.0", "0"),
        ('[server]\nsync = "soon"', "server.sync", SYNC, 'the text "soon"'),
        ('[server]\nsync = "0s"', "server.sync", SYNC, 'the text "0s"'),
        ("[agents.a]\n", "agents.a", EITHER, "none"),
        ('[agents.a]\ncreate = "b:c"\ncommand = ["d"]', "agents.a", EITHER, "both"),
        ('[agents.health]\ncreate = "b:c"', "agents.health", OWN, 'the text "health"'),
        ("[supervisor]\nrestarts = 0", "supervisor.restarts", "a whole number >= 1", "0"),
        ('[supervisor]\nhuman = "a b"', "supervisor.human", A_NAME, 'the text "a b"'),
        ('[agents.a]\ncreate = "b"', "agents.a.create", CREATE, 'the text "b"'),
        (
            '[agents.a]\ncreate = "b:c"\nconcurency = 3',
            "agents.a.concurency",
            AGENT_KEYS,
            "an unknown key; did you mean concurrency?",
        ),
        (
            '[agents.a]\ncreate = "b:c"\nconcurrency = "many"',
            "agents.a.concurrency",
            "a whole number",
            'the text "many"',
        ),
        ('[agents."a b"]\ncreate = "b:c"', 'agents."a b"', NAME % "a space", 'the text "a b"'),
        ('[agents."a.b"]\ncreate = "b:c"', 'agents."a.b"', NAME % "a dot", 'the text "a.b"'),
        ("[agents]\nresearch = 1", "agents.research", "a table", "1"),
    ],
)
def test_a_mistake_names_key_expected_and_got(
    tmp_path: Path, text: str, key: str, expected: str, got: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)
    assert str(caught.value) == f"stratum.toml: {key}: expected {expected}, got {got}"


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("[server\nport = 1", "line 1, column 8"),
        ("[server]\nport = \n", "line 2, column 8"),
        ('x = "', "end of document"),
    ],
)
def test_what_is_not_toml_is_named_by_its_line(tmp_path: Path, text: str, place: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)
    assert str(caught.value).startswith(f"stratum.toml: {place}: expected TOML, got a mistake: ")


def test_a_file_that_is_not_there_or_not_text_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"my\.toml: the file: expected to be readable, got No"):
        load(tmp_path / "my.toml", {})
    with pytest.raises(ConfigError, match="expected to be readable, got Is a directory"):
        load(tmp_path, {})
    (tmp_path / "my.toml").write_bytes(b"x = '\xff'")
    with pytest.raises(ConfigError, match=r"my\.toml: the file: expected UTF-8, got"):
        load(tmp_path / "my.toml", {})


def test_settings_become_the_agents_own_struct(tmp_path: Path) -> None:
    config = read(tmp_path, COMPLETE)
    assert settings(config, "agents.research.settings", Research) == Research(["flaky tests"], 0.3)


@pytest.mark.parametrize(
    ("given", "key", "expected", "got"),
    [
        ({}, ".interests", "a list", "nothing"),
        ({"interests": "x"}, ".interests", "a list", 'the text "x"'),
        ({"interests": ["x", 3]}, ".interests[1]", "text", "3"),
        ({"treshold": 1}, ".treshold", RESEARCH_KEYS, "an unknown key; did you mean threshold?"),
        (
            {"feeds": [{"url": "x", "page": 2}]},
            ".feeds[0].page",
            "one of url, pages",
            "an unknown key; did you mean pages?",
        ),
        ({"labels": {"a b": {"url": 1}}}, '.labels."a b".url', "text", "1"),
        ({"proxy": {"url": "x", "pages": []}}, ".proxy.pages", "a whole number", "a list"),
        ({"proxy": 1}, ".proxy", "a table", "1"),
        (
            {"interests": [], "threshold": 3},
            "",
            "values that fit together",
            "threshold must be between 0 and 1",
        ),
    ],
)
def test_settings_are_checked_as_strictly_as_the_file(
    tmp_path: Path, given: dict[str, Any], key: str, expected: str, got: str
) -> None:
    config = read(tmp_path, COMPLETE)
    config.agents["research"].settings.clear()
    config.agents["research"].settings.update(given)
    with pytest.raises(ConfigError) as caught:
        settings(config, "agents.research.settings", Research)
    sentence = f"agents.research.settings{key}: expected {expected}, got {got}"
    assert str(caught.value) == f"stratum.toml: {sentence}"


def test_settings_of_an_unknown_agent_are_refused(tmp_path: Path) -> None:
    config = read(tmp_path, COMPLETE)
    sentence = r"agents\.editor: expected an agent of this file, got no such table \(research\)"
    with pytest.raises(ConfigError, match=sentence):
        settings(config, "agents.editor.settings", Research)


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("500ms", 500_000_000),
        ("1.5s", 1_500_000_000),
        ("1h30m", 5_400_000_000_000),
        ("30d", 30 * 86_400_000_000_000),
    ],
)
def test_durations_are_read(text: str, nanoseconds: int) -> None:
    assert duration_ns(text) == nanoseconds


@pytest.mark.parametrize("text", ["", "5", "d", "-1s", "1 s", "1s2", "1w"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration such as 500ms, 90s, 1h30m or 30d"):
        duration_ns(text)


def test_sync_is_always_or_an_interval() -> None:
    assert sync_interval("always") == "always"
    assert sync_interval("2m") == "120000000000ns"
