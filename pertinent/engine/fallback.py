"""A chain of scorers that stand in for one another, each item with the name of the one that scored it.

The usual chain is: scores that a cache has, a model that reads behavior where an item has any, a model of
texts, word overlap. What one scorer cannot answer, for some items or at all, goes on to the next.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pertinent.engine.cascade import best_first
from pertinent.engine.pieces import item_digests
from pertinent.engine.scorer import Scorer
from pertinent.errors import DataError, ScoringError
from pertinent.models.lexical import TFIDF
from pertinent.records import Item, Scored

_log = logging.getLogger(__name__)

Scores = NDArray[np.float32]
# Query, items, and the time of `time.monotonic` at which no answer is wanted any more.
Score = Callable[[str, Sequence[Item], float | None], Scores]
LEXICAL = "lexical"
# Items scored between two looks at the clock.
_AT_ONCE = 512


@dataclass(frozen=True, slots=True)
class Stage:
    """One scorer of a chain: float32 ``[n]``, NaN for items that it has no score for.

    ``probability`` says that its scores can be held against those of the other stages.
    """

    name: str
    score: Score
    probability: bool = True


@dataclass(frozen=True, slots=True)
class Answered:
    """Scores of items, and who gave them: ``names[stage[i]]``; ``failures`` has what went wrong by name."""

    scores: Scores  # [n]
    stage: NDArray[np.int64]  # [n]
    names: tuple[str, ...]
    failures: dict[str, str]

    @property
    def scorers(self) -> list[str]:
        """The name of the scorer of each item."""
        return [self.names[number] for number in self.stage]


class FallbackChain:
    """Stages in order; the last one has to answer for every item that is left."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        if not stages:
            raise DataError("a chain of no scorers", fix="give at least one")
        self.stages = tuple(stages)

    def answer(self, query: str, items: Sequence[Item], seconds: float | None = None) -> Answered:
        """A score for every item. Past ``seconds`` only the last stage is asked.

        Input that is wrong raises DataError at once; ScoringError is raised where even the last stage failed.
        """
        end = None if seconds is None else time.monotonic() + seconds
        scores = np.full(len(items), np.nan, dtype=np.float32)
        stage = np.zeros(len(items), dtype=np.int64)
        failures: dict[str, str] = {}
        for number, each in enumerate(self.stages):
            last = number == len(self.stages) - 1
            left = np.flatnonzero(~np.isfinite(scores))
            if not len(left):
                break
            if end is not None and time.monotonic() >= end and not last:
                failures[each.name] = "no time was left"
                continue
            try:
                found = each.score(query, [items[int(place)] for place in left], None if last else end)
                found = _checked(found, len(left))
            except DataError:
                raise
            except Exception as error:  # whatever a scorer may raise, the next one stands in for it
                failures[each.name] = f"{type(error).__name__}: {error}"
                _log.warning("the scorer %s failed, the next one stands in: %s", each.name, error)
                continue
            scores[left] = found
            stage[left[np.isfinite(found)]] = number
        missing = int(np.count_nonzero(~np.isfinite(scores)))
        if missing:
            told = "; ".join(f"{name}: {why}" for name, why in failures.items())
            raise ScoringError(f"{missing} of {len(items)} items were scored by no scorer of the chain ({told})")
        return Answered(scores, stage, tuple(each.name for each in self.stages), failures)

    def rank(
        self, query: str, items: Sequence[Item], top: int | None = 10, seconds: float | None = None
    ) -> list[Scored]:
        """The best items, best first, each with its scorer; equal scores keep the order given.

        Items whose score is no probability come after all others, in the order of theirs.
        """
        answered = self.answer(query, items, seconds)
        comparable = np.array([each.probability for each in self.stages])[answered.stage]
        order = best_first(comparable.astype(np.float64), answered.scores)
        names = answered.scorers
        best = order if top is None else order[:top]
        return [Scored(items[row], float(answered.scores[row]), names[row]) for row in best]


def _checked(found: Scores, count: int) -> Scores:
    """Scores as float32 ``[count]``. Raises ScoringError where there are not so many."""
    scores = np.asarray(found, dtype=np.float32)
    if scores.shape != (count,):
        raise ScoringError(f"it gave scores of shape {scores.shape} for {count} items")
    return scores


def cached_stage(scorer: Scorer, name: str = "cached") -> Stage:
    """What the caches of a scorer have, by item id and text, else by text alone; nothing is computed."""

    def score(query: str, items: Sequence[Item], end: float | None) -> Scores:
        scores = np.full(len(items), np.nan, dtype=np.float32)
        if scorer.caches is None:
            return scores
        titles, prepared = [item.title for item in items], [scorer.pairs.prepare(query)]
        for ids in ([item.item_id for item in items], [""] * len(items)):
            left = np.flatnonzero(np.isnan(scores))
            digests = item_digests([ids[place] for place in left], [titles[place] for place in left])
            found = scorer.caches.find(prepared, np.zeros(len(left), dtype=np.int64), digests)
            scores[left[found.hit]] = scorer.probabilities(found.logits[found.hit])
        return scores

    return Stage(name, score)


def model_stage(scorer: Scorer, name: str | None = None) -> Stage:
    """A model of texts. When the time is over, the items that it has not come to are left to the next stage."""

    def score(query: str, items: Sequence[Item], end: float | None) -> Scores:
        scores = np.full(len(items), np.nan, dtype=np.float32)
        for start in range(0, len(items), _AT_ONCE):
            if end is not None and time.monotonic() >= end:
                break
            some = items[start : start + _AT_ONCE]
            scores[start : start + len(some)] = scorer.score(query, [item.title for item in some])
        return scores

    return Stage(name if name is not None else scorer.name, score)


def lexical_stage(name: str = LEXICAL) -> Stage:
    """Cosine of TF-IDF vectors, fitted on the very items: needs no model and no catalog, and cannot fail."""

    def score(query: str, items: Sequence[Item], end: float | None) -> Scores:
        return lexical_scores(query, [item.title for item in items])

    return Stage(name, score, probability=False)


def lexical_scores(query: str, titles: Sequence[str]) -> Scores:
    """Word overlap of a query with titles, 0 to 1, float32 ``[n]``.

    >>> lexical_scores("tea pot", ["usb cable", "Tea pot", "tea"]).argsort().tolist()
    [0, 2, 1]
    """
    return TFIDF().fit(titles).score(query, titles) if titles else np.zeros(0, dtype=np.float32)
