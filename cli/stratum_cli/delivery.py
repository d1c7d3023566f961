"""Who receives what, and how far they are: the durable consumers of the log, read as agents."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from msgspec import Struct

from stratum_bus import dead, subject
from stratum_bus.bus import Bus
from stratum_bus.errors import InvalidEvent, NotFound
from stratum_bus.message import Message

PENDING, IN_HAND, HANDLED = "pending", "in hand", "handled"

_PAGE = 256


class Receiver(Struct, frozen=True):
    """An agent's consumer. `pending` and `in_hand` count messages; `listening` counts requests for
    messages that wait at the server, so 0 means that no instance runs. `settled` is the sequence
    up to which all is settled, `delivered` the last one handed out.
    """

    name: str
    filters: tuple[str, ...]
    pending: int
    in_hand: int
    redelivered: int
    listening: int
    settled: int
    delivered: int

    @property
    def follows(self) -> list[str]:
        prefix = "topic.*."
        return [each.removeprefix(prefix) for each in self.filters if each.startswith(prefix)]

    @property
    def messages(self) -> list[str]:
        """Its filters without those for commands."""
        return [each for each in self.filters if each.startswith(("inbox.", "topic."))]

    def takes(self, of: str) -> bool:
        return any(subject.matches(each, of) for each in self.filters)

    def state(self, sequence: int) -> str:
        """Of a message that it takes; "in hand" may also mean settled before its elders."""
        if sequence <= self.settled or (sequence <= self.delivered and not self.in_hand):
            return HANDLED
        return IN_HAND if sequence <= self.delivered else PENDING


async def receivers(bus: Bus) -> list[Receiver]:
    """All agents that have a consumer on the log, by name. Raises NotFound without a log."""
    found: list[Receiver] = []
    while True:
        page = await bus.connection.api("CONSUMER.LIST.LOG", {"offset": len(found)})
        consumers = page.get("consumers") or []
        found += [_receiver(info) for info in consumers]
        if len(consumers) < _PAGE or len(found) >= page["total"]:
            break
    return sorted(
        (each for each in found if f"inbox.{each.name}.>" in each.filters), key=lambda r: r.name
    )


async def receiver(bus: Bus, agent: str) -> Receiver | None:
    """One agent's consumer, or None where it never ran."""
    try:
        return _receiver(await bus.connection.api(f"CONSUMER.INFO.LOG.{agent}"))
    except NotFound:
        return None


async def states(
    bus: Bus, messages: Sequence[Message], among: Iterable[Receiver]
) -> list[dict[str, str]]:
    """For each message who of `among` takes it, and what became of it there.

    The state is pending, in hand or handled; for what became a dead letter the letter's.
    """
    among = list(among)
    letters = {
        (letter.letter.agent, letter.letter.origin.stream, letter.letter.origin.sequence): letter
        for letter in await dead.letters(bus, among[0].name if len(among) == 1 else None)
    }
    found: list[dict[str, str]] = []
    for message in messages:
        found.append({})
        for each in among:
            if not each.takes(message.subject):
                continue
            letter = letters.get((each.name, message.stream, message.sequence))
            if letter:
                state = "dead" if letter.state == dead.OPEN else letter.state
            else:
                state = each.state(message.sequence)
                if state == IN_HAND and await _is_done(bus, each.name, message):
                    state = HANDLED
            found[-1][each.name] = state
    return found


async def _is_done(bus: Bus, agent: str, message: Message) -> bool:
    """Whether the agent's journal says that the message's run has ended."""
    from stratum_agents.journal import ENDS, PREFIX
    from stratum_agents.run import run_id

    try:
        last = await bus.last(subject.run(agent, run_id(agent, message.event().id)))
        return last is not None and last.event().type.removeprefix(PREFIX) in ENDS
    except InvalidEvent:
        return False


def _receiver(info: dict[str, Any]) -> Receiver:
    config = info["config"]
    single = config.get("filter_subject")
    return Receiver(
        info["name"],
        tuple(config.get("filter_subjects") or ([single] if single else [])),
        info["num_pending"],
        info["num_ack_pending"],
        info["num_redelivered"],
        info["num_waiting"],
        info["ack_floor"]["stream_seq"],
        info["delivered"]["stream_seq"],
    )
