"""The embedded server as a process: who may start it, what ends it, and what it says when it fails."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec
import pytest

from stratum_bus import jetstream
from stratum_bus.errors import ServerAlreadyRuns, ServerStartFailed
from stratum_bus.server import DEFAULT_PORT, Server, embedded, find_binary, free_port, locate
from stratum_bus.testing import eventually, server

REPOSITORY = Path(__file__).parents[2]
PLAIN = {"name": "PLAIN", "subjects": ["plain.>"], "storage": "file"}

PARENT = """
import signal, sys, threading
from stratum_bus.server import Server

signal.signal(signal.SIGINT, lambda *_: print("interrupted", started.running, flush=True))
started = Server(sys.argv[1], sync="2m")
if sys.argv[2] == "main thread":
    started.start_blocking()
else:
    thread = threading.Thread(target=started.start_blocking)
    thread.start()
    thread.join()
print(started.pid, flush=True)
while True:
    signal.pause()
"""


@contextmanager
def parent(data_dir: Path, thread: str = "main thread") -> Iterator[subprocess.Popen[str]]:
    """Another process that runs a server, in a process group of its own."""
    command = [sys.executable, "-c", PARENT, str(data_dir), thread]
    with subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            assert process.stdout is not None
            assert int(process.stdout.readline()) > 0
            yield process
        finally:
            process.kill()


@contextmanager
def disk(folder: Path, options: str) -> Iterator[Path]:
    """A small file system of its own; only root may mount one."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, check=False).returncode != 0:
        pytest.skip("this test mounts a small tmpfs: run it as root on Linux")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


async def publish(url: str, subject: str, payload: bytes = b"{}") -> dict[str, object]:
    async with jetstream.connect(url, name="test") as connection:
        reply = await connection.request(subject, payload)
        answer: dict[str, object] = msgspec.json.decode(reply.payload)
        return answer


async def create_stream(url: str, compression: str = "none") -> None:
    async with jetstream.connect(url, name="test") as connection:
        await connection.api("STREAM.CREATE.PLAIN", {**PLAIN, "compression": compression})


async def messages(url: str) -> int:
    async with jetstream.connect(url, name="test") as connection:
        return int((await connection.api("STREAM.INFO.PLAIN"))["state"]["messages"])


async def fill(url: str) -> int:
    """Publish until the server says that it has no room, and return how much it took."""
    async with jetstream.connect(url, name="test") as connection:
        for taken in range(1000):
            reply = await connection.request("plain.a", bytes(500_000))
            if b'"error"' in reply.payload:
                assert b"insufficient resources" in reply.payload
                return taken
    raise AssertionError("the disk never filled up")


# ---- while it runs


async def test_it_is_found_by_its_folder_as_long_as_it_runs(tmp_path: Path) -> None:
    assert locate(tmp_path) is None
    async with embedded(tmp_path / "data", port=free_port()) as running:
        found = locate(tmp_path / "data")
        assert found is not None
        assert (found.pid, found.url, found.port) == (running.pid, running.url, running.port)
        assert (found.sync, found.owner_pid) == ("always", os.getpid())
        assert running.data_dir == tmp_path / "data"
        await create_stream(running.url)
    assert locate(tmp_path / "data") is None


async def test_it_ends_orderly_and_keeps_its_data(tmp_path: Path) -> None:
    async with embedded(tmp_path, sync="2m") as running:
        await create_stream(running.url)
        await publish(running.url, "plain.a")
    assert await running.wait() == 0
    assert "Server Exiting" in (tmp_path / "server.log").read_text().splitlines()[-1]
    async with embedded(tmp_path, sync="2m") as running:
        assert await messages(running.url) == 1


async def test_it_listens_on_the_loopback_address_only(nats_server: Server) -> None:
    socket.create_connection(("127.0.0.1", nats_server.port), timeout=5).close()
    with pytest.raises(OSError):  # any other address of this machine, as this one on Linux
        socket.create_connection(("127.0.0.2", nats_server.port), timeout=5).close()


async def test_a_folder_with_an_odd_name_works(tmp_path: Path) -> None:
    async with embedded(tmp_path / 'a "quoted" föld$er {x}', sync="2m") as running:
        await create_stream(running.url)


