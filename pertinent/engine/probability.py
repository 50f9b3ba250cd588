"""From logits to probabilities by the calibration stored in a model, which was fitted elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pertinent.errors import ArtifactError

CALIBRATION_FILE = "calibration.json"
Curve = Callable[[NDArray[np.float32]], NDArray[np.float32]]


def probability_curve(plain: Mapping[str, Any] | None) -> Curve:
    """The rising function from logits to probabilities, both float32; None is the plain sigmoid.

    Reads what the evaluation's calibrations write: ``platt`` (slope, intercept) and ``isotonic``
    (points of a curve, tilted by a little of a Platt fit so that it rises everywhere).

    >>> probability_curve(None)(np.array([0.0], dtype=np.float32)).tolist()
    [0.5]
    """
    curve = _curve({"type": "platt", "slope": 1.0, "intercept": 0.0} if plain is None else plain)
    return lambda logits: curve(logits.astype(np.float64)).astype(np.float32)


def _curve(plain: Mapping[str, Any]) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    try:
        kind = plain["type"]
        if kind == "platt":
            slope, intercept = _finite([plain["slope"], plain["intercept"]])
            return lambda x: sigmoid(slope * x + intercept)
        if kind == "isotonic":
            points, values = _finite(plain["logits"]), _finite(plain["probabilities"])
            tilt, platt = float(plain["tilt"]), _curve(plain["platt"])
            if len(points) and len(points) == len(values):
                return lambda x: (1 - tilt) * np.interp(x, points, values) + tilt * platt(x)
            raise ValueError(f"{len(points)} points with {len(values)} values")
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"{CALIBRATION_FILE}: not a calibration ({type(error).__name__}: {error}); save the model again"
        ) from None
    raise ArtifactError(f"{CALIBRATION_FILE}: type {kind!r} is not known; allowed: platt, isotonic")


def sigmoid(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """``1 / (1 + exp(-x))`` without overflow.

    >>> sigmoid(np.array([-1000.0, 0.0, 1000.0])).tolist()
    [0.0, 0.5, 1.0]
    """
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * values)))


def _finite(values: Any) -> NDArray[np.float64]:
    array = np.array(values, dtype=np.float64)
    if array.ndim != 1 or not np.isfinite(array).all():
        raise ValueError("a number is not finite")
    return array
