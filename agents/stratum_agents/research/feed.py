"""Feeds: where their bytes come from (a path, `file://`, `http://`, `https://`), and page after page.

A file is one page. An address is paged with the API's own `start`: the next page begins where the
feed's own counts say this one ends. arXiv asks for three seconds between requests.
"""

from __future__ import annotations

import contextlib
import http.client
import logging
import time
import urllib.error
import urllib.request
from collections.abc import AsyncGenerator
from email.message import Message as Headers
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

import anyio
import anyio.to_thread

from stratum_agents.research.atom import MAX_BYTES, Page, parse
from stratum_agents.research.paper import FeedError, Paper

MAX_PAPERS = 200
PAGE_SIZE = 100
PAUSE_SECONDS = 3.0
TIMEOUT_SECONDS = 30.0

_RETRY_AFTER_MAX_SECONDS = 30.0
_BUSY = {408, 425, 429, 500, 502, 503, 504}

log = logging.getLogger("stratum.research")


class _Unanswered(FeedError):
    """No answer, or a busy server's: asking again after `wait_seconds` may help."""

    def __init__(self, source: str, reason: str, wait_seconds: float = 0.0) -> None:
        self.wait_seconds = wait_seconds
        super().__init__(source, reason)


async def pages(
    source: str,
    *,
    max_papers: int = MAX_PAPERS,
    pause_seconds: float = PAUSE_SECONDS,
    timeout_seconds: float = TIMEOUT_SECONDS,
) -> AsyncGenerator[Page, None]:
    """The pages of one feed, in its order, until its end or until `max_papers` entries were read.

    An address without `max_results` is asked for pages of 100. A request that gets no answer is
    tried once more, after `pause_seconds` or the server's `Retry-After`. Raises FeedError.
    """
    if not _is_address(source):
        yield parse(await anyio.to_thread.run_sync(_read_file, source), source)
        return
    address = _with_query(source, {"max_results": min(PAGE_SIZE, max_papers)}, replace=False)
    start, read = None, 0
    while True:
        page = await _ask(address, pause_seconds, timeout_seconds)
        if start not in (None, page.start):
            return  # a server that does not page gives its first page again
        yield page
        read += page.entries
        start = page.start + page.entries
        if not page.entries or start >= page.total or read >= max_papers:
            return
        await anyio.sleep(pause_seconds)
        address = _with_query(address, {"start": start})


async def papers(
    source: str, *, max_papers: int = MAX_PAPERS, pause_seconds: float = PAUSE_SECONDS
) -> list[Paper]:
    """The papers of one feed, at most `max_papers`; what was skipped is logged. Raises FeedError."""
    found: list[Paper] = []
    async with contextlib.aclosing(
        pages(source, max_papers=max_papers, pause_seconds=pause_seconds)
    ) as each:
        async for page in each:
            for reason in page.skipped:
                log.warning("feed %s: skipped %s", source, reason)
            found += page.papers
    return found[:max_papers]


def _is_address(source: str) -> bool:
    """Whether it is read over HTTP. Raises FeedError for an address of another kind."""
    scheme, mark, _ = source.partition("://")
    if not mark or scheme.lower() == "file":
        return False
    if scheme.lower() not in ("http", "https"):
        raise FeedError(
            source,
            f"{scheme}:// is not read; give a path, or a file://, http:// or https:// address",
        )
    try:
        host = urlsplit(source).hostname
    except ValueError as error:
        raise FeedError(source, f"it is no valid address: {error}") from None
    if not host or not source.isprintable() or " " in source:
        raise FeedError(source, "it is no valid address; expected https://host/path?query")
    return True


