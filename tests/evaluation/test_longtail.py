from __future__ import annotations

import numpy as np
import pytest

from pertinent.errors import ArtifactError, DataError
from pertinent.evaluation.longtail import fit_history_weight
from pertinent.probability import HistoryWeight

Columns = tuple[np.ndarray, ...]


def pairs(seed: int, n: int = 600) -> Columns:
    """Behavior is right where a query was asked often, text where it was not."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, n).astype(float)
    asked = rng.choice([2, 2000], n)
    right, wrong = 0.15 + 0.7 * label, rng.uniform(0.3, 0.7, n)
    often = asked > 100
    return np.where(often, right, wrong), np.where(often, wrong, right), label, asked, np.full(n, 50)


def loss(scores: np.ndarray, label: np.ndarray) -> float:
    return float(-np.mean(label * np.log(scores) + (1 - label) * np.log(1 - scores)))


def test_the_weight_follows_the_history() -> None:
    behavior, text, label, asked, shown = pairs(0)
    five = np.full(len(label), 5)
    fitted = fit_history_weight(behavior, text, label, asked, shown, five, five)
    assert fitted([2000], [50], [5], [5])[0] > 0.8
    assert fitted([2], [50], [5], [5])[0] < 0.2
    behavior, text, label, asked, shown = pairs(1)
    weight = fitted(asked, shown, five, five)
    mixed = weight * behavior + (1 - weight) * text
    assert loss(mixed, label) < min(loss(behavior, label), loss(text, label), loss((behavior + text) / 2, label))


def test_pairs_without_neighbors_have_no_weight_and_do_not_count() -> None:
    behavior, text, label, asked, shown = pairs(0)
    five, none = np.full(len(label), 5), np.zeros(len(label))
    fitted = fit_history_weight(behavior, text, label, asked, shown, five, five)
    assert (fitted(asked, shown, none, none) == 0).all()
    assert (fitted(asked, shown, five, none) > 0).all()
    twice = [np.concatenate([each, other]) for each, other in ((behavior, 1 - label), (text, label), (label, label))]
    twice += [np.concatenate([each, each]) for each in (asked, shown)]
    counts = np.concatenate([five, none])
    again = fit_history_weight(*twice, counts, counts)
    assert again.coefficients == pytest.approx(fitted.coefficients)


def test_without_evidence_both_weigh_the_same() -> None:
    nothing = fit_history_weight([], [], [], [], [], [], [])
    assert nothing([9], [9], [1], [0]).tolist() == [0.5]
    same = fit_history_weight([0.5, 0.5], [0.5, 0.5], [0, 1], [1, 1], [1, 1], [1, 1], [1, 1])
    assert same([1], [1], [1], [1])[0] == pytest.approx(0.5)


def test_it_is_read_back_and_damage_is_named() -> None:
    weight = HistoryWeight((0.1, -2.0, 3.0, 0.0, 1.5))
    assert HistoryWeight.from_plain(weight.plain()) == weight
    for broken in (
        {},
        None,
        {"coefficients": [1, 2]},
        {"coefficients": ["x"] * 5},
        {"coefficients": [float("nan")] * 5},
    ):
        with pytest.raises(ArtifactError, match="not a history weight"):
            HistoryWeight.from_plain(broken)
    with pytest.raises(DataError, match="different lengths"):
        fit_history_weight([0.5], [0.5], [1], [1, 2], [1, 2], [1, 2], [1, 2])
