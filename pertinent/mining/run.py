"""Mining a search log once, for everything that learns from behavior: settings, and the steps in order.

The steps are functions from table to table in the modules beside this one; here they meet files. What
a day of the log holds is counted by day, so that a later run with ``update`` needs the new days only.
"""

from __future__ import annotations

import bisect
import glob
import itertools
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pertinent import __version__
from pertinent.artifact import (
    Artifact,
    open_artifact,
    refuse_foreign,
    restore,
    sha256,
    write_artifact,
    write_json,
    write_text,
)
from pertinent.config import Config
from pertinent.data.readers import read_table_parts
from pertinent.errors import ConfigError, DataError, PertinentError, need
from pertinent.lexicon.store import KIND as LEXICON
from pertinent.lexicon.store import Lexicon
from pertinent.lexicon.tagger import Tagger

need("ibis", "logs")
need("pyarrow", "logs")

import pyarrow as pa  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402
from pydantic import field_validator  # noqa: E402

from pertinent.mining.checks import CheckConfig, Checked, check_events  # noqa: E402
from pertinent.mining.clicks import ClickConfig, deepest_levels, frequent_pairs, repeated, resampled  # noqa: E402
from pertinent.mining.daily import (  # noqa: E402
    daily_actions,
    daily_counts,
    daily_positions,
    daily_searches,
    day_volumes,
    keep_days,
    page_items,
    update_days,
)
from pertinent.mining.engines import (  # noqa: E402
    DuckDBEngine,
    EngineConfig,
    open_engine,
    read_parquet,
)
from pertinent.mining.hotpairs import HotConfig, hot_pairs, hot_queries  # noqa: E402
from pertinent.mining.neighbors import (  # noqa: E402
    Coverage,
    NeighborConfig,
    coverage,
    neighbors,
    small_log_warning,
    with_seen,
)
from pertinent.mining.positions import (  # noqa: E402
    PositionConfig,
    coec,
    debiased_ctr,
    fit_position_model,
)
from pertinent.mining.queries import ClarityConfig, QueryConfig, clear_queries, query_volumes  # noqa: E402
from pertinent.mining.readers import read_log  # noqa: E402
from pertinent.mining.report import day_name, report_numbers, report_page  # noqa: E402
from pertinent.mining.schema import CLICK  # noqa: E402
from pertinent.mining.sequences import SequenceConfig, user_sequences  # noqa: E402
from pertinent.mining.sessions import SessionConfig  # noqa: E402
from pertinent.mining.sources import LogConfig, RawLog, files_of, sentence  # noqa: E402
from pertinent.mining.stages import Stages, work_folder  # noqa: E402
from pertinent.mining.unlabeled import UnlabeledConfig, same_words, unlabeled_pairs  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable

    from ibis import Table

    from pertinent.lexicon.tagger import TermSpan

KIND = "mined"
# The tables of the artifact, each with the columns that its rows are ordered by.
TABLES: dict[str, list[str]] = {
    "days": ["day"],
    "daily": ["day", "query", "item_id"],
    "daily_positions": ["day", "query", "item_id", "position"],
    "daily_searches": ["day", "query"],
    "daily_actions": ["day", "user_id", "time", "query", "item_id", "level", "position"],
    "clicks": ["query", "item_id"],
    "queries": ["query"],
    "positions": ["position"],
    "neighbors_query": ["query", "rank"],
    "neighbors_item": ["item_id", "rank"],
    "hot_queries": ["rank"],
    "hot_pairs": ["rank"],
    "sequences": ["user_id", "place"],
    "candidates": ["query", "item_id"],
}
# What does not change the content of the artifact, and is left out of its manifest.
NOT_RECORDED = {"out", "progress", "update"}
# What shapes no result, so that a run which was stopped may go on without it or with more of it.
NOT_PLANNED: dict[str, Any] = {"engine": {"memory", "threads"}, "progress": True}
STEPS = (
    *("log read and checked", "counts by day", "click model", "queries", "clicked pairs", "neighbors of queries"),
    *("neighbors of items", "hot queries and pairs", "sequences", "pairs for a teacher", "neighbor coverage", "report"),
)
_CHUNK, _TAGGED = 100_000, 4_000
_log = logging.getLogger(__name__)


