from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pertinent.records import MODEL_INPUTS, Item, Judgment, PairScorer, TokenBatch, TokenRows, by_query

ROWS = st.lists(st.lists(st.integers(0, 30_000), max_size=6), max_size=8)


def rows_of(lists: list[list[int]], classes: bool = False) -> TokenRows:
    ids = np.array([token for row in lists for token in row], dtype=np.int32)
    offsets = np.cumsum([0, *map(len, lists)]).astype(np.int64)
    truncated = np.array([len(row) > 3 for row in lists], dtype=bool)
    return TokenRows(ids, offsets, truncated, (ids % 7).astype(np.int8) if classes else None)


@given(ROWS, st.data(), st.booleans())
def test_taken_rows_are_the_rows(lists: list[list[int]], data: st.DataObject, classes: bool) -> None:
    rows = rows_of(lists, classes)
    places = st.lists(st.integers(0, len(lists) - 1), max_size=10) if lists else st.just([])
    chosen = data.draw(places)
    taken = rows.take(np.array(chosen, dtype=np.int64))
    assert len(taken) == len(chosen)
    assert [taken.row(i).tolist() for i in range(len(taken))] == [lists[place] for place in chosen]
    assert taken.truncated.tolist() == [len(lists[place]) > 3 for place in chosen]
    if classes:
        assert taken.term_classes is not None
        assert taken.term_classes.tolist() == [token % 7 for place in chosen for token in lists[place]]
    else:
        assert taken.term_classes is None


@given(ROWS)
def test_lengths_add_up(lists: list[list[int]]) -> None:
    rows = rows_of(lists)
    assert len(rows) == len(lists)
    assert rows.lengths.tolist() == [len(row) for row in lists]


def test_batch_gives_the_model_its_inputs_by_name() -> None:
    zeros = np.zeros((2, 5), dtype=np.int64)
    batch = TokenBatch(zeros, zeros > 0, zeros, zeros, zeros, query_length=2)
    assert len(batch) == 2
    assert tuple(batch.inputs()) == MODEL_INPUTS
    assert all(array.shape == (2, 5) for array in batch.inputs().values())


@given(st.lists(st.sampled_from(["a", "b", "", "é", "無線"]), max_size=12))
def test_by_query_is_a_partition_in_order_of_first_appearance(queries: list[str]) -> None:
    judgments = [Judgment(query, str(row), 0.0) for row, query in enumerate(queries)]
    groups = dict(by_query(judgments))
    assert list(groups) == list(dict.fromkeys(queries))
    assert sorted(row for rows in groups.values() for row in rows) == list(range(len(queries)))
    assert all(queries[row] == query and rows == sorted(rows) for query, rows in groups.items() for row in rows)


def test_joined_rows_are_the_rows_of_the_parts_in_turn() -> None:
    def rows(*texts: list[int], classes: bool = False) -> TokenRows:
        ids = np.array([token for text in texts for token in text], dtype=np.int32)
        offsets = np.cumsum([0, *(len(text) for text in texts)], dtype=np.int64)
        marks = np.ones(len(ids), np.int8) if classes else None
        return TokenRows(ids, offsets, np.zeros(len(texts), np.bool_), marks)

    joined = TokenRows.joined([rows([1, 2], []), rows(), rows([3], classes=True)])
    assert [joined.row(place).tolist() for place in range(len(joined))] == [[1, 2], [], [3]]
    assert joined.term_classes is not None and joined.term_classes.tolist() == [0, 0, 1]
    assert TokenRows.joined([rows([1])]).term_classes is None


def test_records_cannot_be_changed() -> None:
    item = Item("1", "cable")
    with pytest.raises(dataclasses.FrozenInstanceError):
        item.title = "other"  # type: ignore[misc]
    assert item == Item("1", "cable")
    assert Item("1", "a").attributes is not Item("2", "b").attributes


def test_anything_with_a_name_and_score_is_a_scorer() -> None:
    class Constant:
        name = "constant"

        def score(self, query: str, titles: list[str]) -> np.ndarray:
            return np.zeros(len(titles), dtype=np.float32)

    assert isinstance(Constant(), PairScorer)
    assert not isinstance(object(), PairScorer)
