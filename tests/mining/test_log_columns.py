"""The columns of a log of your own: what is mapped is told from what is mistyped, reversed or missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from pertinent.errors import ConfigError, DataError, PertinentError
from pertinent.mining.readers import LogConfig, RawLog, read_log

SHOP: dict[str, list[Any]] = {
    "user_id": ["ü-1", "ü-1", "u-2"],
    "query": ["red shoe", "red shoe", "鞋"],
    "item_id": ["9", "4", "4"],
    "level": ["view", "click", "view"],
    "position": [0, 1, 0],
    "time": [1_793_614_540, 1_793_614_550, 1_793_614_560],
}


def write(folder: Path, columns: dict[str, list[Any]], kind: str) -> Path:
    path = folder / f"log.{kind}"
    table = pa.table(columns)
    if kind == "csv":
        pyarrow.csv.write_csv(table, path)
    else:
        pq.write_table(table, path)
    return path


def renamed(**names: str) -> dict[str, list[Any]]:
    return {names.get(name, name): cells for name, cells in SHOP.items()}


def read(connection: Any, path: Path, **settings: Any) -> RawLog:
    return read_log(connection, LogConfig.build({"path": str(path), **settings}), None, path.parent)


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        (
            {"user_id": "uid"},
            r"columns: .*'uid' is not one of our columns: user_id, .*did you mean uid=user_id, the oth",
        ),
        ({"position": "rank"}, "did you mean rank=position, the other way round"),
        ({"sess": "session"}, r"'session' is not one of our columns: .*did you mean sess=session_id\?"),
        ({"a": "price"}, "'price' is not one of our columns: user_id, session_id, search_id, query"),
        ({"q": "query", "keyword": "query"}, "maps two columns to 'query'"),
    ],
)
def test_what_columns_are_mapped_to_is_ours(columns, told):
    with pytest.raises(ConfigError, match=told):
        LogConfig.build({"path": "log.csv", "columns": columns})


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_mapped_columns_are_in_the_file(duckdb_engine, tmp_path, kind):
    path = write(tmp_path, renamed(query="keyword"), kind)
    with pytest.raises(
        DataError, match=r"no column 'key', which is mapped to 'query'; it has .*--columns keyword=query"
    ):
        read(duckdb_engine, path, columns={"key": "query"})
    with pytest.raises(DataError, match="no column 'nope', which is mapped to 'event_id'; it has user_id, keyword"):
        read(duckdb_engine, path, columns={"keyword": "query", "nope": "event_id"})
    assert read(duckdb_engine, path, columns={"keyword": "query"}).notes == {"rows": 3}


def test_mapped_fields_of_other_formats_are_in_some_record(duckdb_engine, tmp_path):
    path = tmp_path / "ubi.jsonl"
    path.write_text('{"query_id": "q", "user_query": "鞋", "timestamp": "2026-11-02T10:15:30Z"}\n', encoding="utf-8")
    with pytest.raises(DataError, match="no record has the field 'origin', which is mapped to 'application'"):
        read(duckdb_engine, path, format="ubi", columns={"origin": "application"})


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_missing_column_is_told_with_those_that_are_there(duckdb_engine, tmp_path, kind):
    path = write(tmp_path, renamed(query="user_query"), kind)
    with pytest.raises(DataError, match=r"no column 'query'; it has user_id, user_query, .*--columns user_query=query"):
        read(duckdb_engine, path)
    other = write(tmp_path, {"a": ["1"], "b": ["2"]}, kind)
    with pytest.raises(DataError, match=r"no column 'query'; it has a, b; .*--columns yours=query"):
        read(duckdb_engine, other)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_one_id_of_who_searched_is_enough(duckdb_engine, tmp_path, kind):
    path = write(tmp_path, {name: cells for name, cells in SHOP.items() if name != "user_id"}, kind)
    with pytest.raises(
        PertinentError, match=r"none of user_id, session_id, search_id; it has query, .*one of them"
    ) as e:
        read(duckdb_engine, path)
    assert "item_id=" not in str(e.value)
