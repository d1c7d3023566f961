"""Agents: handlers that decide, and runs that survive. `agent = Agent("name")` is where to begin.

The test kit is `stratum_agents.testing`.
"""

from stratum_agents.agent import Agent
from stratum_agents.failure import (
    CallFailed,
    JournalMismatch,
    RunError,
    RunFailed,
    StepFailed,
    WaitTimeout,
)
from stratum_agents.retry import Retry, Terminal
from stratum_agents.run import Child, Run
from stratum_agents.worker import work
from stratum_bus.handler import Done, Outcome, Reject, RetryLater

__all__ = (
    "Agent",
    "CallFailed",
    "Child",
    "Done",
    "JournalMismatch",
    "Outcome",
    "Reject",
    "Retry",
    "RetryLater",
    "Run",
    "RunError",
    "RunFailed",
    "StepFailed",
    "Terminal",
    "WaitTimeout",
    "work",
)
