"""Counts by day: what a log becomes, and all that a later update needs of the days before.

A day of the log is a part of its own: counts of a day come from the events of that day alone, so a
new day is added, a day sent again is replaced, and an old one is dropped, without reading the log of
the others. Every other table of mining is made from these.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import ibis

from pertinent.mining.schema import (
    CLICK,
    DAILY,
    DAILY_POSITIONS,
    DAILY_SEARCHES,
    DAYS,
    EVENTS,
    LEVEL_NUMBERS,
    VIEW,
    require,
)

if TYPE_CHECKING:
    from ibis import Table


def page_items(events: Table) -> Table:
    """One row for an item on a result page: ``day, query, item_id, search_id, level, position``.

    ``level`` is the deepest thing that happened to it there that day, ``position`` the highest known
    place of its views, or where none is known, of what came after them. Events outside of a search are
    left out. A page that is used past midnight counts on both days.
    """
    require(events, EVENTS, "page_items")
    shown = events.filter(events.query != "")
    of_views = shown.position.min(where=shown.level == VIEW)
    return shown.group_by(["day", "query", "item_id", "search_id"]).agg(
        level=shown.level.max(), position=ibis.coalesce(of_views, shown.position.min())
    )


def daily_counts(pages: Table) -> Table:
    """The table `schema.DAILY` from `page_items`: exposures and clicks of a query and item by day.

    An item clicked on a page was shown there, also where the log has no row that says so.
    """
    clicked = (pages.level >= CLICK).cast("int64")
    counts = pages.group_by(["day", "query", "item_id"]).agg(
        exposures=pages.count(),
        clicks=clicked.sum(),
        deepest=pages.level.max(),
        position_sum=pages.position.cast("int64").sum().fill_null(0),
        positioned=pages.position.count(),
    )
    return _shaped(counts, DAILY)


def daily_positions(pages: Table) -> Table:
    """The table `schema.DAILY_POSITIONS` from `page_items`: the same counts by place on the page."""
    known = pages.filter(pages.position.notnull())
    counts = known.group_by(["day", "query", "item_id", "position"]).agg(
        exposures=known.count(), clicks=(known.level >= CLICK).cast("int64").sum()
    )
    return _shaped(counts, DAILY_POSITIONS)


def daily_searches(pages: Table) -> Table:
    """The table `schema.DAILY_SEARCHES` from `page_items`: result pages of a query by day, and clicked items."""
    counts = pages.group_by(["day", "query"]).agg(
        searches=pages.search_id.nunique(), clicks=(pages.level >= CLICK).cast("int64").sum()
    )
    return _shaped(counts, DAILY_SEARCHES)


def daily_actions(events: Table, min_level: str) -> Table:
    """What users did, of ``min_level`` or deeper, in the columns of `schema.EVENTS`, without page and session ids.

    Those ids may depend on which days were read together, and nothing that reads this table needs them.
    What nobody is known to have done is left out.
    """
    require(events, EVENTS, "daily_actions")
    done = events.filter(events.level >= LEVEL_NUMBERS[min_level], events.user_id != "")
    return _shaped(done.mutate(search_id=ibis.literal(""), session_id=ibis.literal("")), EVENTS)


def day_volumes(events: Table) -> Table:
    """The table `schema.DAYS`: events, result pages and known users of each day, and its events by level."""
    require(events, EVENTS, "day_volumes")
    searched = events.query != ""
    levels = {name: (events.level == number).cast("int64").sum() for name, number in LEVEL_NUMBERS.items()}
    counts = events.group_by("day").agg(
        events=events.count(),
        searches=events.search_id.nunique(where=searched),
        users=events.user_id.nunique(where=events.user_id != ""),
        **levels,
    )
    return _shaped(counts, DAYS)


def replace_days(old: Table, new: Table, days: Sequence[int]) -> Table:
    """``old`` with the rows of these days taken out and those of ``new`` put in."""
    kept = old.filter(~old.day.isin(list(days))) if days else old
    return ibis.union(kept, new.select(*kept.columns))


def first_seen(old: Table, new: Table, days: Sequence[int]) -> Table:
    """``new`` of `schema.DAILY_PAGES`, on these days joined by what ``old`` knows: the earlier time of each search."""
    if not days:
        return new
    both = ibis.union(old.filter(old.day.isin(list(days))).select(*new.columns), new.filter(new.day.isin(list(days))))
    place = ibis.row_number().over(ibis.window(group_by=["day", "search"], order_by=both["first"].asc()))
    ranked = both.mutate(place=place)
    first = ranked.filter(ranked.place == 0).select(*new.columns)
    return ibis.union(first, new.filter(~new.day.isin(list(days))))


def keep_days(table: Table, until_day: int, days: int) -> Table:
    """The rows of the ``days`` days before ``until_day``, which is not one of them."""
    return table.filter((table.day < until_day) & (table.day >= until_day - days))


def update_days(old: Table, new: Table, days: Sequence[int], until_day: int, keep: int) -> Table:
    """A day-by-day table after an update: these days replaced by ``new``, and what is too old dropped.

    Equal to the same table made from the whole log at once.
    """
    return keep_days(replace_days(old, new, days), until_day, keep)


def total_positions(daily: Table) -> Table:
    """`schema.DAILY_POSITIONS` summed over its days: ``query, item_id, position, exposures, clicks``."""
    return daily.group_by(["query", "item_id", "position"]).agg(
        exposures=daily.exposures.sum(), clicks=daily.clicks.sum()
    )


def _shaped(table: Table, columns: dict[str, str]) -> Table:
    return table.select(**{name: table[name].cast(kind) for name, kind in columns.items()})
