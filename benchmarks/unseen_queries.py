"""The folds of `configs/studies/shipped_folds.yaml`, apart for queries whose texts the start has read and has not.

    python benchmarks/unseen_queries.py --study runs/studies/shipped_folds

No judgment of a query is known to the model that scores it, but the start was distilled on texts, and those of the
queries of the split `train` were among them. Differences are means over the seeds; an interval reaches from the
lowest end of any seed's to the highest, and p is the largest. Writes unseen_queries.json.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import Any

import numpy as np
from serving_process import write

from pertinent.artifact import read_json
from pertinent.data.samples import read_sample
from pertinent.evaluation.compare import compare
from pertinent.evaluation.evaluate import Evaluation, evaluate_scores

SEEDS, FOLDS = 3, 3
ALONE = {
    "BM25": "bm25",
    "all-MiniLM-L6 cosine, untrained": "all-minilm-l6-cosine--untrained",
    "distilled start, no judgments": "distilled-start--no-judgments",
}
TRAINED = {
    "sentence-transformers CrossEncoder, 3 layers": "sentence-transformers-crossencoder--3-layers",
    "3 layers, judgments of the other folds": "3-layers--judgments-of-the-other-folds",
}
PARTS = {
    "texts read: train": ("train",),
    "texts not read: valid": ("valid",),
    "texts not read: test": ("test",),
    "texts not read: valid and test": ("valid", "test"),
}
METRICS = ("auc", "spearman", "ndcg@10")


def main() -> None:
    """Measure each part, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", type=Path, default=Path("runs/studies/shipped_folds"))
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    given = parser.parse_args()
    judgments = read_sample("esci")[1]
    scores = {name: [np.array(read_json(given.study / f"{file}-0.json")["scores"])] for name, file in ALONE.items()}
    place = {(judgment.query, judgment.item_id): row for row, judgment in enumerate(judgments)}
    for name, file in TRAINED.items():
        scores[name] = [of_folds(given.study, file, seed, place, FOLDS) for seed in range(SEEDS)]
    found: dict[str, Any] = {}
    for part, splits in PARTS.items():
        rows = [row for row, judgment in enumerate(judgments) if judgment.split in splits]
        judged = [judgments[row] for row in rows]
        measured: dict[str, list[Evaluation]] = {
            name: [evaluate_scores(each[rows], judged, name=name, positive_grade=1.0) for each in runs]
            for name, runs in scores.items()
        }
        values = {
            name: {metric: round(float(np.mean([run.metrics[metric].value for run in runs])), 4) for metric in METRICS}
            for name, runs in measured.items()
        }
        recipe = measured["3 layers, judgments of the other folds"]
        against = {name: differences(recipe, runs[0]) for name, runs in measured.items() if len(runs) == 1}
        found[part] = {"pairs": len(rows), "values": values, "recipe less": against}
    command = "python benchmarks/unseen_queries.py --study runs/studies/shipped_folds"
    print(write(str(given.out), {"command": command, "seeds": list(range(SEEDS)), "parts": found}))


def of_folds(study: Path, file: str, seed: int, place: dict[tuple[str, str], int], folds: int) -> np.ndarray[Any, Any]:
    """The scores of one seed for all judged pairs, each from the fold that held it out."""
    scores = np.full(len(place), np.nan)
    for fold in range(1, folds + 1):
        with (study / f"judgments-fold-{fold}-of-{folds}.csv").open(encoding="utf-8", newline="") as lines:
            held = [row for row in csv.DictReader(lines) if row["split"] == "test"]
        given = read_json(study / f"{file}-{seed}-fold-{fold}.json")["scores"]
        for row, score in zip(held, given, strict=True):
            scores[place[row["query"], row["item_id"]]] = score
    return scores


def differences(recipe: list[Evaluation], other: Evaluation) -> dict[str, Any]:
    """How far the recipe is above a system with one run, by metric."""
    each = [compare(run, other) for run in recipe]
    return {
        metric: {
            "value": round(float(np.mean([found[metric].value for found in each])), 4),
            "low": round(min(found[metric].low for found in each), 4),
            "high": round(max(found[metric].high for found in each), 4),
            "p": round(max(found[metric].p_value for found in each), 4),
        }
        for metric in METRICS
    }


if __name__ == "__main__":
    main()
