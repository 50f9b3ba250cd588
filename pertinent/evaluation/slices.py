"""The parts of a judged set to report by: head, torso and tail queries, and named segments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pertinent.evaluation.pooled import Floats
from pertinent.records import Judgment, by_query

SegmentBy = Literal["segment", "split", "rater", "label"]
Rows = NDArray[np.int64]
# More segments than this make a table nobody reads: the smallest go together.
MOST_SEGMENTS = 20


def slicings(judgments: Sequence[Judgment], segment_by: Sequence[SegmentBy]) -> dict[str, dict[str, Rows]]:
    """Rows of each part, by what is sliced: ``frequency`` (or ``judged items``), then each of ``segment_by``.

    Where some query has no frequency, the number of its judged items stands in, and the slicing is
    named after it. A slicing with a single part says nothing new and is left out.

    >>> rows = [Judgment("a", "1", 1.0, segment="us"), Judgment("a", "2", 0.0, segment="es")]
    >>> {by: list(parts) for by, parts in slicings(rows, ["segment"]).items()}
    {'segment': ['us', 'es']}
    """
    groups = list(by_query(judgments))
    asked = [[judgments[row].frequency for row in rows] for _, rows in groups]
    known = [max((f for f in values if f is not None), default=None) for values in asked]
    judged = [float(len(rows)) for _, rows in groups]
    frequency = [value for value in known if value is not None]
    by_name = {"frequency": frequency} if len(frequency) == len(groups) else {"judged items": judged}
    names: dict[str, list[str]] = {}
    for by, values in by_name.items():
        names[by] = [""] * len(judgments)
        for (_, rows), third in zip(groups, thirds(np.array(values, dtype=np.float64)), strict=True):
            for row in rows:
                names[by][row] = third
    names |= {by: segments(judgments, by) for by in segment_by}
    parts = {by: _rows(each, ("head", "torso", "tail") if by in by_name else ()) for by, each in names.items()}
    return {by: each for by, each in parts.items() if len(each) > 1}


def thirds(frequency: Floats) -> list[str]:
    """head, torso or tail for each query: thirds of the queries by how often they are asked.

    Queries of equal frequency stay together, in the third that their middle falls in.

    >>> thirds(np.array([900.0, 5.0, 70.0])), thirds(np.array([1.0, 1.0]))
    (['head', 'tail', 'torso'], ['torso', 'torso'])
    """
    ordered = np.sort(frequency)
    above = len(ordered) - np.searchsorted(ordered, frequency, side="right")
    level = len(ordered) - np.searchsorted(ordered, frequency, side="left")
    middle = (above + level) / 2 / max(1, len(ordered))
    return ["head" if place < 1 / 3 else "torso" if place < 2 / 3 else "tail" for place in middle.tolist()]


def segments(judgments: Sequence[Judgment], by: SegmentBy) -> list[str]:
    """The segment of each judgment, ``(none)`` without one; beyond the largest 19, ``(others)``.

    >>> segments([Judgment("a", "1", 1.0, segment="es"), Judgment("a", "2", 1.0)], "segment")
    ['es', '(none)']
    """
    names = ["(none)" if (value := getattr(judgment, by)) is None else str(value) for judgment in judgments]
    kinds, counts = np.unique(names, return_counts=True)
    if len(kinds) <= MOST_SEGMENTS:
        return names
    kept = {str(kinds[place]) for place in np.argsort(-counts, kind="stable")[: MOST_SEGMENTS - 1]}
    return [name if name in kept else "(others)" for name in names]


def _rows(names: Sequence[str], order: Sequence[str]) -> dict[str, Rows]:
    found: dict[str, list[int]] = {name: [] for name in order}
    for row, name in enumerate(names):
        found.setdefault(name, []).append(row)
    return {name: np.array(rows, dtype=np.int64) for name, rows in found.items() if rows}
