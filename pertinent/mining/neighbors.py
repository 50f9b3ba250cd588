"""Behavior neighbors: the items that searchers of a query chose, and the queries that led to an item.

A pair must have been shown often enough and clicked often enough (ProRBP, section 3); each query keeps
its best items and each item its best queries. For a training example only earlier days count, and the
example's own pair is no neighbor of itself (BARL-ASe, section 3).
"""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Literal, NamedTuple

import ibis
from pydantic import Field, field_validator

from pertinent.config import Config
from pertinent.errors import ConfigError
from pertinent.mining.daily import keep_days
from pertinent.mining.schema import DAILY, require

if TYPE_CHECKING:
    from ibis import Table
    from ibis.expr.types import BooleanValue

Key = Literal["query", "item_id"]
OTHER: dict[Key, Key] = {"query": "item_id", "item_id": "query"}
# Shares are compared as whole numbers; more decimals than these would not fit beside large counts.
DECIMALS = 6
SEEN_SCALE = 1_000_000
# Lower limits to count pairs at, to advise whoever has a small log.
ADVISED_EXPOSURES = (50, 20, 10, 5, 2)


class NeighborConfig(Config):
    """Who is a neighbor: shown at least ``min_exposures`` times in ``days`` days, ``min_ctr`` of them clicked.

    ``by`` orders a list: by click-through rate, or by ``debiased`` click-through, which counts an
    exposure less the lower on the page it was. With ``exclude_target`` a training example's own pair is
    left out of its lists, and `neighbors` lists one more, so that ``keep`` remain; ranks below ``keep``
    are the list of who has no example. A log where fewer than ``warn_below`` of the asked queries get a
    neighbor is called small, with a warning.
    """

    days: int = Field(30, ge=1)
    min_exposures: int = Field(100, ge=1)
    min_ctr: float = Field(0.2, ge=0, le=1)
    keep: int = Field(20, ge=1)
    by: Literal["ctr", "debiased"] = "ctr"
    exclude_target: bool = True
    warn_below: float = Field(0.01, ge=0, le=1)

    @field_validator("min_ctr")
    @classmethod
    def _exact(cls, value: float) -> float:
        if share(value) != Fraction(repr(value)):
            raise ValueError(f"a share with at most {DECIMALS} decimals, so that the border is exact")
        return value


class Coverage(NamedTuple):
    """How many pairs, queries and items the window holds, and how many of them got a neighbor."""

    pairs: int
    kept: int
    queries: int
    queries_with: int
    items: int
    items_with: int
    kept_at: dict[int, int]  # pairs that would be kept with fewer exposures

    @property
    def share(self) -> float:
        """The share of queries with a neighbor; 0 where there is no query."""
        return self.queries_with / self.queries if self.queries else 0.0


def share(value: float) -> Fraction:
    """A decimal share as an exact fraction.

    >>> share(0.2)
    Fraction(1, 5)
    """
    return Fraction(repr(value)).limit_denominator(10**DECIMALS)


def neighbors(daily: Table, until_day: int, config: NeighborConfig, key: Key) -> Table:
    """The neighbor lists of each query or item: ``key, rank, neighbor, exposures, clicks, ctr, position_mean``.

    Only days before ``until_day`` count. ``rank`` is from 0, the strongest: by click-through rate, then
    exposures, then id. (Of two equal rates the one with more exposures has more clicks, so this is the
    order of both papers.) ``position_mean`` is null where no position is known. A list has at most
    ``keep``, and one more with ``exclude_target``. Raises ConfigError as `strong_pairs` does.
    """
    require(daily, DAILY, "neighbors")
    pairs = strong_pairs(keep_days(daily, until_day, config.days), config, ["query", "item_id"])
    named = pairs.rename({key: key, "neighbor": OTHER[key]})
    return _listed(named, [key], config.keep + config.exclude_target)


def neighbors_before(daily: Table, examples: Table, config: NeighborConfig) -> Table:
    """The lists that a training example may see, of both its query and its item.

    ``examples`` has ``query, item_id, day``. The result has these, ``side`` (``query``: neighbor items
    of the query; ``item_id``: neighbor queries of the item) and the columns of `neighbors`. Days from
    the example's on change nothing. The example's item is not among the neighbors of its query nor its
    query among those of its item, unless ``exclude_target`` is off; the next ones move up, so a list may
    still have ``keep``. Raises ConfigError as `strong_pairs` does, and where an order by debiased clicks
    would use propensities of the example's day or later ones.
    """
    require(daily, DAILY, "neighbors_before")
    examples = examples.select("query", "item_id", day=examples.day.cast("int32")).distinct()
    if config.by == "debiased" and "fitted_until" in daily.columns:
        _refuse_later_propensities(daily, examples)
    return ibis.union(_before(daily, examples, config, "query"), _before(daily, examples, config, "item_id"))


