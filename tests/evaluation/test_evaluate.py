"""Evaluating a scorer: totals, slices, per query, and what is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.metrics as sk

from pertinent.errors import ConfigError, DataError, ScoringError
from pertinent.evaluation.evaluate import EvaluateConfig, evaluate, evaluate_scores, run_evaluate, score_judgments
from pertinent.evaluation.metrics import METRICS, metric, ndcg
from pertinent.evaluation.slices import MOST_SEGMENTS, segments, slicings, thirds
from pertinent.records import Judgment, Pair, PairScorer

Judged = Callable[..., list[Judgment]]

PROMISED = {
    *("auc", "average_precision", "spearman", "pearson", "macro_f1", "micro_f1", "accuracy", "f1_0", "f1_1"),
    *("ndcg@10", "mrr", "recall@10", "ece", "fnr", "brier"),
}


def test_an_evaluation_has_every_promised_metric_with_its_interval(
    scorer: PairScorer, judgments: list[Judgment]
) -> None:
    result = evaluate(scorer, judgments, positive_grade=1.0, bootstrap=200)
    assert set(result.metrics) == PROMISED
    assert {name.partition("@")[0] for name in result.metrics} == set(METRICS)
    for name, estimate in result.metrics.items():
        assert estimate.low <= estimate.high, name
        if name != "ece":  # resampling makes bins look worse calibrated: its interval may lie above
            assert estimate.low <= estimate.value <= estimate.high, name
        assert metric(name).text
    assert result.metrics["auc"].value == pytest.approx(sk.roc_auc_score(result.relevant, result.scores))


def test_ranking_metrics_average_the_queries_that_count(scorer: PairScorer, judgments: list[Judgment]) -> None:
    result = evaluate(scorer, judgments, positive_grade=1.0, bootstrap=0, k=(3, 10))
    values = []
    for number, _ in enumerate(result.queries):
        rows = result.query_rows == number
        if rows.sum() >= 2 and result.relevant[rows].any():
            values.append(ndcg(result.scores[rows], result.grades[rows], 3))
            assert result.per_query["ndcg@3"][number] == values[-1]
        else:
            assert math.isnan(result.per_query["ndcg@3"][number])
    assert result.metrics["ndcg@3"].value == pytest.approx(np.mean(values))
    assert result.ranked_queries == len(values) < len(result.queries)
    assert any(f"{len(values):,} of {len(result.queries):,} queries" in note for note in result.notes)
    assert {"recall@3", "recall@10", "ndcg@10"} <= result.metrics.keys()


def test_metrics_do_not_depend_on_the_order_of_the_judgments(scorer: PairScorer, judgments: list[Judgment]) -> None:
    shuffled = [judgments[row] for row in np.random.default_rng(5).permutation(len(judgments))]
    first, second = (evaluate(scorer, rows, positive_grade=1.0, bootstrap=0) for rows in (judgments, shuffled))
    for name, estimate in first.metrics.items():
        assert second.metrics[name].value == pytest.approx(estimate.value, abs=1e-9), name
    assert first.judged != second.judged


def test_pairs_scored_together_equal_pairs_scored_by_query(
    scorer: PairScorer, judgments: list[Judgment], words: type[Any]
) -> None:
    class Together(words):
        def score_pairs(self, pairs: Sequence[Pair]) -> np.ndarray:
            return np.concatenate([self.score(query, [title]) for query, title in pairs])

    np.testing.assert_array_equal(score_judgments(Together(), judgments), score_judgments(scorer, judgments))


def test_progress_goes_to_the_error_stream_only(
    scorer: PairScorer,
    judgments: list[Judgment],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown = score_judgments(scorer, judgments, progress=True)
    np.testing.assert_array_equal(shown, score_judgments(scorer, judgments))
    assert capsys.readouterr() == ("", "")  # no bar off a terminal, and no empty line for it
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal
    np.testing.assert_array_equal(shown, score_judgments(scorer, judgments, progress=True))
    out, err = capsys.readouterr()
    assert out == ""
    assert f"scoring with {scorer.name}" in err


def test_equal_seeds_give_equal_intervals(scorer: PairScorer, judgments: list[Judgment]) -> None:
    first, again, other = (
        evaluate(scorer, judgments, positive_grade=1.0, bootstrap=100, seed=seed).plain() for seed in (0, 0, 1)
    )
    assert first == again
    assert first["metrics"]["auc"] != other["metrics"]["auc"]


@pytest.mark.parametrize("grade", [0.0, 1.0])
@pytest.mark.parametrize("count", [1, 3])
def test_one_pair_and_one_class_give_numbers_or_none(grade: float, count: int, words: type[Any]) -> None:
    rows = [Judgment("耳机", str(n), grade, title="耳机") for n in range(count)]
    plain = evaluate(words(), rows, positive_grade=1.0).plain(scores=True)
    assert plain["metrics"]["auc"] == {"value": None, "low": None, "high": None}
    assert plain["metrics"]["accuracy"]["value"] in (0.0, 1.0)
    assert plain["metrics"]["accuracy"]["low"] is None  # one query has no spread
    assert plain["bootstrap"] == 0
    json.dumps(plain, allow_nan=False)


def test_plain_leaves_scores_out_unless_asked(scorer: PairScorer, judgments: list[Judgment]) -> None:
    result = evaluate(scorer, judgments, positive_grade=1.0, bootstrap=10)
    assert "rows" not in result.plain() and "per_query" not in result.plain()
    plain = json.loads(json.dumps(result.plain(scores=True), allow_nan=False))
    assert len(plain["rows"]) == len(judgments) and len(plain["per_query"]) == len(result.queries)
    assert plain["relevant_pairs"] == sum(judgment.grade >= 1 for judgment in judgments)


def test_scores_that_are_no_probabilities_are_said_to_be_so(judgments: list[Judgment]) -> None:
    scores = np.linspace(-5, 20, len(judgments))
    result = evaluate_scores(scores, judgments, name="bm25", positive_grade=1.0, bootstrap=20)
    assert math.isnan(result.metrics["ece"].value) and math.isfinite(result.metrics["auc"].value)
    assert any("not probabilities" in note for note in result.notes)


def test_slices_split_the_pairs_and_have_metrics(scorer: PairScorer, judgments: list[Judgment]) -> None:
    result = evaluate(scorer, judgments, positive_grade=1.0, bootstrap=50, segment_by=("segment", "label"))
    assert list(result.slices["frequency"]) == ["head", "torso", "tail"]
    assert set(result.slices["segment"]) == {"us", "es", "(none)"}
    for parts in result.slices.values():
        assert sum(part.pairs for part in parts.values()) == len(judgments)
    alone = evaluate(scorer, [row for row in judgments if row.segment == "us"], positive_grade=1.0, bootstrap=50)
    us = result.slices["segment"]["us"]
    assert us.metrics["auc"] == alone.metrics["auc"] and us.queries == len(alone.queries)


def test_queries_without_frequency_are_sliced_by_judged_items(judgments: list[Judgment]) -> None:
    parts = slicings([replace(row, frequency=None) for row in judgments], ["rater"])
    assert "judged items" in parts and "frequency" not in parts
    assert "rater" not in parts  # nobody has a rater: one part says nothing
    assert slicings([], ["segment"]) == {}


def test_equal_frequencies_stay_together() -> None:
    assert set(thirds(np.ones(9))) == {"torso"}
    assert thirds(np.arange(9.0)) == ["tail"] * 3 + ["torso"] * 3 + ["head"] * 3


def test_many_segments_are_cut_to_a_readable_number() -> None:
    rows = [Judgment("q", str(n), 1.0, segment=f"s{min(n, 40)}") for n in range(100)]
    names = segments(rows, "segment")
    assert len(set(names)) == MOST_SEGMENTS and "(others)" in names and names.count("s40") == 60


def test_bad_scores_and_judgments_are_refused(judgments: list[Judgment], words: type[Any]) -> None:
    class Broken(words):
        def score(self, query: str, titles: Sequence[str]) -> np.ndarray:
            return np.full(len(titles) + 1, 0.5)

    with pytest.raises(ScoringError, match="expected one each"):
        evaluate(Broken("broken"), judgments, positive_grade=1.0)
    with pytest.raises(ScoringError, match=r"1 scores that are not finite, first nan .*pertinent doctor"):
        evaluate_scores(np.array([0.1, np.nan]), judgments[:2], name="m", positive_grade=1.0)
    with pytest.raises(ScoringError, match=r"shape \(1,\) for 2 judgments"):
        evaluate_scores(np.array([0.1]), judgments[:2], name="m", positive_grade=1.0)
    with pytest.raises(DataError, match="no judgments"):
        evaluate(words(), [], positive_grade=1.0)
    with pytest.raises(DataError, match="grade is not a number"):
        evaluate(words(), [Judgment("q", "1", math.nan)], positive_grade=1.0)
    with pytest.raises(DataError, match="k must be from 1"):
        evaluate(words(), judgments, positive_grade=1.0, k=(0,))


@pytest.fixture
def judgment_file(tmp_path: Path, judged: Judged) -> Path:
    path = tmp_path / "test.csv"
    lines = [f'"{row.query}","{row.title}",{row.label},{row.split}' for row in judged(10)]
    path.write_text("query,name,label,split\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_a_config_runs_from_file_to_report(judgment_file: Path, scorer: PairScorer, tmp_path: Path) -> None:
    config = EvaluateConfig(
        judgments=str(judgment_file),
        scale="esci",
        columns={"name": "title"},
        split="test",
        bootstrap=20,
        report=str(tmp_path / "out" / "report.html"),
    )
    result = run_evaluate(config, scorer)
    assert result.positive_grade == 1.0  # the scale's own
    assert len(result.queries) == 5
    written = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert written["evaluations"]["words"]["metrics"] == result.plain()["metrics"]
    assert EvaluateConfig.build(config.plain()) == config


def test_columns_are_renamed_in_the_file_that_has_them(scorer: PairScorer, tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("sku,name\n1,usb cable\n2,lamp\n", encoding="utf-8")
    (tmp_path / "j.csv").write_text("search,sku,grade\nusb cable,1,1\nusb cable,2,0\n", encoding="utf-8")
    config = EvaluateConfig(
        judgments=str(tmp_path / "j.csv"),
        items=str(tmp_path / "items.csv"),
        columns={"sku": "item_id", "name": "title", "search": "query"},
    )
    assert run_evaluate(config, scorer).metrics["auc"].value == 1.0
    wrong = config.model_copy(update={"columns": {**config.columns, "nmae": "brand"}})
    with pytest.raises(DataError, match="no column 'nmae' to rename"):
        run_evaluate(wrong, scorer)


def test_a_config_without_rows_of_its_split_is_refused(judgment_file: Path, scorer: PairScorer) -> None:
    config = EvaluateConfig(judgments=str(judgment_file), scale="esci", columns={"name": "title"}, split="train")
    with pytest.raises(DataError, match="no rows of split 'train'"):
        run_evaluate(config, scorer)


def test_wrong_settings_are_reported_together() -> None:
    with pytest.raises(ConfigError, match=r"(?s)threads.*bootstrap|bootstrap.*threads"):
        EvaluateConfig.build({"judgments": "x.csv", "threads": 0, "bootstrap": -1})
