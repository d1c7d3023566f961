"""What a tick says of the server: asked for here, judged elsewhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from stratum_bus.bus import Bus
from stratum_bus.data_dir import DataDir
from stratum_bus.message import Message, from_direct, is_direct
from stratum_bus.thresholds import HealthConfig
from stratum_projections.health.known import Known
from stratum_projections.health.observed import Fill, Observed, Position, Repetition

STREAM = "LOG"
POSITIONS_EVERY, RUNS_EVERY, FILLS_EVERY = 4, 8, 40
"""Consumers are looked at with every fourth tick, journals with every eighth, streams with every
fortieth."""

RUNS_MAX = 8
"""Runs whose journals are read at one look, at most; those whose turn was longest ago."""

_PAGE = 256
_STEPS = ("stratum.run.step.completed", "stratum.run.step.failed")
_WAITS = ("stratum.run.waiting", "stratum.run.wait.completed", "stratum.run.suspended")


class _Step(msgspec.Struct):
    """What says that two entries are of the same call: its name, its arguments, what it brought."""

    name: str = ""
    arguments: str = ""
    result: msgspec.Raw = msgspec.Raw(b"")


class _Entry(msgspec.Struct):
    type: str
    data: _Step


_entry = msgspec.json.Decoder(_Entry).decode


class Look:
    """Takes the looks of one health projector. `folder` is that of the server's data, None where
    it is not on this machine.
    """

    def __init__(self, bus: Bus, config: HealthConfig, folder: DataDir | None = None) -> None:
        self._bus = bus
        self._config = config
        self._folder = folder
        self._count = 0
        self._before: dict[str, tuple[int, int]] = {}
        self._journals: dict[tuple[str, str], _Journal] = {}

    async def take(self, known: Known, log: int, away_seconds: float = 0.0) -> Observed:
        """Look at what is due. `log` is how far this one has read control events, `away_seconds` for
        how long it had no server.

        Raises NotFound without the stream, ConnectionLost, NoAnswer.
        """
        info = await self._bus.connection.api(f"STREAM.INFO.{STREAM}")
        positions = fills = None
        repetitions: list[Repetition] = []
        if self._count % POSITIONS_EVERY == 0:
            positions = await self._positions()
        if self._count % FILLS_EVERY == 0:
            fills = await self._fills()
        if self._count % RUNS_EVERY == 0:
            repetitions = await self._repetitions(suspects(known, self._config))
        self._count += 1
        return Observed(
            log=log,
            head=info["state"]["last_seq"],
            away_seconds=away_seconds,
            positions=positions,
            fills=fills,
            repetitions=repetitions,
        )

    async def _positions(self) -> list[Position]:
        """The agents' consumers that have something to do."""
        found: list[Position] = []
        offset = 0
        while True:
            page = await self._bus.connection.api(f"CONSUMER.LIST.{STREAM}", {"offset": offset})
            consumers = page.get("consumers") or []
            for info in consumers:
                if _is_agents(info) and (info["num_pending"] or info["num_ack_pending"]):
                    found.append(await self._position(info))
            offset += len(consumers)
            if len(consumers) < _PAGE or offset >= page["total"]:
                break
        self._before = {each.agent: (each.delivered, each.settled) for each in found}
        return found

    async def _position(self, info: dict[str, Any]) -> Position:
        agent = info["name"]
        delivered, settled = info["delivered"]["stream_seq"], info["ack_floor"]["stream_seq"]
        stands = self._before.get(agent) == (delivered, settled)
        journal = await self._last_entry(agent) if stands else 0
        return Position(
            agent, STREAM, info["num_pending"], info["num_ack_pending"], delivered, settled, journal
        )

    async def _last_entry(self, agent: str) -> int:
        """The sequence of the last entry of any of an agent's runs; 0 where there is none."""
        query = msgspec.json.encode({"last_by_subj": f"run.{agent}.>"})
        reply = await self._bus.connection.request(f"$JS.API.DIRECT.GET.{STREAM}", query)
        message = from_direct(reply) if is_direct(reply) else None
        return message.sequence if message else 0

    async def _fills(self) -> list[Fill]:
        answer = await self._bus.connection.api("STREAM.LIST")
        found = [_fill(info) for info in answer.get("streams") or []]
        if self._folder is not None:
            stored = (await self._bus.connection.api("INFO"))["storage"]
            found.append(Fill("", stored, self._folder.room_bytes(stored)))
        return [each for each in found if each.max_bytes or each.max_messages]

    async def _repetitions(self, runs: Sequence[tuple[str, str]]) -> list[Repetition]:
        """What the journals of runs say that are in hand for long, and move."""
        self._journals = {run: self._journals.get(run) or _Journal(*run) for run in runs}
        turn = sorted(self._journals.values(), key=lambda journal: journal.looked)[:RUNS_MAX]
        found = []
        for journal in turn:
            journal.looked = self._count + 1
            await journal.read(self._bus)
            among = self._config.of(journal.agent).looping.among
            if (repetition := journal.repetition(among)) is not None:
                found.append(repetition)
        return found


