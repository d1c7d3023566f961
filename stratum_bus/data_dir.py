"""The embedded server's folder: who owns it, and what runs there.

The lock's descriptor is handed down to nats-server itself, so the lock lives exactly as long as the
server, whatever became of the process that started it. The state file may be stale, the lock not.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import msgspec
from msgspec import Struct

from stratum_bus.errors import ServerStartFailed

_LOG_PREFIX = re.compile(r"^\[\d+\] \S+ \S+ \[(\w+)\] ")


class RunningServer(Struct, frozen=True):
    """What `server.json` says: the server's process, how to reach it, and who started it.

    `sync` is when stored events are fsynced: `always`, or an interval.
    """

    pid: int
    url: str
    port: int
    sync: str
    started: datetime
    owner_pid: int


def locate(data_dir: Path | str) -> RunningServer | None:
    """The server that runs on the folder now; None where there is none or it is not yet ready."""
    folder = DataDir(data_dir)
    if not folder.is_locked():
        return None
    state = folder.state()
    # A server that is just starting holds the lock while its predecessor's file is still there.
    return state if state and is_alive(state.pid) else None


class DataDir:
    """The files of one folder. Making and writing them raises ServerStartFailed with the reason."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path).expanduser().absolute()
        self.store = self.path / "jetstream"
        self.config_file = self.path / "server.conf"
        self.log_file = self.path / "server.log"
        self.state_file = self.path / "server.json"
        self.lock_file = self.path / "server.lock"

    def lock(self) -> int | None:
        """Take the lock and return its descriptor; None where another process holds it."""
        with self.usable():
            self.path.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.lock_file, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BaseException as error:
                os.close(descriptor)
                if isinstance(error, BlockingIOError):
                    return None
                raise
        return descriptor

    def room_bytes(self, stored_bytes: int) -> int:
        """How much the server may store in all, by its settings and by what the disk has left;
        0 where that cannot be told."""
        try:
            said = re.search(r"max_file_store: (\d+)", self.config_file.read_text(encoding="utf-8"))
            free = shutil.disk_usage(self.path).free
        except (OSError, UnicodeDecodeError):
            return 0
        return min(int(said.group(1)), stored_bytes + free) if said else 0

    def is_locked(self) -> bool:
        """Whether a server lives on the folder. Asking does not disturb one that is starting."""
        try:
            descriptor = os.open(self.lock_file, os.O_RDONLY)
        except OSError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def state(self) -> RunningServer | None:
        """The state file, stale or not; None where there is none that can be read."""
        try:
            return msgspec.json.decode(self.state_file.read_bytes(), type=RunningServer)
        except (OSError, msgspec.DecodeError):
            return None

    def write_state(self, state: RunningServer) -> None:
        with self.usable():
            new = self.state_file.with_suffix(".new")
            new.write_bytes(msgspec.json.encode(state) + b"\n")
            new.replace(self.state_file)

    def forget(self) -> None:
        """Remove what a server that is gone has left behind; its data stays."""
        with self.usable():
            self.state_file.unlink(missing_ok=True)
            for file in self.path.glob("*.ports"):
                file.unlink(missing_ok=True)

    def stored_bytes(self) -> int:
        """What the streams take on the disk, after compression."""
        return sum(block.stat().st_size for block in self.store.rglob("*.blk"))

    def log_size(self) -> int:
        return self.log_file.stat().st_size if self.log_file.exists() else 0

    def last_words(self, since: int) -> str:
        """The last complaint in the log after offset `since`, else its last line, else nothing."""
        try:
            with self.log_file.open("rb") as log:
                log.seek(since if since <= self.log_size() else 0)
                lines = log.read().decode(errors="replace").splitlines()
        except OSError:
            return ""
        said = [line for line in lines if line.strip()]
        complaints = [
            line
            for line in said
            if (level := _LOG_PREFIX.match(line)) is None or level[1] in ("FTL", "ERR")
        ]
        return _LOG_PREFIX.sub("", (complaints or said or [""])[-1]).strip()

    @contextlib.contextmanager
    def usable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            hint = "choose another one with --data-dir"
            if error.errno == errno.ENOSPC:
                hint = f"free some space, or {hint}"
            reason = (error.strerror or str(error)).lower()
            if self.path.is_file():
                reason = "it is a file"
            text = f"the data folder {self.path} cannot be used ({reason}): {hint}"
            raise ServerStartFailed(text) from error


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
