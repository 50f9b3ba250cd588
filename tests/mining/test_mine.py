"""From a log to the artifact: the same bytes, updates, kills, broken input, both engines."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pertinent.artifact import open_artifact, write_artifact
from pertinent.cli import main
from pertinent.errors import ArtifactError, ConfigError, DataError, PertinentError
from pertinent.mining import derived, intake, updates
from pertinent.mining.run import TABLES, MineConfig, input_digests, mine, read_mined
from pertinent.mining.schema import DAY, LEVELS

QUERIES = ["red shoes", "無線 イヤホン", "waterproof hiking boots", "kabel", "usb c cable 2m"]
ITEMS = [f"item-{number}" for number in range(8)] + ["größe-ü"]
FIRST = 20_100
# Windows as short as the logs below, so that days expire.
SMALL: dict[str, Any] = {
    "clicks": {"days": 6},
    "queries": {"days": 6},
    "positions": {"days": 6},
    "hot": {"days": 6},
    "unlabeled": {"days": 6},
    "neighbors": {"days": 3, "min_exposures": 3, "min_ctr": 0.2, "keep": 3},
    "engine": {"type": "duckdb", "memory": "1GB", "threads": 2},
    "progress": False,
}

# Compiling code for each step takes most of the time on tables of a few rows.
SPARK = {
    "type": "spark",
    "memory": "1g",
    "partitions": 1,
    "master": "local[1]",
    "options": {
        "spark.sql.codegen.wholeStage": "false",
        "spark.sql.codegen.factoryMode": "NO_CODEGEN",
        "spark.sql.adaptive.enabled": "false",
        "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC",
    },
}

Rows = list[dict[str, Any]]


def day_rows(day: int, seed: int = 0, searches: int = 12) -> Rows:
    """A day of result pages, from a seed of its own."""
    chosen = random.Random(f"{seed} {day}")
    rows = []
    for number in range(searches):
        user, query = f"user-{chosen.randrange(4)}", chosen.choice(QUERIES)
        time = (FIRST + day) * DAY + number * 3_600_000_000
        for position, item in enumerate(chosen.sample(ITEMS, 4)):
            levels = range(1 + (chosen.randrange(1, 6) if chosen.random() < 0.6 / (1 + position) else 0))
            rows += [
                {
                    "user_id": user,
                    "session_id": f"{day}-{number}",
                    "search_id": f"{day}-{number}",
                    "query": query.upper() if chosen.random() < 0.2 else query,
                    "item_id": item,
                    "level": LEVELS[level],
                    "position": position,
                    "time": time + level * 1_000_000,
                }
                for level in levels
            ]
    return rows


def write_log(path: Path, rows: Rows) -> Path:
    columns = {name: pa.array([row[name] for row in rows]) for name in rows[0] if name != "time"}
    columns["time"] = pa.array([row["time"] for row in rows], pa.timestamp("us", tz="UTC"))
    pq.write_table(pa.table(columns), path)
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a log of ten days, a catalog, and what was mined from them. Not to be changed."""
    folder = tmp_path_factory.mktemp("made")
    write_log(folder / "log.parquet", [row for day in range(10) for row in day_rows(day)])
    lines = [f"{item},Title of {item}" for item in ITEMS]
    (folder / "items.csv").write_text("\n".join(["item_id,title", *lines, ""]), encoding="utf-8")
    with contextlib.chdir(folder):
        mine(settings())
    return folder