class _Journal:
    """The last steps of a run, as far as they were read."""

    def __init__(self, agent: str, run: str) -> None:
        self.agent = agent
        self.run = run
        self.looked = 0
        self._next = 1
        self._steps: list[tuple[str, int]] = []

    async def read(self, bus: Bus) -> None:
        subject = f"run.{self.agent}.{self.run}"
        async with bus.read(filters=[subject], start=self._next) as reader:
            messages = [message async for message in reader]
        if messages:
            self._next = messages[-1].sequence + 1
            self._steps = steps(messages, self._steps)

    def repetition(self, among: int) -> Repetition | None:
        self._steps = self._steps[-among:]
        return repetition(self.agent, self.run, self._steps)


def suspects(known: Known, config: HealthConfig) -> list[tuple[str, str]]:
    """Runs that are in hand for long and move: they may move in a circle."""
    found = []
    for life in known.lives.values():
        seconds = config.of(life.agent).looping.seconds
        for mark in life.marks.values():
            if mark.run and mark.at != mark.begun and known.seconds_since(mark.begun) >= seconds:
                found.append((mark.begun.ns, life.agent, mark.run))
    return [(agent, run) for _, agent, run in sorted(found)]


def steps(
    messages: Iterable[Message], before: Sequence[tuple[str, int]] = ()
) -> list[tuple[str, int]]:
    """The calls in a part of a journal, each with its sequence; a wait begins anew."""
    found = list(before)
    for message in messages:
        try:
            entry = _entry(message.payload)
        except msgspec.MsgspecError:
            continue
        if entry.type in _WAITS:
            found.clear()
        elif entry.type in _STEPS:
            step = entry.data
            same = step.arguments or bytes(step.result).decode(errors="replace")
            found.append((f"{step.name}\0{same}", message.sequence))
    return found


def repetition(agent: str, run: str, calls: Sequence[tuple[str, int]]) -> Repetition | None:
    """The call that was made most often; None without calls."""
    if not calls:
        return None
    [(call, times)] = Counter(call for call, _ in calls).most_common(1)
    places = [sequence for each, sequence in calls if each == call]
    name = call.partition("\0")[0]
    return Repetition(agent, run, name, times, len(calls), places[0], places[-1])


def _is_agents(info: dict[str, Any]) -> bool:
    """Whether it is the consumer by which an agent gets its inbox."""
    config = info["config"]
    filters = config.get("filter_subjects") or [config.get("filter_subject", "")]
    return f"inbox.{info['name']}.>" in filters


def _fill(info: dict[str, Any]) -> Fill:
    config, state = info["config"], info["state"]
    most = config.get("max_bytes", -1), config.get("max_msgs", -1)
    # A stream that throws away its oldest is full on purpose.
    limits = most if config.get("discard") == "new" else (-1, -1)
    return Fill(
        config["name"], state["bytes"], max(0, limits[0]), state["messages"], max(0, limits[1])
    )