def _read_file(source: str) -> bytes:
    path = Path(source)
    if source.lower().startswith("file://"):
        parts = urlsplit(source)
        if parts.netloc not in ("", "localhost"):
            raise FeedError(
                source, "a file:// address names this machine's file as file:///folder/name"
            )
        path = Path(unquote(parts.path))
    try:
        if path.is_dir():
            raise FeedError(source, "it is a folder, expected a file; name the files in it")
        if path.exists() and not path.is_file():
            raise FeedError(source, "it is no regular file")
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise FeedError(source, "there is no such file; check the path") from None
    except (OSError, ValueError) as error:
        said = error.strerror if isinstance(error, OSError) else str(error)
        raise FeedError(source, f"it cannot be read: {said}") from None


async def _ask(address: str, pause_seconds: float, timeout_seconds: float) -> Page:
    for patient in (True, False):
        try:
            payload = await anyio.to_thread.run_sync(
                _get, address, timeout_seconds, abandon_on_cancel=True
            )
            return parse(payload, address)
        except _Unanswered as error:
            if not patient:
                raise
            log.warning("%s; asking once more", error)
            await anyio.sleep(max(pause_seconds, error.wait_seconds))
    raise AssertionError("the second try returns or raises")


def _get(address: str, timeout_seconds: float) -> bytes:
    request = urllib.request.Request(
        address,
        headers={"User-Agent": "stratum-research (Atom reader)", "Accept": "application/atom+xml"},
    )
    deadline = time.monotonic() + timeout_seconds
    try:
        with _opener().open(request, timeout=timeout_seconds) as answer:
            return _read_all(answer, address, deadline, timeout_seconds)
    except urllib.error.HTTPError as error:
        with error:
            raise _refusal(error, address, deadline, timeout_seconds) from None
    except TimeoutError:
        raise _Unanswered(address, f"no answer within {timeout_seconds:g} s") from None
    except urllib.error.URLError as error:
        if isinstance(error.reason, TimeoutError):
            raise _Unanswered(address, f"no answer within {timeout_seconds:g} s") from None
        raise _Unanswered(address, f"no connection: {error.reason}") from None
    except (OSError, http.client.HTTPException) as error:
        raise _Unanswered(address, f"the connection broke: {error!r}") from None


def _read_all(
    answer: http.client.HTTPResponse | urllib.error.HTTPError,
    address: str,
    deadline: float,
    timeout_seconds: float,
) -> bytes:
    """The body, to one byte over the limit, which `parse` then refuses."""
    body = bytearray()
    while len(body) <= MAX_BYTES and (part := answer.read1(65536)):
        body += part
        if time.monotonic() > deadline:
            raise TimeoutError
    return bytes(body)


def _refusal(
    error: urllib.error.HTTPError, address: str, deadline: float, timeout_seconds: float
) -> FeedError:
    """What a status other than 200 means; arXiv says why in an Atom feed of its own."""
    if error.code in _BUSY:
        return _Unanswered(
            address,
            f"the server is busy ({error.code} {error.reason})",
            _retry_after(error.headers),
        )
    with contextlib.suppress(OSError, http.client.HTTPException):
        try:
            parse(_read_all(error, address, deadline, timeout_seconds), address)
        except FeedError as said:
            if said.reason.startswith("arXiv"):
                return said
    return FeedError(address, f"the server answered {error.code} {error.reason}, expected 200")


def _retry_after(headers: Headers) -> float:
    text = headers.get("Retry-After", "")
    return min(float(text), _RETRY_AFTER_MAX_SECONDS) if text.isascii() and text.isdigit() else 0.0


def _opener() -> urllib.request.OpenerDirector:
    """HTTP and HTTPS only: a redirect must not lead to a file or an FTP server."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    return opener


def _with_query(address: str, values: dict[str, int], *, replace: bool = True) -> str:
    """The address with these parameters, in place of its own or only where it has none."""
    parts = urlsplit(address)
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    new = {name: str(value) for name, value in values.items()}
    merged = {**query, **new} if replace else {**new, **query}
    return urlunsplit(parts._replace(query=urlencode(merged, safe=":,"), fragment=""))
