"""Counts by day and neighbor lists: exact borders, only earlier days, updates equal to rebuilds."""

from __future__ import annotations

import random
import tempfile
from collections import defaultdict
from fractions import Fraction
from pathlib import Path
from typing import Any

import ibis
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pertinent.errors import ConfigError
from pertinent.mining.daily import (
    daily_actions,
    daily_counts,
    daily_positions,
    daily_searches,
    day_volumes,
    keep_days,
    page_items,
    replace_days,
    update_days,
)
from pertinent.mining.neighbors import (
    NeighborConfig,
    coverage,
    exclude_target,
    neighbors,
    neighbors_before,
    small_log_warning,
    with_seen,
)
from pertinent.mining.positions import PositionConfig, fit_position_model
from pertinent.mining.schema import DAILY, DAILY_POSITIONS, DAY, EVENTS

TYPES = {"string": pa.string(), "int8": pa.int8(), "int32": pa.int32(), "int64": pa.int64()}
KEYS = ["day", "query", "item_id"]
RARELY = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

Rows = list[tuple[Any, ...]]


def table(connection: Any, columns: dict[str, str], rows: Rows) -> ibis.Table:
    """A table through a Parquet file: Spark would turn whole numbers with a null among them into floats."""
    values = {name: pa.array([row[at] for row in rows], TYPES[kind]) for at, (name, kind) in enumerate(columns.items())}
    if connection.name == "duckdb":
        return connection.create_table(ibis.util.gen_name("t"), pa.table(values), temp=True)
    file = Path(tempfile.mkdtemp(prefix="pertinent-test-")) / "rows.parquet"
    pq.write_table(pa.table(values), file)
    return connection.read_parquet(str(file)).cache()


def event(search: str, query: str, item: str, level: int, position: int | None, day: int, user: str = "u") -> tuple:
    return (search, f"session {search}", user, query, item, level, position, day * DAY + 5, day)


def found(expression: ibis.Table, *columns: str) -> list[tuple[Any, ...]]:
    """The rows of a table as sorted tuples, ``None`` last."""
    rows = expression.select(*(columns or expression.columns)).to_pyarrow().to_pylist()
    return sorted((tuple(row.values()) for row in rows), key=lambda row: [(value is None, value) for value in row])


def counts(rows: list[tuple[int, str, str, int, int]]) -> Rows:
    """Rows of DAILY from day, query, item, exposures and clicks."""
    return [(*row, 1 if row[4] else 0, 2 * row[3], row[3]) for row in rows]


# ---------------------------------------------------------------- counts by day


EXAMPLE = [
    event("s1", "kabel", "a", 0, 3, 10),
    event("s1", "kabel", "a", 1, 3, 10),
    event("s1", "kabel", "a", 5, 0, 10),  # paid: the deepest, on the same page; its place is one in the order
    event("s1", "kabel", "b", 0, 1, 10),
    event("s2", "kabel", "a", 0, 1, 10),
    event("s2", "kabel", "a", 0, 0, 10),  # twice on a page: its highest place
    event("s3", "kabel", "b", 2, None, 11),  # in the cart without a row that says it was shown
    event("s4", "無線", "ü", 0, None, 11, "v"),
    event("s5", "", "a", 4, None, 11, "v"),  # outside of a search
]


def test_counts_of_a_day_are_those_worked_out_by_hand(engine):
    events = table(engine, EVENTS, EXAMPLE)
    pages = page_items(events)
    assert found(daily_counts(pages)) == [
        (10, "kabel", "a", 2, 1, 5, 3, 2),
        (10, "kabel", "b", 1, 0, 0, 1, 1),
        (11, "kabel", "b", 1, 1, 2, 0, 0),
        (11, "無線", "ü", 1, 0, 0, 0, 0),
    ]
    assert found(daily_positions(pages)) == [
        (10, "kabel", "a", 0, 1, 0),
        (10, "kabel", "a", 3, 1, 1),
        (10, "kabel", "b", 1, 1, 0),
    ]
    assert found(daily_searches(pages)) == [(10, "kabel", 2, 1), (11, "kabel", 1, 1), (11, "無線", 1, 0)]
    assert found(day_volumes(events)) == [(10, 6, 2, 1, 4, 1, 0, 0, 0, 1), (11, 3, 2, 2, 1, 0, 1, 0, 1, 0)]
    assert found(daily_actions(events, "click"), "user_id", "query", "item_id", "level", "day", "search_id") == [
        ("u", "kabel", "a", 1, 10, ""),
        ("u", "kabel", "a", 5, 10, ""),
        ("u", "kabel", "b", 2, 11, ""),
        ("v", "", "a", 4, 11, ""),
    ]


