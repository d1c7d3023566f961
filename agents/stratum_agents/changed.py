"""What has probably been changed in a handler that no longer agrees with a journal."""

from __future__ import annotations

from stratum_agents.journal import Journal


def calls_of(journal: Journal) -> dict[str, str]:
    """What a journal holds at each position, as a mismatch names it."""
    held = {n: f"{effect.type} for {effect.subject}" for n, effect in journal.effects.items()}
    for known in ({n: tried[0] for n, tried in journal.attempts.items()}, journal.waits):
        held |= {n: recorded.entry.name for n, recorded in known.items()}
    return held | {n: recorded.entry.name for n, recorded in journal.decided.items()}


def likely_change(journal: Journal, n: str, asked: str) -> str:
    """A guess from where else the journal holds what the handler asked for; "" for none."""
    if asked == "one more call":
        return "a call was added behind the last one that is journaled"
    calls = calls_of(journal)
    held = calls.get(n, "")
    branch, _, number = n.rpartition(".")
    if not number.isdigit():
        return ""
    before, behind = _around(calls, branch, int(number))
    if asked == "nothing more":
        return f"{held} was removed, or what leads to it is not so any more"
    if not held:
        return f"{asked} stands where there was a call that is not journaled (gather, random, uuid)"
    if asked in behind:
        skipped = [each for each in (held, *behind[: behind.index(asked)])]
        return f"{_listed(skipped)} {_were(skipped)} removed, or stands further below now"
    if asked in before:
        return f"{asked} is done once more than then, as by a longer loop"
    if _kind(asked) == _kind(held):
        return f"{held} was renamed to {asked}, or {asked} was added before it"
    return f"{asked} was added before {held}"


def _around(calls: dict[str, str], branch: str, number: int) -> tuple[list[str], list[str]]:
    """What the journal holds in the same branch before and behind a position, in order."""
    own: dict[int, str] = {}
    for n, held in calls.items():
        at, _, last = n.rpartition(".")
        if at == branch and last.isdigit():
            own[int(last)] = held
    before = [own[each] for each in sorted(own) if each < number]
    return before, [own[each] for each in sorted(own) if each > number]


def _kind(call: str) -> str:
    return call.partition(":")[0] if ":" in call else "effect" if " for " in call else call


def _listed(calls: list[str]) -> str:
    return ", ".join(calls) if len(calls) <= 3 else f"{calls[0]} and {len(calls) - 1} more"


def _were(calls: list[str]) -> str:
    return "was" if len(calls) == 1 else "were"
