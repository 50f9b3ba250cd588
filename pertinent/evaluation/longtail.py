"""How much to trust behavior by how much history a pair has, fitted on validation pairs (BARL-ASe+, section 6)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from pertinent.errors import DataError
from pertinent.probability import HistoryWeight, history_features, sigmoid

STEPS = 500
RATE = 0.05
PENALTY = 1e-3


def fit_history_weight(
    behavior: ArrayLike,
    text: ArrayLike,
    relevant: ArrayLike,
    query_exposures: ArrayLike,
    item_exposures: ArrayLike,
    items: ArrayLike,
    queries: ArrayLike,
) -> HistoryWeight:
    """The weight w of ``w behavior + (1 - w) text`` with the least cross-entropy on judged pairs, ``[n]`` each.

    ``behavior`` and ``text`` are calibrated probabilities of the two models; pairs without a neighbor do
    not count, as their weight is 0. A small penalty keeps coefficients finite where one model is always
    better. Without any pair that counts both weigh the same. Raises DataError for columns of different lengths.

    >>> always_right, never = [0.9, 0.1] * 50, [0.1, 0.9] * 50
    >>> fitted = fit_history_weight(always_right, never, [1, 0] * 50, [9] * 100, [9] * 100, [5] * 100, [5] * 100)
    >>> bool(fitted([9], [9], [5], [5])[0] > 0.95)
    True
    """
    columns = [np.asarray(each, dtype=np.float64) for each in (behavior, text, relevant)]
    features = history_features(query_exposures, item_exposures, items, queries)  # [n, 5]
    if len({len(features), *map(len, columns)}) > 1:
        raise DataError("scores, labels and counts have different lengths", fix="give one of each for a pair")
    known = (np.asarray(items) > 0) | (np.asarray(queries) > 0)
    first, second, label = (column[known] for column in columns)
    rows = features[known]
    weights = np.zeros(features.shape[1])
    moment, square = np.zeros_like(weights), np.zeros_like(weights)
    for step in range(1, STEPS + 1 if len(rows) else 1):
        share = sigmoid(rows @ weights)
        mixed = np.clip(share * first + (1 - share) * second, 1e-6, 1 - 1e-6)
        slope = (mixed - label) / (mixed * (1 - mixed)) * (first - second) * share * (1 - share)
        gradient = rows.T @ slope / len(rows) + PENALTY * weights
        moment, square = 0.9 * moment + 0.1 * gradient, 0.99 * square + 0.01 * gradient**2
        weights -= RATE * (moment / (1 - 0.9**step)) / (np.sqrt(square / (1 - 0.99**step)) + 1e-12)
    values = [float(value) for value in weights]
    return HistoryWeight((values[0], values[1], values[2], values[3], values[4]))
