"""The lake's files, and what their names say: `stream=LOG/date=2026-01-31/<first>-<last>.parquet`.

A name is a promise: every message that the stream holds from `first` to `last` is in the file,
whose date is the UTC day on which they were stored. Files appear by renaming what is complete and
on the disk, so the listing is the one record of what has been exported, and no crash can make the
two disagree. A file whose range lies within another's is what a compaction replaced: whoever reads
leaves it out.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from stratum_bus.errors import LakeError

LAYOUT = 1
_NAME = re.compile(r"(\d{1,19})-(\d{1,19})\.parquet", re.ASCII)
_STREAM = re.compile(r"[^\s./\\*>=]+")
_FACTS = "stratum"


class Segment(msgspec.Struct, frozen=True, order=True):
    """A file of the lake, as its name describes it."""

    first: int
    last: int
    day: date
    path: Path

    def covers(self, other: Segment) -> bool:
        return self.first <= other.first and other.last <= self.last


class Facts(msgspec.Struct, frozen=True):
    """What a segment says of itself, in its footer. `created` is when its stream was created."""

    layout: int
    stream: str
    created: str
    first: int
    last: int


class Listing(msgspec.Struct, frozen=True):
    """The segments of a stream in order; `replaced` are those whose range lies within another's.

    `foreign` are files that have no business there. Other programs' hidden files are not listed.
    """

    segments: list[Segment]
    replaced: list[Segment]
    foreign: list[Path]

    @property
    def last(self) -> int:
        return self.segments[-1].last if self.segments else 0

    def missing(self, first: int, last: int) -> list[tuple[int, int]]:
        """The ranges between `first` and `last` that no segment holds."""
        found, at = [], first
        for segment in self.segments:
            if segment.first > at:
                found.append((at, min(segment.first - 1, last)))
            at = max(at, segment.last + 1)
            if at > last:
                break
        if at <= last:
            found.append((at, last))
        return [(a, b) for a, b in found if a <= b]


class Folder:
    """The segments of one stream in the lake at `path`, which need not exist yet."""

    def __init__(self, path: Path | str, stream: str = "LOG") -> None:
        if not _STREAM.fullmatch(stream):
            raise LakeError("folder", f"{stream!r} cannot be the name of a stream")
        self.lake = Path(path).absolute()
        self.stream = stream
        self.root = self.lake / f"stream={stream}"

    def listing(self) -> Listing:
        """What is there. Raises LakeError: `folder`, `damaged` where two ranges overlap in part."""
        found: list[Segment] = []
        foreign: list[Path] = []
        with usable(self.root, "read"):
            for day, path in self._files():
                segment = _segment(day, path)
                if segment is not None:
                    found.append(segment)
                elif not path.name.startswith("."):
                    foreign.append(path)
        segments, replaced = self._in_order(found)
        return Listing(segments, replaced, sorted(foreign))

    def strays(self, kind: str) -> list[Path]:
        """What a writer of this kind left unfinished. Only for who holds its lock."""
        with usable(self.root, "read"):
            return [path for _, path in self._files() if path.name.startswith(f".{kind}-")]

    def place(self, day: date, first: int, last: int) -> Path:
        return self.root / f"date={day.isoformat()}" / f"{first:012}-{last:012}.parquet"

    @contextmanager
    def locked(self, kind: str) -> Iterator[None]:
        """Be the only writer of this kind. Raises LakeError `locked` with who is, `folder`."""
        with usable(self.root, "write"):
            self.root.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.root / f".{kind}.lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(descriptor, 20, 0).decode(errors="replace").strip()
                who = f"process {holder}" if holder else "another process"
                text = f"{who} already writes to {self.root}: one {kind} at a time"
                raise LakeError("locked", text) from None
            with usable(self.root, "write"):
                os.truncate(descriptor, 0)
                os.pwrite(descriptor, str(os.getpid()).encode(), 0)
            yield
        finally:
            os.close(descriptor)

    def _files(self) -> Iterator[tuple[str, Path]]:
        try:
            entries = sorted(os.scandir(self.root), key=lambda entry: entry.name)
        except FileNotFoundError:
            return
        for entry in entries:
            if entry.is_dir() and not entry.name.startswith("."):
                for file in os.scandir(entry):
                    yield entry.name, Path(file.path)
            elif not entry.name.startswith("."):
                yield "", Path(entry.path)

    def _in_order(self, found: Sequence[Segment]) -> tuple[list[Segment], list[Segment]]:
        segments: list[Segment] = []
        replaced: list[Segment] = []
        for segment in sorted(found, key=lambda each: (each.first, -each.last, each.path)):
            before = segments[-1] if segments else None
            if before and before.covers(segment):
                replaced.append(segment)
            elif before and segment.first <= before.last:
                raise LakeError(
                    "damaged",
                    f"{before.path} and {segment.path} hold some of the same events: move away the "
                    "one that is not of this lake, and what is then missing is exported again",
                )
            else:
                segments.append(segment)
        return segments, replaced


def facts(segment: Segment, stream: str) -> Facts:
    """What a segment says of itself, checked against its name.

    Raises LakeError `damaged`, and FileNotFoundError where a compaction has just removed it.
    """
    return facts_of(segment, stream, opened(segment.path).metadata)


def facts_of(segment: Segment, stream: str, metadata: pq.FileMetaData) -> Facts:
    try:
        said = msgspec.json.decode((metadata.metadata or {})[_FACTS.encode()], type=Facts)
    except (KeyError, msgspec.MsgspecError) as error:
        raise damaged(segment.path, "Stratum did not write it") from error
    if (said.first, said.last, said.stream) != (segment.first, segment.last, stream):
        what = f"it holds {said.stream} {said.first}-{said.last}, and its name says otherwise"
        raise damaged(segment.path, what)
    if said.layout != LAYOUT:
        raise damaged(segment.path, f"its layout is {said.layout}, and {LAYOUT} is known")
    return said


def to_metadata(said: Facts) -> dict[str, str]:
    return {_FACTS: msgspec.json.encode(said).decode()}


def opened(path: Path) -> pq.ParquetFile:
    """The file, with the checksums of its pages checked as they are read."""
    try:
        return pq.ParquetFile(path, page_checksum_verification=True)
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise damaged(path, _plain(error)) from error


def damaged(path: Path, why: str) -> LakeError:
    return LakeError(
        "damaged",
        f"{path} is no whole segment ({why}): move it away, and what the stream still holds of it "
        "is exported again",
    )


@contextmanager
def usable(path: Path, verb: str) -> Iterator[None]:
    """The system's errors as LakeError `folder`."""
    try:
        yield
    except OSError as error:
        # Arrow puts words of its own before the system's.
        reason = (error.strerror or _plain(error)).rpartition("] ")[2].lower()
        raise LakeError("folder", f"cannot {verb} the lake in {path}: {reason}") from error


def sync_folder(path: Path) -> None:
    """Return when the names in a folder are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _plain(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _segment(day: str, path: Path) -> Segment | None:
    match = _NAME.fullmatch(path.name)
    if not match or not day.startswith("date="):
        return None
    first, last = int(match[1]), int(match[2])
    try:
        segment = Segment(first, last, date.fromisoformat(day.removeprefix("date=")), path)
    except ValueError:
        return None
    return segment if 1 <= first <= last and path.is_file() else None
