"""Processes: one that runs as an instance, and spare ones that wait to become one."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Collection
from contextlib import suppress

import anyio
import anyio.to_thread
import msgspec

from stratum_agents.process import Start
from stratum_agents.supervision.program import Program
from stratum_bus.child import Child
from stratum_bus.event import uuid7
from stratum_bus.hand import Left, SharedHand

SPARE_DELAY_SECONDS = 1.0
"""A spare is started this long after the last one was taken: who takes its place needs the
processor first."""

_SPARE_GRACE_SECONDS = 1.0


class Running:
    """A process that runs as instance `instance` of a program."""

    def __init__(
        self,
        program: Program,
        slot: int,
        child: Child,
        hand: SharedHand | None,
        *,
        instance: str,
        warm: bool,
    ) -> None:
        self.program = program
        self.slot = slot
        self.child = child
        self.instance = instance
        self.warm = warm
        self.host = socket.gethostname()
        self.started = time.monotonic()
        self._hand = hand

    @property
    def pid(self) -> int:
        return self.child.pid

    @property
    def lived_seconds(self) -> float:
        return time.monotonic() - self.started

    @property
    def knows_hand(self) -> bool:
        """Whether `left` is all that it has in hand."""
        return self._hand is not None

    def left(self) -> list[Left]:
        """What it has in hand, or had at its end."""
        return self._hand.left() if self._hand is not None else []

    async def end(self, grace_seconds: float) -> None:
        """Stop it if it still runs, kill it after the grace, and whatever it started.

        Cancelled, it is killed at once.
        """
        # Stopping many at once must not use up the threads that others need.
        limiter = anyio.CapacityLimiter(1)
        try:
            await anyio.to_thread.run_sync(
                self.child.stop, grace_seconds, limiter=limiter, abandon_on_cancel=True
            )
        except BaseException:
            self.child.kill()
            raise

    def forget(self) -> None:
        if self._hand is not None:
            self._hand.close()
            self._hand = None


def start(program: Program, slot: int, suspects: Collection[str], spares: Spares) -> Running:
    """Start an instance, from a spare process where there is one that fits."""
    instance = f"{slot}-{uuid7()[-12:]}"
    if not program.supervised:
        command = (*program.command, "--instance", instance) if program.named else program.command
        environ = program.environ and {**program.environ, "STRATUM_INSTANCE": instance}
        child = Child(
            command,
            environ=environ,
            folder=program.folder,
            with_parent=signal.SIGKILL,
            and_its_own=program.with_its_own,
        )
        return Running(program, slot, child, None, instance=instance, warm=False)
    line = msgspec.json.encode(Start(program.name, instance, sorted(suspects))) + b"\n"
    while spare := spares.take():
        child, hand = spare
        if child.exit_code is None and child.tell(line):
            return Running(program, slot, child, hand, instance=instance, warm=True)
        _discard(child, hand)
    child, hand = _spawn(program)
    child.tell(line)
    return Running(program, slot, child, hand, instance=instance, warm=False)


class Spares:
    """Processes that wait; `program` is what they run, None for none at all."""

    def __init__(self, program: Program | None, count: int) -> None:
        self._program = program
        self._count = count if program is not None else 0
        self._pool: list[tuple[Child, SharedHand]] = []
        self._taken = anyio.Event()

    def take(self) -> tuple[Child, SharedHand] | None:
        """The one that has waited longest; it is the caller's from then on."""
        if not self._pool:
            return None
        self._taken.set()
        return self._pool.pop(0)

    async def keep(self) -> None:
        """Keep as many as are wanted, until cancelled; then end them."""
        try:
            while self._count:
                self._taken = anyio.Event()
                with anyio.move_on_after(SPARE_DELAY_SECONDS):
                    await self._taken.wait()
                    continue  # another one was needed: it has the processor for a while
                self._replace()
        finally:
            for child, hand in self._pool:
                _discard(child, hand)

    def _replace(self) -> None:
        assert self._program is not None
        # One that ended knows why; the next tick tries again.
        dead = [spare for spare in self._pool if spare[0].exit_code is not None]
        for spare in dead:
            self._pool.remove(spare)
            _discard(*spare)
        if len(self._pool) < self._count:
            with suppress(OSError):
                self._pool.append(_spawn(self._program))


def _spawn(program: Program) -> tuple[Child, SharedHand]:
    hand = SharedHand()
    command = (*program.command, "--hand", str(hand.descriptor))
    child = Child(command, inherit=(hand.descriptor,), told=True, with_parent=signal.SIGKILL)
    hand.handed_over()
    return child, hand


def _discard(child: Child, hand: SharedHand) -> None:
    child.kill()
    hand.close()
