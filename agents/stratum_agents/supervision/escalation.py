"""Telling a person: a message to an inbox, and a command or a webhook of the user's."""

from __future__ import annotations

import logging
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable

import anyio.to_thread
import msgspec

from stratum_bus import subject
from stratum_bus.bus import Bus
from stratum_bus.control import SUPERVISOR_SOURCE
from stratum_bus.event import encode, new
from stratum_bus.schema import event_type
from stratum_bus.supervision import SupervisorConfig

log = logging.getLogger("stratum.supervisor")

TYPE = "escalation"
SENDER = "supervisor"
NOTIFY_SECONDS = 10.0


@event_type(TYPE, roles=("inbox",))
class Escalation(msgspec.Struct, frozen=True, omit_defaults=True):
    """What needs a person: `text` is a sentence, `incident` the id of the event that led to it,
    `command` that of the command to tell it."""

    agent: str
    text: str
    incident: str = ""
    command: str = ""


async def tell(bus: Bus, settings: SupervisorConfig, to: str, what: Escalation) -> str:
    """Put it into the inbox of `to`, or of the configured person; returns whose that was. The same
    command tells it once."""
    who = to or settings.human
    event = new(TYPE, what, source=SUPERVISOR_SOURCE, id=f"escalation-{what.command}")
    await bus.publish(subject.inbox(who, SENDER, TYPE), event)
    return who


async def notify(settings: SupervisorConfig, what: Escalation) -> list[str]:
    """Run the command and call the webhook of the settings; returns what went wrong, in words."""
    body = encode(new(TYPE, what, source=SUPERVISOR_SOURCE, id=f"escalation-{what.command}"))
    ways: dict[str, Callable[[], None]] = {}
    if settings.notify_command:
        ways["notify_command"] = lambda: _run(settings.notify_command, body)
    if settings.notify_url:
        ways["notify_url"] = lambda: _post(settings.notify_url, body)
    failed: list[str] = []
    for name, call in ways.items():
        try:
            await anyio.to_thread.run_sync(call, abandon_on_cancel=True)
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            failed.append(f"{name}: {error}")
    for text in failed:
        log.warning("nobody was notified by %s", text)
    return failed


def _run(command: list[str], body: bytes) -> None:
    subprocess.run(
        command, input=body, timeout=NOTIFY_SECONDS, check=True, stdout=subprocess.DEVNULL
    )


def _post(url: str, body: bytes) -> None:
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"{url} is no http or https address")
    headers = {"Content-Type": "application/cloudevents+json"}
    request = urllib.request.Request(url, body, headers)
    try:
        with urllib.request.urlopen(request, timeout=NOTIFY_SECONDS):
            pass
    except urllib.error.HTTPError as error:
        with error:  # it holds the connection
            raise
