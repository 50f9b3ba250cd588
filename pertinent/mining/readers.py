"""Search logs of other systems as one table of events: UBI, Google Analytics 4, Segment, Snowplow, your own.

What a source leaves open is asked for or counted, never guessed in silence: see docs/logs.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import ibis
from pydantic import Field

from pertinent.config import Config
from pertinent.mining.schema import EVENTS

# What checks look at besides the columns of EVENTS. Ids may still be null here.
RAW_EVENTS = MappingProxyType(
    {
        **EVENTS,  # level is NEGATIVE for a removal or a refund; time is 0 where there is none
        "event_id": "string",  # the source's own id of the event and item, where it has one
        "agent": "string",  # the user agent, where the source has one
        "file": "string",
        "row": "int64",  # from 1: a line of text, or a row of a Parquet file
    }
)
NEGATIVE = -1

Meaning = Literal["view", "click", "cart", "contact", "order", "pay", "negative", "ignore"]


class LogConfig(Config):
    """Where the log is, and what it does not say itself."""

    path: str | None = None
    format: Literal["table", "ubi", "ga4", "segment", "snowplow"] = "table"
    queries: str | None = None
    events: str | None = None
    columns: dict[str, str] = {}
    levels: dict[str, Meaning] = {}
    time_zone: str | None = None
    time_unit: Literal["seconds", "milliseconds", "microseconds"] = "seconds"
    position_base: Literal[0, 1] | None = None
    item_field: str | None = None
    query_parameters: list[str] = ["search_term", "query", "q", "search", "keyword", "s"]
    search_lists: list[str] = []
    link_minutes: int = Field(30, ge=1)


@dataclass(frozen=True)
class RawLog:
    """``events`` with the columns of RAW_EVENTS, and ``notes``: what was met while reading, each with its count."""

    events: ibis.Table
    notes: dict[str, int]


def read_log(connection: ibis.BaseBackend, config: LogConfig, items: ibis.Table | None, work: Path) -> RawLog:
    """The log as a table of raw events, with normalized queries; files made on the way stay in ``work``.

    ``items`` has ``item_id`` (any type) and is used to tell item ids from internal numbers.
    Raises DataError that names file and row for what cannot be read.
    """
