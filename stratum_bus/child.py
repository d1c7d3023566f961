"""A child process that ends with this one, even when this one is ended by kill -9.

On Linux the kernel sees to it (PR_SET_PDEATHSIG). It signals when the *thread* that started the
child ends, so that is used from the main thread only; elsewhere, and on other systems, a shell
waits until the pipe that it shares with us closes, and then ends the child.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import BinaryIO

import anyio

_POLL_SECONDS = 0.05
_STOP_POLL_SECONDS = 0.005

# Between fork and exec no Python may run here (other threads may hold locks), so a small program
# of its own asks the kernel and becomes the child.
_DIE_WITH_PARENT = """
import ctypes, os, signal, sys
parent, ending, *command = sys.argv[1:]
ctypes.CDLL(None).prctl(1, int(ending))
if os.getppid() != int(parent):
    sys.exit("the parent ended before its child started")
try:
    os.execvp(command[0], command)
except OSError as error:
    print(f"{command[0]} cannot be run: {error.strerror}", file=sys.stderr)
    sys.exit(os.EX_CONFIG)
"""
_KILL_AFTER_PARENT = 'read -r _; kill -TERM "$0"; sleep 10; kill -KILL "$0"'
_KILL_ALL_AFTER_PARENT = 'read -r _; kill -KILL -"$0"'


class Child:
    """One started program, in a session of its own: Ctrl-C at the terminal does not reach it.

    :param output: an open file that takes what it prints; None: where ours goes
    :param inherit: descriptors that it keeps open
    :param told: it can be told something on its stdin, see `tell`
    :param environ: its environment; None: ours
    :param with_parent: the signal that it gets when this process is gone. SIGKILL ends also what
        is stopped or does not answer, and is for programs that bear it.
    :param and_its_own: what it started itself also ends when this process is gone
    :param folder: its working folder; None: ours
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        output: BinaryIO | None = None,
        inherit: Sequence[int] = (),
        told: bool = False,
        environ: Mapping[str, str] | None = None,
        with_parent: signal.Signals = signal.SIGTERM,
        and_its_own: bool = False,
        folder: str | None = None,
    ) -> None:
        self._guard: subprocess.Popen[bytes] | None = None
        self._ending = threading.Lock()
        in_main_thread = threading.current_thread() is threading.main_thread()
        by_kernel = sys.platform == "linux" and in_main_thread
        if by_kernel:
            shim = (sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT)
            command = [*shim, str(os.getpid()), str(int(with_parent)), *command]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE if told else subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            bufsize=0,
            pass_fds=inherit,
            env=environ,
            cwd=folder,
            start_new_session=True,
        )
        if and_its_own or not by_kernel:
            at_end = _KILL_ALL_AFTER_PARENT if and_its_own else _KILL_AFTER_PARENT
            self._guard = subprocess.Popen(
                ["/bin/sh", "-c", at_end, str(self.pid)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it lives, negative after a signal."""
        return self._process.poll()

    def tell(self, line: bytes) -> bool:
        """Write to its stdin; False where it does not listen any more."""
        try:
            assert self._process.stdin is not None
            self._process.stdin.write(line)
        except (OSError, ValueError):
            return False
        return True

    async def wait(self) -> int:
        """The exit code: at once on Linux, elsewhere at most 50 ms after the end."""
        with contextlib.suppress(OSError):  # no process any more, or none that can be watched
            if sys.platform == "linux":
                descriptor = os.pidfd_open(self.pid)
                try:
                    await anyio.wait_readable(descriptor)
                finally:
                    os.close(descriptor)
                self._kill_group()
        while True:
            code = self._process.poll()
            if code is not None:
                return code
            await anyio.sleep(_POLL_SECONDS)

    def stop(self, grace_seconds: float) -> None:
        """SIGTERM, and SIGKILL after the grace; blocks until it is gone."""
        if self.exit_code is None:
            self._process.terminate()
            give_up = time.monotonic() + grace_seconds
            while not self._has_ended() and time.monotonic() < give_up:
                time.sleep(_STOP_POLL_SECONDS)
        self.kill()

    def kill(self) -> None:
        """SIGKILL to it and to what it started, if they still live; blocks until it is gone."""
        with self._ending:
            self._kill_group()
            self._process.kill()
            self._process.wait()
            if self._process.stdin is not None:
                with contextlib.suppress(OSError):
                    self._process.stdin.close()
            if self._guard is not None:
                self._guard.kill()
                self._guard.communicate()
                self._guard = None

    def _has_ended(self) -> bool:
        """Without reaping it where the system can tell so."""
        if not hasattr(os, "waitid"):
            return self._process.poll() is not None
        if self._process.returncode is not None:
            return True
        how = os.WEXITED | os.WNOHANG | os.WNOWAIT
        try:
            return os.waitid(os.P_PID, self.pid, how) is not None
        except ChildProcessError:
            return True

    def _kill_group(self) -> None:
        """What it started shares its session. Only while it is not reaped: its number is its own
        as long, afterwards somebody else's may be the same."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