def exclude_target(lists: Table, pairs: Table, config: NeighborConfig, key: Key) -> Table:
    """For each of ``pairs`` (``query, item_id``) the list of its query or item, at most ``keep`` of it.

    ``lists`` is from `neighbors`. The pair itself is left out, unless ``exclude_target`` is off; the next
    ones move up and ranks are from 0 again.
    """
    wanted = pairs.select("query", "item_id").distinct()
    return _without_target(wanted.join(lists, key), ["query", "item_id"], config, key)


def strong_pairs(window: Table, config: NeighborConfig, keys: list[str]) -> Table:
    """The pairs of some days that pass the thresholds, exactly at the border.

    ``keys, exposures, clicks, ctr, position_mean, strength``. Raises ConfigError where they are to be
    ordered by debiased clicks and the days do not say how much was seen.
    """
    if config.by == "debiased" and "seen" not in window.columns:
        raise ConfigError(
            "neighbors.by=debiased needs a column 'seen' beside the counts by day; add it by with_seen(daily, "
            "daily_positions, propensities, until_day), with the tables by day of the mined artifact, or set "
            "neighbors.by=ctr"
        )
    pairs = _counted(window, keys)
    pairs = pairs.filter(_passes(pairs, config, config.min_exposures))
    ctr = pairs.clicks / pairs.exposures
    return pairs.select(
        *keys,
        "exposures",
        "clicks",
        ctr=ctr,
        position_mean=pairs.position_sum / pairs.positioned.nullif(0),
        strength=ctr if config.by == "ctr" else pairs.clicks * SEEN_SCALE / pairs.seen.nullif(0),
    )


def coverage(daily: Table, until_day: int, config: NeighborConfig) -> Coverage:
    """What the thresholds leave of the window, and what lower ones would."""
    pairs = _counted(keep_days(daily, until_day, config.days), ["query", "item_id"])
    kept = _passes(pairs, config, config.min_exposures)
    limits = [n for n in ADVISED_EXPOSURES if n < config.min_exposures]
    counts = pairs.agg(
        pairs=pairs.count(),
        kept=kept.sum(),
        queries=pairs["query"].nunique(),
        queries_with=pairs["query"].nunique(where=kept),
        items=pairs.item_id.nunique(),
        items_with=pairs.item_id.nunique(where=kept),
        **{f"at_{n}": _passes(pairs, config, n).sum() for n in limits},
    )
    row = {name: int(value or 0) for name, value in counts.to_pyarrow().to_pylist()[0].items()}
    found = {name: row[name] for name in Coverage._fields if name in row}
    return Coverage(**found, kept_at={n: row[f"at_{n}"] for n in limits})


def small_log_warning(found: Coverage, config: NeighborConfig) -> str | None:
    """A sentence that says how few pairs pass and which setting to change; None where enough do.

    >>> config = NeighborConfig()
    >>> small_log_warning(Coverage(900, 0, 40, 0, 300, 0, {10: 70}), config).partition(":")[0]
    'few neighbors'
    >>> small_log_warning(Coverage(900, 70, 40, 12, 300, 50, {}), config) is None
    True
    """
    if found.queries_with > 0 and found.share >= config.warn_below:
        return None
    if not found.pairs:
        return f"no neighbors: no item was shown for a query in the last {config.days} days"
    better = max(((n, kept) for n, kept in found.kept_at.items() if kept > found.kept), default=None)
    advice = (
        f"with neighbors.min_exposures={better[0]} it would be {better[1]:,} pairs instead of {found.kept:,}"
        if better is not None
        else "lower neighbors.min_exposures or neighbors.min_ctr, or mine more days"
    )
    return (
        f"few neighbors: of {found.pairs:,} pairs shown in the last {config.days} days, {found.kept:,} were shown "
        f"{config.min_exposures} times or more with a click-through of {config.min_ctr:g} or more, and "
        f"{found.queries_with:,} of {found.queries:,} queries have a neighbor; {advice}"
    )


