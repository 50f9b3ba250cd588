"""Search logs of other systems as one table of events: UBI, Google Analytics 4, Segment, Snowplow, your own.

What a source leaves open is asked for or counted, never guessed in silence: see docs/logs.md.
"""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import ibis

from pertinent.mining.foreign import foreign_log
from pertinent.mining.normalized import with_normalized_queries
from pertinent.mining.own_table import own_table
from pertinent.mining.schema import DAY
from pertinent.mining.sources import RAW_EVENTS, LogConfig, RawLog


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
        table = own_table(connection, config, work, notes)
        table = with_normalized_queries(connection, table, work)
    else:
        table = foreign_log(connection, config, items, work, notes)
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
