"""What is wrong with a log: counted, shown by an example, and kept, dropped or refused as configured."""

from __future__ import annotations

import datetime as dt
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import ibis
from pydantic import Field

from pertinent.config import Config
from pertinent.errors import DataError
from pertinent.mining.cells import TOO_LATE
from pertinent.mining.engines import stage
from pertinent.mining.formats import NEGATIVE
from pertinent.mining.schema import CLICK, DAILY_PAGES, DAY, EVENTS, LEVELS, VIEW
from pertinent.mining.sessions import search_ids, sessions
from pertinent.mining.sources import RawLog

Action = Literal["drop", "keep", "refuse"]
# The last days of a log that have less than one in so many rows of a usual day are those of a wrong clock.
FEW = 100
# No log reaches beyond the year 2200, also where 9999-12-31 stands for "unknown" in many of its rows.
LAST_DAY = TOO_LATE // DAY

# What each check finds.
CHECKS = MappingProxyType(
    {
        "negatives": "taken back: removed from a cart, refunded, returned",
        "impossible_times": "before `earliest`, after `latest`, or without a time",
        "no_user": "without a user, a session and a search, so nothing links a click to its view",
        "bots": "of a user or session with too many events, or of a robot's user agent",
        "duplicates": "there already: the same event id, or user, search, item, level and time",
        "late": "more than `late_days` after the first event of their search",
        "unknown_items": "of an item that is not in the catalog",
        "no_query": "outside of a search",
        "clicks_without_view": "clicked or more on a result page that has no view of the item",
    }
)


class CheckConfig(Config):
    """What happens to the rows that a check finds, and the thresholds of the checks."""

    bots: Action = "drop"
    duplicates: Action = "drop"
    late: Action = "drop"
    impossible_times: Action = "drop"
    unknown_items: Action = "drop"
    no_user: Action = "drop"
    no_query: Action = "keep"
    negatives: Literal["drop", "refuse"] = "drop"
    clicks_without_view: Literal["add", "keep", "drop", "refuse"] = "add"
    events_per_day: int = Field(5000, ge=1)
    events_per_session: int = Field(3000, ge=1)
    clicks_per_day: int = Field(500, ge=1)
    bot_agents: list[str] = [
        *("bot/", "bot;", "bot)", "crawler", "spider", "slurp", "headlesschrome", "python-requests", "curl/", "wget/")
    ]
    late_days: int = Field(7, ge=1)
    earliest: dt.date = dt.date(2000, 1, 1)
    latest: dt.date | None = None


@dataclass(frozen=True)
class Checked:
    """``events`` with exactly the columns of EVENTS, all ids filled, and one entry of ``counts`` for each check.

    The user is "" where the log gave neither user nor session, and the session where it gave no user.
    An entry has ``check``, ``rows`` (that it found), ``action`` and ``example`` (text, or None where
    it found none). ``latest`` is the day after which times were impossible, None where there was no row.
    ``pages`` is the table `schema.DAILY_PAGES` of the log, with the searches of rows that were dropped too.
    """

    events: ibis.Table
    counts: list[dict[str, object]]
    latest: int | None
    pages: ibis.Table


def check_events(
    connection: ibis.BaseBackend,
    raw: RawLog,
    items: ibis.Table | None,
    config: CheckConfig,
    gap_minutes: int,
    work: Path,
    known: Mapping[int, int] = MappingProxyType({}),
    earlier: ibis.Table | None = None,
) -> Checked:
    """The rows that pass, with session and search ids filled (see `sessions`), and what each check found.

    ``known`` has the rows of days that were mined before, which help to tell a wrong clock, and
    ``earlier`` is their `schema.DAILY_PAGES`, by which an event is late as it would be in one log with them.

    Every check looks at all rows of the log, so a row that two checks find is counted by both. The
    last one, clicks without a view, looks at what is left: it adds the missing view, so that clicks
    never exceed exposures. Raises DataError that names file and row where a check set to ``refuse``
    finds one.
    """
    work = Path(work) / "checks"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    entered = _with_ids(connection, raw.events, gap_minutes, work)
    latest = _latest(entered, config, known)
    found = _flagged(connection, entered, items, config, latest, earlier, work)
    flagged = stage(connection, found, work / "flagged.parquet")
    names = [name for name in CHECKS if name in flagged.columns]
    sums = flagged.agg(**{name: flagged[name].sum() for name in names}).to_pyarrow().to_pylist()[0]
    actions = config.plain()
    counts = [_entry(flagged.filter(flagged[name]), name, int(sums[name] or 0), actions[name]) for name in names]
    dropped = [entry["check"] for entry in counts if entry["rows"] and entry["action"] == "drop"]
    kept = flagged.filter(~ibis.or_(*[flagged[name] for name in dropped])) if dropped else flagged
    # Pages that name nobody were told apart by their ids; nobody is behind several of them from here on.
    kept = kept.mutate(user_id=kept.anonymous.ifelse("", kept.user_id))
    seen = _searches(flagged.filter(~flagged.impossible_times), earlier, _sent_days(flagged, config))
    kept, entry = _with_views(connection, kept.select(*EVENTS, "file", "row"), seen, config.clicks_without_view, work)
    return Checked(kept.select(*EVENTS), [*counts, entry], latest, _pages(flagged))


