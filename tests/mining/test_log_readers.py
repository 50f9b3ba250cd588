from __future__ import annotations

import datetime as dt
import gzip
import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pertinent.cli import main
from pertinent.errors import ConfigError, DataError
from pertinent.mining.engines import read_parquet
from pertinent.mining.readers import read_log
from pertinent.mining.schema import LEVELS
from pertinent.mining.sources import NOTES, RAW_EVENTS, LogConfig, files_of, sentence

FIXTURES = Path(__file__).parent / "fixtures"
SAMPLE = Path(__file__).resolve().parents[2] / "examples" / "data" / "ubi" / "logs.parquet"
UBI = {
    "format": "ubi",
    "queries": str(FIXTURES / "ubi" / "queries.jsonl"),
    "events": str(FIXTURES / "ubi" / "events.jsonl"),
}
HOUR = 3600
TEN = 1_793_613_600  # 2026-11-02T10:00:00Z in seconds


def read(connection, work, items=None, **settings):
    return read_log(connection, LogConfig.build(settings), items, work)


def rows_of(raw, *names):
    """Rows in an order of their own, each as a tuple; levels as words, times in seconds after ten o'clock."""
    for name, kind in RAW_EVENTS.items():
        assert str(raw.events.schema()[name]) == kind, name
    rows = []
    for row in raw.events.to_pyarrow().to_pylist():
        assert row["day"] == row["time"] // 86_400_000_000
        row["level"] = LEVELS[row["level"]] if row["level"] >= 0 else "negative"
        row["time"] = row["time"] / 1_000_000 - TEN
        rows.append(tuple(row[name] for name in names))
    return sorted(rows, key=repr)


def table(text):
    """Expected rows from aligned text: - for null, '' for the empty text, + for a blank within a cell."""
    cells = {"-": None, "''": ""}
    rows = []
    for line in text.strip().splitlines():
        row = [cells.get(cell, cell.replace("+", " ")) for cell in line.split()]
        row[-2] = None if row[-2] is None else int(row[-2])
        row[-1] = float(row[-1])
        rows.append(tuple(row))
    return sorted(rows, key=repr)


COLUMNS = ("user_id", "session_id", "search_id", "query", "item_id", "level", "position", "time")

EXPECTED_UBI = """
u-1  s-1  q-1   trail+shoe       sku-9  view      0     0
u-1  s-1  q-1   trail+shoe       sku-4  view      1     0
u-1  s-1  q-1   trail+shoe       102    view      2     0
u-1  s-1  q-1   trail+shoe       sku-4  click     1    30
u-1  s-1  q-1   trail+shoe       sku-4  click     1    30
u-1  s-1  q-1   trail+shoe       102    click     2    40
u-1  s-1  q-1   trail+shoe       sku-4  cart      -   600
u-1  s-1  q-1   trail+shoe       sku-4  negative  -   660
u-1  s-1  q-1   trail+shoe       sku-4  pay       -  1200
c-2  s-2  q-2   tv+stand         sku-7  view      0     0
c-2  s-2  q-2   tv+stand         sku-8  view      1     0
c-2  s-2  q-2   tv+stand         sku-3  view      2    21
c-2  s-2  q-2   tv+stand         sku-8  click     -    20
c-2  s-9  q-2   tv+stand         sku-8  pay       -  1987200
c-3  s-3  q-4   größe+42+schuh   sku-4  view      0  7200
c-3  s-3  q-4   größe+42+schuh   sku-9  view      1  7200
c-3  s-3  q-4   größe+42+schuh   sku-9  click     1  7209
c-3  s-3  q-4   größe+42+schuh   sku-4  click     0  7210
c-4  s-4  -     ''               sku-4  click     -  9000
c-4  s-4  q-77  ''               sku-9  click     0  9060
c-4  s-4  q-78  trail+shoe       sku-9  click     1  9120
"""
NOTES_UBI = {
    "events_of_unknown_queries": 1,
    "events_without_item": 1,
    "events_without_query_id": 1,
    "hits_repeated_or_empty": 1,
    "impressions_also_in_hits": 1,
    "old_name_of_hit_ids": 1,
    "other_actions": 1,
    "position_base:kiosk": 0,
    "position_base:web": 1,
    "positions_empty": 1,
    "positions_only_xy": 2,
    "rows": 21,
    "searches_without_items": 1,
}

EXPECTED_GA4 = """
u-1  7.1.100  -  trail+shoe  sku-9  view      0   942
u-1  7.1.100  -  trail+shoe  sku-4  view      1   942
u-1  7.1.100  -  trail+shoe  sku-4  click     1   946
u-1  7.1.100  -  trail+shoe  sku-4  click     -   947
u-1  7.1.100  -  ''          sku-9  click     0   961
u-1  7.1.100  -  ''          sku-9  click     -   962
u-1  7.1.100  -  trail+shoe  sku-4  cart      -   971
u-1  7.1.100  -  trail+shoe  sku-4  negative  -   981
u-1  7.1.100  -  trail+shoe  sku-4  order     -   991
u-1  7.1.100  -  trail+shoe  sku-4  pay       -  1001
u-1  7.1.100  -  trail+shoe  sku-4  pay       -  1001
8.2  8.2.100  -  tür+griff   sku-1  view      0   943
8.2  8.2.100  -  tür+griff   sku-2  view      2   943
8.2  8.2.100  -  tür+griff   sku-3  view      -   944
8.2  8.2.100  -  tür+griff   sku-5  view      -   944
8.2  8.2.100  -  tür+griff   sku-3  click     -   950
9.3  9.3.300  -  desk        sku-6  view      0   942
9.3  9.3.300  -  desk        sku-7  view      1   942
9.3  9.3.300  -  desk        sku-6  click     0   943
9.3  9.3.301  -  ''          sku-6  click     -  8141
"""
NOTES_GA4 = {
    "days_may_be_filled_again": 20,
    "events_without_item": 1,
    "other_actions": 1,
    "position_base:WEB.1": 1,
    "position_base:WEB.2": 0,
    "positions_after_first_list": 2,
    "queries_by_link": 11,
    "queries_from_addresses": 2,
    "rows": 20,
}

