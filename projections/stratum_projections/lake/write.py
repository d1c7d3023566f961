"""Writing one segment: unseen until it is whole and on the disk. All of it blocks."""

from __future__ import annotations

import contextlib
import os
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from stratum_projections.lake.rows import SCHEMA
from stratum_projections.lake.segment import (
    LAYOUT,
    Facts,
    Folder,
    Segment,
    sync_folder,
    to_metadata,
    usable,
)

ROW_GROUP = 100_000
_DISTINCT = {"seq", "stored_ns", "id", "time", "stored", "data", "payload", "headers"}
_RECURRING = [name for name in SCHEMA.names if name not in _DISTINCT]
"""Columns whose values recur, and are worth a dictionary."""


class Draft:
    """A segment in the making, from `first` on. End it by `publish` or `discard`.

    Every method raises LakeError `folder`, as on a full disk.
    """

    def __init__(self, folder: Folder, kind: str, day: date, first: int) -> None:
        self._folder = folder
        self.day = day
        self.first = first
        self.rows = 0
        self.bytes = 0
        self.path = folder.place(day, first, first).with_name(f".{kind}-{first}.tmp")
        with usable(folder.root, "write"):
            _make(self.path.parent)
            self._writer = pq.ParquetWriter(
                self.path,
                SCHEMA,
                compression="zstd",
                compression_level=1,
                use_dictionary=_RECURRING,  # type: ignore[arg-type]
                write_page_checksum=True,
            )

    def write(self, rows: pa.Table) -> None:
        """Add rows of SCHEMA, behind those that are there."""
        with usable(self._folder.root, "write"):
            self._writer.write_table(rows, row_group_size=ROW_GROUP)
        self.rows += rows.num_rows
        self.bytes += rows.nbytes

    def publish(self, last: int, created: str) -> Segment:
        """Give it its name, which says that all up to `last` is in it; returns when that is on
        the disk. `created` is when the stream was created."""
        said = Facts(LAYOUT, self._folder.stream, created, self.first, last)
        with usable(self._folder.root, "write"):
            self._writer.add_key_value_metadata(to_metadata(said))
            self._writer.close()
            with self.path.open("rb+") as file:
                os.fsync(file.fileno())
            final = self._folder.place(self.day, self.first, last)
            self.path.replace(final)
            sync_folder(final.parent)
        return Segment(self.first, last, self.day, final)

    def discard(self) -> None:
        """Remove it, if it was not published."""
        # Closing writes the footer, which fails too where the disk is full.
        with contextlib.suppress(OSError, pa.ArrowException):
            self._writer.close()
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)


def remove(paths: list[Path], folder: Folder) -> None:
    """Remove files of the lake, and say so to the disk. Raises LakeError `folder`."""
    with usable(folder.root, "write"):
        for path in paths:
            path.unlink(missing_ok=True)
        for parent in {path.parent for path in paths}:
            sync_folder(parent)


def _make(folder: Path) -> None:
    """Make a folder and those above it, each to be found after a power cut."""
    if folder.is_dir():
        return
    _make(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)
