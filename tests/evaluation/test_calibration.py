"""Laws of calibrations and thresholds, with scikit-learn as oracle."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import _SigmoidCalibration
from sklearn.isotonic import IsotonicRegression

from pertinent.errors import ArtifactError, DataError, ScoringError
from pertinent.evaluation.calibration import (
    CALIBRATIONS,
    Calibrated,
    fit_calibration,
    fit_isotonic,
    fit_platt,
    rising,
    threshold_for_recall,
    threshold_table,
)
from pertinent.evaluation.metrics import calibration_error
from pertinent.probability import Platt, calibration_from, sigmoid


def sample(n: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    logits = np.round(rng.normal(size=n) * 3, 1)  # rounded: ties
    return logits, (rng.random(n) < sigmoid(0.7 * logits - 0.5)).astype(float)


def test_platt_equals_scikit_learn() -> None:
    logits, targets = sample()
    ours, theirs = fit_platt(logits, targets), _SigmoidCalibration().fit(logits, targets)
    np.testing.assert_allclose(ours(logits), theirs.predict(logits), atol=1e-5)


def test_platt_fit_with_soft_targets_is_a_stationary_point() -> None:
    logits, hard = sample()
    soft = np.clip(hard * 0.8 + 0.1, 0, 1)
    fitted = fit_platt(logits, soft)
    positive, negative = soft.sum(), (1 - soft).sum()
    low, high = 1 / (negative + 2), (positive + 1) / (positive + 2)
    gap = fitted(logits) - (low + (high - low) * soft)
    assert abs(gap.sum()) < 1e-6 and abs((gap * logits).sum()) < 1e-6


@pytest.mark.parametrize("seed", range(3))
def test_isotonic_equals_scikit_learn(seed: int) -> None:
    logits, targets = sample(seed=seed)
    theirs = IsotonicRegression(out_of_bounds="clip").fit(logits, targets)
    grid = np.linspace(-12, 12, 500)
    np.testing.assert_allclose(fit_isotonic(logits, targets, tilt=0)(grid), theirs.predict(grid), atol=1e-9)


@pytest.mark.parametrize("kind", CALIBRATIONS)
def test_calibrations_rise_strictly_and_stay_within_bounds(kind: str) -> None:
    logits, targets = sample()
    probabilities = fit_calibration(kind, logits, targets)(np.linspace(-12, 12, 200))
    assert (np.diff(probabilities) > 0).all()
    assert probabilities.min() >= 0 and probabilities.max() <= 1


@pytest.mark.parametrize("kind", CALIBRATIONS)
def test_a_fit_on_validation_lowers_the_calibration_error_elsewhere(kind: str) -> None:
    (logits, targets), (new, truth) = sample(4000), sample(4000, seed=1)
    fitted = fit_calibration(kind, logits, targets)
    assert calibration_error(fitted(new), truth) < calibration_error(sigmoid(new), truth) / 2


@pytest.mark.parametrize("kind", CALIBRATIONS)
def test_plain_round_trip_gives_an_equal_calibration(kind: str) -> None:
    fitted = fit_calibration(kind, *sample())
    assert calibration_from(json.loads(json.dumps(fitted.plain()))) == fitted


@pytest.mark.parametrize("kind", CALIBRATIONS)
@pytest.mark.parametrize("targets", [[1.0], [0.0], [0.3]])
def test_one_pair_can_be_fitted(kind: str, targets: list[float]) -> None:
    fitted = fit_calibration(kind, [2.0], targets)
    assert 0 <= fitted([2.0])[0] <= 1


@pytest.mark.parametrize("kind", CALIBRATIONS)
@pytest.mark.parametrize("target", [0.0, 1.0])
def test_one_class_or_equal_scores_stay_finite(kind: str, target: float) -> None:
    for logits in ([1.0, 2.0, 3.0], [1.0, 1.0, 1.0]):
        values = fit_calibration(kind, logits, [target] * 3)([-50.0, 0.0, 50.0])
        assert np.isfinite(values).all() and (np.diff(values) >= 0).all()


def test_separable_data_keep_a_finite_slope() -> None:
    assert 0 < fit_platt([-1.0, -2.0, 1.0, 2.0], [0, 0, 1, 1]).slope < 10


def test_scores_against_the_judgments_keep_their_order_and_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        fitted = fit_platt([3.0, 2.0, -2.0, -3.0], [0, 0, 1, 1])
    assert fitted.slope > 0 and "do not rise" in caplog.text
    assert fitted([0.0])[0] == pytest.approx(0.5)


@given(st.lists(st.floats(-1e6, 1e6), min_size=0, max_size=30))
@settings(max_examples=50, deadline=None)
def test_rising_is_monotone_keeps_the_mean_and_changes_nothing_twice(values: list[float]) -> None:
    array = np.array(values, dtype=float)
    fitted = rising(array, np.ones(len(array)))
    assert (np.diff(fitted) >= 0).all()
    np.testing.assert_allclose(fitted.sum(), array.sum(), atol=1e-3, rtol=1e-6)
    np.testing.assert_allclose(rising(fitted, np.ones(len(array))), fitted, atol=1e-6, rtol=1e-9)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sigmoid_does_not_overflow(dtype: type) -> None:
    assert sigmoid(np.array([-1e4, 0, 1e4], dtype=dtype)).tolist() == [0.0, 0.5, 1.0]


def test_threshold_table_counts_by_hand() -> None:
    low, high = threshold_table([0.9, 0.8, 0.3, 0.1], [1, 0, 1, 0], [0.2, 0.95])
    assert low == {"threshold": 0.2, "precision": 2 / 3, "recall": 1.0, "f1": 0.8, "kept": 0.75}
    assert high == {"threshold": 0.95, "precision": None, "recall": 0.0, "f1": 0.0, "kept": 0.0}


def test_threshold_table_of_nothing_is_undefined() -> None:
    assert all(row["kept"] is None and row["f1"] is None for row in threshold_table([], []))


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=40), st.floats(0.01, 1))
@settings(max_examples=100, deadline=None)
def test_threshold_for_recall_keeps_enough_and_is_the_highest(pairs: list[tuple[float, bool]], recall: float) -> None:
    scores, truth = np.array([p for p, _ in pairs]), np.array([r for _, r in pairs])
    if not truth.any():
        with pytest.raises(DataError, match="no relevant"):
            threshold_for_recall(scores, truth, recall)
        return
    cut = threshold_for_recall(scores, truth, recall)
    assert (scores[truth] >= cut).mean() >= recall - 1e-9
    assert (scores[truth] > cut).mean() < recall


def test_calibrated_scorer_keeps_name_order_and_dtype() -> None:
    class Words:
        name = "words"

        def score(self, query: str, titles: list[str]) -> np.ndarray:
            return np.array([len(title) for title in titles], dtype=np.float32)

    scorer = Calibrated(Words(), Platt(0.1, -1.0))
    scores = scorer.score("ohrhörer", ["耳机", "écouteurs", ""])
    assert scorer.name == "words" and scores.dtype == np.float32
    assert scores.argsort().tolist() == [2, 0, 1]
    assert scorer.score("q", []).shape == (0,)


@pytest.mark.parametrize(
    "broken",
    [
        {},
        {"type": "beta"},
        {"type": "platt", "slope": "steep", "intercept": 0},
        {"type": "platt", "slope": float("nan"), "intercept": 0},
        {"type": "isotonic", "logits": [1], "probabilities": [], "tilt": 0, "platt": Platt().plain()},
    ],
)
def test_broken_calibrations_are_refused(broken: dict[str, object]) -> None:
    with pytest.raises(ArtifactError, match="not a calibration"):
        calibration_from(broken)


def test_wrong_input_says_what_to_do() -> None:
    with pytest.raises(DataError, match="choose one of platt, isotonic"):
        fit_calibration("beta", [1], [1])
    with pytest.raises(DataError, match="validation split"):
        fit_platt([], [])
    with pytest.raises(ScoringError, match="2 scores for 1 judgments"):
        fit_platt([1, 2], [1])
    with pytest.raises(ScoringError, match="finite"):
        fit_isotonic([np.nan], [1])
    with pytest.raises(DataError, match="from 0 to 1"):
        fit_platt([1], [3])
    with pytest.raises(DataError, match="recall must be"):
        threshold_for_recall([0.5], [1], 0)