def test_without_a_place_of_its_views_an_item_has_that_of_its_clicks(duckdb_engine):
    rows = [event("s1", "q", "a", *row, 10) for row in [(0, None), (1, 4), (5, 2)]]
    assert found(page_items(table(duckdb_engine, EVENTS, rows)), "level", "position") == [(5, 2)]


def test_an_empty_log_has_no_counts(duckdb_engine):
    events = table(duckdb_engine, EVENTS, [])
    pages = page_items(events)
    for step in (daily_counts, daily_positions, daily_searches):
        assert found(step(pages)) == []
    assert found(day_volumes(events)) == found(daily_actions(events, "view")) == []
    assert found(neighbors(daily_counts(pages), 5, NeighborConfig(), "query")) == []


def test_clicks_never_exceed_exposures(duckdb_engine):
    chosen = random.Random(3)
    rows = [
        event(
            f"s{chosen.randrange(9)}",
            "q",
            f"i{chosen.randrange(3)}",
            chosen.randrange(6),
            None,
            chosen.randrange(10, 13),
        )
        for _ in range(300)
    ]
    for *_, exposures, clicks, _, _, _ in found(daily_counts(page_items(table(duckdb_engine, EVENTS, rows)))):
        assert 0 <= clicks <= exposures


# ---------------------------------------------------------------- thresholds and order


def test_thresholds_are_exact_at_the_border(engine):
    rows = counts(
        [
            (1, "q", "exactly", 100, 20),
            (1, "q", "one exposure less", 99, 99),
            (1, "q", "one click less", 100, 19),
            (1, "q", "one exposure more", 101, 20),
            (1, "q", "many", 5_000_000, 1_000_000),
            (1, "q", "many less one", 5_000_000, 999_999),
            (1, "q", "two days", 50, 5),
            (2, "q", "two days", 50, 15),
        ]
    )
    lists = neighbors(table(engine, DAILY, rows), 3, NeighborConfig(), "query")
    assert found(lists, "rank", "neighbor", "ctr") == [(0, "many", 0.2), (1, "exactly", 0.2), (2, "two days", 0.2)]


@pytest.mark.parametrize("limit", [0.2, 0.3, 0.07, 0.333333, 0.1 + 0.2 - 0.2 + 1e-17, 0.0, 1.0])
def test_any_decimal_share_is_exact(duckdb_engine, limit):
    limit = round(limit, 6)
    exact = Fraction(str(limit))
    rows, expected = [], []
    for exposures in (1, 3, 7, 10, 100, 300, 1_000_000):
        for clicks in {0, exposures, *(int(exact * exposures) + step for step in (-1, 0, 1))}:
            if 0 <= clicks <= exposures:
                rows.append((1, "q", f"{exposures}/{clicks}", exposures, clicks))
                if Fraction(clicks, exposures) >= exact:
                    expected.append(f"{exposures}/{clicks}")
    config = NeighborConfig(min_exposures=1, min_ctr=limit, keep=1000)
    lists = neighbors(table(duckdb_engine, DAILY, counts(rows)), 2, config, "query")
    assert [name for (name,) in found(lists, "neighbor")] == sorted(expected)


def test_a_share_with_too_many_decimals_is_refused():
    with pytest.raises(ConfigError, match=r"min_ctr.*6 decimals"):
        NeighborConfig.build({"min_ctr": 0.2000001})


def test_order_is_by_rate_then_exposures_then_id(engine):
    rows = counts(
        [
            (1, "q", "b", 100, 50),
            (1, "q", "a", 100, 50),
            (1, "q", "é", 100, 50),
            (1, "q", "Z", 100, 50),
            (1, "q", "more shown", 200, 100),
            (1, "q", "best", 100, 51),
            (1, "r", "a", 300, 150),
        ]
    )
    daily = table(engine, DAILY, rows)
    alone = NeighborConfig(keep=5, exclude_target=False)
    lists = neighbors(daily, 2, alone, "query").filter(ibis._["query"] == "q")
    assert found(lists, "rank", "neighbor") == [(0, "best"), (1, "more shown"), (2, "Z"), (3, "a"), (4, "b")]
    back = neighbors(daily, 2, NeighborConfig(), "item_id").filter(ibis._.item_id == "a")
    assert found(back, "rank", "neighbor", "exposures") == [(0, "r", 300), (1, "q", 100)]


def test_only_the_days_of_the_window_count(engine):
    rows = counts([(day, "q", f"day {day}", 100, 30) for day in (1, 2, 11, 12)])
    lists = neighbors(table(engine, DAILY, rows), 12, NeighborConfig(days=10), "query")
    assert found(lists, "neighbor") == [("day 11",), ("day 2",)]


