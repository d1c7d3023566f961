"""A child process that ends with this one, even when this one is ended by kill -9.

On Linux the kernel sees to it (PR_SET_PDEATHSIG). It signals when the *thread* that started the
child ends, so that is used from the main thread only; elsewhere, and on other systems, a shell
waits until the pipe that it shares with us closes, and then ends the child.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import BinaryIO

import anyio

_POLL_SECONDS = 0.05

# Between fork and exec no Python may run here (other threads may hold locks), so a small program
# of its own asks the kernel and becomes the child.
_DIE_WITH_PARENT = """
import ctypes, os, signal, sys
parent, *command = sys.argv[1:]
ctypes.CDLL(None).prctl(1, signal.SIGTERM)
if os.getppid() != int(parent):
    sys.exit("the parent ended before its child started")
try:
    os.execv(command[0], command)
except OSError as error:
    sys.exit(f"{command[0]} cannot be run: {error.strerror}")
"""
_KILL_AFTER_PARENT = 'read -r _; kill -TERM "$0"; sleep 10; kill -KILL "$0"'


class Child:
    """One started program, in a session of its own: Ctrl-C at the terminal does not reach it.

    :param output: an open file that takes what it prints; None: where ours goes
    :param inherit: descriptors that it keeps open
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        output: BinaryIO | None = None,
        inherit: Sequence[int] = (),
    ) -> None:
        self._guard: subprocess.Popen[bytes] | None = None
        in_main_thread = threading.current_thread() is threading.main_thread()
        by_kernel = sys.platform == "linux" and in_main_thread
        if by_kernel:
            shim = (sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT)
            command = [*shim, str(os.getpid()), *command]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=inherit,
            start_new_session=True,
        )
        if not by_kernel:
            self._guard = subprocess.Popen(
                ["/bin/sh", "-c", _KILL_AFTER_PARENT, str(self.pid)],
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

    async def wait(self) -> int:
        """The exit code, at most 50 ms after the end."""
        while True:
            code = self._process.poll()
            if code is not None:
                return code
            await anyio.sleep(_POLL_SECONDS)

    def stop(self, grace_seconds: float) -> None:
        """SIGTERM, and SIGKILL after the grace; blocks until it is gone."""
        if self.exit_code is None:
            self._process.terminate()
            try:
                self._process.wait(grace_seconds)
            except subprocess.TimeoutExpired:
                pass
        self.kill()

    def kill(self) -> None:
        """SIGKILL if it still lives; blocks until it is gone."""
        self._process.kill()
        self._process.wait()
        if self._guard is not None:
            self._guard.kill()
            self._guard.communicate()
            self._guard = None
