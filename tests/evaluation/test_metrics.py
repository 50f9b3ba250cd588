"""Metrics against scikit-learn, SciPy and trec_eval, and the laws they obey."""

from __future__ import annotations

import math

import numpy as np
import pytest
import pytrec_eval
import scipy.stats
import sklearn.metrics as sk
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve

from pertinent.errors import ScoringError
from pertinent.evaluation import metrics as m
from pertinent.evaluation.metrics import METRICS, metric
from pertinent.evaluation.pooled import POOLED, measure, pool


def sample(seed: int, n: int = 300, decimals: int = 2) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores with ties, grades of four steps, and which of them are relevant."""
    rng = np.random.default_rng(seed)
    grades = rng.choice([0.0, 0.01, 0.1, 1.0], n, p=[0.2, 0.1, 0.3, 0.4])
    scores = np.round(np.clip(0.3 * grades + rng.random(n) * 0.7, 0, 1), decimals)
    return scores, grades, grades >= 1


ORACLES = {
    "auc": lambda s, g, r: sk.roc_auc_score(r, s),
    "average_precision": lambda s, g, r: sk.average_precision_score(r, s),
    "spearman": lambda s, g, r: scipy.stats.spearmanr(s, g).statistic,
    "pearson": lambda s, g, r: scipy.stats.pearsonr(s, g).statistic,
    "accuracy": lambda s, g, r: sk.accuracy_score(r, s >= 0.5),
    "macro_f1": lambda s, g, r: sk.f1_score(r, s >= 0.5, average="macro"),
    "micro_f1": lambda s, g, r: sk.f1_score(r, s >= 0.5, average="micro"),
    "f1_0": lambda s, g, r: sk.f1_score(~r, s < 0.5),
    "f1_1": lambda s, g, r: sk.f1_score(r, s >= 0.5),
    "fnr": lambda s, g, r: 1 - sk.recall_score(r, s >= 0.5),
    "brier": lambda s, g, r: sk.brier_score_loss(r, s),
    "ece": lambda s, g, r: _ece(s, r),
    "ndcg": lambda s, g, r: sk.ndcg_score([g], [s]),
    "mrr": lambda s, g, r: _over_orders(s, r, lambda ranked: 1 / (np.flatnonzero(ranked)[0] + 1)),
    "recall": lambda s, g, r: _over_orders(s, r, lambda ranked: ranked[:10].mean() * 10 / r.sum()),
}


def _ece(scores: np.ndarray, relevant: np.ndarray) -> float:
    share, promised = calibration_curve(relevant, scores, n_bins=10)
    counts = np.bincount(np.searchsorted(np.linspace(0, 1, 11)[1:-1], scores), minlength=10)
    return float((np.abs(share - promised) * counts[counts > 0]).sum() / len(scores))


def _over_orders(scores: np.ndarray, relevant: np.ndarray, value: object) -> float:
    """The mean over many random orders of the tied items."""
    rng = np.random.default_rng(7)
    orders = [np.lexsort((rng.random(len(scores)), -scores)) for _ in range(4000)]
    return float(np.mean([value(relevant[order]) for order in orders]))  # type: ignore[operator]


def against(name: str, grades: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    return grades if METRICS[name].against == "grades" else relevant


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("seed", range(3))
def test_metric_equals_its_oracle(name: str, seed: int) -> None:
    size, decimals, close = (15, 1, 0.02) if name in ("mrr", "recall") else (300, 2, 1e-12)
    scores, grades, relevant = sample(seed, size, decimals)
    ours = METRICS[name].function(scores, against(name, grades, relevant))
    assert ours == pytest.approx(ORACLES[name](scores, grades, relevant), abs=close)


@pytest.mark.parametrize("name", METRICS)
def test_metric_does_not_depend_on_the_order_of_the_pairs(name: str) -> None:
    scores, grades, relevant = sample(3)
    rows = np.random.default_rng(0).permutation(len(scores))
    function, other = METRICS[name].function, against(name, grades, relevant)
    assert function(scores[rows], other[rows]) == pytest.approx(function(scores, other), abs=1e-12)


@pytest.mark.parametrize("name", METRICS)
def test_metric_of_nothing_is_undefined(name: str) -> None:
    assert math.isnan(METRICS[name].function([], []))


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("truth", [0, 1])
def test_metric_of_one_pair_or_one_class_is_a_number_or_undefined(name: str, truth: int) -> None:
    for scores in ([0.7], [0.7, 0.7, 0.2]):
        value = METRICS[name].function(scores, [truth] * len(scores))
        assert math.isnan(value) or 0 <= value <= 1
    needs_both = {"auc", "spearman", "pearson"}
    needs_relevant = {"average_precision", "fnr", "ndcg", "mrr", "recall"}
    undefined = needs_both | (needs_relevant if truth == 0 else set())
    assert math.isnan(value) == (name in undefined)


def test_equal_scores_have_chance_level() -> None:
    assert m.auc([0.3] * 4, [1, 0, 0, 0]) == 0.5
    assert m.average_precision([0.3] * 4, [1, 0, 0, 0]) == 0.25
    assert math.isnan(m.spearman([0.1] * 7, [0, 1, 0.5, 1, 0, 1, 1]))
    assert math.isnan(m.pearson([0.1] * 7, [0, 1, 0.5, 1, 0, 1, 1]))
    assert m.mrr([0.5] * 3, [1, 0, 0]) == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)
    assert m.recall_at([0.5] * 4, [1, 0, 0, 1], 2) == pytest.approx(0.5)


pairs = st.lists(st.tuples(st.integers(-8, 8), st.sampled_from([0.0, 0.01, 0.1, 1.0])), min_size=2, max_size=40)


@given(pairs)
@settings(max_examples=100, deadline=None)
def test_order_metrics_ignore_rising_transforms(values: list[tuple[int, float]]) -> None:
    scores, grades = np.array([s for s, _ in values], float), np.array([g for _, g in values])
    for name in ("auc", "average_precision", "spearman", "ndcg", "mrr", "recall"):
        function, other = METRICS[name].function, against(name, grades, grades >= 1)
        assert function(np.exp(scores / 3) * 5 - 2, other) == pytest.approx(function(scores, other), nan_ok=True)


@given(pairs)
@settings(max_examples=100, deadline=None)
def test_auc_of_reversed_scores_is_the_rest_to_one(values: list[tuple[int, float]]) -> None:
    scores, relevant = np.array([s for s, _ in values], float), np.array([g >= 1 for _, g in values])
    assume(0 < relevant.sum() < len(relevant))
    assert m.auc(-scores, relevant) == pytest.approx(1 - m.auc(scores, relevant))
    assert m.macro_f1(scores, relevant, 0) <= m.accuracy(scores, relevant, 0) + 1e-12


@given(pairs, st.integers(1, 12))
@settings(max_examples=60, deadline=None)
def test_rankings_equal_trec_eval(values: list[tuple[int, float]], k: int) -> None:
    """trec_eval takes whole-number gains and breaks ties by falling id."""
    rng = np.random.default_rng(k)
    ids = [f"d{n:02d}-é" for n in rng.permutation(len(values))]
    gains = [{0.0: 0, 0.01: 1, 0.1: 2, 1.0: 3}[g] for _, g in values]
    scores = [s / 4 for s, _ in values]
    assume(any(gains))
    judged = pytrec_eval.RelevanceEvaluator(
        {"q": dict(zip(ids, gains, strict=True))}, {f"ndcg_cut.{k}", "recip_rank", f"recall.{k}", "ndcg"}
    ).evaluate({"q": dict(zip(ids, scores, strict=True))})["q"]
    relevant = np.array(gains) > 0
    assert m.ndcg(scores, gains, k, ties="trec", ids=ids) == pytest.approx(judged[f"ndcg_cut_{k}"], abs=1e-6)
    assert m.ndcg(scores, gains, ties="trec", ids=ids) == pytest.approx(judged["ndcg"], abs=1e-6)
    assert m.mrr(scores, relevant, ties="trec", ids=ids) == pytest.approx(judged["recip_rank"], abs=1e-6)
    assert m.recall_at(scores, relevant, k, ties="trec", ids=ids) == pytest.approx(judged[f"recall_{k}"], abs=1e-6)


def test_input_order_breaks_ties_when_asked() -> None:
    assert m.mrr([0.5, 0.5], [0, 1], ties="input") == 0.5
    assert m.recall_at([0.5, 0.5], [1, 0], 1, ties="input") == 1.0


@pytest.mark.parametrize("k", [1, 3, 10])
def test_ndcg_with_ties_equals_scikit_learn(k: int) -> None:
    scores, grades, _ = sample(5, n=20, decimals=1)
    assert m.ndcg(scores, grades, k) == pytest.approx(sk.ndcg_score([grades], [scores], k=k))


def test_weights_count_like_repeated_rows() -> None:
    scores, grades, relevant = sample(1, n=80, decimals=1)
    weights = np.random.default_rng(2).integers(0, 4, (5, 80)).astype(float)
    together = measure(pool(scores, grades, relevant, 0.5), weights)
    assert set(together) == set(POOLED)
    for row, weight in enumerate(weights):
        times = weight.astype(int)
        again = np.repeat(scores, times), np.repeat(grades, times), np.repeat(relevant, times)
        for name, values in together.items():
            plain = METRICS[name].function(again[0], against(name, again[1], again[2]))
            assert values[row] == pytest.approx(plain, abs=1e-12), name


def test_roc_equals_scikit_learn_and_ends_in_its_corners() -> None:
    scores, _, relevant = sample(0)
    false, true = m.roc(scores, relevant)
    theirs = sk.roc_curve(relevant, scores, drop_intermediate=False)
    np.testing.assert_allclose([false, true], theirs[:2])
    assert np.isnan(m.roc([0.5], [1])[0][-1])
    assert [len(rates) for rates in m.roc([], [])] == [1, 1]


def test_reliability_equals_scikit_learn() -> None:
    scores, _, relevant = sample(0)
    bins = m.reliability(scores, relevant)
    share, promised = calibration_curve(relevant, scores, n_bins=10)
    np.testing.assert_allclose([b.relevant for b in bins], share)
    np.testing.assert_allclose([b.probability for b in bins], promised)
    assert sum(b.pairs for b in bins) == len(scores)


@pytest.mark.parametrize("name", ["ece", "brier"])
def test_scores_that_are_no_probabilities_have_no_calibration(name: str) -> None:
    assert math.isnan(METRICS[name].function([12.0, -3.0], [1, 0]))


def test_names_with_a_cut_off_find_their_metric() -> None:
    assert metric("ndcg@10") is METRICS["ndcg"]
    assert not metric("ece").higher_is_better


def test_wrong_input_says_what_to_do() -> None:
    with pytest.raises(ScoringError, match=r"shape \(2,\) and judgments \(1,\)"):
        m.auc([0.1, 0.2], [1])
    with pytest.raises(ScoringError, match="scores must be finite numbers, got nan in row 1"):
        m.spearman([0.1, math.nan], [1, 0])
    with pytest.raises(ScoringError, match="0 or 1"):
        m.auc([0.1, 0.2], [0.5, 1])
    with pytest.raises(ScoringError, match="one id for each score"):
        m.mrr([0.1], [1], ties="trec")
    with pytest.raises(ScoringError, match="from 0 up"):
        m.ndcg([0.1, 0.2], [-1, 1])
