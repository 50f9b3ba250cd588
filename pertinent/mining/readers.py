"""Search logs of other systems as one table of events: UBI, Google Analytics 4, Segment, Snowplow, your own.

What a source leaves open is asked for or counted, never guessed in silence: see docs/logs.md.
"""

from __future__ import annotations

import datetime as dt
import glob
import math
import re
import shutil
import zoneinfo
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, fields
from itertools import takewhile
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import ibis
from pydantic import Field, ValidationInfo, field_validator

from pertinent.config import Config
from pertinent.data.files import SUFFIXES, check_exists, read_records
from pertinent.data.tables import nearest
from pertinent.errors import DataError, need
from pertinent.mining.engines import read_parquet
from pertinent.mining.formats import (
    MEANINGS,
    NEGATIVE,
    POSITIONS,
    RECORDS,
    SEARCH,
    UNITS,
    Flat,
    Reading,
    micros,
    text_of,
    whole,
    word,
)
from pertinent.mining.linking import linked_by_query_id, linked_to_items, linked_to_lists, one_id_a_user
from pertinent.mining.schema import DAY, EVENTS, LEVEL_NUMBERS, LEVELS
from pertinent.mining.sessions import sessions
from pertinent.records import Level
from pertinent.text import normalize

if TYPE_CHECKING:
    import ibis.expr.types as ir
    import pyarrow as pa

# What checks look at besides the columns of EVENTS. Ids may still be null here.
RAW_EVENTS = MappingProxyType(
    {
        **EVENTS,  # level is NEGATIVE for what was taken back; time is 0 where there is none
        "event_id": "string",  # the source's own id of the event, where it has one
        "agent": "string",  # the user agent, where the source has one
        "file": "string",
        "row": "int64",  # from 1: a line of text, or a row of a Parquet file
    }
)
FLAT = MappingProxyType(
    {"int": "int64", "int | None": "int64", "str": "string", "str | None": "string", "bool": "bool_"}
)
# The columns of a table of your own; one of the ids of WHO has to be there.
TABLE_COLUMNS = ("query", "item_id", "level", "time")
WHO = ("user_id", "session_id", "search_id")
OPTIONAL_COLUMNS = ("position", "event_id", "agent")
OUR_COLUMNS = (*WHO, *TABLE_COLUMNS, *OPTIONAL_COLUMNS)
# Beyond this a number was surely read in the wrong unit: the year 2200.
_TOO_LATE = 7_258_118_400 * 1_000_000
_QUARTER = 900 * 1_000_000
# No time is further from 1970 than this, in microseconds.
_TIMES = 2**62
_ROWS = 50_000
# Where a row of a Parquet log came from.
_PLACE = ("file", "row", "source_file", "file_row_number")

Meaning = Literal[Level, "negative", "ignore"]

NOTES = MappingProxyType(
    {
        "rows": "rows read, one for each item of an event",
        "rows_without_item": "rows name no item (searches without results, for example) and were left out",
        "events_without_item": "events or items of them had no item id and were left out",
        "other_actions": "records of actions that say nothing about an item of a search were left out",
        "ignore_actions": "records were left out because levels says to ignore their action",
        "rows_without_time": "rows have no time",
        "negative_positions": "positions below the first one were set to unknown",
        "no_first_position": "no position is 0 in {count} rows; if yours count from 1, set log.position_base to 1 "
        "(--set log.position_base=1), as the first place is taken for the second otherwise",
        "no_position": "no position is known in {count} rows: positions are not identified, and no click can be "
        "corrected for its place on the page; if the log has it, name its column (--columns yours=position)",
        "events_without_query_id": "UBI events have no query_id (direct landing, recommendations)",
        "events_of_unknown_queries": "UBI events have a query_id that no query record has, and no query of their own",
        "queries_without_id": "UBI queries have no query_id, so nothing leads to them",
        "old_name_of_hit_ids": "UBI queries use the old name query_response_objects_ids",
        "hits_repeated_or_empty": "ids in query_response_hit_ids were empty or occurred twice in one list",
        "impressions_also_in_hits": "impression events repeat an id of query_response_hit_ids and were counted once",
        "whole_number_hit_ids": "ids in query_response_hit_ids are whole numbers of an unnamed field: check that they "
        "are item ids, and not internal numbers",
        "positions_empty": "positions were empty objects",
        "positions_only_xy": "positions had coordinates and no ordinal",
        "queries_from_addresses": "events got their search term from the address of the page",
        "queries_by_link": "rows got their query from an earlier event of their session",
        "lists_of_200_items": "events have 200 items or more: the export cuts or splits such lists",
        "positions_after_first_list": "positions are unknown because a later part of a list does not number its items",
        "days_may_be_filled_again": "rows are of the newest three days, which Google Analytics may fill up later",
        "items_named_by_sku": "products have no product_id and were named by their sku",
    }
)