@pytest.fixture
def shop(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the log and the catalog, and the working folder of the test."""
    for name in ("log.parquet", "items.csv"):
        shutil.copy(made / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def settings(log: str | dict[str, Any] = "log.parquet", out: str = "mined", **changes: Any) -> MineConfig:
    log = {"path": log} if isinstance(log, str) else log
    return MineConfig.build({"log": log, "items": "items.csv", "out": out, **SMALL, **changes})


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rows_of(folder: Path, name: str) -> list[tuple[Any, ...]]:
    return [tuple(row.values()) for row in read_mined(folder, name).to_pylist()]


# ---------------------------------------------------------------- what is written


def test_the_artifact_has_every_table_in_the_order_of_its_keys(made: Path) -> None:
    artifact = open_artifact(made / "mined", "mined")
    for name, order in TABLES.items():
        table = read_mined(artifact.path, name)
        keys = [
            tuple(row[column] if row[column] is not None else 1 << 40 for column in order) for row in table.to_pylist()
        ]
        assert keys == sorted(keys), name
        assert len(keys) > 0, name
    assert artifact.metrics["days"] == 6
    assert artifact.metrics["last_day"] == "2025-01-21"
    assert sorted(path.name for path in made.iterdir()) == ["items.csv", "log.parquet", "mined"]


def test_clicked_pairs_say_all_that_is_known_of_them(made: Path, shop: Path) -> None:
    pairs = read_mined(made / "mined", "clicks").to_pylist()
    assert list(pairs[0]) == [
        *("query", "item_id", "level", "exposures", "clicks", "copies", "clear"),
        *("expected", "coec", "examined", "ctr_debiased", "frequent"),
    ]
    assert {row["query"] for row in pairs} <= set(QUERIES), "queries are normalized"
    assert all(row["copies"] == (0, 1, 1, 2, 3, 5)[row["level"]] for row in pairs)
    assert all(0 < row["clicks"] <= row["exposures"] for row in pairs)
    clear, frequent = sum(row["clear"] for row in pairs), [row for row in pairs if row["frequent"]]
    assert len(frequent) == -(-clear // 8)
    assert all(row["clear"] for row in frequent)
    mine(settings(out="rows", clicks={"days": 6, "form": "rows"}))
    assert len(read_mined("rows", "clicks")) == sum(row["copies"] for row in pairs)


def test_the_report_counts_pairs_once_whether_copies_are_written_as_rows_or_not(made: Path, shop: Path) -> None:
    pairs = read_mined(made / "mined", "clicks").to_pylist()
    for copies in ([1, 1, 2, 3, 5], [0, 1, 2, 3, 5]):  # a level without copies is counted before re-sampling too
        expected = [
            {
                "level": name,
                "pairs": sum(row["level"] == level for row in pairs),
                "copies": sum(row["level"] == level for row in pairs) * copies[level - 1],
            }
            for level, name in enumerate(LEVELS)
            if any(row["level"] == level for row in pairs)
        ]
        for form in ("copies", "rows"):
            numbers = mine(settings(out="counted", clicks={"days": 6, "form": form, "copies": copies})).json(
                "report.json"
            )
            assert numbers["pairs_by_level"] == expected
            assert numbers["summary"]["clicked_pairs"] == len(pairs)


def test_the_same_input_gives_the_same_bytes(made: Path, shop: Path) -> None:
    mine(settings(out="other"))
    assert content(shop / "other") == content(made / "mined")
    shuffled = [row for day in range(10) for row in day_rows(day)]
    random.Random(1).shuffle(shuffled)
    (shop / "log.parquet").unlink()
    write_log(shop / "log.parquet", shuffled)
    mine(settings(out="shuffled"))
    for name in TABLES:
        assert rows_of(shop / "shuffled", name) == rows_of(made / "mined", name), name


def test_judged_queries_are_no_candidates(shop: Path) -> None:
    (shop / "judged.csv").write_text('query,item_id\n"Shoes, RED",item-1\nkabel,item-2\n', encoding="utf-8")
    mine(settings(judged=["judged.csv"]))
    asked = set(read_mined("mined", "candidates")["query"].to_pylist())
    assert asked == set(QUERIES) - {"red shoes", "kabel"}
    report = open_artifact("mined").json("report.json")
    assert report["settings"]["judged queries"] == "2 given, 2 of the log left out of candidates"
    assert not any("judged" in warning for warning in report["warnings"])


def test_candidates_without_knowing_the_judged_queries_are_warned_about(
    shop: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = mine(settings())
    assert "no judged queries are given" in caplog.text
    assert any("no judged queries are given" in warning for warning in made.json("report.json")["warnings"])
    nothing = mine(settings(out="none", unlabeled={"days": 6, "head": 0, "torso": 0, "tail": 0}))
    assert not any("judged" in warning for warning in nothing.json("report.json")["warnings"])


def test_lists_may_be_ordered_by_debiased_clicks(made: Path, shop: Path) -> None:
    mine(settings(neighbors={**SMALL["neighbors"], "by": "debiased"}))
    debiased, plain = (rows_of(folder / "mined", "neighbors_item") for folder in (shop, made))
    assert {row[0] for row in debiased} == {row[0] for row in plain}
    assert debiased != plain


# ---------------------------------------------------------------- updates


def test_an_update_equals_a_run_over_all_days(shop: Path) -> None:
    first = [row for day in range(7) for row in day_rows(day)]
    again = [row for day in (5, 6) for row in day_rows(day, seed=9)]
    new = [row for day in (7, 8, 9) for row in day_rows(day)]
    write_log(shop / "first.parquet", first)
    write_log(shop / "new.parquet", again + new)
    write_log(shop / "all.parquet", [row for row in first if row["time"] < (FIRST + 5) * DAY] + again + new)
    mine(settings("first.parquet", "updated", update=True))
    mine(settings("new.parquet", "updated", update=True))
    mine(settings("all.parquet", "rebuilt"))
    for name in TABLES:
        assert (shop / "updated" / f"{name}.parquet").read_bytes() == (
            shop / "rebuilt" / f"{name}.parquet"
        ).read_bytes(), name
    assert {row[0] for row in rows_of(shop / "updated", "daily")} == set(range(FIRST + 4, FIRST + 10))


def test_any_cut_of_the_log_into_updates_gives_the_same_tables(made: Path, shop: Path) -> None:
    cuts = [0, *sorted(random.Random(4).sample(range(2, 10), 2)), 10]
    for start, end in pairwise(cuts):
        days = range(max(0, start - 1), end)  # the day before is sent again
        write_log(shop / "part.parquet", [row for day in days for row in day_rows(day)])
        mine(settings("part.parquet", update=True))
    for name in TABLES:
        assert rows_of(shop / "mined", name) == rows_of(made / "mined", name), (cuts, name)


def across_days() -> tuple[Rows, int]:
    """Five days with pages that are clicked on after midnight and paid for later; how many payments are late."""
    chosen = random.Random(1)
    rows, late = [row for day in range(5) for row in day_rows(day, seed=1, searches=5)], 0
    waits = [120_000_000, DAY, 2 * DAY, 2 * DAY + 1, 3 * DAY, 3 * DAY + 30_000_000]
    for number, wait in enumerate(2 * waits):
        page = {"user_id": f"user-{number % 4}", "session_id": f"n-{number}", "search_id": f"n-{number}"}
        page |= {"query": chosen.choice(QUERIES), "item_id": chosen.choice(ITEMS), "position": chosen.randrange(4)}
        time = (FIRST + 1 + number % 2) * DAY - 60_000_000  # a minute before midnight
        rows += [{**page, "level": "view", "time": time}, {**page, "level": "click", "time": time + 90_000_000}]
        rows.append({**page, "level": "pay", "position": None, "time": time + wait})
        late += wait > 2 * DAY
    return rows, late


def test_days_one_by_one_equal_the_whole_log_where_pages_cross_midnight_and_payments_are_late(shop: Path) -> None:
    rows, late = across_days()
    changes: dict[str, Any] = {"checks": {"late_days": 2}}
    write_log(shop / "all.parquet", rows)
    mine(settings("all.parquet", "whole", **changes))
    assert checks_of(shop / "whole")["late"] == late > 0
    found = 0
    for day in sorted({row["time"] // DAY for row in rows}):
        (shop / "day.parquet").unlink(missing_ok=True)
        write_log(shop / "day.parquet", [row for row in rows if row["time"] // DAY == day])
        mine(settings("day.parquet", update=True, **changes))
        found += checks_of(shop / "mined")["late"]
    assert found == late
    for name in TABLES:
        assert rows_of(shop / "mined", name) == rows_of(shop / "whole", name), name


def in_whole_and_in_parts(shop: Path, parts: list[Rows], **changes: Any) -> None:
    """Mine the parts one by one into "mined", and all at once into "whole"."""
    for number, rows in enumerate([*parts, [row for part in parts for row in part]]):
        write_log(shop / f"part-{number}.parquet", rows)
        whole = number == len(parts)
        mine(settings(f"part-{number}.parquet", "whole" if whole else "mined", update=not whole, **changes))


@pytest.mark.parametrize("newest", [False, True])
def test_a_search_that_began_with_dropped_rows_is_as_old_in_an_update(shop: Path, newest: bool) -> None:
    view = {**day_rows(1)[0], "search_id": "s", "level": "view", "item_id": "unknown"}
    pay = {**view, "item_id": ITEMS[0], "level": "pay", "time": view["time"] + 3 * DAY + 1}
    first = day_rows(0, searches=5) + [view] + ([] if newest else day_rows(2))
    in_whole_and_in_parts(shop, [first, [*day_rows(4), pay]], checks={"late_days": 2})
    assert checks_of(shop / "whole")["late"] == checks_of(shop / "mined")["late"] == 1
    for name in TABLES:
        assert rows_of(shop / "mined", name) == rows_of(shop / "whole", name), name


def test_a_dropped_row_of_an_earlier_day_takes_nothing_from_that_day_in_an_update(shop: Path) -> None:
    page = {**day_rows(1)[0], "search_id": "s", "item_id": ITEMS[0]}
    midnight = (FIRST + 2) * DAY
    view, click, pay = (
        {**page, "level": level, "time": midnight + wait}
        for level, wait in (("view", -5), ("click", 5), ("pay", 2 * DAY))
    )
    stray = {**day_rows(1)[0], "search_id": "t", "item_id": "unknown"}
    parts = [[*day_rows(0), *day_rows(1), view], [*day_rows(2), stray, click], [*day_rows(4), pay]]
    in_whole_and_in_parts(shop, parts, checks={"late_days": 2, "clicks_without_view": "refuse"})
    assert checks_of(shop / "whole")["late"] == checks_of(shop / "mined")["late"] == 1
    for name in TABLES:
        assert rows_of(shop / "mined", name) == rows_of(shop / "whole", name), name


@pytest.mark.parametrize("action", ["refuse", "keep"])
def test_a_click_after_midnight_is_no_click_without_view_in_an_update_either(shop: Path, action: str) -> None:
    page = {**day_rows(0)[0], "search_id": "s"}
    midnight = (FIRST + 1) * DAY
    view, click = ({**page, "level": level, "time": midnight + wait} for level, wait in (("view", -5), ("click", 5)))
    changes = {"checks": {"clicks_without_view": action}}
    in_whole_and_in_parts(shop, [[*day_rows(0), view], [*day_rows(1), click]], **changes)
    assert checks_of(shop / "whole")["clicks_without_view"] == checks_of(shop / "mined")["clicks_without_view"] == 0
    for name in TABLES:
        assert rows_of(shop / "mined", name) == rows_of(shop / "whole", name), name
    write_log(shop / "alone.parquet", [*day_rows(2), {**click, "search_id": "t", "time": click["time"] + DAY}])
    with pytest.raises(DataError, match="1 rows are clicked") if action == "refuse" else contextlib.nullcontext():
        mine(settings("alone.parquet", update=True, **changes))
        assert checks_of(shop / "mined")["clicks_without_view"] == 1


def test_search_ids_that_are_used_again_are_warned_about(shop: Path) -> None:
    days = [0, 4, 5, 9]
    rows = [{**row, "search_id": row["search_id"].partition("-")[2]} for day in days for row in day_rows(day)]
    write_log(shop / "again.parquet", rows)
    mine(settings("again.parquet"))
    warnings = json.loads((shop / "mined" / "report.json").read_text())["warnings"]
    late = checks_of(shop / "mined")["late"]
    told = (
        f"{late:,} of {len(rows):,} rows are more than 7 days after the first event of their search (drop): if search"
    )
    assert [text.startswith(told) for text in warnings if "unique in the whole log" in text] == [True]
    write_log(shop / "next.parquet", [row | {"time": row["time"] + 9 * DAY} for row in rows[-9:]])
    with pytest.raises(DataError, match="if search ids begin anew in each session or day"):
        mine(settings("next.parquet", update=True))


def test_an_artifact_that_does_not_know_its_searches_is_mined_again(made: Path, shop: Path) -> None:
    tables = {name: (made / "mined" / name).read_bytes() for name in ("days.parquet", "daily.parquet", "report.json")}
    with write_artifact("mined", "mined", open_artifact(made / "mined").config) as folder:
        for name, data in tables.items():
            (folder / name).write_bytes(data)
    with pytest.raises(ConfigError, match=r"earlier version.*mine the whole log again without update"):
        mine(settings(update=True))


def test_a_day_sent_again_in_part_is_told(made: Path, shop: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.copytree(made / "mined", shop / "mined")
    write_log(shop / "part.parquet", day_rows(9)[:5])
    updated = mine(settings("part.parquet", update=True))
    assert "2025-01-21 with 5 instead of" in caplog.text
    assert any("whole days" in warning for warning in updated.json("report.json")["warnings"])
    assert updated.metrics["warnings"] > 0


def at(rows: Rows, day: int) -> Rows:
    """The rows, moved to another day."""
    return [{**row, "time": (FIRST + day) * DAY + row["time"] % DAY} for row in rows]


def checks_of(folder: Path) -> dict[str, int]:
    return {entry["check"]: entry["rows"] for entry in json.loads((folder / "checks.json").read_text())["checks"]}


def test_one_event_with_a_wrong_clock_shifts_no_window(made: Path, shop: Path) -> None:
    days = [row for day in range(10) for row in day_rows(day, searches=20)]
    mine(settings(write_log(shop / "right.parquet", days).name, "right"))
    mine(settings(write_log(shop / "stray.parquet", days + at(days[:1], 25)).name, "stray"))
    assert checks_of(shop / "stray")["impossible_times"] == 1
    for name in TABLES:
        assert rows_of(shop / "stray", name) == rows_of(shop / "right", name), name
    for part, rows in {"first": days, "next": at(days[:1], 25) + day_rows(9, searches=20)}.items():
        mine(settings(write_log(shop / f"{part}.parquet", rows).name, update=True))
    assert checks_of(shop / "mined")["impossible_times"] == 1
    for name in TABLES:
        assert rows_of(shop / "mined", name) == rows_of(shop / "right", name), name


def test_an_update_that_would_expire_most_days_is_refused(made: Path, shop: Path) -> None:
    shutil.copytree(made / "mined", shop / "mined")
    before = content(shop / "mined")
    write_log(shop / "ahead.parquet", at(day_rows(0), 13))
    with pytest.raises(DataError, match=r"2025-01-25 to 2025-01-25 would expire 4 of the 6 days.*checks\.latest"):
        mine(settings("ahead.parquet", update=True))
    assert content(shop / "mined") == before
    mine(settings("ahead.parquet", update=True, checks={"latest": "2025-01-25"}))
    assert [row[0] - FIRST for row in rows_of(shop / "mined", "days")] == [8, 9, 13]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"checks": {"bots": "keep"}}, "checks.bots was drop, is keep"),
        ({"sessions": {"gap_minutes": 5}}, "sessions.gap_minutes was 30, is 5"),
        ({"sequences": {"min_level": "order"}}, "sequences.min_level was click, is order"),
        ({"log": {"path": "log.parquet", "position_base": 1}}, "log.position_base was 0, is 1"),
        ({"log": {"path": "log.parquet", "levels": {"hit": "click"}}}, "log.levels was {}, is {'hit': 'click'}"),
        ({"hot": {"days": 7}}, "the longest window was 6 days, is 7"),
    ],
)
def test_an_update_with_other_counting_is_refused(made: Path, shop: Path, change: Any, told: str) -> None:
    shutil.copytree(made / "mined", shop / "mined")
    with pytest.raises(ConfigError) as error:
        mine(settings(update=True, **change))
    assert told in str(error.value)
    assert "mine the whole log again" in str(error.value)
    assert content(shop / "mined") == content(made / "mined")


def test_what_does_not_shape_days_may_change_from_update_to_update() -> None:
    before = settings()
    free = {"log": {"path": "b", "time_unit": "seconds"}, "checks": {"latest": "2025-01-21"}, "judged": ["j.csv"]}
    updates._refuse_others(settings(**free, hot={"days": 2}, neighbors={"days": 2, "keep": 9}), before)


def test_a_guessed_position_base_must_be_that_of_earlier_days(made: Path, shop: Path) -> None:
    report = json.loads((made / "mined" / "report.json").read_text(encoding="utf-8"))
    with write_artifact("base", "mined", {}) as folder:
        (folder / "report.json").write_text(json.dumps(report | {"notes": {"rows": 9, "position_base:web": 1}}))
    base, foreign = open_artifact("base"), {"path": "log.jsonl", "format": "ubi"}
    config = MineConfig.build({"log": foreign, "out": "x"})
    assert updates.same_positions(config, base, {"rows": 3}) == {"rows": 3, "position_base:web": 1}
    same = {"position_base:web": 1, "position_base:app": 0}
    assert updates.same_positions(config, base, same) == same
    with pytest.raises(ConfigError, match=r"'web' seem to count from 0 .* counted from 1"):
        updates.same_positions(config, base, {"position_base:web": 0})
    said = MineConfig.build({"log": {**foreign, "position_base": 0}, "out": "x"})
    assert updates.same_positions(said, base, {"position_base:web": 0}) == {"position_base:web": 0}


def test_an_update_after_a_stop_between_two_renames_goes_on_from_what_was_there(
    made: Path, shop: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(made / "mined", shop / ".mined.77.old")
    write_log(shop / "next.parquet", day_rows(10))
    mine(settings("next.parquet", update=True))
    assert "taken back from .mined.77.old" in caplog.text
    assert [row[0] - FIRST for row in rows_of(shop / "mined", "days")] == list(range(5, 11))
    shutil.rmtree(shop / "mined")
    with write_artifact(".mined.78.old", "model", {}) as folder:
        (folder / "weights").write_text("x")
    with pytest.raises(ArtifactError, match="of kind 'model'"):
        mine(settings("next.parquet", update=True))
    assert not (shop / "mined").exists()


def test_events_too_old_to_be_kept_are_counted(made: Path, shop: Path, caplog: pytest.LogCaptureFixture) -> None:
    expired = {entry["check"]: entry for entry in open_artifact(made / "mined").json("checks.json")["checks"]}[
        "expired"
    ]
    assert expired["rows"] == sum(len(day_rows(day)) for day in range(4))
    assert expired["example"] == f"{len(day_rows(3))} of 2025-01-15; 2025-01-16 is the first day kept"
    shutil.copytree(made / "mined", shop / "mined")
    write_log(shop / "old.parquet", day_rows(2))
    mine(settings("old.parquet", update=True))
    assert "all days of this log (2025-01-14 to 2025-01-14) are before 2025-01-16" in caplog.text
    assert checks_of(shop / "mined")["expired"] == len(day_rows(2))
    assert rows_of(shop / "mined", "days") == rows_of(made / "mined", "days")


# ---------------------------------------------------------------- small, empty, hostile


def test_a_log_in_which_nobody_searched_says_that_and_nothing_else(
    shop: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_log(shop / "silent.parquet", [{**row, "query": ""} for row in day_rows(0)])
    made = mine(settings("silent.parquet"))
    events = made.metrics["events"]
    told = f"none of {events:,} events has a query: only sequences are mined, .*; if the log has .* name its column"
    assert re.search(told, caplog.text)
    assert "no neighbors: no item was shown for a query" in caplog.text
    assert "min_exposures" not in caplog.text
    assert made.metrics["users_with_sequence"] > 0
    assert made.metrics["queries"] == 0


def test_a_small_log_is_warned_about_in_log_and_report(shop: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = mine(settings(neighbors={"min_exposures": 100}))
    assert "few neighbors" in caplog.text
    assert "neighbors.min_exposures=" in caplog.text
    assert "few neighbors" in made.file("report.html").read_text(encoding="utf-8")
    assert len(read_mined("mined", "neighbors_query")) == 0


def test_one_event_is_a_log(shop: Path) -> None:
    write_log(shop / "one.parquet", day_rows(3)[:1])
    made = mine(settings("one.parquet", neighbors={"min_exposures": 1, "min_ctr": 0}))
    assert made.metrics["events"] == 1
    assert rows_of(shop / "mined", "neighbors_query")[0][1:5] == (0, day_rows(3)[0]["item_id"], 1, 0)


def test_a_log_of_which_nothing_is_left_is_refused(shop: Path) -> None:
    (shop / "items.csv").write_text("item_id,title\nother,Other\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"no event that passes the checks.*unknown_items"):
        mine(settings())
    assert sorted(path.name for path in shop.iterdir()) == ["items.csv", "log.parquet"]


def test_texts_of_the_log_cannot_reach_the_page(shop: Path) -> None:
    rows = day_rows(0)
    rows[0] |= {"query": "<script>alert(1)</script>", "item_id": "no such <b>item</b>"}
    write_log(shop / "hostile.parquet", rows)
    made = mine(settings("hostile.parquet"))
    page = made.file("report.html").read_text(encoding="utf-8")
    assert "<script>" not in page
    assert "<b>item" not in page
    assert "&lt;b&gt;item" in page


# ---------------------------------------------------------------- what goes wrong


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    for place in range(len(data) // 3, len(data) // 3 + 40):
        data[place] ^= 0xFF
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize("damage", [flipped, cut])
def test_a_damaged_parquet_file_is_named_and_replaces_nothing(
    made: Path, shop: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], None]
) -> None:
    shutil.copytree(made / "mined", shop / "mined")
    before = content(shop)
    damage(shop / "log.parquet")
    assert main(["mine", "--log", "log.parquet", "--items", "items.csv", "--out", "mined", "--json"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "log.parquet: row 1: " in error
    assert len(error.splitlines()) == 1
    (shop / "log.parquet").write_bytes(before["log.parquet"])
    assert content(shop) == before


def test_a_broken_json_line_is_named_by_file_and_line(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [json.dumps({**row, "time": row["time"] // 1_000_000}) for row in day_rows(0)]
    lines[16] = lines[16][:-9]
    (shop / "log.jsonl").write_text("\n".join(lines), encoding="utf-8")
    assert main(["mine", "--log", "log.jsonl", "--items", "items.csv", "--out", "mined", "--json"]) == 2
    error = capsys.readouterr().err
    assert "log.jsonl" in error
    assert "line 17" in error
    assert len(error.splitlines()) == 1
    assert not (shop / "mined").exists()
    assert not (shop / "mined.work").exists()


def test_a_query_and_a_title_of_a_megabyte_are_one_line_of_error(
    made: Path, shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(made / "mined", shop / "mined")
    rows = day_rows(0)
    (shop / "items.csv").write_text("item_id,title\nb,Cup\na," + "x" * 1_000_000 + "\n", encoding="utf-8")
    write_log(shop / "log.parquet", [*rows[:2], {**rows[2], "query": "ü" * 100_000}])
    before = content(shop)
    command = ["mine", "--items", "items.csv", "--out", "mined", "--json", "--log"]
    assert main([*command, "log.parquet"]) == 2
    assert "error: items.csv: line 3, column 'title', value 'xxxx" in (error := capsys.readouterr().err)
    assert "has 1,000,000 characters, 100,000 are allowed; shorten it" in error
    assert content(shop) == before
    shutil.copy(made / "items.csv", shop / "items.csv")
    with (shop / "log.jsonl").open("w", encoding="utf-8") as file:
        for row in [*rows[:2], {**rows[2], "query": "ü" * 1_000_000}]:
            file.write(json.dumps({**row, "time": row["time"] // 1_000_000}) + "\n")
    before = content(shop)
    assert main([*command, "log.jsonl"]) == 2
    assert "error: log.jsonl: line 3, column 'query', value 'üüüü" in (error := capsys.readouterr().err)
    assert "has 1,000,000 characters, 100,000 are allowed; shorten it" in error
    assert len(error.splitlines()) == 1
    assert content(shop) == before


def test_a_missing_log_is_one_line(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mine", "--log", "logg.parquet", "--out", "mined"]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(errors) == 1
    assert "logg.parquet" in errors[0]


def test_only_an_artifact_of_its_kind_is_replaced(shop: Path) -> None:
    with write_artifact("model", "model", {}) as folder:
        (folder / "weights").write_text("x")
    with pytest.raises(ArtifactError, match="'mined' is needed"):
        mine(settings(out="model", update=True))
    (shop / "mined.work").mkdir()
    (shop / "mined.work" / "thesis.txt").write_text("mine")
    with pytest.raises(ArtifactError, match="not the work folder"):
        mine(settings())
    assert (shop / "mined.work" / "thesis.txt").read_text() == "mine"


def test_two_runs_into_one_place_are_refused(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = intake.read_log

    def beside(*arguments: Any) -> Any:
        with pytest.raises(ArtifactError, match="another run"):
            mine(settings())
        return real(*arguments)

    monkeypatch.setattr(intake, "read_log", beside)
    mine(settings())


def test_an_unknown_table_is_said(made: Path) -> None:
    with pytest.raises(ConfigError, match="neighbors_query"):
        read_mined(made / "mined", "neighbours")


# ---------------------------------------------------------------- kills


def test_a_run_goes_on_after_its_last_complete_step(made: Path, shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(derived, "_candidates", interrupted)
        mine(settings())
    assert not (shop / "mined").exists()
    with monkeypatch.context() as patch:
        for module, name in (
            *((intake, "read_log"), (intake, "check_events"), (updates, "daily_counts")),
            *((derived, "fit_position_model"), (derived, "user_sequences")),
        ):
            patch.setattr(module, name, interrupted)
        mine(settings())
    assert content(shop / "mined") == content(made / "mined")
    assert not (shop / "mined.work").exists()


@pytest.mark.parametrize("change", ["settings", "log"])
def test_other_settings_or_another_log_begin_anew(
    made: Path, shop: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    if change == "log":
        write_log(shop / "log.parquet", day_rows(8, seed=5))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(derived, "_candidates", interrupted)
        mine(settings(neighbors={"keep": 1}) if change == "settings" else settings())
    shutil.copy(made / "log.parquet", shop / "log.parquet")
    mine(settings())
    assert content(shop / "mined") == content(made / "mined")


def test_each_file_of_a_folder_and_the_lexicon_is_an_input(shop: Path) -> None:
    for day in (1, 2):
        (shop / f"logs/day={day}").mkdir(parents=True)
        write_log(shop / f"logs/day={day}/part-0.parquet", day_rows(day))
    (shop / "logs" / "_SUCCESS").write_text("")
    with write_artifact("words", "lexicon", {}) as folder:
        (folder / "words.json").write_text("[]")
    made = {}
    for source in ("logs", "logs/**/*.parquet", "logs/*/part-0.parquet"):
        made[source] = input_digests(settings(source, items=None, lexicon="words"))
        assert list(made[source]) == ["log/day=1/part-0.parquet", "log/day=2/part-0.parquet", "lexicon"]
        assert made[source]["lexicon"] == open_artifact("words").version
    write_log(shop / "logs/day=1/part-0.parquet", day_rows(3))
    for source, before in made.items():
        assert input_digests(settings(source, items=None, lexicon="words")) != before
    assert input_digests(settings("s3://logs/day=1/*.parquet", items=None)) == {}


def test_an_engine_without_memory_names_the_setting_and_goes_on_with_more(
    made: Path, shop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> Any:
        raise duckdb.OutOfMemoryException("could not allocate block of size 256.0 KiB")

    for module, name in ((intake, "check_events"), (derived, "_candidates")):
        with monkeypatch.context() as patch, pytest.raises(PertinentError, match=r"engine\.memory=1GB .*256.0 KiB"):
            patch.setattr(module, name, full)
            mine(settings())
    with monkeypatch.context() as patch:
        patch.setattr(updates, "daily_counts", full)
        mine(settings(engine={"type": "duckdb", "memory": "2GB", "threads": 1}))
    for name in TABLES:
        assert rows_of(shop / "mined", name) == rows_of(made / "mined", name), name


def start(shop: Path, *arguments: str) -> subprocess.Popen[str]:
    flags = ["--log", "log.parquet", "--items", "items.csv", "--set", "neighbors.min_exposures=3", *arguments]
    return subprocess.Popen(
        [sys.executable, "-m", "pertinent", "mine", *flags],
        cwd=shop,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def finish(shop: Path, *arguments: str) -> None:
    with start(shop, *arguments) as process:
        told = process.communicate(timeout=300)[1]
    assert process.returncode == 0, told


def kill_at(shop: Path, step: int, *arguments: str) -> None:
    with start(shop, *arguments) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith(f"[{step}/"):
                process.send_signal(signal.SIGKILL)
                break
    assert process.returncode == -signal.SIGKILL


@pytest.mark.slow
def test_a_kill_at_any_step_leaves_the_old_whole_and_the_next_run_completes(shop: Path) -> None:
    out = ("--out", "mined")
    old_log, new_log = shop / "old.parquet", (shop / "log.parquet").read_bytes()
    write_log(old_log, [row for day in range(4) for row in day_rows(day, seed=3)])
    shutil.copy(old_log, shop / "log.parquet")
    finish(shop, *out)
    before = content(shop / "mined")
    (shop / "log.parquet").write_bytes(new_log)
    for step in (1, 2, 5, 10, 12):
        kill_at(shop, step, *out)
        open_artifact(shop / "mined", "mined")
        assert content(shop / "mined") == before, step
    finish(shop, *out)
    finish(shop, "--out", "undisturbed")
    assert content(shop / "mined") == content(shop / "undisturbed")
    assert not (shop / "mined.work").exists()


@pytest.mark.slow
def test_a_kill_during_an_update_leaves_the_old_whole_and_the_next_run_completes(made: Path, shop: Path) -> None:
    write_log(shop / "log.parquet", [row for day in range(4) for row in day_rows(day, seed=3)])
    finish(shop, "--out", "mined")
    shutil.copytree(shop / "mined", shop / "undisturbed")
    before = content(shop / "mined")
    (shop / "log.parquet").unlink()
    write_log(shop / "log.parquet", [row for day in range(3, 6) for row in day_rows(day)])
    for step in (2, 12):
        kill_at(shop, step, "--out", "mined", "--update")
        open_artifact(shop / "mined", "mined")
        assert content(shop / "mined") == before, step
    finish(shop, "--out", "mined", "--update")
    finish(shop, "--out", "undisturbed", "--update")
    assert content(shop / "mined") == content(shop / "undisturbed")
    assert [row[0] - FIRST for row in rows_of(shop / "mined", "days")] == list(range(6))


# ---------------------------------------------------------------- the command, and Spark


def test_flags_alone_are_enough(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["mine", "--log", "log.parquet", "--items", "items.csv", "--out", "mined"]
    assert main(argv) == 0
    captured = capsys.readouterr()
    assert "report: mined/report.html" in captured.out
    assert "[1/12] log read and checked" in captured.err
    assert open_artifact("mined", "mined").metrics["days"] == 10


def test_columns_of_other_names_are_mapped(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = pq.read_table(shop / "log.parquet").rename_columns(
        ["uid" if name == "user_id" else name for name in pq.read_schema(shop / "log.parquet").names]
    )
    pq.write_table(table, shop / "other.parquet")
    assert main(["mine", "--log", "other.parquet", "--columns", "uid=user_id", "--out", "mined", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"]["users_with_sequence"] == 4


def test_the_engine_may_be_set_by_one_of_its_parts() -> None:
    config = MineConfig.build({"log": {"path": "x"}, "out": "y", "engine": {"memory": "2GB"}})
    assert config.engine.type == "duckdb"
    assert config.kept_days == 365
    with pytest.raises(ConfigError, match="memory"):
        MineConfig.build({"log": {"path": "x"}, "out": "y", "engine": {"memory": "2"}})


def exact(row: tuple[Any, ...]) -> tuple[Any, ...]:
    """A row with its fractions to ten digits: Spark's sums of exponents may differ in the last."""
    return tuple(float(f"{value:.10g}") if isinstance(value, float) else value for value in row)


@pytest.mark.spark
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_spark_gives_the_same_tables_in_two_updates(made: Path, shop: Path) -> None:
    pytest.importorskip("pyspark", reason="PySpark is not installed")
    if shutil.which("java") is None:
        pytest.skip("Spark needs a Java runtime")
    for part, days in (("first", range(8)), ("next", range(7, 10))):
        write_log(shop / f"{part}.parquet", [row for day in days for row in day_rows(day)])
        parts = {**settings(f"{part}.parquet", "spark", update=True).plain(), "engine": SPARK}
        (shop / f"{part}.json").write_text(json.dumps(parts), encoding="utf-8")
    code = "from pertinent.mining.run import MineConfig, mine\nfor part in ('first', 'next'):\n"
    command = [sys.executable, "-c", code + "    mine(MineConfig.load(part + '.json'))"]
    done = subprocess.run(command, cwd=shop, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stderr
    open_artifact(shop / "spark", "mined")
    for name in TABLES:
        theirs, ours = rows_of(shop / "spark", name), rows_of(made / "mined", name)
        assert [row[:2] for row in theirs] == [row[:2] for row in ours], name
        assert [exact(row) for row in theirs] == [exact(row) for row in ours], name
    theirs, ours = open_artifact(shop / "spark").metrics, open_artifact(made / "mined").metrics
    of_the_last_log = {"checks_found", "warnings"}
    assert {name: theirs[name] for name in theirs.keys() - of_the_last_log} == {
        name: ours[name] for name in ours.keys() - of_the_last_log
    }
