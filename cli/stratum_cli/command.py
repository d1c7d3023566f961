"""How a command is declared: its own parameters, and the options that all commands share."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Annotated, Any, TypeVar

import anyio
import typer

from stratum_cli import failure
from stratum_cli.context import Cli, Options

F = TypeVar("F", bound=Callable[..., Awaitable[None] | None])

_PANEL = "Options of every command"


def _shared(*names: str, help: str, **settings: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=_PANEL, show_default=False, **settings)


Config = Annotated[
    str | None,
    _shared("--config", metavar="FILE", help="Settings to read instead of ./stratum.toml."),
]
DataDir = Annotated[
    str | None,
    _shared("--data-dir", metavar="DIR", help="Folder of the server that `stratum up` runs."),
]
NatsUrl = Annotated[
    str | None,
    _shared("--nats-url", metavar="URL", help="Use this NATS server instead of that one."),
]
Json = Annotated[bool, _shared("--json", help="Print one JSON object a line.")]
Debug = Annotated[bool, _shared("--debug", help="Log to stderr and show where an error arose.")]

SHARED: dict[str, tuple[Any, Any]] = {
    "config": (Config, None),
    "data_dir": (DataDir, None),
    "nats_url": (NatsUrl, None),
    "json": (Json, False),
    "debug": (Debug, False),
}
"""Name, annotation and default of the options that stand before or behind a command's name."""

DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")]


def command(app: typer.Typer, name: str | None = None) -> Callable[[F], F]:
    """Declare `function(cli, …)`, plain or async, as a command of `app`.

    Its docstring is the help, its parameters are the command's own. Errors end here.
    """

    def declare(function: F) -> F:
        def call(ctx: typer.Context, **values: Any) -> None:
            _run(function, _options(ctx, {key: values.pop(key) for key in SHARED}), values)

        call.__name__ = function.__name__
        call.__doc__ = function.__doc__
        call.__signature__ = _signature(function)  # type: ignore[attr-defined]
        app.command(name)(call)
        return function

    return declare


def callback(app: typer.Typer) -> Callable[[F], F]:
    """Declare what a noun does by itself, without a verb behind it; otherwise as `command`."""

    def declare(function: F) -> F:
        def call(ctx: typer.Context, **values: Any) -> None:
            given = {key: values.pop(key) for key in SHARED}
            if ctx.invoked_subcommand is None:
                _run(function, _options(ctx, given), values)

        call.__signature__ = _signature(function)  # type: ignore[attr-defined]
        help = inspect.cleandoc(function.__doc__ or "")
        app.callback(invoke_without_command=True, no_args_is_help=False, help=help)(call)
        return function

    return declare


def group(name: str, help: str) -> typer.Typer:
    """A noun with commands of its own."""
    return typer.Typer(name=name, help=help, no_args_is_help=True)


def _signature(function: Callable[..., Any]) -> inspect.Signature:
    """The function's, without the first parameter and with the shared options."""
    keyword = inspect.Parameter.KEYWORD_ONLY
    context = inspect.Parameter("ctx", keyword, annotation=typer.Context)
    _, *own = inspect.signature(function, eval_str=True).parameters.values()
    shared = [
        inspect.Parameter(key, keyword, annotation=annotation, default=default)
        for key, (annotation, default) in SHARED.items()
    ]
    return inspect.Signature([context, *(p.replace(kind=keyword) for p in own), *shared])


def _options(ctx: typer.Context, given: dict[str, Any]) -> Options:
    """What stands behind the command's name wins over what stands before it."""
    values, at = dict(given), ctx.parent
    while at is not None:
        values = {key: values[key] or at.params.get(key) for key in SHARED}
        at = at.parent
    return Options(**{key: values[key] or SHARED[key][1] for key in SHARED})


def _run(function: Callable[..., Any], options: Options, values: dict[str, Any]) -> None:
    cli = Cli(options)
    try:
        if inspect.iscoroutinefunction(function):
            anyio.run(partial(function, cli, **values))
        else:
            function(cli, **values)
    except (typer.Exit, typer.Abort):
        raise
    except (Exception, KeyboardInterrupt) as error:
        if options.debug and not isinstance(error, KeyboardInterrupt | failure.OutputClosed):
            raise
        if said := failure.sentence(error):
            cli.out.talk(f"stratum: {said}")
        raise typer.Exit(failure.exit_code(error)) from None
