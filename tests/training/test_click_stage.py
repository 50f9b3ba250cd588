"""Laws of the click stage: who is a negative, how often a pair is seen, what is never learned (ei-SRC, section 3)."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pertinent.errors import ConfigError, DataError
from pertinent.lexicon.pairs import PairTokenizer
from pertinent.training.clicks import ClickStage, read_clicks, table_files
from pertinent.training.collate import BatchRows, TrainingSet
from pertinent.training.fit import FitConfig, fit
from pertinent.training.negatives import BatchNegatives
from pertinent.training.run import TrainConfig, train

COLUMNS = ("query", "item_id", "level", "copies", "clear", "frequent")
ITEMS = {"1": "bal dam", "2": "bal  DAM", "3": "kur dam", "4": "fil gar", "5": "café", "6": "bal kur"}
CLICKS = [
    ("bal dam", "1", 5, 5, True, True),
    ("bal dam", "3", 1, 1, True, False),
    ("kur", "3", 3, 2, True, True),
    ("kur", "4", 1, 1, False, False),
    ("fil", "5", 2, 1, True, True),
    ("gar", "6", 4, 3, True, True),
    ("gar", "gone", 4, 3, True, True),
]


def write(path: Path, columns: tuple[str, ...], rows: Any) -> str:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerows(
            [columns, *([str(cell).lower() if cell in (True, False) else cell for cell in r] for r in rows)]
        )
    return str(path)


@pytest.fixture
def mined(tmp_path: Path) -> tuple[str, str]:
    """The clicks of a log and their catalog, as tables."""
    clicks = [(*row[:4], int(row[4]), int(row[5])) for row in CLICKS]
    return write(tmp_path / "clicks.csv", COLUMNS, clicks), write(
        tmp_path / "items.csv", ("item_id", "title"), ITEMS.items()
    )


def read(mined: tuple[str, str], held_out: frozenset[str] = frozenset(), **settings: Any) -> Any:
    return read_clicks(ClickStage(table=mined[0], **settings), mined[1], held_out)


def test_a_pair_is_seen_as_often_as_its_level_says(mined: tuple[str, str], tiny_pairs: PairTokenizer) -> None:
    clicked = read(mined, clear=False)
    training, _ = clicked.training_set(tiny_pairs, 1, 0)
    seen = Counter(zip(training.query_rows.tolist(), training.item_rows.tolist(), strict=True))
    assert sorted(seen.values()) == [1, 1, 1, 2, 3, 5]
    plain, _ = read(mined, clear=False, resample=False).training_set(tiny_pairs, 1, 0)
    assert len(plain) == 6  # the item that the catalog does not have is left out
    assert (training.relevant == 1).all() and np.isnan(training.teacher).all()


def test_clicks_in_part_files_are_read_as_one_table(mined: tuple[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "mined" / "clicks.parquet"
    folder.mkdir(parents=True)
    columns = dict(zip(COLUMNS, zip(*CLICKS, strict=True), strict=True))
    table = pa.table({name: list(cells) for name, cells in columns.items()})
    for number, (start, size) in enumerate(((0, 3), (3, 0), (3, 4))):
        pq.write_table(table.slice(start, size), folder / f"part-{number:05}.parquet")
    whole = read(mined)
    for path in (folder, folder.parent):
        found = read((str(path), mined[1]))
        assert (found.queries, found.titles) == (whole.queries, whole.titles)
        assert found.copies.tolist() == whole.copies.tolist()
        assert [*table_files(str(path))] == [f"clicks/part-{number:05}.parquet" for number in range(3)]
    assert table_files(mined[0]) == {"clicks": Path(mined[0])}


def test_clear_and_frequent_pairs_can_be_chosen(mined: tuple[str, str]) -> None:
    assert (read(mined).copies > 0).sum() == 5
    assert (read(mined, frequent=True).copies > 0).sum() == 4
    assert (read(mined, frequent=True, clear=False).copies > 0).sum() == 4


def test_held_out_queries_are_never_learned(mined: tuple[str, str], caplog: pytest.LogCaptureFixture) -> None:
    clicked = read(mined, frozenset({"bal dam", "gar"}))
    assert clicked.left_out == 3
    assert "their queries are held out" in caplog.text
    learned = {query for query, copies in zip(clicked.queries, clicked.copies, strict=True) if copies}
    assert learned == {"kur", "fil"}
    with pytest.raises(DataError, match="no clicked pair to learn from"):
        read(mined, frozenset({"bal dam", "gar", "kur", "fil"}))


def test_titles_are_needed(mined: tuple[str, str], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"clicks\.items"):
        read_clicks(ClickStage(table=mined[0]), None, frozenset())
    own = write(tmp_path / "own.csv", ("query", "title"), [("bal", "bal dam"), ("bal", "bal dam")])
    assert read_clicks(ClickStage(table=own), None, frozenset()).copies.tolist() == [1]


# Negatives


def test_no_negative_was_clicked_for_its_query_or_has_a_clicked_title(
    mined: tuple[str, str], tiny_pairs: PairTokenizer
) -> None:
    """Item 2 has the title of item 1 but for case and spacing; "kur" clicked item 4 in a pair not learned."""
    for each in (1, 3, 7):
        training, negatives = read(mined).training_set(tiny_pairs, each, 0)
        clicked = read(mined, clear=False)
        names = {row: text for text, row in zip(clicked.queries, _rows(clicked.queries), strict=True)}
        titles = {row: text for text, row in zip(clicked.titles, _rows(clicked.titles), strict=True)}
        forbidden = {(q, t) for q, t in zip(clicked.queries, clicked.titles, strict=True)}
        drawn = 0
        for seed in range(20):
            rows = np.random.default_rng(seed).permutation(len(training))
            queries, items = negatives.draw(rows, training.query_rows[rows], training.item_rows[rows])
            drawn += len(queries)
            assert not forbidden & {
                (names[q], titles[i]) for q, i in zip(queries.tolist(), items.tolist(), strict=True)
            }
        assert drawn


def _rows(texts: list[str]) -> list[int]:
    numbers: dict[str, int] = {}
    return [numbers.setdefault(text, len(numbers)) for text in texts]


def random_clicks(queries: int, items: int, clicks: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    return generator.integers(0, queries, clicks), generator.integers(0, items, clicks)


@pytest.mark.parametrize("each", [1, 3, 7])
def test_each_clicked_pair_gets_its_negatives_where_the_batch_has_them(each: int) -> None:
    queries, items = random_clicks(40, 60, 200, 0)
    negatives = BatchNegatives(queries, items, 200, each, 0)
    drawn, others = negatives.draw(np.arange(50), queries[:50], items[:50])
    assert len(drawn) == 50 * each
    clicked = set(zip(queries.tolist(), items.tolist(), strict=True))
    found = list(zip(drawn.tolist(), others.tolist(), strict=True))
    assert not clicked & set(found)
    assert set(others.tolist()) <= set(items[:50].tolist())
    for place in range(50):  # of one pair all differ
        own = others[place * each : (place + 1) * each].tolist()
        assert len(set(own)) == each


def test_the_same_batch_draws_the_same_and_another_seed_others() -> None:
    queries, items = random_clicks(40, 60, 200, 0)
    first, again, other = (
        BatchNegatives(queries, items, 200, 2, seed).draw(np.arange(50), queries[:50], items[:50]) for seed in (0, 0, 1)
    )
    assert np.array_equal(first[1], again[1]) and not np.array_equal(first[1], other[1])


def test_a_batch_with_nothing_to_offer_draws_nothing() -> None:
    one = np.zeros(1, dtype=np.int64)
    negatives = BatchNegatives(one, one, 1, 3, 0)
    for rows in (one, one[:0]):
        drawn, items = negatives.draw(rows, one[: len(rows)], one[: len(rows)])
        assert len(drawn) == len(items) == 0


def test_pairs_that_were_not_clicked_get_no_negatives_and_give_none() -> None:
    queries, items = np.arange(6), np.arange(6)
    negatives = BatchNegatives(queries[:4], items[:4], 4, 1, 0)
    drawn, others = negatives.draw(queries, queries, items)
    assert set(drawn.tolist()) == {0, 1, 2, 3} and set(others.tolist()) <= {0, 1, 2, 3}


def test_a_batch_has_its_pairs_first_and_then_their_negatives(
    mined: tuple[str, str], tiny_pairs: PairTokenizer
) -> None:
    training, negatives = read(mined).training_set(tiny_pairs, 1, 0)
    batch = BatchRows(training, tiny_pairs, negatives).__getitems__(np.arange(len(training)))
    size = len(training)
    assert (batch["relevant"][:size] == 1).all() and (batch["relevant"][size:] == 0).all()
    assert 0 < len(batch["relevant"]) - size <= size
    assert batch["token_ids"].shape == batch["mask"].shape


# In a training run


def test_clicks_teach_without_a_judged_pair(
    tiny_network: Any, tiny_pairs: PairTokenizer, shop_set: Callable[..., TrainingSet], shop_rows: Any
) -> None:
    liked = [(query, title) for query, title, grade in shop_rows(400, 3, 5) if grade == 1]
    queries, titles = (list(texts) for texts in zip(*liked, strict=True))
    clicked = TrainingSet.build(tiny_pairs, queries, titles, relevant=np.ones(len(liked)))
    negatives = BatchNegatives(clicked.query_rows, clicked.item_rows, len(liked), 3, 0)
    config = FitConfig(epochs=2, batch_size=64, learning_rate=3e-3, device="cpu")
    result = fit(tiny_network, tiny_pairs, clicked, config, shop_set(40, 6, 1), negatives=negatives)
    assert result.steps == 2 * -(-len(liked) // 16)  # a batch of 64 holds 16 clicked pairs
    assert result.metrics["auc"] > 0.6


def test_two_stages_clicks_then_judgments(tmp_path: Path, tiny_tokenizer: Path, shop_rows: Any) -> None:
    rows = shop_rows(60, 4, 0)
    judgments = write(tmp_path / "judgments.csv", ("query", "title", "grade"), rows)
    liked = [(query, title) for query, title, grade in [*rows, *shop_rows(60, 4, 9)] if grade == 1]
    clicks = write(tmp_path / "clicks.csv", ("query", "title"), liked)
    common = {"judgments": judgments, "batch_size": 32, "device": "cpu", "bootstrap": 0, "graph": False, "max_steps": 3}
    first = train(
        TrainConfig.build(
            {
                **common,
                "start": None,
                "tokenizer": str(tiny_tokenizer),
                "model": {"hidden_size": 32, "layers": 2, "heads": 2, "feed_forward_size": 64},
                "pairs": {"query_length": 6, "item_length": 12},
                "clicks": clicks,
                "adversarial": {
                    "type": "cat",
                    "word_drop": 0,
                    "inverse_temperature": 1,
                    "final_inverse_temperature": None,
                },
                "out": str(tmp_path / "clicked"),
            }
        )
    )
    card = first.file("README.md").read_text()
    assert "clicked pairs, with copies" in card and "judged training pairs not learned in this run" in card
    assert "queries are held out" in card
    assert first.manifest["inputs"].keys() == {"judgments", "clicks"}
    second = train(
        TrainConfig.build({**common, "start": str(first.path), "adversarial": "at", "out": str(tmp_path / "judged")})
    )
    assert "clicked pairs" not in second.file("README.md").read_text()
    with pytest.raises(ConfigError, match="negative"):
        TrainConfig.build({**common, "clicks": {"table": clicks, "negative": 3}})
