"""Twenty pairs with their logits, kept in a model folder and computed again when it is loaded.

A processor, a library or a damaged file that changes scores is noticed before a user sees them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pertinent.artifact import read_json
from pertinent.engine.probability import sigmoid
from pertinent.errors import ArtifactError
from pertinent.records import Pair

GOLDEN_FILE = "golden.json"
GOLDEN_TOLERANCE = 1e-3


def read_golden(path: Path, backend: str) -> tuple[list[Pair], NDArray[np.float64]]:
    """The pairs and the logits they should get from a backend. Raises ArtifactError for a damaged file."""
    content = read_json(path)
    try:
        pairs = [Pair(str(query), str(title)) for query, title in content["pairs"]]
        logits = content["logits"]
        wanted = np.array(logits.get(backend, logits["float32"]), dtype=np.float64)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtifactError(
            f"{path}: not golden scores ({type(error).__name__} {error}); copy the model again"
        ) from None
    if wanted.shape != (len(pairs),):
        raise ArtifactError(f"{path}: has {len(pairs)} pairs but {wanted.size} logits; copy the model again")
    return pairs, wanted


def golden_difference(logits: NDArray[np.float32], wanted: NDArray[np.float64]) -> float:
    """The largest difference between two sets of logits as probabilities; 0 for none.

    >>> golden_difference(np.array([0.0], dtype=np.float32), np.array([0.0]))
    0.0
    """
    difference = np.abs(sigmoid(logits.astype(np.float64)) - sigmoid(wanted))
    return float(np.nan_to_num(difference, nan=1.0).max(initial=0.0))