EXPECTED_SEGMENT = """
u-1  -  -  trail+shoe  sku-9  view      0     1
u-1  -  -  trail+shoe  sku-4  view      1     1
u-1  -  -  trail+shoe  sku-4  click     1     9
u-1  -  -  trail+shoe  sku-4  click     1    11
u-1  -  -  trail+shoe  sku-4  click     -    12
u-1  -  -  trail+shoe  sku-2  view      0    60
u-1  -  -  trail+shoe  sku-4  cart      -   120
u-1  -  -  trail+shoe  sku-4  order     -   180
u-1  -  -  trail+shoe  sku-4  pay       -   240
u-1  -  -  ''          sku-8  pay       -   240
u-1  -  -  trail+shoe  sku-4  negative  -  1440
u-1  -  -  ''          sku-9  click     2  5400
a-2  -  -  ''          K7     click     0  5460
"""
NOTES_SEGMENT = {
    "items_named_by_sku": 1,
    "other_actions": 2,
    "position_base:shop": 1,
    "queries_by_link": 10,
    "rows": 13,
}

EXPECTED_SNOWPLOW = """
d-1  x-1  -  unisex+shoes  sku-9  view      0    0
d-1  x-1  -  unisex+shoes  sku-4  view      1    0
d-1  x-1  -  unisex+shoes  sku-4  click     1    5
d-1  x-1  -  unisex+shoes  sku-4  click     -    6
d-1  x-1  -  unisex+shoes  sku-4  cart      -   60
d-1  x-1  -  unisex+shoes  sku-4  cart      -   60
d-1  x-1  -  unisex+shoes  sku-4  negative  -  120
d-1  x-1  -  ''            sku-9  click     0  180
d-1  x-1  -  ''            sku-9  click     -  185
d-1  x-1  -  unisex+shoes  sku-4  order     -  240
d-1  x-1  -  unisex+shoes  sku-4  pay       -  300
d-2  x-2  -  größe         12     view      0    0
d-2  x-2  -  größe         13     view      1    0
d-2  x-2  -  größe         13     click     -    9
"""
NOTES_SNOWPLOW = {
    "other_actions": 1,
    "position_base:shop": 1,
    "queries_by_link": 7,
    "queries_from_addresses": 1,
    "rows": 14,
}

FOREIGN = {
    "ubi": (UBI, EXPECTED_UBI, NOTES_UBI),
    "ga4": ({"format": "ga4", "path": str(FIXTURES / "ga4")}, EXPECTED_GA4, NOTES_GA4),
    "segment": ({"format": "segment", "path": str(FIXTURES / "segment")}, EXPECTED_SEGMENT, NOTES_SEGMENT),
    "snowplow": ({"format": "snowplow", "path": str(FIXTURES / "snowplow")}, EXPECTED_SNOWPLOW, NOTES_SNOWPLOW),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_every_row_of_a_log_and_every_trap_in_it(engine, tmp_path, name):
    settings, expected, notes = FOREIGN[name]
    raw = read(engine, tmp_path, **settings)
    assert rows_of(raw, *COLUMNS) == table(expected)
    assert raw.notes == notes
    assert len(raw.warnings()) == len(notes)


@pytest.mark.parametrize("name", FOREIGN)
def test_the_order_of_rows_in_the_file_does_not_matter(duckdb_engine, tmp_path, name):
    settings, expected, notes = FOREIGN[name]
    mixed = dict(settings)
    for key in {"path", "queries", "events"} & set(settings):
        source = Path(settings[key])
        lines = [line for file in files_of(str(source)) for line in file.read_text(encoding="utf-8").splitlines()]
        random.Random(1).shuffle(lines)
        (tmp_path / f"{key}.jsonl").write_text("\n".join(lines), encoding="utf-8")
        mixed[key] = str(tmp_path / f"{key}.jsonl")
    raw = read(duckdb_engine, tmp_path / "work", **mixed)
    assert rows_of(raw, *COLUMNS) == table(expected)
    assert raw.notes == notes


def test_ga4_in_nested_parquet_is_read_as_its_json(duckdb_engine, tmp_path):
    (source,) = (FIXTURES / "ga4").glob("*.jsonl")
    records = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    for record in records:
        record["event_timestamp"] = int(record["event_timestamp"])
        for param in record["event_params"]:
            param["value"] = {"string_value": None, "int_value": None, **param["value"]}
            whole = param["value"]["int_value"]
            param["value"]["int_value"] = None if whole is None else int(whole)
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "events.parquet")
    raw = read(duckdb_engine, tmp_path / "work", format="ga4", path=str(tmp_path / "events.parquet"))
    assert rows_of(raw, *COLUMNS) == table(EXPECTED_GA4)


def ga4_event(name, second, items, **params):
    """An event of one user and session; items are ids, each with the index that the site sends."""
    values = {"ga_session_id": {"int_value": "5"}, **{key: {"string_value": text} for key, text in params.items()}}
    return {
        "event_name": name,
        "event_timestamp": (TEN + second) * 1_000_000,
        "user_pseudo_id": "1.2",
        "event_params": [{"key": key, "value": value} for key, value in values.items()],
        "items": [{"item_id": item, "index": index} for item, index in items],
    }


