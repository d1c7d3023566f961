"""One page of the arXiv API's answer: Atom 1.0 with the arXiv and OpenSearch extensions.

Read with expat directly: a document type declaration, and with it every entity, is refused before
it can do anything (billion laughs, external files), and a page has a limit of size and depth.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

import msgspec

from stratum_agents.research.paper import FeedError, Paper, identify

MAX_BYTES = 16 * 1024 * 1024
MAX_DEPTH = 50

_ATOM = "{http://www.w3.org/2005/Atom}"
_ARXIV = "{http://arxiv.org/schemas/atom}"
_SEARCH = "{http://a9.com/-/spec/opensearch/1.1/}"
_SPACE = re.compile(r"\s+")
_ERRORS = "/api/errors"

# what expat says of a document that stops before its end
_CUT_OFF = {
    expat.errors.codes[text]
    for text in (
        expat.errors.XML_ERROR_NO_ELEMENTS,
        expat.errors.XML_ERROR_UNCLOSED_TOKEN,
        expat.errors.XML_ERROR_PARTIAL_CHAR,
        expat.errors.XML_ERROR_UNCLOSED_CDATA_SECTION,
    )
}


class Page(msgspec.Struct, frozen=True):
    """What one answer holds. `total` and `start` are the feed's own: papers of the whole query, and
    how many stand before this page. `entries` counts all, also those `skipped` with the reason.
    """

    source: str
    title: str
    papers: tuple[Paper, ...]
    total: int
    start: int
    entries: int
    skipped: tuple[str, ...] = ()


def parse(payload: bytes, source: str) -> Page:
    """Read one page. `source` is its path or address, for the error's sentence.

    An entry that is no paper is skipped with its reason. Raises FeedError for what is no XML, cut
    off, has a document type, is no Atom feed, is arXiv's error answer, or holds entries but no
    paper.
    """
    root = _tree(payload, source)
    if root.tag != f"{_ATOM}feed":
        name = root.tag.rpartition("}")[2]
        raise FeedError(
            source,
            f"it is XML but no Atom feed: its root is <{name}>, expected <feed>; give an answer of "
            "the arXiv API, as from export.arxiv.org/api/query",
        )
    entries = root.findall(f"{_ATOM}entry")
    papers: list[Paper] = []
    skipped: list[str] = []
    for number, entry in enumerate(entries, 1):
        if _ERRORS in _text(entry, f"{_ATOM}id"):
            said = _text(entry, f"{_ATOM}summary") or "no reason given"
            raise FeedError(source, f"arXiv answered with an error: {said}")
        try:
            papers.append(_paper(entry))
        except ValueError as error:
            skipped.append(f"entry {number}: {error}")
    if skipped and not papers:
        raise FeedError(source, f"none of its {len(entries)} entries is a paper; {skipped[0]}")
    return Page(
        source=source,
        title=_text(root, f"{_ATOM}title"),
        papers=tuple(papers),
        total=_count(root, f"{_SEARCH}totalResults", len(entries)),
        start=_count(root, f"{_SEARCH}startIndex", 0),
        entries=len(entries),
        skipped=tuple(skipped),
    )


def _tree(payload: bytes, source: str) -> Element:
    if len(payload) > MAX_BYTES:
        raise FeedError(
            source, f"it is larger than {MAX_BYTES // 1024**2} MiB; ask for fewer papers"
        )
    if not payload.strip():
        raise FeedError(source, "it is empty, expected an Atom feed")
    builder = TreeBuilder()
    depth = 0

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > MAX_DEPTH:
            raise FeedError(source, f"its elements are nested more than {MAX_DEPTH} deep")
        builder.start(_named(tag), attributes)

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(_named(tag))

    def refuse(*_: Any) -> None:
        raise FeedError(
            source,
            "it has a document type declaration (<!DOCTYPE or <!ENTITY), which no Atom feed needs "
            "and which is refused because entities can be an attack",
        )

    parser = expat.ParserCreate(namespace_separator="}")
    parser.buffer_text = True
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = refuse
    parser.EntityDeclHandler = refuse
    try:
        parser.Parse(payload, True)
        return builder.close()
    except expat.ExpatError as error:
        place = f"line {error.lineno}, column {error.offset + 1}"
        if error.code in _CUT_OFF and payload.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
            raise FeedError(
                source, f"it breaks off at {place}: the file or the download is not complete"
            ) from None
        said = expat.ErrorString(error.code)
        raise FeedError(source, f"it is not well-formed XML: {said} at {place}") from None
    except (ValueError, LookupError) as error:  # an encoding that expat or Python does not know
        raise FeedError(source, f"it is not readable XML: {error}") from None


def _named(tag: str) -> str:
    return f"{{{tag}" if "}" in tag else tag


def _paper(entry: Element) -> Paper:
    """Raises ValueError that says what is missing."""
    address = _text(entry, f"{_ATOM}id")
    found = identify(address)
    if not found:
        raise ValueError(f"its <id> {address[:80]!r} is not that of an arXiv paper")
    identifier, version = found
    published = _time(entry, f"{_ATOM}published", identifier)
    primary = entry.find(f"{_ARXIV}primary_category")
    terms = [c.get("term", "") for c in entry.findall(f"{_ATOM}category")]
    if primary is not None:
        terms.insert(0, primary.get("term", ""))
    names = (_text(author, f"{_ATOM}name") for author in entry.findall(f"{_ATOM}author"))
    return Paper(
        id=identifier,
        version=version,
        title=_text(entry, f"{_ATOM}title"),
        published=published,
        updated=_time(entry, f"{_ATOM}updated", identifier, published),
        authors=tuple(name for name in names if name),
        categories=tuple(dict.fromkeys(term for term in terms if term)),
        abstract=_text(entry, f"{_ATOM}summary"),
        comment=_text(entry, f"{_ARXIV}comment"),
        journal=_text(entry, f"{_ARXIV}journal_ref"),
        doi=_text(entry, f"{_ARXIV}doi"),
        links=_links(entry),
    )


def _links(entry: Element) -> dict[str, str]:
    found: dict[str, str] = {}
    for link in entry.findall(f"{_ATOM}link"):
        name = "abstract" if link.get("rel") == "alternate" else link.get("title", "")
        if name and (address := link.get("href")):
            found.setdefault(name, address)
    return found


def _text(element: Element, tag: str) -> str:
    found = element.find(tag)
    text = "".join(found.itertext()) if found is not None else ""
    return _SPACE.sub(" ", _as_meant(text)).strip()


def _as_meant(text: str) -> str:
    """Undo UTF-8 that was taken for Latin-1 on its way into the feed: `RamÃ\xadrez` is `Ramírez`."""
    if text.isascii():
        return text
    try:
        return text.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return text


def _time(element: Element, tag: str, identifier: str, default: datetime | None = None) -> datetime:
    text = _text(element, tag)
    if not text and default:
        return default
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        name = tag.rpartition("}")[2]
        raise ValueError(f"{identifier}: its <{name}> {text[:40]!r} is no date") from None
    return time.astimezone(UTC) if time.tzinfo else time.replace(tzinfo=UTC)


def _count(root: Element, tag: str, default: int) -> int:
    text = _text(root, tag)
    return int(text) if text.isascii() and text.isdigit() and len(text) < 16 else default
