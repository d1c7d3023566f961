"""The gateway as an ASGI application: CloudEvents in, Server-Sent Events out.

A post goes: token, size, events, rate, log, answer. Nothing is answered with 202 before it is
stored, and nothing is stored of what is refused.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from time import perf_counter

import anyio
import msgspec
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from stratum_bus.bus import Bus
from stratum_bus.gateway import GatewayConfig
from stratum_cli.gateway import incoming, problem, stream
from stratum_cli.gateway.access import Access, Holder, Room
from stratum_cli.gateway.incoming import Place
from stratum_cli.gateway.metrics import Metrics
from stratum_cli.gateway.problem import Problem
from stratum_cli.gateway.seen import Seen
from stratum_cli.gateway.store import store

GET, HEAD, POST, OPTIONS = "GET", "HEAD", "POST", "OPTIONS"

BODY_SECONDS = 30.0
"""How long a body may take to come."""

DROPPED_BYTES = 8 << 20
"""How much more of a body that is too large is taken and dropped before it is answered."""

GRAMMAR = (
    "POST or GET /inbox/<agent>, /inbox/<agent>/<type>, /topic, /topic/<type>; GET "
    "/events?subject=…, /healthz, /readyz and /metrics"
)

_CLOSE = {"Connection": "close"}
_TEXT, _JSON = "text/plain; version=0.0.4; charset=utf-8", "application/json"


class Gateway:
    """What all requests share. `stop` ends the streams."""

    def __init__(self, bus: Bus, config: GatewayConfig, stop: anyio.Event) -> None:
        self._bus = bus
        self._config = config
        self._stop = stop
        self._access = Access(config.tokens)
        self._room = Room()
        self._open = 0
        self.metrics = Metrics()
        senders = {holder.agent for holder in self._access.holders}
        self.seen = Seen(senders, config.remember)
        self.metrics.known.set_function(lambda: self.seen.sequence)

    def app(self) -> ASGIApp:
        """Plain endpoints under a router: what a post takes is mostly what is between."""
        routes = [
            Route("/inbox/{to}", _Endpoint(self._talk, GET, POST, OPTIONS)),
            Route("/inbox/{to}/{type}", _Endpoint(self._talk, GET, POST, OPTIONS)),
            Route("/topic", _Endpoint(self._talk, GET, POST, OPTIONS)),
            Route("/topic/{type}", _Endpoint(self._talk, GET, POST, OPTIONS)),
            Route("/events", _Endpoint(self._talk, GET)),
            Route("/healthz", _Endpoint(self._healthz, GET, HEAD)),
            Route("/readyz", _Endpoint(self._readyz, GET, HEAD)),
            Route("/metrics", _Endpoint(self._metrics, GET, HEAD)),
        ]
        app: ASGIApp = Router(routes, redirect_slashes=False, default=_Endpoint(_no_route))
        if self._config.origins:
            app = CORSMiddleware(
                app,
                allow_origins=self._config.origins,
                allow_methods=[GET, POST],
                allow_headers=["*"],
                expose_headers=["Retry-After"],
            )
        return app

    async def _talk(self, request: Request) -> Response:
        token = ""
        try:
            holder = self._access.holder(request)
            token = holder.name
            if request.method == POST:
                answer = await self._post(request, holder)
            elif request.method == OPTIONS:
                answer = _welcome(request, holder)
            else:
                answer = self._read(request, holder)
        except ClientDisconnect:
            answer = Response(status_code=400)  # nobody hears it
        except Exception as error:  # noqa: BLE001 - whatever it is, it is answered
            answer = _said(problem.of(error))
        self.metrics.answered(token, answer.status_code)
        return answer

    async def _post(self, request: Request, holder: Holder) -> Response:
        began = perf_counter()
        place = Place(request.path_params.get("to", ""), request.path_params.get("type", ""))
        if not self.seen.ready:
            raise Problem(503, "the gateway is starting: it reads the log", retry_after=1)
        holder.rate.begin()
        held = self._room.take(_length(request, self._config.max_bytes))
        try:
            body = await _body(request, self._config.max_bytes)
            appends = incoming.read(body, request.headers, place, holder)
            holder.rate.more(len(appends) - 1)
            stored, repeats = await store(self._bus, self.seen, appends)
        finally:
            self._room.give_back(held)
        self.metrics.taken(holder.name, len(stored), repeats, perf_counter() - began)
        return Response(msgspec.json.encode({"events": stored}), 202, media_type=_JSON)

    def _read(self, request: Request, holder: Holder) -> Response:
        wanted = holder.readable(stream.filters(_asked(request)))
        begin = stream.start(request)
        if self._open >= self._config.max_streams:
            raise Problem(503, f"{self._open} streams are open, no more fit", retry_after=5)
        sent = self.metrics.sent.labels(holder.name)
        return _Streaming(
            stream.EventStream(self._bus, wanted, begin, self._stop, sent.inc), self._hold
        )

    def _hold(self, change: int) -> None:
        self._open += change
        self.metrics.streams.set(self._open)

    async def _healthz(self, request: Request) -> Response:
        return Response("ok\n", media_type=_TEXT)

    async def _readyz(self, request: Request) -> Response:
        state = {
            "connected": self._bus.connection.connected,
            "caught_up": self.seen.ready,
            "stopping": self._stop.is_set(),
        }
        ready = state["connected"] and state["caught_up"] and not state["stopping"]
        body = msgspec.json.encode({"ready": ready, **state})
        return Response(body, 200 if ready else 503, media_type=_JSON)

    async def _metrics(self, request: Request) -> Response:
        return Response(self.metrics.page(), media_type=_TEXT)


class _Endpoint:
    """What an address and these methods lead to; none: any."""

    def __init__(self, answer: Callable[[Request], Awaitable[Response]], *methods: str) -> None:
        self._answer = answer
        self._methods = methods

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        if self._methods and request.method not in self._methods:
            answer = _wrong_method(request, self._methods)
        else:
            answer = await self._answer(request)
        await answer(scope, receive, send)


class _Streaming(Response):
    """A stream that is counted, and whose failure to open is answered as any other."""

    def __init__(self, events: stream.EventStream, hold: Callable[[int], None]) -> None:
        super().__init__()
        self._events = events
        self._hold = hold

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._hold(1)
        try:
            await self._events(scope, receive, send)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is answered
            said = problem.of(error)
            if not self._events.begun:
                await _said(said)(scope, receive, send)
        finally:
            self._hold(-1)


def _welcome(request: Request, holder: Holder) -> Response:
    """The handshake of CloudEvents' webhooks: whether, and how fast, a sender may begin."""
    headers = {"Allow": f"{POST}, {GET}, {OPTIONS}"}
    if origin := request.headers.get("webhook-request-origin"):
        headers["WebHook-Allowed-Origin"] = origin
        per_minute = holder.rate.per_minute
        headers["WebHook-Allowed-Rate"] = "*" if per_minute is None else str(per_minute)
    return Response(status_code=200, headers=headers)