@pytest.mark.parametrize("base", [0, 1])
def test_an_index_outside_of_a_list_is_no_place_on_the_result_page(duckdb_engine, tmp_path, base):
    shown = [(item, place + base) for place, item in enumerate("abcd")]
    # In ten orders and on ten product pages the only item has the index 0, which says nothing of the list.
    alone = [ga4_event(name, 10 + n, [("d", 0)]) for n in range(10) for name in ("view_item", "purchase")]
    listed = [ga4_event("view_item_list", 1, shown, search_term="tv"), ga4_event("select_item", 5, shown[3:])]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(event) for event in [*listed, *alone]))
    raw = read(duckdb_engine, tmp_path / "work", format="ga4", path=str(tmp_path / "a.jsonl"))
    found = {row for row in rows_of(raw, "query", "item_id", "level", "position") if row[1] == "d"}
    assert found == {
        ("tv", "d", "view", 3),
        ("tv", "d", "click", 3),
        ("tv", "d", "click", None),
        ("tv", "d", "pay", None),
    }
    assert {name: n for name, n in raw.notes.items() if "position" in name} == {"position_base:": base}


def test_a_position_in_an_order_is_no_place_on_the_result_page(duckdb_engine, tmp_path):
    for name, level in (("segment", "pay"), ("snowplow", "pay")):
        settings, *_ = FOREIGN[name]
        source = next(iter(files_of(settings["path"])))
        records = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
        for record in records:
            if record.get("event") == "Order Completed":
                for place, product in enumerate(record["properties"]["products"]):
                    product["position"] = place + 1
            for key, value in record.items():
                if "snowplow_ecommerce_action" in key and value["type"] == "transaction":
                    for place, product in enumerate(record[next(k for k in record if "ecommerce_product" in k)]):
                        product["position"] = place + 1
        (tmp_path / f"{name}.jsonl").write_text("\n".join(json.dumps(record) for record in records))
        raw = read(duckdb_engine, tmp_path / "work", format=name, path=str(tmp_path / f"{name}.jsonl"))
        paid = [row for row in rows_of(raw, "level", "position") if row[0] == level]
        assert paid and {position for _, position in paid} == {None}


def test_lists_that_the_export_may_have_cut_are_counted(duckdb_engine, tmp_path):
    items = [{"item_id": f"i-{n}"} for n in range(200)]
    record = {"event_name": "view_item_list", "event_timestamp": 1, "user_pseudo_id": "1", "items": items}
    (tmp_path / "a.jsonl").write_text(json.dumps(record))
    raw = read(duckdb_engine, tmp_path / "work", format="ga4", path=str(tmp_path / "a.jsonl"))
    assert raw.notes["lists_of_200_items"] == 1
    assert raw.notes["rows"] == 200


def test_a_list_that_is_no_search_takes_no_query(duckdb_engine, tmp_path):
    settings = FOREIGN["segment"][0]
    raw = read(duckdb_engine, tmp_path, **settings, search_lists=[])
    assert {row[0] for row in rows_of(raw, "query")} == {""}
    late = read(duckdb_engine, tmp_path, **settings, link_minutes=1)
    assert late.notes["queries_by_link"] == 9  # the refund comes after a pause


def test_internal_numbers_of_the_engine_are_refused(duckdb_engine, tmp_path):
    settings = {"format": "ubi", "path": str(FIXTURES / "ubi-internal-ids")}
    with pytest.raises(DataError, match=r"both.jsonl: line 1.*never those of the items clicked on.*object_id_field"):
        read(duckdb_engine, tmp_path, **settings)
    lines = (FIXTURES / "ubi-internal-ids" / "both.jsonl").read_text().splitlines()[:2]
    (tmp_path / "queries.jsonl").write_text("\n".join(lines))
    settings = {"format": "ubi", "queries": str(tmp_path / "queries.jsonl")}
    pq.write_table(pa.table({"item_id": ["sku-9"]}), tmp_path / "items.parquet")
    items = read_parquet(duckdb_engine, tmp_path / "items.parquet")
    with pytest.raises(DataError, match="match no item of the catalog"):
        read(duckdb_engine, tmp_path, items, **settings)
    # The same numbers are item ids where the catalog has them; with nothing to compare with, they are counted.
    pq.write_table(pa.table({"item_id": [3, 15, 204]}), tmp_path / "numbers.parquet")
    items = read_parquet(duckdb_engine, tmp_path / "numbers.parquet")
    assert read(duckdb_engine, tmp_path, items, **settings).notes["rows"] == 6
    assert read(duckdb_engine, tmp_path, **settings).notes["whole_number_hit_ids"] == 6


def test_numbers_of_the_catalog_are_item_ids_even_where_another_item_was_clicked_on(duckdb_engine, tmp_path):
    query = {"query_id": "q", "user_query": "tv", "timestamp": 1, "query_response_hit_ids": ["101", "102", "103"]}
    click = {"action_name": "click", "query_id": "q", "timestamp": 2}
    click["event_attributes"] = {"object": {"object_id": "140"}}  # from the second page of results
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(record) for record in (query, click)))
    settings = {"format": "ubi", "path": str(tmp_path / "a.jsonl")}
    for first, refused in ((100, False), (200, True)):
        pq.write_table(pa.table({"item_id": list(range(first, first + 100))}), tmp_path / f"{first}.parquet")
        items = read_parquet(duckdb_engine, tmp_path / f"{first}.parquet")
        if refused:
            with pytest.raises(DataError, match="match no item of the catalog"):
                read(duckdb_engine, tmp_path / "work", items, **settings)
        else:
            raw = read(duckdb_engine, tmp_path / "work", items, **settings)
            assert raw.notes == {"rows": 4, "whole_number_hit_ids": 3}
    with pytest.raises(DataError, match="never those of the items clicked on"):
        read(duckdb_engine, tmp_path / "work", **settings)


