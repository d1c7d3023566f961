"""What docs/healing.md says of beats, commands and the supervisor is what there is."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import msgspec
from msgspec.structs import fields

from stratum_agents.supervision.escalation import Escalation
from stratum_agents.supervision.metrics import CAUSES, Metrics
from stratum_bus import control, heartbeat
from stratum_bus.heartbeat import Beat
from stratum_bus.supervision import SupervisorConfig
from stratum_bus.thresholds import HealthConfig
from stratum_projections.health.incident import Incident
from stratum_projections.health.judges import JUDGES

TEXT = (Path(__file__).parents[1] / "docs" / "healing.md").read_text(encoding="utf-8")
NAMED = set(re.findall(r"`([^`\s]+)`", TEXT))
SETTINGS = re.findall(r"^```toml\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


def test_every_setting_of_the_supervisor_is_there_with_its_default() -> None:
    shown = next(tomllib.loads(each) for each in SETTINGS if "[supervisor]" in each)["supervisor"]
    defaults = msgspec.to_builtins(SupervisorConfig())
    assert shown.pop("http_port") and defaults.pop("http_port") is None
    assert shown == defaults


def test_every_threshold_is_there_with_its_default() -> None:
    shown = next(tomllib.loads(each) for each in SETTINGS if "[health]" in each)["health"]
    msgspec.convert(shown, HealthConfig)
    assert shown.pop("agents")
    defaults = msgspec.to_builtins(HealthConfig())
    del defaults["agents"]
    assert shown == defaults


def test_every_judgement_is_there() -> None:
    judged = TEXT[TEXT.index("## Judgements") : TEXT.index("```toml", TEXT.index("## Judgements"))]
    rows = re.findall(r"^\| `(\w+)` \|", judged, re.MULTILINE)
    assert sorted(rows) == sorted(JUDGES)
    assert {field.name for field in fields(Incident)} <= NAMED


def test_every_field_and_state_of_a_beat_is_there() -> None:
    assert {field.name for field in fields(Beat)} <= NAMED
    for word in (heartbeat.STARTING, heartbeat.IDLE, heartbeat.WORKING, heartbeat.BLOCKED,
                 heartbeat.STOPPING, heartbeat.TYPE):  # fmt: skip
        assert word in NAMED


def test_every_command_and_its_data_are_there() -> None:
    assert set(control.COMMANDS) <= NAMED
    assert {field.name for field in fields(control.Command)} <= NAMED
    for event in (control.Outcome, Escalation):
        assert {field.name for field in fields(event)} <= NAMED
    said = {"instance", "pid", "host", "slot", "warm", "command"}
    assert said == {field.name for field in fields(control.Started)} - {"supervisor"}


def test_every_metric_is_there_and_no_other() -> None:
    ours = ("stratum_supervisor_", "stratum_agent_", "stratum_health_")
    shown = {name for name in NAMED if name.startswith(ours)}
    there = {
        metric.name + ("_total" if metric.type == "counter" else "")
        for metric in Metrics().registry.collect()
    }
    assert shown == there
    assert set(CAUSES) <= NAMED
