"""The table of a study: systems, their metrics with intervals, differences, and what changed texts cost them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pertinent.charts import Axis, intervals, round_ticks
from pertinent.evaluation.compare import Difference
from pertinent.evaluation.resample import Estimate
from pertinent.evaluation.result import Evaluation
from pertinent.evaluation.robust_table import Loss
from pertinent.evaluation.robustness import mean_loss


@dataclass(frozen=True, slots=True)
class Row:
    """One system: its evaluations (one a seed where it has seeds), their mean, and what it takes."""

    name: str
    evaluations: list[Evaluation]
    mean: dict[str, Estimate]
    facts: dict[str, Any]
    difference: dict[str, Difference] = field(default_factory=dict)
    losses: dict[str, list[Loss]] = field(default_factory=dict)  # by change, one a run
    loss_difference: dict[str, Difference] = field(default_factory=dict)

    def robustness(self) -> dict[str, Any]:
        """The loss under each change, mean over runs, and its difference to the other system; JSON-able."""
        return {
            change: {
                **mean_loss(runs).plain(),
                "changed": runs[0].changed,
                **({"difference": self.loss_difference[change].plain()} if change in self.loss_difference else {}),
            }
            for change, runs in self.losses.items()
        }

    def spread(self, metric: str) -> float:
        """Standard deviation over seeds; NaN for a single run."""
        values = [evaluation.metrics[metric].value for evaluation in self.evaluations]
        return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


@dataclass(frozen=True, slots=True)
class Study:
    """What a study found; as text it is the table."""

    title: str
    metrics: tuple[str, ...]
    against: str | None
    rows: list[Row]
    facts: dict[str, str]
    report: Path

    def plain(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "title": self.title,
            "facts": self.facts,
            "against": self.against,
            "systems": {
                row.name: {
                    **row.facts,
                    "seeds": len(row.evaluations),
                    "metrics": {name: estimate.plain() for name, estimate in row.mean.items()},
                    "spread_over_seeds": {
                        name: None if math.isnan(row.spread(name)) else row.spread(name) for name in self.metrics
                    },
                    "difference": {name: each.plain() for name, each in row.difference.items()},
                    **({"auc_lost": row.robustness()} if row.losses else {}),
                }
                for row in self.rows
            },
            "report": str(self.report),
        }

    def __str__(self) -> str:
        head = ["system", "runs", *self.metrics]
        lines = [
            [row.name, str(len(row.evaluations)), *(_cell(row, name) for name in self.metrics)] for row in self.rows
        ]
        text = [f"## {self.title}", "", *_markdown(head, lines), ""]
        if self.against is not None:
            changed = [
                [row.name, *(_difference(row.difference[name]) for name in self.metrics)]
                for row in self.rows
                if row.difference
            ]
            text += [f"Difference to {self.against}:", "", *_markdown(["system", *self.metrics], changed), ""]
        text += self._robustness()
        text += [f"{name}: {value}" for name, value in self.facts.items()]
        return "\n".join([*text, f"report: {self.report}"])

    def _robustness(self) -> list[str]:
        if not self.rows[0].losses:
            return []
        changes = list(self.rows[0].losses)
        lines = [[row.name, *(str(mean_loss(row.losses[change])) for change in changes)] for row in self.rows]
        text = ["AUC lost when texts change:", "", *_markdown(["system", *changes], lines), ""]
        changed = [
            [row.name, *(_difference(row.loss_difference[change]) for change in changes)]
            for row in self.rows
            if row.loss_difference
        ]
        if changed:
            text += [f"How much more than {self.against}:", "", *_markdown(["system", *changes], changed), ""]
        return text


def first_metric_chart(title: str, metric: str, rows: Sequence[Row]) -> str:
    """A figure of one metric of all systems, mean over runs, with intervals."""
    found = [(row.name, row.mean[metric], number) for number, row in enumerate(rows) if metric in row.mean]
    known = [value for _, estimate, _ in found for value in estimate if math.isfinite(value)] or [0.0, 1.0]
    pad = max(0.01, (max(known) - min(known)) * 0.05)
    axis = Axis(min(known) - pad, max(known) + pad, metric, round_ticks(min(known) - pad, max(known) + pad))
    return intervals(title, "Mean over runs with the 95% interval over resampled queries.", axis, found)


def _cell(row: Row, metric: str) -> str:
    estimate = row.mean.get(metric)
    if estimate is None:
        return ""
    spread = row.spread(metric)
    return str(estimate) + ("" if math.isnan(spread) else f" ±{spread:.3f}")


def _difference(difference: Difference) -> str:
    return f"{difference.value:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}] p={difference.p_value:.3f}"


def _markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(line[column]) for line in [head, *lines]) for column in range(len(head))]
    padded = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in [head, *lines]]
    rule = ["-" * width for width in widths]
    return ["| " + " | ".join(line) + " |" for line in [padded[0], rule, *padded[1:]]]
