"""Timings in turns, with a clock of our own."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from pertinent.errors import DataError
from pertinent.evaluation.speed import Timings, latency, latency_stats, measure


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def spend(self, seconds: float, log: list[float]) -> None:
        self.now += seconds
        log.append(seconds)


def test_scorers_take_turns_and_warmup_does_not_count() -> None:
    clock, log = Clock(), []
    calls = {"a": lambda: clock.spend(0.001, log), "b": lambda: clock.spend(0.004, log)}
    timings = measure(calls, turns=3, warmup=2, items=10, clock=clock)
    assert log == [0.001, 0.004] * 5
    assert timings.turns == {"a": pytest.approx([1.0] * 3), "b": pytest.approx([4.0] * 3)}
    assert timings.ratio("b", to="a") == pytest.approx((4.0, 4.0, 4.0))
    assert timings.stats["b"].items_per_second == pytest.approx(2500)


def test_a_ratio_of_pairs_ignores_a_machine_that_slows_down() -> None:
    load = np.linspace(1, 5, 30)
    timings = Timings({"a": (2 * load).tolist(), "b": load.tolist()})
    assert timings.ratio("a", to="b") == pytest.approx((2.0, 2.0, 2.0))
    plain = json.loads(json.dumps(timings.plain(), allow_nan=False))
    assert plain["ratio_to"] == "a" and plain["ratios"]["b"]["value"] == 0.5


def test_latency_of_a_scorer_counts_calls_and_items(words: type[Any]) -> None:
    stats = latency(words(), "耳机", ["a", "b"], turns=5, warmup=1)
    assert (stats.turns, stats.items) == (5, 2)
    assert 0 < stats.lowest <= stats.p50 <= stats.p90 <= stats.p99 <= stats.highest
    assert stats.plain()["p50"] == stats.p50


def test_one_turn_and_no_titles_are_measured_too(words: type[Any]) -> None:
    assert latency(words(), "q", [], turns=1, warmup=0).items == 0
    assert latency_stats([0.0]).items_per_second == float("inf")


@pytest.mark.parametrize(("turns", "warmup", "scorers"), [(0, 0, {"a": list}), (1, -1, {"a": list}), (1, 0, {})])
def test_nothing_to_measure_is_refused(turns: int, warmup: int, scorers: dict[str, object]) -> None:
    with pytest.raises(DataError, match="give at least one"):
        measure(scorers, turns, warmup)  # type: ignore[arg-type]
