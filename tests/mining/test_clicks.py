"""Clicked pairs: the deepest level counts, copies are those asked for, the frequent ones are exact."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pertinent.errors import ConfigError
from pertinent.mining.clicks import ClickConfig, deepest_levels, frequent_pairs, level_counts, repeated, resampled
from pertinent.mining.schema import DAILY, LEVELS

FEW = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
KEYS = ["query", "item_id"]
COPIES = ClickConfig().copies


def day_row(day, query, item, level, clicks=1):
    return (day, query, item, max(clicks, 1), clicks if level else 0, level, 0, 1)


# One pair for each level, and two that did more than one thing.
LOG = [
    *(day_row(1, "lampe für küche", name, level) for level, name in enumerate(LEVELS)),
    day_row(1, "led", "click then pay", 1),
    day_row(2, "led", "click then pay", 5),
    day_row(1, "led", "three carts", 2, 3),
    day_row(2, "led", "three carts", 2, 2),
]


def test_a_pair_counts_by_its_deepest_level_however_often(bench):
    pairs = resampled(deepest_levels(bench.table(DAILY, LOG)), COPIES)
    assert bench.rows(pairs, KEYS) == [
        ("lampe für küche", "cart", 2, 1, 1, 1),
        ("lampe für küche", "click", 1, 1, 1, 1),
        ("lampe für küche", "contact", 3, 1, 1, 2),
        ("lampe für küche", "order", 4, 1, 1, 3),
        ("lampe für küche", "pay", 5, 1, 1, 5),
        ("lampe für küche", "view", 0, 1, 0, 0),
        ("led", "click then pay", 5, 2, 2, 5),
        ("led", "three carts", 2, 5, 5, 1),
    ]
    assert bench.rows(level_counts(pairs), ["level"]) == [
        (0, 1, 0),
        (1, 1, 1),
        (2, 2, 2),
        (3, 1, 2),
        (4, 1, 3),
        (5, 2, 10),
    ]


def test_copies_as_rows_are_as_many_as_the_copies_say(bench):
    pairs = resampled(deepest_levels(bench.table(DAILY, LOG)), COPIES)
    found = bench.rows(repeated(pairs, COPIES).select(*KEYS, "copy"), [*KEYS, "copy"])
    expected = [(query, item, copy) for query, item, *_, copies in bench.rows(pairs, KEYS) for copy in range(copies)]
    assert found == expected
    assert len(found) == 1 + 2 + 2 + 3 + 10


def test_frequent_pairs_are_an_eighth_of_the_clicked_ones_with_ties_by_id(bench):
    rows = [day_row(1, "é" if n % 2 else "a", f"i{n}", 1, 1 if n < 8 else 2) for n in range(9)]
    pairs = deepest_levels(bench.table(DAILY, [*rows, day_row(1, "z", "only shown", 0)]))
    found = bench.rows(frequent_pairs(pairs, 0.125), ["rank"])
    assert [(row[0], row[1], row[-1]) for row in found] == [("a", "i8", 0), ("a", "i0", 1)]


@pytest.mark.parametrize(("clicked", "kept"), [(1, 1), (8, 1), (9, 2), (16, 2)])
def test_the_share_is_rounded_up(duckdb_bench, clicked, kept):
    pairs = deepest_levels(duckdb_bench.table(DAILY, [day_row(1, "q", f"i{n:02}", 1) for n in range(clicked)]))
    assert [row[1] for row in duckdb_bench.rows(frequent_pairs(pairs, 0.125), ["rank"])] == ["i00", "i01"][:kept]


def test_empty_in_is_empty_out_with_the_same_columns(duckdb_bench):
    def made(rows):
        pairs = resampled(deepest_levels(duckdb_bench.table(DAILY, rows)), COPIES)
        return [(pairs, KEYS), (repeated(pairs, COPIES), [*KEYS, "copy"]), (level_counts(pairs), ["level"])]

    for (empty, order), (full, _) in zip(made([]), made(LOG), strict=True):
        assert duckdb_bench.rows(empty, order) == []
        assert duckdb_bench.types(empty, order) == duckdb_bench.types(full, order)


def test_a_log_of_views_alone_has_no_copies(duckdb_bench):
    pairs = resampled(deepest_levels(duckdb_bench.table(DAILY, [day_row(1, "q", "i", 0)])), COPIES)
    assert duckdb_bench.rows(repeated(pairs, COPIES), KEYS) == []
    assert duckdb_bench.rows(frequent_pairs(pairs, 0.125), KEYS) == []


def test_a_level_without_copies_is_left_out(duckdb_bench):
    pairs = resampled(deepest_levels(duckdb_bench.table(DAILY, LOG)), (0, 0, 0, 0, 2))
    assert [row[1] for row in duckdb_bench.rows(repeated(pairs, (0, 0, 0, 0, 2)), KEYS)] == ["pay"] * 2 + [
        "click then pay"
    ] * 2


@FEW
@given(rows=st.lists(st.tuples(st.integers(1, 3), st.sampled_from("aé"), st.sampled_from("12"), st.integers(0, 5))))
def test_the_order_of_rows_does_not_matter(duckdb_bench, rows):
    days = [day_row(*row) for row in {row[:3]: row for row in rows}.values()]
    deepest = {}
    for _, query, item, level in {row[:3]: row for row in rows}.values():
        deepest[query, item] = max(level, deepest.get((query, item), 0))
    for order in (days, days[::-1]):
        pairs = deepest_levels(duckdb_bench.table(DAILY, order))
        found = {(query, item): level for query, item, level, *_ in duckdb_bench.rows(pairs, KEYS)}
        assert found == deepest


@pytest.mark.parametrize("copies", [[1, 1, 2, 3], [1, 1, 2, 3, -1], [1, 1, 2, 3, 0.5]])
def test_copies_are_five_whole_numbers(copies):
    with pytest.raises(ConfigError, match="copies"):
        ClickConfig.build({"copies": copies})
