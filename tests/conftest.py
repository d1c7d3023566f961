"""One real server per run, clean streams per test, and a check that no test blocks the loop."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest_plugins = ["stratum_bus.testing"]

# A shell ignores it for what it runs in the background, and so would all that tests start and stop.
signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"

_TICK_SECONDS = 0.05
_TICKS = 60


class LoopWatch(threading.Thread):
    """Reports a loop that answers nothing for 3 s.

    Only ticks at which neither this thread nor the loop's had to wait for a processor count: that
    a machine is busy is not the test's fault.
    """

    def __init__(self) -> None:
        super().__init__(name="loop-watch", daemon=True)
        self.loop: asyncio.AbstractEventLoop | None = None
        self.loop_thread = threading.main_thread()
        self.report = ""
        self._answered = threading.Event()

    def new_loop(self) -> asyncio.AbstractEventLoop:
        self.loop = asyncio.new_event_loop()
        self.loop_thread = threading.current_thread()
        return self.loop

    def run(self) -> None:
        ticks = 0
        self._answered.set()
        while True:
            before, waited = time.monotonic(), self._waited_seconds()
            time.sleep(_TICK_SECONDS)
            on_time = time.monotonic() - before < 2 * _TICK_SECONDS
            on_time = on_time and self._waited_seconds() - waited < _TICK_SECONDS / 4
            loop = self.loop
            if loop is None or not loop.is_running():
                self._answered.set()
            elif self._answered.is_set():
                ticks = 0
                self._ask(loop)
            elif on_time and (ticks := ticks + 1) == _TICKS:
                self._describe()

    def _ask(self, loop: asyncio.AbstractEventLoop) -> None:
        self._answered.clear()
        try:
            loop.call_soon_threadsafe(self._answered.set)
        except RuntimeError:  # it was closed meanwhile
            self._answered.set()

    def _waited_seconds(self) -> float:
        """How long the loop's thread has stood in the run queue; 0 where that is not known."""
        try:
            path = f"/proc/self/task/{self.loop_thread.native_id}/schedstat"
            return int(Path(path).read_text().split()[1]) / 1e9
        except (OSError, IndexError, ValueError):
            return 0.0

    def _describe(self) -> None:
        frame = sys._current_frames().get(self.loop_thread.ident or 0)
        stack = "".join(traceback.format_stack(frame)[-6:]) if frame else ""
        self.report = f"the event loop was blocked for {_TICKS * _TICK_SECONDS:g} s in:\n{stack}"


@pytest.fixture(scope="session")
def loop_watch() -> LoopWatch:
    watch = LoopWatch()
    watch.start()
    return watch


@pytest.fixture(scope="session")
def anyio_backend(loop_watch: LoopWatch) -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": loop_watch.new_loop}


@pytest.fixture(autouse=True)
def no_blocked_loop(loop_watch: LoopWatch) -> Iterator[None]:
    loop_watch.report = ""
    yield
    if loop_watch.report:
        pytest.fail(loop_watch.report, pytrace=False)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real input of the outside world, which the repository does not contain."""
    if not SHARED_DATA.is_dir():
        pytest.skip(
            f"real input is not there: put the folder shared/data beside the repository "
            f"({SHARED_DATA})"
        )
    return SHARED_DATA
