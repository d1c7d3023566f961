"""Terms, embeddings and relevance: what a paper is about, without a model."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from stratum_agents.embed import HashingEmbedder, cosine
from stratum_agents.research import feed, terms
from stratum_agents.research.library import Library
from stratum_agents.research.reader import TermReader, sentences
from stratum_agents.research.relevance import Interests, Relevance
from stratum_agents.research.settings import Settings
from stratum_bus.errors import ConfigError
from stratum_bus.settings import convert


def key_terms(title: str, abstract: str) -> list[str]:
    return [term.term for term in terms.key_terms(terms.read(title, abstract), Library())]


@pytest.mark.parametrize(
    ("surface", "form"),
    [
        ("Studies", "study"),
        ("classes", "class"),
        ("hypotheses", "hypothesis"),
        ("bias", "bias"),
        ("GANs", "gan"),
        ("ADS", "ads"),
        ("Rao's", "rao"),
        ("e-values", "e-value"),
        ("analysis", "analysis"),
    ],
)
def test_a_word_has_one_form(surface: str, form: str) -> None:
    assert terms.word(surface) == form


def test_terms_are_counted_by_a_rougher_stem() -> None:
    assert terms.stem("software test") == terms.stem("software testing")
    assert terms.stem("planning") == terms.stem("plan") == "plan"


def test_key_terms_are_phrases_and_not_what_every_paper_says() -> None:
    found = key_terms(
        "A Novel Approach to Mutation Testing",
        "In this paper we propose a novel approach. Results show that our approach to mutation "
        "testing is effective. Mutation testing finds faults in smart contracts; smart contracts "
        "are programs. The proposed approach is based on smart contracts.",
    )
    assert found[:2] == ["mutation testing", "smart contract"]
    assert not {"paper", "approach", "novel", "result", "based"} & set(found)


def test_a_short_form_and_what_it_stands_for_are_one_term() -> None:
    text = terms.read(
        "Test Case Prioritisation",
        "Test Case Prioritisation (TCP) is costly. TCP by ranking is cheap. We measure TCP.",
    )
    assert text.short_forms == {"tcp": "test case prioritisation"}
    assert text.counts["test case prioritisation"] == 5  # in the title, spelt out, thrice short
    found = [term.term for term in terms.key_terms(text, Library())]
    assert found[0] == "test case prioritisation"
    assert "tcp" not in found


def test_phrases_do_not_cross_punctuation_formulas_or_addresses() -> None:
    counts = terms.read(
        "", r"graph, colouring $x^2 + y$ network \emph{flow} https://a.example/b-c"
    ).counts
    assert set(counts) == {"graph", "colouring", "network", "flow", "network flow"}


def test_a_text_without_words_has_no_terms() -> None:
    assert key_terms("42", "... $$") == []
    assert terms.key_terms(terms.read("", ""), Library()) == []


def test_a_text_far_longer_than_an_abstract_is_read_in_no_time() -> None:
    words = [f"word{chr(97 + i % 26)}{chr(97 + i // 26 % 26)}" for i in range(100_000)]
    hostile = [" ".join(words), "\\[" * 100_000, "(ABC) " * 100_000, "$" * 99_999, "a-" * 100_000]
    start = time.process_time()
    for text in hostile:
        key_terms(text, text)
    assert time.process_time() - start < 5


def test_sentences_end_neither_at_abbreviations_nor_at_initials() -> None:
    text = "We test tools, e.g. Selenium. J. Smith et al. Found it. Is it so? It is."
    assert sentences(text) == [
        "We test tools, e.g. Selenium.",
        "J. Smith et al. Found it.",
        "Is it so?",
        "It is.",
    ]


async def test_the_points_of_a_real_paper_say_what_is_new(shared_data: Path) -> None:
    found = await feed.papers(str(shared_data / "arxiv" / "testing-000-009.xml"))
    opencat = next(paper for paper in found if paper.title.startswith("OpenCat"))
    reading = await TermReader().read(opencat, Library())
    assert len(reading.points) == 2
    assert all(point in opencat.abstract for point in reading.points)
    assert "interoperability of SensoDat" in reading.points[0]


def test_an_embedding_is_the_same_everywhere_and_of_length_one() -> None:
    embedder = HashingEmbedder()
    (vector,) = embedder.embed(["Mutation testing of smart contracts"])
    assert len(vector) == embedder.dimensions == 384
    assert cosine(vector, vector) == pytest.approx(1.0)
    # written down once: vectors that are stored must stay comparable
    assert {i: round(value, 4) for i, value in enumerate(vector) if abs(value) > 0.33} == {
        57: 0.3651, 131: -0.3651, 253: -0.3651, 333: -0.3651, 379: -0.3651,
    }  # fmt: skip
    assert embedder.embed(["mutation TESTING of smart contracts"]) == [vector]
    assert set(embedder.embed([""])[0]) == {0.0}


def test_texts_on_one_subject_are_nearer_than_others_and_stems_count() -> None:
    one, same, other = HashingEmbedder().embed(
        ["mutation testing of contracts", "testing contracts by mutants", "group theory of knots"]
    )
    assert cosine(one, same) > 0.3 > abs(cosine(one, other))
    plural, singular = HashingEmbedder().embed(["electrolytes", "electrolyte"])
    assert cosine(plural, singular) > 0.2


def relevance(interests: list[str], title: str, abstract: str = "") -> Relevance:
    embedder = HashingEmbedder()
    text = terms.read(title, abstract)
    (vector,) = embedder.embed([terms.plain(f"{title} . {abstract}")])
    return Interests(interests, embedder).relevance(text, vector, Library())


def test_relevance_is_between_none_and_all() -> None:
    wanted = ["mutation testing"]
    assert relevance(wanted, "Mutation Testing of Smart Contracts").score > 0.9
    assert relevance(wanted, "Knots and Braids").score < 0.1
    passing = relevance(wanted, "Fuzzing of Parsers", "Unlike mutation testing, fuzzing is cheap.")
    assert 0.2 < passing.score < 0.6


def test_relevance_says_why_for_each_interest() -> None:
    found = relevance(
        ["braids", "mutation testing"],
        "Mutation Testing of Braids",
        "Braids are braids.",
    )
    assert found.why == (
        "braids: braid (in the title)",
        "mutation testing: mutation testing (in the title)",
    )


def test_words_that_are_related_to_an_interest_count_by_their_stem() -> None:
    assert relevance(["software testing"], "How Software Is Tested").score > 0.3


@pytest.mark.parametrize(
    ("settings", "key", "sentence"),
    [
        ({}, "interests", "expected a list, got nothing"),
        ({"interests": []}, "interests", "length >= 1, got a list"),
        ({"interests": "testing"}, "interests", "got the text"),
        ({"interests": ["novel results"]}, "", 'the interest "novel results" has no word'),
        ({"interests": ["knots"], "threshold": 2}, "threshold", "a number <= 1"),
        ({"interests": ["knots"], "tell": ["the editor"]}, "", "agent name 'the editor' is not"),
        ({"interests": ["knots"], "tell": ["research"]}, "", "tell names research, which is this"),
        ({"interests": ["knots"], "poll_minutes": 0}, "poll_minutes", "a number >= 1"),
        ({"interests": ["knots"], "treshold": 0.5}, "treshold", "did you mean threshold?"),
    ],
)
def test_settings_that_do_not_fit_are_named(
    settings: dict[str, object], key: str, sentence: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        convert(settings, Settings, "agents.research.settings", "stratum.toml")
    assert f"agents.research.settings{f'.{key}' if key else ''}: expected" in str(caught.value)
    assert sentence in str(caught.value)
