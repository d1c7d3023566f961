"""The time that runs go by."""

from __future__ import annotations

from datetime import UTC, datetime

import anyio


class Clock:
    """The time of the world. A test puts its own in its place (`stratum_agents.testing`)."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    async def wait_until(self, at: datetime) -> None:
        """Wait in this process; at once where the time is past."""
        await anyio.sleep(max(0.0, (at - self.now()).total_seconds()))

    def on_server(self, at: datetime) -> datetime:
        """When a timer of the server has to be due to fire at this time."""
        return at


SYSTEM = Clock()
