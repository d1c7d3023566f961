"""The files of moments beside the projector's file, and which of them a new one can begin with."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from stratum_bus.errors import QueryError
from stratum_projections.catalog import LAYOUT
from stratum_projections.checkpoint import CORE
from stratum_projections.lake import hot
from stratum_projections.moment import Moment
from stratum_projections.projection import Projection
from stratum_projections.standing import standing

KEPT = 4
KEPT_BYTES = 2 << 30
"""How many files stay, and how large they may be together. The newest one always does."""

_FOLDER = "asof"
_NAME = re.compile(r".+\.(\d+)\.\d{8}T\d{6}\.\d{6}\.duckdb")


class Files:
    """The files of moments in a folder, for one moment and some projections. All methods block."""

    def __init__(self, folder: Path, moment: Moment, wanted: Sequence[Projection]) -> None:
        self.folder = folder.absolute() / _FOLDER
        self.moment = moment
        self.wanted = wanted
        self._snapshots = self.folder.with_name("snapshots")

    def ready(self, path: Path) -> bool:
        """Give the file of this very moment a second name, `path`, if it is there."""
        for sequence, there in self._candidates([self.folder]):
            if sequence == self.moment.sequence and self._fits(there, at_once=True):
                # By its own name it may be removed while it is read.
                with suppress(OSError):
                    os.link(there, path)
                    os.utime(path)
                    return True
        return False

    def begin(self, new: Path) -> None:
        """Copy the latest file that can be gone on with to `new`; none leaves nothing there."""
        for _, path in self._candidates([self.folder, self._snapshots]):
            if self._fits(path):
                # Not by opening it: that drops DuckDB's lock on the file, for this whole process.
                command = ["cp", "--", str(path), str(new)]
                if not subprocess.run(command, capture_output=True, check=False).returncode:
                    return
                new.unlink(missing_ok=True)

    def keep(self, new: Path) -> None:
        """Give the file a name among those that are kept, and remove the oldest of too many."""
        # The time makes the name new: a removed one is still what a process has open by it.
        made = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%f")
        path = self.folder / f"log.{self.moment.sequence}.{made}.duckdb"
        with suppress(OSError):  # where files have one name only, each question builds its own
            os.link(new, path)
        self._prune(path)

    def _candidates(self, folders: list[Path]) -> list[tuple[int, Path]]:
        """Files of this moment or before it, the latest moment first."""
        found = [
            (sequence, path)
            for folder in folders
            for path in folder.glob("*.duckdb")
            if (match := _NAME.fullmatch(path.name))
            and (sequence := int(match[1])) <= self.moment.sequence
        ]
        return sorted(found, reverse=True)

    def _fits(self, path: Path, *, at_once: bool = False) -> bool:
        """Whether the wanted tables of a file are of this log and not behind the moment.

        With `at_once` all of them must have been folded up to it, not others of the same file.
        """
        try:
            found = standing(path)
        except QueryError:  # gone, damaged, or somebody works in it
            return False
        if found.created != self.moment.created or (found.watermark and self._wants_events()):
            return False
        end = self.moment.sequence
        wanted = {CORE: LAYOUT, **{each.name: each.version for each in self.wanted}}
        if any(found.versions.get(name) != version for name, version in wanted.items()):
            return False
        positions = {found.positions.get(name, end + 1) for name in wanted}
        return max(positions) <= end and not (at_once and len(positions) > 1)

    def _wants_events(self) -> bool:
        return any(hot.TABLE in projection.tables for projection in self.wanted)

    def _prune(self, made: Path) -> None:
        size = kept = 0
        for path in _newest_first(self.folder):
            with suppress(FileNotFoundError):
                size += path.stat().st_size
                kept += 1
                if path != made and (kept > KEPT or size > KEPT_BYTES):
                    path.unlink()


def _newest_first(folder: Path) -> list[Path]:
    found = []
    for path in folder.glob("*.duckdb"):
        with suppress(FileNotFoundError):
            found.append((path.stat().st_mtime_ns, path))
    return [path for _, path in sorted(found, reverse=True)]