class LogConfig(Config):
    """Where the log is, and what it does not say itself.

    ``path`` is a file, a folder or a pattern; UBI may have ``queries`` and ``events`` instead.
    ``columns`` maps the names of a flat file to ours, ``levels`` the source's actions to levels.
    """

    path: str | None = None
    format: Literal["table", "ubi", "ga4", "segment", "snowplow"] = "table"
    queries: str | None = None
    events: str | None = None
    columns: dict[str, str] = {}
    levels: dict[str, Meaning] = {}
    time_zone: str | None = None
    time_unit: Literal["seconds", "milliseconds", "microseconds"] | None = None
    position_base: Literal[0, 1] | None = None
    item_field: str | None = None
    query_parameters: list[str] = ["search_term", "q", "s", "search", "query", "keyword"]
    query_pattern: str = r"""(?i)search results?(?: for)?:?\s*["“”„«']?(.+?)["“”»']?\s*$"""
    search_lists: list[str] = ["search"]
    link_minutes: int = Field(30, ge=1)

    @field_validator("columns")
    @classmethod
    def _to_ours(cls, columns: dict[str, str], info: ValidationInfo) -> dict[str, str]:
        # The fields of other systems' logs are many, and which are known is for their readers to say.
        for at, (yours, ours) in enumerate(columns.items()):
            if ours not in OUR_COLUMNS and info.data.get("format") == "table":
                raise ValueError(_not_ours(yours, ours))
            if ours in list(columns.values())[:at]:
                raise ValueError(f"maps two columns to {ours!r}; map one")
        return columns

    @field_validator("time_zone")
    @classmethod
    def _known_zone(cls, name: str | None) -> str | None:
        if name is not None:
            try:
                zoneinfo.ZoneInfo(name)
            except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
                raise ValueError("is not a time zone; name one such as UTC or Europe/Berlin") from None
        return name

    @field_validator("query_pattern")
    @classmethod
    def _one_group(cls, pattern: str) -> str:
        try:
            groups = re.compile(pattern).groups
        except re.error as error:
            raise ValueError(f"is not a regular expression: {error}") from None
        if groups != 1:
            raise ValueError("needs exactly one group, around the query")
        return pattern

    def zone(self) -> dt.tzinfo | None:
        """The zone of times that name none; Snowplow writes all its times in UTC."""
        if self.time_zone is None:
            return dt.UTC if self.format == "snowplow" else None
        return zoneinfo.ZoneInfo(self.time_zone)

    def unit(self) -> str:
        """What numbers count: ``time_unit``, else what the format says."""
        own = {"table": "seconds", "ga4": "microseconds"}
        return self.time_unit or own.get(self.format, "milliseconds")

    def sources(self) -> list[str]:
        """The paths that are given. Raises DataError where there is none."""
        paths = [p for p in (self.path, self.queries, self.events) if p is not None]
        if not paths:
            raise DataError(
                "no log is given", fix="name its file, folder or pattern: --log FILE (the setting log.path)"
            )
        if self.format != "ubi" and (self.queries or self.events):
            raise DataError(f"queries and events are for UBI, the format is {self.format!r}", fix="set log.path")
        return paths


