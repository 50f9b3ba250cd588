"""What became of the requests: outcomes, exact percentiles, counts by size."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
LADDER = (0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 0.9999)
# No answer came: the connection failed, or the time was over.
FAILED, TIMED_OUT = 0, -1


@dataclass(frozen=True, slots=True)
class Call:
    """A request ready to be sent. ``group`` is the number of its documents; ``number`` tells bodies apart."""

    group: int
    request: bytes
    number: int = 0


@dataclass(frozen=True, slots=True)
class Outcomes:
    """What became of each request of a timetable: columns of equal length, in its order.

    ``latency`` runs from the planned time, ``lag`` is how late the request was sent, both in seconds.
    ``status`` is that of HTTP, 0 for a failed connection and -1 for none in time. ``wrong`` marks answers
    that a check refused.
    """

    planned: Floats  # [n], seconds from the start
    group: NDArray[np.int64]  # [n]
    status: NDArray[np.int64]  # [n]
    latency: Floats  # [n]
    lag: Floats  # [n]
    wrong: NDArray[np.bool_]  # [n]
    problems: dict[str, int]

    def rows(self, mask: NDArray[np.bool_]) -> Outcomes:
        """Only some of the requests."""
        return Outcomes(
            self.planned[mask],
            self.group[mask],
            self.status[mask],
            self.latency[mask],
            self.lag[mask],
            self.wrong[mask],
            self.problems,
        )

    @property
    def answered(self) -> NDArray[np.bool_]:
        """Requests that got an answer with scores."""
        return np.equal(self.status, 200)

    @property
    def refused(self) -> NDArray[np.bool_]:
        """Requests that the server shed with 429."""
        return np.equal(self.status, 429)


@dataclass(frozen=True, slots=True)
class Group:
    """Requests of one size, or all of them (``documents`` None). Milliseconds are of answered requests."""

    documents: int | None
    sent: int
    answered: int
    good: int
    refused: int
    failed: int
    wrong: int
    percentiles_ms: dict[str, float]
    max_ms: float | None
    refused_p99_ms: float | None

    def plain(self) -> dict[str, Any]:
        """JSON-able values."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Load:
    """A run of the load tool. ``lag_p99_ms`` says how late requests were sent: high where the tool is the limit."""

    url: str
    rate: float
    seconds: float
    total: Group
    groups: tuple[Group, ...]
    goodput: float
    documents_per_second: float
    lag_p99_ms: float
    statuses: dict[str, int]
    problems: dict[str, int]
    report: str | None = None

    def plain(self) -> dict[str, Any]:
        """JSON-able values."""
        values = {name: getattr(self, name) for name in self.__slots__}
        return {**values, "total": self.total.plain(), "groups": [group.plain() for group in self.groups]}


def percentiles(values: Floats) -> dict[str, float]:
    """Exact percentiles by their names; those that so few values cannot tell are left out.

    >>> percentiles(np.arange(1.0, 101.0))
    {'p50': 50.0, 'p75': 75.0, 'p90': 90.0, 'p95': 95.0, 'p99': 99.0}
    """
    told = [share for share in LADDER if len(values) * (1 - share) >= 1 - 1e-9 or (share == 0.5 and len(values))]
    return {f"p{100 * share:g}": float(np.quantile(values, share, method="inverted_cdf")) for share in told}


def group_of(documents: int | None, outcomes: Outcomes, within_ms: float | None) -> Group:
    """The counts and percentiles of some requests."""
    answered, refused = outcomes.answered, outcomes.refused
    taken = 1_000 * outcomes.latency[answered]
    in_time = answered & ~outcomes.wrong & (outcomes.latency <= (within_ms or np.inf) / 1_000)
    shed = percentiles(1_000 * (outcomes.latency - outcomes.lag)[refused])
    return Group(
        documents=documents,
        sent=len(outcomes.status),
        answered=int(answered.sum()),
        good=int(in_time.sum()),
        refused=int(refused.sum()),
        failed=int((~answered & ~refused).sum()),
        wrong=int(outcomes.wrong.sum()),
        percentiles_ms={name: round(value, 3) for name, value in percentiles(taken).items()},
        max_ms=round(float(taken.max()), 3) if len(taken) else None,
        refused_p99_ms=round(shed.get("p99", max(shed.values())), 3) if shed else None,
    )


def summary(
    outcomes: Outcomes, url: str, rate: float, seconds: float, within_ms: float | None, report: str | None = None
) -> Load:
    """The figures of a run."""
    sizes = np.unique(outcomes.group).tolist()
    groups = tuple(group_of(size, outcomes.rows(outcomes.group == size), within_ms) for size in sizes)
    total = group_of(None, outcomes, within_ms)
    scored = int(outcomes.group[outcomes.answered].sum())
    lag = percentiles(1_000 * outcomes.lag)
    statuses = Counter(outcomes.status.tolist())
    names = {FAILED: "failed", TIMED_OUT: "timed out"}
    return Load(
        url=url,
        rate=rate,
        seconds=seconds,
        total=total,
        groups=groups,
        goodput=round(total.good / seconds, 2),
        documents_per_second=round(scored / seconds, 1),
        lag_p99_ms=round(lag.get("p99", max(lag.values(), default=0.0)), 3),
        statuses={names.get(status, str(status)): count for status, count in sorted(statuses.items())},
        problems=outcomes.problems,
        report=report,
    )
