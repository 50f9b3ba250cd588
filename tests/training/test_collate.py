"""Laws of training sets and of the batches planned from them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from pertinent.data.samples import read_sample
from pertinent.errors import DataError
from pertinent.lexicon.pairs import PairConfig, PairTokenizer
from pertinent.training.collate import BatchPlan, TrainingSet, collate, group_batches, join, length_batches

Build = Callable[[int, int, int], TrainingSet]


def plan(lengths: Any, groups: Any = None, **changes: Any) -> BatchPlan:
    settings: dict[str, Any] = {"batch_size": 8, "group_limit": 4, "epochs": 3, "max_steps": None, "seed": 0}
    return BatchPlan(np.asarray(lengths), None if groups is None else np.asarray(groups), **{**settings, **changes})


def test_collating_equals_tokenizing_the_pairs_of_the_batch(tiny_pairs: PairTokenizer, shop_rows: Any) -> None:
    rows = [*shop_rows(4, 3, 0), ("café bal", "", 0.5), ("", "日本 bal\u202e café", 0.0)]
    queries, titles, grades = (list(column) for column in zip(*rows, strict=True))
    examples = TrainingSet.build(tiny_pairs, queries, titles, grade=grades)
    chosen = np.array([5, 0, 13, 12, 0])
    batch = collate(examples, chosen, tiny_pairs)
    expected = tiny_pairs.pair([queries[i] for i in chosen], [titles[i] for i in chosen])
    for name, array in expected.inputs().items():
        assert np.array_equal(batch[name].numpy(), array), name
    assert batch["grade"].tolist() == [grades[i] for i in chosen]
    assert batch["relevant"].isnan().all() and batch["teacher"].isnan().all()


def test_equal_queries_form_a_group(tiny_pairs: PairTokenizer) -> None:
    examples = TrainingSet.build(tiny_pairs, ["bal", "dam", "bal"], ["kur"] * 3)
    assert examples.query_rows.tolist() == [0, 1, 0]
    assert len(examples.items) == 1
    assert len(set(examples.size_keys.tolist())) == 1


def test_joined_sets_keep_rows_and_part_groups(shop_set: Build, tiny_pairs: PairTokenizer) -> None:
    first, second = shop_set(3, 2, 0), shop_set(3, 2, 0)
    both = join([first, second])
    assert not set(both.query_rows[:6]) & set(both.query_rows[6:])
    for start, part in ((0, first), (6, second)):
        ours, theirs = collate(both, np.arange(start, start + 6), tiny_pairs), collate(part, np.arange(6), tiny_pairs)
        assert all(torch.equal(ours[name], theirs[name]) for name in ours if name != "group")
    assert join([first]) is first


def test_taken_rows_are_those_rows(shop_set: Build, tiny_pairs: PairTokenizer) -> None:
    examples = shop_set(4, 3, 1)
    rows = np.array([7, 2])
    ours, theirs = collate(examples.take(rows), np.arange(2), tiny_pairs), collate(examples, rows, tiny_pairs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_fingerprint_sees_every_change(shop_set: Build) -> None:
    examples, same = shop_set(3, 3, 0), shop_set(3, 3, 0)
    assert examples.fingerprint() == same.fingerprint()
    same.teacher[0] += 1
    assert len({part.fingerprint() for part in (examples, same, shop_set(3, 3, 1), examples.take(np.arange(8)))}) == 4


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"grade": [0.5]}, "grade: 1 values for 2 pairs"),
        ({"grade": [0.5, 1.5]}, "0 to 1"),
        ({"relevant": [1, 0.5]}, "0 or 1"),
        ({"teacher": [1, np.inf]}, "finite"),
    ],
)
def test_wrong_targets_are_refused(tiny_pairs: PairTokenizer, columns: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        TrainingSet.build(tiny_pairs, ["bal", "dam"], ["kur", "kur"], **columns)
    with pytest.raises(DataError, match="one title for each"):
        TrainingSet.build(tiny_pairs, ["bal", "dam"], ["kur"])


def test_empty_set(tiny_pairs: PairTokenizer) -> None:
    examples = TrainingSet.build(tiny_pairs, [], [])
    assert len(examples) == 0
    assert len(plan(examples.size_keys)) == 0
    assert group_batches(examples.query_rows, examples.size_keys, 4, 4, np.random.default_rng(0)) == []


@pytest.mark.parametrize("rows", [1, 7, 8, 1000])
def test_every_row_comes_once_an_epoch(rows: int) -> None:
    lengths = np.random.default_rng(0).integers(3, 40, rows)
    for batches in (
        length_batches(lengths, 8, np.random.default_rng(1)),
        group_batches(np.arange(rows) // 5, lengths, 8, 4, np.random.default_rng(1)),
    ):
        assert sorted(np.concatenate(batches).tolist()) == list(range(rows))
        assert all(0 < len(batch) <= 8 for batch in batches)


def test_rows_of_a_batch_are_about_equally_long() -> None:
    lengths = np.random.default_rng(0).integers(3, 52, 4000)
    padded = sum(lengths[batch].max() * len(batch) for batch in length_batches(lengths, 32, np.random.default_rng(0)))
    assert padded < 1.06 * lengths.sum()


def test_both_blocks_of_a_batch_have_little_padding(tiny_pairs: PairTokenizer) -> None:
    """On real titles, 21% of the columns at most, and fewer than by sorting by the sum of both lengths."""
    _, judgments = read_sample("esci")
    pairs = PairTokenizer(tiny_pairs.tokenizer, PairConfig())
    examples = TrainingSet.build(pairs, [row.query for row in judgments], [row.title for row in judgments])
    queries, items = examples.queries.lengths[examples.query_rows], examples.items.lengths[examples.item_rows]

    def columns(keys: Any) -> int:
        batches = length_batches(keys, 32, np.random.default_rng(0))
        return sum(len(batch) * int(queries[batch].max() + items[batch].max()) for batch in batches)

    assert (queries + items).sum() > 0.79 * columns(examples.size_keys)
    assert columns(examples.size_keys) < 0.95 * columns(queries + items)


def test_groups_stay_whole_and_large_ones_are_parted_anew_each_epoch() -> None:
    groups = np.repeat([3, 1, 9], [3, 4, 11])
    lengths = np.ones(18, dtype=np.int64)
    parts = set()
    for seed in range(5):
        batches = group_batches(groups, lengths, 8, 4, np.random.default_rng(seed))
        for number in (3, 1):
            assert sum((groups[batch] == number).any() for batch in batches) == 1
        in_batches = [batch[groups[batch] == 9] for batch in batches]
        assert all(len(part) in (0, 3, 4, 7, 8) for part in in_batches)
        parts.add(tuple(sorted(tuple(sorted(part.tolist())) for part in in_batches)))
    assert len(parts) > 1


@pytest.mark.parametrize("groups", [None, [i // 3 for i in range(100)]])
def test_a_plan_depends_on_its_seed_alone(groups: list[int] | None) -> None:
    lengths = np.random.default_rng(0).integers(3, 40, 100)

    def rows(**changes: Any) -> list[list[int]]:
        return [batch.tolist() for batch in plan(lengths, groups, **changes)]

    assert rows() == rows()
    assert rows() != rows(seed=1)
    assert rows(max_steps=5) == rows()[:5]
    assert len(rows()) == len(plan(lengths, groups))


def test_epochs_differ_and_end_where_the_plan_says() -> None:
    batches = plan(range(100))
    first, second = (np.concatenate(list(batches)[start:end]) for start, end in ((0, 13), (13, 26)))
    assert sorted(first) == sorted(second)
    assert first.tolist() != second.tolist()
    assert batches.epoch_ends == [13, 26, 39]
    assert [batches.epoch_at(step) for step in (0, 13, 26, 39)] == [0.0, 1.0, 2.0, 3.0]
    assert 0.0 < batches.epoch_at(5) < 0.5
    assert plan(range(100), max_steps=20).epoch_ends == [13, 20]
