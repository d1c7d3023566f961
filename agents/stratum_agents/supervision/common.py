"""What all that is supervised shares."""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

from stratum_agents.supervision.beats import Beats
from stratum_agents.supervision.ledger import Ledger
from stratum_agents.supervision.metrics import Metrics
from stratum_agents.supervision.running import Spares
from stratum_bus.bus import Bus
from stratum_bus.supervision import SupervisorConfig

Say = Callable[[str], None]
"""Takes one line for each fact."""


class Common(Struct, frozen=True):
    """`instance` is the name of this supervisor's own process."""

    settings: SupervisorConfig
    bus: Bus
    ledger: Ledger
    spares: Spares
    beats: Beats
    metrics: Metrics
    say: Say
    instance: str
