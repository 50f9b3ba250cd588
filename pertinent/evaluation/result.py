"""What an evaluation found, with the scores it was found from, so that it can be drawn and compared."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pertinent.data.grades import relevant
from pertinent.evaluation.pooled import Floats
from pertinent.evaluation.resample import Estimate, finite

if TYPE_CHECKING:
    from pertinent.evaluation.robust_table import Loss


@dataclass(frozen=True, slots=True)
class Slice:
    """The metrics of a part of the queries or pairs."""

    pairs: int
    queries: int
    metrics: dict[str, Estimate]

    def plain(self) -> dict[str, Any]:
        """JSON-able."""
        metrics = {name: estimate.plain() for name, estimate in self.metrics.items()}
        return {"pairs": self.pairs, "queries": self.queries, "metrics": metrics}


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """What a scorer is worth on a judged set.

    ``metrics`` holds value and 95% interval by name; ``per_query`` the value of each query
    (``[queries]``, NaN for one that does not count); ``slices`` is by what is sliced, then by name.
    ``robustness`` is what is lost under each change of the texts, where that was measured.
    ``judged`` is a digest of the judgments: two evaluations can be compared when it is equal.
    """

    scorer: str
    positive_grade: float
    threshold: float
    queries: tuple[str, ...]
    query_rows: NDArray[np.int64]  # [pairs], row in `queries`
    grades: Floats  # [pairs]
    scores: Floats  # [pairs]
    judged: str
    metrics: dict[str, Estimate]
    per_query: dict[str, Floats]
    bootstrap: int
    seed: int
    slices: dict[str, dict[str, Slice]] = field(default_factory=dict)
    robustness: dict[str, Loss] = field(default_factory=dict)

    @property
    def relevant(self) -> NDArray[np.bool_]:
        """Which pairs have at least the positive grade, ``[pairs]``."""
        return relevant(self.grades, self.positive_grade)

    @property
    def ranked_queries(self) -> int:
        """How many queries count in the ranking metrics."""
        return int((~np.isnan(self.per_query["mrr"])).sum())

    @property
    def notes(self) -> list[str]:
        """What a reader must know to read the numbers, one sentence each."""
        notes = [
            f"A pair is relevant from grade {self.positive_grade:g}, and predicted relevant from score "
            f"{self.threshold:g}.",
            f"Ranking metrics are means over the {self.ranked_queries:,} of {len(self.queries):,} queries with at "
            "least two judged items, one of them relevant; items that nobody judged are not ranked. Gains are the "
            "grades themselves, and items with equal scores count as in the mean over their orders.",
        ]
        if self.bootstrap:
            notes.append(f"Intervals are 95%, from {self.bootstrap:,} resamples of whole queries.")
        if len(self.scores) and (self.scores.min() < 0 or self.scores.max() > 1):
            notes.append(
                f"The scores of {self.scorer} are not probabilities: calibration is undefined, and accuracy, F1 and "
                "FNR depend on a threshold that may mean nothing for them."
            )
        return notes

    def plain(self, scores: bool = False) -> dict[str, Any]:
        """JSON-able; undefined values are None. With ``scores`` also each query, grade and score."""
        plain: dict[str, Any] = {
            "scorer": self.scorer,
            "pairs": len(self.scores),
            "queries": len(self.queries),
            "ranked_queries": self.ranked_queries,
            "relevant_pairs": int(self.relevant.sum()),
            "positive_grade": self.positive_grade,
            "threshold": self.threshold,
            "bootstrap": self.bootstrap,
            "seed": self.seed,
            "judged": self.judged,
            "metrics": {name: estimate.plain() for name, estimate in self.metrics.items()},
            "slices": {by: {name: part.plain() for name, part in parts.items()} for by, parts in self.slices.items()},
            "notes": self.notes,
        }
        if self.robustness:
            plain["robustness"] = {name: loss.plain() for name, loss in self.robustness.items()}
        if scores:
            plain["per_query"] = {
                query: {name: finite(values[row]) for name, values in self.per_query.items()}
                for row, query in enumerate(self.queries)
            }
            rows = zip(self.query_rows.tolist(), self.grades.tolist(), self.scores.tolist(), strict=True)
            plain["rows"] = [{"query": self.queries[q], "grade": g, "score": s} for q, g, s in rows]
        return plain
