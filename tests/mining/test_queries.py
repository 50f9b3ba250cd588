"""Query clarity in both readings, and head, torso and tail with exact borders."""

from fractions import Fraction

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pertinent.data.readers import read_items
from pertinent.data.samples import sample_path
from pertinent.errors import ConfigError
from pertinent.lexicon.classes import TermSpan
from pertinent.lexicon.gazetteer import Gazetteer
from pertinent.lexicon.tagger import Tagger, TaggerConfig
from pertinent.mining.queries import (
    CLARITY,
    ClarityConfig,
    QueryConfig,
    clarity,
    clear_queries,
    head_terms,
    query_volumes,
    terms,
)
from pertinent.mining.schema import DAILY_SEARCHES

FEW = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
VOLUMES = ["query"]


@pytest.fixture(scope="module")
def tagger():
    """The words of a real catalog of clothes, by their categories and attributes."""
    items = read_items(sample_path("fashion") / "items.parquet")
    return Tagger(Gazetteer.from_items(items), None, TaggerConfig(mode="gazetteer"))


def span(text, word, term_class):
    start = text.index(word)
    return TermSpan(start, start + len(word), term_class, word, "gazetteer")


def test_queries_are_clear_as_they_are_worked_out_by_hand(bench, tagger):
    queries = bench.table(
        {"query": "string"},
        [
            (query,)
            for query in ["dress", "dress", "sports shoes", "red cotton dress", "shoes for men", "blue", "ça va", ""]
        ],
    )
    clear = clear_queries(queries, tagger.tag, ClarityConfig())
    assert bench.rows(clear, VOLUMES) == [
        ("", 0, False, False),
        ("blue", 1, False, False),
        ("dress", 1, False, False),
        ("red cotton dress", 3, True, True),
        ("shoes for men", 2, True, True),
        ("sports shoes", 1, True, False),  # one term once its words are joined
        ("ça va", 2, False, False),
    ]


def test_both_examples_of_the_paper_fail_and_one_of_them_only_with_the_modifier(tagger):
    for query, literal in [("dress", False), ("sports shoes", True)]:
        assert clarity(query, tagger.tag(query), ClarityConfig())[1:] == (literal, False)
        assert clarity(query, tagger.tag(query), ClarityConfig(require_modifier=False))[1:] == (literal, literal)


@pytest.mark.parametrize(
    ("query", "known", "joined", "apart"),
    [
        ("sports shoes", [("shoes", "core")], False, True),  # a compound noun that the tagger does not know
        ("shoe rack", [("shoe", "core")], False, True),
        ("laptop bag", [("laptop", "core"), ("bag", "core")], False, False),  # core terms that stand together
        ("nike shoes", [("shoes", "core")], False, True),  # a brand
        ("samsung tv", [("tv", "core")], False, True),
        ("iphone 13 case", [("iphone 13", "core"), ("case", "core")], True, True),  # a name is no part of a noun
        ("iphone 13", [("iphone 13", "core")], False, False),
        ("bag for laptop", [("laptop", "core"), ("bag", "core")], True, True),
        ("shoes by nike", [("shoes", "core")], True, True),
        ("nike air shoes", [("shoes", "core")], True, True),
        ("iphone 12 case", [("case", "core")], True, True),  # a number is no part of a noun
        ("usb-c cable", [("cable", "core")], True, True),
        ("dress for the", [("dress", "core")], False, False),  # words that only join are no terms
        ("rotes kleid", [("rotes", "style"), ("kleid", "core")], True, True),
        ("red soft", [("red", "style")], False, False),  # no core term
        ("!?", [], False, False),
    ],
)
def test_unknown_words_beside_the_noun_are_part_of_it_or_not(query, known, joined, apart):
    spans = [span(query, word, term_class) for word, term_class in known]
    assert clarity(query, spans, ClarityConfig(join_unknown=True))[2] == joined
    assert clarity(query, spans, ClarityConfig())[2] == apart


