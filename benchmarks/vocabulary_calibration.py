"""Whether added words cost right answers at the threshold of one half, or only move the probabilities.

    pertinent study configs/studies/vocabulary.yaml
    python benchmarks/vocabulary_calibration.py --study runs/studies/vocabulary

Every model of the study gets a new curve from logit to probability, over the one fitted on the few validation pairs of
its training: one half of the queries that it is measured on gets the curve that the other half's pairs give. Writes
vocabulary_calibration.json.
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
from pertinent.data.splits import bucket
from pertinent.evaluation.calibration import fit_platt
from pertinent.evaluation.compare import compare_means, mean_estimates
from pertinent.evaluation.evaluate import evaluate_scores

SEEDS, FOLDS = 3, 2
ARMS = {"its own vocabulary": "bert--3-layers", "with added words": "-vocabulary"}
METRICS = ("auc", "macro_f1", "accuracy")


def main() -> None:
    """Measure both arms with their own curves and with new ones, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", type=Path, default=Path("runs/studies/vocabulary"))
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    given = parser.parse_args()
    judgments = read_sample("esci")[1]
    place = {(judgment.query, judgment.item_id): row for row, judgment in enumerate(judgments)}
    part_of = folds_of(given.study, place)
    half = np.array([bucket(judgment.query, "half") < 0.5 for judgment in judgments])
    relevant = np.array([judgment.grade >= 1.0 for judgment in judgments])
    found: dict[str, Any] = {}
    for curve in ("fitted in training", "fitted on the other half of the queries"):
        runs = {}
        for name, file in ARMS.items():
            each = [of_folds(given.study, file, seed, place) for seed in range(SEEDS)]
            if curve == "fitted on the other half of the queries":
                each = [fitted_across(scores, relevant, part_of, half) for scores in each]
            runs[name] = [evaluate_scores(scores, judgments, name=name, positive_grade=1.0) for scores in each]
        plain, added = runs.values()
        found[curve] = {
            **{
                name: {metric: round(mean_estimates(several)[metric].value, 4) for metric in METRICS}
                for name, several in runs.items()
            },
            "difference": {metric: compare_means(added, plain)[metric].plain() for metric in METRICS},
        }
    command = "python benchmarks/vocabulary_calibration.py --study runs/studies/vocabulary"
    print(write(str(given.out), {"command": command, "seeds": list(range(SEEDS)), "curves": found}))


def of_folds(study: Path, file: str, seed: int, place: dict[tuple[str, str], int]) -> np.ndarray[Any, Any]:
    """The scores of one seed for all judged pairs, each from the fold that held it out."""
    scores = np.full(len(place), np.nan)
    for fold in range(1, FOLDS + 1):
        with (study / f"judgments-fold-{fold}-of-{FOLDS}.csv").open(encoding="utf-8", newline="") as lines:
            held = [row for row in csv.DictReader(lines) if row["split"] == "test"]
        given = read_json(study / f"{file}-{seed}-fold-{fold}.json")["scores"]
        for row, score in zip(held, given, strict=True):
            scores[place[row["query"], row["item_id"]]] = score
    return scores


def folds_of(study: Path, place: dict[tuple[str, str], int]) -> np.ndarray[Any, Any]:
    """The fold that held out each judged pair."""
    folds = np.zeros(len(place), dtype=int)
    for fold in range(1, FOLDS + 1):
        with (study / f"judgments-fold-{fold}-of-{FOLDS}.csv").open(encoding="utf-8", newline="") as lines:
            for row in csv.DictReader(lines):
                if row["split"] == "test":
                    folds[place[row["query"], row["item_id"]]] = fold
    return folds


def fitted_across(
    scores: np.ndarray[Any, Any],
    relevant: np.ndarray[Any, Any],
    fold_of: np.ndarray[Any, Any],
    half: np.ndarray[Any, Any],
) -> np.ndarray[Any, Any]:
    """Probabilities by curves of the same model on the other half of its queries."""
    bounded = np.clip(scores, 1e-6, 1 - 1e-6)
    logits = np.log(bounded / (1 - bounded))
    found = np.full(len(scores), np.nan)
    for fold in range(1, FOLDS + 1):
        for side in (False, True):
            fitted, rows = (fold_of == fold) & (half != side), (fold_of == fold) & (half == side)
            found[rows] = fit_platt(logits[fitted], relevant[fitted])(logits[rows])
    return found


if __name__ == "__main__":
    main()
