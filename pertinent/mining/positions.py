"""How much of a click is due to the place on the page: position curve, COEC, and a click model.

The click model is the position-based one: a click needs an examination, which depends on the position
alone, and attraction, which depends on the query and item alone. Examination relative to the first
position is a *propensity*; dividing by it takes the position out of click-through rates. Both forms of
the model are fitted by EM, on counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import ibis
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import Field

from pertinent.config import Config

if TYPE_CHECKING:
    from ibis import Table

# Sums of rates are taken as whole billionths, so that they do not depend on the order of rows.
BILLION = 1_000_000_000
# Where the EM of the Bernoulli form begins: after so many rounds of the other, which are quick.
START_ROUNDS = 20
# Closer to 0 or 1 than this EM would hardly move away from its start.
MARGIN = 1e-6

Floats = NDArray[np.float64]
Whole = NDArray[np.int64]


class PositionConfig(Config):
    """The click model's fit: of the last ``days`` days and the first ``positions`` places of a page.

    ``form: poisson`` counts clicks as rare events; hidden is each pair's attraction. ``form: bernoulli``
    is the textbook model; hidden is whether an exposure was examined and did attract. It has the more
    exact likelihood, but with few exposures a pair its propensities come out too flat. EM stops when no
    propensity moves by more than ``tolerance`` in a round, or after ``iterations`` rounds.
    ``prior_clicks`` and ``prior_skips`` are examined exposures with and without a click that each pair
    is given beside its own (a prior on attraction); with both 0 there is none.
    """

    days: int = Field(30, ge=1)
    positions: int = Field(50, ge=1, le=1000)
    form: Literal["poisson", "bernoulli"] = "poisson"
    iterations: int = Field(500, ge=1)
    tolerance: float = Field(1e-5, gt=0)
    prior_clicks: float = Field(0.0, ge=0)
    prior_skips: float = Field(0.0, ge=0)


@dataclass(frozen=True)
class PositionModel:
    """A fitted click model. Arrays ``[positions]`` are by position from 0, up to the deepest one with exposures.

    ``propensity[0]`` is 1. Where ``identified`` is False no pair links the position with the first, and
    its propensity is only its click-through rate over that of the first. ``pairs`` has ``query, item_id,
    attraction`` of the pairs that were fitted.
    """

    propensity: Floats  # [positions]
    identified: NDArray[np.bool_]  # [positions]
    exposures: Whole  # [positions]
    clicks: Whole  # [positions]
    pairs: pa.Table
    log_likelihoods: list[float]  # before the first round and after each, with the log of the prior; never falls
    converged: bool
    pairs_seen: int  # pairs with a position that is fitted
    pairs_several: int  # of these, shown at two positions or more
    warnings: list[str]

    def table(self) -> pa.Table:
        """One row a position: ``position, exposures, clicks, propensity, identified``."""
        return pa.table(
            {
                "position": pa.array(np.arange(len(self.propensity)), pa.int32()),
                "exposures": self.exposures,
                "clicks": self.clicks,
                "propensity": self.propensity,
                "identified": self.identified,
            }
        )

    def report(self) -> dict[str, object]:
        """The fit in numbers, as JSON-able values."""
        return {
            "pairs_seen": self.pairs_seen,
            "pairs_several": self.pairs_several,
            "pairs_fitted": self.pairs.num_rows,
            "positions": len(self.propensity),
            "positions_identified": int(self.identified.sum()),
            "rounds": max(len(self.log_likelihoods) - 1, 0),
            "converged": self.converged,
            "log_likelihood_start": self.log_likelihoods[0] if self.log_likelihoods else None,
            "log_likelihood": self.log_likelihoods[-1] if self.log_likelihoods else None,
            "warnings": self.warnings,
        }


@dataclass(frozen=True)
class Fit:
    """What EM ends with: examination by position, attraction by pair, and its way there."""

    examination: Floats  # [positions]
    attraction: Floats  # [pairs]
    log_likelihoods: list[float]
    converged: bool


@dataclass(frozen=True)
class Counts:
    """Exposures and clicks of pairs at positions; arrays ``[rows]``, a pair and position at most once."""

    pair: Whole
    position: Whole
    exposures: Floats
    clicks: Floats
    pairs: int
    positions: int

    def by_pair(self, values: Floats) -> Floats:
        """Sums of row values by pair, ``[pairs]``."""
        return np.bincount(self.pair, values, self.pairs).astype(np.float64)

    def by_position(self, values: Floats) -> Floats:
        """Sums of row values by position, ``[positions]``."""
        return np.bincount(self.position, values, self.positions).astype(np.float64)


def position_table(counts: Table) -> Table:
    """Exposures, clicks and their quotient by position: ``position, exposures, clicks, ctr``.

    ``counts`` has ``position, exposures, clicks``, as `schema.DAILY_POSITIONS` has.
    """
    curve = counts.group_by("position").agg(exposures=counts.exposures.sum(), clicks=counts.clicks.sum())
    return curve.mutate(ctr=curve.clicks.cast("float64") / curve.exposures.cast("float64"))


def coec(counts: Table) -> Table:
    """Clicks over expected clicks by pair: ``query, item_id, exposures, clicks, expected, coec``.

    ``counts`` is `schema.DAILY_POSITIONS`, or its sums over days. An exposure is expected to get the
    click-through rate of its position over all pairs, to the billionth; 1 is a pair as good as what is
    usually shown there. ``coec`` is null where no click is expected.
    """
    curve = position_table(counts)
    rates = curve.select("position", weight=_billionths(curve.ctr))
    return _over_weights(counts.join(rates, "position"), "expected", "coec")


def debiased_ctr(counts: Table, propensity: Floats) -> Table:
    """Clicks over examined exposures by pair: ``query, item_id, exposures, clicks, examined, ctr_debiased``.

    ``counts`` is as for `coec`, ``propensity`` is ``[positions]`` of a fitted model. ``examined`` is the sum
    of the propensities of the pair's exposures, to the billionth; deeper positions have that of the
    deepest. An estimate: ``ctr_debiased`` may be above 1. It is null where nothing was examined.
    """
    weights = np.rint(propensity * BILLION).astype(np.int64)
    places = np.arange(len(weights), dtype=np.int64)
    table = ibis.memtable(
        pa.table({"place": places, "weight": weights}), schema=ibis.schema({"place": "int64", "weight": "int64"})
    )
    placed = counts.mutate(place=counts.position.cast("int64").clip(upper=len(weights) - 1))
    return _over_weights(placed.join(table, "place"), "examined", "ctr_debiased")


def fit_position_model(counts: Table, config: PositionConfig) -> PositionModel:
    """The position-based click model of ``counts``, fitted by EM.

    ``counts`` is `schema.DAILY_POSITIONS`, or its sums over days, cut to the window. Only pairs shown at
    several positions tell examination from attraction: the others fit any propensity, and have no part.
    """
    fitted = counts.filter(counts.position >= 0, counts.position < config.positions)
    totals = fitted.group_by(["query", "item_id", "position"]).agg(
        exposures=fitted.exposures.sum(), clicks=fitted.clicks.sum()
    )
    exposures, clicks = _curve(totals)
    seen, several, rows = _shown_at_several(totals, with_clicks=config.prior_clicks + config.prior_skips == 0)
    arrays, names = _arrays(rows, len(exposures))
    fit = fit_em(arrays, config)
    linked, first = _linked(arrays, exposures)
    propensity = _propensities(fit.examination, linked, first, exposures, clicks)
    pairs = names.append_column("attraction", pa.array(fit.attraction * _scale(fit.examination, linked, first)))
    return PositionModel(
        propensity=propensity,
        identified=linked,
        exposures=exposures,
        clicks=clicks,
        pairs=pairs,
        log_likelihoods=fit.log_likelihoods,
        converged=fit.converged,
        pairs_seen=seen,
        pairs_several=several,
        warnings=_warnings(linked, exposures, seen, several, fit, config),
    )


def fit_em(counts: Counts, config: PositionConfig) -> Fit:
    """Examination and attraction that make the clicks likely; their common scale is free."""
    examination, attraction = np.ones(counts.positions), np.zeros(counts.pairs)
    advance, likelihood = _poisson_round, poisson_likelihood
    if config.form == "bernoulli":
        for _ in range(START_ROUNDS):
            examination, attraction = _poisson_round(counts, examination, attraction, 0.0, 0.0)
        examination = np.clip(examination / max(examination.max(initial=0.0), MARGIN), MARGIN, 1 - MARGIN)
        attraction = np.clip(attraction, MARGIN, 1 - MARGIN)
        advance, likelihood = _bernoulli_round, bernoulli_likelihood
    prior = config.prior_clicks, config.prior_skips
    likelihoods = [likelihood(counts, examination, attraction, *prior)] if len(counts.pair) else []
    converged = len(counts.pair) == 0
    while not converged and len(likelihoods) <= config.iterations:
        before = examination
        examination, attraction = advance(counts, examination, attraction, *prior)
        likelihoods.append(likelihood(counts, examination, attraction, *prior))
        converged = bool(np.max(np.abs(_relative(examination) - _relative(before))) < config.tolerance)
    return Fit(examination, attraction, likelihoods, converged)


def poisson_likelihood(
    counts: Counts, examination: Floats, attraction: Floats, prior_clicks: float, prior_skips: float
) -> float:
    """The log of the probability of the clicks where attraction is hidden, but for a constant.

    Hidden attraction has a gamma distribution of ``prior_clicks`` clicks in ``prior_clicks + prior_skips``
    exposures. Without a prior it is how likely the clicks of each pair fall on the positions they did.

    >>> one = Counts(np.array([0, 0]), np.array([0, 1]), np.array([2.0, 2.0]), np.array([1.0, 1.0]), 1, 2)
    >>> round(poisson_likelihood(one, np.array([1.0, 1.0]), np.array([0.5]), 0, 0), 4)  # 2 ln (1 / 4)
    -2.7726
    """
    looks = counts.by_pair(counts.exposures * examination[counts.position]) + prior_clicks + prior_skips
    placed = _log_terms(counts.clicks, examination[counts.position])
    return placed - _log_terms(counts.by_pair(counts.clicks) + prior_clicks, looks)


def bernoulli_likelihood(
    counts: Counts, examination: Floats, attraction: Floats, prior_clicks: float, prior_skips: float
) -> float:
    """The log of the probability of the clicks, and of the prior on attraction where there is one.

    >>> one = Counts(np.array([0]), np.array([0]), np.array([2.0]), np.array([1.0]), 1, 1)
    >>> round(bernoulli_likelihood(one, np.array([1.0]), np.array([0.5]), 0, 0), 4)  # 2 ln 0.5
    -1.3863
    """
    clicked = examination[counts.position] * attraction[counts.pair]
    return (
        _log_terms(counts.clicks, clicked)
        + _log_terms(counts.exposures - counts.clicks, 1 - clicked)
        + _log_terms(np.full(counts.pairs, prior_clicks), attraction)
        + _log_terms(np.full(counts.pairs, prior_skips), 1 - attraction)
    )


def _poisson_round(
    counts: Counts, examination: Floats, attraction: Floats, prior_clicks: float, prior_skips: float
) -> tuple[Floats, Floats]:
    """The expected attraction of each pair given its clicks, then the examination that fits it best."""
    looks = counts.by_pair(counts.exposures * examination[counts.position])
    attraction = _quotient(counts.by_pair(counts.clicks) + prior_clicks, looks + prior_clicks + prior_skips)
    chances = counts.by_position(counts.exposures * attraction[counts.pair])
    return _quotient(counts.by_position(counts.clicks), chances), attraction


def _bernoulli_round(
    counts: Counts, examination: Floats, attraction: Floats, prior_clicks: float, prior_skips: float
) -> tuple[Floats, Floats]:
    """The odds that a skipped exposure was examined or did attract, then the shares of each."""
    looked, liked = examination[counts.position], attraction[counts.pair]
    skipped = (counts.exposures - counts.clicks) / np.maximum(1 - looked * liked, 1e-300)
    examined = counts.clicks + skipped * looked * (1 - liked)
    attracting = counts.clicks + skipped * liked * (1 - looked)
    exposures = counts.by_pair(counts.exposures) + prior_clicks + prior_skips
    return (
        _quotient(counts.by_position(examined), counts.by_position(counts.exposures)),
        _quotient(counts.by_pair(attracting) + prior_clicks, exposures),
    )


def _relative(examination: Floats) -> Floats:
    """Examination over that of the first position that has any, so that the free scale is gone."""
    positive = np.flatnonzero(examination > 0)
    return examination / examination[positive[0]] if len(positive) else examination


def _scale(examination: Floats, linked: NDArray[np.bool_], first: int) -> float:
    return float(examination[first]) if linked.any() and examination[first] > 0 else 1.0


def _propensities(
    examination: Floats, linked: NDArray[np.bool_], first: int, exposures: Whole, clicks: Whole
) -> Floats:
    """Propensities ``[positions]``: fitted where linked, else by click-through, else those of the place before."""
    rates = _quotient(clicks.astype(np.float64), exposures.astype(np.float64))
    by_rate = rates / rates[first] if rates[first] > 0 else np.ones(len(rates))
    propensity = np.where(linked, examination / _scale(examination, linked, first), by_rate)
    propensity[: first + 1] = 1.0
    for position in np.flatnonzero(exposures == 0):
        if position > first:
            propensity[position] = propensity[position - 1]
    return propensity


def _linked(counts: Counts, exposures: Whole) -> tuple[NDArray[np.bool_], int]:
    """The first position with exposures, and which positions are linked to it, ``[positions]``.

    Two positions are linked by a pair with clicks that was shown at both, and through others.
    """
    first = int(np.argmax(exposures > 0))
    linked = np.zeros(len(exposures), bool)
    linked[first] = exposures[first] > 0
    if counts.by_position(counts.clicks)[first] == 0:
        return linked, first
    follows = (counts.pair[1:] == counts.pair[:-1]) & (counts.by_pair(counts.clicks)[counts.pair[1:]] > 0)
    ends = np.unique(np.stack([counts.position[:-1][follows], counts.position[1:][follows]]), axis=1)
    known = 0
    while known < (known := int(linked.sum())):
        linked[ends[:, linked[ends].any(axis=0)].ravel()] = True
    return linked, first


def _curve(totals: Table) -> tuple[Whole, Whole]:
    """Exposures and clicks by position, ``[positions]``, one position where the log has none."""
    rows = position_table(totals).order_by("position").to_pyarrow()
    places = _whole(rows["position"])
    size = int(places.max(initial=0)) + 1
    exposures, clicks = np.zeros(size, np.int64), np.zeros(size, np.int64)
    exposures[places], clicks[places] = _whole(rows["exposures"]), _whole(rows["clicks"])
    return exposures, clicks


def _shown_at_several(totals: Table, with_clicks: bool) -> tuple[int, int, pa.Table]:
    """Pairs, pairs at several positions, and the rows of the latter in order.

    A pair without clicks has attraction 0 whatever the propensities, so ``with_clicks`` leaves it out.
    """
    keys = ["query", "item_id"]
    pairs = totals.group_by(keys).agg(places=totals.count(), pair_clicks=totals.clicks.sum())
    sizes = pairs.agg(seen=pairs.count(), several=(pairs.places > 1).cast("int64").sum().fill_null(0))
    size = sizes.to_pyarrow().to_pylist()[0]
    wanted = pairs.filter((pairs.places > 1) & ((pairs.pair_clicks > 0) | (not with_clicks)))
    rows = totals.semi_join(wanted, keys).order_by([*keys, "position"]).to_pyarrow()
    return int(size["seen"]), int(size["several"]), rows


def _arrays(rows: pa.Table, positions: int) -> tuple[Counts, pa.Table]:
    """Ordered rows as numbers, and the ``query, item_id`` of each pair number."""
    changes = np.ones(rows.num_rows, bool)
    if rows.num_rows > 1:
        names = [rows[name].combine_chunks() for name in ("query", "item_id")]
        other = [pc.not_equal(column[1:], column[:-1]) for column in names]
        changes[1:] = pc.or_(*other).to_numpy(zero_copy_only=False)
    counts = Counts(
        pair=np.cumsum(changes) - 1,
        position=_whole(rows["position"]),
        exposures=_whole(rows["exposures"]).astype(np.float64),
        clicks=_whole(rows["clicks"]).astype(np.float64),
        pairs=int(changes.sum()),
        positions=positions,
    )
    return counts, rows.select(["query", "item_id"]).filter(pa.array(changes))


def _warnings(
    linked: NDArray[np.bool_], exposures: Whole, seen: int, several: int, fit: Fit, config: PositionConfig
) -> list[str]:
    shown = int((exposures > 0).sum())
    found = []
    if shown > linked.sum():
        found.append(
            f"propensities of {shown - int(linked.sum())} of {shown} positions are not identified: {several:,} of "
            f"{seen:,} pairs were shown at several positions, and none of them links these positions with the first; "
            "click-through rates over that of the first position stand in, which take what is shown there for the "
            "effect of the place; mine more days, or let the order of some pages vary"
        )
    if not fit.converged:
        found.append(
            f"the click model moved by more than {config.tolerance:g} in the last of {config.iterations} rounds; "
            f"allow more: --set positions.iterations={2 * config.iterations}"
        )
    return found


def _over_weights(placed: Table, expected: str, ratio: str) -> Table:
    """Clicks by pair over the sum of exposures times their ``weight``, which is in billionths."""
    sums = placed.group_by(["query", "item_id"]).agg(
        exposures=placed.exposures.sum(),
        clicks=placed.clicks.sum(),
        billionths=(placed.exposures * placed.weight).sum(),
    )
    sums = sums.mutate(weighed=sums.billionths.cast("float64") / BILLION)
    return sums.select(
        "query",
        "item_id",
        "exposures",
        "clicks",
        sums.weighed.name(expected),
        (sums.clicks.cast("float64") / sums.weighed.nullif(0.0)).name(ratio),
    )


def _billionths(rate: ibis.Value) -> ibis.Value:
    return (rate * BILLION + 0.5).floor().cast("int64")


def _whole(column: pa.ChunkedArray) -> Whole:
    return np.asarray(column.to_numpy(), dtype=np.int64)


def _quotient(above: Floats, below: Floats) -> Floats:
    """``above / below``, 0 where ``below`` is."""
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0)


def _log_terms(counts: Floats, chance: Floats) -> float:
    """The sum of ``counts * log(chance)``, where a count of 0 adds nothing."""
    with np.errstate(divide="ignore"):
        logs = np.log(np.maximum(chance, 0.0))
    return float(np.sum(np.multiply(counts, logs, out=np.zeros_like(logs), where=counts > 0)))
