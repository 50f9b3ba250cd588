"""The report page of a pre-training: curves of its losses and of its right answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from pertinent.charts import Axis, Series, line_chart, round_ticks
from pertinent.page import facts, grid, page, section, table

TASKS = {"hidden": "hidden words", "shuffled": "shuffled tokens", "sentence": "two texts"}


def curve(history: Sequence[Mapping[str, float]], name: str) -> list[tuple[float, float]]:
    """Steps and values of one name in a Trainer's history.

    >>> curve([{"step": 1, "loss": 2.0}, {"step": 2, "eval_loss": 1.0}], "loss")
    [(1.0, 2.0)]
    """
    return [(float(entry["step"]), float(entry[name])) for entry in history if name in entry and "step" in entry]


def pretraining_page(title: str, numbers: Mapping[str, Any]) -> str:
    """The page, from the numbers in ``pretraining.json``."""
    history, held_out = numbers["history"], numbers["held_out"]
    told = {
        **{source: f"{count:,}" for source, count in numbers["texts"].items()},
        "left out (held-out queries)": f"{numbers['left_out']:,}",
        "recipe": str(numbers["recipe"]["type"]),
        "steps": f"{numbers['steps']:,}",
    }
    figures = [
        _figure(f"Loss: {words}", history, {"training": f"loss_{name}", "held out": f"eval_{name}"}, "loss")
        for name, words in TASKS.items()
    ]
    answers = {words: f"eval_{name}_accuracy" for name, words in TASKS.items()}
    figures.append(_figure("Right answers on held-out texts", history, answers, "share"))
    rows = [[escape(name), f"{value:.4f}"] for name, value in held_out.items() if name != "score"]
    return page(
        f"Pre-training: {title}",
        [
            f"<header><h1>Pre-training: {escape(title)}</h1>{facts(told)}</header>",
            section("Curves", grid(figures)),
            section("On held-out texts", table("Weights that were kept", ["measure", "value"], rows) if rows else ""),
        ],
    )


def _figure(title: str, history: Sequence[Mapping[str, float]], names: Mapping[str, str], label: str) -> str:
    series = [Series(shown, points) for shown, name in names.items() if (points := curve(history, name))]
    points = [point for each in series for point in each.points]
    if not points:
        return ""
    last = max(step for step, _ in points)
    low, high = min(value for _, value in points), max(value for _, value in points)
    gap = max((high - low) * 0.05, 1e-6)
    x = Axis(0.0, max(last, 1.0), "step", round_ticks(0.0, max(last, 1.0)))
    y = Axis(low - gap, high + gap, label, round_ticks(low - gap, high + gap))
    few = len(points) <= 3 * len(series)
    return line_chart(title, f"{label} by step", x, y, series, dots=few)
