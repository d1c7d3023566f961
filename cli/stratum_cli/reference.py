"""`python -m stratum_cli.reference`: docs/cli.md, written from the commands themselves.

Not from the text of `--help`, which is laid out for a terminal and by another hand.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import typer

from stratum_cli import command, failure
from stratum_cli.main import app
from stratum_cli.output import Output

_HEAD = """\
# The command line

Written by `make docs`; changes here are lost.

"""


def reference() -> str:
    """The whole page."""
    root = typer.main.get_command(app)
    parts = [_HEAD + paragraph(root.help), _server_and_output(), _codes()]
    parts += ["## Options of every command\n\n" + _options(_shared(root))]
    parts += ["## Options of `stratum` itself\n\n" + _options(_own(root))]
    parts += [_command(path, each) for path, each in commands()]
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


def commands() -> Iterator[tuple[str, Any]]:
    """Every command that does something, with the words that call it."""

    def walk(path: str, at: Any) -> Iterator[tuple[str, Any]]:
        for name, child in at.commands.items():
            below, verbs = f"{path} {name}", hasattr(child, "commands")
            if not verbs or child.invoke_without_command:
                yield below, child
            if verbs:
                yield from walk(below, child)

    return walk("stratum", typer.main.get_command(app))


def paragraph(text: str | None) -> str:
    return inspect.cleandoc(text or "")


def _command(path: str, each: Any) -> str:
    arguments = [p for p in each.params if p.param_type_name == "argument"]
    usage = " ".join([path, "[OPTIONS]", *(_usage(p) for p in arguments)])
    parts = [f"## {path}\n\n`{usage}`\n\n{paragraph(each.help)}"]
    lines = [f"- `{_metavar(p)}` {_help(p)}" for p in arguments]
    if options := _options(_own(each)):
        lines.append(options)
    return "\n\n".join([*parts, "\n".join(lines)])


def _options(parameters: list[Any]) -> str:
    return "\n".join(f"- `{_names(p)}` {_help(p)}" for p in parameters)


def _own(each: Any) -> list[Any]:
    shared = set(command.SHARED)
    return [p for p in each.params if p.param_type_name == "option" and p.name not in shared]


def _shared(root: Any) -> list[Any]:
    return [p for p in root.params if p.name in command.SHARED]


def _names(parameter: Any) -> str:
    names = ", ".join(parameter.opts)
    return names if parameter.is_flag else f"{names} {_metavar(parameter)}"


def _metavar(parameter: Any) -> str:
    return str(parameter.metavar or parameter.name.upper())


def _usage(parameter: Any) -> str:
    return _metavar(parameter) if parameter.required else f"[{_metavar(parameter)}]"


def _help(parameter: Any) -> str:
    text = str(parameter.help or "").strip()
    shown = parameter.default not in (None, False, "", [], ()) and not parameter.required
    default = getattr(parameter.default, "value", parameter.default)
    return f"{text} Default: {default}." if shown else text


def _server_and_output() -> str:
    text = paragraph(typer.main.get_command(app).epilog)
    return text.partition("\n\n")[0]


def _codes() -> str:
    rows = [f"| {code} | {meaning} |" for code, meaning in failure.EXIT_CODES.items()]
    return "\n".join(["## Exit codes\n", "| code | meaning |", "|---|---|", *rows])


if __name__ == "__main__":
    Output().raw(reference())
