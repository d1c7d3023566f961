"""The only module that prints. stdout is data: tables on a terminal, plain columns otherwise, one
JSON object a line with `--json`. stderr is talk.

What comes out of the log was written by anybody: control characters in it are made visible, so that
no event can move a reader's cursor.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import stat
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import anyio
import msgspec

from stratum_cli.failure import OutputClosed, Refusal

Row = Mapping[str, Any]
Columns = Mapping[str, str | Callable[[Row], object]]
"""Heading to what stands below it: a key of the row, or a function of it."""

Part = tuple[str, str]
"""A style (one of `_STYLES`, or "") and a text in it."""

_STYLES = {"bold": "1", "dim": "2", "good": "32", "bad": "31", "busy": "33"}
_PLAIN_WIDTH = 48
_PROGRESS_SECONDS = 5.0
_VISIBLE = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))}
_BOLD, _PLAIN = "\033[1m", "\033[0m"
_COLOURS = (
    (re.compile(r"given up|cannot|quarantined|is parked|told "), "\033[31m"),
    (re.compile(r"^ended|^stopped since|again in|was asked for"), "\033[33m"),
    (re.compile(r"^started|^back at|^ready"), "\033[32m"),
)
_VISIBLE_IN_JSON = {code: f"\\u{code:04x}" for code in range(127, 160)}


class Output:
    """Where a command's results and remarks go."""

    def __init__(self, *, json: bool = False) -> None:
        self.json = json
        self.terminal = bool(sys.stdout and sys.stdout.isatty())
        self.colours = self.terminal and not os.environ.get("NO_COLOR")
        self._progress = 0.0

    def table(self, rows: Iterable[Row], columns: Columns, *, nothing: str = "nothing") -> None:
        """A listing. `nothing` is said on stderr where there are no rows."""
        rows = list(rows)
        if self.json:
            for row in rows:
                self.object(row)
            return
        if not rows:
            self.talk(nothing)
            return
        values = [[_pick(row, column) for column in columns.values()] for row in rows]
        cells = [[cell(value) for value in each] for each in values]
        if self.terminal:
            numeric = [isinstance(value, int | float) for value in values[0]]
            _write(_rich_table(list(columns), cells, numeric))
        else:
            _write(_plain_table(list(columns), cells))

    def record(self, row: Row) -> None:
        """One thing: a field a line."""
        if self.json:
            self.object(row)
            return
        width = max((len(key) for key in row), default=0)
        for key, value in row.items():
            first, *rest = _lines(value) or [""]
            _write(f"{key.replace('_', ' '):<{width}}  {first}".rstrip() + "\n")
            for line in rest:
                _write(f"{'':<{width}}  {line}\n")

    def line(self, text: str, *, shorten: bool = True) -> None:
        """A line of its own at once; on a terminal cut to its width, unless told otherwise."""
        text = visible(text)
        if self.terminal and shorten:
            width = shutil.get_terminal_size().columns
            text = text if len(text) <= width else text[: width - 1] + "…"
        _write(text + "\n")

    def styled(self, parts: Iterable[Part]) -> None:
        """A line of its own in several styles, which show on a terminal only."""
        if not self.colours:
            self.line("".join(text for _, text in parts).rstrip())
            return
        left, line = shutil.get_terminal_size().columns, ""
        for style, text in parts:
            shown = visible(text)
            shown = shown if len(shown) <= left else shown[: left - 1] + "…"
            left -= len(shown)
            line += f"\x1b[{_STYLES[style]}m{shown}\x1b[0m" if style else shown
            if not left:
                break
        _write(line + "\n")

    def object(self, row: Row | msgspec.Raw) -> None:
        """One JSON object on a line of its own."""
        _write(one_line(msgspec.json.encode(row)).translate(_VISIBLE_IN_JSON) + "\n")

    def json_lines(self, lines: bytes) -> None:
        """JSON objects, each on a line of its own."""
        _write(lines.decode().translate(_VISIBLE_IN_JSON))

    def bytes(self, data: bytes) -> None:
        """Bytes as they are: for binary formats and CSV."""
        _write_bytes(data)

    def clear(self) -> None:
        """Begin at the top of the terminal again."""
        if self.terminal and not self.json:
            _write("\x1b[H\x1b[2J")

    def raw(self, text: str) -> None:
        """Text as it is: for what is no data of the log (help, completion, CSV)."""
        _write(text)

    def talk(self, text: str) -> None:
        """A remark on stderr."""
        if sys.stderr is None:
            return
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(visible(text) + "\n")
            sys.stderr.flush()

    def progress(self, text: str) -> None:
        """How far something is, said on stderr, for as long as it takes; "" when it is over.

        On a terminal it is one line that is written anew, elsewhere a line every few seconds.
        """
        if sys.stderr is None or not (text or self._progress):
            return
        if not sys.stderr.isatty():
            now = time.monotonic()
            if text and now - self._progress >= _PROGRESS_SECONDS:
                self._progress = now
                self.talk(text)
            return
        self._progress = 1.0 if text else 0.0
        columns = shutil.get_terminal_size().columns
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(f"\r\x1b[K{visible(text)[: columns - 1]}")
            sys.stderr.flush()

    def fact(self, text: str) -> None:
        """A remark of the form `what: fact`; on a terminal in colour: what it is about, and
        trouble."""
        if sys.stderr is None or not sys.stderr.isatty():
            self.talk(text)
            return
        what, colon, fact = visible(text).partition(": ")
        trouble = next((colour for words, colour in _COLOURS if words.search(fact)), "")
        line = f"{_BOLD}{what}{colon}{_PLAIN}{trouble}{fact}{_PLAIN}" if colon else visible(text)
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(line + "\n")
            sys.stderr.flush()

    async def until_closed(self) -> None:
        """Raise OutputClosed when the reader of a piped stdout goes away; else wait for ever.

        Otherwise a command that follows would live on until the next event is written.
        """
        try:
            descriptor = sys.stdout.fileno()
            piped = stat.S_ISFIFO(os.fstat(descriptor).st_mode)
        except (OSError, ValueError, AttributeError):
            piped = False
        if not piped:
            await anyio.sleep_forever()
        closed, loop = asyncio.Event(), asyncio.get_running_loop()
        loop.add_reader(descriptor, closed.set)  # the writing end is "readable" when broken
        try:
            await closed.wait()
        finally:
            loop.remove_reader(descriptor)
        _give_up_stdout()
        raise OutputClosed


