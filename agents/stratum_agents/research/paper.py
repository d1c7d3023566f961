"""What a paper is to the agent: the data of `paper.published`, and of what the agent says of it."""

from __future__ import annotations

import re
from datetime import datetime

import msgspec

from stratum_bus.errors import StratumError
from stratum_bus.schema import event_type

FEED = "feed"
"""The sender name under which papers are handed to the agent: `inbox.<agent>.feed.paper.published`."""

_IDENTIFIER = re.compile(
    r"(?P<id>\d{4}\.\d{4,5}|[a-z][a-z-]{1,15}(?:\.[A-Z]{2})?/\d{7})(?:v(?P<version>[1-9]\d{0,3}))?",
    re.ASCII,
)


class FeedError(StratumError):
    """A feed that cannot be read. `source` is its path or address, `reason` what is wrong with it."""

    def __init__(self, source: str, reason: str) -> None:
        self.source, self.reason = source, reason
        super().__init__(f"feed {source}: {reason}")


@event_type("paper.published")
class Paper(msgspec.Struct, frozen=True, omit_defaults=True):
    """One version of a paper. `id` is without the version, as in `2202.12139` or `hep-th/9901001`.

    `published` is when version 1 appeared, `updated` when this version did. `links` maps what a
    link is (`abstract`, `pdf`, `doi`) to its address.
    """

    id: str
    version: int
    title: str
    published: datetime
    updated: datetime
    authors: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    abstract: str = ""
    comment: str = ""
    journal: str = ""
    doi: str = ""
    links: dict[str, str] = {}

    def __post_init__(self) -> None:
        found = _IDENTIFIER.fullmatch(self.id)
        if not found or found["version"]:
            raise ValueError(f"a paper's id is like 2202.12139 or hep-th/9901001, got {self.id!r}")
        if self.version < 1:
            raise ValueError(f"a paper's version is 1 or more, got {self.version}")
        if not self.title.strip():
            raise ValueError(f"paper {self.id} has no title")
        for name in ("published", "updated"):
            if getattr(self, name).tzinfo is None:
                raise ValueError(f"paper {self.id}: `{name}` has no time zone")

    @property
    def name(self) -> str:
        """Id and version, as in `2202.12139v1`."""
        return f"{self.id}v{self.version}"


@event_type("paper.relevant")
class PaperRelevant(msgspec.Struct, frozen=True, omit_defaults=True):
    """To who follows the field: a paper whose relevance reached the threshold.

    `note` is the id of the note in the sender's memory; `revised` says that an earlier version was
    noted before. `related` are the titles of earlier papers that it relates to, nearest first.
    """

    id: str
    version: int
    title: str
    relevance: float
    note: str
    link: str = ""
    why: tuple[str, ...] = ()
    key_terms: tuple[str, ...] = ()
    related: tuple[str, ...] = ()
    revised: bool = False


@event_type("paper.noted")
class PaperNoted(msgspec.Struct, frozen=True, omit_defaults=True):
    """To all who follow the topic: the agent made or revised its note of a paper."""

    id: str
    version: int
    title: str
    relevance: float
    note: str
    related: int = 0
    revised: bool = False


def identify(text: str) -> tuple[str, int] | None:
    """Id and version of `2202.12139v2` or of an address that ends so; version 1 where none stands."""
    _, found, tail = text.rpartition("/abs/")
    match = _IDENTIFIER.fullmatch((tail if found else text).strip().rstrip("/"))
    return (match["id"], int(match["version"] or 1)) if match else None


def handed_id(agent: str, paper: Paper) -> str:
    """The id of the event that hands one version of a paper to an agent: the same each time."""
    return f"arxiv:{paper.name}:{agent}"
