"""Reading feeds: real answers of the arXiv API, the sample, and what must be refused."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from stratum_agents.research.atom import MAX_BYTES, parse
from stratum_agents.research.feed import pages, papers
from stratum_agents.research.paper import FeedError, Paper, identify

SAMPLES = Path(__file__).parents[2] / "examples" / "research"
SAMPLE = SAMPLES / "sample-earlier.xml"

BILLION_LAUGHS = b"""<?xml version="1.0"?>
<!DOCTYPE feed [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>
<feed xmlns="http://www.w3.org/2005/Atom"><title>&b;</title></feed>"""
EXTERNAL_ENTITY = b"""<?xml version="1.0"?>
<!DOCTYPE feed [<!ENTITY secret SYSTEM "file:///etc/hostname">]>
<feed xmlns="http://www.w3.org/2005/Atom"><title>&secret;</title></feed>"""
EXTERNAL_DTD = b"""<!DOCTYPE feed SYSTEM "http://127.0.0.1:1/evil.dtd"><feed/>"""


async def test_reads_ten_papers_of_a_real_page(shared_data: Path) -> None:
    found = await papers(str(shared_data / "arxiv" / "testing-000-009.xml"))
    assert len(found) == 10
    first = found[0]
    assert (first.id, first.version, first.name) == ("2202.12139", 1, "2202.12139v1")
    assert first.title.startswith("Testing Deep Learning Models: A First Comparative Study")
    assert first.authors == ("Mohit Kumar Ahuja", "Arnaud Gotlieb", "Helge Spieker")
    assert first.categories == ("cs.SE", "cs.LG")
    assert first.published.isoformat() == "2022-02-24T15:05:19+00:00"
    assert first.doi == "10.1109/ICSTW55395.2022.00035"
    assert set(first.links) == {"abstract", "pdf", "doi"}
    assert "\n" not in first.abstract


async def test_reads_names_whose_utf8_was_encoded_twice(shared_data: Path) -> None:
    found = await papers(str(shared_data / "arxiv" / "testing-000-009.xml"))
    assert "Aurora Ramírez" in found[1].authors


async def test_a_file_is_one_page_whatever_total_it_names(shared_data: Path) -> None:
    read = [page async for page in pages(str(shared_data / "arxiv" / "testing-010-019.xml"))]
    assert [(page.start, page.entries, page.total) for page in read] == [(10, 10, 214881)]


async def test_a_query_for_two_ids_of_which_one_is_there_gives_one_paper(shared_data: Path) -> None:
    (paper,) = await papers(f"file://{shared_data}/arxiv/two-ids.xml")
    assert paper.id == "1707.08567"
    assert len(paper.authors) == 34


async def test_an_empty_feed_has_no_papers(shared_data: Path) -> None:
    assert await papers(str(shared_data / "arxiv" / "empty.xml")) == []


async def test_the_error_feed_is_an_error_with_arxivs_own_words(shared_data: Path) -> None:
    with pytest.raises(
        FeedError, match=r"error-bad-id\.xml: arXiv answered with an error: incorrect"
    ):
        await papers(str(shared_data / "arxiv" / "error-bad-id.xml"))


async def test_the_sample_is_marked_as_invented_and_has_a_second_version() -> None:
    found = []
    for path in sorted(SAMPLES.glob("sample-*.xml")):
        assert "INVENTED" in path.read_text(encoding="utf-8")[:100]
        found += await papers(str(path))
    assert len(found) == 15
    assert len({paper.id for paper in found}) == 14
    assert [paper.name for paper in found if paper.version > 1] == ["2602.99004v2"]
    assert all("Invented" in paper.comment for paper in found)


@pytest.mark.parametrize(
    ("payload", "sentence"),
    [
        (b"", "it is empty, expected an Atom feed"),
        (b"no xml at all", "it is not well-formed XML: syntax error at line 1, column 1"),
        (b'{"papers": []}', "it is not well-formed XML"),
        (b"<html><body><p>503<br></p></body></html>", "it is not well-formed XML: mismatched tag"),
        (b"<rss><channel/></rss>", "it is XML but no Atom feed: its root is <rss>"),
        (b"<feed/>", "it is XML but no Atom feed"),
        (BILLION_LAUGHS, "it has a document type declaration"),
        (EXTERNAL_ENTITY, "it has a document type declaration"),
        (EXTERNAL_DTD, "it has a document type declaration"),
        (b"<a>" * 1000, "its elements are nested more than 50 deep"),
        (b" " * (MAX_BYTES + 1), "it is larger than 16 MiB"),
        (
            b'<?xml version="1.0" encoding="klingon"?><feed/>',
            "it is not readable XML: unknown encoding: klingon",
        ),
        (
            b'<feed xmlns="http://www.w3.org/2005/Atom">\xff\xfe</feed>',
            "it is not well-formed XML: not well",
        ),
    ],
)
def test_what_is_no_feed_is_refused_in_one_sentence(payload: bytes, sentence: str) -> None:
    with pytest.raises(FeedError) as caught:
        parse(payload, "given.xml")
    assert str(caught.value).startswith(f"feed given.xml: {sentence[:10]}")
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_feed_cut_off_anywhere_is_refused() -> None:
    whole = SAMPLE.read_bytes()
    for length in range(400, len(whole) - 10, 997):
        with pytest.raises(FeedError, match="it breaks off at line"):
            parse(whole[:length], "cut.xml")


def test_an_entry_that_is_no_paper_is_skipped_with_its_reason() -> None:
    whole = SAMPLE.read_text(encoding="utf-8")
    broken = whole.replace("<published>2026-01-08T14:02:11Z", "<published>last week", 1)
    page = parse(broken.encode(), "sample")
    assert len(page.papers) == 7
    assert page.skipped == ("entry 1: 2601.99001: its <published> 'last week' is no date",)


def test_a_feed_of_something_else_is_refused() -> None:
    blog = re.sub(r"arxiv\.example/abs/", "blog.example/posts/", SAMPLE.read_text("utf-8"))
    with pytest.raises(
        FeedError, match="none of its 8 entries is a paper; entry 1: its <id> 'http"
    ):
        parse(blog.encode(), "blog")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("http://arxiv.org/abs/2202.12139v12", ("2202.12139", 12)),
        ("http://arxiv.org/abs/hep-th/9901001", ("hep-th/9901001", 1)),
        ("math.GT/0309136v2", ("math.GT/0309136", 2)),
        ("2202.12139v0", None),
        ("http://arxiv.org/abs/", None),
        ("../../etc/passwd", None),
    ],
)
def test_identifiers_old_and_new(text: str, found: tuple[str, int] | None) -> None:
    assert identify(text) == found


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("missing.xml", "there is no such file"),
        (".", "it is a folder"),
        ("/dev/zero", "it is no regular file"),
        ("file://elsewhere/feed.xml", "as file:///folder/name"),
        ("ftp://example.org/feed.xml", "ftp:// is not read"),
        ("https://", "it is no valid address"),
        ("http://[oops/feed", "it is no valid address"),
        ("a\0b", "it cannot be read"),
    ],
)
async def test_a_source_that_cannot_be_read_is_named(source: str, sentence: str) -> None:
    with pytest.raises(FeedError) as caught:
        await papers(source, pause_seconds=0)
    assert str(caught.value).startswith(f"feed {source}: ")
    assert sentence in str(caught.value)


class Arxiv(BaseHTTPRequestHandler):
    """Answers as the arXiv API does, from the sample; `script` says what goes wrong first."""

    entries: list[Paper]
    script: list[int]
    asked: list[dict[str, list[str]]]
    pages_at_all = True

    def do_GET(self) -> None:
        query = parse_qs(urlsplit(self.path).query)
        self.asked.append(query)
        if self.script:
            status = self.script.pop(0)
            self.send_response(status)
            if status == 302:
                self.send_header("Location", f"file://{SAMPLE}")
            self.end_headers()
            if status == 400:
                self.wfile.write(ERROR.encode())
            return
        start = int(query.get("start", ["0"])[0]) if self.pages_at_all else 0
        count = int(query["max_results"][0])
        body = _page(start, count).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


TEXTS = [path.read_text(encoding="utf-8") for path in sorted(SAMPLES.glob("sample-*.xml"))]
ENTRIES = [entry for text in TEXTS for entry in re.findall(r"<entry>.*?</entry>", text, re.DOTALL)]
HEAD = TEXTS[0].partition("<entry>")[0]
ERROR = (
    HEAD + "<entry><id>https://arxiv.org/api/errors#x</id><title>Error</title>"
    "<summary>start must be an integer</summary></entry></feed>"
)


def _page(start: int, count: int) -> str:
    head = re.sub(r"(<opensearch:startIndex>)\d+", rf"\g<1>{start}", HEAD)
    return head + "".join(ENTRIES[start : start + count]) + "</feed>"


@contextmanager
def arxiv(*script: int, pages_at_all: bool = True) -> Iterator[tuple[str, type[Arxiv]]]:
    handler = type(
        "Handler", (Arxiv,), {"script": [*script], "asked": [], "pages_at_all": pages_at_all}
    )
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        host, port = server.server_address[:2]
        yield f"http://{host!s}:{port}/api/query?search_query=all:battery", handler
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


async def test_pages_an_address_by_the_feeds_own_counts() -> None:
    with arxiv() as (url, server):
        found = await papers(f"{url}&max_results=4", pause_seconds=0)
    assert len(found) == 15
    assert [query.get("start") for query in server.asked] == [None, ["4"], ["8"], ["12"]]
    assert all(query["search_query"] == ["all:battery"] for query in server.asked)


async def test_reads_no_more_papers_than_asked_for() -> None:
    with arxiv() as (url, server):
        assert len(await papers(f"{url}&max_results=4", max_papers=6, pause_seconds=0)) == 6
        assert len(server.asked) == 2
        assert len(await papers(url, max_papers=3, pause_seconds=0)) == 3
        assert server.asked[-1]["max_results"] == ["3"]


async def test_a_server_that_does_not_page_is_read_once() -> None:
    with arxiv(pages_at_all=False) as (url, _):
        assert len(await papers(f"{url}&max_results=4", pause_seconds=0)) == 4


async def test_asks_a_busy_server_once_more_and_then_gives_up() -> None:
    with arxiv(503) as (url, server):
        assert len(await papers(url, pause_seconds=0)) == 15
        assert len(server.asked) == 2
    with (
        arxiv(503, 429) as (url, server),
        pytest.raises(FeedError, match=r"is busy \(429 Too Many"),
    ):
        await papers(url, pause_seconds=0)
    assert len(server.asked) == 2


async def test_says_what_arxiv_says_with_status_400() -> None:
    with arxiv(400) as (url, _), pytest.raises(FeedError, match="error: start must be an integer"):
        await papers(url, pause_seconds=0)


async def test_names_another_status() -> None:
    with (
        arxiv(404) as (url, _),
        pytest.raises(FeedError, match="the server answered 404 Not Found"),
    ):
        await papers(url, pause_seconds=0)


async def test_follows_no_redirect_to_a_file() -> None:
    with arxiv(302) as (url, _), pytest.raises(FeedError, match="the server answered 302"):
        await papers(url, pause_seconds=0)


async def test_says_that_nobody_answers() -> None:
    with arxiv() as (url, _):
        pass
    with pytest.raises(FeedError, match=r"no connection: .*refused"):
        await papers(url, pause_seconds=0)


async def test_waits_no_longer_than_the_timeout_for_an_address() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Arxiv) as silent:  # accepts, and never answers
        url = f"http://127.0.0.1:{silent.server_port}/"
        with pytest.raises(FeedError, match=r"no answer within 0\.2 s"):
            async for _ in pages(url, pause_seconds=0, timeout_seconds=0.2):
                pass
