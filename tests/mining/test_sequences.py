"""User sequences: in order of time, the latest ones, the same whatever the order of the rows."""

import random

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pertinent.mining.daily import daily_actions
from pertinent.mining.schema import EVENTS
from pertinent.mining.sequences import SEQUENCES, user_sequences

FEW = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
ORDER = ["user_id", "place"]


def event(user, time, query, item, level, search="s", position=0):
    return (search, "session", user, query, item, level, position, time, 0)


LOG = [
    event("ü", 30, "led", "a", 5),
    event("ü", 10, "led", "a", 1),
    event("ü", 20, "", "b", 1, search="", position=None),
    event("ü", 15, "led", "c", 0),
    event("v", 5, "tv", "d", 1, position=1),
    event("v", 5, "tv", "e", 1, position=0),
    event("v", 5, "tv", "e", 2, position=0),
    event("", 5, "tv", "d", 1),
    event(None, 5, "tv", "d", 1),
]


def test_sequences_are_in_order_with_browsing_events_and_without_views(bench):
    found = bench.rows(user_sequences(bench.table(EVENTS, LOG), None, 10, "click"), ORDER)
    assert found == [
        ("v", 0, 5, "tv", "e", 1),
        ("v", 1, 5, "tv", "e", 2),
        ("v", 2, 5, "tv", "d", 1),
        ("ü", 0, 10, "led", "a", 1),
        ("ü", 1, 20, "", "b", 1),
        ("ü", 2, 30, "led", "a", 5),
    ]


def test_the_latest_of_known_items_are_kept_and_counted_from_the_first_kept(bench):
    events = bench.table(EVENTS, LOG)
    items = bench.table({"item_id": "string"}, [("a",), ("d",), ("e",), ("e",)])
    found = bench.rows(user_sequences(events, items, 2, "click"), ORDER)
    assert found == [
        ("v", 0, 5, "tv", "e", 2),
        ("v", 1, 5, "tv", "d", 1),
        ("ü", 0, 10, "led", "a", 1),
        ("ü", 1, 30, "led", "a", 5),
    ]


def test_empty_in_is_empty_out_with_the_same_columns(duckdb_bench):
    made = user_sequences(duckdb_bench.table(EVENTS, []), None, 2, "click")
    assert duckdb_bench.rows(made, ORDER) == []
    assert duckdb_bench.types(made, ORDER) == SEQUENCES


def test_events_of_one_second_have_an_order_that_no_page_id_decides(bench):
    def log(first, second):  # two pages of one second, and an event outside of a search
        return [
            event("ü", 7_000_000, "led", "b", 1, search=first, position=1),
            event("ü", 7_000_000, "led", "b", 5, search=first, position=1),
            event("ü", 7_000_000, "tv", "c", 1, search=second, position=0),
            event("ü", 7_000_000, "led", "a", 1, search=second, position=1),
            event("ü", 7_000_000, "an", "b", 1, search=second, position=1),
            event("ü", 7_000_000, "", "z", 2, search="p-3", position=None),
            event("ü", 6_000_000, "tv", "z", 1, search=first, position=9),
        ]

    expected = [
        ("ü", 0, 6_000_000, "tv", "z", 1),
        ("ü", 1, 7_000_000, "", "z", 2),
        ("ü", 2, 7_000_000, "tv", "c", 1),
        ("ü", 3, 7_000_000, "led", "a", 1),
        ("ü", 4, 7_000_000, "an", "b", 1),
        ("ü", 5, 7_000_000, "led", "b", 1),
        ("ü", 6, 7_000_000, "led", "b", 5),
    ]
    for rows in (log("p-1", "p-2"), log("p-2", "p-1")[::-1]):
        events = bench.table(EVENTS, rows)
        for table in (events, daily_actions(events, "click")):
            assert bench.rows(user_sequences(table, None, 10, "click"), ORDER) == expected


@FEW
@given(
    rows=st.lists(
        st.tuples(st.sampled_from("uv"), st.integers(0, 2), st.sampled_from(["", "é"]), st.sampled_from("ab")),
        max_size=15,
    ),
    seed=st.integers(0, 99),
    longest=st.integers(1, 6),
)
def test_a_sequence_is_a_sorted_list_whatever_the_order_of_rows(duckdb_bench, rows, seed, longest):
    shuffled = random.Random(seed).sample(rows, len(rows))
    table = duckdb_bench.table(EVENTS, [event(user, time, query, item, 1) for user, time, query, item in shuffled])
    found = duckdb_bench.rows(user_sequences(table, None, longest, "click"), ORDER)
    expected = []
    for user in "uv":
        own = sorted((time, item, query) for name, time, query, item in rows if name == user)[-longest:]
        expected += [(user, place, time, query, item, 1) for place, (time, item, query) in enumerate(own)]
    assert found == expected
