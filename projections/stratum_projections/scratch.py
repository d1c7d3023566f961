"""Folders for files that are only of use to one call, and that do not outlive it."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import anyio
import anyio.to_thread

from stratum_bus.errors import ProjectorError
from stratum_bus.event import uuid7

_PREFIX = ".work-"


@asynccontextmanager
async def scratch(folder: Path) -> AsyncIterator[Path]:
    """A folder of one's own in `folder`, removed at the end, also when cancelled.

    Those that killed processes left behind are removed first: each is locked for as long as its
    process lives. Raises ProjectorError `file` where it cannot be made.
    """
    path, lock = await anyio.to_thread.run_sync(_make, folder)
    try:
        yield path
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(_remove, path, lock)


def _make(folder: Path) -> tuple[Path, int]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _turn(folder):
            for left in folder.glob(f"{_PREFIX}*"):
                with suppress(BlockingIOError, FileNotFoundError):
                    _remove(left, _locked(left))
            path = folder / f"{_PREFIX}{uuid7()}"
            path.mkdir()
            return path, _locked(path)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ProjectorError(
            "file", f"cannot write temporary files to {folder}: {reason}"
        ) from error


@contextmanager
def _turn(folder: Path) -> Iterator[None]:
    """One process at a time: a folder that is not locked yet looks like one that was left."""
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _locked(path: Path) -> int:
    """The descriptor that holds the lock. Raises BlockingIOError where a process has it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _remove(path: Path, lock: int) -> None:
    shutil.rmtree(path, ignore_errors=True)
    os.close(lock)