@dataclass(frozen=True)
class RawLog:
    """``events`` with the columns of RAW_EVENTS; ``notes``: what was met while reading, each with its count.

    Notes named ``position_base:APPLICATION`` hold the base found, not a count.
    """

    events: ibis.Table
    notes: dict[str, int]

    def warnings(self) -> list[str]:
        """The notes as sentences."""
        return [sentence(name, count) for name, count in self.notes.items()]


def _not_ours(yours: str, ours: str) -> str:
    """What is wrong with a mapped column, and how it was probably meant.

    >>> _not_ours("user_id", "uid").partition("; ")[2], _not_ours("sess", "session").partition("; ")[2]
    ('did you mean uid=user_id, the other way round?', 'did you mean sess=session_id?')
    """
    near = nearest(ours, OUR_COLUMNS)
    meant = f"{ours}={yours}, the other way round" if yours in OUR_COLUMNS else f"{yours}={near}" if near else ""
    fix = f"; did you mean {meant}?" if meant else ""
    return f"{ours!r} is not one of our columns: {', '.join(OUR_COLUMNS)}{fix}"


def sentence(name: str, count: int) -> str:
    """A note for people to read.

    >>> sentence("position_base:web", 1)
    "positions of application 'web' count from 1"
    """
    if name.startswith("position_base:"):
        return f"positions of application {name.partition(':')[2]!r} count from {count}"
    text = NOTES[name]
    return text.format(count=f"{count:,}") if "{count}" in text else f"{count:,} {text}"


def read_log(connection: ibis.BaseBackend, config: LogConfig, items: ibis.Table | None, work: Path) -> RawLog:
    """The log as a table of raw events, with normalized queries; files made on the way stay in ``work``.

    ``items`` has ``item_id`` (any type) and is used to tell item ids from internal numbers.
    Raises DataError that names file and row for what cannot be read.
    """
    work = Path(work) / "log"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    notes: Counter[str] = Counter()
    if config.format == "table":
        table = _own_table(connection, config, work, notes)
        table = with_normalized_queries(connection, table, work)
    else:
        table = _foreign_log(connection, config, items, work, notes)
    day = (table.time / DAY).floor().cast("int32")
    table = table.mutate(day=day, level=table.level.cast("int8"), position=table.position.cast("int32"))
    sums = {"rows": table.count(), "without": table.item_id.isnull().sum(), "placed": table.position.count()}
    counted = table.agg(**sums).to_pyarrow().to_pylist()[0]
    notes["rows_without_item"] = int(counted["without"] or 0)
    notes["rows"] = int(counted["rows"]) - notes["rows_without_item"]
    notes["no_position"] = 0 if counted["placed"] else notes["rows"]
    if notes["rows_without_item"]:
        table = table.filter(table.item_id.notnull())
    return RawLog(table.select(*RAW_EVENTS), {name: notes[name] for name in sorted(notes) if _told(name, notes[name])})


def _told(name: str, count: int) -> bool:
    return count > 0 or name == "rows" or name.startswith("position_base:")


def stage(connection: ibis.BaseBackend, table: ibis.Table, path: Path) -> ibis.Table:
    """The table, computed once and kept in a Parquet file (a folder on Spark), in no order."""
    if connection.name == "duckdb":
        connection.to_parquet(table, path, compression="snappy")
    else:
        frame = connection._session.sql(connection.compile(table))
        frame.write.mode("overwrite").option("compression", "snappy").parquet(str(path))
    return read_parquet(connection, path)


def with_normalized_queries(connection: ibis.BaseBackend, table: ibis.Table, work: Path) -> ibis.Table:
    """The table with ``query`` as `pertinent.text.normalize` gives it, "" for none.

    The distinct texts go through Python in parts and are joined back, so the one normalizer serves
    every engine and memory holds a part at a time.
    """
    pa, pq = need("pyarrow", "logs"), need("pyarrow.parquet", "logs")
    stage(connection, table.filter(table.query.notnull()).select("query").distinct(), work / "queries.parquet")
    schema = pa.schema([("raw", pa.string()), ("normalized", pa.string())])
    with pq.ParquetWriter(work / "normalized.parquet", schema) as writer:
        source = work / "queries.parquet"
        for path in sorted(source.glob("*.parquet")) if source.is_dir() else [source]:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(_ROWS, columns=["query"]):
                    raw = batch.column(0).to_pylist()
                    writer.write_table(pa.table([raw, [normalize(text) for text in raw]], schema=schema))
    known = read_parquet(connection, work / "normalized.parquet")
    joined = table.left_join(known, table.query == known.raw)
    return joined.select(
        *[joined.normalized.fill_null("").name(c) if c == "query" else joined[c] for c in table.columns]
    )


