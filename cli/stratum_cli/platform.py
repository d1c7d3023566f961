"""Everything on one machine: server, streams, projector and agents, as `stratum up` runs them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import msgspec

from stratum_agents.supervision import program, systemd
from stratum_agents.supervision.metrics import Metrics
from stratum_agents.supervision.probes import probes
from stratum_agents.supervisor import Program, Supervisor, python
from stratum_bus import heartbeat, jetstream, service
from stratum_bus.bus import Bus, connect
from stratum_bus.config import Config
from stratum_bus.disk import until_wedged
from stratum_bus.errors import NoStream, QueryError, StratumError
from stratum_bus.server import Server, embedded
from stratum_bus.stream import load_streams, provision
from stratum_bus.tasks import task_group

PROJECTOR = "main"
GATEWAY = "gateway"
"""The kind of a part that is no agent, and does not beat."""

READY_SECONDS = 30.0
_QUERY_EVERY_SECONDS = 0.05
_RESTART_SECONDS = 0.2
_DONE = {"create": "created", "update": "updated"}

Say = Callable[[str], None]


class Running(msgspec.Struct, frozen=True):
    """What `up.json` says: the process of `stratum up`, and whether all has been started."""

    pid: int
    url: str = ""
    ready: bool = False


class UpFile:
    """`up.json` in the data folder, locked as long as its `stratum up` lives."""

    def __init__(self, data_dir: Path) -> None:
        self.path = data_dir / "up.json"

    def running(self) -> Running | None:
        """The `stratum up` of this folder; None where none lives, whatever the file says."""
        try:
            with self.path.open("rb") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    content = file.read()
                    return msgspec.json.decode(content, type=Running) if content else Running(0)
        except (OSError, msgspec.DecodeError):
            return None
        return None

    @contextlib.contextmanager
    def held(self) -> Iterator[Callable[[Running], None]]:
        """Own the folder; yields how to say what runs. Raises StratumError where it is owned."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = self.path.open("a+b", buffering=0)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            text = f"the data folder {self.path.parent} cannot be used ({reason})"
            raise StratumError(f"{text}: choose another one with --data-dir") from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                other = self.running()
                who = f"process {other.pid}" if other and other.pid else "another process"
                text = f"`stratum up` already runs on {self.path.parent} ({who})"
                raise StratumError(f"{text}; stop it with `stratum down`") from None

            def say(running: Running) -> None:
                file.truncate(0)
                file.write(msgspec.json.encode(running))

            say(Running(os.getpid()))
            yield say
            file.truncate(0)


async def run(config: Config, config_file: str | None, say: Say) -> None:
    """Run everything until SIGTERM or SIGINT, then stop it in order: agents, projector, server.

    `say` gets one line for each fact. Raises StratumError where something cannot be started.
    """
    with UpFile(Path(config.server.data_dir)).held() as announce:

        async def main(stop: anyio.Event) -> None:
            await _check_projections(config)
            async with _server(config, stop, say) as url:
                await _provision(url, say)
                async with task_group() as tasks:
                    supervisor = Supervisor(
                        config,
                        _programs(config, config_file, url),
                        say,
                        program.spare(config, config_file, url),
                    )
                    tasks.start_soon(_announce_ready, config, supervisor, url, say, announce)
                    tasks.start_soon(systemd.keep_telling)
                    async with _probes(config, supervisor, url, say):
                        await supervisor.run(url, stop=stop)
                    systemd.tell(systemd.STOPPING)
                    tasks.cancel_scope.cancel()

        await service.run(main)


async def _check_projections(config: Config) -> None:
    """Say a mistake in a user's projection at once, before a projector ends by it again and again.

    In a process of its own: what users write is not run in this one. Raises StratumError.
    """
    if not config.projector.projections:
        return
    command = python(
        "stratum_projections", "--check", "--url", "", "--path", "",
        "--config", msgspec.json.encode(config.projector).decode(), "--folder", config.folder,
    )  # fmt: skip
    done = await anyio.run_process(command, check=False)
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise StratumError(re.sub(r"^[\d:]+ \w+ ", "", said))


def _programs(config: Config, config_file: str | None, url: str) -> list[Program]:
    common = ("--url", url, "--with-parent")
    settings = msgspec.json.encode(config.projector).decode()
    lake = msgspec.json.encode(config.lake).decode()
    projector = python(
        "stratum_projections", *common, "--path", config.projector.path, "--config", settings,
        "--lake", lake, "--folder", config.folder,
        "--beat-seconds", str(config.supervisor.beat_seconds),
    )  # fmt: skip
    extra = ("--config", config_file) if config_file else ()
    health = python("stratum_projections.health", *common, *extra)
    environ = {**os.environ, "STRATUM_DATA_DIR": config.server.data_dir}
    return [
        Program(name="projector", command=projector, kind=heartbeat.PROJECTOR, named=True),
        Program(
            name="health",
            command=health,
            kind=heartbeat.HEALTH,
            named=True,
            environ=environ,
            urgent=False,
        ),
        *_gateway(config, config_file, url),
        *program.agents(config, config_file, url),
    ]


