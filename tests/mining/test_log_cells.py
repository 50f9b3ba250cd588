"""Cells of a table of your own at the ends of their types: read, or named by file, row, column and value."""

from __future__ import annotations

import datetime as dt
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pertinent.cli import main
from pertinent.errors import DataError
from pertinent.mining.cells import refuse_far_times
from pertinent.mining.checks import CheckConfig, check_events
from pertinent.mining.readers import read_log
from pertinent.mining.sources import LogConfig

START = 1_793_613_600  # 2026-11-02T10:00:00Z in seconds
UNITS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


def log_table(**columns: Any) -> pa.Table:
    """Six rows of a log, some columns replaced."""
    log = {
        "user_id": ["u-1"] * 6,
        "query": ["tv"] * 6,
        "item_id": [f"b-{place}" for place in range(6)],
        "level": ["view", "click"] * 3,
        "position": [0, 1, 2, 3, 4, 5],
        "time": [START + place for place in range(6)],
    }
    return pa.table({**log, **columns})


def write(folder: Path, **columns: Any) -> str:
    """The path of a Parquet log, two rows in each of its parts."""
    pq.write_table(log_table(**columns), folder / "log.parquet", row_group_size=2)
    return str(folder / "log.parquet")


def times(unit: str, zone: str | None, far: int, row: int = 4) -> pa.Array:
    """Timestamps a second apart, one of them replaced by a count of units since 1970."""
    counts = [(START + place) * UNITS[unit] for place in range(6)]
    counts[row] = far
    return pa.array(counts, pa.timestamp(unit, zone))


def read(connection: Any, folder: Path, **settings: Any) -> list[dict[str, Any]]:
    raw = read_log(connection, LogConfig.build(settings), None, folder / "work")
    return raw.events.order_by("row").to_pyarrow().to_pylist()


FAR = {
    "milliseconds": ("ms", None, 9 * 10**18),
    "milliseconds before": ("ms", None, -9 * 10**18),
    "milliseconds in UTC": ("ms", "UTC", 9 * 10**18),
    "milliseconds in UTC before": ("ms", "UTC", -9 * 10**18),
    "microseconds": ("us", "UTC", 9 * 10**18),
    "the first microsecond": ("us", "UTC", -(2**63)),
    "the last microsecond": ("us", None, 2**63 - 1),
}


@pytest.mark.parametrize("name", FAR)
def test_a_timestamp_that_no_calendar_has_is_named_by_file_and_row(duckdb_engine, tmp_path, name):
    unit, zone, far = FAR[name]
    path = write(tmp_path, time=times(unit, zone, far))
    told = rf"log.parquet: row 5, column 'time', value '{far} {unit[0]}i.*is in no year from 1 to 9999; mend"
    told = told.replace("ui", "mi")
    with pytest.raises(DataError, match=told):
        read(duckdb_engine, tmp_path, path=path, time_zone="UTC")


def test_far_timestamps_are_found_in_dictionaries_mapped_columns_and_files_without_statistics(tmp_path):
    far = times("ms", None, -(10**17), row=3)
    table = pa.table({"stamp": far.dictionary_encode(), "time": far})
    pq.write_table(table, tmp_path / "log.parquet", row_group_size=2, write_statistics=False)
    for column in ("stamp", "time"):
        with pytest.raises(DataError, match="row 4, column 'time'"):
            refuse_far_times(tmp_path / "log.parquet", column)
    refuse_far_times(tmp_path / "log.parquet", "no such column")


