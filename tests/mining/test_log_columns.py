"""The columns of a log of your own: what is mapped is told from what is mistyped, reversed or missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from pertinent.cli import main
from pertinent.errors import ConfigError, DataError, PertinentError
from pertinent.lexicon.reading import query_counts
from pertinent.mining.readers import read_log
from pertinent.mining.run import MineConfig, mine
from pertinent.mining.sources import LogConfig, RawLog

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


# ---------------------------------------------------------------- what a log lacks is a warning of the command


def mined(folder: Path, columns: dict[str, list[Any]], **log: Any) -> tuple[list[str], Path]:
    path = write(folder, columns, "parquet")
    engine = {"type": "duckdb", "memory": "1GB", "threads": 1}
    config = {"log": {"path": str(path), **log}, "out": str(folder / "mined"), "engine": engine, "progress": False}
    made = mine(MineConfig.build(config))
    return made.json("report.json")["warnings"], made.path


def warned(warnings: list[str], word: str) -> list[str]:
    return [warning for warning in warnings if word in warning]


def test_a_log_without_views_is_warned_about(tmp_path):
    clicks = {**SHOP, "level": ["click", "pay", "click"]}
    warnings, made = mined(tmp_path, clicks)
    (told,) = warned(warnings, "view")
    assert told.startswith("the log has no views: click-through is 1 everywhere, neighbors and position curve mean no")
    assert "the log has no views" in (made / "report.html").read_text(encoding="utf-8")
    # Also where the check of clicks without a view finds none of them, as their searches began the day before.
    later = {**clicks, "search_id": ["s", "s", "s"], "time": ["2024-05-01T23:59:00Z", *2 * ["2024-05-02T00:01:00Z"]]}
    (told,) = warned(mined(tmp_path, later)[0], "view")
    assert told.startswith("the log has no views: ")


def test_views_that_no_click_is_linked_to_are_warned_about(tmp_path):
    apart = {**SHOP, "search_id": ["a", "b", "c"]}
    (told,) = warned(mined(tmp_path, apart)[0], "view")
    assert told.startswith("1 of 1 clicks (and deeper) have no view of their item on their result page")
    linked = {**SHOP, "item_id": ["4", "4", "4"]}
    assert warned(mined(tmp_path, linked)[0], "view") == []


def test_positions_from_one_and_unknown_positions_are_warned_about(tmp_path):
    from_one = {**SHOP, "position": [1, 2, 1]}
    (told,) = warned(mined(tmp_path, from_one)[0], "position is 0")
    assert told.startswith("no position is 0 in 3 rows; if yours count from 1, set log.position_base to 1 (--set log.")
    assert warned(mined(tmp_path, from_one, position_base=1)[0], "no position") == []
    unknown = {name: cells for name, cells in SHOP.items() if name != "position"}
    (told,) = warned(mined(tmp_path, unknown)[0], "no position")
    assert told.startswith("no position is known in 3 rows: positions are not identified")
    assert warned(mined(tmp_path, SHOP)[0], "no position") == []


# ---------------------------------------------------------------- hints that work when they are followed


def test_columns_of_the_catalog_have_their_own_flag(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, SHOP, "parquet")
    (tmp_path / "katalog.csv").write_text("SKU,Titel\n4,Schuh\n9,Stiefel\n", encoding="utf-8")
    command = ["mine", "--log", "log.parquet", "--items", "katalog.csv", "--out", "mined"]
    assert main(command) == 2
    assert (
        "katalog.csv: has no column 'item_id'; it has SKU, Titel; say which one it is: --item-columns yours=item_id"
        in (capsys.readouterr().err)
    )
    for given, meant in (("item_id=SKU", "SKU=item_id, the other way round"), ("SKUU=item_id", "SKU=item_id")):
        assert main([*command, "--item-columns", given]) == 2
        yours, ours = given.split("=")
        told = f"has no column '{yours}', which is mapped to '{ours}'; it has SKU, Titel; did you mean {meant}?"
        assert f"katalog.csv: {told}" in capsys.readouterr().err
    assert main([*command, "--item-columns", "SKU=item_id"]) == 0


def test_what_is_given_is_there_and_has_its_columns_before_the_log_is_read(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, SHOP, "parquet")
    command = ["mine", "--log", "log.parquet", "--out", "mined", "--judged"]
    (tmp_path / "judged.csv").write_text("keyword,item_id\n鞋,4\n", encoding="utf-8")
    for judged, told in (("nope.csv", "nope.csv"), ("judged.csv", "has no column 'query'; it has keyword, item_id")):
        assert main([*command, judged]) == 2
        err = capsys.readouterr().err
        assert told in err and "--columns" not in err
        assert "[1/12]" not in err


def test_queries_of_a_log_have_their_own_flag_in_the_lexicon(tmp_path):
    path = write(tmp_path, renamed(query="search_query"), "csv")
    with pytest.raises(DataError, match=r"has no column 'query'; .*: --log-columns search_query=query"):
        query_counts(path, 100, {}, None, lambda query, item: None)