def test_the_mean_position_is_kept_and_null_where_unknown(engine):
    rows = [(1, "q", "a", 100, 50, 1, 150, 50), (2, "q", "a", 100, 50, 1, 50, 50), (1, "q", "b", 100, 50, 1, 0, 0)]
    lists = neighbors(table(engine, DAILY, rows), 3, NeighborConfig(), "query")
    assert found(lists, "neighbor", "position_mean") == [("a", 2.0), ("b", None)]


def test_debiased_order_lifts_what_was_clicked_far_down(engine):
    daily = table(
        engine, DAILY, counts([(1, "q", "top", 100, 40), (1, "q", "low", 100, 30), (1, "q", "nowhere", 100, 25)])
    )
    places = table(engine, DAILY_POSITIONS, [(1, "q", "top", 0, 100, 40), (1, "q", "low", 7, 60, 20)])
    curve = engine.create_table(
        ibis.util.gen_name("curve"),
        pa.table({"position": pa.array([0, 7], pa.int32()), "propensity": [1.0, 0.1]}),
        temp=engine.name == "duckdb",
    )
    seen = with_seen(daily, places, curve, 2)
    assert found(seen, "item_id", "seen") == [("low", 46_000_000), ("nowhere", 100_000_000), ("top", 100_000_000)]
    lists = neighbors(seen, 2, NeighborConfig(by="debiased"), "query")
    assert found(lists, "rank", "neighbor", "ctr") == [(0, "low", 0.3), (1, "top", 0.4), (2, "nowhere", 0.25)]


# ---------------------------------------------------------------- lists for training examples


def examples_of(connection: Any, rows: Rows) -> ibis.Table:
    return table(connection, {"query": "string", "item_id": "string", "day": "int32"}, rows)


def test_a_list_for_an_example_has_earlier_days_only_and_not_the_target(engine):
    rows = counts(
        [
            (8, "q", "target", 200, 100),
            (8, "q", "other", 100, 30),
            (9, "q", "yesterday", 100, 20),
            (10, "q", "today", 100, 99),
            (8, "r", "target", 100, 25),
            (10, "s", "target", 100, 99),
        ]
    )
    lists = neighbors_before(
        table(engine, DAILY, rows), examples_of(engine, [("q", "target", 10), ("q", "target", 10)]), NeighborConfig()
    )
    assert found(lists, "side", "rank", "neighbor", "clicks") == [
        ("item_id", 0, "r", 25),
        ("query", 0, "other", 30),
        ("query", 1, "yesterday", 20),
    ]


def test_the_next_neighbor_moves_up_where_the_target_was(duckdb_engine):
    rows = counts([(1, "q", f"i{n:02}", 100, 90 - n) for n in range(30)])
    daily = table(duckdb_engine, DAILY, rows)
    asked = [("q", "i03", 5), ("q", "elsewhere", 5)]
    lists = neighbors_before(daily, examples_of(duckdb_engine, asked), NeighborConfig())
    assert found(lists.filter(ibis._.item_id == "i03"), "rank", "neighbor") == [
        (rank, f"i{n:02}") for rank, n in enumerate(n for n in range(21) if n != 3)
    ]
    assert found(lists.filter(ibis._.item_id == "elsewhere"), "rank", "neighbor") == [
        (n, f"i{n:02}") for n in range(20)
    ]
    kept = exclude_target(
        neighbors(daily, 5, NeighborConfig(), "query"),
        examples_of(duckdb_engine, asked).drop("day"),
        NeighborConfig(),
        "query",
    )
    for item in ("i03", "elsewhere"):
        assert found(kept.filter(ibis._.item_id == item), "rank", "neighbor") == [
            (rank, f"i{n:02}") for rank, n in enumerate([n for n in range(21) if f"i{n:02}" != item][:20])
        ]


def test_the_target_stays_where_it_is_asked_for(duckdb_engine):
    daily = table(duckdb_engine, DAILY, counts([(1, "q", f"i{n}", 100, 90 - n) for n in range(4)]))
    examples = examples_of(duckdb_engine, [("q", "i1", 5)])
    config = NeighborConfig(keep=3, exclude_target=False)
    expected = [(0, "i0"), (1, "i1"), (2, "i2")]
    before = neighbors_before(daily, examples, config).filter(ibis._.side == "query")
    assert found(before, "rank", "neighbor") == expected
    lists = neighbors(daily, 5, config, "query")
    assert found(lists, "rank", "neighbor") == expected
    assert found(exclude_target(lists, examples.drop("day"), config, "query"), "rank", "neighbor") == expected