async def test_the_default_port_gives_way_to_a_free_one(tmp_path: Path) -> None:
    with ExitStack() as stack:
        with suppress(OSError):  # where somebody else has it, that serves as well
            stack.enter_context(socket.create_server(("127.0.0.1", DEFAULT_PORT)))
        async with embedded(tmp_path, sync="2m") as running:
            assert running.port != DEFAULT_PORT
            await create_stream(running.url)


async def test_a_requested_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ServerStartFailed, match=f"port {port} cannot be used .*: stop the"):
            async with embedded(tmp_path, port=port):
                pass
    assert locate(tmp_path) is None


async def test_a_second_server_on_the_folder_is_refused(tmp_path: Path) -> None:
    async with embedded(tmp_path, sync="2m") as first:
        with pytest.raises(ServerAlreadyRuns, match=f"process {first.pid} already runs"):
            async with embedded(tmp_path, sync="2m"):
                pass
        assert locate(tmp_path) is not None
        await create_stream(first.url)
    with parent(tmp_path), pytest.raises(ServerAlreadyRuns, match="already runs a nats-server on"):
        async with embedded(tmp_path):
            pass


async def test_of_many_that_start_at_once_on_a_folder_one_wins(tmp_path: Path) -> None:
    outcomes: list[str] = []
    all_tried = anyio.Event()

    async def start() -> None:
        try:
            async with embedded(tmp_path, sync="2m"):
                outcomes.append("runs")
                await all_tried.wait()
        except ServerAlreadyRuns:
            outcomes.append("refused")

    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(start)
        await eventually(lambda: len(outcomes) == 5)
        all_tried.set()
    assert sorted(outcomes) == ["refused"] * 4 + ["runs"]


# ---- when it or its parent dies


@pytest.mark.parametrize("thread", ["main thread", "another thread"])
async def test_kill_9_of_the_parent_ends_the_server(tmp_path: Path, thread: str) -> None:
    with parent(tmp_path, thread) as process:
        running = locate(tmp_path)
        assert running is not None
        await publish(running.url, "$JS.API.INFO")
        process.kill()
        process.wait()
        await eventually(lambda: locate(tmp_path) is None)
        with pytest.raises(OSError):
            socket.create_connection(("127.0.0.1", running.port), timeout=5).close()
        assert (tmp_path / "server.json").exists()  # stale, and known to be


async def test_it_can_be_started_right_after_its_parent_was_killed(tmp_path: Path) -> None:
    with parent(tmp_path) as process:
        process.kill()
        process.wait()
        async with embedded(tmp_path, sync="2m") as running:
            await create_stream(running.url)
            assert locate(tmp_path) is not None


async def test_it_outlives_the_thread_that_started_it(tmp_path: Path) -> None:
    started = Server(tmp_path, port=free_port(), sync="2m")
    thread = threading.Thread(target=started.start_blocking)
    thread.start()
    await anyio.to_thread.run_sync(thread.join)
    try:
        with server():  # time enough for a signal to arrive and to be obeyed
            assert started.running
        await create_stream(started.url)
    finally:
        started.stop()


async def test_ctrl_c_in_the_terminal_does_not_reach_the_server(tmp_path: Path) -> None:
    with parent(tmp_path) as process:
        os.killpg(process.pid, signal.SIGINT)
        assert process.stdout is not None
        assert process.stdout.readline() == "interrupted True\n"
        running = locate(tmp_path)
        assert running is not None
        await publish(running.url, "$JS.API.INFO")


async def test_a_server_that_died_is_seen_and_starts_again_on_its_port(tmp_path: Path) -> None:
    async with embedded(tmp_path, sync="2m") as running:
        await create_stream(running.url)
        await publish(running.url, "plain.a")
        port = running.port
        os.kill(running.pid, signal.SIGKILL)
        assert await running.wait() == -signal.SIGKILL
        assert locate(tmp_path) is None
        await running.start()
        assert running.port == port
        assert await messages(running.url) == 1
        found = locate(tmp_path)
        assert found is not None
        assert found.pid == running.pid