def with_seen(daily: Table, daily_positions: Table, propensities: Table, until_day: int) -> Table:
    """``daily`` with a column ``seen``: exposures, each counted by how likely its place is looked at.

    ``propensities`` has ``position, propensity``, fitted on days before ``until_day``, which is kept as a
    column ``fitted_until``: `neighbors_before` gives no lists to examples of earlier days. ``seen`` is in
    millionths, as whole numbers, so that sums are the same on every engine. A place without a propensity,
    and an exposure without a place, count in full.
    """
    weights = propensities.select(
        "position", weight=(propensities.propensity * SEEN_SCALE).round().cast("int64").clip(lower=1)
    )
    keys = ["day", "query", "item_id"]
    placed = daily_positions.left_join(weights, "position")
    seen = placed.group_by(keys).agg(
        placed=placed.exposures.sum(), weighted=(placed.exposures * placed.weight.fill_null(SEEN_SCALE)).sum()
    )
    joined = daily.left_join(seen, keys)
    rest = joined.exposures - joined.placed.fill_null(0)
    fitted = ibis.literal(until_day, "int32")
    return joined.select(*daily.columns, seen=joined.weighted.fill_null(0) + rest * SEEN_SCALE, fitted_until=fitted)


def _refuse_later_propensities(daily: Table, examples: Table) -> None:
    """Raise ConfigError where an example is of a day that ``seen`` may have been weighed by."""
    first = examples.day.min().to_pyarrow().as_py()
    until = daily.fitted_until.max().to_pyarrow().as_py()
    if first is not None and until is not None and first < until:
        raise ConfigError(
            f"neighbors.by=debiased: the propensities were fitted on days up to {until - 1}, and examples are of day "
            f"{first} on, so their lists would know what came later; fit them on the days before (fit_position_model "
            f"on daily_positions before day {first}, then with_seen(..., until_day={first})), or set neighbors.by=ctr"
        )


def _counted(window: Table, keys: list[str]) -> Table:
    names = ["exposures", "clicks", "position_sum", "positioned", *(["seen"] if "seen" in window.columns else [])]
    return window.group_by(keys).agg(**{name: window[name].sum() for name in names})


def _passes(pairs: Table, config: NeighborConfig, min_exposures: int) -> BooleanValue:
    limit = share(config.min_ctr)
    rate = pairs.clicks * limit.denominator >= pairs.exposures * limit.numerator
    return (pairs.exposures >= min_exposures) & rate


def _before(daily: Table, examples: Table, config: NeighborConfig, key: Key) -> Table:
    other = OTHER[key]
    asked = examples.select(key, example_day="day").distinct()
    earlier = asked.join(
        daily,
        [
            asked[key] == daily[key],
            daily.day < asked.example_day,
            daily.day >= asked.example_day - config.days,
        ],
    )
    earlier = earlier.select("example_day", *(name for name in daily.columns if name != "day"))
    named = strong_pairs(earlier, config, ["example_day", "query", "item_id"]).rename({"neighbor": other})
    # One more than is kept, as the target may be among them.
    lists = _listed(named, ["example_day", key], config.keep + 1)
    joined = examples.join(lists, [examples.day == lists.example_day, examples[key] == lists[key]])
    ranked = _without_target(joined.drop("example_day"), ["query", "item_id", "day"], config, key)
    columns = ["rank", "neighbor", "exposures", "clicks", "ctr", "position_mean"]
    return ranked.select("query", "item_id", "day", ibis.literal(key).name("side"), *columns)


def _without_target(joined: Table, keys: list[str], config: NeighborConfig, key: Key) -> Table:
    """The lists of examples, ranked again without the example's own pair (if it is to be left out)."""
    if config.exclude_target:
        joined = joined.filter(joined.neighbor != joined[OTHER[key]])
    ranked = _ranked(joined, keys, joined["rank"].asc())
    return ranked.filter(ranked["rank"] < config.keep)


def _listed(named: Table, keys: list[str], keep: int) -> Table:
    # Quotients of two equal rates are the same float, and of two different ones not, below 60 million exposures.
    order = [named.strength.desc(nulls_first=False), named.exposures.desc(), named.neighbor.asc()]
    ranked = _ranked(named, keys, *order)
    columns = ["rank", "neighbor", "exposures", "clicks", "ctr", "position_mean"]
    return ranked.filter(ranked["rank"] < keep).select(*keys, *columns)


def _ranked(table: Table, keys: list[str], *order: ibis.Value) -> Table:
    window = ibis.window(group_by=keys, order_by=list(order))
    return table.mutate(rank=ibis.row_number().over(window).cast("int32"))
