"""A run as a person reads it: how it stands, and what happened in it, line by line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import PurePath
from typing import NamedTuple

from stratum_agents.history import (
    DAMAGED,
    PAUSED,
    RUNS,
    TAKEN_OVER,
    WAITS,
    Attempt,
    Moment,
    Story,
    Summary,
    moment_of,
)
from stratum_agents.journal import (
    CANCEL,
    CANCELLED,
    COMPENSATING,
    COMPLETED,
    CONTINUE,
    CONTINUED,
    FIRED,
    FORKED,
    PARKED,
    PAUSE,
    RESUMED,
    SENT,
    SIGNALLED,
    SUSPENDED,
    Failure,
    Recorded,
)
from stratum_cli.output import Part, one_line, time_text

_SHORT, _WIDE = 100, 40
_QUIET = timedelta(seconds=10)
_OURS = re.compile(r"[/\\]stratum_(agents|bus)[/\\]")
_PLACE = re.compile(r'File "(.*?)", line (\d+), in (\S+)')
_STYLES = {
    "done": "good", "came": "good", "over": "good", COMPLETED: "good", CONTINUED: "good",
    "failed": "bad", "timeout": "bad", PARKED: "bad", DAMAGED: "bad", CANCELLED: "bad",
    WAITS: "busy", RUNS: "busy", PAUSED: "busy", "to be tried again": "busy",
}  # fmt: skip
_EVENTS = {
    RESUMED: "resumed",
    SUSPENDED: "let go of",
    COMPENSATING: "undoing what was done",
    CANCEL: "asked to cancel",
    PAUSE: "asked to pause",
    CONTINUE: "asked to go on",
    SIGNALLED: "received",
    FIRED: "timer",
    FORKED: "forked from",
    CONTINUED: "continued as",
    TAKEN_OVER: "taken over",
}


def header(story: Story, now: datetime) -> Iterator[list[Part]]:
    """How a run stands, a fact a line."""
    summary, origin = story.summary, story.origin
    yield _field("run", ("bold", summary.run))
    yield _field("agent", ("", summary.agent))
    if origin is not None:
        yield _field("began by", ("", f"{origin.type}, {origin.stream} {origin.sequence}"))
    state = summary.state + (", asked to cancel" if summary.cancelling else "")
    if summary.state == RUNS and summary.instance:
        state += f" on {summary.instance}"
    if summary.state == RUNS and summary.changed and now - summary.changed > _QUIET:
        state += f", nothing new for {_span(now - summary.changed)}"
    yield _field("state", (_STYLES.get(summary.state, ""), state))
    if waits := waiting(summary, now):
        yield _field("waits", ("", waits))
    if summary.started is not None:
        yield _field("started", ("", time_text(summary.started)))
        took = _span((summary.ended or now) - summary.started)
        ended = (
            f"{time_text(summary.ended)}, after {took}" if summary.ended else f"not yet ({took})"
        )
        yield _field("ended", ("", ended))
    done = f"{summary.steps} done" + (f", {summary.failures} failed" if summary.failures else "")
    yield _field("steps", ("", done))
    if summary.forked_from:
        yield _field("fork of", ("", f"{summary.forked_from} at {summary.forked_at}"))
    if summary.next:
        yield _field("goes on as", ("", summary.next))
    if story.error is not None:
        yield from _error(story.error)
    elif summary.error:
        yield _field("error", ("bad", summary.error))


def timeline(story: Story) -> Iterator[list[Part]]:
    """What happened: time since the start, position, call, how it went, how long it took."""
    if not story.timeline:
        return
    started = min(moment.time for moment in story.timeline)
    times = {moment.sequence: _offset(moment.time - started) for moment in story.timeline}
    places = [n for moment in story.timeline for n in _places(moment)]
    layout = Layout(
        max(map(len, times.values())),
        max(map(len, places), default=0),
        min(_WIDE, max(len(what(moment)) for moment in story.timeline)),
        max(len(moment.state) for moment in story.timeline),
    )
    for moment in story.timeline:
        yield from lines(moment, times[moment.sequence], layout)


class Layout(NamedTuple):
    """The widths of the columns of a timeline."""

    time: int = 0
    n: int = 6
    what: int = 0
    state: int = 0


def entry(recorded: Recorded, suspended: bool) -> Iterator[list[Part]]:
    """A journal entry by itself, as it comes; was the run let go of before?"""
    moment = moment_of(recorded, suspended=suspended)
    return lines(moment, time_text(recorded.time), Layout())


def lines(moment: Moment, time: str, layout: Layout) -> Iterator[list[Part]]:
    """One thing that happened, its effects before it and its failed attempts behind."""
    margin = " " * (layout.time or len(time))
    for effect in moment.effects:
        n = f"{effect.n:<{layout.n}}"
        yield [("", f"{margin}  {n}  "), ("dim", f"→ {effect.type}  {effect.subject}")]
    if moment.what == SENT:
        return
    happened = moment.what in _EVENTS
    n = "" if happened else moment.n
    style = _STYLES.get(moment.state or moment.what, "")
    parts: list[Part] = [("dim", f"{time:>{layout.time}}"), ("", f"  {n:<{layout.n}}  ")]
    called = "dim" if happened else "" if moment.state else style
    parts.append((called, f"{what(moment):<{layout.what}}"))
    if layout.state or moment.state:
        parts.append((style, f"  {moment.state:<{layout.state}}"))
    took = "" if moment.seconds is None else _span(timedelta(seconds=moment.seconds))
    if layout.what or took:
        parts.append(("dim", f"  {took:>8}"))
    parts.append(("dim", f"  {_rest(moment)}"))
    yield parts
    for attempt in moment.attempts:
        yield [("", f"{margin}  {'':<{layout.n}}    "), ("bad", _attempt(attempt))]


def _places(moment: Moment) -> list[str]:
    own = [] if moment.what in _EVENTS else [moment.n]
    return own + [effect.n for effect in moment.effects]


def what(moment: Moment) -> str:
    """A call, or what happened, in words."""
    kind, _, name = moment.what.partition(":")
    if moment.what in _EVENTS:
        return _EVENTS[moment.what]
    if kind == "wait":
        return f"wait for {name.replace('|', ' or ')}"
    if kind == "reply":
        return f"answer to {name}"
    if moment.n.startswith("c"):
        return name  # "undo book"
    return f"{kind} {name}".strip()


def waiting(summary: Summary, now: datetime) -> str:
    """What a run waits for and until when, "" for nothing."""
    named = [f"for {name}" for each in summary.waits if (name := _awaited(each))]
    until = ""
    if summary.until is not None:
        left = summary.until - now
        left_text = f"in {_span(left)}" if left > timedelta() else "due"
        until = f"until {time_text(summary.until)} ({left_text})"
    return ", ".join(part for part in (" and ".join(named), until) if part)


def _awaited(name: str) -> str:
    kind, _, rest = name.partition(":")
    if kind == "step":
        return f"another attempt of {rest}"
    return {"wait": rest.replace("|", " or "), "reply": f"the answer to {rest}"}.get(kind, "")


def _rest(moment: Moment) -> str:
    """What else is to be said in the same line."""
    said = []
    if moment.shared:
        said.append("(shared)")
    if moment.what in (RESUMED, TAKEN_OVER) and moment.instance:
        said.append(f"by {moment.instance}")
    if moment.until is not None and moment.state in (WAITS, "to be tried again"):
        said.append(f"until {time_text(moment.until)}")
    if moment.child:
        said.append(f"run {moment.child}")
    if moment.note:
        note = moment.note
        said.append(f"of {note[1:].replace('-', '.')}" if moment.what == FIRED else note)
    if moment.result is not None and moment.what != SIGNALLED:
        shown = one_line(bytes(moment.result))
        if shown != "null":
            said.append(shown if len(shown) <= _SHORT else shown[: _SHORT - 1] + "…")
    return "  ".join(said)


def _attempt(attempt: Attempt) -> str:
    took = f" after {_span(timedelta(seconds=attempt.seconds))}" if attempt.seconds else ""
    cause = f", caused by {attempt.error.cause}" if attempt.error.cause else ""
    error = _one(f"{attempt.error.type}: {attempt.error.message}{cause}")
    return f"attempt {attempt.number} failed{took}: {error}{_where(attempt.error)}"


def _where(failure: Failure) -> str:
    """The innermost place of the journaled trace, outside of our own code where there is one."""
    places = _PLACE.findall(failure.trace)
    places = [place for place in places if not _OURS.search(place[0])] or places
    if not places:
        return ""
    path, line, function = places[-1]
    return f" ({PurePath(path).name}:{line} in {function})"


def _error(failure: Failure) -> Iterator[list[Part]]:
    yield _field("error", ("bad", _one(f"{failure.type}: {failure.message}{_where(failure)}")))
    if failure.cause:
        yield _field("caused by", ("bad", _one(failure.cause)))


def _field(name: str, value: Part) -> list[Part]:
    return [("dim", f"{name:<10}  "), value]


def _one(text: str) -> str:
    return " ".join(text.split())


def _offset(since: timedelta) -> str:
    seconds = since.total_seconds()
    return f"+{seconds:.3f} s" if abs(seconds) < 60 else f"+{_span(since)}"


def _span(time: timedelta) -> str:
    """A length of time in its two largest units."""
    seconds = abs(time.total_seconds())
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms" if seconds >= 0.001 else f"{seconds * 1000:.1f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, hours = seconds / 60, seconds / 3600
    if minutes < 60:
        return f"{int(minutes)} min {int(seconds % 60)} s"
    if hours < 24:
        return f"{int(hours)} h {int(minutes % 60)} min"
    return f"{int(hours // 24)} d {int(hours % 24)} h"
