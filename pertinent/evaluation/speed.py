"""Latency of any scorer, and of several side by side in the same run.

One scorer's milliseconds change with the machine's mood; the ratio of two that take turns does not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from pertinent.errors import DataError
from pertinent.evaluation.resample import Estimate, interval
from pertinent.records import PairScorer


class LatencyStats(NamedTuple):
    """Milliseconds of one call, over ``turns`` calls of ``items`` items each."""

    p50: float
    p90: float
    p99: float
    mean: float
    lowest: float
    highest: float
    turns: int
    items: int = 1

    @property
    def items_per_second(self) -> float:
        """Items a second at the median."""
        return self.items / self.p50 * 1000 if self.p50 else float("inf")

    def plain(self) -> dict[str, float | int]:
        """JSON-able, in milliseconds."""
        return self._asdict()


@dataclass(frozen=True, slots=True)
class Timings:
    """Milliseconds of each turn of each scorer; turn i of all scorers ran one after the other."""

    turns: dict[str, list[float]]
    items: int = 1

    @property
    def stats(self) -> dict[str, LatencyStats]:
        """The summary of each scorer."""
        return {name: latency_stats(times, self.items) for name, times in self.turns.items()}

    def ratio(self, name: str, to: str, seed: int = 0) -> Estimate:
        """How many times the time of ``to`` the scorer ``name`` takes: median over turns, with interval.

        >>> Timings({"slow": [4.0, 8.0, 6.0], "fast": [2.0, 4.0, 3.0]}).ratio("slow", to="fast").value
        2.0
        """
        pairs = np.array(self.turns[name]) / np.array(self.turns[to])
        drawn = np.random.default_rng(seed).integers(len(pairs), size=(1000, len(pairs)))
        return Estimate(float(np.median(pairs)), *interval(np.median(pairs[drawn], axis=1)))

    def plain(self) -> dict[str, Any]:
        """JSON-able: the summary of each scorer, and its ratio to the first one."""
        first = next(iter(self.turns))
        return {
            "milliseconds": {name: stats.plain() for name, stats in self.stats.items()},
            "ratio_to": first,
            "ratios": {name: self.ratio(name, first).plain() for name in self.turns},
        }


def latency_stats(milliseconds: Sequence[float], items: int = 1) -> LatencyStats:
    """The summary of measured times.

    >>> latency_stats([1.0, 2.0, 3.0]).p50
    2.0
    """
    times = np.asarray(milliseconds, dtype=np.float64)
    p50, p90, p99 = np.percentile(times, [50, 90, 99]).tolist()
    return LatencyStats(p50, p90, p99, float(times.mean()), float(times.min()), float(times.max()), len(times), items)


def latency(scorer: PairScorer, query: str, titles: Sequence[str], turns: int, warmup: int) -> LatencyStats:
    """How long the scorer takes for one query and these titles, over ``turns`` calls after ``warmup``."""
    timings = measure({scorer.name: lambda: scorer.score(query, titles)}, turns, warmup, items=len(titles))
    return timings.stats[scorer.name]


def measure(
    scorers: Mapping[str, Callable[[], object]],
    turns: int,
    warmup: int,
    items: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> Timings:
    """Times of calls that take turns: A B C, A B C... after ``warmup`` rounds that do not count.

    >>> seconds = iter([0.0, 0.002, 0.002, 0.005])
    >>> measure({"a": list, "b": list}, turns=1, warmup=0, clock=lambda: next(seconds)).turns
    {'a': [2.0], 'b': [3.0]}
    """
    if turns < 1 or warmup < 0 or not scorers:
        raise DataError(
            f"cannot measure {len(scorers)} scorers over {turns} turns after {warmup}; give at least one of each"
        )
    times: dict[str, list[float]] = {name: [] for name in scorers}
    for turn in range(-warmup, turns):
        for name, call in scorers.items():
            start = clock()
            call()
            spent = clock() - start
            if turn >= 0:
                times[name].append(round(spent * 1000, 6))
    return Timings(times, items)
