from __future__ import annotations

import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pertinent.mining.engines import read_parquet
from pertinent.mining.sessions import MINUTE, search_ids, sessions

KINDS = {"user_id": pa.string(), "session_id": pa.string(), "search_id": pa.string(), "query": pa.string()}
SCHEMA = pa.schema([*KINDS.items(), ("time", pa.int64()), ("n", pa.int64())])


def enter(connection, path, rows):
    """Rows of (user, session, search, query, minutes), numbered in column n."""
    values = [(*row[:4], round(row[4] * MINUTE), number) for number, row in enumerate(rows)]
    columns = list(zip(*values, strict=True)) or [()] * 6
    pq.write_table(pa.table([pa.array(c, f.type) for c, f in zip(columns, SCHEMA, strict=True)], schema=SCHEMA), path)
    return read_parquet(connection, path)


def ids(table, name):
    rows = table.select("n", name).order_by("n").to_pyarrow().to_pylist()
    return [row[name] for row in rows]


def groups(found):
    """Which rows share an id, whatever the id is."""
    return [found.index(value) for value in found]


def test_a_pause_longer_than_the_gap_ends_a_session(engine, tmp_path):
    rows = [
        ("u", None, None, "", 0),
        ("u", None, None, "", 30),  # exactly the gap: the same session
        ("u", None, None, "", 60.0001),  # a little more: the next one
        ("v", None, None, "", 30),
        ("ü", None, None, "", 30),
        ("u", None, None, "", 60.0001),  # a tie
        ("w", "w-9", None, "", 0),
        ("w", None, None, "", 20),  # takes the id given before it
        ("w", None, None, "", 90),  # but not after a pause
        ("x", None, None, "", 0),  # takes the id given after it
        ("x", "x-1", None, "", 10),
        ("x", "x-2", None, "", 20),
        ("x", None, None, "", 25),  # the latest one before it
    ]
    found = ids(sessions(enter(engine, tmp_path / "in.parquet", rows), 30), "session_id")
    assert groups(found) == [0, 0, 2, 3, 4, 2, 6, 6, 8, 9, 9, 11, 11]
    assert found[6] == "w-9" and found[9] == "x-1" and found[11] == "x-2"
    assert None not in found


def test_a_search_is_a_session_and_a_query_without_a_pause(engine, tmp_path):
    rows = [
        ("u", "s", None, "tv", 0),
        ("u", "s", None, "desk", 1),
        ("u", "s", None, "tv", 20),  # back to the first page
        ("u", "s", None, "tv", 51),  # too long after
        ("u", "t", None, "tv", 20),
        ("u", "s", "p-1", "lamp", 5),
        ("u", "s", None, "lamp", 9),  # bought without saying from which page
        ("u", "s", "p-2", "lamp", 10),
        ("u", "s", None, "lamp", 11),
    ]
    found = ids(search_ids(enter(engine, tmp_path / "in.parquet", rows), 30), "search_id")
    assert groups(found) == [0, 1, 0, 3, 4, 5, 5, 7, 7]
    assert found[5] == "p-1" and found[7] == "p-2"


@pytest.mark.parametrize("rows", [[], [("u", "s", "q", "tv", 0)], [("u", None, None, "tv", 0)]])
def test_no_row_and_one_row(duckdb_engine, tmp_path, rows):
    table = search_ids(sessions(enter(duckdb_engine, tmp_path / "in.parquet", rows), 30), 30).to_pyarrow()
    assert table.num_rows == len(rows)
    assert table.schema.names == SCHEMA.names
    assert all(row["session_id"] and row["search_id"] for row in table.to_pylist())


def test_ids_are_the_same_when_filled_twice_and_when_later_days_are_missing(duckdb_engine, tmp_path):
    rows = [("u", None, None, "tv", minutes) for minutes in (0, 10, 100, 3000)]
    table = sessions(enter(duckdb_engine, tmp_path / "in.parquet", rows), 30)
    assert ids(sessions(table, 30), "session_id") == ids(table, "session_id")
    fewer = sessions(enter(duckdb_engine, tmp_path / "fewer.parquet", rows[:3]), 30)
    assert ids(fewer, "session_id") == ids(table, "session_id")[:3]


def slow_sessions(rows, gap):
    """A plain version: one number for each row's session."""
    found, last, number = {}, {}, 0
    for place in sorted(range(len(rows)), key=lambda place: rows[place][4]):
        user, time = rows[place][0], rows[place][4]
        if user not in last or time - last[user][0] > gap:
            number += 1
            last[user] = (time, number)
        last[user] = (time, last[user][1])
        found[place] = last[user][1]
    return [found[place] for place in range(len(rows))]


@pytest.mark.parametrize("seed", range(4))
def test_sessions_equal_a_plain_version_in_any_order_of_rows(duckdb_engine, tmp_path, seed):
    draw = random.Random(seed)
    rows = [(draw.choice("abc"), None, None, "", draw.randrange(0, 2000)) for _ in range(200)]
    found = ids(sessions(enter(duckdb_engine, tmp_path / "in.parquet", rows), 30), "session_id")
    assert groups(found) == groups(slow_sessions(rows, 30))
    order = draw.sample(range(len(rows)), len(rows))
    mixed = enter(duckdb_engine, tmp_path / "mixed.parquet", [rows[place] for place in order])
    assert ids(sessions(mixed, 30), "session_id") == [found[place] for place in order]