def _pages(flagged: ibis.Table) -> ibis.Table:
    timed = flagged.filter(~flagged.impossible_times)
    pages = timed.group_by("day", search=_digest(timed.search_id)).agg(first=timed.time.min())
    return pages.select(**{name: pages[name].cast(kind) for name, kind in DAILY_PAGES.items()})


def _digest(search_id: ibis.expr.types.StringColumn) -> ibis.expr.types.StringValue:
    return search_id.hexdigest("md5").substr(0, 16)


def newest_believable(days: Mapping[int, int]) -> int | None:
    """The newest day that the log's own clock can be trusted on, from its rows on each day.

    It is the last with at least one in 100 of the rows of a usual day. What comes after it is a wrong
    clock's, and would make everything else look out of date. A usual day is the median of the busiest
    days that hold 99 in 100 rows together, so neither many stray days nor one huge day say what is usual.

    >>> newest_believable({20000: 400, 20001: 500, 20026: 2}), newest_believable({20000: 3, 20100: 1})
    (20001, 20100)
    """
    if not days:
        return None
    total = left = sum(days.values())
    busiest = []
    for rows in sorted(days.values(), reverse=True):
        busiest.append(rows)
        left -= rows
        if left * FEW <= total:
            break
    usual = busiest[(len(busiest) - 1) // 2]
    return max(day for day, rows in days.items() if rows * FEW >= usual)


def _with_ids(connection: ibis.BaseBackend, events: ibis.Table, gap_minutes: int, work: Path) -> ibis.Table:
    """The rows with user, session and search ids.

    ``no_user`` says that the log gave none of them, ``anonymous`` that it gave no user and no session.
    """
    no_user = events.user_id.isnull() & events.session_id.isnull() & events.search_id.isnull()
    of_search = events.user_id.isnull().ifelse(events.search_id, ibis.null("string"))
    events = events.mutate(
        no_user=no_user,
        anonymous=events.user_id.isnull() & events.session_id.isnull(),
        user_id=ibis.coalesce(events.user_id, events.session_id, events.search_id, ibis.literal("")),
        session_id=ibis.coalesce(events.session_id, of_search),
    )
    events = stage(connection, events, work / "raw.parquet")
    absent = events.agg(sessions=events.session_id.isnull().sum(), searches=events.search_id.isnull().sum())
    missing = absent.to_pyarrow().to_pylist()[0]
    if missing["sessions"]:
        events = stage(connection, sessions(events, gap_minutes), work / "sessions.parquet")
    if missing["searches"]:
        events = stage(connection, search_ids(events, gap_minutes), work / "searches.parquet")
    return events


def _flagged(
    connection: ibis.BaseBackend,
    events: ibis.Table,
    items: ibis.Table | None,
    config: CheckConfig,
    latest: int | None,
    earlier: ibis.Table | None,
    work: Path,
) -> ibis.Table:
    """The rows with a column for each check: whether it found the row."""
    impossible = events.day < _day(config.earliest)
    impossible = impossible | (events.day > (LAST_DAY if latest is None else latest))
    agents = [events.agent.lower().contains(text.lower()) for text in config.bot_agents]
    events = events.mutate(
        negatives=events.level == NEGATIVE,
        impossible_times=impossible,
        no_query=events["query"] == "",
        bots=ibis.or_(*agents).fill_null(False) if agents else ibis.literal(False),
        late=ibis.literal(False),
        unknown_items=ibis.literal(False),
    )

    def marked(events: ibis.Table, findings: Mapping[str, ibis.Table]) -> ibis.Table:
        for name, found in findings.items():
            found = stage(connection, found, work / f"{name}.parquet")
            if _count(found):
                events = _marked(events, found, name.partition("-")[0])
        return events

    events = marked(events, _findings(events, items, config))
    # Last, as it asks which days have rows that pass the others.
    events = marked(events, {"late": _late_searches(events, config, earlier)})
    return _with_duplicates(connection, events, work)


def _latest(events: ibis.Table, config: CheckConfig, known: Mapping[int, int]) -> int | None:
    """The last possible day: the configured one, else the newest that the log and the known days make believable."""
    if config.latest is not None:
        return _day(config.latest)
    by_day = events.group_by("day").agg(rows=events.count()).to_pyarrow().to_pylist()
    days = {**known, **{row["day"]: row["rows"] for row in by_day}}
    return newest_believable({day: rows for day, rows in days.items() if _day(config.earliest) <= day <= LAST_DAY})


def _day(date: dt.date) -> int:
    return (date - dt.date(1970, 1, 1)).days


def _findings(events: ibis.Table, items: ibis.Table | None, config: CheckConfig) -> dict[str, ibis.Table]:
    """Keys of the rows that checks of more than one row find."""
    known = events.filter(~events.no_user)
    days = known.group_by("user_id", "day").agg(rows=known.count(), clicks=(known.level >= CLICK).sum())
    many = (days.rows > config.events_per_day) | (days.clicks > config.clicks_per_day)
    visits = known.group_by("session_id").agg(rows=known.count())
    found = {
        "bots-day": days.filter(many).select("user_id", "day"),
        "bots-session": visits.filter(visits.rows > config.events_per_session).select("session_id"),
    }
    if items is not None:
        catalog = items.select(item_id=items.item_id.cast("string")).distinct()
        found["unknown_items"] = events.select("item_id").distinct().anti_join(catalog, "item_id")
    return found


def _late_searches(events: ibis.Table, config: CheckConfig, earlier: ibis.Table | None) -> ibis.Table:
    """Searches with rows too long after their first, and ``since`` when rows are."""
    late = config.late_days * DAY
    pages = _searches(events.filter(~events.impossible_times), earlier, _sent_days(events, config))
    return pages.filter(pages["last"] - pages["first"] > late).select("search_id", since=pages["first"] + late)


def _sent_days(events: ibis.Table, config: CheckConfig) -> ibis.Table:
    """The days of which a row passes the checks that do not ask how old a search is; an update replaces them."""
    actions = config.plain()
    dropped = [name for name in CHECKS if name != "late" and name in events.columns and actions[name] == "drop"]
    kept = events.filter(~ibis.or_(*[events[name] for name in dropped])) if dropped else events
    return kept.select("day").distinct()


def _searches(timed: ibis.Table, earlier: ibis.Table | None, sent: ibis.Table) -> ibis.Table:
    """When each search was first and last seen: ``search_id, first, last``; ``sent`` days are the log's own."""
    pages = timed.group_by("search_id").agg(first=timed.time.min(), last=timed.time.max())
    if earlier is None:
        return pages
    others = earlier.anti_join(sent, "day")
    before = others.group_by("search").agg(before=others["first"].min())
    joined = pages.left_join(before, _digest(pages.search_id) == before.search)
    first = (joined.before < joined["first"]).fill_null(False).ifelse(joined.before, joined["first"])
    return joined.select("search_id", first=first, last=joined["last"])


def _marked(events: ibis.Table, found: ibis.Table, check: str) -> ibis.Table:
    """The rows with ``check`` set where they have the keys that were found, and come after ``since``."""
    keys = [name for name in found.columns if name != "since"]
    since = found.since if "since" in found.columns else ibis.literal(-(2**62))
    found = found.select(*[found[key].name(f"of_{key}") for key in keys], since=since)
    joined = events.left_join(found, [events[key] == found[f"of_{key}"] for key in keys])
    hit = joined[check] | (joined.time > joined.since).fill_null(False)
    return joined.select(*[hit.name(check) if c == check else joined[c] for c in events.columns])


def _with_duplicates(connection: ibis.BaseBackend, events: ibis.Table, work: Path) -> ibis.Table:
    """The rows with ``duplicates``, true for all but one of the rows that are the same event."""
    events = events.mutate(duplicates=ibis.literal(False))
    events = _repeated(connection, events, ["event_id", "item_id", "level"], work / "repeated-ids.parquet")
    keys = ["user_id", "search_id", "item_id", "level", "time"]
    return _repeated(connection, events, keys, work / "repeated-rows.parquet")


def _repeated(connection: ibis.BaseBackend, events: ibis.Table, keys: list[str], path: Path) -> ibis.Table:
    """All but the first of the rows that share keys become duplicates; rows that are some already do not count.

    The order is that of the contents, so that of two copies the same one stays however the file is sorted.
    """
    first = keys[0]
    open_rows = events.filter(~events.duplicates & events[first].notnull())
    groups = open_rows.group_by(keys).agg(copies=open_rows.count())
    groups = stage(connection, groups.filter(groups.copies > 1), path)
    if not _count(groups):
        return events
    groups = groups.select(*[groups[key].name(f"of_{key}") for key in keys])
    pairs = [events[key] == groups[f"of_{key}"] for key in keys]
    rest, same = events.anti_join(groups, pairs), events.semi_join(groups, pairs)
    rest_of_it = [same[c].asc(nulls_first=False) for c in EVENTS if c not in (*keys, "time", "query")]
    # A copy with a query comes before one without.
    content = [same.duplicates.asc(), same.time.asc(), same["query"].desc(), *rest_of_it]
    place = ibis.row_number().over(ibis.window(group_by=keys, order_by=content))
    same = same.mutate(duplicates=same.duplicates | (place > 0))
    return rest.union(same.select(*events.columns), distinct=False)


def _with_views(
    connection: ibis.BaseBackend, events: ibis.Table, seen: ibis.Table, action: str, work: Path
) -> tuple[ibis.Table, dict[str, Any]]:
    """The rows after the action on clicks without a view, and that check's entry.

    An added view has the time, position and ids of the earliest row of its item on that page. A page
    that is used past midnight gets one on each day, as days are counted, replaced and dropped alone;
    where its search was ``seen`` (`_searches`) on an earlier day, that is nothing to tell.
    """
    page = ["day", "search_id", "query", "item_id"]
    deeper = events.filter((events.level > VIEW) & (events["query"] != ""))
    views = events.filter(events.level == VIEW).select(page).distinct()
    alone = stage(connection, deeper.anti_join(views, page), work / "alone.parquet")
    told_of = alone if action == "drop" else _begun_that_day(alone, seen)
    entry = _entry(told_of, "clicks_without_view", _count(told_of), action)
    if action == "keep":
        return events, entry
    if action == "drop":
        rest = events.filter((events.level <= VIEW) | (events["query"] == ""))
        return rest.union(deeper.semi_join(views, page), distinct=False), entry
    if not _count(alone):
        return events, entry
    content = [alone[c].asc(nulls_first=False) for c in ("time", *EVENTS) if c not in page]
    place = ibis.row_number().over(ibis.window(group_by=page, order_by=content))
    ranked = alone.mutate(place=place)
    # A cast from a wider type: Spark reads a bare literal as int, and a union takes the widest.
    view = ibis.literal(VIEW, "int32").cast("int8")
    added = ranked.filter(ranked.place == 0).mutate(level=view).select(*events.columns)
    return events.union(added, distinct=False), entry


def _begun_that_day(rows: ibis.Table, seen: ibis.Table) -> ibis.Table:
    """The rows whose search was not seen on an earlier day."""
    begun = seen.select(begun="search_id", since=seen["first"])
    joined = rows.left_join(begun, rows.search_id == begun.begun)
    earlier = ((joined.since / DAY).floor().cast("int32") < joined.day).fill_null(False)
    return joined.filter(~earlier).select(*rows.columns)


def _count(table: ibis.Table) -> int:
    return int(table.count().to_pyarrow().as_py())


def _entry(found: ibis.Table, check: str, rows: int, action: str) -> dict[str, Any]:
    """The entry of a check. Raises DataError for the first row found where it is to be refused."""
    if not rows:
        return {"check": check, "rows": 0, "action": action, "example": None}
    columns = ["file", "row", *EVENTS]
    first = found.order_by([found[c].asc(nulls_first=False) for c in columns]).limit(1).select(columns)
    row = first.to_pyarrow().to_pylist()[0]
    if action == "refuse":
        raise DataError(
            f"{rows:,} rows are {CHECKS[check]}, and the check {check!r} is set to refuse them; the first: {told(row)}",
            path=row["file"],
            line=row["row"],
            fix="mend the log, or set the check to drop or keep",
        )
    return {"check": check, "rows": rows, "action": action, "example": f"{told(row)} ({row['file']}, row {row['row']})"}


def told(row: Mapping[str, Any]) -> str:
    """One event for people to read.

    >>> told({"user_id": "u-1", "query": "tv", "item_id": "b-2", "level": 1, "position": 0, "time": 5_000_000})
    "user 'u-1', query 'tv', click on item 'b-2' at position 0, 1970-01-01T00:00:05+00:00"
    """
    level = LEVELS[row["level"]] if row["level"] >= 0 else "negative"
    place = "" if row["position"] is None else f" at position {row['position']}"
    try:
        time = (dt.datetime.fromtimestamp(0, dt.UTC) + dt.timedelta(microseconds=row["time"])).isoformat()
    except OverflowError:
        time = f"{row['time']} microseconds since 1970"
    return f"user {row['user_id']!r}, query {row['query']!r}, {level} on item {row['item_id']!r}{place}, {time}"