def _asked(request: Request) -> list[str]:
    """The subjects that an address means; `*` where it leaves one open."""
    params = request.path_params
    if "to" in params:
        return [f"inbox.{params['to']}." + (f"*.{params['type']}" if "type" in params else ">")]
    if request.url.path == "/events":
        return request.query_params.getlist("subject")
    return [f"topic.*.{params['type']}" if "type" in params else "topic.>"]


def _length(request: Request, most: int) -> int:
    """How much of a body is kept at most. Raises Problem 415 for what is not plain."""
    if request.headers.get("content-encoding", "identity") != "identity":
        raise Problem(415, "the body is compressed: only plain ones are taken")
    return min(most, int(request.headers.get("content-length", most)))


async def _body(request: Request, most: int) -> bytes:
    """Raises Problem 408 and 413."""
    too_large = f"the body has more than {most:,} bytes"
    if int(request.headers.get("content-length", 0)) > most and "expect" in request.headers:
        raise Problem(413, too_large, headers=_CLOSE)  # it asked before it sent
    parts: list[bytes] = []
    size, ended = 0, True
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                size += len(part)
                if size <= most:
                    parts.append(part)
                elif size > most + DROPPED_BYTES:
                    ended = False
                    break
                else:  # who is cut off while sending does not see why
                    parts.clear()
    except TimeoutError:
        text = f"the body did not come within {BODY_SECONDS:g} s"
        raise Problem(408, text, headers=_CLOSE) from None
    if size > most:
        raise Problem(413, too_large, headers=None if ended else _CLOSE)
    return b"".join(parts)


def _said(found: Problem) -> Response:
    return Response(found.body, found.status, found.headers, media_type=problem.CONTENT_TYPE)


async def _no_route(request: Request) -> Response:
    return _said(Problem(404, f"there is no {request.url.path[:200]}; there are {GRAMMAR}"))


def _wrong_method(request: Request, methods: Sequence[str]) -> Response:
    detail = f"no {request.method} of {request.url.path[:200]}; there are {GRAMMAR}"
    return _said(Problem(405, detail, headers={"Allow": ", ".join(methods)}))
