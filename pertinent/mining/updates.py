"""What is kept by day: days of a new log beside those that an artifact has, and when that is refused."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import pyarrow.parquet as pq

from pertinent.artifact import Artifact, open_artifact, restore
from pertinent.errors import ConfigError, DataError
from pertinent.mining.daily import (
    daily_actions,
    daily_counts,
    daily_positions,
    daily_searches,
    day_volumes,
    first_seen,
    keep_days,
    page_items,
    replace_days,
    update_days,
)
from pertinent.mining.engines import read_parquet
from pertinent.mining.intake import REUSED_IDS
from pertinent.mining.report import day_name
from pertinent.mining.settings import KIND, MineConfig, Mined

if TYPE_CHECKING:
    from collections.abc import Callable

    from ibis import Table

    from pertinent.mining.stages import Stages

_log = logging.getLogger(__name__)


def behind(out: Path) -> Path:
    """The folder itself, where ``out`` is a link to it."""
    return Path(os.path.realpath(out)) if out.is_symlink() else out


def update_base(config: MineConfig, out: Path) -> Artifact | None:
    """The artifact that is to be updated; None where there is none yet.

    Raises ConfigError where its tables by day were made with other settings.
    """
    if not out.exists() and (found := restore(behind(out), KIND)) is not None:
        _log.warning("%s: was missing, as a run stopped while it was replaced; taken back from %s", out, found)
    if not (out / "manifest.json").exists():
        return None
    base = open_artifact(out, KIND)
    _refuse_others(config, MineConfig.build({**base.config, "out": config.out}, source=f"{out}: its settings"))
    if not known_pages(base).exists():
        raise ConfigError(
            f"{out}: was made by an earlier version, which did not keep when each search was first seen; mine the "
            "whole log again without update"
        )
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
    # Other formats than a table number their positions as each log says, see `same_positions`.
    log["position_base"] = config.log.position_base or 0 if config.log.format == "table" else None
    return {
        **{f"log.{name}": log[name] for name in log if name not in ("path", "queries", "events")},
        **{f"checks.{name}": checks[name] for name in checks if name != "latest"},
        "sessions.gap_minutes": config.sessions.gap_minutes,
        "sequences.min_level": config.sequences.min_level,
    }


def same_positions(config: MineConfig, base: Artifact | None, notes: dict[str, int]) -> dict[str, int]:
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


# ---------------------------------------------------------------- the days


def known_days(base: Artifact | None) -> dict[int, int]:
    """The days that an artifact has, with their events."""
    if base is None:
        return {}
    days = pq.read_table(base.path / "days.parquet")
    return dict(zip(days["day"].to_pylist(), days["events"].to_pylist(), strict=True))


@overload
def known_pages(base: Artifact) -> Path: ...
@overload
def known_pages(base: Artifact | None) -> Path | None: ...
def known_pages(base: Artifact | None) -> Path | None:
    """The table of an artifact that says when each search was first seen on each day."""
    return None if base is None else base.path / "daily_pages.parquet"


def by_day(
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
        run.add("daily_pages", partial(_updated_pages, run, base, days, log["latest"]))
    return run, [*_shrunk(new, known), *_all_old(new, until, config.kept_days)]


def _old(stages: Stages, base: Artifact | None, name: str) -> Table | None:
    return None if base is None else read_parquet(stages.connection, base.path / f"{name}.parquet")


def _updated(run: Mined, base: Artifact | None, name: str, make: Callable[[], Table], days: list[int]) -> Table:
    old = _old(run.stages, base, name)
    if old is None:
        return keep_days(make(), run.until_day, run.config.kept_days)
    return update_days(old, make(), days, run.until_day, run.config.kept_days)


def _updated_pages(run: Mined, base: Artifact | None, days: list[int], latest: int) -> Table:
    """The table `schema.DAILY_PAGES` after this log, also of days on which no event passed the checks.

    A day is replaced by these ``days``, whose events passed; what came of another is added to what is known of it.
    """
    new = read_parquet(run.stages.connection, run.stages.folder / "new_pages.parquet")
    old = _old(run.stages, base, "daily_pages")
    if old is not None:
        others = set(new.select("day").distinct().to_pyarrow()["day"].to_pylist()).difference(days)
        new = replace_days(old, first_seen(old, new, sorted(others)), [*days, *others])
    # A newest day of which everything was dropped is none of the days that are counted.
    until = max(run.until_day, latest + 1)
    return keep_days(new, until, until - run.until_day + run.config.kept_days)


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
    counts = {entry["check"]: entry["rows"] for entry in log["checks"] if entry["rows"]}
    if not counts:
        fix = "its rows are no search events of this layout: see --format and --columns"
    elif set(counts) == {"unknown_items"}:
        fix = "the catalog has none of the log's items: give the catalog of this log with --items and --item-columns"
    elif max(counts, key=lambda check: counts[check]) == "late":
        fix = REUSED_IDS
    else:
        fix = "see the settings under checks (a last day of very few rows counts only where checks.latest names it)"
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
