"""`[agents.research.settings]` in stratum.toml: what the lab wants to hear of, and from where."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from stratum_agents.research import terms
from stratum_agents.research.feed import MAX_PAPERS
from stratum_bus.errors import InvalidName
from stratum_bus.subject import token

Phrase = Annotated[str, Meta(min_length=1, max_length=500)]


class Settings(Struct, frozen=True, forbid_unknown_fields=True):
    """Settings of one monitor of papers.

    `interests` are phrases in plain words. A paper whose relevance to one of them reaches
    `threshold` (0-1) is told to the agents in `tell`. `feeds` (paths from the working folder, or
    addresses) are read every `poll_minutes`, at most `papers_per_poll` papers of each. `related` is
    how many earlier papers a note names at most. `name` is the agent's, as in `[agents.<name>]`.
    """

    interests: Annotated[list[Phrase], Meta(min_length=1, max_length=100)]
    threshold: Annotated[float, Meta(ge=0, le=1)] = 0.3
    tell: list[str] = []
    feeds: list[Phrase] = []
    poll_minutes: Annotated[float, Meta(ge=1)] = 60.0
    papers_per_poll: Annotated[int, Meta(ge=1, le=2000)] = MAX_PAPERS
    related: Annotated[int, Meta(ge=0, le=20)] = 5
    name: str = "research"

    def __post_init__(self) -> None:
        for other in (self.name, *self.tell):
            try:
                token(other, "agent name")
            except InvalidName as error:
                raise ValueError(str(error)) from None
        for other in self.tell:
            if other == self.name:
                raise ValueError(f"tell names {other}, which is this agent itself")
        for phrase in self.interests:
            if not terms.read("", phrase).counts:
                raise ValueError(
                    f'the interest "{phrase}" has no word that tells one paper from another; '
                    "name a subject, as in mutation testing"
                )
