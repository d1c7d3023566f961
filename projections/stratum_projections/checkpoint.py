"""How far each projection has read: one row each and stream, moved in the same transaction as rows.

A row carries an epoch. Opening a file raises the epoch of all its rows, and a row moves only from
the epoch and sequence that its owner knows: a projector that was taken over, or that applies a
batch twice, moves nothing and is told so.
"""

from __future__ import annotations

from collections.abc import Sequence

from stratum_bus.errors import ProjectorError
from stratum_projections.store import Store

CORE = "quarantine"
"""The name under which the core itself keeps its position: of what it quarantines, and of ids."""

STREAM = "LOG"


class Checkpoint:
    """The positions in one stream, as this projector last committed them.

    `homes` are the schemas with the projections' tables. `active` are those that are kept up to
    date together with the core; the others are paused, or on their way.
    """

    def __init__(
        self,
        store: Store,
        stream: str,
        epoch: int,
        created: str,
        positions: dict[str, int],
        homes: dict[str, str],
        active: set[str],
    ) -> None:
        self._store = store
        self.stream = stream
        self.epoch = epoch
        self.created = created
        self.positions = positions
        self.homes = homes
        self.active = active

    @property
    def position(self) -> int:
        """The sequence that all active projections have read."""
        return min(self.positions[name] for name in self.active)

    @property
    def core(self) -> int:
        """The sequence that the core has read, and every active projection of a projector."""
        return self.positions[CORE]

    def leave(self, name: str) -> None:
        """Let a projection be active no more."""
        self._store.execute("update checkpoint set active = false where projection = ?", [name])
        self.active.discard(name)

    def bind(self, created: str) -> None:
        """Note which stream of this name it is, by when the server says it was created."""
        self._store.execute(
            "update checkpoint set created = ? where stream = ?", [created, self.stream]
        )
        self.created = created

    def advance(self, store: Store, names: Sequence[str], sequence: int) -> None:
        """Move the projections to `sequence`, inside a transaction of `store`, which is the
        caller's own opening of the file.

        Raises ProjectorError `fenced`. `moved` is to be called when it is committed.
        """
        for position in {self.positions[name] for name in names}:
            expected = [name for name in names if self.positions[name] == position]
            found = store.repeat(
                """update main.checkpoint set sequence = ? where stream = ? and epoch = ?
                   and sequence = ? and list_contains(?, projection) returning projection""",
                [sequence, self.stream, self.epoch, position, expected],
            )
            if len(found) != len(expected):
                raise ProjectorError(
                    "fenced", f"another projector has taken over {self._store.path}: stopping"
                )

    def moved(self, names: Sequence[str], sequence: int) -> None:
        """The advance is committed."""
        self.positions |= dict.fromkeys(names, sequence)
