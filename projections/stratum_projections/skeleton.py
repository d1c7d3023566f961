"""A projection to begin with, and its test: what `stratum projection new` writes."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from stratum_bus.errors import ConfigError, InvalidName, ProjectorError
from stratum_projections.projection import Projection
from stratum_projections.views import SHIPPED

TESTS = "tests"

_VIEW = '''\
"""@name@: one row for each event of the type @name@.added. Change it into a table of yours."""

from stratum_projections import Projection

@NAME@ = Projection(
    name="@name@",
    version=1,  # count it up whenever you change what is below: the table is then built anew
    types=("@name@.added",),  # the events it reads
    tables={"@name@": "seq bigint, stored timestamptz, sender varchar, title varchar, data json"},
    # `batch` holds the next events of the log, in any number, each once. Its columns:
    #   seq, stored, subject                  where in the log, when it was stored, on which subject
    #   role, agent, sender, kind, run        what the subject says: topic.<sender>.<type>, inbox.…
    #   id, type, source, time, about, data   the event's own; data->>'$.title' is a field as text
    #   runid, step, correlationid, causationid, cause   what it came of; cause is that event's seq
    statements=(
        """
        insert into @name@ by name
        select seq, stored, sender, data->>'$.title' as title, data from batch
        """,
    ),
)
'''

_TEST = '''\
"""The projection @name@, without a server: events in, rows out."""

from pathlib import Path

from stratum_projections.testing import project

VIEW = Path(__file__).parent / "@view@"


def test_each_event_is_a_row() -> None:
    tables = project(
        VIEW,
        [
            ("topic.alice.@name@.added", {"title": "The first", "pages": 12}),
            ("topic.bob.@name@.added", {"title": "The second"}),
            ("topic.bob.something.else", {"title": "Of another type"}),
        ],
    )
    rows = [(row["seq"], row["sender"], row["title"]) for row in tables["@name@"]]
    assert rows == [(1, "alice", "The first"), (2, "bob", "The second")]
'''


class Skeleton(msgspec.Struct, frozen=True):
    """What is written: each path with its text, and how stratum.toml names the projection."""

    view: Path
    test: Path
    entry: str
    texts: dict[Path, str]

    def write(self) -> None:
        """Write both files; raises ProjectorError `file`, and leaves what is there as it was."""
        written: list[Path] = []
        try:
            for path, text in self.texts.items():
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("x", encoding="utf-8") as file:
                    written.append(path)
                    file.write(text)
        except OSError as error:
            for path in written:
                path.unlink(missing_ok=True)
            reason = (error.strerror or str(error)).lower()
            raise ProjectorError("file", f"cannot write {error.filename}: {reason}") from error


def skeleton(name: str, folder: str, root: Path) -> Skeleton:
    """The files of a new projection, below `root`. Raises InvalidName."""
    _check(name)
    view, test = root / folder / f"{name}.py", root / TESTS / f"test_{name}.py"
    words = {"name": name, "NAME": name.upper(), "view": os.path.relpath(view, test.parent)}
    entry = str(view.relative_to(root) if view.is_relative_to(root) else view)
    return Skeleton(view, test, entry, {view: _filled(_VIEW, words), test: _filled(_TEST, words)})


def line(entry: str) -> str:
    """What to write below `[projector]` in stratum.toml."""
    return f"projections = [{_quoted(entry)}]"


def add(file: Path, entry: str) -> None:
    """Name the projection in stratum.toml, and change nothing else there; make the file if needed.

    Raises ConfigError where the file is none that one can do that to.
    """
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    found = _parsed(text, file)
    section = found.get("projector", {})
    if entry in section.get("projections", []):
        return
    there = section.get("projections", [])
    wanted = [
        {**found, "projector": {**section, "projections": named}}
        for named in ([*there, entry], [entry, *there])
    ]
    for changed in _changes(text, entry):
        try:
            if tomllib.loads(changed) not in wanted:
                continue
        except tomllib.TOMLDecodeError:
            continue
        file.write_text(changed, encoding="utf-8")
        return
    raise ConfigError(
        "projector.projections", "a list that can be added to",
        f"another form: write {_quoted(entry)} into it yourself", file=file.name,
    )  # fmt: skip


def _changes(text: str, entry: str) -> Iterator[str]:
    """Ways to add the entry; which of them is right is seen by reading what comes out."""
    for key in re.finditer(
        r"^[ \t]*(?:projector\.)?projections[ \t]*=[ \t]*\[", text, re.MULTILINE
    ):
        for end in re.finditer(r"\]", text[key.end() :]):
            before = text[: key.end() + end.start()]
            kept = before.rstrip()
            comma = "" if kept.endswith(("[", ",")) else ", "
            closing = before[len(kept) :] if "\n" in before[len(kept) :] else ""
            indent = "\n    " if closing else (" " if kept.endswith(",") else "")
            yield f"{kept}{comma.rstrip() if closing else comma}{indent}{_quoted(entry)}{closing}{text[len(before) :]}"
        yield f"{text[: key.end()]}{_quoted(entry)}, {text[key.end() :]}"
    for header in re.finditer(r"^[ \t]*\[projector\][^\n]*\n?", text, re.MULTILINE):
        head = header[0] if header[0].endswith("\n") else f"{header[0]}\n"
        yield f"{text[: header.start()]}{head}{line(entry)}\n{text[header.end() :]}"
    gap = "" if not text or text.endswith("\n\n") else "\n" if text.endswith("\n") else "\n\n"
    yield f"{text}{gap}[projector]\n{line(entry)}\n"


def _parsed(text: str, file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError("the file", "TOML", str(error), file=file.name) from error


def _check(name: str) -> None:
    for shipped in SHIPPED:
        if name in (shipped.name, *shipped.tables):
            raise InvalidName("projection name", name, "Stratum has a table of that name")
    try:
        Projection(name=name, tables={}, statements=())
    except ValueError as error:
        rule = str(error).partition("it must ")[2]
        raise InvalidName("projection name", name, f"it must {rule}") from None


def _filled(text: str, words: dict[str, str]) -> str:
    return re.sub(r"@(\w+)@", lambda found: words[found[1]], text)


def _quoted(text: str) -> str:
    return msgspec.json.encode(text).decode()
