"""`stratum doctor`: what is wrong, one line each, with the mend."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stratum_bus.bus import Bus
from stratum_bus.data_dir import DataDir, RunningServer
from stratum_bus.message import utc


def findings(result: Any) -> dict[str, dict[str, Any]]:
    return {each["check"]: each for each in map(json.loads, result.stdout.splitlines())}


def test_without_a_server_it_says_how_to_get_one(alone: Any, project: Path) -> None:
    result = alone("doctor", "--json")
    found = findings(result)
    assert result.returncode == 1
    assert [each["state"] for each in found.values()].count("wrong") == 1
    assert found["server"]["state"] == "wrong"
    assert "`stratum up`" in found["server"]["mend"]
    assert found["nats-server"]["state"] == found["disk"]["state"] == "ok"
    assert not (project / ".stratum").exists()


def test_each_finding_is_a_line_with_its_mend(stratum: Any) -> None:
    result = stratum("doctor")
    wrong = [line for line in result.stdout.splitlines() if line.startswith("wrong")]
    assert result.returncode == 1
    assert len(wrong) == 1
    assert wrong[0].startswith("wrong  projector: ")
    assert wrong[0].endswith("-> start it with `stratum up`")


def test_streams_that_are_missing_or_differ_are_named(stratum: Any, log: Any) -> None:
    async def damage(bus: Bus) -> None:
        api = bus.connection.api
        await api("STREAM.DELETE.HEALTH")
        config = (await api("STREAM.INFO.TIMERS"))["config"]
        await api("STREAM.UPDATE.TIMERS", {**config, "description": "changed"})

    log.do(damage)
    found = findings(stratum("doctor", "--json"))
    assert (found["stream HEALTH"]["found"], found["stream TIMERS"]["state"]) == (
        "it is missing",
        "wrong",
    )
    assert "stratum stream provision" in found["stream TIMERS"]["mend"]
    assert found["streams"]["found"] == "LOG, BLOBS, ADVISORIES are as declared"


def test_mail_that_nobody_takes_is_wrong_and_dead_letters_are_a_note(
    stratum: Any, log: Any
) -> None:
    log.store("inbox.editor.billing.note", b"\xff")
    log.bury_unreadable("editor")
    log.send("editor", "note", 1, 2)
    found = findings(stratum("doctor", "--json"))
    assert found["agent editor"]["state"] == "wrong"
    assert found["agent editor"]["found"] == "2 messages wait and no instance runs"
    assert found["dead letters"]["state"] == "note"
    assert "stratum dead list" in found["dead letters"]["mend"]


def test_a_mistake_in_the_settings_does_not_hide_the_rest(alone: Any, project: Path) -> None:
    (project / "stratum.toml").write_text("[server]\nprot = 1\n")
    found = findings(alone("doctor", "--json"))
    assert "server.prot" in found["settings"]["found"]
    assert found["python"]["state"] == "ok"


def test_an_agent_that_cannot_be_made_is_named(stratum: Any, project: Path) -> None:
    (project / "stratum.toml").write_text(
        '[agents.a]\ncreate = "nowhere_at_all:create"\n[agents.b]\ncreate = "json:loads"\n'
    )
    found = findings(stratum("doctor", "--json"))
    assert found["agents.a"]["state"] == "wrong"
    assert "agents.a.create" in found["agents.a"]["found"]
    assert found["agents.b"]["state"] == "wrong"


def test_the_program_of_an_agent_in_another_language_is_looked_for(
    stratum: Any, project: Path
) -> None:
    (project / "stratum.toml").write_text(
        '[agents.there]\ncommand = ["sh", "x.sh"]\n[agents.gone]\ncommand = ["./nothing.sh"]\n'
    )
    found = findings(stratum("doctor", "--json"))
    assert found["agents.there"]["state"] == "ok"
    assert found["agents.gone"]["state"] == "wrong"
    assert "nothing.sh" in found["agents.gone"]["found"]


def test_a_state_file_of_a_killed_server_is_recognised(stratum: Any, project: Path) -> None:
    folder = DataDir(project / ".stratum")
    folder.path.mkdir()
    folder.write_state(RunningServer(2**22 + 1, "nats://127.0.0.1:1", 1, "always", utc(0), 1))
    found = findings(stratum("doctor", "--json"))
    assert found["state file"]["state"] == "note"
    assert "which is gone" in found["state file"]["found"]


def test_a_data_folder_that_is_a_file_is_wrong(stratum: Any, project: Path) -> None:
    (project / ".stratum").write_text("")
    found = findings(stratum("doctor", "--json"))
    assert found["data folder"]["state"] == "wrong"
    assert "--data-dir" in found["data folder"]["mend"]
