"""Which search an event belongs to, for logs that say it in parts: by query id, or by session, term, list and time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import ibis
import ibis.expr.types as ir

from pertinent.mining.formats import SEARCH
from pertinent.mining.schema import LEVEL_NUMBERS
from pertinent.mining.sessions import MINUTE, latest_before

VIEW, CLICK = LEVEL_NUMBERS["view"], LEVEL_NUMBERS["click"]


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


def linked_by_query_id(flat: ibis.Table, notes: Counter[str]) -> ibis.Table:
    """UBI rows with the query, session and user of their query id; impressions that repeat a hit are left out."""
    named = flat.filter(flat.search_id.notnull())
    records = named.filter(named.level == SEARCH)
    texts = records.group_by("search_id").agg(
        own_query=records["query"].max(), own_application=records.application.max()
    )
    people = named.group_by("search_id").agg(own_session=named.session_id.min(), own_user=named.user_id.min())
    hits = named.filter(named.hit).select("search_id", "item_id", shown=ibis.literal(True)).distinct()
    joined = flat.left_join(texts, "search_id").drop("search_id_right")
    joined = joined.left_join(people, "search_id").drop("search_id_right")
    joined = joined.left_join(hits, ["search_id", "item_id"])
    joined = joined.drop("search_id_right", "item_id_right")
    repeated = (joined.level == VIEW) & ~joined.hit & joined.shown.fill_null(False)
    unknown = (
        joined.search_id.notnull() & joined.own_query.isnull() & (joined["query"] == "") & (joined.level != SEARCH)
    )
    found = joined.agg(repeated=repeated.sum(), unknown=unknown.sum()).to_pyarrow().to_pylist()[0]
    notes["impressions_also_in_hits"] = int(found["repeated"] or 0)
    notes["events_of_unknown_queries"] = int(found["unknown"] or 0)
    kept = joined.filter(~repeated)
    filled = {
        "query": ibis.coalesce(kept.own_query, kept["query"]),
        "session_id": ibis.coalesce(kept.session_id, kept.own_session),
        "user_id": ibis.coalesce(kept.user_id, kept.own_user),
        "application": ibis.coalesce(kept.application.nullif(""), kept.own_application, ibis.literal("")),
    }
    return kept.mutate(**filled).select(*flat.columns)


def linked_by_session(
    flat: ibis.Table, link_minutes: int, search_lists: Sequence[str], notes: Counter[str]
) -> ibis.Table:
    """Rows with the query they belong to, for sources without a query id; rows that belong to none keep "".

    In this order: the row's own query; for what happens in a list, the session's latest search at
    most ``link_minutes`` before, unless the list is another one (named, by none of ``search_lists``,
    and never seen with a query); for any row, the query of the session's latest earlier row of the same item.
    """
    asked = flat["query"] != ""
    known = flat.filter(asked & flat.list_id.notnull()).select(known_list="list_id").distinct()
    flat = flat.left_join(known, flat.list_id == known.known_list)
    searching = flat.list_id.isnull() | flat.known_list.notnull()
    for text in search_lists:
        searching = searching | flat.list_id.lower().contains(text.lower()).fill_null(False)
    flat = flat.mutate(elsewhere=(flat["query"] == "") & ~searching, by_link=ibis.literal(False))
    asked = flat["query"] != ""
    flat = _linked(flat, ["session_id"], asked, link_minutes)
    # An item shown in a search and clicked in another list was found in that other list.
    touched = flat.item_id.notnull() & ((flat["query"] != "") | flat.elsewhere)
    flat = _linked(flat, ["session_id", "item_id"], touched, None)
    notes["queries_by_link"] = int(flat.filter(flat.by_link).count().to_pyarrow().as_py())
    return _places_of_first_lists(flat, notes).drop("known_list", "elsewhere", "by_link")


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


def _places_of_first_lists(flat: ibis.Table, notes: Counter[str]) -> ibis.Table:
    """Places in a list count only in a search's first list: a later one goes on where it ended."""
    keys = ["session_id", "query"]
    placed = (flat.level == VIEW) & flat.ordinal.isnull() & flat.place.notnull() & (flat["query"] != "")
    rows = flat.filter(placed)
    firsts = rows.group_by(keys).agg(first=rows.time.min())
    firsts = firsts.select(of_session="session_id", of_query="query", first="first")
    joined = flat.left_join(firsts, [flat.session_id == firsts.of_session, flat["query"] == firsts.of_query])
    later = (joined.level == VIEW) & joined.ordinal.isnull() & joined.place.notnull() & (joined.time > joined["first"])
    later = later.fill_null(False)
    notes["positions_after_first_list"] = int(joined.filter(later).count().to_pyarrow().as_py())
    return joined.mutate(place=later.ifelse(ibis.null("int64"), joined.place)).select(*flat.columns)
