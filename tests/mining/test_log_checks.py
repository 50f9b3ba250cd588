from __future__ import annotations

import datetime as dt
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pertinent.errors import ConfigError, DataError
from pertinent.mining.checks import CHECKS, CheckConfig, check_events, newest_believable
from pertinent.mining.daily import daily_actions, day_volumes
from pertinent.mining.engines import read_parquet
from pertinent.mining.readers import read_log
from pertinent.mining.schema import EVENTS, LEVEL_NUMBERS, require
from pertinent.mining.sequences import user_sequences
from pertinent.mining.sources import LogConfig

DAY = 86_400
START = int(dt.datetime(2026, 11, 2, 10, tzinfo=dt.UTC).timestamp())
NAMES = ("user_id", "session_id", "search_id", "query", "item_id", "level", "position", "time", "event_id", "agent")
KINDS = [pa.string()] * 6 + [pa.int32(), pa.int64(), pa.string(), pa.string()]
SCHEMA = pa.schema(list(zip(NAMES, KINDS, strict=True)))


def row(user="u", search="p", query="tv", item="b-1", level="view", position=0, after=0, event=None, agent=None):
    session = None if user is None else f"s-{user}"
    return (user, session, search, query, item, level, position, START + after, event, agent)


def enter(connection, folder, rows):
    """A raw log with these rows, through a table of one's own."""
    folder.mkdir(exist_ok=True)
    columns = list(zip(*rows, strict=True)) or [()] * len(SCHEMA)
    arrays = [pa.array(c, f.type) for c, f in zip(columns, SCHEMA, strict=True)]
    pq.write_table(pa.table(arrays, schema=SCHEMA), folder / "log.parquet")
    return read_log(connection, LogConfig(path=str(folder / "log.parquet")), None, folder / "work")


def catalog(connection, folder, *ids):
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.table({"item_id": pa.array(ids)}), folder / "items.parquet")
    return read_parquet(connection, folder / "items.parquet")


def check(connection, folder, rows, items=None, **settings):
    raw = enter(connection, folder, rows)
    given = None if items is None else catalog(connection, folder, *items)
    return check_events(connection, raw, given, CheckConfig.build(settings), 30, folder / "work")


def found(checked):
    """What each check found, without those that found nothing."""
    assert [entry["check"] for entry in checked.counts] == list(CHECKS)
    for entry in checked.counts:
        assert (entry["example"] is None) == (entry["rows"] == 0)
    return {entry["check"]: entry["rows"] for entry in checked.counts if entry["rows"]}


def events(checked, *names):
    require(checked.events, dict(EVENTS), "check")
    assert list(checked.events.columns) == list(EVENTS)
    return sorted((tuple(r[n] for n in names) for r in checked.events.to_pyarrow().to_pylist()), key=repr)


BAD = [
    row(item="b-1", position=0),
    row(item="b-2", position=1),
    row(item="b-2", position=1, level="click", after=5),
    row(item="b-2", position=1, level="click", after=5),  # duplicates
    row(item="b-2", position=1, level="negative", after=9),  # negatives
    row(item="b-1", level="pay", position=None, after=8 * DAY),  # late
    row(item="b-9", position=2),  # unknown_items
    row(item="b-1", query=None, level="click", position=None, search=None, after=60),  # no_query
    row(user="old", search="o", after=-START + 5),  # impossible_times
    row(user=None, search=None, after=70),  # no_user
    row(user="robot", search="r", agent="Mozilla/5.0 (compatible; GoogleBot/2.1)"),  # bots
    row(user="v", search="q", item="b-2", level="cart", position=4, after=80),  # clicks_without_view
    row(user="v", search="q", item="b-2", level="order", position=None, after=81),
]
FOUND = {
    "negatives": 1,
    "impossible_times": 1,
    "no_user": 1,
    "bots": 1,
    "duplicates": 1,
    "late": 1,
    "unknown_items": 1,
    "no_query": 1,
    "clicks_without_view": 2,
}


