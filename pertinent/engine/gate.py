"""Whether a cheaper way of scoring may stand in for the exact one: a gate on order and judged quality."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from pertinent.correlation import spearman
from pertinent.records import Judgment

# The gate wants this many times as many pairs as it compares at the top: among fewer, most are in it anyhow.
EVIDENCE = 3

Scores = NDArray[np.float32]


class Fall(NamedTuple):
    """How much a judged metric fell from exact to cheaper scores, with the 95% interval of the difference."""

    value: float
    low: float
    high: float


# Falls by metric, from judgments, exact scores and cheaper ones.
JudgedFalls = Callable[[Sequence[Judgment], Scores, Scores], Mapping[str, Fall]]


class Limits(Protocol):
    """What has to hold; ``top`` is how many of the best pairs are compared."""

    @property
    def top(self) -> int: ...
    @property
    def min_spearman(self) -> float: ...
    @property
    def min_top_overlap(self) -> float: ...
    @property
    def max_judged_loss(self) -> float: ...


@dataclass(frozen=True, slots=True)
class Gate:
    """What was measured between exact and cheaper scores, and whether it was enough.

    ``top_overlap`` is the share of equal pairs among the ``top`` best of all; ``judged_loss`` is how
    much the rank correlation with the grades fell, ``judged`` the falls of other metrics. NaN where
    a number is undefined. ``cheap`` and ``exact`` name the parts of the network that were computed so.
    """

    passed: bool
    pairs: int
    spearman: float
    top_overlap: float
    judged_loss: float
    reasons: list[str]
    judged: dict[str, Fall] = field(default_factory=dict)
    cheap: tuple[str, ...] = ()
    exact: tuple[str, ...] = ()

    def plain(self) -> dict[str, Any]:
        """The fields as JSON-able values; None where a number is undefined."""
        values = asdict(self)
        values["judged"] = {
            name: {part: _known(value) for part, value in fall._asdict().items()} for name, fall in self.judged.items()
        }
        return {name: list(value) if isinstance(value, tuple) else _known(value) for name, value in values.items()}


def gate(
    exact: Scores, cheap: Scores, judged: Sequence[Judgment], limits: Limits, falls: JudgedFalls | None = None
) -> Gate:
    """Whether ``cheap`` scores of judged pairs may stand in for ``exact`` ones; both ``[n]``.

    All must hold: rank correlation, equal pairs at the top, and judged quality. With ``falls`` a metric
    fails when it fell beyond chance: when the whole interval of its fall is above 0.
    """
    grades = np.array([judgment.grade for judgment in judged])
    agreement = spearman(exact, cheap)
    top = min(limits.top, len(judged))
    overlap = len({*_top(exact, top)} & {*_top(cheap, top)}) / top
    loss = spearman(exact, grades) - spearman(cheap, grades)
    found = {} if falls is None else dict(falls(judged, exact, cheap))
    reasons = []
    if len(judged) < EVIDENCE * limits.top:
        reasons.append(
            f"{len(judged)} judged pairs are too few to compare the top {limits.top}, "
            f"at least {EVIDENCE * limits.top} are wanted"
        )
    if len(np.unique(grades)) < 2:
        reasons.append("all grades are equal, so they tell nothing about an order")
    elif not loss <= limits.max_judged_loss:
        reasons.append(f"rank correlation with the grades falls by {loss:.4f}, at most {limits.max_judged_loss} may go")
    if not agreement >= limits.min_spearman:
        reasons.append(f"rank correlation with float32 is {agreement:.5f}, at least {limits.min_spearman} is wanted")
    if not overlap >= limits.min_top_overlap:
        reasons.append(
            f"{overlap:.0%} of the top {top} pairs are the same, at least {limits.min_top_overlap:.0%} are wanted"
        )
    reasons += [
        f"{name} falls by {fall.value:.4f}, with 95% between {fall.low:.4f} and {fall.high:.4f}: more than chance"
        for name, fall in found.items()
        if fall.low > 0
    ]
    return Gate(not reasons, len(judged), agreement, overlap, loss, reasons, found)


def choose_parts(
    parts: Sequence[str],
    exact: Scores,
    cheap: Callable[[Sequence[str]], Scores],
    judged: Sequence[Judgment],
    limits: Limits,
    falls: JudgedFalls | None = None,
) -> Gate:
    """The gate with as many ``parts`` of a network in 8 bits as pass it; none where it does not pass.

    ``cheap`` gives the scores where the named parts stay float32. All parts are rounded first. Where that
    fails, each part alone is tried, and parts go back to float32 one after the other, the most harmful first.
    """

    def tried(floats: Sequence[str]) -> Gate:
        found = gate(exact, cheap(floats), judged, limits, falls)
        kept = tuple(part for part in parts if part not in floats)
        return replace(found, cheap=kept, exact=tuple(part for part in parts if part in floats))

    first = tried([])
    if first.passed:
        return first
    if enough(judged, limits) and len(parts) > 1:
        harm = {part: -spearman(exact, cheap([other for other in parts if other != part])) for part in parts}
        order = sorted(parts, key=lambda part: -harm[part])
        for count in range(1, len(order)):
            found = tried(order[:count])
            if found.passed:
                return found
    return replace(first, cheap=(), exact=tuple(parts))


def enough(judged: Sequence[Judgment], limits: Limits) -> bool:
    """Whether judged pairs are evidence at all: enough of them, and not all of one grade."""
    return len(judged) >= EVIDENCE * limits.top and len({judgment.grade for judgment in judged}) > 1


def _top(scores: Scores, count: int) -> list[int]:
    return [int(row) for row in np.argsort(-scores, kind="stable")[:count]]


def _known(value: Any) -> Any:
    return None if value != value else value
