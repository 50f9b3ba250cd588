"""The report of ``pertinent load``: one HTML page without scripts."""

from __future__ import annotations

from html import escape
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pertinent.charts import Axis, Series, line_chart, log_ticks, round_ticks
from pertinent.load.plan import LoadConfig
from pertinent.load.results import Group, Load, Outcomes
from pertinent.page import facts, grid, page, section, table

HEADER = ("documents", "sent", "answered", "in time", "refused", "failed", "p50", "p90", "p99", "p99.9", "longest")


def write_page(path: Path, config: LoadConfig, result: Load, outcomes: Outcomes) -> None:
    """Write the report of a run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(report(config, result, outcomes), encoding="utf-8")


def report(config: LoadConfig, result: Load, outcomes: Outcomes) -> str:
    """The page as text."""
    told = {
        "server": config.url,
        "dialect": f"{config.dialect}, by {config.by}",
        "arrivals": f"{config.rate:g} a second, {config.arrivals}",
        "time": f"{config.seconds:g} s",
        "good answers": f"{result.goodput:g} a second",
        "documents": f"{result.documents_per_second:,.0f} a second",
        "sent late, p99": f"{result.lag_p99_ms:.1f} ms",
        "answers": ", ".join(f"{count} × {status}" for status, count in result.statuses.items()),
    }
    groups = [*result.groups, result.total] if len(result.groups) > 1 else list(result.groups)
    rows = [[escape(cell) for cell in row_of(group)] for group in groups]
    return page(
        "Load",
        [
            "<h1>Load</h1>",
            facts(told),
            section("Latency in milliseconds", table("Latency by size of request", HEADER, rows), WORDS),
            section("Charts", grid([_ladder(outcomes), _over_time(outcomes), _rates(outcomes)])),
        ],
    )


WORDS = (
    "<p>Latency runs from the time at which the timetable wanted a request sent, so waiting for a connection and "
    "behind slow answers is in it. Percentiles are exact: every latency was kept.</p>"
)


def row_of(group: Group) -> list[str]:
    """The cells of one row, as text; a percentile that so few answers cannot tell is a dash."""
    told = [group.percentiles_ms.get(name) for name in ("p50", "p90", "p99", "p99.9")]
    counts = (group.sent, group.answered, group.good, group.refused, group.failed)
    return [
        "all" if group.documents is None else str(group.documents),
        *map(str, counts),
        *("-" if value is None else f"{value:.1f}" for value in (*told, group.max_ms)),
    ]


def _ladder(outcomes: Outcomes) -> str:
    """Latency by how rare it is, one line a size."""
    series, high, low, rarest = [], 1e-3, np.inf, 10.0
    for size in np.unique(outcomes.group).tolist():
        values = np.sort(1_000 * outcomes.latency[outcomes.answered & (outcomes.group == size)])
        if len(values) < 2:
            continue
        one_in = np.geomspace(1, len(values), 60)
        places = np.minimum(np.ceil(len(values) * (1 - 1 / one_in)).astype(int), len(values) - 1)
        points = [(float(a), float(values[place])) for a, place in zip(one_in, places, strict=True)]
        series.append(Series(f"{size} documents", points))
        low, high = min(low, float(values[0])), max(high, float(values[-1]))
        rarest = max(rarest, float(len(values)))
    if not series:
        return ""
    low = max(low, 1e-3)
    x = Axis(1.0, rarest, "one answer in so many is slower", log_ticks(1.0, rarest), log=True)
    y = Axis(low * 0.9, high * 1.1, "ms", log_ticks(low * 0.9, high * 1.1), log=True)
    return line_chart("Latency by rarity", "How slow the slowest one in ten, hundred, thousand is.", x, y, series)


def _seconds(outcomes: Outcomes) -> NDArray[np.int64]:
    """The second of each request, from that of the first."""
    first = float(outcomes.planned.min(initial=np.inf))
    return np.floor(outcomes.planned - first).astype(np.int64, copy=False)


def _over_time(outcomes: Outcomes) -> str:
    if not outcomes.answered.any():
        return ""
    second = _seconds(outcomes)
    names = (("median", 0.5), ("p99", 0.99), ("longest", 1.0))
    points: dict[str, list[tuple[float, float]]] = {name: [] for name, _ in names}
    for each in np.unique(second).tolist():
        values = 1_000 * outcomes.latency[(second == each) & outcomes.answered]
        if len(values):
            for name, share in names:
                points[name].append((float(each), float(np.quantile(values, share, method="inverted_cdf"))))
    every = [value for line in points.values() for _, value in line]
    low, high = max(1e-3, min(every)) * 0.9, max(every) * 1.1
    last = max(1.0, float(second.max()))
    x = Axis(0.0, last, "second", round_ticks(0.0, last))
    y = Axis(low, high, "ms", log_ticks(low, high), log=True)
    series = [Series(name, line) for name, line in points.items()]
    return line_chart("Latency over time", "Latency of the answers to requests of each second.", x, y, series)


def _rates(outcomes: Outcomes) -> str:
    if not len(outcomes.planned):
        return ""
    second = _seconds(outcomes)
    count = int(second.max()) + 1
    lines = {"sent": np.ones(len(second), bool), "answered": outcomes.answered, "refused": outcomes.refused}
    series = []
    for name, mask in lines.items():
        totals = np.bincount(second[mask], minlength=count)
        series.append(Series(name, [(float(each), float(total)) for each, total in enumerate(totals)]))
    high = max(1.0, max(value for line in series for _, value in line.points)) * 1.1
    last = max(1.0, float(count - 1))
    x = Axis(0.0, last, "second", round_ticks(0.0, last))
    y = Axis(0.0, high, "requests a second", round_ticks(0.0, high))
    return line_chart("Requests a second", "Sent, answered and refused, by the second they were due.", x, y, series)