def snowplow_event(kind, **contexts):
    action = {"unstruct_event_com_snowplowanalytics_snowplow_ecommerce_snowplow_ecommerce_action_1": {"type": kind}}
    prefix = "contexts_com_snowplowanalytics_snowplow_ecommerce_product"
    columns = {f"{prefix}_{version}": value for version, value in contexts.items()}
    return {"derived_tstamp": "2026-11-02 10:00:00", "domain_userid": "d", **action, **columns}


WITHOUT_ITEMS = {
    "ga4": [ga4_event("add_to_cart", 1, []), ga4_event("purchase", 2, [])],
    "segment": [
        {"type": "track", "event": name, "anonymousId": "a", "timestamp": "2026-11-02T10:00:00Z", "properties": thing}
        for name, thing in (("Product Added", {}), ("Order Completed", {"products": []}))
    ],
    "snowplow": [snowplow_event("add_to_cart"), snowplow_event("transaction", v1=None, v2=[])],
}


@pytest.mark.parametrize("name", WITHOUT_ITEMS)
def test_an_event_without_an_item_is_counted(duckdb_engine, tmp_path, name):
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(event) for event in WITHOUT_ITEMS[name]))
    assert read(duckdb_engine, tmp_path / "work", format=name, path=str(tmp_path / "a.jsonl")).notes == {
        "events_without_item": 2,
        "rows": 0,
    }


def test_products_are_read_from_whichever_version_has_them(duckdb_engine, tmp_path):
    events = [
        snowplow_event("product_view", v1=None, v2=[{"id": "b"}]),
        snowplow_event("product_view", v1=[{"id": "a"}]),
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(event) for event in events))
    raw = read(duckdb_engine, tmp_path / "work", format="snowplow", path=str(tmp_path / "a.jsonl"))
    assert rows_of(raw, "item_id") == [("a",), ("b",)]


SEARCHES = {
    "ubi": [
        {"query_id": f"q-{n}", "user_query": text, "timestamp": 1, "query_response_hit_ids": hits}
        for n, (text, hits) in enumerate([("tv", ["a"]), ("nothing", []), ("größe", None)])
    ],
    "ga4": [
        ga4_event("view_search_results", 1, [], search_term="tv"),
        ga4_event("view_item_list", 2, [("a", 0)], search_term="tv"),
        ga4_event("view_search_results", 3, [], search_term="nothing"),
        ga4_event("view_search_results", 4, [], search_term="größe"),
    ],
}


@pytest.mark.parametrize("name", SEARCHES)
def test_a_search_that_found_nothing_is_counted(duckdb_engine, tmp_path, name):
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(event) for event in SEARCHES[name]))
    raw = read(duckdb_engine, tmp_path / "work", format=name, path=str(tmp_path / "a.jsonl"))
    assert rows_of(raw, "query", "item_id") == [("tv", "a")]
    assert raw.notes["searches_without_items"] == 2
    assert any("2 searches name no item" in warning for warning in raw.warnings())


def test_a_time_without_a_zone_asks_for_one(duckdb_engine, tmp_path):
    settings = {"format": "ubi", "path": str(FIXTURES / "ubi-no-zone")}
    with pytest.raises(DataError, match=r"both.jsonl: line 1, column 'timestamp'.*no time zone; .*log.time_zone="):
        read(duckdb_engine, tmp_path, **settings)
    raw = read(duckdb_engine, tmp_path, **settings, time_zone="Europe/Berlin")
    summer = dt.datetime(2026, 7, 2, 11, 0, 10, 500_000, tzinfo=dt.UTC).timestamp() - TEN
    assert rows_of(raw, "level", "time") == [("click", summer), ("view", 2.0 * HOUR)]


def test_a_zone_that_does_not_exist_is_refused():
    with pytest.raises(ConfigError, match="time_zone: is not a time zone"):
        LogConfig.build({"time_zone": "Mars/Olympus"})


def test_base_of_positions_can_be_set(duckdb_engine, tmp_path):
    raw = read(duckdb_engine, tmp_path, **FOREIGN["snowplow"][0], position_base=0)
    assert ("sku-9", "view", 1) in rows_of(raw, "item_id", "level", "position")


def test_actions_can_be_given_another_meaning(duckdb_engine, tmp_path):
    raw = read(duckdb_engine, tmp_path, **UBI, levels={"hover": "click", "add_to_cart": "ignore"})
    found = rows_of(raw, "level", "time")
    assert ("click", 10.0) in found and "cart" not in {level for level, _ in found}
    assert raw.notes["ignore_actions"] == 1


