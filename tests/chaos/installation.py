"""`stratum up` on a folder of its own, started again when it dies, as systemd would."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import anyio

from stratum_bus.data_dir import locate
from stratum_bus.server import free_port
from tests.chaos.clock.sitecustomize import OFFSET
from tests.flow import nodejs

RESTART_SECONDS = 0.1
STOP_SECONDS = 60.0
DISK = "192m"
CLOCK = Path(__file__).with_name("clock")
PIDS = 1 << 22
"""There is no process with a higher number."""

AGENTS: tuple[str, ...] = ("clerk", "smith", "porter")
NODE = "words"
"""The agent in JavaScript (examples/node-agent), where there is Node.js. It is hurt from outside."""

_TOML = """
[server]
port = {port}

[supervisor]
restarts = 1000
healthy_seconds = 4
max_delay_seconds = 1

[health.dead]
seconds = {dead}
restart_seconds = {restart}

[health.stuck]
seconds = {stuck}

[health.blocked]
seconds = {blocked}

[health.looping]
repeats = 10
among = 20
seconds = 1.5

[health.memory]
bytes = 50_331_648
seconds = 6

[health.crash_loop]
deaths = 1000
"""

SECONDS = {"dead": 1.0, "restart": 2.0, "stuck": 2.0, "blocked": 1.5}
"""From when on something is called so, where the machine has nothing else to do."""

_AGENT = """
[agents.{name}]
create = "chaos_agents:{name}"
instances = {instances}
ack_wait_seconds = 10
grace_seconds = 3

[agents.{name}.settings]
effects = "{effects}"
"""

_NODE = """
[agents.words]
command = ["node", "agent.js"]
grace_seconds = 3
"""


class Installation:
    """One installation. `deaths` counts how often it was started again. On a machine that is `pace`
    times slower than one at rest, as much more time passes before something is called wrong.
    """

    def __init__(self, folder: Path, pace: float) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"nats://127.0.0.1:{self.port}"
        self.data_dir = folder / "data"
        self.effects = folder / "effects.txt"
        self.clocks = folder / "clocks"
        self.deaths = 0
        self.on_small_disk = False
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = False
        self.effects.touch()
        with self.clocks.open("wb") as file:
            file.truncate(PIDS * OFFSET.size)  # it has holes, and takes no room
        shutil.copy(Path(__file__).with_name("chaos_agents.py"), folder)
        limits = {name: seconds * pace for name, seconds in SECONDS.items()}
        toml = _TOML.format(port=self.port, **limits)
        for name in AGENTS:
            instances = 2 if name == "smith" else 1
            toml += _AGENT.format(name=name, instances=instances, effects=self.effects)
        self.agents = AGENTS
        if self._put_node():
            self.agents += (NODE,)
            toml += _NODE
        (folder / "stratum.toml").write_text(toml, encoding="utf-8")

    def _put_node(self) -> bool:
        example = nodejs.NODE_AGENT
        try:
            nodejs.put(self.folder, example / "agent.js", example / "package.json")
        except nodejs.NoNode as error:
            print(f"{NODE} is left out: {error}", file=sys.stderr)
            return False
        return True

    def mount_small_disk(self) -> bool:
        """Put the data on a small file system; False where this user may not."""
        self.data_dir.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(self.data_dir)]
        try:
            done = subprocess.run(mount, capture_output=True, check=False)
        except OSError:
            return False
        self.on_small_disk = done.returncode == 0
        return self.on_small_disk

    async def keep(self) -> None:
        """Start it, and start it again whenever it ends, until `stop`."""
        while not self._stopping:
            self._process = self._start()
            await _ended(self._process, float("inf"))
            if not self._stopping:
                self.deaths += 1
                await anyio.sleep(RESTART_SECONDS)

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "stratum_cli", "--data-dir", str(self.data_dir), "up"]
        path = os.pathsep.join(filter(None, (str(CLOCK), os.environ.get("PYTHONPATH"))))
        environ = {**os.environ, "PYTHONPATH": path, "CHAOS_CLOCKS": str(self.clocks)}
        with (self.folder / "up.log").open("ab") as log:
            return subprocess.Popen(
                command, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True, env=environ,
            )  # fmt: skip

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def server_pid(self) -> int:
        running = locate(self.data_dir)
        return running.pid if running else 0

    def set_clock(self, pid: int, offset_seconds: float) -> None:
        """Have a process see another time than all others."""
        with self.clocks.open("r+b") as file:
            file.seek(pid * OFFSET.size)
            file.write(OFFSET.pack(offset_seconds))

    def fill_disk(self) -> Path:
        """Take all that is left of the small disk; returns the file to remove."""
        ballast = self.data_dir / "ballast"
        descriptor = os.open(ballast, os.O_WRONLY | os.O_CREAT)
        for size in (1 << 20, 1 << 12, 1):
            try:
                while True:
                    os.write(descriptor, b"x" * size)
            except OSError:
                continue
        os.close(descriptor)
        return ballast

    async def stop(self) -> bool:
        """As `systemctl stop`; False where it had to be killed."""
        self._stopping = True
        process = self._process
        if process is None:
            return True
        process.send_signal(signal.SIGTERM)
        orderly = await _ended(process, STOP_SECONDS)
        process.kill()
        return orderly

    def remove(self) -> None:
        self.unmount()
        shutil.rmtree(self.folder)

    def unmount(self) -> None:
        if self.on_small_disk:
            subprocess.run(["umount", "--lazy", str(self.data_dir)], check=False)
            self.on_small_disk = False


async def _ended(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Wait for the end of a process; False where it did not come."""
    give_up = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < give_up:  # noqa: ASYNC110 - nothing tells
        await anyio.sleep(0.01)
    return process.poll() is not None
