"""What went wrong: one line on stderr and an exit code, both from one table."""

from __future__ import annotations

import typer

from stratum_bus import errors
from stratum_bus.errors import LakeError, QueryError, StratumError

OK, FAILED, USAGE, NOT_FOUND, NO_SERVER, REFUSED, TIMEOUT = range(7)
INTERRUPTED, OUTPUT_CLOSED = 130, 141

EXIT_CODES = {
    OK: "done",
    FAILED: "failed, or `doctor`, `run replay`, `contract` or a `verify` found something wrong",
    USAGE: "a mistake in the command line, in DATA or in stratum.toml",
    NOT_FOUND: "there is no such stream, agent, message, projection or dead letter",
    NO_SERVER: "no server or projector runs, or the connection to it broke",
    REFUSED: "refused: permissions, limits, a fence, or what would lose data",
    TIMEOUT: "no answer in time",
    INTERRUPTED: "stopped by Ctrl-C",
    OUTPUT_CLOSED: "whoever read the output went away, as in `stratum tail | head`",
}
"""Every exit code of `stratum`."""


class Usage(StratumError):
    """Something the user wrote cannot be meant so."""


class NoServer(StratumError):
    """No server was named, and none runs on the data folder."""

    def __init__(self, data_dir: str) -> None:
        self.data_dir = data_dir
        super().__init__(
            f"no server runs on {data_dir}: start one with `stratum up`, "
            "or name one of yours with --nats-url"
        )


class Refusal(StratumError):
    """What this program itself will not do, since it would lose or mix up data."""


class OutputClosed(Exception):
    """Nobody reads stdout any more; said in silence."""


_CODES: tuple[tuple[type[BaseException], int], ...] = (
    (KeyboardInterrupt, INTERRUPTED),
    (OutputClosed, OUTPUT_CLOSED),
    (Usage, USAGE),
    (errors.InvalidName, USAGE),
    (errors.EncodeError, USAGE),
    (errors.ConfigError, USAGE),
    (errors.NotFound, NOT_FOUND),
    (errors.NoStream, NOT_FOUND),
    (NoServer, NO_SERVER),
    (errors.ConnectionLost, NO_SERVER),
    (errors.NoAnswer, TIMEOUT),
    (errors.BusError, REFUSED),
    (errors.StreamDrift, REFUSED),
    (errors.ServerAlreadyRuns, REFUSED),
    (Refusal, REFUSED),
)
_QUERY_CODES = {
    "syntax": USAGE,
    "not_read_only": REFUSED,
    "too_many_rows": REFUSED,
    "too_large": REFUSED,
    "busy": REFUSED,
    "moment": NOT_FOUND,
    "timeout": TIMEOUT,
    "behind": TIMEOUT,
    "no_projector": NO_SERVER,
    "no_file": NOT_FOUND,
    "unknown": NOT_FOUND,
    "locked": REFUSED,
}

_LAKE_CODES = {"locked": REFUSED, "stream": REFUSED, "missing": NOT_FOUND}

TyperError: type[Exception] = typer.BadParameter.__mro__[2]
"""What typer raises for a wrong command line; it does not name the class itself."""


def exit_code(error: BaseException) -> int:
    """The exit code of an error; FAILED where the table does not name it."""
    if isinstance(error, QueryError):
        return _QUERY_CODES.get(error.reason, FAILED)
    if isinstance(error, LakeError):
        return _LAKE_CODES.get(error.reason, FAILED)
    return next((code for kind, code in _CODES if isinstance(error, kind)), FAILED)


def sentence(error: BaseException) -> str:
    """What to say about an error in one line, "" for nothing."""
    if isinstance(error, KeyboardInterrupt | OutputClosed):
        return ""
    if isinstance(error, StratumError):
        return " ".join(str(error).split())
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    what = " ".join(f"{type(error).__name__}: {error}".split())
    return f"{what} (a mistake of stratum itself; --debug shows where)"


def usage_sentence(error: Exception, program: str = "stratum") -> str:
    """The line for a command line that typer refused, with where help is to be had.

    "" where it has shown the help itself, as for a noun without a verb.
    """
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else program
    said = " ".join(str(getattr(error, "format_message", lambda: error)()).split()).rstrip(".")
    if not said:
        return ""
    return f"{said}{' See' if said.endswith('?') else '; see'} `{path} --help`"