def test_the_ubi_sample(duckdb_engine, tmp_path):
    columns = {"origin": "application"}
    raw = read(duckdb_engine, tmp_path, format="ubi", path=str(SAMPLE), columns=columns, time_zone="UTC")
    assert raw.notes == {
        "events_of_unknown_queries": 60,
        "position_base:demo_shop": 1,
        "position_base:generated": 0,
        "rows": 985 + 999 + 60 + 227 + 227,
        "searches_without_items": 488,
    }


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"action_name": "click"', r"a.jsonl: line 2: is not JSON"),
        (
            '{"action_name": "click", "timestamp": "yesterday"}',
            r"line 2, column 'timestamp'.*'yesterday': is not a time",
        ),
        ('{"action_name": "click", "timestamp": 1, "event_attributes": 3}', r"line 2, column 'event_attributes'"),
        (
            '{"query_id": "q", "user_query": "tv", "timestamp": 1, "query_response_hit_ids": 7}',
            r"line 2.*is not a list",
        ),
        ('{"color": "red"}', r"line 2.*neither a UBI event nor a UBI query"),
        ("[1]", r"line 2.*is not an object"),
        ('{"action_name": "click", "timestamp": 1e300}', r"line 2, column 'timestamp'.*is not a time in milliseconds"),
        ('{"action_name": "click", "timestamp": 1, "session_id": {"a": 1}}', r"line 2.*is a dict, not an id or a text"),
    ],
)
def test_what_cannot_be_read_is_named_by_file_and_line(duckdb_engine, tmp_path, text, problem):
    good = '{"action_name": "click", "timestamp": 1793613600000, "event_attributes": {"object": {"object_id": 5}}}'
    (tmp_path / "a.jsonl").write_text(f"{good}\n{text}\n")
    with pytest.raises(DataError, match=problem):
        read(duckdb_engine, tmp_path / "work", format="ubi", path=str(tmp_path / "a.jsonl"))


def test_texts_that_no_file_can_hold_are_mended(duckdb_engine, tmp_path):
    record = {
        "query_id": "q\ud800",
        "user_query": "tv\udfff\x00",
        "timestamp": 1,
        "query_response_hit_ids": ["ü\ud800"],
    }
    (tmp_path / "a.jsonl").write_text(json.dumps(record))
    raw = read(duckdb_engine, tmp_path / "work", format="ubi", path=str(tmp_path / "a.jsonl"))
    assert rows_of(raw, "search_id", "query", "item_id") == [("q?", "tv?", "ü?")]


# A table of one's own.

OWN = [
    {"user_id": "u-1", "session_id": "s-1", "query": "Trail  Shoe", "item_id": "b-1", "level": "view", "position": 0},
    {"user_id": "u-1", "session_id": "s-1", "query": "trail shoe", "item_id": "b-2", "level": "VIEW", "position": 1},
    {
        "user_id": "u-1",
        "session_id": "s-1",
        "query": "ＴＲＡＩＬ shoe ",
        "item_id": "b-2",
        "level": "click",
        "position": 1,
    },
    {"user_id": "ü-2", "session_id": None, "query": "größe", "item_id": "b-1", "level": "pay", "position": None},
    {"user_id": "ü-2", "session_id": None, "query": None, "item_id": " b-3v ", "level": "negative", "position": -1},
    {"user_id": None, "session_id": None, "query": "  ", "item_id": None, "level": "view", "position": None},
]
STAMPS = [dt.datetime(2026, 11, 2, 10, 0, n, n + 1, tzinfo=dt.UTC) for n in range(len(OWN))]
EXPECTED_OWN = [
    ("b-1", "pay", None, "größe", None, "ü-2", 3),
    ("b-1", "view", 0, "trail shoe", "s-1", "u-1", 0),
    ("b-2", "click", 1, "trail shoe", "s-1", "u-1", 2),
    ("b-2", "view", 1, "trail shoe", "s-1", "u-1", 1),
    ("b-3v", "negative", None, "", None, "ü-2", 4),  # blanks are cut off, letters are not
]


def own_rows(raw):
    rows = rows_of(raw, "item_id", "level", "position", "query", "session_id", "user_id", "time")
    return [(*row[:-1], int(row[-1])) for row in rows]


def own_table(times, **more):
    columns = {name: [row[name] for row in OWN] for name in OWN[0]}
    return pa.table({**columns, "time": times, **more})


def test_a_parquet_table_is_read_by_the_engine_itself(engine, tmp_path):
    pq.write_table(own_table(pa.array(STAMPS, pa.timestamp("us", "UTC"))), tmp_path / "log.parquet")
    raw = read(engine, tmp_path / "work", path=str(tmp_path / "log.parquet"))
    assert own_rows(raw) == EXPECTED_OWN
    assert raw.notes == {"negative_positions": 1, "rows": 5, "rows_without_item": 1}
    first = raw.events.order_by("time").limit(2).select("file", "row", "time").to_pyarrow().to_pylist()
    assert [row["row"] for row in first] == [1, 2]
    assert first[0]["file"].endswith("log.parquet")
    assert [row["time"] % 1_000_000 for row in first] == [1, 2]


def test_times_without_a_zone_are_asked_about_on_every_engine(engine, tmp_path):
    naive = [stamp.replace(tzinfo=None) for stamp in STAMPS]
    pq.write_table(own_table(pa.array(naive, pa.timestamp("us"))), tmp_path / "log.parquet")
    with pytest.raises(DataError, match=r"no time zone; .*--set log.time_zone="):
        read(engine, tmp_path / "work", path=str(tmp_path / "log.parquet"))
    raw = read(engine, tmp_path / "work", path=str(tmp_path / "log.parquet"), time_zone="America/New_York")
    assert own_rows(raw) == [(*row[:-1], row[-1] + 5 * HOUR) for row in EXPECTED_OWN]


SECONDS = [stamp.timestamp() for stamp in STAMPS]
TIMES = {
    "milliseconds": (pa.array(STAMPS, pa.timestamp("us", "UTC")).cast(pa.timestamp("ms", "UTC"), safe=False), {}),
    "nanoseconds": (pa.array(STAMPS, pa.timestamp("us", "UTC")).cast(pa.timestamp("ns", "UTC")), {}),
    "whole seconds": (pa.array([int(s) for s in SECONDS]), {}),
    "seconds": (pa.array(SECONDS, pa.float64()), {}),
    "microseconds": (pa.array([round(s * 1e6) for s in SECONDS]), {"time_unit": "microseconds"}),
    "text": (pa.array([stamp.isoformat() for stamp in STAMPS]), {}),
    "text of seconds": (pa.array([str(int(s)) for s in SECONDS]), {}),
    "local text": (pa.array([s.replace(tzinfo=None).isoformat(" ") for s in STAMPS]), {"time_zone": "UTC"}),
}


