from __future__ import annotations

import inspect
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pertinent.artifact import open_artifact, write_artifact
from pertinent.data.neighbors import ExampleNeighbors, NeighborHistory, NeighborLists, read_exposures, slot_table
from pertinent.errors import ArtifactError, DataError

TITLES = {"a": "Tea pot", "b": "Café mug", "c": "無線 earbuds", "d": "Tea cup"}
LISTS = NeighborLists(
    10, {"tea": ["a", "d", "x", "b"], "mug": ["b"]}, {"a": ["tea", "teapot"], "b": ["mug", "tea"], "d": ["tea"]}
)


def history(*lists: NeighborLists, keep: int = 20) -> NeighborHistory:
    return NeighborHistory(lists or (LISTS,), TITLES, keep)


def test_a_pair_is_never_in_its_own_lists() -> None:
    for query in ("tea", "mug", "TEA ", "teapot", "none"):
        for item in TITLES:
            items, queries = history().of(query, item)
            assert item not in items
            assert query.strip().lower() not in queries


def test_the_next_ones_move_up() -> None:
    assert history(keep=2).of("tea", "a") == (["d", "b"], ["teapot"])
    assert history(keep=1).of("tea", "c") == (["a"], [])


def test_items_without_a_title_are_no_neighbors() -> None:
    assert history().of("tea", "c")[0] == ["a", "d", "b"]


def test_no_list_that_knows_the_day_of_an_example_is_read() -> None:
    early = NeighborLists(5, {"tea": ["a"]}, {"c": ["tea"]})
    late = NeighborLists(8, {"tea": ["b"]}, {"c": ["mug"]})
    both = history(late, early)
    assert both.of("tea", "c", day=4) == ([], [])
    assert both.of("tea", "c", day=5) == (["a"], [])
    assert both.of("tea", "c", day=7) == (["a"], [])
    assert both.of("tea", "c", day=8) == (["b"], ["mug"])
    assert both.of("tea", "c") == (["b"], ["mug"])


def test_there_is_no_other_way_to_the_lists() -> None:
    public = {name for name, _ in inspect.getmembers(NeighborHistory) if not name.startswith("_")}
    assert public == {"of", "examples", "open"}
    assert {name for name in vars(history()) if not name.startswith("_")} == {"titles", "keep"}


def test_examples_are_rows_of_distinct_texts() -> None:
    found = history().examples(["tea", "Tea", "none"], ["a", "c", "a"])
    assert isinstance(found, ExampleNeighbors)
    rows = zip(found.items.slots, found.items.counts, strict=True)
    assert [[found.items.texts[slot] for slot in row[:count]] for row, count in rows] == [
        ["Tea cup", "Café mug"],
        ["Tea pot", "Tea cup", "Café mug"],
        [],
    ]
    assert found.queries.counts.tolist() == [1, 0, 2]
    assert found.aware.tolist() == [True, True, True]
    assert len(found) == 3


def test_no_examples_and_no_lists() -> None:
    assert len(history().examples([], [])) == 0
    nothing = history(NeighborLists(1, {}, {})).examples(["tea"], ["a"])
    assert nothing.aware.tolist() == [False]
    assert nothing.items.texts == ()
    assert NeighborHistory([], TITLES, 3).of("tea", "a") == ([], [])
    assert slot_table([], 2).slots.shape == (0, 2)


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(DataError, match="1 queries, 2 items"):
        history().examples(["tea"], ["a", "b"])
    with pytest.raises(DataError, match="same day"):
        history(LISTS, LISTS)
    with pytest.raises(DataError, match="keep"):
        history(keep=0)


def write_mined(folder: Path, parts: bool) -> Path:
    tables = {
        "days": [{"day": 9}, {"day": 8}],
        "neighbors_query": [
            {"query": "tea", "rank": 1, "neighbor": "b"},
            {"query": "tea", "rank": 0, "neighbor": "a"},
            {"query": "mug", "rank": 0, "neighbor": "b"},
        ],
        "neighbors_item": [{"item_id": "a", "rank": 0, "neighbor": "tea"}],
    }
    with write_artifact(folder, "mined", {}) as aside:
        for name, rows in tables.items():
            path = aside / f"{name}.parquet"
            if parts:
                path.mkdir()
                for number, row in enumerate(rows):
                    pq.write_table(pa.Table.from_pylist([row]), path / f"part-{number}.parquet")
            else:
                pq.write_table(pa.Table.from_pylist(rows), path)
    return folder


@pytest.mark.parametrize("parts", [False, True])
def test_a_mined_artifact_is_read_from_either_engine(tmp_path: Path, parts: bool) -> None:
    opened = NeighborHistory.open(write_mined(tmp_path / "mined", parts), TITLES, 20)
    assert opened.of("tea", "d") == (["a", "b"], [])
    assert opened.of("tea", "d", day=10) == (["a", "b"], [])
    assert opened.of("tea", "d", day=9) == ([], [])
    assert np.array_equal(opened.examples(["mug"], ["a"]).queries.counts, [1])


def test_a_catalog_of_another_shop_and_another_folder_are_refused(tmp_path: Path) -> None:
    folder = write_mined(tmp_path / "mined", parts=False)
    with pytest.raises(DataError, match="none of the 2 neighbor items has a title"):
        NeighborHistory.open(folder, {"zzz": "x"}, 20)
    with write_artifact(tmp_path / "other", "index", {}):
        pass
    with pytest.raises(ArtifactError, match="'mined' is needed"):
        NeighborHistory.open(tmp_path / "other", TITLES, 20)


@pytest.mark.parametrize("parts", [1, 3])
def test_exposures_are_summed_over_days_and_part_files(parts: int, tmp_path: Path) -> None:
    rows = [("tea", "a", 5), ("tea", "b", 2), ("日本語", "a", 1), ("tea", "a", 4)]
    table = pa.table(dict(zip(("query", "item_id", "exposures"), map(list, zip(*rows, strict=True)), strict=True)))
    with write_artifact(tmp_path / "mined", "mined", {}) as folder:
        if parts == 1:
            pq.write_table(table, folder / "daily.parquet")
        else:
            (folder / "daily.parquet").mkdir()
            for number, (start, size) in enumerate(((0, 2), (2, 0), (2, 2))):
                pq.write_table(table.slice(start, size), folder / "daily.parquet" / f"part-{number:05}.parquet")
    found = read_exposures(open_artifact(tmp_path / "mined"))
    assert found == ({"tea": 11, "日本語": 1}, {"a": 10, "b": 2})
