"""Delivered messages as they came over the wire: a piece of the stream of bytes, and where in it
each message's parts are. What `wire` cuts out and `bulk` makes columns of.
"""

from __future__ import annotations

from array import array

PARTS = 4
"""Of each message: control line, headers, payload, and what is between it and the next."""

_CRLF = b"\r\n"
_H = ord("H")


class Frames:
    """Some messages in order. `marks` are the offsets at which their PARTS begin."""

    __slots__ = ("buffer", "marks")

    def __init__(self, buffer: bytes, marks: array[int]) -> None:
        self.buffer = buffer
        self.marks = marks

    def __len__(self) -> int:
        return len(self.marks) // PARTS

    @property
    def size(self) -> int:
        """How many bytes the messages take."""
        return self.marks[-1] - self.marks[0]

    def reply(self, number: int) -> str:
        """The reply subject of a message, which says where it stands; -1 is the last one."""
        at = number * PARTS
        line = self.buffer[self.marks[at] : self.marks[at + 1]]
        return line.split(b" ")[3].decode()

    def part(self, first: int, stop: int) -> Frames:
        return Frames(self.buffer, self.marks[first * PARTS : stop * PARTS])


def cut(buffer: bytes, at: int, mark: bytes) -> tuple[array[int], int]:
    """The marks of the whole messages that stand at `at` one behind the other, and where they end.

    A message is delivered to us where its control line has `mark`. Raises ValueError for a control
    line that the protocol does not have. This is in the way of every message: about 1 us.
    """
    marks = array("i")
    add, find, last = marks.append, buffer.find, len(buffer) - 2
    while (end := find(_CRLF, at)) >= 0:
        line = buffer[at:end]
        if mark not in line:
            break
        start = end + 2
        if line[0] == _H:
            _, head, total = line.rsplit(b" ", 2)
            body, stop = start + int(head), start + int(total)
        else:
            body, stop = start, start + int(line[line.rindex(b" ") :])
        if stop > last:
            break
        if not start <= body <= stop:
            raise ValueError(line)
        add(at)
        add(start)
        add(body)
        add(stop)
        at = stop + 2
    return marks, at


def unit(buffer: bytes, at: int) -> int:
    """Where that ends which stands at `at`: a control line, and a message's content behind it.

    0: its control line is not whole yet. May lie behind the end of the buffer. Raises ValueError.
    """
    end = buffer.find(_CRLF, at)
    if end < 0:
        return 0
    if not buffer.startswith((b"MSG", b"HMSG"), at):
        return end + 2
    if (size := int(buffer[at:end].split()[-1])) < 0:
        raise ValueError(buffer[at:end])
    return end + 2 + size + 2