@pytest.mark.parametrize("name", TIMES)
def test_times_of_every_kind(duckdb_engine, tmp_path, name):
    times, settings = TIMES[name]
    pq.write_table(own_table(times), tmp_path / "log.parquet")
    assert (
        own_rows(read(duckdb_engine, tmp_path / "work", path=str(tmp_path / "log.parquet"), **settings)) == EXPECTED_OWN
    )


def test_a_text_file_is_read_alike_on_every_engine(engine, tmp_path):
    rows = [{**row, "time": stamp.isoformat()} for row, stamp in zip(OWN, STAMPS, strict=True)]
    lines = [",".join("" if cell is None else str(cell) for cell in row) for row in map(dict.values, rows)]
    (tmp_path / "log.csv").write_text("\n".join([",".join(rows[0]), *lines]), encoding="utf-8")
    raw = read(engine, tmp_path / "work", path=str(tmp_path / "log.csv"))
    assert own_rows(raw) == EXPECTED_OWN
    assert raw.notes == {"negative_positions": 1, "rows": 5, "rows_without_item": 1}


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".jsonl.gz", ".tsv"])
def test_text_files_are_read_as_parquet_is(duckdb_engine, tmp_path, suffix):
    rows = [{**row, "time": stamp.isoformat()} for row, stamp in zip(OWN, STAMPS, strict=True)]
    if "json" in suffix:
        text = "\n".join(json.dumps(row) for row in rows)
    else:
        tab = "\t" if suffix == ".tsv" else ","
        text = "\n".join(
            tab.join("" if v is None else str(v) for v in row)
            for row in [list(rows[0]), *[list(r.values()) for r in rows]]
        )
    path = tmp_path / f"log{suffix}"
    path.write_bytes(gzip.compress(text.encode()) if suffix.endswith("gz") else text.encode())
    raw = read(duckdb_engine, tmp_path / "work", path=str(path))
    assert own_rows(raw) == EXPECTED_OWN
    assert raw.notes == {"negative_positions": 1, "rows": 5, "rows_without_item": 1}


def test_columns_and_levels_of_others_and_ids_that_are_numbers(duckdb_engine, tmp_path):
    columns = {
        "visitor": pa.array([7.0, None, 8.5]),
        "q": ["tv"] * 3,
        "product": [12, 13, 12],
        "what": ["seen", "bought it", "hover"],
        "ts": [1, 2, 3],
        "position": [1, 2, 1],
        "item_id": ["internal"] * 3,
    }
    pq.write_table(pa.table(columns), tmp_path / "log.parquet")
    raw = read(
        duckdb_engine,
        tmp_path / "work",
        path=str(tmp_path / "log.parquet"),
        columns={"visitor": "user_id", "q": "query", "product": "item_id", "what": "level", "ts": "time"},
        levels={"seen": "view", "bought it": "pay", "hover": "click"},
        position_base=1,
    )
    found = rows_of(raw, "user_id", "item_id", "level", "position")
    assert found == [("7", "12", "view", 0), ("8.5", "12", "click", 0), (None, "13", "pay", 1)]


def test_an_action_can_be_ignored_in_a_table_too(duckdb_engine, tmp_path):
    pq.write_table(own_table(SECONDS), tmp_path / "log.parquet")
    raw = read(duckdb_engine, tmp_path / "work", path=str(tmp_path / "log.parquet"), levels={"pay": "ignore"})
    assert own_rows(raw) == EXPECTED_OWN[1:]
    assert raw.notes["ignore_actions"] == 1


def test_a_level_that_is_none_is_named_by_file_and_row(engine, tmp_path):
    table = own_table(pa.array(STAMPS, pa.timestamp("us", "UTC")))
    for value, told in (("purchase", "'purchase': is not a level; allowed: "), (None, "is empty")):
        levels = ["view", "view", "click", value, "view", value]
        wrong = table.set_column(table.schema.get_field_index("level"), "level", pa.array(levels, pa.string()))
        pq.write_table(wrong, tmp_path / "log.parquet")
        with pytest.raises(DataError, match=rf"log.parquet: row 4, column 'level'.*{told}"):
            read(engine, tmp_path / "work", path=str(tmp_path / "log.parquet"))


def test_a_missing_column_is_named_with_the_nearest_one(duckdb_engine, tmp_path):
    table = own_table(SECONDS)
    pq.write_table(
        table.rename_columns(["user_id", "session_id", "query", "item", *table.column_names[4:]]),
        tmp_path / "a.parquet",
    )
    with pytest.raises(DataError, match=r"no column 'item_id'.*--columns item=item_id"):
        read(duckdb_engine, tmp_path / "work", path=str(tmp_path / "a.parquet"))
    pq.write_table(table.drop_columns(["user_id", "session_id"]), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="none of user_id, session_id, search_id"):
        read(duckdb_engine, tmp_path / "work", path=str(tmp_path / "a.parquet"))
    with pytest.raises(DataError, match="no column 'visitor'"):
        read(duckdb_engine, tmp_path / "work", path=str(tmp_path / "a.parquet"), columns={"visitor": "user_id"})


