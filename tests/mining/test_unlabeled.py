"""Pairs for a teacher: every segment and source gets its share, judged queries get none."""

import hashlib
from collections import defaultdict

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pertinent.mining.queries import query_volumes
from pertinent.mining.schema import DAILY, DAILY_SEARCHES
from pertinent.mining.unlabeled import UNLABELED, UnlabeledConfig, unlabeled_pairs, word_bag
from pertinent.text import normalize

FEW = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
ORDER = ["query", "item_id"]
SMALL = UnlabeledConfig(head=1, torso=1, tail=2, clicked=1, shown=1, deep=1, other=2, deep_position=10, seed=3)
# "tv" is head, "led lamp" torso, the others tail.
SEARCHES = [(1, "tv", 6, 0), (1, "led lamp", 3, 0), (1, "a", 1, 0), (1, "b", 1, 0), (1, "ü", 1, 0)]
PAIRS = [
    # day, query, item, exposures, clicks, deepest, position_sum, positioned
    (1, "tv", "clicked 1", 5, 1, 1, 50, 5),
    (1, "tv", "clicked 2", 5, 2, 5, 0, 5),
    (1, "tv", "at the border", 2, 0, 0, 20, 2),
    (1, "tv", "above it", 2, 0, 0, 9, 1),
    (2, "tv", "above it", 2, 0, 0, 10, 1),
    (1, "tv", "somewhere", 2, 0, 0, 0, 0),
    (1, "led lamp", "lamp", 1, 0, 0, 99, 1),
    (1, "a", "clicked 1", 1, 1, 1, 0, 1),
    (1, "b", "bulb", 1, 1, 1, 0, 1),
    (1, "ü", "é", 1, 0, 0, 3, 1),
]


def mark(seed, text):
    return hashlib.md5(f"{seed}\n{text}".encode()).hexdigest()


def source(clicks, position_sum, positioned, config):
    if clicks > 0:
        return "clicked"
    return "deep" if positioned and position_sum / positioned >= config.deep_position else "shown"


def drawn_by_hand(daily, segments, left_out, config):
    """The same draw in plain Python."""
    pairs = defaultdict(lambda: (0, 0, 0))
    for _, query, item, _, clicks, _, position_sum, positioned in daily:
        old = pairs[query, item]
        pairs[query, item] = (old[0] + clicks, old[1] + position_sum, old[2] + positioned)
    queries = {}
    for segment in ("head", "torso", "tail"):
        own = [query for query, name in segments.items() if name == segment and query not in left_out]
        own.sort(key=lambda query: mark(config.seed, query))
        kept = own[: getattr(config, segment)]
        queries |= {query: (segment, len(own) / len(kept)) for query in kept}
    ring = sorted({item for _, item in pairs}, key=lambda item: mark(config.seed, item))
    rows = []
    for number, query in enumerate(sorted(queries, key=lambda query: mark(config.seed, query))):
        by_source = defaultdict(list)
        for (of, item), counts in pairs.items():
            if of == query:
                by_source[source(*counts, config)].append(item)
        for name, items in by_source.items():
            items.sort(key=lambda item: mark(config.seed, f"{query}\n{item}"))
            rows += [(query, item, *queries[query], name) for item in items[: getattr(config, name)]]
        places = [(number * config.other + step) % len(ring) for step in range(min(config.other, len(ring)))]
        rows += [(query, ring[at], *queries[query], "other") for at in places if (query, ring[at]) not in pairs]
    return sorted(rows)


def made(bench, daily, searches, judged, config):
    volumes = query_volumes(bench.table(DAILY_SEARCHES, searches), 0.5, 0.7)
    return unlabeled_pairs(bench.table(DAILY, daily), volumes, judged, config)


def test_pairs_are_those_of_a_plain_draw(bench):
    found = bench.rows(made(bench, PAIRS, SEARCHES, ["B", "unknown"], SMALL), ORDER)
    segments = {"tv": "head", "led lamp": "torso", "a": "tail", "b": "tail", "ü": "tail"}
    assert found == drawn_by_hand(PAIRS, segments, {"b"}, SMALL)
    assert {row[0] for row in found} == {"tv", "led lamp", "a", "ü"}
    sources = {row[4]: row[1] for row in found if row[0] == "tv" and row[4] != "other"}
    assert sources["clicked"] in {"clicked 1", "clicked 2"}
    assert sources["deep"] == "at the border"
    assert sources["shown"] in {"above it", "somewhere"}


def test_no_judged_query_is_among_them_nor_one_of_the_same_words(duckdb_bench):
    judged = ["Lamp, LED", "ＴＶ", "Ü "]
    found = duckdb_bench.rows(made(duckdb_bench, PAIRS, SEARCHES, judged, SMALL), ORDER)
    assert {row[0] for row in found} == {"a", "b"}
    assert {row[3] for row in found} == {1.0}


