"""Sessions and result pages, for the rows of a log that do not say which ones they belong to."""

from __future__ import annotations

import ibis
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


def _filled(events: ibis.Table, name: str, keys: list[str], gap_minutes: int) -> ibis.Table:
    """The rows with column ``name`` filled within stretches of the rows that share ``keys``."""
    given = events.filter(events[name].notnull())
    absent = events.filter(events[name].isnull())
    # Only rows that share their keys with an absent one are sorted: in most logs there are none.
    concerned = events.semi_join(absent.select(keys).distinct(), keys).select(*keys, "time", name)
    moments = concerned.group_by([*keys, "time"]).agg(known=concerned[name].min())
    ordered = ibis.window(group_by=keys, order_by="time")
    rests = (moments.time - moments.time.lag().over(ordered)) > gap_minutes * MINUTE
    moments = moments.mutate(starts=ibis.cases((rests.fill_null(True), moments.time), else_=ibis.null("int64")))
    so_far = ibis.window(group_by=keys, order_by="time", preceding=None, following=0)
    moments = moments.mutate(start=moments.starts.max().over(so_far))
    has = ibis.cases((moments.known.notnull(), moments.time), else_=ibis.null("int64"))
    within = [*keys, "start"]
    before = ibis.window(group_by=within, order_by="time", preceding=None, following=0)
    whole = ibis.window(group_by=within)
    moments = moments.mutate(source=ibis.coalesce(has.max().over(before), has.min().over(whole)))
    sources = moments.select(*keys, source="time", taken="known")
    moments = moments.select(*keys, "time", "start", "source").left_join(sources, [*keys, "source"])
    made = ibis.literal(name)
    for key in [*keys, "start"]:
        made = made + "|" + moments[key].cast("string")
    chosen = ibis.coalesce(moments.taken, made.hexdigest("md5").substr(0, 16))
    chosen_ids = moments.select(*keys, "time", chosen_id=chosen)
    filled = absent.drop(name).left_join(chosen_ids, [*keys, "time"])
    columns = list(events.columns)
    filled = filled.select(*[filled.chosen_id.name(name) if c == name else filled[c] for c in columns])
    return given.union(filled, distinct=False)