def test_numbers_in_the_wrong_unit_are_refused(duckdb_engine, tmp_path):
    pq.write_table(own_table([int(s * 1000) for s in SECONDS]), tmp_path / "log.parquet")
    with pytest.raises(DataError, match=r"row 1, column 'time'.*after the year 2200.*--set log.time_unit="):
        read(duckdb_engine, tmp_path / "work", path=str(tmp_path / "log.parquet"))
    (tmp_path / "log.csv").write_text(f"user_id,query,item_id,level,time\nu,tv,b,view,{SECONDS[0] * 1000:.0f}\n")
    with pytest.raises(DataError, match=r"line 2, column 'time'.*after the year 2200.*--set log.time_unit="):
        read(duckdb_engine, tmp_path / "work", path=str(tmp_path / "log.csv"))


BAD_CELLS = {
    "position, NaN": ("position", pa.float64(), float("nan"), {}, "is not a whole number"),
    "position, infinite": ("position", pa.float32(), float("-inf"), {}, "is not a whole number"),
    "position, a half": ("position", pa.float64(), 0.5, {}, "is not a whole number"),
    "position, too far": ("position", pa.int64(), 3_000_000_000, {}, "is a whole number of 2147483648 or more"),
    "position, too far above": ("position", pa.float64(), -3e9, {}, "is a whole number of 2147483648 or more"),
    "position, beyond 64 bits": ("position", pa.uint64(), 2**64 - 1, {}, "is a whole number of 2147483648 or more"),
    "time, NaN": ("time", pa.float64(), float("nan"), {}, "is not a time in seconds"),
    "time, infinite": ("time", pa.float64(), float("inf"), {}, "is not a time in seconds"),
    "time, long ago": ("time", pa.float64(), -9e18, {}, "is not a time in seconds"),
    "time, whole and long ago": ("time", pa.int64(), -(2**63), {}, "is not a time in seconds"),
    "time, other unit": ("time", pa.int64(), -(2**63), {"time_unit": "microseconds"}, "is not a time in microseconds"),
}


def with_cell(column, kind, value, row):
    """The own table with a column of this type, whose cell in a row (from 0) is the value."""
    log = own_table(pa.array([int(s) for s in SECONDS])).to_pydict()
    plain = {"position": [0, 1, None, 1, 2, 1], "time": [1, 2, 3, 4, 5, 6]}[column]
    cells = pa.array([value if place == row else cell for place, cell in enumerate(plain)], kind)
    return pa.table({**log, column: cells})


@pytest.mark.parametrize("name", BAD_CELLS)
def test_the_first_cell_that_is_no_number_is_named_by_file_and_row(duckdb_engine, tmp_path, name):
    column, kind, value, settings, problem = BAD_CELLS[name]
    pq.write_table(with_cell(column, kind, value, 4), tmp_path / "log.parquet")
    with pytest.raises(DataError, match=rf"log.parquet: row 5, column '{column}', value .*: {problem}"):
        read(duckdb_engine, tmp_path / "work", path=str(tmp_path / "log.parquet"), **settings)


def test_cells_that_are_no_numbers_are_found_on_every_engine(engine, tmp_path):
    for name in ("position, a half", "time, NaN"):
        column, kind, value, settings, problem = BAD_CELLS[name]
        pq.write_table(with_cell(column, kind, value, 2), tmp_path / "log.parquet")
        with pytest.raises(DataError, match=rf"row 3, column '{column}', value .*: {problem}"):
            read(engine, tmp_path / "work", path=str(tmp_path / "log.parquet"), **settings)


@pytest.mark.parametrize("value", ["1.5", "nan", "3000000000", "first"])
def test_a_bad_position_of_a_text_file_is_refused_as_in_parquet(duckdb_engine, tmp_path, value):
    (tmp_path / "log.csv").write_text(f"user_id,query,item_id,level,time,position\nu,tv,b,view,1,{value}\n")
    problem = "is a whole number of 2147483648" if value[0] == "3" else "is not a whole number"
    with pytest.raises(DataError, match=rf"log.csv: line 2, column 'position', value '{value}': {problem}"):
        read(duckdb_engine, tmp_path / "work", path=str(tmp_path / "log.csv"))


@pytest.mark.parametrize("kind", [pa.bool_(), pa.list_(pa.int64())])
@pytest.mark.parametrize("column", ["position", "time"])
def test_columns_of_another_type_are_refused(duckdb_engine, tmp_path, column, kind):
    log = {"user_id": ["u"], "query": ["tv"], "item_id": ["b"], "level": ["view"], "time": [1], "position": [0]}
    cell = True if kind == pa.bool_() else [1]
    pq.write_table(pa.table({**log, column: pa.array([cell], kind)}), tmp_path / "log.parquet")
    with pytest.raises(DataError, match=rf"log.parquet.*column '{column}': holds"):
        read(duckdb_engine, tmp_path / "work", path=str(tmp_path / "log.parquet"))


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_columns_may_change_places_and_levels_may_be_numbers(duckdb_engine, tmp_path, suffix):
    log = {"user_id": ["u", "u"], "query": ["b-1", "b-2"], "item_id": ["tv", "desk"], "level": [0, 5], "time": [1, 2]}
    path = tmp_path / f"log.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.table(log), path)
    else:
        rows = [",".join(log), *(",".join(str(cell) for cell in row) for row in zip(*log.values(), strict=True))]
        path.write_text("\n".join(rows))
    swapped = {"query": "item_id", "item_id": "query"}
    raw = read(duckdb_engine, tmp_path / "work", path=str(path), columns=swapped)
    assert rows_of(raw, "query", "item_id", "level") == [("desk", "b-2", "pay"), ("tv", "b-1", "view")]
    levels = {"0": "click", "5": "cart"}
    raw = read(duckdb_engine, tmp_path / "work", path=str(path), columns=swapped, levels=levels)
    assert rows_of(raw, "level") == [("cart",), ("click",)]
    with pytest.raises(DataError, match=r"(line|row) \d, column 'level', value '0': is not a level"):
        read(duckdb_engine, tmp_path / "work", path=str(path), columns=swapped, levels={"5": "cart"})


