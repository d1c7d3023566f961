"""Whether appends that wait together go out as one batch or one by one."""

from __future__ import annotations

_LEARN = 0.2
_FORGET = 0.99
_BATCHED_APPEND_SECONDS = 30e-6
_BATCH_SECONDS = 3e-3


class GroupCost:
    """What both ways cost, learned from how long they took.

    A batch costs the server some 3 ms whatever its size; an append is an fsync, or next to nothing
    where the server syncs by interval. So the break-even lies at about 12 appends with `always`
    and near 100 without, and moves with the disk. The way that is not taken is thought a little
    better each time, so that it is tried again now and then.
    """

    def __init__(self) -> None:
        self._append = _Learned(0.0)  # so the first group goes one by one, and teaches
        self._batch = _Learned(_BATCH_SECONDS)

    def favours_batch(self, appends: int) -> bool:
        """Whether so many appends are stored faster as one batch."""
        batch = self._batch.seconds + appends * _BATCHED_APPEND_SECONDS
        if batch < appends * self._append.seconds:
            self._append.doubt()
            return True
        self._batch.doubt()
        return False

    def batch_took(self, seconds: float, appends: int) -> None:
        self._batch.learn(max(seconds - appends * _BATCHED_APPEND_SECONDS, 0.0))

    def appends_took(self, seconds: float, appends: int) -> None:
        self._append.learn(seconds / appends)


class _Learned:
    def __init__(self, assumed: float) -> None:
        self._mean = assumed
        self._trust = 1.0

    @property
    def seconds(self) -> float:
        return self._mean * self._trust

    def doubt(self) -> None:
        self._trust *= _FORGET

    def learn(self, seconds: float) -> None:
        self._mean += (_LEARN if self._mean else 1.0) * (seconds - self._mean)
        self._trust = 1.0
