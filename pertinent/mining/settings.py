"""The settings of ``pertinent mine``, the tables and steps of a run by name, and what its steps share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import field_validator

from pertinent.config import Config
from pertinent.mining.checks import CheckConfig
from pertinent.mining.clicks import ClickConfig
from pertinent.mining.daily import keep_days
from pertinent.mining.engines import DuckDBEngine, EngineConfig
from pertinent.mining.hotpairs import HotConfig
from pertinent.mining.neighbors import NeighborConfig
from pertinent.mining.positions import PositionConfig
from pertinent.mining.queries import ClarityConfig, QueryConfig
from pertinent.mining.sequences import SequenceConfig
from pertinent.mining.sessions import SessionConfig
from pertinent.mining.sources import LogConfig
from pertinent.mining.unlabeled import UnlabeledConfig

if TYPE_CHECKING:
    from collections.abc import Callable

    from ibis import Table

    from pertinent.mining.stages import Stages

KIND = "mined"
# The tables of the artifact, each with the columns that its rows are ordered by.
TABLES: dict[str, list[str]] = {
    "days": ["day"],
    "daily": ["day", "query", "item_id"],
    "daily_positions": ["day", "query", "item_id", "position"],
    "daily_searches": ["day", "query"],
    "daily_actions": ["day", "user_id", "time", "query", "item_id", "level", "position"],
    "daily_pages": ["day", "search"],
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
