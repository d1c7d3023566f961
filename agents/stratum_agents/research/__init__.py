"""A research lab's monitor of papers: see `agent`. In stratum.toml: `stratum_agents.research:create`."""

from stratum_agents.research.agent import create, note_id
from stratum_agents.research.feed import pages, papers
from stratum_agents.research.intake import Handed, Handled, hand_over, poll, wait_handled
from stratum_agents.research.note import FieldNote, PaperNote, Related, Trend, Window
from stratum_agents.research.paper import FeedError, Paper, PaperNoted, PaperRelevant
from stratum_agents.research.reader import Reader, Reading, TermReader
from stratum_agents.research.settings import Settings
from stratum_agents.research.terms import Term

__all__ = (
    "FeedError",
    "FieldNote",
    "Handed",
    "Handled",
    "Paper",
    "PaperNote",
    "PaperNoted",
    "PaperRelevant",
    "Reader",
    "Reading",
    "Related",
    "Settings",
    "Term",
    "TermReader",
    "Trend",
    "Window",
    "create",
    "hand_over",
    "note_id",
    "pages",
    "papers",
    "poll",
    "wait_handled",
)