def _pick(row: Row, column: str | Callable[[Row], object]) -> object:
    return row.get(column) if isinstance(column, str) else column(row)


def visible(text: str) -> str:
    """The text with its control characters written out."""
    return text.translate(_VISIBLE)


def cell(value: object) -> str:
    """A value in a table or a record."""
    return visible(_text(value))


def time_text(time: datetime) -> str:
    """UTC to the millisecond, as in 2026-01-31T12:00:00.123Z."""
    return time.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def one_line(json: bytes) -> str:
    """JSON without line breaks, whoever wrote it."""
    try:
        return msgspec.json.format(json, indent=-1).decode()
    except (msgspec.DecodeError, RecursionError):
        return " ".join(json.decode(errors="backslashreplace").split())


def _text(value: object) -> str:
    match value:
        case None:
            return ""
        case str():
            return value
        case bool():
            return "yes" if value else "no"
        case int() | float() | Decimal():
            return str(value)
        case datetime():
            return time_text(value)
        case list() | tuple() if all(isinstance(item, str | int) for item in value):
            return ", ".join(map(str, value))
    text = one_line(msgspec.json.encode(value))
    return text[1:-1] if text.startswith('"') else text


def _lines(value: object) -> list[str]:
    if isinstance(value, str):
        return [visible(line) for line in value.splitlines()]
    if isinstance(value, list | tuple) and value and not isinstance(value[0], int):
        return [cell(item) for item in value]
    return [cell(value)]


def _plain_table(headings: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """In line up to a width: one cell of 3,000 characters must not push all others away."""
    table = [list(headings), *cells]
    widths = [min(_PLAIN_WIDTH, max(len(row[i]) for row in table)) for i in range(len(headings))]
    return "".join(
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        + "\n"
        for row in table
    )


def _rich_table(
    headings: Sequence[str], cells: Sequence[Sequence[str]], numeric: Sequence[bool]
) -> str:
    from rich import box
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    natural = [max(map(cell_len, column)) for column in zip(headings, *cells, strict=True)]
    widths = _fit(natural, console.width - 2 * (len(natural) - 1))
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for heading, width, right in zip(headings, widths, numeric, strict=True):
        justify: Any = "right" if right else "left"
        table.add_column(heading, width=width, justify=justify, no_wrap=True, overflow="ellipsis")
    for row in cells:
        table.add_row(*(Text(text) for text in row))
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def _fit(widths: Sequence[int], available: int) -> list[int]:
    """Widths that fit: the widest are cut to a common one, the others stay."""
    cap = max(widths)
    while cap > 1 and sum(min(width, cap) for width in widths) > available:
        cap -= 1
    return [min(width, cap) for width in widths]


def _write(text: str) -> None:
    _write_bytes(text.encode(errors="backslashreplace"))


def _write_bytes(data: bytes) -> None:
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        _give_up_stdout()
        raise OutputClosed from None
    except OSError as error:
        _give_up_stdout()
        raise Refusal(f"stdout cannot be written: {error.strerror or error}") from error


def _give_up_stdout() -> None:
    """Keep the interpreter from flushing into a closed pipe once more when it ends."""
    with contextlib.suppress(OSError, ValueError):
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, sys.stdout.fileno())
        os.close(devnull)
