"""Sessions and result pages, for the rows of a log that do not say which ones they belong to."""

from __future__ import annotations

import ibis
import ibis.expr.types as ir
from pydantic import Field

from pertinent.config import Config
from pertinent.mining.schema import MICROSECONDS

MINUTE = 60 * MICROSECONDS


class SessionConfig(Config):
    """A pause of more than ``gap_minutes`` ends a session, and a result page."""

    gap_minutes: int = Field(30, ge=1)


def sessions(events: ibis.Table, gap_minutes: int) -> ibis.Table:
    """The same rows, each with a session id.

    Rows that have one keep it. The others are cut where a user pauses for more than
    ``gap_minutes``; such a row takes the session of the user's latest row before it in the same
    stretch, else of the first row after it that has one, else an id made from user and start.
    Other columns pass through. Rows need ``user_id``, ``session_id`` and ``time``.
    """
    return _filled(events, "session_id", ["user_id"], gap_minutes)


def search_ids(events: ibis.Table, gap_minutes: int) -> ibis.Table:
    """The same rows, each with a search id: the result page it belongs to.

    Rows that have one keep it. The others belong to the page of the same session and query, until
    that query rests for more than ``gap_minutes``: see `sessions` for which id they take.
    """
    return _filled(events, "search_id", ["session_id", "query"], gap_minutes)


def latest_before(rows: ibis.Table, marks: ibis.Table, keys: list[str]) -> ibis.Table:
    """For each distinct ``keys`` and ``time`` of the rows: the latest mark at or before it.

    ``marks`` have the keys, ``time`` and a ``value``; of several at one moment the greatest counts.
    Columns: the keys, ``time``, ``source`` (the mark's time) and ``value``, both null where there is none.
    """
    moments = rows.select(*keys, "time", value=ibis.null("string"), asks=ibis.literal(1))
    both = moments.union(marks.select(*keys, "time", "value", asks=ibis.literal(0)), distinct=False)
    line = both.group_by([*keys, "time"]).agg(value=both.value.max(), asks=both.asks.max())
    marked = ibis.cases((line.value.notnull(), line.time), else_=ibis.null("int64"))
    line = line.mutate(source=marked.max().over(so_far(keys)))
    at = line.filter(line.value.notnull())
    at = at.select(*[at[key].name(f"of_{key}") for key in keys], of_time="time", found="value")
    line = line.filter(line.asks == 1).drop("value")
    joined = line.left_join(at, [*[line[key] == at[f"of_{key}"] for key in keys], line.source == at.of_time])
    return joined.select(*keys, "time", "source", value="found")


def so_far(keys: list[str]) -> ibis.expr.builders.WindowBuilder:
    """The window of all rows with the same keys up to this one, in order of time."""
    return ibis.window(group_by=keys, order_by="time", preceding=None, following=0)


def _filled(events: ibis.Table, name: str, keys: list[str], gap_minutes: int) -> ibis.Table:
    """The rows with column ``name`` filled within stretches of the rows that share ``keys``."""
    given = events.filter(events[name].notnull())
    absent = events.filter(events[name].isnull())
    # Only rows that share their keys with an absent one are sorted: in most logs there are none.
    concerned = events.semi_join(absent.select(*keys).distinct(), keys)
    line = _stretches(concerned.select(*keys, "time", value=name), keys, gap_minutes)
    ids = line.select(*[line[key].name(f"of_{key}") for key in keys], of_time="time", chosen=_chosen(line, name, keys))
    filled = absent.left_join(ids, [*[absent[key] == ids[f"of_{key}"] for key in keys], absent.time == ids.of_time])
    filled = filled.select(*[filled.chosen.name(name) if c == name else filled[c] for c in events.columns])
    return given.union(filled, distinct=False)


def _stretches(rows: ibis.Table, keys: list[str], gap_minutes: int) -> ibis.Table:
    """One row for each moment, with the start of its stretch and the ids given before and after it in there."""
    line = rows.group_by([*keys, "time"]).agg(value=rows.value.min())
    ordered = ibis.window(group_by=keys, order_by="time")
    rest = (line.time - line.time.lag().over(ordered)) > gap_minutes * MINUTE
    line = line.mutate(begins=ibis.cases((rest.fill_null(True), line.time), else_=ibis.null("int64")))
    line = line.mutate(start=line.begins.max().over(so_far(keys)))
    marked = ibis.cases((line.value.notnull(), line.time), else_=ibis.null("int64"))
    within = [*keys, "start"]
    before, after = marked.max().over(so_far(within)), marked.min().over(ibis.window(group_by=within))
    line = line.mutate(source=ibis.coalesce(before, after))
    at = line.filter(line.value.notnull())
    at = at.select(*[at[key].name(f"of_{key}") for key in keys], of_time="time", taken="value")
    joined = line.left_join(at, [*[line[key] == at[f"of_{key}"] for key in keys], line.source == at.of_time])
    return joined.select(*keys, "time", "start", "taken")


def _chosen(line: ibis.Table, name: str, keys: list[str]) -> ir.StringValue:
    """The id taken from another row, else one made of the keys and the start of the stretch."""
    made: ir.StringValue = ibis.literal(name)
    for key in [*keys, "start"]:
        made = made + "|" + line[key].cast("string")
    return ibis.coalesce(line.taken, made.hexdigest("md5").substr(0, 16))
