"""What others say to a run: signals, fired timers, and the requests to cancel, pause and continue."""

from __future__ import annotations

from typing import Any

import msgspec

from stratum_agents.journal import CANCEL, CONTINUE, FIRED, PAUSE, SIGNALLED, Entry
from stratum_bus.consume import Delivery
from stratum_bus.control import RUN_CANCEL, RUN_PAUSE, RUN_RESUME, RunRequest
from stratum_bus.event import encode

REQUESTS = {
    RUN_CANCEL: CANCEL,
    RUN_PAUSE: PAUSE,
    RUN_RESUME: CONTINUE,
}
"""The commands under `control.<agent>.` that are about one run, and the input each becomes."""


class Input(msgspec.Struct, frozen=True):
    """An input for a run, made from a delivered message."""

    run: str
    kind: str
    id: str
    entry: Entry


def of_signal(delivery: Delivery) -> Input:
    """From a message whose event is addressed to a run."""
    event = delivery.event
    assert event.torun is not None
    entry = Entry(
        name=event.type, result=msgspec.Raw(encode(event)), at=event.causationid or "",
        reason=event.source,
    )  # fmt: skip
    return Input(event.torun, SIGNALLED, f"{event.torun}-in-{event.id}", entry)


def of_reply(delivery: Delivery, sent: str) -> Input:
    """From the answer to a call: it belongs to the event `sent`."""
    given = of_signal(delivery)
    return msgspec.structs.replace(given, entry=msgspec.structs.replace(given.entry, at=sent))


def of_timer(delivery: Delivery, run: str, name: str) -> Input:
    """From a timer that fired; each firing is one."""
    id = f"{run}-{name}-{delivery.message.sequence}"
    return Input(run, FIRED, id, Entry(name=name))


def of_request(delivery: Delivery, command: str, data: Any) -> Input:
    """From a command about a run; raises msgspec.ValidationError."""
    request = msgspec.convert(data, RunRequest)
    id = f"{request.run}-in-{delivery.event.id}"
    return Input(request.run, REQUESTS[command], id, Entry(reason=request.reason))
