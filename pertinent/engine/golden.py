"""Twenty pairs with their logits, kept in a model folder and computed again when it is loaded.

A processor, a library or a damaged file that changes scores is noticed before a user sees them. Each
pair is scored alone, when the file is written and when it is checked: int8 scores depend on what else
is in a batch, and which pairs form one depends on the number of cores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pertinent.artifact import read_json
from pertinent.errors import ArtifactError
from pertinent.probability import sigmoid
from pertinent.records import Pair

GOLDEN_FILE = "golden.json"
GOLDEN_TOLERANCE = 1e-3
# Backends that compute in less than float32 by design, with what that may move a probability.
_COARSE = {"cuda": 2e-2}


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


def golden_tolerance(backend: str) -> float:
    """How far a probability may be from its golden one with a backend.

    >>> golden_tolerance("onnx"), golden_tolerance("cuda")
    (0.001, 0.02)
    """
    return _COARSE.get(backend, GOLDEN_TOLERANCE)


def golden_logits(
    logits: Callable[[Sequence[Pair]], NDArray[np.float32]], pairs: Sequence[Pair]
) -> NDArray[np.float32]:
    """What a function from pairs to logits gives to each pair alone, ``[n]``.

    >>> golden_logits(lambda pairs: np.full(len(pairs), len(pairs), dtype=np.float32), [Pair("a", "b")] * 2).tolist()
    [1.0, 1.0]
    """
    return np.array([logits([pair])[0] for pair in pairs], dtype=np.float32)


def golden_difference(logits: NDArray[np.float32], wanted: NDArray[np.float64]) -> float:
    """The largest difference between two sets of logits as probabilities; 0 for none.

    >>> golden_difference(np.array([0.0], dtype=np.float32), np.array([0.0]))
    0.0
    """
    difference = np.abs(sigmoid(logits.astype(np.float64)) - sigmoid(wanted))
    return float(np.nan_to_num(difference, nan=1.0).max(initial=0.0))
