"""`stratum`: the command line over the bus, its agents and its projections."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from stratum_bus.errors import StratumError
from stratum_cli import command, failure
from stratum_cli.output import Output

NOUNS = (
    "up",
    "send",
    "tail",
    "replay",
    "inbox",
    "memory",
    "agent",
    "run",
    "health",
    "dead",
    "stream",
    "sql",
    "projection",
    "lake",
    "research",
    "contract",
    "gateway",
    "doctor",
)
"""The modules of `commands/`, in the order of the help; each has `register(app)`."""

_EPILOG = """\
stdout is data, stderr is talk. The server is the one of `--nats-url`, else of `STRATUM_NATS_URL`, \
else of `server.url` in stratum.toml, else the one that `stratum up` runs on the data folder.

Exit codes:

""" + "\n".join(f"- `{code}` {meaning}" for code, meaning in failure.EXIT_CODES.items())

app = typer.Typer(
    name="stratum",
    help="Every agent action is an event on a log; this sends, reads and looks after them.",
    epilog=_EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        Output().raw(f"stratum {version('stratum-bus')}\n")
        raise typer.Exit


@app.callback()
def _options(
    config: command.Config = None,
    data_dir: command.DataDir = None,
    nats_url: command.NatsUrl = None,
    json: command.Json = False,
    debug: command.Debug = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """These are read where the command runs, see `command._options`."""


for _noun in NOUNS:
    if importlib.util.find_spec(f"stratum_cli.commands.{_noun}"):
        importlib.import_module(f"stratum_cli.commands.{_noun}").register(app)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line (that of the process, where none is given) and return its exit code."""
    try:
        code = app(
            args=None if arguments is None else list(arguments),
            prog_name="stratum",
            standalone_mode=False,
        )
    except failure.TyperError as error:
        if said := failure.usage_sentence(error):
            Output().talk(f"stratum: {said}")
        return int(getattr(error, "exit_code", failure.USAGE))
    except typer.Abort:
        return failure.INTERRUPTED
    except (StratumError, OSError, failure.OutputClosed, KeyboardInterrupt) as error:
        # outside of a command: while help or the version is shown
        if said := failure.sentence(error):
            Output().talk(f"stratum: {said}")
        return failure.exit_code(error)
    return code if isinstance(code, int) else failure.OK


if __name__ == "__main__":
    sys.exit(main())
