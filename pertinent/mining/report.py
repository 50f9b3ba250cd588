"""What a mined log holds, in numbers and on one page that opens offline.

The page has no script and nothing from outside; texts of the log (examples of what a check found) are escaped.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import ibis

from pertinent.charts import SHARE, Axis, Series, bars, line_chart, round_ticks
from pertinent.mining.clicks import level_counts
from pertinent.mining.schema import LEVELS
from pertinent.page import facts as fact_list
from pertinent.page import grid, page, section, table

if TYPE_CHECKING:
    from ibis import Table

TITLE = "Mined search log"
SEGMENTS = ("head", "torso", "tail")
# What is covered by neighbors, by the names of its counts: all, and those with neighbors.
COVERED = (("queries", "queries_with"), ("items", "items_with"), ("pairs", "kept"))
_EPOCH = dt.date(1970, 1, 1)


def day_name(day: int) -> str:
    """A day as a date.

    >>> day_name(20089)
    '2025-01-01'
    """
    return (_EPOCH + dt.timedelta(days=day)).isoformat()


def report_numbers(tables: Mapping[str, Table], found: Mapping[str, Any]) -> dict[str, Any]:
    """The content of the page as JSON-able values.

    ``tables`` are those of the artifact by name, but ``clicks`` has one row a pair; ``found`` has what is
    not in a table: ``checks``, ``notes``, ``told``, ``warnings``, ``coverage``, ``position_fit``, ``settings``.
    """
    days = _rows(tables["days"].order_by("day"))
    for row in days:
        row["date"] = day_name(row["day"])
    segments = _segments(tables["queries"], tables["neighbors_query"])
    numbers = {
        "title": TITLE,
        "days": days,
        "levels": {level: sum(row[level] for row in days) for level in LEVELS},
        "pairs_by_level": _pairs_by_level(tables["clicks"]),
        "positions": _rows(tables["positions"].order_by("position")),
        "segments": segments,
        **found,
    }
    return {"title": TITLE, "summary": _summary(tables, days, found), **numbers}


def report_page(numbers: Mapping[str, Any]) -> str:
    """The whole page as text."""
    summary, days = numbers["summary"], numbers["days"]
    lead = (
        f"{summary['events']:,} events of {len(days):,} days, {summary['first_day']} to {summary['last_day']}: "
        f"{summary['searches']:,} result pages, {summary['queries']:,} queries, {summary['items']:,} items."
    )
    told = [sentence for sentence in numbers["told"] if sentence not in numbers["warnings"]]
    warnings = "".join(f"<li><strong>{escape(warning)}</strong></li>" for warning in numbers["warnings"])
    body = (
        f"<header><h1>{escape(numbers['title'])}</h1><p>{escape(lead)}</p>{fact_list(numbers['settings'])}</header>",
        section("Warnings", f'<ul class="notes">{warnings}</ul>' if warnings else ""),
        section("Volume", grid([_volume_chart(days), _level_chart(numbers["levels"])])),
        section("Clicked pairs", _level_table(numbers)),
        section("Position", grid(_position_charts(numbers["positions"])), _position_note(numbers)),
        section("Queries", grid(_segment_charts(numbers["segments"])), _segment_table(numbers["segments"])),
        section(
            "Behavior neighbors",
            grid([_coverage_chart(numbers["coverage"]), _segment_coverage_chart(numbers["segments"])]),
            _coverage_table(numbers["coverage"]),
        ),
        section("Tables", _table_sizes(summary)),
        section("Checks", _check_table(numbers["checks"]), _notes(told)),
    )
    return page(numbers["title"], body)


# ---------------------------------------------------------------- numbers


def _rows(found: Table) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = found.to_pyarrow().to_pylist()
    return rows


def _one(found: Table) -> dict[str, int]:
    return {name: int(value or 0) for name, value in _rows(found)[0].items()}


def _summary(
    tables: Mapping[str, Table], days: Sequence[Mapping[str, Any]], found: Mapping[str, Any]
) -> dict[str, Any]:
    daily, queries, clicks = tables["daily"], tables["queries"], tables["clicks"]
    shown = _one(daily.agg(items=daily.item_id.nunique(), queries=daily["query"].nunique()))
    clear = _one(queries.agg(clear=queries.clear.fill_null(False).cast("int64").sum()))
    lists = {
        "neighbor_queries": tables["neighbors_query"]["query"].nunique(),
        "neighbor_items": tables["neighbors_item"].item_id.nunique(),
        "clicked_pairs": clicks.count(),
        "hot_queries": tables["hot_queries"].count(),
        "hot_pairs": tables["hot_pairs"].count(),
        "users_with_sequence": tables["sequences"].user_id.nunique(),
        "candidates": tables["candidates"].count(),
    }
    return {
        "events": sum(row["events"] for row in days),
        "first_day": days[0]["date"] if days else "",
        "last_day": days[-1]["date"] if days else "",
        "days": len(days),
        "searches": sum(row["searches"] for row in days),
        "queries": shown["queries"],
        "items": shown["items"],
        "clear_queries": clear["clear"],
        **{name: int(value.as_scalar().to_pyarrow().as_py() or 0) for name, value in lists.items()},
        "checks_found": sum(int(check["rows"]) for check in found["checks"]),
        "warnings": len(found["warnings"]),
    }


def _pairs_by_level(clicks: Table) -> list[dict[str, Any]]:
    return [{**row, "level": LEVELS[row["level"]]} for row in _rows(level_counts(clicks).order_by("level"))]


def _segments(queries: Table, lists: Table) -> list[dict[str, Any]]:
    lengths = lists.group_by("query").agg(neighbors=lists.count())
    joined = queries.left_join(lengths, "query")
    has = joined.neighbors.notnull()
    counts = joined.group_by("segment").agg(
        queries=joined.count(),
        searches=joined.searches.sum(),
        clicks=joined.clicks.sum(),
        clear=joined.clear.fill_null(False).cast("int64").sum(),
        with_neighbors=has.cast("int64").sum(),
        searches_with_neighbors=ibis.ifelse(has, joined.searches, 0).sum(),
    )
    found = {row["segment"]: row for row in _rows(counts)}
    return [{name: _whole(value) for name, value in found[s].items()} for s in SEGMENTS if s in found]


def _whole(value: Any) -> Any:
    """Sums as whole numbers: DuckDB gives some of them as decimals."""
    return value if isinstance(value, str) else int(value)


# ---------------------------------------------------------------- page


def _volume_chart(days: Sequence[Mapping[str, Any]]) -> str:
    if len(days) < 2:
        return ""
    last = days[-1]["day"]
    series = [Series(name, [(row["day"] - last, row[name]) for row in days]) for name in ("searches", "click", "users")]
    high = max(value for each in series for _, value in each.points) * 1.05 or 1
    low = days[0]["day"] - last
    return line_chart(
        "Volume by day",
        "Result pages, clicks and users of each day (UTC).",
        Axis(low, 0, f"days before {days[-1]['date']}", round_ticks(low, 0)),
        Axis(0, high, "a day", round_ticks(0, high)),
        series,
    )


def _level_chart(levels: Mapping[str, int]) -> str:
    return bars(
        "Level funnel",
        "Events of each behavior level, and their share of the level above.",
        [(name, count, _of_former(levels, name)) for name, count in levels.items()],
    )


def _of_former(levels: Mapping[str, int], name: str) -> str:
    place = LEVELS.index(name)
    former = levels[LEVELS[place - 1]] if place else 0
    return f"{levels[name]:,}" + (f" ({levels[name] / former:.1%})" if former else "")


def _level_table(numbers: Mapping[str, Any]) -> str:
    rows = [[escape(row["level"]), f"{row['pairs']:,}", f"{row['copies']:,}"] for row in numbers["pairs_by_level"]]
    return table("Clicked pairs by their deepest level", ["level", "pairs", "copies"], rows) if rows else ""


def _position_charts(positions: Sequence[Mapping[str, Any]]) -> list[str]:
    known = [row for row in positions if row["exposures"]]
    if len(known) < 2:
        return []
    rates = [(row["position"] + 1, row["clicks"] / row["exposures"]) for row in known]
    first = rates[0][1] or 1.0
    fitted = [(row["position"] + 1, row["propensity"]) for row in known if row["identified"]]
    relative = [(place, rate / first) for place, rate in rates]
    last = rates[-1][0]
    places = Axis(1, last, "place on the page", round_ticks(1, last))
    high = max(1.0, *(value for _, value in (*fitted, *relative))) * 1.02
    top = max(rate for _, rate in rates) * 1.05 or 1.0
    return [
        line_chart(
            "Position curve",
            "How likely a place is looked at, relative to the first: by the click model, and by click-through alone, "
            "which also sinks because better items stand higher.",
            places,
            Axis(0, high, "relative to the first place", SHARE),
            [Series("propensity", fitted), Series("click-through", relative)],
        ),
        line_chart(
            "Click-through by position",
            "Share of exposures at a place that were clicked.",
            places,
            Axis(0, top, "click-through", round_ticks(0, top)),
            [Series("click-through", rates)],
            dots=True,
        ),
    ]


def _position_note(numbers: Mapping[str, Any]) -> str:
    fit = numbers["position_fit"]
    text = (
        f"{fit['pairs_fitted']:,} of {fit['pairs_seen']:,} pairs were shown at several places and tell places apart; "
        f"the fit {'settled' if fit['converged'] else 'did not settle'} after {fit['rounds']:,} rounds."
    )
    return f'<p class="note">{escape(text)}</p>'


def _segment_charts(segments: Sequence[Mapping[str, Any]]) -> list[str]:
    totals = {count: sum(row[count] for row in segments) for count in ("queries", "searches")}
    return [
        bars(
            f"{count.capitalize()} by segment",
            f"{count.capitalize()} of head, torso and tail, and their share of all {count}.",
            [(row["segment"], row[count], _part(row[count], total)) for row in segments],
        )
        for count, total in totals.items()
        if total
    ]


def _coverage_chart(coverage: Mapping[str, Any]) -> str:
    return _share_bars(
        "Coverage of neighbors",
        "Share of queries and items in the window that have neighbors, and of pairs that are one.",
        [(name, coverage[kept], coverage[name]) for name, kept in COVERED],
    )


def _segment_coverage_chart(segments: Sequence[Mapping[str, Any]]) -> str:
    return _share_bars(
        "Searches with neighbors",
        "Share of the searches of each segment that are for a query with neighbors.",
        [(row["segment"], row["searches_with_neighbors"], row["searches"]) for row in segments],
    )


def _share_bars(title: str, text: str, rows: Sequence[tuple[str, int, int]]) -> str:
    """Bars of shares, beside one of the whole that they are measured by."""
    shares = [(name, some / of, f"{some / of:.1%}") for name, some, of in rows if of]
    return bars(title, text, [*shares, ("all", 1.0, "100%")]) if shares else ""


def _segment_table(segments: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [
            escape(row["segment"]),
            f"{row['queries']:,}",
            f"{row['searches']:,}",
            f"{row['clicks']:,}",
            _part(row["clear"], row["queries"]),
            _part(row["with_neighbors"], row["queries"]),
            _part(row["searches_with_neighbors"], row["searches"]),
        ]
        for row in segments
    ]
    header = ["segment", "queries", "searches", "clicks", "clear", "with neighbors", "searches with neighbors"]
    return table("Head, torso and tail queries", header, rows)


def _coverage_table(coverage: Mapping[str, Any]) -> str:
    rows = [[name, f"{coverage[name]:,}", _part(coverage[kept], coverage[name])] for name, kept in COVERED]
    return table("In the window of neighbors", ["", "all", "with neighbors"], rows)


def _table_sizes(summary: Mapping[str, Any]) -> str:
    names = ("clicked_pairs", "clear_queries", "hot_queries", "hot_pairs", "users_with_sequence", "candidates")
    return table(
        "What else was written", ["", "rows"], [[name.replace("_", " "), f"{summary[name]:,}"] for name in names]
    )


def _check_table(checks: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [
            escape(str(check["check"]).replace("_", " ")),
            f"{int(check['rows']):,}",
            escape(str(check["action"])),
            escape(str(check["example"] or "–")[:120]),
        ]
        for check in checks
    ]
    return table("What the checks found in the log that was read last", ["check", "rows", "action", "example"], rows)


def _notes(told: Sequence[str]) -> str:
    lines = "".join(f"<li>{escape(sentence)}</li>" for sentence in told)
    return f'<ul class="notes">{lines}</ul>' if lines else ""


def _part(some: int, of: int) -> str:
    return f"{some:,} ({some / of:.0%})" if of else "–"
