"""The model card: what a model was made of, how good it was when made, where it stops being good."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pertinent.evaluation.result import Evaluation

# What the card's table shows, in this order, of all that was measured.
SHOWN = ("auc", "spearman", "pearson", "macro_f1", "accuracy", "ndcg@10", "mrr", "recall@10", "ece", "fnr")


@dataclass(frozen=True, slots=True)
class CardFacts:
    """Everything that a card says, as it was found out; ``counts`` are pairs and queries by split."""

    title: str
    start: str
    network: Mapping[str, Any]
    pairs: Mapping[str, Any]
    parameters: int
    weights_dtype: str
    counts: Mapping[str, tuple[str, str]]
    sources: Mapping[str, str]
    licenses: Mapping[str, str]
    left_out: int
    positive_grade: float
    objective: Sequence[Mapping[str, Any]]
    settings: Mapping[str, Any]
    steps: str
    evaluations: Mapping[str, Evaluation]
    calibration: Mapping[str, Any] | None
    recall_thresholds: Mapping[str, float]
    versions: Mapping[str, str]


def model_card(facts: CardFacts) -> str:
    """The card as Markdown."""
    parts = [
        f"# {facts.title}",
        "A query-title relevance model: it gives the probability that an item is relevant to a search query.",
        "```python\nfrom pertinent import Scorer\n\n"
        f'scorer = Scorer.load("path/to/{facts.title}")\n'
        'scorer.score("wireless earbuds", ["Bluetooth earbuds with case", "Tea pot"])\n```',
        "## Network",
        _table(
            ("", ""),
            [
                ("type", str(facts.network.get("type"))),
                ("started from", facts.start),
                *((name, str(facts.network[name])) for name in _SIZES if name in facts.network),
                ("parameters", f"{facts.parameters:,}"),
                ("weights on disk", facts.weights_dtype),
                *((name, str(value)) for name, value in facts.pairs.items()),
            ],
        ),
        "## Data",
        _table(
            ("split", "pairs", "queries"),
            [(split, *numbers) for split, numbers in facts.counts.items()],
        ),
        "Queries of different splits differ, also after normalization."
        + (
            f" {facts.left_out:,} extra training pairs were left out because their queries are held out."
            if facts.left_out
            else ""
        ),
        _table(("source", "SHA-256", "license"), _sources(facts)),
        "## Training",
        _table(
            ("loss", "settings"),
            [
                (str(loss["type"]), _settings({k: v for k, v in loss.items() if k != "type"}))
                for loss in facts.objective
            ],
        ),
        _settings(facts.settings) + f"; {facts.steps}.",
        "## Quality",
        f"A pair counts as relevant from grade {facts.positive_grade:g}. Values with 95% intervals from resamples of "
        "whole queries; weights and calibration were chosen on the validation split, so the test split counts.",
        _quality(facts.evaluations),
        "## Calibration and thresholds",
        _calibration(facts),
        "## Limits",
        "- Measured on the data above only. A shop with another language, another kind of goods or another idea of "
        "relevance needs its own judgments: run `pertinent evaluate` before using scores there.\n"
        f"- Query tokens beyond {facts.pairs.get('query_length')} and title tokens beyond "
        f"{facts.pairs.get('item_length')} (with special tokens) are not read.\n"
        "- Scores say whether the item fits the query, not whether it is in stock, liked or fairly priced.\n"
        "- The judgments carry the habits of their raters, and so does the model.",
        "## Versions",
        _table(("package", "version"), list(facts.versions.items())),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


_SIZES = ("layers", "hidden_size", "heads", "feed_forward_size", "vocabulary_size", "max_positions", "labels")


def _sources(facts: CardFacts) -> list[tuple[str, str, str]]:
    rows = [
        (name, f"`{digest[:12]}`" if digest else "", facts.licenses.get(name, "not stated"))
        for name, digest in facts.sources.items()
    ]
    return rows + [(name, "", text) for name, text in facts.licenses.items() if name not in facts.sources]


def _quality(evaluations: Mapping[str, Evaluation]) -> str:
    names = [name for name in SHOWN if any(name in each.metrics for each in evaluations.values())]
    rows = [
        (name, *(str(each.metrics[name]) if name in each.metrics else "" for each in evaluations.values()))
        for name in names
    ]
    return _table(("metric", *evaluations), rows)


def _calibration(facts: CardFacts) -> str:
    if facts.calibration is None:
        return "Scores are the sigmoid of the network's logit; nothing was fitted."
    kind = facts.calibration["type"]
    points = ", ".join(f"{name} of relevant pairs: {value:.3f}" for name, value in facts.recall_thresholds.items())
    return (
        f"Scores are calibrated ({kind}, fitted on the validation split). The highest thresholds that keep {points}. "
        "`thresholds.json` has precision, recall and share kept for each threshold."
    )


def _settings(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items() if value is not None)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