def test_every_check_counts_shows_and_drops_its_rows_on_every_engine(engine, tmp_path):
    checked = check(engine, tmp_path / "a", BAD, items=("b-1", "b-2", "ü"))
    assert found(checked) == FOUND
    view, click, cart, order = (LEVEL_NUMBERS[name] for name in ("view", "click", "cart", "order"))
    assert events(checked, "user_id", "search_id", "query", "item_id", "level", "position") == sorted(
        [
            ("u", "p", "tv", "b-1", view, 0),
            ("u", "p", "tv", "b-2", view, 1),
            ("u", "p", "tv", "b-2", click, 1),
            ("u", events(checked, "query", "search_id")[0][1], "", "b-1", click, None),
            ("v", "q", "tv", "b-2", view, 4),  # added
            ("v", "q", "tv", "b-2", cart, 4),
            ("v", "q", "tv", "b-2", order, None),
        ],
        key=repr,
    )
    assert day_volumes(checked.events) is not None, "a step takes the events: an added row has widened no type"
    example = {entry["check"]: entry["example"] for entry in checked.counts}["duplicates"]
    assert example.startswith("user 'u', query 'tv', click on item 'b-2' at position 1, 2026-11-02T10:00:05+00:00 (")
    assert example.endswith("log.parquet, row 4)")


def test_without_a_catalog_no_item_is_unknown(duckdb_engine, tmp_path):
    checked = check(duckdb_engine, tmp_path / "a", BAD)
    assert found(checked) == {name: rows for name, rows in FOUND.items() if name != "unknown_items"}


@pytest.fixture(scope="module")
def bad(duckdb_engine, tmp_path_factory):
    """The log of BAD and its catalog, entered once; a call checks it with other settings."""
    folder = tmp_path_factory.mktemp("bad")
    raw = enter(duckdb_engine, folder, BAD)
    items = catalog(duckdb_engine, folder, "b-1", "b-2")
    base = {"clicks_without_view": "keep", "no_query": "drop"}

    def run(**settings):
        config = CheckConfig.build({**base, **settings})
        return check_events(duckdb_engine, raw, items, config, 30, folder / "work")

    return run, len(events(run(), "time"))


@pytest.mark.parametrize("name", [*CHECKS])
def test_a_check_can_refuse_and_keep(bad, name):
    run, usual = bad
    with pytest.raises(DataError, match=rf"log.parquet: row \d+: {FOUND[name]} rows are .*{name!r} is set to refuse"):
        run(**{name: "refuse"})
    if name not in ("negatives", "clicks_without_view"):
        kept = run(**{name: "keep"})
        assert len(events(kept, "time")) == usual + FOUND[name]
        assert {entry["check"]: entry["action"] for entry in kept.counts}[name] == "keep"


def test_clicks_without_a_view_can_be_dropped(duckdb_engine, tmp_path):
    checked = check(duckdb_engine, tmp_path / "a", BAD, clicks_without_view="drop")
    assert "q" not in {search for (search,) in events(checked, "search_id")}


def test_a_click_on_a_page_of_an_earlier_day_gets_a_view_and_is_not_told(engine, tmp_path):
    before, day = [row(search="old"), row(search="new", item="b-9", after=DAY)], DAY + 60
    rows = [row(search=page, item=item, level="click", after=day) for page in ("old", "new") for item in ("b-1", "b-2")]
    whole = check(engine, tmp_path / "a", before + rows)
    assert found(whole) == {"clicks_without_view": 2}  # those on the page that began on their day
    earlier = check(engine, tmp_path / "b", before[:1]).pages
    raw = enter(engine, tmp_path / "c", [*before[1:], *rows])
    checked = check_events(engine, raw, None, CheckConfig(), 30, tmp_path / "c" / "work", earlier=earlier)
    assert found(checked) == found(whole)
    names = ("search_id", "item_id", "level", "time")
    assert events(checked, *names) == [event for event in events(whole, *names) if event[-1] >= (START + DAY) * 10**6]
    assert len(events(checked, *names)) == 9