def _gateway(config: Config, config_file: str | None, url: str) -> list[Program]:
    """Where there is something of it in the settings."""
    if config.gateway is None:
        return []
    file = ("--config", config_file) if config_file else ()
    command = python("stratum_cli", *file, "--nats-url", url, "gateway")
    return [Program(name="gateway", command=command, kind=GATEWAY, beats=False, urgent=False)]


@asynccontextmanager
async def _probes(
    config: Config, supervisor: Supervisor, url: str, say: Say
) -> AsyncIterator[None]:
    """/healthz, /readyz and /metrics, where the settings name a port."""
    settings = config.supervisor
    if settings.http_port is None:
        yield
        return
    host = settings.http_host
    async with (
        probes(host, settings.http_port, supervisor.status, supervisor.metrics) as port,
        task_group() as tasks,
    ):
        say(f"probes: http://{host}:{port}/healthz, /readyz and /metrics")
        tasks.start_soon(_measure_projections, url, supervisor.metrics)
        yield
        tasks.cancel_scope.cancel()


async def _measure_projections(url: str, page: Metrics) -> None:
    """Put the projector's metrics on the page of the supervisor's, for ever."""
    from stratum_projections import metrics

    projections = metrics.Metrics()
    page.registry.register(projections)
    while True:
        try:
            async with connect(url, name="stratum up metrics") as bus:
                await metrics.follow(bus, projections, PROJECTOR)
        except StratumError:
            await anyio.sleep(metrics.EVERY_SECONDS)


@asynccontextmanager
async def _server(config: Config, stop: anyio.Event, say: Say) -> AsyncIterator[str]:
    """The address of the server: yours, or one that is kept running here."""
    if config.server.url:
        say(f"server: using {jetstream.shown(config.server.url)}")
        yield config.server.url
        return
    settings = config.server
    async with (
        embedded(
            settings.data_dir,
            port=settings.port,
            sync=settings.sync,
            max_store_bytes=settings.max_store_bytes,
        ) as server,
        task_group() as tasks,
    ):
        synced = "every event is fsynced" if server.sync == "always" else f"sync {server.sync}"
        say(f"server: {server.url}, data in {_near(settings.data_dir)}, {synced}")
        tasks.start_soon(_keep_server, server, stop, say)
        tasks.start_soon(_keep_storing, server, say)
        yield server.url
        tasks.cancel_scope.cancel()


async def _keep_server(server: Server, stop: anyio.Event, say: Say) -> None:
    while True:
        code = await server.wait()
        if stop.is_set():
            return
        say(f"server: ended ({code}), starting it again")
        try:
            await server.start()
            say(f"server: back at {server.url} (pid {server.pid})")
        except StratumError as error:
            say(f"server: {error}")
            await anyio.sleep(_RESTART_SECONDS)


async def _keep_storing(server: Server, say: Say) -> None:
    while True:
        streams = ", ".join(await until_wedged(server))
        say(f"server: the disk was full, and {streams} still cannot store: starting it again")
        server.kill()


async def _provision(url: str, say: Say) -> None:
    async with jetstream.connect(url, name="stratum up") as connection:
        changes = await provision(connection, load_streams())
    if changes:
        say(
            f"streams: {', '.join(f'{_DONE[change.action]} {change.stream}' for change in changes)}"
        )
    else:
        say("streams: as declared")


async def _announce_ready(
    config: Config,
    supervisor: Supervisor,
    url: str,
    say: Say,
    announce: Callable[[Running], None],
) -> None:
    """Say when queries are answered and every agent that is to run listens."""
    with anyio.move_on_after(READY_SECONDS) as waiting:
        async with connect(url, name="stratum up") as bus:
            await supervisor.opened.wait()
            for name in config.agents:
                if config.agents[name].create:
                    await _until_listening(bus, supervisor, name)
            await _until_answering(bus)
    if waiting.cancelled_caught:
        say(f"not everything is ready after {READY_SECONDS:g} s; see the lines above")
    else:
        running = [name for name in config.agents if supervisor.keepers[name].running]
        agents = f", agents: {', '.join(running)}" if running else ""
        say(f"ready{agents}; stop with Ctrl-C or `stratum down`")
    announce(Running(os.getpid(), url, True))
    systemd.tell(systemd.READY)


async def _until_listening(bus: Bus, supervisor: Supervisor, agent: str) -> None:
    while supervisor.keepers[agent].state.count:
        with contextlib.suppress(StratumError):
            info = await bus.connection.api(f"CONSUMER.INFO.LOG.{agent}")
            if info.get("num_waiting"):
                return
        await anyio.sleep(_QUERY_EVERY_SECONDS)


async def _until_answering(bus: Bus) -> None:
    from stratum_projections import ask

    while True:
        try:
            await ask(bus, "select 1", projector=PROJECTOR, timeout_seconds=1)
            return
        except (NoStream, QueryError):
            await anyio.sleep(_QUERY_EVERY_SECONDS)


def _near(path: str) -> str:
    """A path as it is shortest to read."""
    relative = os.path.relpath(path)
    return relative if not relative.startswith("..") else path
