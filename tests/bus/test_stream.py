"""The declared streams on a real server: made, compared, mended, and protected."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from msgspec.structs import replace

from stratum_bus import jetstream
from stratum_bus.errors import ConfigError, NotFound, Refused, StreamDrift
from stratum_bus.jetstream import Connection
from stratum_bus.stream import StreamSpec, examine, load_streams, provision
from stratum_bus.testing import fresh

REPOSITORY = Path(__file__).parents[2]
MINUTE = 60_000_000_000
SPEC = StreamSpec("PLAIN", ["plain.>"])


@pytest.fixture
async def connection(bus_url: str) -> AsyncIterator[Connection]:
    async with jetstream.connect(bus_url, name="test") as connected:
        yield connected


@pytest.fixture
async def empty(connection: Connection) -> Connection:
    """A server without streams."""
    for spec in load_streams():
        await connection.api(f"STREAM.DELETE.{spec.name}")
    return connection


async def config_of(connection: Connection, name: str) -> dict[str, Any]:
    config: dict[str, Any] = (await connection.api(f"STREAM.INFO.{name}"))["config"]
    return config


async def test_the_first_provisioning_creates_all_and_the_second_changes_nothing(
    empty: Connection,
) -> None:
    specs = load_streams()
    created = await provision(empty, specs)
    assert [(change.stream, change.action) for change in created] == [
        (name, "create") for name in ("LOG", "BLOBS", "TIMERS", "HEALTH", "ADVISORIES")
    ]
    assert not any(change.overruled for change in created)
    assert await provision(empty, specs) == []
    for spec in specs:
        assert await examine(empty, spec) is None


async def test_the_log_can_be_neither_deleted_from_nor_purged(connection: Connection) -> None:
    await connection.request("inbox.a.b.task", b"{}")
    with pytest.raises(Refused, match="10057"):
        await connection.api("STREAM.MSG.DELETE.LOG", {"seq": 1})
    with pytest.raises(Refused, match="10110"):
        await connection.api("STREAM.PURGE.LOG")


async def test_a_blob_is_written_once(connection: Connection) -> None:
    first = await connection.request("blob.abc", b"one")
    assert b'"seq":1' in first.payload
    second = await connection.request("blob.abc", b"two")
    assert b'"err_code":10077' in second.payload


async def test_a_dry_run_says_what_it_would_do_and_does_nothing(empty: Connection) -> None:
    changes = await provision(empty, load_streams(), dry_run=True)
    assert len(changes) == 5
    assert (await empty.api("STREAM.NAMES")).get("streams") is None


async def test_harmless_drift_is_reported_field_by_field_and_mended(empty: Connection) -> None:
    before = replace(SPEC, max_msgs=10, max_age=5 * MINUTE)
    after = replace(SPEC, subjects=["plain.>", "more.>"], max_age=9 * MINUTE, allow_direct=True)
    await provision(empty, [before])
    (change,) = await provision(empty, [after])
    assert change.action == "update"
    assert change.destructive == ()
    assert change.fields == {
        "subjects": (["plain.>", "more.>"], ["plain.>"]),
        "max_msgs": (-1, 10),
        "max_age": (9 * MINUTE, 5 * MINUTE),
        "allow_direct": (True, False),
    }
    config = await config_of(empty, "PLAIN")
    assert config["subjects"] == ["plain.>", "more.>"]
    assert (config["max_msgs"], config["max_age"], config["allow_direct"]) == (-1, 9 * MINUTE, True)
    assert await provision(empty, [after]) == []


async def test_what_the_declaration_does_not_know_is_left_alone(empty: Connection) -> None:
    await empty.api("STREAM.CREATE.PLAIN", {**SPEC.config(), "metadata": {"team": "a"}})
    await provision(empty, [replace(SPEC, max_msgs=-1, allow_direct=True)])
    assert (await config_of(empty, "PLAIN"))["metadata"]["team"] == "a"


@pytest.mark.parametrize(
    ("before", "after", "field"),
    [
        ({}, {"max_age": MINUTE, "duplicate_window": MINUTE}, "max_age"),
        ({"max_age": 9 * MINUTE}, {"max_age": 5 * MINUTE}, "max_age"),
        ({}, {"max_msgs": 2}, "max_msgs"),
        ({"max_bytes": 5000}, {"max_bytes": 1000}, "max_bytes"),
        ({}, {"max_msgs_per_subject": 1}, "max_msgs_per_subject"),
        ({"subjects": ["plain.>", "more.>"]}, {"subjects": ["plain.>"]}, "subjects"),
        ({"discard": "new"}, {"discard": "old"}, "discard"),
        ({"deny_delete": True}, {"deny_delete": True, "allow_msg_ttl": True}, "allow_msg_ttl"),
        (
            {"deny_delete": True},
            {"deny_delete": True, "allow_rollup_hdrs": True},
            "allow_rollup_hdrs",
        ),
    ],
)
async def test_what_would_lose_data_is_refused_until_forced_by_name(
    empty: Connection, before: dict[str, Any], after: dict[str, Any], field: str
) -> None:
    await provision(empty, [replace(SPEC, **before)])
    wanted = replace(SPEC, **after)
    for dry_run in (True, False):
        with pytest.raises(StreamDrift, match="force it with --force PLAIN") as caught:
            await provision(empty, [wanted], dry_run=dry_run)
        assert field in caught.value.fields
    found = await examine(empty, wanted)
    assert found is not None
    assert field in found.destructive
    (change,) = await provision(empty, [wanted], force=["PLAIN"])
    assert field in change.fields
    assert await provision(empty, [wanted]) == []


async def test_a_refusal_leaves_every_stream_as_it_was(empty: Connection) -> None:
    await provision(empty, [SPEC])
    harmless = StreamSpec("OTHER", ["other.>"])
    with pytest.raises(StreamDrift):
        await provision(empty, [harmless, replace(SPEC, max_msgs=1)])
    assert (await empty.api("STREAM.NAMES"))["streams"] == ["PLAIN"]


async def test_forcing_one_stream_does_not_force_another(empty: Connection) -> None:
    other = StreamSpec("OTHER", ["other.>"])
    await provision(empty, [SPEC, other])
    with pytest.raises(StreamDrift, match="stream PLAIN differs"):
        await provision(empty, [replace(SPEC, max_msgs=1), other], force=["OTHER"])


async def test_forcing_a_stream_that_is_not_declared_is_refused(empty: Connection) -> None:
    with pytest.raises(NotFound, match="there is no declared stream LGO"):
        await provision(empty, load_streams(), force=["LGO"])


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        ({}, {"storage": "memory"}, "can not change storage type"),
        ({}, {"retention": "workqueue"}, "can not change retention policy"),
        ({"deny_purge": True}, {}, "can not cancel deny purge"),
        ({"deny_delete": True}, {}, "can not cancel deny message deletes"),
    ],
)
async def test_what_the_server_refuses_even_when_forced_says_its_reason(
    empty: Connection, before: dict[str, Any], after: dict[str, Any], reason: str
) -> None:
    await provision(empty, [replace(SPEC, **before)])
    with pytest.raises(StreamDrift, match="force it with"):
        await provision(empty, [replace(SPEC, **after)])
    with pytest.raises(StreamDrift, match=reason):
        await provision(empty, [replace(SPEC, **after)], force=["PLAIN"])


async def test_a_flag_that_the_server_silently_clears_is_reported(empty: Connection) -> None:
    spec = replace(SPEC, allow_msg_schedules=True, deny_purge=True)
    (change,) = await provision(empty, [spec])
    assert change.action == "create"
    assert change.overruled == {"deny_purge": (True, False), "allow_rollup_hdrs": (False, True)}
    (again,) = await provision(empty, [spec])
    assert again.overruled == change.overruled


async def test_overlapping_subjects_are_refused_with_the_servers_words(empty: Connection) -> None:
    await provision(empty, [SPEC])
    with pytest.raises(Refused, match="subjects overlap with an existing stream"):
        await provision(empty, [StreamSpec("OTHER", ["plain.a"])])


async def test_several_that_provision_at_the_same_time_agree(bus_url: str) -> None:
    specs = [StreamSpec(f"S{i}", [f"s{i}.>"], max_msgs=10) for i in range(3)]
    raised = [replace(spec, max_msgs=20, allow_direct=True) for spec in specs]

    async def provision_alone(wanted: list[StreamSpec]) -> None:
        async with jetstream.connect(bus_url, name="test") as own:
            await provision(own, wanted)

    for wanted in (specs, raised):
        async with anyio.create_task_group() as tasks:
            for _ in range(6):
                tasks.start_soon(provision_alone, wanted)
    async with jetstream.connect(bus_url, name="test") as observer:
        assert await provision(observer, raised) == []


async def test_fresh_streams_are_empty_and_as_declared(connection: Connection) -> None:
    await connection.request("inbox.a.b.task", b"{}")
    await connection.api("STREAM.CREATE.MINE", {"name": "MINE", "subjects": ["mine"]})
    await fresh(connection.url)
    names = (await connection.api("STREAM.NAMES"))["streams"]
    assert sorted(names) == sorted(spec.name for spec in load_streams())
    state = (await connection.api("STREAM.INFO.LOG"))["state"]
    assert (state["messages"], state["last_seq"]) == (0, 0)


def test_a_declaration_reads_durations_and_keeps_the_servers_names(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('[[streams]]\nname = "A"\nsubjects = ["a"]\nmax_age = "30d"\n')
    (spec,) = load_streams(file)
    assert spec.max_age == 30 * 24 * 60 * MINUTE
    assert spec.config()["max_age"] == spec.max_age


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('max_aeg = "1d"', r"streams\[0\]\.max_aeg: expected .*; did you mean max_age\?"),
        ('max_age = "long"', r"streams\[0\]\.max_age: expected a duration .* got the text .long"),
        ("max_age = 5", r"streams\[0\]\.max_age: expected a duration such as .*, got 5"),
        ('storage = "tape"', r"streams\[0\]\.storage: expected one of file, memory, got the text"),
        ('allow_direct = "yes"', r"streams\[0\]\.allow_direct: expected true or false, got the"),
        ("= 3", "the file: expected readable TOML, got "),
    ],
)
def test_a_mistake_in_a_declaration_names_its_field(
    tmp_path: Path, text: str, sentence: str
) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(f'[[streams]]\nname = "A"\nsubjects = ["a"]\n{text}\n')
    with pytest.raises(ConfigError, match=rf"^mine\.toml: {sentence}"):
        load_streams(file)


def test_an_installed_wheel_brings_the_declared_streams(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=REPOSITORY, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert archive.namelist().count("stratum_bus/streams.toml") == 1
        archive.extractall(tmp_path / "installed")
    script = (
        "import stratum_bus.stream as s; print(s.__file__, *[x.name for x in s.load_streams()])"
    )
    shown = subprocess.run(
        [sys.executable, "-P", "-c", script],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "installed")},
        check=True,
        capture_output=True,
        text=True,
    )
    file, *names = shown.stdout.split()
    assert Path(file).is_relative_to(tmp_path)
    assert names == ["LOG", "BLOBS", "TIMERS", "HEALTH", "ADVISORIES"]