def test_a_query_that_no_other_command_would_read_is_refused(engine, tmp_path):
    rows = [row(query="größe " * 16_666 + "tv, x"), row(query="ü" * 100_001), row(query="ü" * 100_002)]
    longest = check(engine, tmp_path / "a", [row(query="ü" * 100_000), row(query=None, item="b-2")])
    assert len(events(longest, "query")) == 2
    with pytest.raises(DataError, match=r"log\.parquet: row 1, column 'query', value 'größe.* has 100,001 characters"):
        enter(engine, tmp_path / "b", rows)
    with pytest.raises(
        DataError, match=r"row 2, column 'query', value 'üü.* has 100,001 characters, 100,000 are allow"
    ):
        enter(engine, tmp_path / "c", [row(), *rows[1:]])


def test_negatives_cannot_be_kept():
    with pytest.raises(ConfigError, match="negatives"):
        CheckConfig.build({"negatives": "keep"})


@pytest.mark.parametrize(
    ("setting", "rows"),
    [
        ("events_per_day", [row(item=f"b-{n}") for n in range(4)] + [row(item="b-1", after=DAY)]),
        ("events_per_session", [row(item=f"b-{n}", after=n * DAY) for n in range(4)]),
        ("clicks_per_day", [row(item=f"b-{n}", level="click") for n in range(4)] + [row(item="b-1")]),
    ],
)
def test_a_robot_has_more_events_than_the_threshold_and_not_as_many(duckdb_engine, tmp_path, setting, rows):
    other = row(user="ü", search="w")
    bounds = {"events_per_session": 5, setting: 4}
    assert found(check(duckdb_engine, tmp_path / "a", [*rows, other], **bounds)).get("bots", 0) == 0
    checked = check(duckdb_engine, tmp_path / "a", [*rows, other], **{**bounds, setting: 3})
    # All of the user's rows on that day, or in that session, are a robot's.
    days = {day for (day,) in events(check(duckdb_engine, tmp_path / "b", [other]), "day")}
    of_day = [r for r in rows if r[7] // DAY < (START + DAY) // DAY] if setting != "events_per_session" else rows
    assert found(checked)["bots"] == len(of_day)
    assert days <= {day for (day,) in events(checked, "day")}


def test_pages_that_name_nobody_are_no_users(engine, tmp_path):
    pages = [row(user=None, search=f"p-{n}", level=level, after=n) for n in range(3) for level in ("view", "click")]
    visit = [list(row(user="v", search="q", level="click"))]
    visit[0][0] = None  # a session, and no user: it counts as one
    rows = [*pages, *visit, row(level="click"), row(user=None, search=None, level="click")]
    checked = check(engine, tmp_path / "a", rows, no_user="keep", clicks_without_view="keep")
    assert found(checked) == {"no_user": 1, "clicks_without_view": 3}
    assert [who for (who,) in events(checked, "user_id")] == [""] * 7 + ["s-v", "u"]
    assert len({page for (page,) in events(checked, "search_id")}) == 6
    (day,) = day_volumes(checked.events).to_pyarrow().to_pylist()
    assert (day["events"], day["searches"], day["users"]) == (9, 6, 2)
    for table in (checked.events, daily_actions(checked.events, "click")):
        sequences = user_sequences(table, None, 10, "click").to_pyarrow()
        assert sorted(sequences["user_id"].to_pylist()) == ["s-v", "u"]
    # A robot is one page then, not all that are nobody's.
    assert "bots" not in found(check(engine, tmp_path / "b", pages, clicks_per_day=1))


def test_a_phone_whose_name_ends_in_bot_is_no_robot(duckdb_engine, tmp_path):
    rows = [row(agent="Mozilla/5.0 (Linux; Android 9; CUBOT X18) Chrome/90"), row(item="b-2", agent="curl/8.5.0")]
    assert found(check(duckdb_engine, tmp_path / "a", rows))["bots"] == 1
    assert "bots" not in found(check(duckdb_engine, tmp_path / "a", rows, bot_agents=[]))


def test_late_is_after_the_last_moment_allowed(duckdb_engine, tmp_path):
    rows = [row(), row(level="click", after=7 * DAY), row(level="pay", after=7 * DAY + 1)]
    checked = check(duckdb_engine, tmp_path / "a", rows)
    assert found(checked) == {"late": 1}
    assert found(check(duckdb_engine, tmp_path / "a", rows, late_days=8)) == {}
    # A broken clock within a search does not make the rest of it late.
    assert found(check(duckdb_engine, tmp_path / "a", [row(after=-START), *rows[:2]])) == {"impossible_times": 1}


def test_days_before_the_earliest_and_after_the_latest_are_impossible(duckdb_engine, tmp_path):
    rows = [row(search=f"p-{n}", after=n * DAY) for n in (-1, 0, 1)]
    day = dt.date(2026, 11, 2)
    assert found(check(duckdb_engine, tmp_path / "a", rows, latest=day)) == {"impossible_times": 1}
    assert found(check(duckdb_engine, tmp_path / "a", rows, earliest=day)) == {"impossible_times": 1}
    assert found(check(duckdb_engine, tmp_path / "a", rows)) == {}


def test_a_day_far_in_the_future_does_not_become_the_newest(duckdb_engine, tmp_path):
    rows = [row(item=f"b-{n}") for n in range(101)] + [row(search="x", after=4000 * DAY)]
    assert found(check(duckdb_engine, tmp_path / "a", rows)) == {"impossible_times": 1}
    # One row in a few is no wrong clock: a small log may have such a pause.
    assert found(check(duckdb_engine, tmp_path / "a", rows[-2:])) == {}


def test_the_newest_believable_day():
    assert newest_believable({}) is None
    assert newest_believable({5: 1}) == 5
    assert newest_believable({1: 1000, 2: 1, 32: 1, 62: 1}) == 1
    assert newest_believable({1: 1000, 40: 2, 41: 2, 90: 1}) == 1
    assert newest_believable({1: 1000, 40: 200, 90: 1}) == 40
    month = dict.fromkeys(range(30), 100_000)
    assert newest_believable({**month, 54: 1}) == 29
    assert newest_believable({**month, 30: 999}) == 29
    assert newest_believable({**month, 30: 1000}) == 30
    assert newest_believable({0: 1000, **dict.fromkeys(range(20, 29), 1)}) == 0, "more stray days than others"
    assert newest_believable({**dict.fromkeys(range(30), 100), 30: 20_000, 31: 100}) == 31, "one huge day"


def test_days_that_were_mined_before_tell_a_wrong_clock(duckdb_engine, tmp_path):
    rows = [row(), row(item="b-2"), row(search="x", after=25 * DAY)]
    assert found(check(duckdb_engine, tmp_path / "a", rows)) == {}
    raw = enter(duckdb_engine, tmp_path / "b", rows)
    today = START // DAY
    known = dict.fromkeys(range(today - 9, today), 150)
    checked = check_events(duckdb_engine, raw, None, CheckConfig(), 30, tmp_path / "b" / "work", known)
    assert found(checked) == {"impossible_times": 1}
    assert checked.latest == today


def test_of_events_with_one_id_the_earliest_stays(duckdb_engine, tmp_path):
    rows = [row(level="click", after=n, event="m-1", position=n) for n in (3, 1, 2)]
    rows += [row(item="b-2", level="click", after=1, event="m-1"), row(item="b-3", level="click", event=None)]
    checked = check(duckdb_engine, tmp_path / "a", rows, clicks_without_view="keep")
    assert found(checked)["duplicates"] == 2
    assert events(checked, "item_id", "position") == [("b-1", 1), ("b-2", 0), ("b-3", 0)]


def test_of_two_copies_the_one_with_a_query_stays(duckdb_engine, tmp_path):
    rows = [row(query=None), row(query="tv"), row(query="tv", position=None)]
    checked = check(duckdb_engine, tmp_path / "a", rows)
    assert events(checked, "query", "position") == [("tv", 0)]


@pytest.mark.parametrize("rows", [[], [row()], [row(level="negative")]])
def test_no_row_one_row_and_none_left(duckdb_engine, tmp_path, rows):
    checked = check(duckdb_engine, tmp_path / "a", rows)
    assert len(events(checked, "item_id")) == sum(r[5] != "negative" for r in rows)


def noisy(seed, count=300):
    """Random rows that fail every check now and then."""
    draw = random.Random(seed)
    return [
        row(
            user=draw.choice(["u", "v", "ü", None]),
            search=draw.choice(["p", "q", None, None]),
            query=draw.choice(["tv", "TV ", "größe", None]),
            item=draw.choice(["b-1", "b-2", "b-9"]),
            level=draw.choice(["view", "view", "click", "pay", "negative"]),
            position=draw.choice([0, 1, None]),
            after=draw.choice([0, 1, 2, 3600, DAY, 9 * DAY, -START]),
            event=draw.choice([None, None, "m-1", "m-2"]),
            agent=draw.choice([None, None, "Googlebot/2.1"]),
        )
        for _ in range(count)
    ]


@pytest.mark.parametrize("seed", range(2))
def test_the_order_of_rows_changes_nothing(duckdb_engine, tmp_path, seed):
    rows = noisy(seed)
    mixed = random.Random(seed).sample(rows, len(rows))
    settings = {"items": ("b-1", "b-2"), "clicks_per_day": 20}
    one, other = (check(duckdb_engine, tmp_path / n, r, **settings) for n, r in (("a", rows), ("b", mixed)))
    assert found(one) == found(other)
    assert set(FOUND) - set(found(one)) <= {"bots", "clicks_without_view"}
    assert events(one, *EVENTS) == events(other, *EVENTS)


def test_every_engine_keeps_the_same_rows(engine, duckdb_engine, tmp_path):
    rows = noisy(7, 120)
    expected = check(duckdb_engine, tmp_path / "a", rows, items=("b-1", "b-2"))
    checked = check(engine, tmp_path / "b", rows, items=("b-1", "b-2"))
    assert found(checked) == found(expected)
    assert events(checked, *EVENTS) == events(expected, *EVENTS)


@pytest.mark.parametrize("seed", range(2))
def test_whatever_is_clicked_on_a_page_was_shown_there(duckdb_engine, tmp_path, seed):
    checked = check(duckdb_engine, tmp_path / "a", noisy(seed))
    found = [r for r in events(checked, "search_id", "item_id", "level", "query") if r[3]]
    shown = {(search, query, item) for search, item, level, query in found if level == 0}
    assert {(search, query, item) for search, item, level, query in found if level > 0} <= shown
    assert all(None not in ids for ids in events(checked, "user_id", "session_id", "search_id"))


@pytest.mark.parametrize("seed", range(2))
def test_checked_rows_pass_the_checks(duckdb_engine, tmp_path, seed):
    # One query a page, as views that are added to a page with two at one moment are the same event again.
    pages = {"tv": "t", "TV ": "t", "größe": "g"}
    rows = [(*r[:2], r[2] and r[2] + pages.get(r[3], "t"), *r[3:]) for r in noisy(seed)]
    checked = check(duckdb_engine, tmp_path / "a", rows, items=("b-1", "b-2"), late="keep")
    names = {number: name for name, number in LEVEL_NUMBERS.items()}
    columns = ("user_id", "session_id", "search_id", "query", "item_id", "level", "position", "time")
    again = [(*r[:5], names[r[5]], r[6], r[7] // 1_000_000, None, None) for r in events(checked, *columns)]
    assert set(found(check(duckdb_engine, tmp_path / "b", again, items=("b-1", "b-2"), late="keep"))) <= {
        "no_query",
        "late",
    }
