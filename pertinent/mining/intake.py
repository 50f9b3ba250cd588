"""A log read and checked, into the events of a run; broken input is named with its row."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pertinent.data.damage import refuse_damaged
from pertinent.data.readers import read_table_parts
from pertinent.data.tables import MAX_TEXT_CHARACTERS
from pertinent.data.tables import Table as Rows
from pertinent.errors import DataError, PertinentError
from pertinent.mining.checks import Checked, check_events
from pertinent.mining.engines import read_parquet
from pertinent.mining.readers import read_log
from pertinent.mining.schema import CLICK, VIEW
from pertinent.mining.sources import RawLog, files_of, sentence

if TYPE_CHECKING:
    from ibis import Table

    from pertinent.mining.settings import MineConfig
    from pertinent.mining.stages import Stages

_CHUNK = 100_000
REUSED_IDS = (
    "if search ids begin anew in each session or day, other searches are taken for one; map search_id only where it "
    "is unique in the whole log, such as with the session in it, or leave the column out"
)
# What to do about a log without queries, where it is not to say which part of an address holds them.
_QUERY_FIXES = {
    "table": "name its column (--columns yours=query)",
    "ubi": "give the records of queries too (log.queries beside log.events, or the folder of both)",
}


def read_events(stages: Stages, config: MineConfig, known: Mapping[int, int], earlier: Path | None) -> dict[str, Any]:
    """What was met in the log (notes, also told as sentences; checks, and the latest possible day).

    Its events go to ``events.parquet``, and when its searches were first seen to ``new_pages.parquet``;
    ``earlier`` is the table of the latter for the days ``known``.
    """
    with stages.step("log read and checked"):
        if not stages.has("log.json"):
            items = _item_ids(stages, config)
            with _broken_files_named(config):
                _read_new(stages, config, items, known, earlier)
        log: dict[str, Any] = stages.json("log", dict)
    return log


def _read_new(
    stages: Stages, config: MineConfig, items: Table | None, known: Mapping[int, int], earlier: Path | None
) -> None:
    raw_files = stages.folder / "raw"
    raw_files.mkdir(exist_ok=True)
    raw = read_log(stages.connection, config.log, items, raw_files)
    gap = config.sessions.gap_minutes
    pages = None if earlier is None else read_parquet(stages.connection, earlier)
    checked = check_events(stages.connection, raw, items, config.checks, gap, raw_files, known, pages)
    stages.table("events", lambda: checked.events, [])
    stages.table("new_pages", lambda: checked.pages, [])
    found = {"notes": raw.notes, "told": raw.warnings(), "checks": checked.counts, "latest": checked.latest}
    of_late = _late_warning(config, raw, checked)
    found["warnings"] = _log_warnings(raw, checked) + of_late + _no_query_warning(config, checked)
    stages.json("log", lambda: found)
    shutil.rmtree(raw_files)


def _log_warnings(raw: RawLog, checked: Checked) -> list[str]:
    """What the log lacks so that results would not mean what they seem to."""
    warnings = [sentence(name, raw.notes[name]) for name in ("no_first_position", "no_position") if name in raw.notes]
    entry = next(entry for entry in checked.counts if entry["check"] == "clicks_without_view")
    rows, action = int(str(entry["rows"])), entry["action"]
    events = checked.events
    clicks = _count(events.filter((events.level >= CLICK) & (events["query"] != "")))
    if not clicks or action == "drop":
        return warnings
    # Clicks whose search began on an earlier day are not among the rows, with views or without any.
    if not _count(raw.events.filter(raw.events.level == VIEW)):
        problem, fix = "the log has no views", "export what was shown too, as rows with the level view"
    elif rows * 20 < clicks * 19:
        return warnings
    else:
        problem = f"{rows:,} of {clicks:,} clicks (and deeper) have no view of their item on their result page"
        fix = "give views the search_id, or the user, session and query, of their clicks"
    meaning = "click-through is 1 everywhere, neighbors and position curve mean nothing"
    return [*warnings, f"{problem}: {meaning}; {fix}"]


def _late_warning(config: MineConfig, raw: RawLog, checked: Checked) -> list[str]:
    """A warning where so many rows are late that ids of searches must be used again."""
    late = next(int(str(entry["rows"])) for entry in checked.counts if entry["check"] == "late")
    if late * 20 <= raw.notes["rows"]:
        return []
    return [
        f"{late:,} of {raw.notes['rows']:,} rows are more than {config.checks.late_days} days after the first event of "
        f"their search ({config.checks.late}): {REUSED_IDS}"
    ]


def _no_query_warning(config: MineConfig, checked: Checked) -> list[str]:
    """A warning where nobody searched in the whole log."""
    events = checked.events
    rows = _count(events)
    if not rows or _count(events.filter(events["query"] != "")):
        return []
    fix = _QUERY_FIXES.get(config.log.format, "say where it is (log.query_parameters, log.query_pattern)")
    return [
        f"none of {rows:,} events has a query: only sequences are mined, what is about queries stays empty; "
        f"if the log has the query, {fix}"
    ]


def _count(table: Table) -> int:
    return int(table.count().to_pyarrow().as_py())


@contextmanager
def _broken_files_named(config: MineConfig) -> Iterator[None]:
    """Around reading: an error of the engine becomes one that names the file and row, if a file is broken."""
    try:
        yield
    except (PertinentError, MemoryError):
        raise
    except Exception as error:
        if is_memory(error):
            raise
        for source in (config.log.path, config.log.queries, config.log.events):
            for file in local_files(source):
                if file.suffix == ".parquet":
                    refuse_damaged(file)
        if "parquet" in str(error).lower():
            problem = f"cannot be read ({str(error).splitlines()[0]})"
            raise DataError(problem, path=config.log.path, fix="write or copy the file again") from None
        raise


def _item_ids(stages: Stages, config: MineConfig) -> Table | None:
    if config.items is None:
        return None
    return stages.arrow("items", lambda: _catalog_ids(str(config.items), config.item_columns))


def _catalog_ids(path: str, rename: Mapping[str, str]) -> pa.Table:
    ids: list[str] = []
    for part in read_table_parts(path, _CHUNK, rename):
        if not part.has("item_id"):
            raise part.missing("item_id", flag="--item-columns")
        _refuse_long_titles(part)
        ids += part.need_texts("item_id")
    return pa.table({"item_id": pa.array(ids, pa.string())})


def _refuse_long_titles(part: Rows) -> None:
    """Raise DataError for a title that no other command would read, as the catalog is theirs too."""
    for row, title in enumerate(part.column_or_none("title")):
        if isinstance(title, str) and len(title) > MAX_TEXT_CHARACTERS:
            part.text(row, "title")


def judged_queries(config: MineConfig) -> list[str]:
    """The queries of all files of judgments, as they are written there."""
    return [
        text for path in config.judged for part in read_table_parts(path, _CHUNK) for text in part.need_texts("query")
    ]


def check_judged(config: MineConfig) -> None:
    """Raise DataError for a file of judgments without queries, which are read only when most of the work is done."""
    for path in config.judged:
        first = next(read_table_parts(path, _CHUNK))
        if not first.has("query"):
            raise first.missing("query", "rename the column of the queries to 'query' in the file", flag=None)


def local_files(source: str | None) -> list[Path]:
    """The files of a source; none for an address that only the engine can read."""
    return [] if source is None or "://" in source else files_of(source)


def is_memory(error: Exception) -> bool:
    """Whether an engine ran out of the memory that it was given."""
    return type(error).__name__ == "OutOfMemoryException"  # DuckDB's, which need not be installed beside Spark
