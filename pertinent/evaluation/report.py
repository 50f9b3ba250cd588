"""One page a run: tables and charts of any number of scorers, in one HTML file that opens offline.

The JSON file beside it has the same numbers. Everything that came from outside (queries, names) is
escaped, and the page's own policy forbids scripts and outside files.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pertinent import __version__
from pertinent.artifact import write_json, write_text
from pertinent.charts import SHARE, Axis, Series, color, line_chart, log_ticks, ridges, round_ticks, scatter
from pertinent.errors import DataError
from pertinent.evaluation.calibration import threshold_for_recall, threshold_table
from pertinent.evaluation.metrics import metric, reliability, roc
from pertinent.evaluation.perturb import PERTURBATIONS
from pertinent.evaluation.resample import Estimate
from pertinent.evaluation.result import Evaluation
from pertinent.evaluation.robust_table import LOSS_HEAD, loss_chart, loss_rows
from pertinent.page import facts as fact_list
from pertinent.page import grid, page, section, table

if TYPE_CHECKING:
    from pertinent.evaluation.compare import Difference
    from pertinent.evaluation.speed import LatencyStats

CURVE_POINTS = 150
HISTOGRAM_BINS = 20
MOST_GRADES = 5
SHOWN_QUERIES = 12
RECALLS = (0.9, 0.95, 0.99)

Evaluations = Mapping[str, Evaluation]


def write_report(
    path: str | Path,
    evaluations: Evaluations,
    *,
    title: str = "Relevance report",
    facts: Mapping[str, str] | None = None,
    speeds: Mapping[str, LatencyStats] | None = None,
    comparisons: Mapping[str, Mapping[str, Difference]] | None = None,
    figures: Sequence[str] = (),
) -> Path:
    """The path of the HTML page, with a JSON file of the same numbers beside it.

    ``facts`` are names and values to print at the top (data, machine, command); ``speeds`` are by the
    same names as ``evaluations``; ``comparisons`` are by a name such as ``"three layers less BM25"``;
    ``figures`` come before the curves.
    If one of the two files cannot be written, both are as they were before.
    """
    path = Path(path)
    check_report_path(path)
    if not evaluations:
        raise DataError("no evaluation to report", path=path)
    shown = {"made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"), "pertinent": __version__, **(facts or {})}
    numbers = report_numbers(evaluations, title, shown, speeds or {}, comparisons or {})
    text = report_page(evaluations, title, shown, speeds or {}, comparisons or {}, figures)
    beside = path.with_suffix(".json")
    path.parent.mkdir(parents=True, exist_ok=True)
    before = beside.read_bytes() if beside.exists() else None
    write_json(beside, numbers)
    try:
        write_text(path, text)
    except BaseException:
        beside.unlink() if before is None else beside.write_bytes(before)
        raise
    return path


def check_report_path(path: str | Path) -> None:
    """Raises DataError where a report cannot be written, before any work is done for it."""
    path = Path(path)
    if path.is_dir():
        raise DataError("is a folder", path=path, fix=f"name a file in it, such as {path / 'report.html'}")
    if path.suffix.lower() not in (".html", ".htm"):
        raise DataError("the report is an HTML page, with JSON beside it", path=path, fix="name it report.html")
    if path.with_suffix(".json").is_dir():
        raise DataError("is a folder, but the JSON beside the report goes there", path=path.with_suffix(".json"))
    folder = next(place for place in path.absolute().parents if place.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise DataError(f"cannot write into {folder}", path=path, fix="choose another place")


def report_numbers(
    evaluations: Evaluations,
    title: str,
    facts: Mapping[str, str],
    speeds: Mapping[str, LatencyStats],
    comparisons: Mapping[str, Mapping[str, Difference]],
) -> dict[str, Any]:
    """The content of the page as JSON-able values."""
    return {
        "title": title,
        "facts": dict(facts),
        "evaluations": {
            name: each.plain()
            | {
                "reliability": [row._asdict() for row in reliability(each.scores, each.relevant)]
                if _probabilities(each)
                else None,
                "thresholds": _thresholds(each),
                "roc": [list(point) for point in _roc(each)],
            }
            for name, each in evaluations.items()
        },
        "speeds": {name: stats.plain() for name, stats in speeds.items()},
        "comparisons": {
            name: {which: difference.plain() for which, difference in each.items()}
            for name, each in comparisons.items()
        },
    }


def report_page(
    evaluations: Evaluations,
    title: str,
    facts: Mapping[str, str],
    speeds: Mapping[str, LatencyStats],
    comparisons: Mapping[str, Mapping[str, Difference]],
    figures: Sequence[str] = (),
) -> str:
    """The whole page as text."""
    first = next(iter(evaluations.values()))
    lead = (
        f"{len(first.scores):,} judged pairs of {len(first.queries):,} queries, "
        f"{int(first.relevant.sum()):,} of them relevant."
    )
    if len({each.judged for each in evaluations.values()}) > 1:
        lead = "The scorers below were measured on different judgments: do not compare their numbers."
    body = (
        f"<header><h1>{escape(title)}</h1><p>{escape(lead)}</p>{fact_list(facts)}</header>",
        section("Quality", _metrics_table(evaluations), _notes(evaluations)),
        section("At a glance", grid(figures)),
        section("Curves", grid([_roc_chart(evaluations), _reliability_chart(evaluations)])),
        section("Speed", _speed_table(evaluations, speeds), grid([_quality_against_latency(evaluations, speeds)])),
        section("Comparisons", *(_comparison_table(name, each) for name, each in comparisons.items())),
        section(
            "Scores by grade", grid([_histogram(n, name, evaluations[name]) for n, name in enumerate(evaluations)])
        ),
        section("Robustness", *_robustness(evaluations)),
        section("Slices", *_slice_tables(evaluations)),
        section("Thresholds", *(_threshold_details(name, each) for name, each in evaluations.items())),
        section("Queries to look at", *(_worst_queries(name, each) for name, each in evaluations.items())),
    )
    return page(title, body)


def _metrics_table(evaluations: Evaluations) -> str:
    names = dict.fromkeys(name for each in evaluations.values() for name in each.metrics)
    rows = []
    for name in names:
        known = metric(name)
        found = [each.metrics.get(name) for each in evaluations.values()]
        values = [math.nan if e is None else e.value for e in found]
        best = _best(values, known.higher_is_better)
        cells = [_estimate(e, at == best) for at, e in enumerate(found)]
        arrow = "" if known.higher_is_better else " <small>(lower is better)</small>"
        rows.append([f'<abbr title="{escape(known.text)}">{_name(name)}</abbr>{arrow}', *cells])
    return table("Metrics with their 95% intervals", ["metric", *_headers(evaluations)], rows)


def _comparison_table(title: str, differences: Mapping[str, Difference]) -> str:
    rows = [
        [
            _name(name),
            _estimate(Estimate(*d[:3]), False, signed=True),
            _p_value(d.p_value),
        ]
        for name, d in differences.items()
    ]
    return table(title, ["metric", "difference", "p-value"], rows)


def _speed_table(evaluations: Evaluations, speeds: Mapping[str, LatencyStats]) -> str:
    if not speeds:
        return ""
    rows = []
    for name, s in speeds.items():
        quality = evaluations[name].metrics["auc"] if name in evaluations else None
        times = [f"{value:,.1f}" for value in (s.p50, s.p90, s.p99)]
        rows.append([escape(name), *times, f"{s.items:,}", f"{s.items_per_second:,.0f}", _estimate(quality, False)])
    return table(
        "Milliseconds of one call", ["scorer", "p50", "p90", "p99", "items a call", "items a second", "auc"], rows
    )


def _quality_against_latency(evaluations: Evaluations, speeds: Mapping[str, LatencyStats]) -> str:
    both = [name for name in evaluations if name in speeds and math.isfinite(evaluations[name].metrics["auc"].value)]
    if not both:
        return ""
    series = [Series(n, [(speeds[n].p50, value) for value in evaluations[n].metrics["auc"]]) for n in both]
    values = [y for each in series for _, y in each.points if math.isfinite(y)]
    pad = max(0.02, (max(values) - min(values)) * 0.1)
    low, high = max(0.0, min(values) - pad), min(1.0, max(values) + pad)
    fastest, slowest = (pick(speeds[n].p50 for n in both) for pick in (min, max))
    x_low, x_high = fastest / 1.6, slowest * 1.6
    return scatter(
        "Quality against latency",
        "AUC with its interval over the median milliseconds of a call; up and to the left is better.",
        Axis(x_low, x_high, "milliseconds, p50 (log scale)", log_ticks(x_low, x_high), log=True),
        Axis(low, high, "AUC", round_ticks(low, high)),
        series,
    )


def _roc_chart(evaluations: Evaluations) -> str:
    share = Axis(0, 1, "share of irrelevant pairs kept", SHARE)
    series = [Series(name, _roc(each)) for name, each in evaluations.items()]
    return line_chart(
        "ROC",
        "How many irrelevant pairs come along when a share of the relevant ones is kept; the diagonal is chance.",
        share,
        share._replace(label="share of relevant pairs kept"),
        series,
        diagonal=True,
    )


def _reliability_chart(evaluations: Evaluations) -> str:
    series = [
        Series(name, [row[:2] for row in reliability(each.scores, each.relevant)] if _probabilities(each) else [])
        for name, each in evaluations.items()
    ]
    share = Axis(0, 1, "score", SHARE)
    return line_chart(
        "Reliability",
        "Share of relevant pairs among those with about that score; on the diagonal a score means what it says. "
        "Scorers whose scores are not probabilities are not drawn.",
        share,
        share._replace(label="share relevant"),
        series,
        diagonal=True,
        dots=True,
    )


def _histogram(number: int, name: str, each: Evaluation) -> str:
    low, high = (0.0, 1.0) if _probabilities(each) else (float(each.scores.min()), float(each.scores.max()))
    high = high if high > low else low + 1
    levels = np.unique(each.grades)[::-1]
    if len(levels) <= MOST_GRADES:
        groups = [(f"grade {level:g}", each.grades == level) for level in levels.tolist()]
    else:
        groups = [("relevant", each.relevant), ("not relevant", ~each.relevant)]
    rows = []
    for label, chosen in groups:
        counts = np.histogram(each.scores[chosen], bins=HISTOGRAM_BINS, range=(low, high))[0]
        rows.append((f"{label} ({int(chosen.sum()):,})", (counts / max(1, counts.sum())).tolist()))
    return ridges(
        name,
        "How the scores of each grade spread, each row to its own height; pairs in brackets.",
        Axis(low, high, "score", SHARE if (low, high) == (0, 1) else round_ticks(low, high)),
        rows,
        number,
    )


def _robustness(evaluations: Evaluations) -> list[str]:
    found = {name: each.robustness for name, each in evaluations.items() if each.robustness}
    if not found:
        return []
    changes = next(iter(found.values()))
    chart = loss_chart({change: {name: losses[change].loss for name, losses in found.items()} for change in changes})
    tables = [
        table(
            f"{name}: AUC lost when texts change", list(LOSS_HEAD), [[escape(c) for c in r] for r in loss_rows(losses)]
        )
        for name, losses in found.items()
    ]
    meanings = "".join(
        f"<li><strong>{change}</strong>: {escape(PERTURBATIONS[change].text)}</li>" for change in changes
    )
    return [grid([chart]), *tables, f'<ul class="notes">{meanings}</ul>']


def _slice_tables(evaluations: Evaluations) -> list[str]:
    tables = []
    slicings = dict.fromkeys(by for each in evaluations.values() for by in each.slices)
    ranking = next((name for each in evaluations.values() for name in each.metrics if name.startswith("ndcg@")), "mrr")
    for by in slicings:
        parts = {part: s for each in evaluations.values() for part, s in each.slices.get(by, {}).items()}
        for which in ("auc", ranking):
            rows = [
                [escape(part), *_slice_cells(evaluations, by, part, which), f"{s.queries:,}", f"{s.pairs:,}"]
                for part, s in parts.items()
            ]
            tables.append(table(f"{which} by {by}", [escape(by), *_headers(evaluations), "queries", "pairs"], rows))
    return tables


def _slice_cells(evaluations: Evaluations, by: str, part: str, which: str) -> list[str]:
    found = [each.slices.get(by, {}).get(part) for each in evaluations.values()]
    estimates = [None if s is None else s.metrics.get(which) for s in found]
    best = _best([math.nan if e is None else e.value for e in estimates], metric(which).higher_is_better)
    return [_estimate(e, at == best) for at, e in enumerate(estimates)]


def _threshold_details(name: str, each: Evaluation) -> str:
    rows = [
        [f"{row['threshold']:.3f}", *(_share(row[key]) for key in ("precision", "recall", "f1", "kept"))]
        for row in _thresholds(each)
    ]
    body = table(name, ["threshold", "precision", "recall", "F1", "kept"], rows)
    return f"<details><summary>{escape(name)}</summary>{body}</details>" if rows else ""


def _worst_queries(name: str, each: Evaluation) -> str:
    which = next((key for key in each.per_query if key.startswith("ndcg@")), "mrr")
    values = each.per_query[which]
    order = [row for row in np.argsort(values, kind="stable") if values[row] < 1][:SHOWN_QUERIES]
    judged = np.bincount(each.query_rows, minlength=len(each.queries))
    rows = [[escape(each.queries[row][:120]), f"{judged[row]:,}", f"{values[row]:.3f}"] for row in order]
    body = table(f"{name}: lowest {which}", ["query", "judged items", which], rows)
    return f"<details><summary>{escape(name)}</summary>{body}</details>" if rows else ""


def _thresholds(each: Evaluation) -> list[dict[str, float | None]]:
    """The threshold table: even steps, and the cuts that keep 90, 95 and 99% of the relevant pairs."""
    if not _probabilities(each):
        return []
    cuts = {step / 10 for step in range(1, 10)}
    if each.relevant.any():
        cuts |= {threshold_for_recall(each.scores, each.relevant, share) for share in RECALLS}
    return threshold_table(each.scores, each.relevant, sorted(cuts))


def _roc(each: Evaluation) -> list[tuple[float, float]]:
    false, true = roc(each.scores, each.relevant)
    if not (math.isfinite(false[-1]) and math.isfinite(true[-1])):
        return []
    rows = np.unique(np.linspace(0, len(false) - 1, CURVE_POINTS).round().astype(int))
    return [(round(float(false[row]), 4), round(float(true[row]), 4)) for row in rows]


def _probabilities(each: Evaluation) -> bool:
    return bool(each.scores.min() >= 0 and each.scores.max() <= 1)


def _best(values: Sequence[float], higher: bool) -> int | None:
    """The place of the best value, where there is more than one to choose from."""
    known = [(value if higher else -value, -place) for place, value in enumerate(values) if math.isfinite(value)]
    return -max(known)[1] if len(known) > 1 else None


def _estimate(estimate: Estimate | None, best: bool, signed: bool = False) -> str:
    if estimate is None or math.isnan(estimate.value):
        return "–"
    sign = "+" if signed else ""
    value = f"{estimate.value:{sign}.3f}"
    text = f'<strong title="best">{value}</strong>' if best else value
    if math.isnan(estimate.low):
        return text
    return f'{text} <span class="range">{estimate.low:{sign}.3f} to {estimate.high:{sign}.3f}</span>'


def _name(metric_name: str) -> str:
    """The name, which may break after an underscore."""
    return escape(metric_name).replace("_", "_<wbr>")


def _p_value(value: float) -> str:
    if math.isnan(value):
        return "–"
    return "&lt;0.001" if value < 0.001 else f"{value:.3f}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _headers(evaluations: Evaluations) -> list[str]:
    return [f'<span class="key {color(n)}"></span>{escape(name)}' for n, name in enumerate(evaluations)]


def _notes(evaluations: Evaluations) -> str:
    notes = dict.fromkeys(note for each in evaluations.values() for note in each.notes)
    return '<ul class="notes">' + "".join(f"<li>{escape(note)}</li>" for note in notes) + "</ul>"
