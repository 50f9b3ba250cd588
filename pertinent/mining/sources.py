"""What a search log is called and what it does not say itself: settings, files, and what was met while reading."""

from __future__ import annotations

import datetime as dt
import glob
import re
import zoneinfo
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from pydantic import Field, ValidationInfo, field_validator

from pertinent.config import Config, TimeZone
from pertinent.data.files import SUFFIXES, check_exists
from pertinent.data.tables import nearest
from pertinent.errors import DataError
from pertinent.mining.schema import EVENTS
from pertinent.records import Level

if TYPE_CHECKING:
    import ibis

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
# The columns of a table of your own; one of the ids of WHO has to be there.
TABLE_COLUMNS = ("query", "item_id", "level", "time")
WHO = ("user_id", "session_id", "search_id")
OPTIONAL_COLUMNS = ("position", "event_id", "agent")
OUR_COLUMNS = (*WHO, *TABLE_COLUMNS, *OPTIONAL_COLUMNS)

Meaning = Literal[Level, "negative", "ignore"]

NOTES = MappingProxyType(
    {
        "rows": "rows read, one for each item of an event",
        "rows_without_item": "rows name no item (searches without results, for example) and were left out",
        "events_without_item": "events or items of them had no item id and were left out",
        "searches_without_items": "searches name no item, and no other row of them does (nothing was found, or the log "
        "does not say what); they count nowhere",
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
    time_zone: TimeZone | None = None
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
