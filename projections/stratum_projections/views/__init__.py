"""The projections that ship with Stratum, one a file."""

from stratum_projections.views.agents import AGENTS
from stratum_projections.views.dead_letters import DEAD_LETTERS
from stratum_projections.views.events import EVENTS
from stratum_projections.views.field import FIELD
from stratum_projections.views.incidents import INCIDENTS
from stratum_projections.views.memory import MEMORY
from stratum_projections.views.messages import MESSAGES
from stratum_projections.views.runs import RUNS

SHIPPED = (EVENTS, MESSAGES, MEMORY, AGENTS, DEAD_LETTERS, INCIDENTS, RUNS, FIELD)

__all__ = ["SHIPPED"]