def test_far_timestamps_are_named_on_every_engine(engine, tmp_path):
    path = write(tmp_path, time=times("ms", "UTC", 9 * 10**18))
    with pytest.raises(DataError, match="row 5, column 'time', value '9000000000000000000 milliseconds since 1970'"):
        read(engine, tmp_path, path=path)
    # The last second of the calendar, nanoseconds, ids that are floats or decimals, levels as floats, no positions.
    ids = pa.array([1.0, 2.5, 1e30, float("nan"), None, -3.0])
    last = pa.array([dt.datetime(9999, 12, 31, 23, 59, 59)] * 6, pa.timestamp("us", "UTC"))
    users, levels = pa.array([Decimal(7)] * 6, pa.decimal128(38, 0)), pa.array([0.0, 1.0, 2.0, 3.0, 4.0, 5.0])
    path = write(tmp_path, time=last, item_id=ids, user_id=users, level=levels, position=pa.nulls(6, pa.int32()))
    rows = read(engine, tmp_path, path=path)
    assert [float(row["item_id"]) for row in rows] == [1.0, 2.5, 1e30, -3.0]
    assert rows[0]["item_id"] == "1"
    assert {row["user_id"] for row in rows} == {"7"}
    assert [row["level"] for row in rows] == [0, 1, 2, 5]
    assert {row["time"] for row in rows} == {253_402_300_799_000_000}


@pytest.mark.parametrize("column", ["item_id", "user_id", "level"])
def test_an_infinite_id_is_named_by_file_and_row(duckdb_engine, tmp_path, column):
    path = write(tmp_path, **{column: [1.0, 2.0, 3.0, 4.0, float("-inf"), float("inf")]})
    with pytest.raises(DataError, match=rf"row 5, column '{column}', value '-inf': is no id; store ids as text"):
        read(duckdb_engine, tmp_path, path=path)


@pytest.mark.parametrize("value", [1e30, -1e300, 2.0**63])
def test_a_position_that_64_bits_do_not_hold_is_named_by_file_and_row(duckdb_engine, tmp_path, value):
    path = write(tmp_path, position=[0.0, 1.0, 2.0, value, 4.0, 5.0])
    with pytest.raises(DataError, match=r"row 4, column 'position', value .*: is a whole number of 2147483648 or"):
        read(duckdb_engine, tmp_path, path=path)


@pytest.mark.parametrize("column", ["user_id", "query", "item_id", "position", "time"])
def test_a_column_of_nulls_only_is_a_column_without_values(duckdb_engine, tmp_path, column):
    path = write(tmp_path, **{column: pa.nulls(6), "session_id": ["s"] * 6})
    raw = read_log(duckdb_engine, LogConfig.build({"path": path}), None, tmp_path / "work")
    assert raw.events.count().to_pyarrow().as_py() == (0 if column == "item_id" else 6)
    expected = {"item_id": "rows_without_item", "position": "no_position", "time": "rows_without_time"}
    assert column not in expected or raw.notes[expected[column]] == 6


@pytest.mark.parametrize("column", ["query", "level", "time", "position"])
@pytest.mark.parametrize(
    "cell", [{"a": 1}, dt.date(2026, 11, 2), b"\xff", dt.time(10)], ids=["nested", "date", "bytes", "clock"]
)
def test_a_column_of_no_use_is_told_with_its_type(duckdb_engine, tmp_path, column, cell):
    path = write(tmp_path, **{column: [cell] * 6})
    with pytest.raises(DataError, match=rf"log.parquet: column '{column}': holds [a-z<>:, 0-9()]+, not [a-z ]+"):
        read(duckdb_engine, tmp_path, path=path)


