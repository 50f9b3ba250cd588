"""What each user did, in order: query-item sequences for user models (SEMINAR, 2; AdaptSSR, 3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import ibis
from pydantic import Field

from pertinent.config import Config
from pertinent.mining.schema import EVENTS, LEVEL_NUMBERS, require
from pertinent.records import Level

if TYPE_CHECKING:
    from ibis import Table

SEQUENCES = {
    "user_id": "string",
    "place": "int64",
    "time": "int64",
    "query": "string",
    "item_id": "string",
    "level": "int8",
}


class SequenceConfig(Config):
    """Each user's latest ``max_length`` events of ``min_level`` or deeper."""

    max_length: int = Field(1000, ge=1)
    min_level: Level = "click"


def user_sequences(events: Table, items: Table | None, max_length: int, min_level: str) -> Table:
    """The latest ``max_length`` events of each user in order: ``user_id, place, time, query, item_id, level``.

    ``events`` is `schema.EVENTS`; events of less than ``min_level`` and those without a user are left
    out, and so are items that are not in ``items`` (a table with ``item_id``), where it is given.
    ``place`` is from 0, the earliest kept. Events outside of a search have the empty query. Events of
    equal time are in the order of position (unknown ones first), item, level and query, whatever their
    order in the table; the id of the result page plays no part.
    """
    require(events, EVENTS, "user_sequences")
    done = events.filter(events.level >= LEVEL_NUMBERS[min_level], events.user_id.fill_null("") != "")
    if items is not None:
        done = done.semi_join(items.select("item_id").distinct(), "item_id")
    order = [
        done.time.asc(),
        done.position.fill_null(-1).asc(),
        done.item_id.asc(),
        done.level.asc(),
        done["query"].asc(),
    ]
    numbered = done.mutate(
        number=ibis.row_number().over(ibis.window(group_by="user_id", order_by=order)),
        length=done.count().over(ibis.window(group_by="user_id")),
    )
    first = (numbered.length - max_length).clip(lower=0)
    placed = numbered.mutate(place=(numbered.number - first).cast("int64"))
    return placed.filter(placed.place >= 0).select(*SEQUENCES)
