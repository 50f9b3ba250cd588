"""From a model's logit to a probability that means what it says, and where to cut.

A calibration is fitted on validation judgments, stored in the model artifact as plain numbers, and
keeps the order of the scores: Platt always, isotonic by leaning a little on a Platt fit.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pertinent.errors import DataError, ScoringError
from pertinent.probability import Calibration, Floats, Isotonic, Platt, sigmoid
from pertinent.records import PairScorer

logger = logging.getLogger(__name__)
# A fit on scores that run against the judgments would turn the order round; it is held here instead.
SMALLEST_SLOPE = 1e-3


def fit_platt(logits: ArrayLike, targets: ArrayLike) -> Platt:
    """The maximum-likelihood fit; targets 0 to 1, drawn in a little by Platt's rule.

    That rule (one more example of each class) keeps the slope finite on separable data. The
    slope stays positive: where the scores run against the targets a warning is logged.

    >>> fit_platt([-1.0, 1.0], [0, 1])([0.0]).round(6).tolist()
    [0.5]
    """
    x, t = _checked(logits, targets)
    positive, negative = t.sum(), (1 - t).sum()
    low, high = 1 / (negative + 2), (positive + 1) / (positive + 2)
    t = low + (high - low) * t
    center, scale = x.mean(), x.std() or 1.0
    slope, intercept = _logistic((x - center) / scale, t)
    if not slope / scale >= SMALLEST_SLOPE:
        logger.warning("scores do not rise with the judgments (slope %.3g): calibration is nearly flat", slope / scale)
        mean = float(np.clip(t.mean(), 1e-6, 1 - 1e-6))
        return Platt(SMALLEST_SLOPE, math.log(mean / (1 - mean)) - SMALLEST_SLOPE * float(center))
    return Platt(float(slope / scale), float(intercept - slope * center / scale))


def fit_isotonic(logits: ArrayLike, targets: ArrayLike, tilt: float = 1e-3) -> Isotonic:
    """The best rising step curve in least squares (pool adjacent violators); equal logits are averaged first.

    >>> fit_isotonic([1, 2, 3, 4], [0, 1, 0, 1], tilt=0).probabilities
    (0.0, 0.5, 0.5, 1.0)
    """
    x, t = _checked(logits, targets)
    points, where, counts = np.unique(x, return_inverse=True, return_counts=True)
    fitted = rising(np.bincount(where, weights=t) / counts, counts.astype(np.float64))
    # Inside a flat stretch only its two ends carry information.
    flat = np.r_[False, (fitted[1:-1] == fitted[:-2]) & (fitted[1:-1] == fitted[2:]), False][: len(fitted)]
    return Isotonic(tuple(points[~flat].tolist()), tuple(fitted[~flat].tolist()), tilt, fit_platt(x, t))


def fit_calibration(kind: str, logits: ArrayLike, targets: ArrayLike) -> Calibration:
    """A fitted calibration of a kind in ``CALIBRATIONS``.

    >>> type(fit_calibration("platt", [-1.0, 1.0], [0, 1])).__name__
    'Platt'
    """
    if kind not in CALIBRATIONS:
        raise DataError(f"no calibration {kind!r}", fix=f"choose one of {', '.join(CALIBRATIONS)}")
    return CALIBRATIONS[kind](logits, targets)


CALIBRATIONS: dict[str, Callable[[ArrayLike, ArrayLike], Calibration]] = {"platt": fit_platt, "isotonic": fit_isotonic}


@dataclass(frozen=True, slots=True)
class Calibrated:
    """A scorer whose scores go through a calibration, so that BM25 too gives probabilities."""

    scorer: PairScorer
    calibration: Calibration

    @property
    def name(self) -> str:
        """The name of the scorer inside."""
        return self.scorer.name

    def score(self, query: str, titles: list[str]) -> NDArray[np.float32]:
        """Calibrated probabilities, float32 ``[n]``."""
        return self.calibration(self.scorer.score(query, titles)).astype(np.float32)


def threshold_table(
    probabilities: ArrayLike, relevant: ArrayLike, thresholds: ArrayLike | None = None
) -> list[dict[str, float | None]]:
    """What each threshold keeps: precision, recall, F1 and share of all pairs at or above it.

    Thresholds are 0.05 to 0.95 unless given. Undefined values (nothing kept, nothing relevant) are None.

    >>> threshold_table([0.9, 0.6, 0.2], [1, 0, 1], [0.5])
    [{'threshold': 0.5, 'precision': 0.5, 'recall': 0.5, 'f1': 0.5, 'kept': 0.6666666666666666}]
    """
    p, r = _checked(probabilities, relevant, empty=True)
    cuts = np.arange(1, 20) / 20 if thresholds is None else np.asarray(thresholds, dtype=np.float64)
    table = []
    for cut in cuts.tolist():
        kept = p >= cut
        hits, found, wanted = float(r[kept].sum()), int(kept.sum()), float(r.sum())
        table.append(
            {
                "threshold": cut,
                "precision": hits / found if found else None,
                "recall": hits / wanted if wanted else None,
                "f1": 2 * hits / (found + wanted) if found + wanted else None,
                "kept": found / len(p) if len(p) else None,
            }
        )
    return table


def threshold_for_recall(probabilities: ArrayLike, relevant: ArrayLike, recall: float) -> float:
    """The highest threshold that still keeps this share of the relevant pairs.

    Raises DataError where nothing is relevant: then no threshold has a recall.

    >>> threshold_for_recall([0.9, 0.6, 0.2], [1, 1, 0], recall=1.0)
    0.6
    """
    p, r = _checked(probabilities, relevant, empty=True)
    if not 0 < recall <= 1:
        raise DataError(f"recall must be above 0 and at most 1, got {recall}")
    found = np.sort(p[r > 0.5])[::-1]
    if not len(found):
        raise DataError("no relevant pair, so recall is undefined", fix="lower the positive grade or add judgments")
    # 0.99 * 100 is 99.00000000000001 for a computer: without the slack one pair too many is asked for.
    return float(found[math.ceil(recall * len(found) - 1e-9) - 1])


def rising(values: Floats, weights: Floats) -> Floats:
    """The nearest never-falling sequence in weighted least squares: pool adjacent violators.

    >>> rising(np.array([1.0, 3.0, 2.0]), np.ones(3)).tolist()
    [1.0, 2.5, 2.5]
    """
    means: list[float] = []
    sizes: list[float] = []
    lengths: list[int] = []
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        mean, size, length = value, weight, 1
        while means and means[-1] >= mean:
            before, before_size = means.pop(), sizes.pop()
            mean = (before * before_size + mean * size) / (before_size + size)
            size, length = size + before_size, length + lengths.pop()
        means.append(mean)
        sizes.append(size)
        lengths.append(length)
    return np.repeat(np.array(means, dtype=np.float64), lengths)


def _logistic(x: Floats, targets: Floats) -> tuple[float, float]:
    """Slope and intercept of a logistic regression with soft targets, by damped Newton steps."""
    design = np.stack([x, np.ones_like(x)], axis=1)
    mean = float(np.clip(targets.mean(), 1e-6, 1 - 1e-6))
    beta = np.array([0.0, math.log(mean / (1 - mean))])
    loss = _cross_entropy(design @ beta, targets)
    for _ in range(100):
        p = sigmoid(design @ beta)
        gradient = design.T @ (p - targets)
        hessian = design.T @ (design * (p * (1 - p))[:, None]) + 1e-12 * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        scale = 1.0
        while scale > 1e-6 and (new := _cross_entropy(design @ (beta - scale * step), targets)) > loss:
            scale /= 2
        if scale <= 1e-6:
            break
        beta, gain, loss = beta - scale * step, loss - new, new
        if gain <= 1e-14 * (1 + loss):
            break
    return float(beta[0]), float(beta[1])


def _cross_entropy(logits: Floats, targets: Floats) -> float:
    return float((np.logaddexp(0, logits) - targets * logits).sum())


def _checked(scores: ArrayLike, targets: ArrayLike, empty: bool = False) -> tuple[Floats, Floats]:
    x, t = np.asarray(scores, dtype=np.float64).ravel(), np.asarray(targets, dtype=np.float64).ravel()
    if len(x) != len(t):
        raise ScoringError(f"{len(x)} scores for {len(t)} judgments; give one judgment for each score")
    if not empty and not len(x):
        raise DataError("no judgments to fit a calibration on", fix="give a validation split with judged pairs")
    if not np.isfinite(x).all():
        raise ScoringError("scores must be finite to be calibrated; check the model's output")
    if not ((t >= 0) & (t <= 1)).all():
        raise DataError("targets must be from 0 to 1", fix="map labels to grades first")
    return x, t