@pytest.mark.parametrize(
    ("judged", "near"),
    [
        ("usb-c cable", "usb c cable"),
        ("usb-c cable", "Cable USB_C"),
        ("led lamp", "led led lamp"),
        ("café", "cafe"),
        ("café", "cafe\u0301"),
        ("größe", "große"),
        ("2.5 m kabel", "kabel 2 5 m"),
        ("men's shoes", "shoes, men’s"),
        ("wi-fi/bluetooth", "bluetooth wi fi"),
        ("ケース 日本語", "日本語・ケース"),
        ("?!", " ?!"),
    ],
)
def test_near_copies_of_a_judged_query_are_left_out_too(duckdb_bench, judged, near):
    assert word_bag(judged) == word_bag(near)
    daily, searches = [(1, normalize(near), "item", 1, 1, 1, 0, 1)], [(1, normalize(near), 1, 0)]
    assert duckdb_bench.rows(made(duckdb_bench, daily, searches, [judged], SMALL), ORDER) == []
    assert len(duckdb_bench.rows(made(duckdb_bench, daily, searches, ["lamp"], SMALL), ORDER)) == 1


@pytest.mark.parametrize(
    ("one", "other"), [("led lamp", "lamp"), ("12v", "24v"), ("usb-c", "usb-a"), ("か", "が"), ("!", "?")]
)
def test_other_words_are_another_query(one, other):
    assert word_bag(one) != word_bag(other)


def test_nothing_in_or_all_judged_is_an_empty_table_of_the_same_columns(duckdb_bench):
    full = made(duckdb_bench, PAIRS, SEARCHES, [], SMALL)
    for empty in (
        made(duckdb_bench, [], [], [], SMALL),
        made(duckdb_bench, PAIRS, SEARCHES, [row[1] for row in SEARCHES], SMALL),
    ):
        assert duckdb_bench.rows(empty, ORDER) == []
        assert duckdb_bench.types(empty, ORDER) == duckdb_bench.types(full, ORDER)
    assert tuple(duckdb_bench.types(full, ORDER)) == UNLABELED


def test_each_segment_gets_its_share_and_weights_add_to_all_its_queries(duckdb_bench):
    searches = [(1, f"q{n:03}", 200 if n == 0 else 20 if n < 10 else 1, 0) for n in range(210)]
    daily = [(1, query, f"i{n % 7}", 1, 1, 1, 0, 1) for n, (_, query, _, _) in enumerate(searches)]
    config = UnlabeledConfig(head=5, torso=4, tail=30)
    found = duckdb_bench.rows(made(duckdb_bench, daily, searches, [], config), ORDER)
    queries = {row[0]: row[2:4] for row in found}
    # Of 580 searches, fewer than 290 and fewer than 406 stand before these.
    sizes = {"head": 6, "torso": 30, "tail": 174}
    for segment, drawn in (("head", 5), ("torso", 4), ("tail", 30)):
        weights = [weight for name, weight in queries.values() if name == segment]
        assert len(weights) == drawn
        assert sum(weights) == pytest.approx(sizes[segment])


def test_another_seed_draws_others(duckdb_bench):
    searches = [(1, f"q{n:03}", 1, 0) for n in range(100)]
    daily = [(1, query, "item", 1, 1, 1, 0, 1) for _, query, _, _ in searches]

    def drawn(seed):
        config = UnlabeledConfig(head=0, torso=0, tail=10, seed=seed)
        return duckdb_bench.rows(made(duckdb_bench, daily, searches, [], config), ORDER)

    assert drawn(0) == drawn(0) != drawn(1)


def test_items_of_other_queries_are_used_about_equally_often(duckdb_bench):
    searches = [(1, f"q{n:03}", 1, 0) for n in range(100)]
    daily = [(1, query, f"i{n:03}", 1, 1, 1, 0, 1) for n, (_, query, _, _) in enumerate(searches)]
    config = UnlabeledConfig(head=100, torso=100, tail=100, other=4)
    uses = defaultdict(int)
    for _, item, _, _, name in duckdb_bench.rows(made(duckdb_bench, daily, searches, [], config), ORDER):
        uses[item] += name == "other"
    assert min(uses.values()) >= 3 and max(uses.values()) <= 4


@FEW
@given(
    cells=st.dictionaries(
        st.tuples(st.sampled_from(["a", "b", "é f", "f é"]), st.sampled_from("123")),
        st.tuples(st.integers(0, 1), st.integers(0, 12)),
        max_size=12,
    ),
    seed=st.integers(0, 3),
)
def test_pairs_are_unique_and_do_not_depend_on_the_order_of_rows(duckdb_bench, cells, seed):
    daily = [(1, *pair, 1, clicks, clicks, place, 1) for pair, (clicks, place) in cells.items()]
    searches = [(1, query, 1, 0) for query in dict.fromkeys(query for query, _ in cells)]
    config = SMALL.model_copy(update={"seed": seed})
    one, two = (
        duckdb_bench.rows(made(duckdb_bench, rows, asked, ["é f"], config), ORDER)
        for rows, asked in ((daily, searches), (daily[::-1], searches[::-1]))
    )
    assert one == two
    assert len({row[:2] for row in one}) == len(one)
    assert not {row[0] for row in one} & {"é f", "f é"}
