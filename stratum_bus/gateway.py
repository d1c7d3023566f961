"""`[gateway]` of stratum.toml: who may post and read over HTTP, and how much."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Annotated

from msgspec import Meta, Struct
from msgspec.structs import replace

from stratum_bus import subject
from stratum_bus.errors import ConfigError, InvalidName
from stratum_bus.settings import join, shown

SECRET_MIN = 16
WRITABLE = ("inbox", "topic")
"""The first tokens of what can be posted."""

READABLE = tuple(role for role, stream in subject.STREAM_OF_ROLE.items() if stream == "LOG")
"""The first tokens of what can be read."""

_MAX_BODY = 64 << 20


class TokenConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """`[gateway.tokens.<name>]`: who has it, and what for.

    `secret` is what is sent as `Authorization: Bearer …`, `secret_env` names the variable of the
    environment that holds it instead. `agent` is the sender of what is posted with it; without it
    the token's name. `may` are the subjects that may be posted, `reads` those that may be read,
    with wildcards, none: nothing. `per_second` is how many events are taken, without it as many as
    come. `id_header` is the header that holds the id of JSON without an envelope.
    """

    secret: str = ""
    secret_env: str = ""
    agent: str = ""
    may: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    per_second: Annotated[float, Meta(gt=0)] | None = None
    id_header: Annotated[str, Meta(min_length=1)] = "Idempotency-Key"


class GatewayConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """`[gateway]`: CloudEvents over HTTP in, Server-Sent Events out.

    `port` 0 takes a free one. `max_bytes` is the size of a request's body. `origins` are those
    whose pages in a browser may ask (`*`: all). `max_streams` counts readers at once. `remember` is
    how far back in the log, in events, an id that is posted again is known. `patience_seconds` is
    how long a post waits for a server that went away before it is answered with 503.
    """

    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535)] = 8080
    max_bytes: Annotated[int, Meta(ge=1, le=_MAX_BODY)] = 1 << 20
    origins: tuple[str, ...] = ()
    max_streams: Annotated[int, Meta(ge=0)] = 200
    remember: Annotated[int, Meta(ge=0)] = 500_000
    patience_seconds: Annotated[float, Meta(ge=0, le=60)] = 2.0
    tokens: dict[str, TokenConfig] = {}


def check(config: GatewayConfig, file: str, reserved: Sequence[str]) -> None:
    """What a type cannot say. Raises ConfigError."""
    for name, token in config.tokens.items():
        key = join("gateway.tokens", name)
        _check_sender(token.agent or name, f"{key}.agent" if token.agent else key, file, reserved)
        if bool(token.secret) == bool(token.secret_env):
            expected = "either secret or secret_env (the name of a variable that holds it)"
            raise ConfigError(key, expected, "both" if token.secret else "none", file=file)
        if token.secret and not is_secret(token.secret):
            got = f"{len(token.secret)} characters"
            raise ConfigError(f"{key}.secret", _SECRET, got, file=file)
        _check_filters(token.may, WRITABLE, f"{key}.may", file)
        _check_filters(token.reads, READABLE, f"{key}.reads", file)
        for one, other in combinations(token.reads, 2):
            if subject.overlap(one, other):
                got = f"{one} and {other}"
                expected = "subjects of which none is taken by two of them"
                raise ConfigError(f"{key}.reads", expected, got, file=file)


def with_secrets(config: GatewayConfig, environ: Mapping[str, str]) -> GatewayConfig:
    """With the secrets that the environment holds put in, "" where it does not."""
    tokens = {
        name: replace(token, secret=token.secret or environ.get(token.secret_env, ""))
        for name, token in config.tokens.items()
    }
    return replace(config, tokens=tokens)


_SECRET = f"{SECRET_MIN} or more letters, digits and signs, without spaces"


def is_secret(text: str) -> bool:
    """Whether it can be one: long enough, and of what can stand in a header."""
    return len(text) >= SECRET_MIN and text.isascii() and text.isprintable() and " " not in text


def _check_sender(name: str, key: str, file: str, reserved: Sequence[str]) -> None:
    try:
        subject.token(name, "agent name")
    except InvalidName as error:
        expected = f"an agent name ({error.rule})"
        raise ConfigError(key, expected, shown(name), file=file) from error
    if name in reserved:
        expected = "another agent: this name is Stratum's own"
        raise ConfigError(key, expected, shown(name), file=file)


def _check_filters(filters: Sequence[str], roles: Sequence[str], key: str, file: str) -> None:
    for i, each in enumerate(filters):
        try:
            role = subject.pattern(each).partition(".")[0]
        except InvalidName as error:
            expected = f"a subject ({error.rule})"
            raise ConfigError(f"{key}[{i}]", expected, shown(each), file=file) from error
        if role not in roles:
            expected = f"a subject that begins with one of {', '.join(roles)}"
            raise ConfigError(f"{key}[{i}]", expected, shown(each), file=file)