async def test_the_kits_server_is_killed_and_restarted_under_a_client() -> None:
    with server() as running:
        await create_stream(running.url)
        async with jetstream.connect(running.url, name="test") as connection:
            for expected in (1, 2, 3):
                running.kill()
                assert not running.running
                await anyio.to_thread.run_sync(running.restart)
                await connection.wait_connected(10)
                await connection.request("plain.a", b"{}")
                assert await messages(running.url) == expected


async def test_a_start_that_is_cancelled_leaves_nothing_running(tmp_path: Path) -> None:
    started = Server(tmp_path, sync="2m")
    with anyio.CancelScope() as scope:
        scope.cancel()
        await started.start()
    assert not started.running
    assert locate(tmp_path) is None
    async with embedded(tmp_path, sync="2m"):
        pass


# ---- when it cannot start


@pytest.mark.parametrize(
    ("below", "reason"),
    [("file", "it is a file"), ("file/data", "not a directory")],
)
async def test_a_folder_that_is_a_file_is_said(tmp_path: Path, below: str, reason: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ServerStartFailed) as caught:
        async with embedded(tmp_path / below):
            pass
    assert str(caught.value) == (
        f"nats-server did not start: the data folder {tmp_path / below} cannot be used ({reason}): "
        "choose another one with --data-dir"
    )
    assert locate(tmp_path / below) is None


async def test_a_read_only_folder_is_said(tmp_path: Path) -> None:
    with (
        disk(tmp_path / "disk", "size=1m,ro") as folder,
        pytest.raises(ServerStartFailed, match=r"cannot be used \(read-only file system\)"),
    ):
        async with embedded(folder / "data"):
            pass


async def test_a_full_disk_is_said(tmp_path: Path) -> None:
    with disk(tmp_path / "disk", "size=64k") as folder:
        (folder / "other").write_bytes(bytes(64 * 1024))
        sentence = r"cannot be used \(no space left on device\): free some space, or choose another"
        with pytest.raises(ServerStartFailed, match=sentence):
            async with embedded(folder / "data"):
                pass


@pytest.mark.parametrize("compression", ["none", "s2"])
async def test_a_disk_that_fills_up_refuses_at_once_and_loses_nothing(
    tmp_path: Path, compression: str
) -> None:
    with disk(tmp_path / "disk", "size=32m") as folder:
        async with embedded(folder, sync="2m") as running:
            await create_stream(running.url, compression=compression)
            stored = await fill(running.url)
            assert await messages(running.url) == stored
        async with embedded(folder, sync="2m") as running:
            # Part of what is still free is granted at each start.
            more = await eventually(lambda: fill(running.url))
            assert await messages(running.url) == stored + more


async def test_the_servers_own_last_words_are_the_reason(tmp_path: Path) -> None:
    (tmp_path / "jetstream").write_text("a file where the server wants a folder")
    with pytest.raises(
        ServerStartFailed, match=r"did not start: Can't start JetStream: .*not a directory"
    ):
        async with embedded(tmp_path):
            pass
    assert locate(tmp_path) is None


async def test_a_sync_interval_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ServerStartFailed, match="sync: 'soon' is not a duration such as"):
        async with embedded(tmp_path, sync="soon"):
            pass


def test_the_bundled_binary_is_found_without_a_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    shown = subprocess.run([find_binary(), "--version"], capture_output=True, text=True, check=True)
    assert shown.stdout.startswith("nats-server: v2.")


def test_without_any_binary_the_sentence_says_how_to_get_one(tmp_path: Path) -> None:
    # All that is installed, without the record of which distribution brought what.
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if entry.suffix != ".dist-info":
            (tmp_path / entry.name).symlink_to(entry)
    script = (
        "import sys; sys.path[:0] = sys.argv[1:]\n"
        "from stratum_bus.errors import ServerNotFound\n"
        "from stratum_bus.server import find_binary\n"
        "try: find_binary()\n"
        "except ServerNotFound as error: print(error)"
    )
    shown = subprocess.run(
        [sys.executable, "-I", "-S", "-c", script, str(tmp_path), str(REPOSITORY)],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout.startswith("no nats-server binary was found: install the package")