class MineConfig(Config):
    """Settings of ``pertinent mine``: the log, where the artifact goes, and one part for each step."""

    log: LogConfig
    out: str
    items: str | None = None
    item_columns: dict[str, str] = {}
    judged: tuple[str, ...] = ()
    lexicon: str | None = None
    update: bool = False
    engine: EngineConfig = DuckDBEngine()
    checks: CheckConfig = CheckConfig()
    sessions: SessionConfig = SessionConfig()
    clicks: ClickConfig = ClickConfig()
    queries: QueryConfig = QueryConfig()
    clarity: ClarityConfig = ClarityConfig()
    positions: PositionConfig = PositionConfig()
    neighbors: NeighborConfig = NeighborConfig()
    hot: HotConfig = HotConfig()
    sequences: SequenceConfig = SequenceConfig()
    unlabeled: UnlabeledConfig = UnlabeledConfig()
    progress: bool = True

    @field_validator("engine", mode="before")
    @classmethod
    def _duckdb_unless_named(cls, value: Any) -> Any:
        return {"type": "duckdb", **value} if isinstance(value, dict) else value

    @property
    def kept_days(self) -> int:
        """The longest window of any step: how many days the artifact keeps for updates."""
        steps = (self.clicks, self.queries, self.positions, self.neighbors, self.hot, self.unlabeled)
        return max(step.days for step in steps)


@dataclass(frozen=True)
class Mined:
    """What the steps of one run share: where results go, the settings, and the tables so far by name."""

    stages: Stages
    config: MineConfig
    tables: dict[str, Table]
    until_day: int

    def add(self, name: str, make: Callable[[], Table]) -> None:
        """Make the table of this name."""
        self.tables[name] = self.stages.table(name, make, TABLES[name])

    def window(self, name: str, days: int) -> Table:
        """The last days of a table by day."""
        return keep_days(self.tables[name], self.until_day, days)


def mine(config: MineConfig) -> Artifact:
    """The artifact of kind ``mined`` made from a log; with ``update`` its days are added to those it has.

    What stands at ``out`` stays as it is until everything is made, and is then replaced in one rename.
    A run that was killed goes on after its last complete step when it is started again.
    Raises DataError that names file and row of broken input, ArtifactError where ``out`` is something else.
    """
    out = Path(config.out)
    refuse_foreign(out, KIND)
    base = _base(config, out) if config.update else None
    inputs = input_digests(config)
    _check_judged(config)
    plan = {
        "pertinent": __version__,
        "config": config.model_dump(mode="json", exclude=NOT_PLANNED),
        "inputs": inputs,
        "base": base.version if base is not None else None,
    }
    with _memory_named(config), work_folder(_behind(out), plan) as work:
        with open_engine(config.engine, work) as connection, Stages(connection, work, STEPS, config.progress) as stages:
            known = _known(base)
            log = _read(stages, config, known)
            log["notes"] = _same_positions(config, base, log["notes"])
            run, changed = _by_day(stages, config, base, known, log)
            _derive(run)
            with stages.step("report"):
                numbers = stages.json("numbers", lambda: _numbers(run, log, changed))
        recorded = {name: value for name, value in config.plain().items() if name not in NOT_RECORDED}
        with write_artifact(out, KIND, recorded, inputs, numbers["summary"], dated=False) as folder:
            for name in TABLES:
                _link(work / f"{name}.parquet", folder / f"{name}.parquet")
            write_json(folder / "checks.json", {name: log[name] for name in ("notes", "told", "checks")})
            write_json(folder / "report.json", numbers)
            write_text(folder / "report.html", report_page(numbers))
    for warning in numbers["warnings"]:
        _log.warning("%s", warning)
    return open_artifact(out, KIND, verify=False)


def read_mined(path: str | Path, name: str) -> pa.Table:
    """One table of a mined artifact, whichever engine wrote it. Raises ArtifactError for another folder."""
    artifact = open_artifact(path, KIND, verify=False)
    if name not in TABLES:
        raise ConfigError(f"{path}: has no table {name!r}; it has {', '.join(TABLES)}")
    return pq.read_table(artifact.path / f"{name}.parquet")


