"""Laws of how judgments become training sets: splits without leaks, soft targets, held-out queries."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pertinent.data.grades import scale_named
from pertinent.errors import DataError
from pertinent.evaluation.evaluate import EvaluateConfig, run_evaluate
from pertinent.lexicon.pairs import PairTokenizer
from pertinent.models.lexical import BM25
from pertinent.records import Judgment, Split
from pertinent.training.data import JudgedData, read_examples, read_judged, soft_target, with_splits

FRACTIONS = (0.8, 0.1, 0.1)
DEFAULTS = {
    "sample": None,
    "items": None,
    "columns": {},
    "scale": None,
    "positive_grade": None,
    "split_by": "auto",
    "fractions": (0.5, 0.25, 0.25),
    "salt": "",
}


def judged(splits: list[Split | None]) -> list[Judgment]:
    return [Judgment(f"query {number}", "1", 1.0, split=split) for number, split in enumerate(splits)]


def test_splits_of_the_file_are_kept_where_all_are_there() -> None:
    rows = judged(["test", "valid", "train"])
    assert with_splits(rows, "auto", FRACTIONS, "") == rows
    assert with_splits(rows, "column", FRACTIONS, "") == rows


def test_validation_queries_come_out_of_training_where_the_file_names_none() -> None:
    rows = judged(["train"] * 400 + ["test"] * 50)
    splits = [row.split for row in with_splits(rows, "auto", FRACTIONS, "")]
    assert splits[400:] == ["test"] * 50
    assert 20 < splits.count("valid") < 80
    assert set(splits[:400]) == {"train", "valid"}


def test_without_splits_they_are_by_query_and_salt() -> None:
    rows = judged([None, None, None]) * 2
    first = [row.split for row in with_splits(rows, "auto", FRACTIONS, "")]
    assert first[:3] == first[3:]
    assert with_splits(rows * 20, "query", FRACTIONS, "a") != with_splits(rows * 20, "query", FRACTIONS, "b")
    with pytest.raises(DataError, match="6 of 6 judgments have no split"):
        with_splits(rows, "column", FRACTIONS, "")
    assert with_splits([], "auto", FRACTIONS, "") == []


def test_splits_that_only_some_rows_have_are_never_thrown_away(tmp_path: Path) -> None:
    rows = judged(["test"] * 20 + [None] * 80)
    with pytest.raises(DataError, match="80 of 100 judgments have no split; fill the column, or set split_by: query"):
        with_splits(rows, "auto", FRACTIONS, "")
    assert None not in {row.split for row in with_splits(rows, "query", FRACTIONS, "")}
    path = tmp_path / "j.csv"
    lines = [f"query {number},a,1,{'test' if number < 20 else ''}" for number in range(100)]
    path.write_text("\n".join(["query,title,grade,split", *lines]))
    with pytest.raises(DataError, match=r"j\.csv: line 22, column 'split': 80 of 100 judgments have no split"):
        read_judged(str(path), **DEFAULTS)


FIVE = ["perfect", "excellent", "good", "fair", "bad"]


@pytest.mark.parametrize("scale", [None, "five_level"])
def test_training_and_evaluation_find_the_same_pairs_relevant(tmp_path: Path, scale: str | None) -> None:
    path = tmp_path / "j.csv"
    lines = [f"query {number},title {number},{FIVE[number % 5]}" for number in range(50)]
    path.write_text("\n".join(["query,title,label", *lines]))
    data = read_judged(str(path), **(DEFAULTS | {"scale": scale}))
    scorer = BM25().fit([f"title {number}" for number in range(50)])
    evaluation = run_evaluate(EvaluateConfig(judgments=str(path), scale=scale, bootstrap=0), scorer)
    assert data.positive_grade == evaluation.positive_grade == 0.75
    assert data.relevant(data.judgments).sum() == evaluation.relevant.sum() == 20


def test_a_grade_is_compared_alike_in_judgments_and_examples(tmp_path: Path, tiny_pairs: PairTokenizer) -> None:
    path = tmp_path / "j.csv"
    path.write_text("query,title,grade\nbal,dam,0.7\nbal,kur,0.69\n")
    rows = [Judgment("bal", "1", 0.7), Judgment("bal", "2", 0.69)]
    assert JudgedData(rows, None, 0.7).relevant(rows).tolist() == [True, False]
    assert read_examples(str(path), tiny_pairs, 0.7, frozenset())[0].relevant.tolist() == [1.0, 0.0]


def test_a_query_in_two_splits_fails_the_run(tmp_path: Path) -> None:
    path = tmp_path / "j.csv"
    path.write_text("query,title,grade,split\nTV Stand,a,1,train\ntv  stand,b,0,valid\n")
    with pytest.raises(DataError, match="is in valid and"):
        read_judged(str(path), **DEFAULTS)


def test_an_empty_split_is_said(tmp_path: Path) -> None:
    path = tmp_path / "j.csv"
    path.write_text("query,title,grade,split\na,a,1,valid\n")
    with pytest.raises(DataError, match="no judgment is in the train split"):
        read_judged(str(path), **DEFAULTS)


def test_items_give_titles_and_the_scale_gives_the_positive_grade(tmp_path: Path, tiny_pairs: PairTokenizer) -> None:
    lines = [f"bal{n},{1 + n % 2},{'ES'[n % 2]}" for n in range(40)]
    (tmp_path / "j.csv").write_text("\n".join(["q,item_id,label", *lines]))
    (tmp_path / "i.csv").write_text("sku,title\n1,bal dam\n2,café\n")
    settings = DEFAULTS | {"items": str(tmp_path / "i.csv"), "columns": {"q": "query"}, "scale": "esci"}
    with pytest.raises(DataError, match="item_id"):
        read_judged(str(tmp_path / "j.csv"), **settings)
    settings["columns"] = {"q": "query", "sku": "item_id"}  # each file has one of them
    data = read_judged(str(tmp_path / "j.csv"), **settings)
    assert data.positive_grade == 1.0
    assert set(data.files) == {"judgments", "items"}
    examples = data.training_set(data.judgments, tiny_pairs)
    assert examples.relevant.tolist() == [1.0, 0.0] * 20
    assert examples.grade.tolist() == [1.0, 0.5] * 20
    assert np.isnan(examples.teacher).all()


def test_a_sample_is_read_by_name() -> None:
    data = read_judged(None, **(DEFAULTS | {"sample": "esci"}))
    assert data.scale is not None
    assert (data.scale.name, data.positive_grade) == ("esci", 1.0)
    assert all(data.of(split) for split in ("train", "valid", "test"))


def test_soft_targets_fall_back_to_the_grade() -> None:
    assert soft_target(Judgment("q", "1", 0.7), None) == 0.7
    assert soft_target(Judgment("q", "1", 0.7, label="unheard of"), scale_named("esci")) == 0.7
    assert soft_target(Judgment("q", "1", 0.01, label="C"), scale_named("esci")) == 0.0


def test_no_judgments_give_an_empty_set(tiny_pairs: PairTokenizer) -> None:
    assert len(JudgedData([], None, 1.0).training_set([], tiny_pairs)) == 0


def test_examples_of_held_out_queries_are_left_out(tmp_path: Path, tiny_pairs: PairTokenizer) -> None:
    path = tmp_path / "teacher.csv"
    path.write_text("query,title,teacher_logit,grade\nbal,kur,2.5,\nBAL  dam,kur,1,1\nkur,bal,-3,0.5\n")
    examples, dropped = read_examples(str(path), tiny_pairs, 0.5, frozenset({"bal dam"}))
    assert dropped == 1
    assert examples.teacher.tolist() == [2.5, -3.0]
    assert np.isnan(examples.grade[0]) and np.isnan(examples.relevant[0])
    assert (examples.grade[1], examples.relevant[1]) == (0.5, 1.0)
    with pytest.raises(DataError, match="has no pairs to train on"):
        read_examples(str(path), tiny_pairs, 0.5, frozenset({"bal dam", "bal", "kur"}))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("query,title\na,b\n", "has no column 'teacher_logit'"),
        ("query,title,teacher_logit\na,b,nan\n", "line 2, column 'teacher_logit', value 'nan': is NaN"),
        ("query,title,teacher_logit\na,b,1e9\n", "is not from -10000 to 10000"),
        ("query,title,grade\na,,1\n", "line 2, column 'title': is empty"),
        ("query,titel,grade\na,b,1\n", "rename the column 'titel'"),
    ],
)
def test_wrong_examples_are_named_by_place(tmp_path: Path, tiny_pairs: PairTokenizer, text: str, words: str) -> None:
    path = tmp_path / "examples.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=words):
        read_examples(str(path), tiny_pairs, 0.5, frozenset())


def test_examples_without_teacher_have_grades_only(tmp_path: Path, tiny_pairs: PairTokenizer) -> None:
    path = tmp_path / "clicks.csv"
    path.write_text("query,title,grade\nbal,dam,1\n")
    examples, _ = read_examples(str(path), tiny_pairs, 1.0, frozenset())
    assert np.isnan(examples.teacher).all() and examples.relevant.tolist() == [1.0]
