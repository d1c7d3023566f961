"""Publishing stored events again, elsewhere: never onto the originals, never to somebody unnamed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from stratum_bus import event as events
from stratum_bus import subject
from stratum_bus.bus import Bus
from stratum_bus.errors import InvalidName
from stratum_bus.event import Event
from stratum_bus.jetstream import api_answer
from stratum_bus.message import Message
from stratum_bus.publish import Append
from stratum_cli.failure import Refusal, Usage

_OPEN_ROLES = ("inbox", "topic")


class Target(Struct, frozen=True):
    """Where events are published again: below `prefix`, or as messages to one agent's inbox."""

    prefix: str

    @property
    def in_log(self) -> bool:
        return self.prefix.partition(".")[0] in subject.ROLES

    def subject_for(self, original: str) -> str:
        """`<prefix>.<original>`; for an inbox what follows there, `inbox.<agent>.<from>.<type>`."""
        if not self.prefix.startswith("inbox."):
            return f"{self.prefix}.{original}"
        place = subject.parse(original)
        if not place.sender:
            raise InvalidName("subject", original, "only what was sent can go to an inbox")
        return subject.inbox(self.prefix.partition(".")[2], place.sender, place.type)


def target(prefix: str, replayed: Sequence[str]) -> Target:
    """The target, if it is safe for events of the filters `replayed`.

    Raises InvalidName where it is no subject, and Refusal where an event published there would
    itself be one of those replayed, would be taken for an agent's own doing, or would go to
    whatever agent the original's subject happens to name.
    """
    subject.pattern(prefix)
    if "*" in prefix or ">" in prefix or prefix.startswith("$"):
        raise Usage(f"--to-subject {prefix} must be a plain subject, as in topic.replay")
    role, _, rest = prefix.partition(".")
    if role in subject.ROLES:
        if role not in _OPEN_ROLES:
            raise Refusal(
                f"--to-subject {prefix}: events below {role}. are an agent's own; replay to a "
                "topic (topic.replay), to one agent's inbox (inbox.NAME), or to a stream of yours"
            )
        if not rest:
            raise Refusal(f"--to-subject {prefix} names nobody; write {role}.NAME")
        for part in rest.split("."):
            subject.token(part, "subject token")
        if role == "inbox" and "." in rest:
            raise Refusal(
                f"--to-subject {prefix}: to send to an agent name its inbox exactly, "
                f"inbox.{rest.partition('.')[0]}"
            )
    for each in replayed:
        if subject.overlap(f"{prefix}.>", each):
            raise Refusal(
                f"--to-subject {prefix}: what is published there is itself matched by {each}, "
                "which is replayed; name another subject, or narrow the replay with --filter"
            )
    return Target(prefix)


def again(message: Message) -> Event[Any]:
    """The event of a message as a new one, caused by it. Raises InvalidEvent."""
    original = message.event()
    return replace(
        original,
        id=events.uuid7(),
        correlationid=original.correlationid or original.id,
        causationid=original.id,
    )


async def publish(bus: Bus, to: Target, message: Message) -> None:
    """Store a message's event again. Raises InvalidEvent, InvalidName and what publishing raises."""
    at, event = to.subject_for(message.subject), again(message)
    if to.in_log:
        await bus.publish(at, event)
        return
    # not of Stratum's grammar: any stream of the user's
    reply = await bus.connection.request(at, events.encode(event), events.headers_of(event))
    api_answer(reply, at)


async def publish_all(bus: Bus, to: Target, messages: Sequence[Message]) -> None:
    """`publish` of many, in order."""
    if to.in_log:
        await bus.publish_many(
            [Append(to.subject_for(each.subject), again(each)) for each in messages]
        )
        return
    for message in messages:
        await publish(bus, to, message)