def input_digests(config: MineConfig) -> dict[str, str]:
    """What came in, by the setting that names it: SHA-256 of each file, and the version of the lexicon.

    Files of a folder or pattern have their path below its fixed part added.
    """
    sources = {"log": config.log.path, "queries": config.log.queries, "events": config.log.events}
    sources |= {"items": config.items, **{f"judged.{at}": path for at, path in enumerate(config.judged)}}
    digests = {}
    for setting, source in sources.items():
        for file in _local_files(source):
            name = file.relative_to(_fixed_part(str(source))).as_posix()
            digests[setting if file == Path(str(source)) else f"{setting}/{name}"] = sha256(file)
    if config.lexicon is not None:
        digests["lexicon"] = open_artifact(config.lexicon, LEXICON).version
    return digests


def _local_files(source: str | None) -> list[Path]:
    """The files of a source; none for an address that only the engine can read."""
    return [] if source is None or "://" in source else files_of(source)


def _fixed_part(source: str) -> Path:
    """A folder or file itself; of a pattern, the folders before its first wildcard."""
    path = Path(source)
    return path if path.exists() else Path(*itertools.takewhile(lambda part: not glob.has_magic(part), path.parts))


def _behind(out: Path) -> Path:
    return Path(os.path.realpath(out)) if out.is_symlink() else out


@contextmanager
def _memory_named(config: MineConfig) -> Iterator[None]:
    """Around the work: an engine without memory is an error that names the setting. Complete steps stay."""
    try:
        yield
    except Exception as error:
        if not _is_memory(error):
            raise
        first = str(error).splitlines()[0]
        raise PertinentError(
            f"the engine needs more memory than engine.memory={config.engine.memory} ({first}); set it higher or "
            "engine.threads lower, and start again: what is complete is kept"
        ) from None


def _is_memory(error: Exception) -> bool:
    return type(error).__name__ == "OutOfMemoryException"  # DuckDB's, which need not be installed beside Spark


# ---------------------------------------------------------------- what an update begins with


def _base(config: MineConfig, out: Path) -> Artifact | None:
    """The artifact that is to be updated; None where there is none yet.

    Raises ConfigError where its tables by day were made with other settings.
    """
    if not out.exists() and (found := restore(_behind(out), KIND)) is not None:
        _log.warning("%s: was missing, as a run stopped while it was replaced; taken back from %s", out, found)
    if not (out / "manifest.json").exists():
        return None
    base = open_artifact(out, KIND)
    _refuse_others(config, MineConfig.build({**base.config, "out": config.out}, source=f"{out}: its settings"))
    return base


def _refuse_others(config: MineConfig, before: MineConfig) -> None:
    """Raises ConfigError that names each setting under which days would be counted in another way than before."""
    old, new = _shaping(before), _shaping(config)
    other = [f"{name} was {old[name]}, is {new[name]}" for name in new if old[name] != new[name]]
    if config.kept_days > before.kept_days:
        other.append(f"the longest window was {before.kept_days} days, is {config.kept_days}")
    if other:
        raise ConfigError(
            f"{config.out}: its days were counted with other settings: {'; '.join(other)}; "
            "use the settings it was made with, or mine the whole log again without update"
        )


def _shaping(config: MineConfig) -> dict[str, Any]:
    """The settings that say how a day is counted, by their names."""
    log, checks = config.log.plain() | {"time_unit": config.log.unit()}, config.checks.plain()
    # Other formats than a table number their positions as each log says, see `_same_positions`.
    log["position_base"] = config.log.position_base or 0 if config.log.format == "table" else None
    return {
        **{f"log.{name}": log[name] for name in log if name not in ("path", "queries", "events")},
        **{f"checks.{name}": checks[name] for name in checks if name != "latest"},
        "sessions.gap_minutes": config.sessions.gap_minutes,
        "sequences.min_level": config.sequences.min_level,
    }


def _same_positions(config: MineConfig, base: Artifact | None, notes: dict[str, int]) -> dict[str, int]:
    """The notes, with the position bases of applications that only earlier logs had.

    Raises ConfigError where the base that was guessed for an application is not the one of earlier days.
    """
    if base is None:
        return notes
    earlier = base.json("report.json")["notes"]
    before = {name: found for name, found in earlier.items() if name.startswith("position_base:")}
    for name, found in before.items():
        if config.log.position_base is None and notes.get(name, found) != found:
            raise ConfigError(
                f"log.position_base: positions of application {name.partition(':')[2]!r} seem to count from "
                f"{notes[name]} in this log, and counted from {found} in the days that {config.out} has; "
                "say which holds for this log, log.position_base=0 or 1"
            )
    return before | notes


