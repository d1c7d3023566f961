"""A program that runs as long as a test needs it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
from anyio.abc import Process


@asynccontextmanager
async def program(
    command: list[str], *, folder: Path | None = None, **environ: str
) -> AsyncIterator[Process]:
    """Start it; it is killed where the test fails, which would else wait for it for ever."""
    own = {**os.environ, **environ}
    async with await anyio.open_process(command, cwd=folder, env=own, stderr=None) as process:
        try:
            yield process
        except BaseException:
            process.kill()
            raise
