"""Rank correlation, with scipy as oracle."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import spearmanr

from pertinent.correlation import spearman
from pertinent.evaluation import metrics


def test_spearman_is_scipys_and_that_of_the_metrics() -> None:
    random = np.random.default_rng(0)
    a, b = random.integers(0, 9, 50), random.normal(size=50)
    assert spearman(a, b) == pytest.approx(spearmanr(a, b).statistic)
    assert spearman(a, b) == pytest.approx(metrics.spearman(a, b), abs=1e-12)
    assert spearman(b, -(b**3)) == -1.0


@pytest.mark.parametrize(("a", "b"), [([], []), ([1], [1]), ([1, 1, 1], [1, 2, 3]), ([1, 1], [1, 1])])
def test_what_is_constant_or_too_short_has_no_correlation(a: list[float], b: list[float]) -> None:
    assert math.isnan(spearman(a, b))
