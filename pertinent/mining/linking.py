"""Which search an event belongs to, for logs that say it in parts: by query id, or by session, term, list and time."""

from __future__ import annotations

from collections.abc import Sequence

import ibis
import ibis.expr.types as ir

from pertinent.mining.formats import SEARCH
from pertinent.mining.schema import VIEW
from pertinent.mining.sessions import MINUTE, latest_before


def one_id_a_user(flat: ibis.Table) -> ibis.Table:
    """The rows with ``user_id``: the account, also where only the device is known and one account used it.

    Servers log the account, browsers often only the device: without this a purchase would have
    another user than the click before it. A device of several accounts stays itself where no
    account is named.
    """
    both = flat.filter(flat.device.notnull() & flat.account.notnull())
    owners = both.group_by("device").agg(accounts=both.account.nunique(), owner=both.account.max())
    owners = owners.filter(owners.accounts == 1).select(known="device", owner="owner")
    joined = flat.left_join(owners, flat.device == owners.known)
    user = ibis.coalesce(joined.account, joined.owner, joined.device)
    return joined.select(*[joined[c] for c in flat.columns], user_id=user)


def linked_by_query_id(flat: ibis.Table) -> ibis.Table:
    """UBI rows with the query, session, user and application of their query id.

    ``repeated`` marks impressions that repeat a hit of their search, ``unknown`` events whose query
    id leads to no query.
    """
    named = flat.filter(flat.search_id.notnull())
    records = named.filter(named.level == SEARCH)
    texts = records.group_by("search_id").agg(
        own_query=records["query"].max(), own_application=records.application.max()
    )
    people = named.group_by("search_id").agg(own_session=named.session_id.min(), own_user=named.user_id.min())
    hits = named.filter(named.hit).select("search_id", "item_id", shown=ibis.literal(True)).distinct()
    joined = flat.left_join(texts, "search_id").drop("search_id_right")
    joined = joined.left_join(people, "search_id").drop("search_id_right")
    joined = joined.left_join(hits, ["search_id", "item_id"]).drop("search_id_right", "item_id_right")
    alone = joined.search_id.notnull() & joined.own_query.isnull() & (joined["query"] == "")
    filled = {
        "query": ibis.coalesce(joined.own_query, joined["query"]),
        "session_id": ibis.coalesce(joined.session_id, joined.own_session),
        "user_id": ibis.coalesce(joined.user_id, joined.own_user),
        "application": ibis.coalesce(joined.application.nullif(""), joined.own_application, ibis.literal("")),
        "repeated": (joined.level == VIEW) & ~joined.hit & joined.shown.fill_null(False),
        "unknown": alone & (joined.level != SEARCH),
    }
    return joined.mutate(**filled).select(*flat.columns, "repeated", "unknown")


def linked_to_lists(flat: ibis.Table, link_minutes: int, search_lists: Sequence[str]) -> ibis.Table:
    """Rows of a list with the query of the session's latest search, for sources without a query id.

    The search is at most ``link_minutes`` earlier, and the list must not be another one: named, by
    none of ``search_lists``, and never seen with a query. ``elsewhere`` marks rows of such lists,
    ``by_link`` those that took a query.
    """
    asked = flat["query"] != ""
    known = flat.filter(asked & flat.list_id.notnull()).select(known_list="list_id").distinct()
    joined = flat.left_join(known, flat.list_id == known.known_list)
    searching = joined.list_id.isnull() | joined.known_list.notnull()
    for text in search_lists:
        searching = searching | joined.list_id.lower().contains(text.lower()).fill_null(False)
    elsewhere = (joined["query"] == "") & ~searching
    flat = joined.mutate(elsewhere=elsewhere, by_link=ibis.literal(False)).drop("known_list")
    return _linked(flat, ["session_id"], flat["query"] != "", link_minutes)


def linked_to_items(flat: ibis.Table) -> ibis.Table:
    """Rows of `linked_to_lists` that have no query, with that of the session's latest earlier row of the same item.

    What was touched in another list since then belongs to that list. ``later_list`` marks views whose
    place in their list is no position, as the search had an earlier list; their ``place`` is null.
    """
    touched = flat.item_id.notnull() & ((flat["query"] != "") | flat.elsewhere)
    return _without_later_places(_linked(flat, ["session_id", "item_id"], touched, None))


def _linked(flat: ibis.Table, keys: list[str], marks: ir.BooleanColumn, minutes: int | None) -> ibis.Table:
    """Rows without a query take that of the latest of ``marks`` at or before them that shares ``keys``.

    By session alone only rows of lists do: anything else needs an earlier row of its item.
    """
    wanting = (flat["query"] == "") & ~flat.elsewhere & (flat.listed if keys == ["session_id"] else ibis.literal(True))
    given = flat.filter(marks).select(*keys, "time", value="query")
    latest = latest_before(flat.filter(wanting).select(*keys, "time"), given, keys)
    latest = latest.filter(latest.value != "")
    if minutes is not None:
        latest = latest.filter(latest.time - latest.source <= minutes * MINUTE)
    latest = latest.select(*[latest[key].name(f"of_{key}") for key in keys], of_time="time", value="value")
    flat = flat.mutate(wanting=wanting)
    pairs = [flat[key] == latest[f"of_{key}"] for key in keys]
    joined = flat.left_join(latest, [*pairs, flat.time == latest.of_time])
    taken = joined.wanting & joined.value.notnull()
    linked = {"query": taken.ifelse(joined.value, joined["query"]), "by_link": joined.by_link | taken}
    return joined.mutate(**linked).select(*[c for c in flat.columns if c != "wanting"])


def _without_later_places(flat: ibis.Table) -> ibis.Table:
    keys = ["session_id", "query"]
    placed = (flat.level == VIEW) & flat.ordinal.isnull() & flat.place.notnull() & (flat["query"] != "")
    rows = flat.filter(placed)
    firsts = rows.group_by(keys).agg(first=rows.time.min())
    firsts = firsts.select(of_session="session_id", of_query="query", first="first")
    joined = flat.left_join(firsts, [flat.session_id == firsts.of_session, flat["query"] == firsts.of_query])
    later = (joined.level == VIEW) & joined.ordinal.isnull() & joined.place.notnull() & (joined.time > joined["first"])
    later = later.fill_null(False)
    place = later.ifelse(ibis.null("int64"), joined.place)
    return joined.mutate(place=place, later_list=later).select(*flat.columns, "later_list")
