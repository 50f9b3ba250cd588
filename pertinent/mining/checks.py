"""What is wrong with a log: counted, shown by an example, and kept, dropped or refused as configured."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import ibis
from pydantic import Field

from pertinent.config import Config
from pertinent.mining.readers import RawLog

Action = Literal["drop", "keep", "refuse"]


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
        "bot/", "bot;", "bot)", "crawler", "spider", "slurp", "headlesschrome", "python-requests", "curl/", "wget/",
    ]  # fmt: skip
    late_days: int = Field(7, ge=1)
    earliest: dt.date = dt.date(2000, 1, 1)
    latest: dt.date | None = None


@dataclass(frozen=True)
class Checked:
    """``events`` with exactly the columns of EVENTS, all ids filled, and one entry of ``counts`` for each check.

    An entry has ``check``, ``rows`` (that it found), ``action`` and ``example`` (text, or None where
    it found none).
    """

    events: ibis.Table
    counts: list[dict[str, object]]


def check_events(
    connection: ibis.BaseBackend,
    raw: RawLog,
    items: ibis.Table | None,
    config: CheckConfig,
    gap_minutes: int,
    work: Path,
) -> Checked:
    """The rows that pass, with session and search ids filled (see `sessions`), and what each check found.

    Raises DataError that names file and row where a check set to ``refuse`` finds one.
    """