BAD_LOGS = {
    "a position": {"position": [0.0, 0.5]},
    "a place that is none": {"position": [float("nan"), 1.0]},
    "a time": {"time": [1.0, float("nan")]},
    "a time of another age": {"time": [-9e18, 1.0]},
    "a level": {"level": [0, 6]},
    "a type": {"position": [True, False]},
}


@pytest.mark.parametrize("name", BAD_LOGS)
def test_a_bad_cell_ends_the_command_with_one_line(tmp_path, capsys, name):
    log = {"user_id": ["u"] * 2, "query": ["tv"] * 2, "item_id": ["b"] * 2, "level": ["view"] * 2, "time": [1, 2]}
    pq.write_table(pa.table({**log, **BAD_LOGS[name]}), tmp_path / "log.parquet")
    argv = ["mine", "--log", str(tmp_path / "log.parquet"), "--out", str(tmp_path / "mined")]
    assert main(argv) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("[")]
    assert len(errors) == 1
    (column,) = BAD_LOGS[name]
    assert errors[0].startswith("error: ") and "log.parquet" in errors[0] and f"column '{column}'" in errors[0]
    assert not (tmp_path / "mined").exists()


def test_a_damaged_file_is_named(duckdb_engine, tmp_path):
    pq.write_table(own_table(SECONDS), tmp_path / "log.parquet")
    whole = (tmp_path / "log.parquet").read_bytes()
    (tmp_path / "log.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"log.parquet: row 1: no row can be read"):
        read(duckdb_engine, tmp_path / "work", path=str(tmp_path / "log.parquet"))
    (tmp_path / "log.csv").write_text("user_id,query,item_id,level,time\nu,tv,b,view,1\nu,tv,b\n")
    with pytest.raises(DataError, match=r"log.csv: line 3.*has 3 cells, the header has 5"):
        read(duckdb_engine, tmp_path / "work", path=str(tmp_path / "log.csv"))
    (tmp_path / "log.csv").write_text("user_id,query,item_id,level,time,position\nu,tv,b,view,1,first\n")
    with pytest.raises(DataError, match=r"log.csv: line 2, column 'position', value 'first'"):
        read(duckdb_engine, tmp_path / "work", path=str(tmp_path / "log.csv"))
    (tmp_path / "log.csv").write_text("user_id,query,item_id,level,time,position\n")
    with pytest.raises(DataError, match=r"log.csv: has no rows"):
        read(duckdb_engine, tmp_path / "work", path=str(tmp_path / "log.csv"))


@pytest.mark.parametrize("rows", [0, 1])
def test_no_row_and_one_row(duckdb_engine, tmp_path, rows):
    pq.write_table(own_table(SECONDS).slice(0, rows), tmp_path / "log.parquet")
    raw = read(duckdb_engine, tmp_path / "work", path=str(tmp_path / "log.parquet"))
    assert len(own_rows(raw)) == raw.notes["rows"] == rows


def test_folders_and_patterns_are_read_whole(duckdb_engine, tmp_path):
    table = own_table(SECONDS)
    for part in range(3):
        folder = tmp_path / "log" / f"day={part}"
        folder.mkdir(parents=True)
        pq.write_table(table.slice(part * 2, 2), folder / "part.parquet")
    for source in (str(tmp_path / "log"), str(tmp_path / "log" / "*" / "part.parquet")):
        assert own_rows(read(duckdb_engine, tmp_path / "work", path=source)) == EXPECTED_OWN
    with pytest.raises(DataError, match="no file matches"):
        read(duckdb_engine, tmp_path / "work", path=str(tmp_path / "log" / "*.csv"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no file of a known format"):
        read(duckdb_engine, tmp_path / "work", path=str(tmp_path / "empty"))


def test_files_of_one_log_may_have_different_columns(engine, tmp_path):
    log = own_table(SECONDS)
    for day, part in enumerate((log.slice(0, 2).drop_columns(["position", "session_id"]), log.slice(2))):
        path = tmp_path / "log" / f"day={day}" / "part.parquet"
        path.parent.mkdir(parents=True)
        pq.write_table(part, path)
    (tmp_path / "log" / "_SUCCESS").touch()
    raw = read(engine, tmp_path / "work", path=str(tmp_path / "log"))
    rest = [row for row in EXPECTED_OWN if row[-1] >= 2]
    assert own_rows(raw) == [
        rest[0],
        ("b-1", "view", None, "trail shoe", None, "u-1", 0),
        rest[1],
        ("b-2", "view", None, "trail shoe", None, "u-1", 1),
        rest[2],
    ]


def test_a_log_is_asked_for(duckdb_engine, tmp_path):
    with pytest.raises(DataError, match="no log is given"):
        read(duckdb_engine, tmp_path)
    with pytest.raises(DataError, match="queries and events are for UBI"):
        read(duckdb_engine, tmp_path, path="a", events="b")
    with pytest.raises(DataError, match="no such file"):
        read(duckdb_engine, tmp_path, path=str(tmp_path / "absent.parquet"))


def test_every_note_has_a_sentence():
    for name in NOTES:
        assert "3 " in sentence(name, 3) and "{" not in sentence(name, 3)
