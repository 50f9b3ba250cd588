"""What scorers lose when texts change, as numbers, a table and a figure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pertinent.charts import Axis, intervals, round_ticks
from pertinent.evaluation.pooled import Floats
from pertinent.evaluation.resample import Estimate

LOSS_HEAD = ("change", "label", "changed pairs", "auc before", "auc after", "auc lost", "score shift", "score fell")


@dataclass(frozen=True, slots=True)
class Loss:
    """What one change does to one scorer, over the queries that have a changed pair.

    ``before`` and ``after`` are AUC, ``loss`` is their difference; ``shift`` is the mean absolute
    change of the score of a changed pair; ``fell`` the share of changed pairs whose score fell.
    """

    name: str
    effect: str
    changed: int
    pairs: int
    queries: int
    before: float
    after: float
    loss: Estimate
    shift: float
    fell: float
    draws: Floats  # [resamples], of the loss

    def plain(self) -> dict[str, Any]:
        """JSON-able."""
        names = ("effect", "changed", "pairs", "queries", "before", "after", "shift", "fell")
        numbers = {name: getattr(self, name) for name in names}
        clean = {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in numbers.items()}
        return {**clean, "loss": self.loss.plain()}


def loss_chart(losses: Mapping[str, Mapping[str, Estimate]]) -> str:
    """A figure of the loss of AUC: one row for each change and system, losses to the right of 0.

    ``losses`` are by change, then by system.
    """
    rows = [
        (name if len(systems) == 1 else f"{name}: {system}", estimate, place)
        for name, systems in losses.items()
        for place, (system, estimate) in enumerate(systems.items())
    ]
    known = [value for _, estimate, _ in rows for value in estimate if np.isfinite(value)]
    low, high = min([0.0, *known]), max([0.05, *known])
    pad = (high - low) * 0.05
    axis = Axis(low - pad, high + pad, "AUC lost", round_ticks(low - pad, high + pad))
    return intervals(
        "AUC lost under each change",
        "Dots are the loss, lines its 95% interval; further left is more robust.",
        axis,
        rows,
    )


def loss_rows(losses: Mapping[str, Loss]) -> list[list[str]]:
    """The losses as a table's rows: change, label, changed pairs, AUC before and after, loss, shift, share fallen."""
    return [
        [
            name,
            {"keep": "keeps", "flip": "flips"}[loss.effect],
            f"{loss.changed:,}",
            *(_number(value) for value in (loss.before, loss.after)),
            str(loss.loss),
            *(_number(value) for value in (loss.shift, loss.fell)),
        ]
        for name, loss in losses.items()
    ]


def _number(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.3f}"
