"""Behavior on the relevance route: BARL-ASe where a pair has neighbors, the served model elsewhere.

The neighbors of a pair are those of its item id, so texts without ids are scored by the served model alone.
Pairs with neighbors wait in the same queue as all others. Where BARL-ASe fails, the served model stands in.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pertinent.engine.barl import BarlScores
from pertinent.engine.behavior import BehaviorScorer, Looked, Spoken
from pertinent.engine.index import ItemIndex
from pertinent.engine.pieces import item_digests
from pertinent.errors import ScoringError
from pertinent.serving.queue import Closed, DeadlinePassed, Refused, Result, ScoringQueue, Work

_log = logging.getLogger(__name__)

Rows = NDArray[np.int64]
Floats = NDArray[np.float32]
# Neighbors that an explanation names on each side.
TOLD = 5
_AT_ONCE = 10_000


@dataclass(frozen=True, slots=True)
class Neighbors:
    """A behavior artifact beside the index whose items requests name."""

    scorer: BehaviorScorer
    index: ItemIndex
    known: NDArray[np.int32]  # [items of the index], rows of the artifact, -1: not in it
    current: NDArray[np.bool_]  # [items of the artifact]: its title is that of the index

    @classmethod
    def beside(cls, scorer: BehaviorScorer, index: ItemIndex) -> Neighbors:
        """What the artifact of a scorer knows of the items of an index."""
        ids, titles = scorer.behavior.names["items"], scorer.behavior.titles
        known = np.full(len(index), -1, dtype=np.int32)
        current = np.zeros(len(ids), dtype=np.bool_)
        for start in range(0, len(ids), _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            rows = index.find(ids[part])
            there = np.flatnonzero(rows >= 0)
            known[rows[there]] = start + there
            made = item_digests(ids[part], titles[part])
            current[start + there] = (index.digests[rows[there]] == made[there]).all(axis=1)
        return cls(scorer, index, known, current)

    def plan(self, query: str, rows: Rows, explain: bool, check: Callable[[], None] | None = None) -> Plan | None:
        """What is known of a query with rows of the index; None where no pair has a neighbor."""
        looked = self.scorer.look_up(query, self.known[rows].astype(np.int64))
        aware = np.flatnonzero(looked.aware)
        return Plan(self, query, rows[aware], aware, looked.take(aware), explain, check) if len(aware) else None


@dataclass(slots=True)
class Plan:
    """The pairs of one request that have neighbors, and what became of them."""

    neighbors: Neighbors
    query: str
    index_rows: Rows  # [aware]
    places: Rows  # [aware], among all pairs of the request
    looked: Looked
    explain: bool
    check: Callable[[], None] | None = None  # of `Work`
    weights: Floats = field(init=False)  # [aware], of BARL-ASe beside the served model
    probabilities: Floats = field(init=False)  # [aware], where they are scored
    done: NDArray[np.bool_] = field(init=False)  # [aware]
    said: dict[int, tuple[BarlScores, int]] = field(init=False)  # by place: the batch that it was in, and where

    def __post_init__(self) -> None:
        self.weights = self.neighbors.scorer.weights(self.looked)
        self.probabilities = np.zeros(len(self.places), dtype=np.float32)
        self.done = np.zeros(len(self.places), dtype=np.bool_)
        self.said = {}

    def asked(self, count: int) -> Rows:
        """Which of so many pairs the served model has to score: those that BARL-ASe alone does not decide."""
        needed = np.ones(count, dtype=np.bool_)
        needed[self.places[self.weights >= 1]] = False
        return np.flatnonzero(needed)

    def work(self) -> Work:
        """The pairs as work for the queue."""
        return Work.computed(self.query, len(self.places), self._compute, self.check)

    def _compute(self, some: Rows) -> Floats:
        scorer, looked = self.neighbors.scorer, self.looked.take(some)
        stored = looked.rows.copy()
        stored[stored >= 0] = np.where(self.neighbors.current[stored[stored >= 0]], stored[stored >= 0], -1)
        changed = self.neighbors.index.items(self.index_rows[some][stored < 0])
        found = scorer.views_of(self.query, looked, scorer.title_tokens(stored, [item.title for item in changed]))
        if not np.isfinite(found.logit).all():
            raise ScoringError(f"{scorer.name}: a score is not finite")
        if self.explain:
            self.said |= {int(self.places[place]): (found, number) for number, place in enumerate(some)}
        return found.logit

    def settle(self, result: Result) -> None:
        """Take what the queue has computed."""
        self.done = result.scored
        self.probabilities = self.neighbors.scorer.scorer.probabilities(result.logits)

    def relevance(self, scores: Floats) -> Floats:
        """Probabilities of all pairs: those of the served model, and where there are neighbors both as they weigh."""
        mixed, places, weights = scores.copy(), self.places[self.done], self.weights[self.done]
        mixed[places] = weights * self.probabilities[self.done] + (1 - weights) * scores[places]
        return mixed

    def names(self, others: Sequence[str]) -> list[str]:
        """Who scored each pair; ``others`` are the names of those that texts were scored by."""
        names = list(others)
        for place, weight in zip(self.places[self.done].tolist(), self.weights[self.done].tolist(), strict=True):
            names[place] = "behavior" if weight >= 1 else f"behavior+{names[place]}"
        return names

    @property
    def name(self) -> str:
        """The model that reads neighbors, and the version of the artifact with them."""
        scorer = self.neighbors.scorer
        return f"{scorer.name}/{scorer.behavior.version}"

    def weight_of(self, place: int) -> float:
        """What BARL-ASe counts for a pair, by its place among all."""
        return float(self.weights[np.searchsorted(self.places, place)])

    def spoken(self, place: int) -> Spoken | None:
        """Which neighbors spoke for a pair, and the gate; None where BARL-ASe had no say."""
        if place not in self.said:
            return None
        found, number = self.said[place]
        own = int(np.searchsorted(self.places, place))
        return self.neighbors.scorer.spoken(found, number, self.looked.row, int(self.looked.rows[own]))


Texts = Callable[[Rows], Awaitable[Result]]


async def score(
    queue: ScoringQueue, plan: Plan, count: int, texts: Texts, key: str, deadline: float, partial: bool
) -> Result:
    """The pairs of a request by both models at once; ``texts`` scores pairs by the served one.

    Logits of pairs that BARL-ASe alone decides are its own. Where it fails, the served model scores all pairs.
    """
    asked = plan.asked(count)
    scorer = plan.neighbors.scorer.scorer
    behaving = asyncio.ensure_future(queue.score(plan.work(), scorer, key, deadline, partial))
    reading = asyncio.ensure_future(texts(asked)) if len(asked) else None
    tasks: list[Any] = [behaving, *([reading] if reading is not None else [])]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        try:
            found = await behaving
        except (Refused, DeadlinePassed, Closed):
            raise
        except Exception as error:  # whatever it is, the other model stands in
            _log.warning("behavior model %s failed, the model of texts stands in: %s", scorer.name, error)
            return await texts(np.arange(count))
        read = None if reading is None else await reading
    finally:
        for task in tasks:
            if not task.done():
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    plan.settle(found)
    return _merged(plan, count, found, asked, read)


def _merged(plan: Plan, count: int, found: Result, asked: Rows, read: Result | None) -> Result:
    logits, scored = np.zeros(count, dtype=np.float32), np.zeros(count, dtype=np.bool_)
    truncated, cached = np.zeros(count, dtype=np.bool_), np.zeros(count, dtype=np.bool_)
    if read is not None:
        logits[asked], scored[asked], truncated[asked] = read.logits, read.scored, read.truncated
        if read.cached is not None:
            cached[asked] = read.cached
    alone = plan.weights >= 1
    places = plan.places[alone]
    logits[places], scored[places] = found.logits[alone], found.scored[alone]
    # Of pairs that both models score a part may be missing: BARL-ASe's is then not waited for.
    seconds = dict(found.seconds)
    for name, value in ({} if read is None else read.seconds).items():
        seconds[name] = (
            max(seconds.get(name, 0.0), value) if name in ("queue", "total") else (seconds.get(name, 0.0) + value)
        )
    tokens = found.tokens + (0 if read is None else read.tokens)
    kept = None if read is None or read.cached is None else cached
    return replace(
        found, logits=logits, scored=scored, truncated=truncated, tokens=tokens, seconds=seconds, cached=kept
    )
