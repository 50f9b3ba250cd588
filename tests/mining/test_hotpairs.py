"""Hot queries and pairs: inside the window, the exact share, ties by id."""

import math
from fractions import Fraction

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pertinent.mining.hotpairs import HotConfig, hot_pairs, hot_queries, top_share, with_places
from pertinent.mining.schema import DAILY, DAILY_SEARCHES

FEW = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def test_hot_queries_are_those_searched_most_in_the_window(bench):
    searches = [
        (9, "too old", 99, 0),
        (10, "lámpara", 2, 1),
        (19, "lámpara", 2, 0),
        (19, "led", 3, 3),
        (15, "lamp", 3, 2),
        (15, "tv", 1, 0),
        (15, "radio", 1, 0),
        (15, "phone", 1, 0),
        (20, "too new", 99, 0),
    ]
    found = bench.rows(hot_queries(bench.table(DAILY_SEARCHES, searches), 20, 10, 0.5), ["rank"])
    assert found == [("lámpara", 0, 4, 1), ("lamp", 1, 3, 2), ("led", 2, 3, 3)]


def test_hot_pairs_are_by_exposures_or_by_clicks(bench):
    daily = bench.table(
        DAILY,
        [
            (1, "too old", "a", 99, 99, 1, 0, 99),
            (2, "led", "b", 5, 0, 0, 5, 5),
            (3, "led", "b", 5, 1, 1, 5, 5),
            (3, "led", "a", 10, 0, 0, 5, 5),
            (3, "tv", "a", 9, 4, 1, 5, 5),
            (3, "tv", "ü", 1, 1, 5, 0, 0),
        ],
    )
    shown = bench.rows(hot_pairs(daily, 4, 2, 0.5, "exposures"), ["rank"])
    assert shown == [("led", "a", 0, 10, 0), ("led", "b", 1, 10, 1)]
    clicked = bench.rows(hot_pairs(daily, 4, 2, 0.5, "clicks"), ["rank"])
    assert clicked == [("tv", "a", 0, 9, 4), ("led", "b", 1, 10, 1)]  # 2 of 3: the one without a click is no part


def test_nothing_in_the_window_is_an_empty_table_of_the_same_columns(duckdb_bench):
    daily = duckdb_bench.table(DAILY, [(1, "led", "b", 5, 0, 0, 5, 5)])
    empty, full = (hot_pairs(daily, day, 2, 0.2, "exposures") for day in (9, 2))
    assert duckdb_bench.rows(empty, ["rank"]) == []
    assert duckdb_bench.rows(full, ["rank"]) == [("led", "b", 0, 5, 0)]
    assert duckdb_bench.types(empty, ["rank"]) == duckdb_bench.types(full, ["rank"])


@pytest.mark.parametrize(
    ("rows", "share", "kept"), [(5, 0.2, 1), (6, 0.2, 2), (10, 0.2, 2), (100, 0.07, 7), (9, 1 / 3, 3), (3, 1.0, 3)]
)
def test_the_cut_is_exact_where_floats_are_not(duckdb_bench, rows, share, kept):
    table = duckdb_bench.table({"name": "string", "number": "int64"}, [(f"{n:03}", 1) for n in range(rows)])
    assert [row[0] for row in duckdb_bench.rows(top_share(table, "number", ["name"], share), ["rank"])] == [
        f"{n:03}" for n in range(kept)
    ]


@FEW
@given(counts=st.lists(st.integers(0, 4), max_size=12), percent=st.integers(1, 100), turned=st.booleans())
def test_the_top_share_is_that_of_a_sorted_list(duckdb_bench, counts, percent, turned):
    rows = [(f"é{n:02}", count) for n, count in enumerate(counts)]
    table = duckdb_bench.table({"name": "string", "number": "int64"}, rows[::-1] if turned else rows)
    counted = sorted((row for row in rows if row[1] > 0), key=lambda row: (-row[1], row[0]))
    expected = counted[: math.ceil(Fraction(percent, 100) * len(counted))]
    found = duckdb_bench.rows(top_share(table, "number", ["name"], percent / 100), ["rank"])
    assert [row[:2] for row in found] == expected
    assert [row[-1] for row in found] == list(range(len(expected)))


def test_places_know_the_weight_in_front_of_them(duckdb_bench):
    table = duckdb_bench.table({"name": "string", "number": "int64"}, [("b", 2), ("a", 2), ("d", 1), ("c", 5)])
    placed = with_places(table, "number", ["name"]).select("name", "rank", "weight_before", "all_rows", "all_weight")
    assert duckdb_bench.rows(placed, ["rank"]) == [
        ("c", 0, 0, 4, 10),
        ("a", 1, 5, 4, 10),
        ("b", 2, 7, 4, 10),
        ("d", 3, 9, 4, 10),
    ]


def test_the_defaults_are_those_of_the_paper():
    assert HotConfig() == HotConfig(days=182, share=0.2)
