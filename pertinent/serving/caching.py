"""Caches in front of the scoring queue: what was scored before is looked up, only the rest is computed."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pertinent.config import Config
from pertinent.engine.cache import CacheCounts, Found, Level, MemoryScores, ScoreCaches, of_states, score_stamp
from pertinent.engine.pieces import item_digests
from pertinent.engine.redis_scores import RedisScores
from pertinent.serving.queue import Result, ScoringQueue, Work
from pertinent.serving.registry import Served

Rows = NDArray[np.int64]


class CacheSettings(Config):
    """Where scores are looked up before they are computed, and where tokens of texts are.

    ``hot_pairs`` is a folder of ``pertinent cache``, for the default model. ``memory_mb`` keeps the scores of
    the queries asked last in each process, ``redis`` in a server that replicas share, for ``redis_seconds``;
    it has ``redis_budget_ms`` to answer. ``token_mb`` keeps the tokens of item texts.
    """

    hot_pairs: str | None = None
    memory_mb: float = Field(0, ge=0)
    redis: str | None = None
    redis_budget_ms: float = Field(2.0, gt=0)
    redis_seconds: int = Field(86_400, ge=1)
    token_mb: float = Field(64, ge=0)


class SharedCaches:
    """The levels that all models of a process share, and the counts of all levels; ``close`` it when done."""

    def __init__(self, settings: CacheSettings) -> None:
        self.counts = CacheCounts()
        self.levels: list[Level] = []
        if settings.memory_mb:
            self.levels.append(MemoryScores(int(settings.memory_mb * 2**20)))
        self._redis: RedisScores | None = None
        if settings.redis is not None:
            self._redis = RedisScores(settings.redis, settings.redis_seconds, settings.redis_budget_ms / 1000)
            self.levels.append(self._redis)

    def of(self, served: Served) -> ScoreCaches | None:
        """The levels of one model, nearest first; None where nothing is kept."""
        levels: list[Level] = [*([] if served.hot is None else [served.hot]), *self.levels]
        if not levels:
            return None
        return ScoreCaches(served_stamp(served), levels, self.counts)

    def close(self) -> None:
        """End what talks to other servers."""
        if self._redis is not None:
            self._redis.close()


def served_stamp(served: Served) -> bytes:
    """What the scores of a served model are kept under."""
    scorer = served.scorer
    return score_stamp(scorer.pairs, scorer.version, scorer.backend.name)


async def score(
    scoring: ScoringQueue,
    caches: ScoreCaches | None,
    served: Served,
    work: Work,
    key: str = "",
    deadline: float | None = None,
    partial: bool = False,
) -> Result:
    """As ``ScoringQueue.score``, but pairs that a cache has are not computed; ``Result.cached`` tells which."""
    if caches is None or not len(work) or work.max_tokens is not None:  # a shorter text has another score
        return await scoring.score(work, served.scorer, key, deadline, partial)
    started = time.monotonic()
    queries, items, found, cut = await asyncio.to_thread(_look_up, caches, served, work)
    missing = np.flatnonzero(~found.hit)
    spent = time.monotonic() - started
    if not len(missing):
        seconds = {"queue": 0.0, "tokenize": 0.0, "score": 0.0, "cache": spent, "total": spent}
        return Result(found.logits, found.hit.copy(), found.truncated | cut, 0, seconds, found.hit)
    computed = await scoring.score(work.take(missing), served.scorer, key, deadline, partial)
    done = missing[computed.scored]
    logits, scored, truncated = found.logits.copy(), found.hit.copy(), found.truncated | cut
    logits[missing], scored[done], truncated[missing] = computed.logits, True, computed.truncated
    if len(done):
        # Of a pair that was cut it is not known which of the two texts was: items are kept with their own.
        own = _cut_items(served, work, done) if cut.any() else truncated[done]
        await asyncio.to_thread(caches.keep, queries, work.query_rows[done], items[done], logits[done], own)
    seconds = {**computed.seconds, "cache": spent, "total": time.monotonic() - started}
    return replace(computed, logits=logits, scored=scored, truncated=truncated, seconds=seconds, cached=found.hit)


def _look_up(
    caches: ScoreCaches, served: Served, work: Work
) -> tuple[list[str], NDArray[np.uint64], Found, NDArray[np.bool_]]:
    """Normalized queries, the digests of the items, what the caches have, and which pairs have a query that is cut."""
    served.check()
    queries = [served.scorer.pairs.prepare(query) for query in work.queries]
    if work.titles is not None:
        items = item_digests([""] * len(work), work.titles)
    else:
        assert served.index is not None and work.rows is not None
        items = np.asarray(served.index.digests[work.rows])
        if work.states is not None:
            items = of_states(items)
    cut = served.scorer.pairs.encode_queries(work.queries).truncated[work.query_rows]
    return queries, items, caches.find(queries, work.query_rows, items), cut


def _cut_items(served: Served, work: Work, places: Rows) -> NDArray[np.bool_]:
    """Whether the items of the given pairs are cut, whatever the query."""
    if work.titles is not None:
        return served.scorer.pairs.encode_items([work.titles[place] for place in places]).truncated
    assert work.items is not None and work.rows is not None
    served.check()
    return np.asarray(work.items.truncated[work.rows[places]])
