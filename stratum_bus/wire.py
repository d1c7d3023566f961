"""The client library's protocol side, hardened: no message that anybody stored can stop a reader.

A server hands out whatever bytes a client sent it as subject and headers. The library ends its
reading loop at some of them, and stays "connected" without hearing anything; in a log, which keeps
them for ever, that would be the end of every reader.
"""

from __future__ import annotations

import logging
import re

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.protocol import parser

log = logging.getLogger("stratum.connection")

# A subject may hold a form feed or a vertical tab, which `\s` takes for the end of it.
_WORD = rb"([^ \t\r\n]+)"
parser.MSG_RE = re.compile(rb"\AMSG[ \t]+%b[ \t]+%b[ \t]+(%b[ \t]+)?(\d+)\r\n" % ((_WORD,) * 3))
parser.HMSG_RE = re.compile(
    rb"\AHMSG[ \t]+%b[ \t]+%b[ \t]+(%b[ \t]+)?(\d+)[ \t]+(\d+)\r\n" % ((_WORD,) * 3)
)


class SturdyClient(Client):
    """Headers that cannot be parsed are none, bytes of a subject that are not UTF-8 become �."""

    async def _process_headers(self, headers: bytes) -> dict[str, str] | None:
        try:
            return await super()._process_headers(headers)
        except Exception as error:  # noqa: BLE001 - whatever a writer brought it to
            log.debug("headers %r cannot be read: %r", headers[:200], error)
            return None

    def _build_message(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: dict[str, str] | None
    ) -> Msg:
        return Msg(
            _client=self,
            subject=subject.decode(errors="replace"),
            reply=reply.decode(errors="replace"),
            data=data,
            headers=headers,
            _sid=sid,
        )

    async def _read_loop(self) -> None:
        await super()._read_loop()
        if self.is_connected:
            log.error("reading from the server ended unexpectedly: connecting again")
            await self._process_op_err(nats.errors.ProtocolError())
