"""Logs of other systems: streamed through Python once as flat rows, then linked by expressions."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import ibis

from pertinent.data.files import read_records
from pertinent.errors import DataError, need
from pertinent.mining.engines import read_parquet, stage, write_rows
from pertinent.mining.formats import MEANINGS, RECORDS, SEARCH, Flat, Reading, word
from pertinent.mining.linking import linked_by_query_id, linked_to_items, linked_to_lists, one_id_a_user
from pertinent.mining.normalized import with_normalized_queries
from pertinent.mining.schema import DAY
from pertinent.mining.sessions import sessions
from pertinent.mining.sources import LogConfig, files_of

if TYPE_CHECKING:
    import pyarrow as pa

FLAT = MappingProxyType(
    {"int": "int64", "int | None": "int64", "str": "string", "str | None": "string", "bool": "bool_"}
)


def foreign_log(
    connection: ibis.BaseBackend, config: LogConfig, items: ibis.Table | None, work: Path, notes: Counter[str]
) -> ibis.Table:
    reading = Reading(
        MappingProxyType({**MEANINGS[config.format], **{word(k): v for k, v in config.levels.items()}}),
        config.zone(),
        config.unit(),
        tuple(config.query_parameters),
        config.item_field,
        re.compile(config.query_pattern) if config.format == "snowplow" else None,
        notes,
    )
    write_rows(_flat_rows(config, reading), flat_schema(), work / "flat.parquet")
    flat = one_id_a_user(read_parquet(connection, work / "flat.parquet"))
    flat = stage(connection, with_normalized_queries(connection, flat, work), work / "users.parquet")
    if config.format == "ubi":
        _refuse_internal_ids(flat, items, notes)
        linked = stage(connection, linked_by_query_id(flat), work / "linked.parquet")
        counted = {"impressions_also_in_hits": linked.repeated, "events_of_unknown_queries": linked.unknown}
    else:
        # Sessions are needed to link by; those that the log does not have are made again after the checks.
        flat = flat.mutate(given_session=flat.session_id)
        flat = stage(connection, sessions(flat, config.link_minutes), work / "sessions.parquet")
        flat = linked_to_lists(flat, config.link_minutes, config.search_lists)
        flat = stage(connection, flat, work / "lists.parquet")
        linked = linked_to_items(flat)
        linked = linked.mutate(session_id=linked.given_session, visit=linked.session_id)
        linked = stage(connection, linked, work / "linked.parquet")
        counted = {"queries_by_link": linked.by_link, "positions_after_first_list": linked.later_list}
    sums = linked.agg(**{name: where.sum() for name, where in counted.items()}, newest=linked.time.max())
    found = sums.to_pyarrow().to_pylist()[0]
    notes.update({name: int(found[name] or 0) for name in counted})
    notes["searches_without_items"] = _searches_without_items(linked, config.format)
    linked = linked.filter(linked.level != SEARCH)
    if config.format == "ubi":
        linked = linked.filter(~linked.repeated)
    if config.format == "ga4":
        recent = linked.filter(linked.time >= ((found["newest"] or 0) // DAY - 2) * DAY).count()
        notes["days_may_be_filled_again"] = int(recent.to_pyarrow().as_py())
    return with_positions(linked, config.position_base, notes)


def _flat_rows(config: LogConfig, reading: Reading) -> Iterator[tuple[Any, ...]]:
    records = RECORDS[config.format]
    names = [f.name for f in fields(Flat)]
    absent = dict.fromkeys(config.columns)
    for path in [p for source in config.sources() for p in files_of(source)]:
        for line, record in read_records(path):
            for yours in absent.keys() & record.keys():
                del absent[yours]
            renamed = {config.columns.get(name, name): value for name, value in record.items()}
            try:
                for flat in records(renamed, reading):
                    yield (*[getattr(flat, name) for name in names], str(path), line)
            except DataError as error:
                raise DataError(error.problem, path=path, line=line, column=error.column, value=error.value) from None
    for yours in absent:
        raise DataError(f"no record has the field {yours!r}, which is mapped to {config.columns[yours]!r}", path=path)


def flat_schema() -> pa.Schema:
    """The Parquet columns of `Flat`, with file and row."""
    pa = need("pyarrow", "logs")
    columns = [(f.name, getattr(pa, FLAT[str(f.type)])()) for f in fields(Flat)]
    return pa.schema([*columns, ("file", pa.string()), ("row", pa.int64())])


def _searches_without_items(linked: ibis.Table, name: str) -> int:
    """How many searches have no row of an item: none of their query id, or of their session and query."""
    keys = ["search_id"] if name == "ubi" else ["visit", "query"]
    searches = linked.filter(linked.level == SEARCH, *[linked[key].notnull() for key in keys])
    rest = searches.anti_join(linked.filter(linked.level != SEARCH).select(keys).distinct(), keys)
    return int(rest.count().to_pyarrow().as_py())


def _refuse_internal_ids(flat: ibis.Table, items: ibis.Table | None, notes: Counter[str]) -> None:
    """Raise DataError where the ids that the engine returned are its internal document numbers.

    With a catalog they are where it has none of them; else where they are never those clicked on.
    Ids that may be internal numbers, and are not refused, are counted.
    """
    hits = flat.filter(flat.hit & flat.internal)
    numbers = hits.filter((hits.item_id.length() <= 10) & hits.item_id.try_cast("int64").notnull())
    count = int(numbers.count().to_pyarrow().as_py())
    if not count:
        return
    notes["whole_number_hit_ids"] = count
    clicked = flat.filter(~flat.hit & (flat.level != SEARCH) & flat.search_id.notnull())
    tested = clicked.semi_join(numbers.select("search_id").distinct(), "search_id")
    found = tested.semi_join(numbers.select("search_id", "item_id"), ["search_id", "item_id"])
    pairs, same = (int(t.count().to_pyarrow().as_py()) for t in (tested, found))
    if items is not None:
        catalog = items.select(item_id=items.item_id.cast("string")).distinct()
        if int(numbers.semi_join(catalog, "item_id").count().to_pyarrow().as_py()):
            return
        reason = "match no item of the catalog"
    elif pairs and not same:
        reason = "are never those of the items clicked on"
    else:
        return
    first = numbers.order_by("file", "row", "item_id").limit(1).to_pyarrow().to_pylist()[0]
    raise DataError(
        f"ids in query_response_hit_ids are short whole numbers that {reason}: without object_id_field the search "
        "engine logs its internal document numbers, which mean nothing later",
        path=first["file"],
        line=first["row"],
        value=first["item_id"],
        fix="set object_id_field in the search requests and export the log again",
    )


def with_positions(table: ibis.Table, base: int | None, notes: Counter[str]) -> ibis.Table:
    """The table with ``position`` from 0, from the ordinals of each application and the places in lists.

    An application counts from 1 where its ordinals are one above the places in the engine's own
    list, or, without such a list, where hardly any ordinal is 0. Raises nothing; the bases found are
    in ``notes``.
    """
    known = table.filter(table.ordinal.notnull())
    bases = {name: base if base is not None else found for name, found in _bases(table, known).items()}
    for name, found in bases.items():
        notes[f"position_base:{name}"] = found
    ones = [name for name, found in bases.items() if found == 1]
    shift = table.application.isin(ones).ifelse(1, 0) if ones else ibis.literal(0)
    position = ibis.coalesce(table.ordinal - shift, table.place)
    below = position < 0
    notes["negative_positions"] = int(table.filter(below).count().to_pyarrow().as_py())
    return table.mutate(position=below.fill_null(False).ifelse(ibis.null("int64"), position))


def _bases(table: ibis.Table, known: ibis.Table) -> dict[str, int]:
    """The base of each application's ordinals."""
    ranks = table.filter(table.hit).select("search_id", "item_id", rank="place")
    pairs = known.inner_join(ranks, ["search_id", "item_id"])
    step = pairs.ordinal - pairs.rank
    agreed = pairs.group_by("application").agg(zero=(step == 0).sum(), one=(step == 1).sum())
    sure = {row["application"]: row for row in agreed.to_pyarrow().to_pylist()}
    seen = known.group_by("application").agg(zero=(known.ordinal == 0).sum(), one=(known.ordinal == 1).sum())
    bases = {}
    for row in sorted(seen.to_pyarrow().to_pylist(), key=lambda row: str(row["application"])):
        other = sure.get(row["application"])
        if other and other["zero"] + other["one"]:
            bases[row["application"]] = int(other["one"] > other["zero"])
        else:  # a stray 0 in a log that counts from 1 is no first place
            bases[row["application"]] = int(not row["zero"] or row["zero"] * 10 < row["one"])
    return bases