# ---------------------------------------------------------------- reading


def _read(stages: Stages, config: MineConfig, known: Mapping[int, int]) -> dict[str, Any]:
    """What was met in the log (notes, also told as sentences; checks, and the latest possible day).

    Its events go to ``events.parquet``.
    """
    with stages.step("log read and checked"):
        if not stages.has("log.json"):
            items = _item_ids(stages, config)
            with _broken_files_named(config):
                _read_events(stages, config, items, known)
        log: dict[str, Any] = stages.json("log", dict)
    return log


def _read_events(stages: Stages, config: MineConfig, items: Table | None, known: Mapping[int, int]) -> None:
    raw_files = stages.folder / "raw"
    raw_files.mkdir(exist_ok=True)
    raw = read_log(stages.connection, config.log, items, raw_files)
    gap = config.sessions.gap_minutes
    checked = check_events(stages.connection, raw, items, config.checks, gap, raw_files, known)
    stages.table("events", lambda: checked.events, [])
    found = {"notes": raw.notes, "told": raw.warnings(), "checks": checked.counts, "latest": checked.latest}
    found["warnings"] = _log_warnings(raw, checked)
    stages.json("log", lambda: found)
    shutil.rmtree(raw_files)


def _log_warnings(raw: RawLog, checked: Checked) -> list[str]:
    """What the log lacks so that results would not mean what they seem to."""
    warnings = [sentence(name, raw.notes[name]) for name in ("no_first_position", "no_position") if name in raw.notes]
    entry = next(entry for entry in checked.counts if entry["check"] == "clicks_without_view")
    rows, action = int(str(entry["rows"])), entry["action"]
    events = checked.events
    clicks = _count(events.filter((events.level >= CLICK) & (events["query"] != "")))
    if not rows or action == "drop" or rows * 20 < clicks * 19:
        return warnings
    if not _count(raw.events.filter(raw.events.level == 0)):
        problem, fix = "the log has no views", "export what was shown too, as rows with the level view"
    else:
        problem = f"{rows:,} of {clicks:,} clicks (and deeper) have no view of their item on their result page"
        fix = "give views the search_id, or the user, session and query, of their clicks"
    meaning = "click-through is 1 everywhere, neighbors and position curve mean nothing"
    return [*warnings, f"{problem}: {meaning}; {fix}"]


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
        if _is_memory(error):
            raise
        for source in (config.log.path, config.log.queries, config.log.events):
            for file in _local_files(source):
                if file.suffix == ".parquet":
                    _read_through(file)
        if "parquet" in str(error).lower():
            problem = f"cannot be read ({str(error).splitlines()[0]})"
            raise DataError(problem, path=config.log.path, fix="write or copy the file again") from None
        raise


def _read_through(file: Path) -> None:
    """Read a Parquet file in parts. Raises DataError with the first row of the part that is broken."""
    row = 1
    try:
        with pq.ParquetFile(file) as opened:
            for part in range(opened.num_row_groups):
                opened.read_row_group(part)
                row += opened.metadata.row_group(part).num_rows
    except (OSError, pa.ArrowException) as error:
        problem = f"is damaged from about this row on ({str(error).splitlines()[0]})"
        raise DataError(problem, path=file, line=row, fix="write or copy the file again") from None


def _item_ids(stages: Stages, config: MineConfig) -> Table | None:
    if config.items is None:
        return None
    return stages.arrow("items", lambda: _catalog_ids(str(config.items), config.item_columns))


def _catalog_ids(path: str, rename: Mapping[str, str]) -> pa.Table:
    ids: list[str] = []
    for part in read_table_parts(path, _CHUNK, rename):
        if not part.has("item_id"):
            raise part.missing("item_id", flag="--item-columns")
        ids += part.need_texts("item_id")
    return pa.table({"item_id": pa.array(ids, pa.string())})


def _judged_queries(config: MineConfig) -> list[str]:
    return [
        text for path in config.judged for part in read_table_parts(path, _CHUNK) for text in part.need_texts("query")
    ]


