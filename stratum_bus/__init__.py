"""The bus: events on a log. `async with connect(url) as bus` is where to begin.

Subjects are built by `subject`, errors are in `errors`, the test kit is `stratum_bus.testing`.
"""

from stratum_bus import errors, subject
from stratum_bus.batch import PubAck
from stratum_bus.bus import Bus, connect
from stratum_bus.consume import consume
from stratum_bus.event import Event, RawEvent, typed
from stratum_bus.event import new as new_event
from stratum_bus.handler import Delivery, Done, Outcome, Reject, Retry, RetryLater
from stratum_bus.memory import Memory, Note
from stratum_bus.message import Message
from stratum_bus.publish import Append
from stratum_bus.read import Reader
from stratum_bus.schema import event_type, upcaster

__all__ = (
    "Append",
    "Bus",
    "Delivery",
    "Done",
    "Event",
    "Memory",
    "Message",
    "Note",
    "Outcome",
    "PubAck",
    "RawEvent",
    "Reader",
    "Reject",
    "Retry",
    "RetryLater",
    "connect",
    "consume",
    "errors",
    "event_type",
    "new_event",
    "subject",
    "typed",
    "upcaster",
)
