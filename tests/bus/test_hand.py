"""What an instance has in hand is known to its parent, whatever became of the instance."""

from __future__ import annotations

import subprocess
import sys

from stratum_bus.hand import SLOTS, Hand, Left, SharedHand

HOLDING = """
import os, signal, sys
from stratum_bus.hand import Hand

hand = Hand(int(sys.argv[1]))
for sequence in range(1, 6):
    hand.take("LOG", sequence, "inbox.echo.a.b", sequence, 0)
hand.take("TIMERS", 9, "fire.echo.r.t", 1, 0)
hand.begin("LOG", 2, "event-2")
hand.begin("TIMERS", 9, "event-9")
hand.drop("LOG", 4, settled=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


class Work:
    run, step, appended = "r1", "3", 2


def test_after_kill_9_the_parent_knows_what_was_held_and_what_had_begun() -> None:
    shared = SharedHand()
    command = [sys.executable, "-c", HOLDING, str(shared.descriptor)]
    code = subprocess.run(command, pass_fds=[shared.descriptor], check=False).returncode
    assert code == -9
    assert shared.left() == [
        Left("LOG", 1, False, 1),
        Left("LOG", 2, True, 2),
        Left("LOG", 3, False, 3),
        Left("LOG", 5, False, 5),
        Left("TIMERS", 9, True, 1),
    ]
    shared.close()


def test_a_message_that_came_twice_is_held_until_both_are_dropped() -> None:
    hand = Hand()
    for _ in range(2):
        hand.take("LOG", 1, "inbox.echo.a.b", 1, 0)
    hand.drop("LOG", 1, settled=True)
    assert [each.sequence for each in hand.in_hand()] == [1]
    hand.drop("LOG", 1, settled=True)
    assert hand.in_hand() == []


def test_progress_counts_what_was_settled_and_what_was_appended() -> None:
    hand = Hand()
    hand.take("LOG", 1, "inbox.echo.a.b", 1, 5)
    hand.begin("LOG", 1, "e1")
    hand.works_on("LOG", 1, Work())
    assert (hand.progress, hand.pending) == (2, 5)
    (held,) = hand.in_hand()
    assert (held.event, held.run, held.step) == ("e1", "r1", "3")
    hand.drop("LOG", 1, settled=True)
    assert hand.progress == 3
    hand.take("LOG", 2, "inbox.echo.a.b", 1, 4)
    hand.drop("LOG", 2, settled=False)
    assert hand.progress == 3


def test_more_than_fits_is_held_all_the_same() -> None:
    shared = SharedHand()
    hand = Hand(shared.descriptor)
    for sequence in range(1, SLOTS + 11):
        hand.take("LOG", sequence, "inbox.echo.a.b", 1, 0)
    assert (len(hand.in_hand()), len(shared.left())) == (SLOTS + 10, SLOTS)
    for sequence in range(1, SLOTS + 11):
        hand.drop("LOG", sequence, settled=True)
    assert (hand.in_hand(), shared.left()) == ([], [])
    hand.take("LOG", 77, "inbox.echo.a.b", 1, 0)
    assert [each.sequence for each in shared.left()] == [77]
    shared.close()