def _check_judged(config: MineConfig) -> None:
    """Raise DataError for a file of judgments without queries, which are read only when most of the work is done."""
    for path in config.judged:
        first = next(read_table_parts(path, _CHUNK))
        if not first.has("query"):
            raise first.missing("query", "rename the column of the queries to 'query' in the file", flag=None)


# ---------------------------------------------------------------- what is kept by day


def _known(base: Artifact | None) -> dict[int, int]:
    """The days that an artifact has, with their events."""
    if base is None:
        return {}
    days = read_mined(base.path, "days")
    return dict(zip(days["day"].to_pylist(), days["events"].to_pylist(), strict=True))


def _by_day(
    stages: Stages, config: MineConfig, base: Artifact | None, known: Mapping[int, int], log: dict[str, Any]
) -> tuple[Mined, list[str]]:
    """The tables by day after this log, and warnings about the days that it changed.

    Events of days that are too old to be kept become a check of the log.
    """
    with stages.step("counts by day"):
        events = read_parquet(stages.connection, stages.folder / "events.parquet")
        volumes = stages.table("new_days", lambda: day_volumes(events), ["day"]).to_pyarrow()
        days = volumes["day"].to_pylist()
        new = dict(zip(days, volumes["events"].to_pylist(), strict=True))
        if not new:
            raise _nothing_left(log)
        until = _until(config, new, known, log["latest"])
        log["checks"].append(_expired(new, until - config.kept_days))
        run = Mined(stages, config, {}, until)
        pages = stages.table("pages", lambda: page_items(events), [])
        makers: dict[str, Callable[[], Table]] = {
            "days": lambda: day_volumes(events),
            "daily": lambda: daily_counts(pages),
            "daily_positions": lambda: daily_positions(pages),
            "daily_searches": lambda: daily_searches(pages),
            "daily_actions": lambda: daily_actions(events, config.sequences.min_level),
        }
        for name, make in makers.items():
            run.add(name, partial(_updated, run, base, name, make, days))
    return run, [*_shrunk(new, known), *_all_old(new, until, config.kept_days)]


def _old(stages: Stages, base: Artifact | None, name: str) -> Table | None:
    return None if base is None else read_parquet(stages.connection, base.path / f"{name}.parquet")


def _updated(run: Mined, base: Artifact | None, name: str, make: Callable[[], Table], days: list[int]) -> Table:
    old = _old(run.stages, base, name)
    if old is None:
        return keep_days(make(), run.until_day, run.config.kept_days)
    return update_days(old, make(), days, run.until_day, run.config.kept_days)


def _until(config: MineConfig, new: Mapping[int, int], known: Mapping[int, int], latest: int) -> int:
    """The day after the last. Raises DataError where fewer new days would expire most of the known ones."""
    trusted = [day for day in known if day <= latest]  # an artifact may have days of a wrong clock
    until = max([*new, *trusted]) + 1
    expired = [day for day in trusted if day < until - config.kept_days]
    if 2 * len(expired) > len(trusted) and len(new) <= len(expired) and config.checks.latest is None:
        ahead = [day for day in new if day > max(trusted)]
        raise DataError(
            f"the new days {day_name(min(ahead))} to {day_name(max(ahead))} would expire {len(expired)} of the "
            f"{len(trusted)} days that {config.out} has ({day_name(min(trusted))} to {day_name(max(trusted))}), as "
            f"{config.kept_days} days are kept",
            fix=f"set checks.latest to the last day that is right; {day_name(until - 1)} lets them expire",
        )
    return until


def _expired(new: Mapping[int, int], first: int) -> dict[str, Any]:
    """The entry of checks for events of days before the first that is kept."""
    old = sorted(day for day in new if day < first)
    example = f"{new[old[-1]]:,} of {day_name(old[-1])}; {day_name(first)} is the first day kept" if old else None
    return {"check": "expired", "rows": sum(new[day] for day in old), "action": "drop", "example": example}


def _all_old(new: Mapping[int, int], until: int, kept: int) -> list[str]:
    """A warning where a log has nothing but days that are too old to be kept."""
    if max(new) >= until - kept:
        return []
    return [
        f"all days of this log ({day_name(min(new))} to {day_name(max(new))}) are before {day_name(until - kept)}, the "
        f"first of the {kept} days kept: nothing of it was added"
    ]