def test_propensities_of_later_days_order_no_list_of_an_example(duckdb_engine):
    places = [(day, "q", item, place, 100, 60 - 30 * place) for day in (1, 2) for place, item in enumerate("ab")]
    later = [(5, "q", item, 1 - place, 100, 90 * place) for place, item in enumerate("ab")]
    config = NeighborConfig(by="debiased", exclude_target=False)
    examples = examples_of(duckdb_engine, [("q", "a", 3), ("q", "b", 4)])
    found_by = {}
    for name, rows in (("before", places), ("and after", places + later)):
        daily = table(duckdb_engine, DAILY, counts([(day, q, item, n, c) for day, q, item, _, n, c in rows]))
        by_place = table(duckdb_engine, DAILY_POSITIONS, rows)
        curve = fit_position_model(by_place.filter(by_place.day < 3), PositionConfig()).table()
        seen = with_seen(daily, by_place, ibis.memtable(curve), until_day=3)
        found_by[name] = found(neighbors_before(seen, examples, config))
    assert found_by["before"] == found_by["and after"] != []
    with pytest.raises(
        ConfigError, match=r"days up to 5, and examples are of day 3 on.*with_seen\(\.\.\., until_day=3"
    ):
        neighbors_before(with_seen(daily, by_place, ibis.memtable(curve), until_day=6), examples, config)
    assert found(neighbors_before(seen, examples.limit(0), config)) == []


def test_debiased_order_needs_what_was_seen(duckdb_engine):
    daily = table(duckdb_engine, DAILY, counts([(1, "q", "a", 100, 90)]))
    config = NeighborConfig(by="debiased")
    with pytest.raises(ConfigError, match="with_seen"):
        neighbors(daily, 2, config, "query")
    with pytest.raises(ConfigError, match=r"neighbors\.by=ctr"):
        neighbors_before(daily, examples_of(duckdb_engine, [("q", "b", 2)]), config)
    seen = daily.mutate(seen=daily.exposures * 1_000_000)
    lists = neighbors_before(seen, examples_of(duckdb_engine, [("q", "b", 2)]), config)
    assert found(lists, "side", "neighbor") == [("query", "a")]


def naive_lists(rows: Rows, example: tuple[str, str, int], config: NeighborConfig) -> Rows:
    """What `neighbors_before` should find for one example, by plain loops."""
    query, item, day = example
    sums: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
    for row in rows:
        if day - config.days <= row[0] < day:
            sums[row[1], row[2]][0] += row[3]
            sums[row[1], row[2]][1] += row[4]
    good = [
        (-clicks / exposures, -exposures, pair)
        for pair, (exposures, clicks) in sums.items()
        if exposures >= config.min_exposures and Fraction(clicks, exposures) >= Fraction(str(config.min_ctr))
    ]
    items = [other for _, _, (asked, other) in sorted(good) if asked == query and other != item]
    queries = [asked for _, _, (asked, other) in sorted(good) if other == item and asked != query]
    return [
        (side, rank, name)
        for side, names in (("item_id", queries), ("query", items))
        for rank, name in enumerate(names[: config.keep])
    ]


@st.composite
def daily_rows(draw: st.DrawFn) -> Rows:
    keys = st.tuples(st.integers(1, 9), st.sampled_from("pq"), st.sampled_from(["a", "b", "c", "ü"]))
    rows = []
    for key in draw(st.lists(keys, unique=True, max_size=30)):
        exposures = draw(st.integers(1, 6))
        rows.append((*key, exposures, draw(st.integers(0, exposures))))
    return counts(rows)


@RARELY
@given(rows=daily_rows(), day=st.integers(1, 10))
def test_lists_equal_a_plain_loop(duckdb_engine, rows, day):
    config = NeighborConfig(days=4, min_exposures=3, min_ctr=0.3, keep=2)
    example = ("q", "a", day)
    lists = neighbors_before(table(duckdb_engine, DAILY, rows), examples_of(duckdb_engine, [example]), config)
    assert found(lists, "side", "rank", "neighbor") == naive_lists(rows, example, config)


@RARELY
@given(rows=daily_rows(), later=daily_rows(), day=st.integers(1, 10))
def test_nothing_from_the_day_of_an_example_on_changes_its_lists(duckdb_engine, rows, later, day):
    config = NeighborConfig(days=4, min_exposures=2, min_ctr=0.1, keep=3)
    examples = examples_of(duckdb_engine, [("q", "a", day), ("p", "ü", day)])
    changed = [row for row in rows if row[0] < day] + [row for row in later if row[0] >= day]
    assert found(neighbors_before(table(duckdb_engine, DAILY, rows), examples, config)) == found(
        neighbors_before(table(duckdb_engine, DAILY, changed), examples, config)
    )