@pytest.mark.parametrize("year", [1, 9999])
@pytest.mark.parametrize("zone", ["America/New_York", "Asia/Tokyo"])
def test_times_that_stand_for_unknown_are_impossible_times_in_every_zone(duckdb_engine, tmp_path, year, zone):
    """Databases write 0001-01-01 and 9999-12-31 for times that they do not know."""
    unknown = dt.datetime(year, 1, 1) if year == 1 else dt.datetime(year, 12, 31, 23, 59, 59)
    stamps = [dt.datetime(2026, 11, 2, 10, 0, place) for place in range(3)] + [unknown] * 3
    write(tmp_path, time=pa.array(stamps, pa.timestamp("us")))
    rows = log_table(time=[str(stamp) for stamp in stamps]).to_pylist()
    (tmp_path / "log.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    for name in ("log.parquet", "log.jsonl"):
        settings = LogConfig.build({"path": str(tmp_path / name), "time_zone": zone})
        raw = read_log(duckdb_engine, settings, None, tmp_path / "work")
        checked = check_events(duckdb_engine, raw, None, CheckConfig(), 30, tmp_path / "work")
        counts = {str(entry["check"]): entry["rows"] for entry in checked.counts}
        assert counts["impossible_times"] == 3
        assert checked.events.count().to_pyarrow().as_py() >= 3


def test_a_log_of_unknown_times_only_has_no_possible_event(duckdb_engine, tmp_path):
    path = write(tmp_path, time=pa.array([dt.datetime(9999, 12, 31)] * 6, pa.timestamp("us", "UTC")))
    raw = read_log(duckdb_engine, LogConfig.build({"path": path}), None, tmp_path / "work")
    checked = check_events(duckdb_engine, raw, None, CheckConfig(), 30, tmp_path / "work")
    assert checked.events.count().to_pyarrow().as_py() == 0
    assert checked.latest is None


def test_the_broken_file_of_a_folder_is_named(duckdb_engine, tmp_path):
    folder = tmp_path / "logs"
    folder.mkdir()
    whole = Path(write(tmp_path)).read_bytes()
    for name, data in {"a": whole, "b": whole[:-9], "c": whole}.items():
        (folder / f"{name}.parquet").write_bytes(data)
    with pytest.raises(DataError, match=r"b\.parquet: row 1: no row can be read, "):
        read(duckdb_engine, tmp_path, path=str(folder))
    (folder / "b.parquet").write_bytes(b"")
    with pytest.raises(DataError, match=r"b\.parquet: is empty"):
        read(duckdb_engine, tmp_path, path=str(folder))
    pq.ParquetWriter(folder / "b.parquet", log_table().schema).close()  # without any part
    assert len(read(duckdb_engine, tmp_path, path=str(folder))) == 12


@pytest.mark.parametrize(
    ("cell", "told"),
    [
        (b"t\0v", "holds a NUL character"),
        (b"t\xff\xfev", "is not UTF-8 text"),
        (b'"tv', "quote"),
        (b"t" * 10_000_001, "cannot be read as CSV: field larger than field limit"),
    ],
    ids=["NUL", "bytes", "quote", "long"],
)
def test_a_broken_line_of_a_csv_file_is_named(duckdb_engine, tmp_path, cell, told):
    lines = [b"user_id,query,item_id,level,time", *[b"u,tv,b,view,1793613600"] * 300]
    lines += [b"u," + cell + b",b,view,1793613600", b"u,tv,b,view,1793613600"]
    (tmp_path / "log.csv").write_bytes(b"\n".join(lines) + b"\n")
    with pytest.raises(DataError, match=rf"log\.csv: line 302\b.*{told}"):
        read(duckdb_engine, tmp_path, path=str(tmp_path / "log.csv"))


@pytest.mark.parametrize("column", ["user_id", "level", "position", "time"])
def test_a_nested_cell_of_json_lines_is_named(duckdb_engine, tmp_path, column):
    rows = log_table().to_pylist()
    rows[3][column] = {"a": [1]}
    (tmp_path / "log.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    with pytest.raises(
        DataError, match=rf"log\.jsonl: line 4, column '{column}', value .*: is a dict, not an id or a "
    ):
        read(duckdb_engine, tmp_path, path=str(tmp_path / "log.jsonl"))


@pytest.mark.parametrize("cell", [9 * 10**18, -9 * 10**18])
def test_a_timestamp_beyond_the_calendar_ends_the_command_with_one_line(tmp_path, capsys, cell):
    path, out = write(tmp_path, time=times("ms", "UTC", cell)), tmp_path / "mined"
    good = tmp_path / "good.parquet"
    pq.write_table(log_table(), good)
    if cell > 0:  # what stood there before stays
        assert main(["mine", "--log", str(good), "--out", str(out), "--json"]) == 0
    before = sorted((file.name, file.read_bytes()) for file in out.glob("*")) if cell > 0 else []
    capsys.readouterr()
    assert main(["mine", "--log", path, "--out", str(out), "--json"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert f"log.parquet: row 5, column 'time', value '{cell} milliseconds since 1970'" in line
    assert sorted((file.name, file.read_bytes()) for file in out.glob("*")) == before
