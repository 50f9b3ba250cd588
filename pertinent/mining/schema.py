"""The columns of the tables that mining steps read and write: one place for each name and type.

Steps are functions from Ibis tables to Ibis tables and speak these names. Times are whole
microseconds since 1970 in UTC and sums are whole numbers, because those are the same on every
engine; shares and averages are computed once, at the end of a step.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, get_args

from pertinent.records import Level

if TYPE_CHECKING:
    import ibis

# Behavior levels in order of depth (ei-SRC, section 3.1); a view is an item shown, and no click.
LEVELS: tuple[str, ...] = get_args(Level)
LEVEL_NUMBERS = MappingProxyType({name: number for number, name in enumerate(LEVELS)})
VIEW, CLICK = LEVEL_NUMBERS["view"], LEVEL_NUMBERS["click"]

MICROSECONDS = 1_000_000
DAY = 86_400 * MICROSECONDS

# One row for one item in one event, after reading and checking.
EVENTS = {
    "search_id": "string",  # the result page it belongs to; made from session and query where the source has none
    "session_id": "string",
    "user_id": "string",  # "" for nobody: the log named neither user nor session
    "query": "string",  # normalized by pertinent.text.normalize; "" for events outside of a search
    "item_id": "string",
    "level": "int8",  # a place in LEVELS
    "position": "int32",  # on the page, from 0; null where unknown
    "time": "int64",  # microseconds since 1970, UTC
    "day": "int32",  # days since 1970, UTC
}

# What happened to a (query, item) on one day: what daily updates add and take away.
DAILY = {
    "day": "int32",
    "query": "string",
    "item_id": "string",
    "exposures": "int64",  # result pages that showed the item
    "clicks": "int64",  # result pages on which it was clicked or more, never above exposures
    "deepest": "int8",  # a place in LEVELS
    "position_sum": "int64",  # over the exposures with a known position
    "positioned": "int64",  # exposures with a known position
}

# The same by place on the page: what position curves and position-debiased clicks are made of.
DAILY_POSITIONS = {
    "day": "int32",
    "query": "string",
    "item_id": "string",
    "position": "int32",
    "exposures": "int64",
    "clicks": "int64",
}

# How often a query was asked on a day.
DAILY_SEARCHES = {
    "day": "int32",
    "query": "string",
    "searches": "int64",  # result pages
    "clicks": "int64",  # items clicked on them, an item once a page
}

# When a search was first seen on a day, whatever the checks said of its rows: what tells late events in an update.
DAILY_PAGES = {
    "day": "int32",
    "search": "string",  # a digest of the search id
    "first": "int64",  # microseconds since 1970, UTC
}

# What a day of the log holds, with one column a level.
DAYS = {
    "day": "int32",
    "events": "int64",
    "searches": "int64",
    "users": "int64",
    **dict.fromkeys(LEVELS, "int64"),
}


def require(table: ibis.Table, columns: dict[str, str], step: str) -> None:
    """Assert that a table has the columns of a contract, with their types; a mistake of ours, not of a user."""
    schema = table.schema()
    for name, kind in columns.items():
        found = str(schema[name]).removeprefix("!") if name in schema else "absent"
        assert found == kind, f"{step}: column {name} is {found}, expected {kind}"
