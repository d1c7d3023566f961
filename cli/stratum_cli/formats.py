"""Rows in the formats that `stratum sql` writes, to stdout and to files."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet

from stratum_cli.failure import Refusal
from stratum_cli.output import Output
from stratum_projections.rows import csv_heading, csv_lines, json_lines, names

File = io.RawIOBase | io.BufferedIOBase

_GROUP_ROWS = 100_000
"""Rows of a row group in Parquet."""


class Format(StrEnum):
    table = "table"
    json = "json"
    csv = "csv"
    arrow = "arrow"
    parquet = "parquet"


BINARY = (Format.arrow, Format.parquet)
SUFFIXES = {
    ".json": Format.json,
    ".jsonl": Format.json,
    ".ndjson": Format.json,
    ".csv": Format.csv,
    ".arrow": Format.arrow,
    ".parquet": Format.parquet,
}


class Writer:
    """Takes batches of rows, and then `close`."""

    def __init__(self, file: File, schema: pa.Schema, *, is_file: bool) -> None:
        """`is_file`: the format of a file, where that of a stream is another."""
        self.file = file

    def write(self, batch: pa.RecordBatch) -> None:
        raise NotImplementedError

    def close(self) -> None:
        """Write what is left."""


class _Json(Writer):
    def write(self, batch: pa.RecordBatch) -> None:
        self.file.write(json_lines(batch))


class _Csv(Writer):
    def __init__(self, file: File, schema: pa.Schema, *, is_file: bool) -> None:
        super().__init__(file, schema, is_file=is_file)
        file.write(csv_heading(schema).encode())

    def write(self, batch: pa.RecordBatch) -> None:
        self.file.write(csv_lines(batch).encode(errors="backslashreplace"))


class _Arrow(Writer):
    def __init__(self, file: File, schema: pa.Schema, *, is_file: bool) -> None:
        super().__init__(file, schema, is_file=is_file)
        new = pa.ipc.new_file if is_file else pa.ipc.new_stream
        self._writer = new(file, schema)

    def write(self, batch: pa.RecordBatch) -> None:
        self._writer.write_batch(batch)

    def close(self) -> None:
        self._writer.close()


class _Parquet(Writer):
    def __init__(self, file: File, schema: pa.Schema, *, is_file: bool) -> None:
        super().__init__(file, schema, is_file=is_file)
        fields = zip(schema, names(schema), strict=True)
        self._schema = pa.schema([field.with_name(name) for field, name in fields])
        self._writer = pa.parquet.ParquetWriter(
            pa.PythonFile(file, mode="w"), self._schema, compression="zstd"
        )
        self._rows: list[pa.RecordBatch] = []

    def write(self, batch: pa.RecordBatch) -> None:
        self._rows.append(pa.RecordBatch.from_arrays(batch.columns, schema=self._schema))
        if sum(each.num_rows for each in self._rows) >= _GROUP_ROWS:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_batches(self._rows, self._schema))
            self._rows.clear()


_WRITERS: dict[Format, type[Writer]] = {
    Format.json: _Json,
    Format.csv: _Csv,
    Format.arrow: _Arrow,
    Format.parquet: _Parquet,
}


@contextmanager
def writing(format: Format, file: File, schema: pa.Schema, *, is_file: bool) -> Iterator[Writer]:
    """A writer, closed at the end if all went well. Raises Refusal where the format lacks a type."""
    try:
        writer = _WRITERS[format](file, schema, is_file=is_file)
        yield writer
        writer.close()
    except (pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
        reason = " ".join(str(error).split())
        raise Refusal(f"{format} cannot hold a column: {reason}; cast it in the query") from error


@contextmanager
def new_file(path: Path) -> Iterator[File]:
    """A file that is at `path` when all went well, in place of what was there, else not at all.

    Raises Refusal: `path` is a folder, a device or such, or cannot be written.
    """
    if path.is_dir():
        raise Refusal(f"{path} is a folder: name a file in it")
    if path.exists() and not path.is_file():
        raise Refusal(f"{path} is not a regular file: write to stdout and lead that there")
    target = path.resolve()  # a link stays, and what it leads to is written
    new = target.with_name(f".{target.name}.{os.getpid()}.new")
    try:
        with new.open("wb") as file:
            yield file
        new.replace(target)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise Refusal(f"{path} cannot be written: {reason}") from error
    finally:
        new.unlink(missing_ok=True)


class Stdout(io.RawIOBase):
    """stdout as a file of bytes; text goes through what makes control characters visible."""

    def __init__(self, out: Output, format: Format) -> None:
        self._write = out.json_lines if format is Format.json else out.bytes
        self._at = 0

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self._write(bytes(data))
        self._at += len(data)
        return len(data)

    def tell(self) -> int:
        return self._at
