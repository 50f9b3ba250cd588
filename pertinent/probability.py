"""Calibrations: rising functions from a model's logit to a probability, stored as plain numbers.

They are fitted in the evaluation and applied by the engine, which do not know each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pertinent.errors import ArtifactError

CALIBRATION_FILE = "calibration.json"
Floats = NDArray[np.float64]
Curve = Callable[[NDArray[np.float32]], NDArray[np.float32]]


class Calibration(Protocol):
    """A rising function from logit to probability."""

    def __call__(self, logits: ArrayLike) -> Floats: ...

    def plain(self) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class Platt:
    """``sigmoid(slope * logit + intercept)`` (Platt, 1999); as made, the plain sigmoid.

    >>> Platt()([0.0]).tolist()
    [0.5]
    """

    slope: float = 1.0
    intercept: float = 0.0

    def __call__(self, logits: ArrayLike) -> Floats:
        """Probabilities, float64, of the logits' shape."""
        return sigmoid(self.slope * np.asarray(logits, dtype=np.float64) + self.intercept)

    def plain(self) -> dict[str, Any]:
        """Two numbers; ``calibration_from`` reads them back."""
        return {"type": "platt", "slope": self.slope, "intercept": self.intercept}


@dataclass(frozen=True, slots=True)
class Isotonic:
    """A rising step curve, linear between its points.

    A step gives many logits one probability and so loses their order; ``tilt`` mixes in that share
    of a Platt fit, which keeps the curve strictly rising.
    """

    logits: tuple[float, ...]
    probabilities: tuple[float, ...]
    tilt: float
    platt: Platt

    def __call__(self, logits: ArrayLike) -> Floats:
        """Probabilities, float64, of the logits' shape; beyond the fitted range the curve is flat."""
        values = np.asarray(logits, dtype=np.float64)
        steps = np.interp(values, self.logits, self.probabilities)
        return np.asarray((1 - self.tilt) * steps + self.tilt * self.platt(values))

    def plain(self) -> dict[str, Any]:
        """The points of the curve; ``calibration_from`` reads them back."""
        return {
            "type": "isotonic",
            "logits": list(self.logits),
            "probabilities": list(self.probabilities),
            "tilt": self.tilt,
            "platt": self.platt.plain(),
        }


@dataclass(frozen=True, slots=True)
class HistoryWeight:
    """How much a model that reads neighbors counts against one that reads texts (BARL-ASe, section 6).

    A logistic function of the logarithms of how often query and item were shown and of the number of
    neighbors on each side; 0 without any neighbor.

    >>> weight = HistoryWeight((0.0, 0.0, 0.0, 0.0, 0.0))
    >>> weight([9, 9], [5, 5], [3, 0], [0, 0]).tolist()
    [0.5, 0.0]
    """

    coefficients: tuple[float, float, float, float, float]

    def __call__(
        self, query_exposures: ArrayLike, item_exposures: ArrayLike, items: ArrayLike, queries: ArrayLike
    ) -> NDArray[np.float32]:
        """Weights from 0 to 1, ``[n]``, of n pairs."""
        known = (np.asarray(items) > 0) | (np.asarray(queries) > 0)
        raw = history_features(query_exposures, item_exposures, items, queries) @ np.array(self.coefficients)
        return np.asarray(np.where(known, sigmoid(raw), 0.0), dtype=np.float32)

    def plain(self) -> dict[str, Any]:
        """Five numbers; ``from_plain`` reads them back."""
        return {"type": "history_weight", "coefficients": list(self.coefficients)}

    @classmethod
    def from_plain(cls, plain: Any) -> HistoryWeight:
        """What ``plain`` described. Raises ArtifactError for anything else."""
        try:
            numbers = _numbers(plain["coefficients"])
            if len(numbers) != 5:
                raise ValueError(f"{len(numbers)} coefficients")
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"not a history weight ({type(error).__name__}: {error}); make it again") from None
        return cls((numbers[0], numbers[1], numbers[2], numbers[3], numbers[4]))


def history_features(
    query_exposures: ArrayLike, item_exposures: ArrayLike, items: ArrayLike, queries: ArrayLike
) -> Floats:
    """One, the logarithms of both exposures, and the numbers of neighbors over ten, ``[n, 5]``.

    >>> history_features([0], [0], [10], [0]).tolist()
    [[1.0, 0.0, 0.0, 1.0, 0.0]]
    """
    shown = [np.log1p(np.asarray(each, dtype=np.float64)) for each in (query_exposures, item_exposures)]
    counts = [np.asarray(each, dtype=np.float64) / 10 for each in (items, queries)]
    return np.stack([np.ones_like(shown[0]), *shown, *counts], axis=1)


def calibration_from(plain: Mapping[str, Any]) -> Platt | Isotonic:
    """The calibration that ``plain()`` described. Raises ArtifactError for anything else.

    >>> calibration_from({"type": "platt", "slope": 2.0, "intercept": 0.0})
    Platt(slope=2.0, intercept=0.0)
    """
    try:
        kind = plain["type"]
        if kind == "platt":
            return Platt(*_numbers([plain["slope"], plain["intercept"]]))
        if kind == "isotonic":
            points, values = _numbers(plain["logits"]), _numbers(plain["probabilities"])
            platt = calibration_from(plain["platt"])
            if isinstance(platt, Platt) and points and len(points) == len(values):
                return Isotonic(points, values, _numbers([plain["tilt"]])[0], platt)
            raise ValueError(f"{len(points)} points with {len(values)} values")
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"{CALIBRATION_FILE}: not a calibration ({type(error).__name__}: {error}); save the model again"
        ) from None
    raise ArtifactError(
        f"{CALIBRATION_FILE}: not a calibration of this version: type {kind!r}; allowed: platt, isotonic"
    )


def probability_curve(plain: Mapping[str, Any] | None) -> Curve:
    """The function from logits to probabilities, both float32, of a stored calibration; None is the plain sigmoid.

    >>> probability_curve(None)(np.array([0.0], dtype=np.float32)).tolist()
    [0.5]
    """
    calibration = Platt() if plain is None else calibration_from(plain)
    return lambda logits: calibration(logits).astype(np.float32)


def sigmoid(x: Floats) -> Floats:
    """``1 / (1 + exp(-x))`` without overflow.

    >>> sigmoid(np.array([-1000.0, 0.0])).tolist()
    [0.0, 0.5]
    """
    small = np.exp(-np.abs(x))
    return np.asarray(np.where(x >= 0, 1.0, small) / (1 + small))


def _numbers(values: Any) -> tuple[float, ...]:
    numbers = tuple(float(value) for value in values)
    if not all(math.isfinite(number) for number in numbers):
        raise ValueError("numbers must be finite")
    return numbers
