"""Headers are read and written as the client library does it, only faster."""

from __future__ import annotations

import pytest
from nats.aio.client import Client

from stratum_bus.wire import SturdyClient

BLOCKS = (
    b"",
    b"\r\n",
    b"Nats-Msg-Id: 1\r\nContent-Type: application/json\r\n\r\n",
    b"A:1\r\nB:\t2 \r\nC :3\r\n D: 4\r\n\r\n",
    b"two words: 1\r\nno colon\r\nB: a:b\r\n\r\n",
    b"caf\xc3\xa9: 1\r\nB: caf\xc3\xa9\r\nC: \xff\xfe\r\n\r\n",
    b"A: 1\r\na: 2\r\nA: 3\r\n\r\n",
    b"N" * 5000 + b": long\r\n\r\n",
    b"form\x0cfeed: 1\r\nsplit\nline: 2\r\nB: 1\n2\r\n\r\n",
)


@pytest.mark.parametrize("block", BLOCKS)
def test_headers_are_parsed_as_by_the_library(block: bytes) -> None:
    assert SturdyClient._parse_header_lines(block) == Client._parse_header_lines(block)


def test_a_header_without_a_name_is_none() -> None:
    assert SturdyClient._parse_header_lines(b": 1\r\n\r\n") == {}