# ---------------------------------------------------------------- updates


@st.composite
def deliveries(draw: st.DrawFn) -> list[Rows]:
    """Logs as they arrive: each of whole days, some of them sent before."""
    logs = []
    for number in range(draw(st.integers(1, 5))):
        days = draw(st.lists(st.integers(10, 22), min_size=1, max_size=4, unique=True))
        size = draw(st.integers(1, 12))
        logs.append(
            [
                event(
                    f"{number}-{draw(st.integers(0, 3))}",
                    draw(st.sampled_from(["q", "r", "ü"])),
                    draw(st.sampled_from("abc")),
                    draw(st.integers(0, 5)),
                    draw(st.sampled_from([None, 0, 1, 5])),
                    draw(st.sampled_from(days)),
                )
                for _ in range(size)
            ]
        )
    return logs


STEPS = {
    "daily": lambda events: daily_counts(page_items(events)),
    "positions": lambda events: daily_positions(page_items(events)),
    "searches": lambda events: daily_searches(page_items(events)),
    "actions": lambda events: daily_actions(events, "click"),
    "days": day_volumes,
}


@settings(RARELY, max_examples=25)
@given(logs=deliveries(), keep=st.integers(1, 8), name=st.sampled_from(sorted(STEPS)))
def test_updating_day_by_day_equals_a_full_rebuild(duckdb_engine, logs, keep, name):
    step = STEPS[name]
    whole: dict[int, Rows] = {}
    state = step(table(duckdb_engine, EVENTS, []))
    for log in logs:
        days = sorted({row[-1] for row in log})
        whole |= {day: [row for row in log if row[-1] == day] for day in days}
        new = step(table(duckdb_engine, EVENTS, log))
        state = update_days(state, new, days, max(whole) + 1, keep).cache()
    everything = step(table(duckdb_engine, EVENTS, [row for rows in whole.values() for row in rows]))
    assert found(state) == found(keep_days(everything, max(whole) + 1, keep))
    if name == "daily":
        config = NeighborConfig(days=min(keep, 3), min_exposures=2, min_ctr=0.25, keep=2)
        assert found(neighbors(state, max(whole) + 1, config, "query")) == found(
            neighbors(everything, max(whole) + 1, config, "query")
        )


def test_a_day_sent_again_replaces_that_day(engine):
    old = table(engine, DAILY, counts([(1, "q", "a", 5, 1), (2, "q", "a", 9, 9), (2, "q", "gone", 1, 0)]))
    new = table(engine, DAILY, counts([(2, "q", "a", 4, 2), (3, "q", "a", 1, 0)]))
    assert found(replace_days(old, new, [2, 3]), *KEYS, "exposures", "clicks") == [
        (1, "q", "a", 5, 1),
        (2, "q", "a", 4, 2),
        (3, "q", "a", 1, 0),
    ]
    assert found(update_days(old, new, [2, 3], 4, 2), "day") == [(2,), (3,)]
    assert found(replace_days(old, new.limit(0), [])) == found(old)


# ---------------------------------------------------------------- small logs


def test_a_small_log_is_told_what_to_change(engine):
    rows = counts([(1, f"q{n}", "a", 12, 6) for n in range(30)] + [(1, "q0", "b", 100, 20)])
    daily = table(engine, DAILY, rows)
    seen = coverage(daily, 2, NeighborConfig())
    assert (seen.pairs, seen.kept, seen.queries, seen.queries_with, seen.items_with) == (31, 1, 30, 1, 1)
    assert seen.kept_at == {50: 1, 20: 1, 10: 31, 5: 31, 2: 31}
    assert small_log_warning(seen, NeighborConfig()) is None
    warning = small_log_warning(seen, NeighborConfig(warn_below=0.1))
    assert warning is not None
    assert "of 31 pairs" in warning
    assert "1 of 30 queries" in warning
    assert "neighbors.min_exposures=10 it would be 31 pairs instead of 1" in warning


def test_an_empty_window_is_a_small_log(duckdb_engine):
    seen = coverage(table(duckdb_engine, DAILY, []), 2, NeighborConfig())
    assert seen.share == 0
    assert str(small_log_warning(seen, NeighborConfig())).startswith("no neighbors: no item was shown for a query")
    few = seen._replace(pairs=3, queries=1)
    assert "lower neighbors.min_exposures" in str(small_log_warning(few, NeighborConfig()))
