"""A process that dies at any append: the run ends as if it had not, and nothing happens twice."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from stratum_agents.journal import RESUMED, SIGNALLED, SUSPENDED, Journal
from stratum_agents.testing import Kit, runs
from tests.agents.conftest import DEDUPE_SECONDS, ForgetfulBus
from tests.agents.programs.trip import Receiver, agency, traveller

Story = list[tuple[str, str, str, bytes]]


def _story(journal: Journal) -> Story:
    """What the journal says happened, but not when, nor who owned the run."""
    return [
        (r.kind, r.entry.n, r.entry.name, b"" if r.kind == SIGNALLED else bytes(r.entry.result))
        for r in journal.entries
        if r.kind not in (RESUMED, SUSPENDED)
    ]


async def _said(kit: Kit) -> list[tuple[str, str, Any]]:
    """The messages and notes of both agents, each time that they stand in the log."""
    own = ["inbox.*.traveller.>", "inbox.*.traveller-agency.>", "topic.>", "memory.>", "dead.>"]
    return [
        (event.id, event.type, None if event.type == "stratum.dead.lettered" else event.data)
        for event in await kit.events(*own)
    ]


async def _travel(
    forgetful: ForgetfulBus, receiver: Receiver, *, fails: bool, at: int = 0, stored: bool = False
) -> tuple[Story, list[tuple[str, str, Any]], int]:
    """A run, with a process that dies at an append; its story, what was said, how often it died."""
    again = DEDUPE_SECONDS * 1.2
    agents = traveller(receiver, fails=fails, again_after_seconds=again), agency(receiver)
    async with forgetful() as bus, runs(bus, *agents) as kit:
        if at:
            kit.crash(at, stored=stored)
        run = await kit.start("trip.wanted", {"to": "the sea"}, id="one")
        await kit.advance(days=1)
        journal = await kit.journal(run)
        assert journal.state == ("failed" if fails else "completed")
        return _story(journal), await _said(kit), kit.crashed


@pytest.mark.parametrize(
    ("fails", "stored"), [(True, False), (False, True)], ids=["before-storing", "after-storing"]
)
async def test_whichever_append_the_process_dies_at_the_run_ends_the_same(
    forgetful_bus: ForgetfulBus, tmp_path: Path, fails: bool, stored: bool
) -> None:
    quiet = Receiver(tmp_path / "quiet")
    story, said, _ = await _travel(forgetful_bus, quiet, fails=fails)
    assert max(Counter(id for id, _, _ in said).values()) == 1
    for at in itertools.count(1):
        receiver = Receiver(tmp_path / f"died-at-{at}")
        again = await _travel(forgetful_bus, receiver, fails=fails, at=at, stored=stored)
        if not again[2]:
            break
        assert again == (story, said, 1), f"died at append {at}"
        received = Counter(receiver.received())
        assert received.keys() == set(quiet.received())
        # The step in hand, with the same key; none where its result was stored.
        assert received.total() - len(received) <= (0 if stored else 1), f"died at append {at}"
    assert at > 40
