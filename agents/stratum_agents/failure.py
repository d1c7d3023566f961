"""What can go wrong in a run, as its handler and its reader see it.

RunError
├── StepFailed        a step used up its attempts, or said that trying again is of no use
├── CallFailed        the run that was called or spawned failed, or was cancelled
├── WaitTimeout       nothing came in time
├── JournalMismatch   the handler asks for something else than its journal holds
└── RunFailed         raised by a handler: this run fails now, for this reason
    ├── Rejected      the handler returned Reject
    └── Unreadable    the event's data is not what the handler says it wants

RunCancelled and the other ends of a run are no Exceptions: a handler may clean up, not swallow them.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator

from stratum_agents.journal import Failure
from stratum_bus.errors import StratumError

CAUSES_MAX = 8
"""So many errors behind an error are journaled with it."""


class RunError(StratumError):
    """Base of what a run raises in its handler."""


class StepFailed(RunError):
    """`name` is the step's, `attempts` how often it was tried, `failure` the last error."""

    def __init__(self, name: str, attempts: int, failure: Failure) -> None:
        self.name, self.attempts, self.failure = name, attempts, failure
        tried = "once" if attempts == 1 else f"{attempts} times"
        super().__init__(f"step {name!r} failed, tried {tried}: {failure.type}: {failure.message}")


class CallFailed(RunError):
    """`agent` and `type` say what was called, `failure` how it ended."""

    def __init__(self, name: str, failure: Failure) -> None:
        self.name, self.failure = name, failure
        super().__init__(f"{name} failed: {failure.type}: {failure.message}")


class WaitTimeout(RunError):
    def __init__(self, what: str) -> None:
        self.what = what
        super().__init__(f"{what} did not come in time")


class RunFailed(RunError):
    """Raised by a handler to end its run as failed, without another attempt."""


class Rejected(RunFailed):
    """The handler returned Reject: the event can never be handled."""


class Unreadable(RunFailed):
    """The event's data does not fit the type that the handler is annotated with."""


class JournalMismatch(RunError):
    """The handler and the journal differ at position `n`."""

    def __init__(self, run: str, n: str, journaled: str, asked: str, advice: str) -> None:
        self.run, self.n, self.journaled, self.asked = run, n, journaled, asked
        self.advice = advice
        super().__init__(
            f"run {run} at {n}: the journal holds {journaled}, the handler asks for {asked}. {advice}"
        )


class RunCancelled(BaseException):
    """The run was cancelled; raised where it next asks for something."""


class Suspended(BaseException):
    """The run waits: its worker lets go of it."""


class Ended(BaseException):
    """The run ended itself (`continue_as_new`)."""


class ReplayedToEnd(Suspended):
    """A replay without effects reached the end of the journal; its branches do so one by one."""


class OutsideJournal(ReplayedToEnd):
    """A replay without effects was asked for what stands in no journal."""


def failure_of(error: BaseException) -> Failure:
    """An error as it is journaled."""
    frames = traceback.format_exception(error, limit=-6)
    return Failure(
        type(error).__name__,
        _text(str(error)),
        _text("".join(frames)[-4000:]),
        _text(", caused by ".join(_causes(error))),
    )


def _causes(error: BaseException) -> Iterator[str]:
    """The errors behind an error, the nearest first."""
    for _ in range(CAUSES_MAX):
        cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        if cause is None:
            return
        yield f"{type(cause).__name__}: {cause}"
        error = cause


def _text(text: str) -> str:
    """What fits into a journal entry, whatever an error has put into its message."""
    return text[:8000].encode(errors="replace").decode()