def _nothing_left(log: Mapping[str, Any]) -> DataError:
    found = [f"{entry['check']} {entry['rows']:,}" for entry in log["checks"] if entry["rows"]]
    told = f" (checks found: {', '.join(found)})" if found else ""
    fix = "see the settings under checks (a last day with very few rows is not believed unless checks.latest names it)"
    return DataError(f"the log has no event that passes the checks{told}", fix=fix)


def _shrunk(new: Mapping[int, int], known: Mapping[int, int]) -> list[str]:
    """A warning where days that were sent again have fewer events than before: perhaps they were not whole."""
    fewer = [(day, known[day], events) for day, events in new.items() if events < known.get(day, 0)]
    if not fewer:
        return []
    day, had, has = fewer[0]
    return [
        f"days sent again with fewer events than before: {len(fewer)}, such as {day_name(day)} with {has:,} instead of "
        f"{had:,}; a day is replaced whole, so send whole days (UTC)"
    ]


# ---------------------------------------------------------------- what is made from it


def _derive(run: Mined) -> None:
    """All tables that are made from those by day."""
    config, stages = run.config, run.stages
    with stages.step("click model"):
        _fit_positions(run)
    with stages.step("queries"):
        _queries(run)
    with stages.step("clicked pairs"):
        run.add("clicks", lambda: _clicks(run))
    with stages.step("neighbors of queries"):
        daily = _weighed(run)
        run.add("neighbors_query", lambda: neighbors(daily, run.until_day, config.neighbors, "query"))
    with stages.step("neighbors of items"):
        run.add("neighbors_item", lambda: neighbors(daily, run.until_day, config.neighbors, "item_id"))
    with stages.step("hot queries and pairs"):
        hot = config.hot
        run.add("hot_queries", lambda: hot_queries(run.tables["daily_searches"], run.until_day, hot.days, hot.share))
        run.add("hot_pairs", lambda: hot_pairs(run.tables["daily"], run.until_day, hot.days, hot.share, hot.by))
    with stages.step("sequences"):
        actions, sequences = run.tables["daily_actions"], config.sequences
        run.add("sequences", lambda: user_sequences(actions, None, sequences.max_length, sequences.min_level))
    with stages.step("pairs for a teacher"):
        run.add("candidates", lambda: _candidates(run))
        stages.json("judged", lambda: _left_out(run))
    with stages.step("neighbor coverage"):
        stages.json("coverage", lambda: coverage(run.tables["daily"], run.until_day, config.neighbors)._asdict())


def _fit_positions(run: Mined) -> None:
    stages, config = run.stages, run.config.positions
    if not stages.has("positions.parquet"):
        model = fit_position_model(run.window("daily_positions", config.days), config)
        stages.json("position_fit", model.report)
        stages.arrow("positions", model.table)
    run.tables["positions"] = stages.arrow("positions", pa.table)


def _weighed(run: Mined) -> Table:
    """The daily counts, with what neighbors ordered by debiased clicks need."""
    daily = run.tables["daily"]
    if run.config.neighbors.by == "ctr":
        return daily
    return with_seen(daily, run.tables["daily_positions"], run.tables["positions"])


def _queries(run: Mined) -> None:
    config, stages = run.config, run.stages
    volumes = stages.table(
        "volumes",
        lambda: query_volumes(
            run.window("daily_searches", config.queries.days), config.queries.head, config.queries.torso
        ),
        ["query"],
    )
    clarity = stages.table(
        "clarity",
        lambda: clear_queries(volumes, _tag(config, volumes["query"].to_pyarrow().to_pylist()), config.clarity),
        ["query"],
    )
    run.add("queries", lambda: volumes.left_join(clarity, "query").drop("query_right"))


def _tag(config: MineConfig, queries: list[str]) -> Callable[[str], list[TermSpan]]:
    """The tagger of the lexicon, which is many times faster when it is asked for many queries at once.

    Queries are to be asked for in the order of their text: each one tags the next few thousand too.
    """
    tagger = Lexicon.load(config.lexicon).tagger if config.lexicon is not None else Tagger.shipped()
    queries = sorted(queries)
    known: dict[str, list[TermSpan]] = {}

    def tag(query: str) -> list[TermSpan]:
        if query not in known:
            first = bisect.bisect_left(queries, query)
            ahead = [query, *(other for other in queries[first : first + _TAGGED] if other != query)]
            known.clear()
            known.update(zip(ahead, tagger.tag_many(ahead), strict=True))
        return known[query]

    return tag