# Logs of other systems: streamed through Python once, then linked by expressions.


def _foreign_log(
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
        linked = stage(connection, linked.mutate(session_id=linked.given_session), work / "linked.parquet")
        counted = {"queries_by_link": linked.by_link, "positions_after_first_list": linked.later_list}
    sums = linked.agg(**{name: where.sum() for name, where in counted.items()}, newest=linked.time.max())
    found = sums.to_pyarrow().to_pylist()[0]
    notes.update({name: int(found[name] or 0) for name in counted})
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
                raise DataError(_problem(error), path=path, line=line, column=error.column, value=error.value) from None
    for yours in absent:
        raise DataError(f"no record has the field {yours!r}, which is mapped to {config.columns[yours]!r}", path=path)


def _problem(error: DataError) -> str:
    """The problem and the fix of an error, without its place."""
    return str(error).rpartition(": ")[2] if error.column is not None else str(error)


def flat_schema() -> pa.Schema:
    """The Parquet columns of `Flat`, with file and row."""
    pa = need("pyarrow", "logs")
    columns = [(f.name, getattr(pa, FLAT[str(f.type)])()) for f in fields(Flat)]
    return pa.schema([*columns, ("file", pa.string()), ("row", pa.int64())])


def write_rows(rows: Iterator[tuple[Any, ...]], schema: pa.Schema, path: Path) -> None:
    """Write tuples to a Parquet file, a part at a time."""
    pa, pq = need("pyarrow", "logs"), need("pyarrow.parquet", "logs")
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        part: list[tuple[Any, ...]] = []

        def write() -> None:
            columns = list(zip(*part, strict=True)) or [()] * len(schema)
            arrays = [pa.array(column, f.type) for column, f in zip(columns, schema, strict=True)]
            writer.write_table(pa.table(arrays, schema=schema))
            part.clear()

        for row in rows:
            part.append(row)
            if len(part) == _ROWS:
                write()
        write()


def files_of(source: str) -> list[Path]:
    """The files of a path, which is a file, a folder of files with a known suffix, or a pattern; in order of name.

    Raises DataError where there is none.
    """
    path = Path(source)
    if path.is_dir():
        found = [p for p in path.rglob("*") if p.is_file() and not p.name.startswith((".", "_"))]
        found = [p for p in found if p.name.lower().removesuffix(".gz").endswith(SUFFIXES)]
        if not found:
            raise DataError("holds no file of a known format", path=path, fix=f"allowed: {' '.join(SUFFIXES)}")
        return sorted(found)
    if path.exists() or not glob.has_magic(source):
        check_exists(path)
        return [path]
    found = [Path(name) for name in glob.glob(source, recursive=True)]
    if not found:
        raise DataError("no file matches this pattern", path=source)
    return sorted(found)


def _refuse_internal_ids(flat: ibis.Table, items: ibis.Table | None, notes: Counter[str]) -> None:
    """Raise DataError where the ids that the engine returned are its internal document numbers."""
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
        if int(numbers.semi_join(catalog, "item_id").count().to_pyarrow().as_py()) and (same or not pairs):
            return
        reason = "match no item of the catalog" if same or not pairs else "are never those of the items clicked on"
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


# A table of your own: Parquet is read by the engine itself, text goes through Python once.


def _own_table(connection: ibis.BaseBackend, config: LogConfig, work: Path, notes: Counter[str]) -> ibis.Table:
    (source,) = config.sources()
    scanned = _scan(connection, source, config)
    if scanned is None:
        table = read_parquet(connection, _text_rows(config, work, notes))
        naive = False
    else:
        table, naive = scanned
    if scanned is not None:
        _require([name for name in table.columns if name not in _PLACE], source)
    known = {
        name: _text(table[name], name, source)
        for name in (*WHO, "item_id", "query", "event_id", "agent")
        if name in table.columns
    }
    absent = {name: ibis.null("string") for name in (*WHO, "event_id", "agent") if name not in table.columns}
    time = table.time if scanned is None else _micros(connection, table, config, source)
    level = _levels(table, config, source)
    table = table.mutate(**known, **absent, time=time, level=level, position=_position(table, config, source))
    if "ignore" in config.levels.values():
        notes["ignore_actions"] = int(table.filter(table.level.isnull()).count().to_pyarrow().as_py())
        table = table.filter(table.level.notnull())
    if naive and config.time_zone not in (None, "UTC"):
        table = _in_utc(connection, table, config, work)
    missing, below, first, positions = (
        int(value or 0)
        for value in table.agg(
            missing=table.time.isnull().sum(),
            below=(table.position < 0).sum(),
            first=(table.position == 0).sum(),
            known=table.position.count(),
        )
        .to_pyarrow()
        .to_pylist()[0]
        .values()
    )
    notes["rows_without_time"], notes["negative_positions"] = missing, below
    notes["no_first_position"] = positions if config.position_base is None and positions and not first else 0
    position = (table.position < 0).fill_null(False).ifelse(ibis.null("int32"), table.position)
    return table.mutate(time=table.time.fill_null(0), position=position)


def _scan(connection: ibis.BaseBackend, source: str, config: LogConfig) -> tuple[ibis.Table, bool] | None:
    """The engine's own view of a Parquet log and whether its times lack a zone; None where it is text."""
    found = [source] if "://" in source else [str(path) for path in files_of(source)]
    if any(not name.lower().endswith(".parquet") for name in found if "://" not in name):
        return None
    back = {ours: yours for yours, ours in config.columns.items()}
    try:
        if connection.name == "duckdb":
            table = connection.read_parquet(found, filename="source_file", file_row_number=True, union_by_name=True)
            kind = table.schema().get(back.get("time", "time"))
            naive = kind is not None and kind.is_timestamp() and kind.timezone is None
        else:
            reader = connection._session.read.option("mergeSchema", "true")
            # A folder's name such as level=view is a column, as it is on DuckDB; it counts from here on.
            reader = reader if "://" in source else reader.option("basePath", str(_base_folder(source)))
            frame = reader.parquet(*found)
            kinds = dict(frame.dtypes)
            naive = kinds.get(back.get("time", "time")) == "timestamp_ntz"
            place = (
                "replace(replace(_metadata.file_path, 'file://', ''), 'file:', '') AS source_file",
                "_metadata.row_index AS file_row_number",
            )
            frame = frame.selectExpr("*", *place)
            name = ibis.util.gen_name("log")
            frame.createOrReplaceTempView(name)
            table = connection.table(name)
    except DataError:
        raise
    except Exception as error:
        first = str(error).partition("\n")[0]
        raise DataError(f"cannot be read as Parquet: {first}", path=source, fix="write the file again") from None
    _require_mapped(config, [name for name in table.columns if name not in _PLACE], source)
    kept = [name for name in table.columns if name not in config.columns and name not in back]
    table = table.select(*kept, **back)
    table = table.mutate(file=table.source_file, row=table.file_row_number.cast("int64") + 1)
    if "time" in table.columns and table.time.type().is_string():
        if "://" in source:
            fix = "store timestamps with a zone, or numbers since 1970"
            raise DataError("times of a log in remote storage cannot be text", path=source, column="time", fix=fix)
        return None
    if naive and config.time_zone is None:
        raise DataError(
            "times have no time zone",
            path=source,
            column="time",
            fix="name the zone that the log is written in, such as --set log.time_zone=Europe/Berlin",
        )
    return table, naive


def _base_folder(source: str) -> Path:
    """The folder below which folders may be named for a column and its value.

    >>> _base_folder("logs/day=*/part-?.parquet").as_posix()
    'logs'
    """
    path = Path(source)
    if path.is_dir():
        return path
    if path.exists():
        return path.parent
    fixed = list(takewhile(lambda part: not glob.has_magic(part), path.parts))
    return Path(*fixed)


def _require(there: Collection[str], source: str) -> None:
    """Raise DataError where a column of ours is missing among those of a log, after mapping."""
    own = [name for name in there if name not in OUR_COLUMNS]
    has = f"it has {', '.join(list(there)[:20])}"
    for name in TABLE_COLUMNS:
        if name not in there:
            fix = f"say which one it is: --columns {nearest(name, own) or 'yours'}={name}"
            raise DataError(f"has no column {name!r}; {has}", path=source, fix=fix)
    if not set(WHO) & set(there):
        fix = "one of them is enough; say which column it is: --columns yours=session_id"
        raise DataError(f"has none of {', '.join(WHO)}; {has}", path=source, fix=fix)


def _require_mapped(config: LogConfig, there: Collection[str], source: str) -> None:
    """Raise DataError where a column that is mapped to one of ours is not in the log."""
    for yours, ours in config.columns.items():
        if yours not in there:
            near = nearest(yours, there)
            fix = f"did you mean --columns {near}={ours}?" if near else f"name the column that is {ours}"
            has = ", ".join(list(there)[:20])
            raise DataError(f"has no column {yours!r}, which is mapped to {ours!r}; it has {has}", path=source, fix=fix)


def _text(column: ibis.Column, name: str, source: str) -> ibis.Column:
    kind = column.type()
    if kind.is_string():
        return _trimmed(column).nullif("")
    if kind.is_integer():
        return column.cast("string")
    if kind.is_floating():  # whole numbers with a gap among them arrive as floats: 12.0 is the id 12
        return (column == column.floor()).ifelse(column.cast("int64").cast("string"), column.cast("string"))
    if kind.is_null():
        return column.cast("string")
    raise DataError(f"column {name!r} holds {kind}, not text", path=source, column=name, fix="store text")


@ibis.udf.scalar.builtin(name="trim", signature=((ibis.dtype("string"),), ibis.dtype("string")))
def _trimmed(text):  # type: ignore[no-untyped-def]
    """A text without blanks around it. Ibis' own ``strip`` takes the letter v away on Spark ("tv" becomes "t")."""


def _micros(connection: ibis.BaseBackend, table: ibis.Table, config: LogConfig, source: str) -> ibis.Column:
    time = table.time
    kind = time.type()
    if kind.is_timestamp():
        return _since_1970(connection)(time if connection.name == "duckdb" else time.cast("timestamp('UTC')"))
    if "TIMESTAMPTZ_NS" in str(kind):  # Ibis has no name for this kind of DuckDB's
        return _since_1970(connection)(time.cast("timestamp('UTC')"))
    if not kind.is_numeric() or kind.is_boolean():
        fix = "store a timestamp with a zone, or a number since 1970 (such as --set log.time_unit=milliseconds)"
        raise DataError(f"column 'time' holds {kind}, not times", path=source, column="time", fix=fix)
    unit = UNITS[config.unit()]
    wrong = _first(table, _not_finite(time) | _beyond(time, -_TIMES // unit, _TOO_LATE // unit), "time")
    if wrong is not None:
        raise _no_time(wrong["value"], config.unit(), wrong["file"], wrong["row"])
    return time.cast("int64") * unit if kind.is_integer() else (time * unit).round().cast("int64")


def _number(value: object) -> float | None:
    """A cell of text or of JSON as a number, None where it is none."""
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None


def _no_time(value: object, unit: str, path: str | Path, line: int) -> DataError:
    late = _TOO_LATE < (_number(value) or 0) * UNITS[unit] < math.inf
    problem = f"is after the year 2200 when read as {unit}" if late else f"is not a time in {unit}"
    unit = "--set log.time_unit=milliseconds"
    fix = (
        f"if it counts others: {unit} (or microseconds)" if late else f"leave the cell empty, or name the unit: {unit}"
    )
    return DataError(problem, path=path, line=line, column="time", value=value, fix=fix)


def _not_finite(column: ibis.Column) -> ir.BooleanValue:
    """Whether a number is NaN or infinite; whole numbers and decimals never are.

    It is told from the text: DuckDB finds no NaN by ``isnan`` where a file's statistics, which leave NaN
    out, seem to rule it out.
    """
    if not column.type().is_floating():
        return ibis.literal(False)
    return column.cast("string").lower().isin(["nan", "inf", "-inf", "infinity", "-infinity"])


def _beyond(column: ibis.Column, low: int, high: int) -> ir.BooleanValue:
    """Whether a number is below the first bound, which is negative, or above the second one."""
    above = column > high
    return above if column.type().is_unsigned_integer() else above | (column < low)


def _first(table: ibis.Table, where: ir.BooleanValue, column: str) -> dict[str, Any] | None:
    """``file`` and ``row`` of the first row of the log where this is so, and the ``value`` of a column as text.

    As text, because what comes from Spark has no NaN.
    """
    found = table.filter(where).select("file", "row", value=table[column].cast("string")).order_by("file", "row")
    rows = found.limit(1).to_pyarrow().to_pylist()
    return rows[0] if rows else None


def _since_1970(connection: ibis.BaseBackend) -> Callable[[ibis.Column], ibis.Column]:
    """The engine's own function from timestamps to microseconds; Ibis has none that is exact on both."""
    name = "epoch_us" if connection.name == "duckdb" else "unix_micros"
    kinds = ((ibis.dtype("timestamp"),), ibis.dtype("int64"))

    @ibis.udf.scalar.builtin(name=name, signature=kinds)
    def since_1970(time):  # type: ignore[no-untyped-def]
        ...

    return since_1970


def _in_utc(connection: ibis.BaseBackend, table: ibis.Table, config: LogConfig, work: Path) -> ibis.Table:
    """Times of the configured zone as times in UTC: Python's zone rules for each quarter of an hour that occurs."""
    pa, pq = need("pyarrow", "logs"), need("pyarrow.parquet", "logs")
    quarter = (table.time / _QUARTER).floor().cast("int64")
    table = table.mutate(quarter=quarter)
    quarters = sorted(
        q for q in table.select("quarter").distinct().to_pyarrow()["quarter"].to_pylist() if q is not None
    )
    zone, epoch = config.zone(), dt.datetime(1970, 1, 1)
    utc = [micros(epoch + dt.timedelta(microseconds=q * _QUARTER), zone, "seconds") - q * _QUARTER for q in quarters]
    shifts = pa.table({"quarter": pa.array(quarters, pa.int64()), "shift": pa.array(utc, pa.int64())})
    pq.write_table(shifts, work / "zone.parquet")
    joined = table.left_join(read_parquet(connection, work / "zone.parquet"), "quarter")
    return joined.select(
        *[(joined.time + joined["shift"]).name("time") if c == "time" else joined[c] for c in table.columns]
    )


def _levels(table: ibis.Table, config: LogConfig, source: str) -> ibis.Column:
    """Numbers of LEVELS, or NEGATIVE, for the words of a log. Raises DataError with the row of an unknown one."""
    column = table.level
    meanings = {
        **{name: name for name in LEVELS},
        "negative": "negative",
        # Where words are mapped, numbers are taken for words: what 1 means in such a log is not ours to guess.
        **({} if config.levels else {str(number): name for name, number in LEVEL_NUMBERS.items()}),
        **{word(k): v for k, v in config.levels.items()},
    }
    numbers = {**LEVEL_NUMBERS, "negative": NEGATIVE}
    text = column.cast("string")
    found = table.select(level=text).distinct().limit(1000).to_pyarrow()["level"].to_pylist()
    cases = []
    for value in sorted(value for value in found if value is not None):
        meaning = meanings.get(word(value))
        if meaning is None:
            raise _unknown_level(table, text == value, value, meanings)
        cases.append(
            (text == value, ibis.null("int64") if meaning == "ignore" else ibis.literal(numbers[meaning], "int64"))
        )
    if None in found:
        raise _unknown_level(table, column.isnull(), None, meanings)
    return ibis.cases(*cases, else_=ibis.null("int64")) if cases else ibis.null("int64")


def _unknown_level(table: ibis.Table, where: Any, value: str | None, meanings: Mapping[str, str]) -> DataError:
    first = _first(table, where, "level")
    assert first is not None
    return DataError(
        "is empty" if value is None else "is not a level",
        path=first["file"],
        line=first["row"],
        column="level",
        value=value,
        fix=f"allowed: {', '.join(sorted(meanings))}; map others with --set log.levels='{{{value or 'yours'}: click}}'",
    )


def _position(table: ibis.Table, config: LogConfig, source: str) -> ibis.Column:
    if "position" not in table.columns:
        return ibis.null("int32")
    position, kind = table.position, table.position.type()
    if kind.is_null():
        return ibis.null("int32")
    if not kind.is_numeric() or kind.is_boolean():
        raise DataError(f"column 'position' holds {kind}, not whole numbers", path=source, column="position")
    wrong = _not_finite(position) | _beyond(position, 1 - POSITIONS, POSITIONS - 1)
    if not kind.is_integer():
        wrong = wrong | (position != position.floor())
    first = _first(table, wrong, "position")
    if first is not None:
        raise _no_position(first["value"], first["file"], first["row"])
    return (position.cast("int64") - (config.position_base or 0)).cast("int32")


def _no_position(value: object, path: str | Path, line: int) -> DataError:
    number = _number(value)
    large = number is not None and number.is_integer()
    problem = f"is a whole number of {POSITIONS} or more" if large else "is not a whole number"
    fix = "positions count from 0 or 1; leave unknown ones empty"
    return DataError(problem, path=path, line=line, column="position", value=value, fix=fix)


def _text_rows(config: LogConfig, work: Path, notes: Counter[str]) -> Path:
    """A Parquet file of a log in CSV or JSON lines, or with times in text: each cell checked, times in microseconds."""
    pa = need("pyarrow", "logs")
    (source,) = config.sources()
    paths = files_of(source)
    there = list(dict.fromkeys(n for path in paths for n in _names(path)))
    if not there:
        raise DataError("has no rows", path=source, fix="give a file with at least one row of data")
    _require_mapped(config, there, source)
    names = list(dict.fromkeys(config.columns.get(n, n) for n in there))
    _require(names, source)
    texts = [n for n in (*WHO, "query", "item_id", "level", "event_id", "agent") if n in names]
    schema = pa.schema(
        [
            *[(name, pa.string()) for name in texts],
            *([("position", pa.int64())] if "position" in names else []),
            *([("time", pa.int64())] if "time" in names else []),
            ("file", pa.string()),
            ("row", pa.int64()),
        ]
    )
    write_rows(_text_cells(config, paths, texts, names), schema, work / "table.parquet")
    return work / "table.parquet"


def _names(path: Path) -> list[str]:
    """The columns of a file: of JSON, those of its records."""
    if path.name.lower().removesuffix(".gz").endswith((".jsonl", ".ndjson", ".json")):
        return list(dict.fromkeys(name for _, record in read_records(path) for name in record))
    return list(next(read_records(path), (0, {}))[1])


def _text_cells(config: LogConfig, paths: list[Path], texts: list[str], names: list[str]) -> Iterator[tuple[Any, ...]]:
    zone, unit = config.zone(), config.unit()
    back = {ours: yours for yours, ours in config.columns.items()}
    for path in paths:
        for line, record in read_records(path):
            cells = [text_of(record.get(back.get(name, name))) for name in texts]
            if "position" in names:
                value = record.get(back.get("position", "position"))
                position = whole(value)
                if position is None and text_of(value) is not None:
                    raise _no_position(value, path, line)
                cells.append(position)  # type: ignore[arg-type]
            if "time" in names:
                value = record.get(back.get("time", "time"))
                try:
                    time = None if text_of(value) is None else micros(value, zone, unit)
                except DataError as error:
                    raise DataError(_problem(error), path=path, line=line, column="time", value=value) from None
                if time is not None and time > _TOO_LATE and _number(value) is not None:
                    raise _no_time(value, unit, path, line)
                cells.append(time)  # type: ignore[arg-type]
            yield (*cells, str(path), line)
