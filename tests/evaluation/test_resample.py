"""The bootstrap by query: what it draws, and whether its intervals hold what they promise."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest

from pertinent.evaluation.pooled import pool
from pertinent.evaluation.resample import Estimate, draws, interval, resampled, weighted_mean


def test_draws_do_not_depend_on_blocks_and_repeat_with_the_seed() -> None:
    whole = np.concatenate(list(draws(7, 20, seed=3, block=100)))
    np.testing.assert_array_equal(whole, np.concatenate(list(draws(7, 20, seed=3, block=3))))
    assert (whole.sum(axis=1) == 7).all()
    assert not np.array_equal(whole, np.concatenate(list(draws(7, 20, seed=4, block=100))))


def test_intervals_cover_a_known_mean_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(200):
        values = rng.normal(3.0, 1.0, 60)
        counts = next(draws(60, 300, seed, 300))
        low, high = interval(weighted_mean(values, counts))
        hits += low <= 3.0 <= high
    assert 0.88 <= hits / 200 <= 0.99


def test_whole_queries_are_drawn_so_repeating_pairs_inside_a_query_narrows_nothing() -> None:
    rng = np.random.default_rng(1)
    scores, relevant, query = rng.random(60), rng.random(60) < 0.5, np.repeat(np.arange(20), 3)

    def width(times: int) -> float:
        view = pool(np.repeat(scores, times), np.repeat(relevant, times) * 1.0, np.repeat(relevant, times), 0.5)
        found = resampled(view, np.repeat(query, times), {"mrr": np.ones(20)}, 500, 0)
        low, high = interval(found["auc"])
        return high - low

    assert width(5) == pytest.approx(width(1))


def test_resampling_is_fast_enough_to_do_it_always() -> None:
    rng = np.random.default_rng(0)
    scores, grades = rng.random(2500), rng.choice([0, 0.01, 0.1, 1.0], 2500)
    view = pool(scores, grades, grades >= 1, 0.5)
    start = time.process_time()
    found = resampled(view, np.sort(rng.integers(120, size=2500)), {"mrr": np.ones(120)}, 1000, 0)
    assert time.process_time() - start < 10  # about one second on an idle core
    assert all(values.shape == (1000,) for values in found.values())


def test_undefined_values_stay_out() -> None:
    assert all(math.isnan(end) for end in interval(np.array([np.nan, 1.0])))
    assert interval(np.array([np.nan, 1.0, 1.0])) == (1.0, 1.0)
    assert str(Estimate(math.nan, math.nan, math.nan)) == "undefined"
    assert str(Estimate(0.5, math.nan, math.nan)) == "0.500"
    assert Estimate(0.5, math.nan, math.nan).plain() == {"value": 0.5, "low": None, "high": None}
