"""`stratum gateway`: CloudEvents over HTTP in, Server-Sent Events out."""

from __future__ import annotations

from typing import Annotated

import typer
from msgspec.structs import replace

from stratum_bus.errors import ConfigError, StratumError
from stratum_bus.gateway import SECRET_MIN, GatewayConfig, is_secret
from stratum_cli.command import command
from stratum_cli.context import Cli


def register(app: typer.Typer) -> None:
    command(app)(gateway)


async def gateway(
    cli: Cli,
    host: Annotated[
        str | None,
        typer.Option("--host", metavar="HOST", show_default=False, help="Instead of gateway.host."),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            "--port",
            metavar="PORT",
            min=0,
            max=65535,
            show_default=False,
            help="Instead of gateway.port; 0 takes a free one.",
        ),
    ] = None,
) -> None:
    """Take CloudEvents over HTTP, and send events to who follows them, until Ctrl-C.

    For what cannot speak NATS: webhooks, browsers, functions. Who may do what is said in
    `[gateway]` of stratum.toml; with that section `stratum up` runs it, too. An event is answered
    with 202 when it is stored. Needs the extra `stratum-bus[gateway]`.

    Example: `stratum gateway --port 8080`
    """
    config = _settings(cli.config.gateway)
    config = replace(
        config,
        host=config.host if host is None else host,
        port=config.port if port is None else port,
    )
    try:
        from stratum_cli.gateway.serve import serve
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in ("starlette", "uvicorn", "httptools"):
            raise
        text = f"the gateway needs {missing}: pip install 'stratum-bus[gateway]'"
        raise StratumError(text) from error
    await serve(config, cli.url(), cli.out.talk)


def _settings(config: GatewayConfig | None) -> GatewayConfig:
    """Raises ConfigError where nobody could use it."""
    if config is None or not config.tokens:
        expected = (
            'at least one token, as in [gateway.tokens.shop], secret = "…", may = ["topic.>"]'
        )
        raise ConfigError("gateway.tokens", expected, "none")
    secrets: dict[str, str] = {}
    for name, token in config.tokens.items():
        if not is_secret(token.secret):
            expected = f"{SECRET_MIN} or more letters, digits and signs in {token.secret_env}"
            got = "a shorter one" if token.secret else "no such variable"
            raise ConfigError(f"gateway.tokens.{name}.secret_env", expected, got)
        if (other := secrets.setdefault(token.secret, name)) != name:
            raise ConfigError(f"gateway.tokens.{name}", "another secret", f"that of {other}")
    return config