def test_with_the_shipped_tagger_brands_modify_and_the_examples_of_the_paper_fail():
    tag = Tagger.shipped().tag
    clear = ["nike shoes", "samsung tv", "hp laptop", "iphone 13 case", "winter jacket", "red dress", "shoes for men"]
    bare = ["dress", "sports shoes", "shoe rack", "laptop bag", "coffee table", "nike"]
    for query in [*clear, *bare]:
        assert clarity(query, tag(query), ClarityConfig())[2] == (query in clear), query


def test_the_number_of_terms_is_exact_at_the_border():
    query = "red cotton dress"
    spans = [span(query, "red", "style"), span(query, "cotton", "material"), span(query, "dress", "core")]
    assert [clarity(query, spans, ClarityConfig(min_terms=n))[1:] for n in (3, 4)] == [(True, True), (False, False)]


def test_without_a_core_term_asked_for_other_words_will_do():
    query = "waterproof"
    assert clarity(query, [span(query, query, "function")], ClarityConfig(min_terms=1, require_core=False)) == (
        1,
        True,
        True,
    )


def test_a_word_that_occurs_twice_is_found_twice():
    found = terms("led lamp led strip", [span("led lamp led strip", "lamp", "core")])
    assert [(term.start, term.text) for term in found] == [(0, "led"), (4, "lamp"), (9, "led"), (13, "strip")]
    assert [term.start for term in head_terms(found, True)] == [0, 4, 9]


def test_clarity_of_no_queries_has_the_same_columns(duckdb_bench, tagger):
    clear = clear_queries(duckdb_bench.table({"query": "string"}, []), tagger.tag, ClarityConfig())
    assert duckdb_bench.rows(clear, VOLUMES) == []
    assert duckdb_bench.types(clear, VOLUMES) == {**CLARITY, "clear_literal": "bool", "clear": "bool"}


def test_volumes_and_segments_are_as_they_are_worked_out_by_hand(bench):
    searches = [(1, "led", 3, 1), (2, "led", 3, 2), (1, "tv", 2, 0), (2, "ämter", 1, 1), (1, "a", 1, 0), (1, "b", 0, 0)]
    found = bench.rows(query_volumes(bench.table(DAILY_SEARCHES, searches[:-1]), 0.5, 0.8), VOLUMES)
    assert found == [
        ("a", 1, 0, 0.1, "tail"),  # 8 of 10 searches stand before it: not below 0.8
        ("led", 6, 3, 0.6, "head"),
        ("tv", 2, 0, 0.2, "torso"),
        ("ämter", 1, 1, 0.1, "tail"),
    ]
    empty = query_volumes(bench.table(DAILY_SEARCHES, []), 0.5, 0.8)
    assert bench.rows(empty, VOLUMES) == []
    full = query_volumes(bench.table(DAILY_SEARCHES, searches), 0.5, 0.8)
    assert bench.types(empty, VOLUMES) == bench.types(full, VOLUMES)


@FEW
@given(
    counts=st.lists(st.integers(1, 4), max_size=10),
    borders=st.tuples(st.integers(0, 10), st.integers(0, 10)).map(sorted),
    turned=st.booleans(),
)
def test_segments_are_those_of_a_running_sum(duckdb_bench, counts, borders, turned):
    rows = [(1, f"q{n}", count, 0) for n, count in enumerate(counts)]
    table = duckdb_bench.table(DAILY_SEARCHES, rows[::-1] if turned else rows)
    head, torso = borders
    expected, before = {}, 0
    for _, query, count, _ in sorted(rows, key=lambda row: (-row[2], row[1])):
        place = Fraction(before, sum(counts))
        expected[query] = "head" if place < Fraction(head, 10) else "torso" if place < Fraction(torso, 10) else "tail"
        before += count
    found = duckdb_bench.rows(query_volumes(table, head / 10, torso / 10), VOLUMES)
    assert {row[0]: row[-1] for row in found} == expected
    assert [row[3] for row in found] == [count / sum(counts) for count in counts]


def test_segments_out_of_order_are_refused():
    with pytest.raises(ConfigError, match="head must not be above torso"):
        QueryConfig.build({"head": 0.9, "torso": 0.5})