def _clicks(run: Mined) -> Table:
    config = run.config.clicks
    pairs = deepest_levels(run.window("daily", config.days))
    pairs = resampled(pairs.filter(pairs.level >= CLICK), config.copies)
    counts = run.window("daily_positions", config.days)
    expected = coec(counts).select("query", "item_id", "expected", "coec")
    curve = run.tables["positions"].order_by("position").to_pyarrow()
    debiased = debiased_ctr(counts, curve["propensity"].to_numpy()).select(
        "query", "item_id", "examined", "ctr_debiased"
    )
    clear = run.tables["queries"].select("query", "clear")
    keys = ["query", "item_id"]
    pairs = _joined(pairs, clear, ["query"]).fill_null({"clear": False})
    pairs = run.stages.table("clicked", lambda: _joined(_joined(pairs, expected, keys), debiased, keys), keys)
    frequent = frequent_pairs(pairs.filter(pairs.clear), config.frequent_share).select(*keys, frequent=True)
    pairs = _joined(pairs, frequent, keys).fill_null({"frequent": False})
    return pairs if config.form == "copies" else repeated(pairs, config.copies)


def _joined(left: Table, right: Table, keys: list[str]) -> Table:
    joined = left.left_join(right, keys)
    return joined.select(*left.columns, *(name for name in right.columns if name not in keys))


def _candidates(run: Mined) -> Table:
    config = run.config
    volumes = query_volumes(
        run.window("daily_searches", config.unlabeled.days), config.queries.head, config.queries.torso
    )
    return unlabeled_pairs(
        run.window("daily", config.unlabeled.days), volumes, _judged_queries(config), config.unlabeled
    )


def _left_out(run: Mined) -> dict[str, int]:
    """How many judged queries there are, and how many queries of the log are no candidates because of them."""
    judged = _judged_queries(run.config)
    searched = run.window("daily_searches", run.config.unlabeled.days)
    found = same_words(searched, judged).count().to_pyarrow().as_py() if judged else 0
    return {"given": len(set(judged)), "left_out": int(found)}


def _leak_warning(config: MineConfig, candidates: int) -> list[str]:
    """A warning where candidates were drawn without knowing which queries are judged."""
    if config.judged or not candidates:
        return []
    return [
        "no judged queries are given, so candidates may hold queries of your evaluation, and a model that learns from "
        "them would look better than it is: name the files of judgments with judged"
    ]


# ---------------------------------------------------------------- report


def _numbers(run: Mined, log: Mapping[str, Any], warnings: list[str]) -> dict[str, Any]:
    stages, config = run.stages, run.config
    covered = stages.json("coverage", dict)
    covered["kept_at"] = {int(limit): kept for limit, kept in covered["kept_at"].items()}
    fit = stages.json("position_fit", dict)
    few = small_log_warning(Coverage(**covered), config.neighbors)
    judged = stages.json("judged", dict)
    leak = _leak_warning(config, run.tables["candidates"].count().to_pyarrow().as_py())
    found = {
        "warnings": [*log["warnings"], *warnings, *([few] if few is not None else []), *leak, *fit["warnings"]],
        "checks": log["checks"],
        "notes": log["notes"],
        "told": log["told"],
        "coverage": covered,
        "position_fit": fit,
        "settings": {
            "engine": config.engine.type,
            "neighbors": f"{config.neighbors.min_exposures} exposures, {config.neighbors.min_ctr:g} clicked, "
            f"{config.neighbors.days} days",
            "days kept": str(config.kept_days),
            "judged queries": f"{judged['given']:,} given, {judged['left_out']:,} of the log left out of candidates",
        },
    }
    pairs = read_parquet(stages.connection, stages.folder / "clicked.parquet")
    return report_numbers({**run.tables, "clicks": pairs}, found)


def _link(source: Path, target: Path) -> None:
    """Put a finished table into the artifact, without a second copy where the file system can share it."""
    if source.is_dir():
        shutil.copytree(source, target, copy_function=_link_file)
    else:
        _link_file(source, target)


def _link_file(source: str | Path, target: str | Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
