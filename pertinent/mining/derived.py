"""All tables that are made from those by day, in the order of their steps."""

from __future__ import annotations

import bisect
from typing import TYPE_CHECKING

import pyarrow as pa

from pertinent.lexicon.store import Lexicon
from pertinent.lexicon.tagger import Tagger
from pertinent.mining.clicks import deepest_levels, frequent_pairs, repeated, resampled
from pertinent.mining.hotpairs import hot_pairs, hot_queries
from pertinent.mining.intake import judged_queries
from pertinent.mining.neighbors import coverage, neighbors, with_seen
from pertinent.mining.positions import coec, debiased_ctr, fit_position_model
from pertinent.mining.queries import clear_queries, query_volumes
from pertinent.mining.schema import CLICK
from pertinent.mining.sequences import user_sequences
from pertinent.mining.unlabeled import same_words, unlabeled_pairs

if TYPE_CHECKING:
    from collections.abc import Callable

    from ibis import Table

    from pertinent.lexicon.tagger import TermSpan
    from pertinent.mining.settings import MineConfig, Mined

_TAGGED = 4_000


def derive(run: Mined) -> None:
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
    return with_seen(daily, run.tables["daily_positions"], run.tables["positions"], run.until_day)


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
        run.window("daily", config.unlabeled.days), volumes, judged_queries(config), config.unlabeled
    )


def _left_out(run: Mined) -> dict[str, int]:
    """How many judged queries there are, and how many queries of the log are no candidates because of them."""
    judged = judged_queries(run.config)
    searched = run.window("daily_searches", run.config.unlabeled.days)
    found = same_words(searched, judged).count().to_pyarrow().as_py() if judged else 0
    return {"given": len(set(judged)), "left_out": int(found)}
