"""The most frequent queries and pairs of the last months: what caches hold (ei-SRC, section 12).

Frequencies are whole numbers and so is the cut: a share of n rows is that many rows rounded up, and
of rows with equal frequency those with the smaller ids come first, on every engine.
"""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Literal

import ibis
from pydantic import Field

from pertinent.config import Config
from pertinent.mining.daily import keep_days
from pertinent.mining.neighbors import share as exact
from pertinent.mining.schema import DAILY, DAILY_SEARCHES, require

if TYPE_CHECKING:
    from ibis import Table

Frequency = Literal["exposures", "clicks"]


class HotConfig(Config):
    """The ``share`` of queries and of pairs that are hot: those most frequent in the last ``days`` days.

    Queries are ordered by searches, pairs by ``by``: exposures are how often a pair needs a score,
    clicks how often it was chosen.
    """

    days: int = Field(182, ge=1)
    share: float = Field(0.2, gt=0, le=1)
    by: Frequency = "exposures"


def hot_queries(searches: Table, until_day: int, days: int, share: float) -> Table:
    """The most searched queries of the ``days`` days before ``until_day``: ``query, rank, searches, clicks``.

    ``searches`` is `schema.DAILY_SEARCHES`. ``rank`` is from 0; equal ones are in the order of their text.
    """
    require(searches, DAILY_SEARCHES, "hot_queries")
    window = keep_days(searches, until_day, days)
    totals = window.group_by("query").agg(searches=window.searches.sum(), clicks=window.clicks.sum())
    top = top_share(totals, "searches", ["query"], share)
    return top.select("query", "rank", "searches", "clicks")


def hot_pairs(daily: Table, until_day: int, days: int, share: float, by: Frequency) -> Table:
    """The most frequent pairs of the ``days`` days before ``until_day``.

    ``query, item_id, rank, exposures, clicks``, from `schema.DAILY`. The share is one of the pairs
    with at least one exposure (or click, where ``by`` says so) in these days.
    """
    require(daily, DAILY, "hot_pairs")
    window = keep_days(daily, until_day, days)
    totals = window.group_by(["query", "item_id"]).agg(exposures=window.exposures.sum(), clicks=window.clicks.sum())
    top = top_share(totals, by, ["query", "item_id"], share)
    return top.select("query", "item_id", "rank", "exposures", "clicks")


def top_share(table: Table, by: str, keys: list[str], share: float) -> Table:
    """The rows of ``table`` with the greatest ``by``, with their ``rank`` from 0 (int64).

    Rows where ``by`` is 0 are not counted. Of n rows ``share * n`` rounded up are kept; rows of equal
    ``by`` are in the order of ``keys``, which must name a row.
    """
    fraction = exact(share)
    counted = table.filter(table[by] > 0)
    above = _with_those_above(counted, by)
    # Rows below the border need no place, and are most of a log.
    near = above.filter(_inside(above.rows_above, above.all_rows, fraction))
    ranked = _placed(near, by, keys)
    kept = ranked.filter(_inside(ranked["rank"], ranked.all_rows, fraction))
    return kept.drop("all_rows", "all_weight", "weight_before")


def with_places(table: Table, by: str, keys: list[str]) -> Table:
    """``table`` with each row's place in the order of ``by``, greatest first, equal ones by ``keys``.

    Adds, as int64, ``rank`` (from 0), ``weight_before`` (the sum of ``by`` over the rows in front),
    ``all_rows`` and ``all_weight``.
    """
    return _placed(_with_those_above(table, by), by, keys)


def _with_those_above(table: Table, by: str) -> Table:
    """Adds rows and weight of greater ``by``, and of all.

    They come from a small table of distinct frequencies, so that only rows of equal frequency are ever
    sorted, and no engine must sort all rows in one place.
    """
    sizes = table.group_by(by).agg(same=table.count().cast("int64"))
    sizes = sizes.mutate(weight=sizes[by].cast("int64") * sizes.same)
    above = ibis.cumulative_window(order_by=sizes[by].desc())
    everything = ibis.window()
    sizes = sizes.mutate(
        rows_above=sizes.same.sum().over(above) - sizes.same,
        weight_above=sizes.weight.sum().over(above) - sizes.weight,
        all_rows=sizes.same.sum().over(everything),
        all_weight=sizes.weight.sum().over(everything),
    )
    return table.join(sizes.drop("same", "weight"), by)


def _placed(above: Table, by: str, keys: list[str]) -> Table:
    number = ibis.row_number().over(ibis.window(group_by=by, order_by=[above[key].asc() for key in keys]))
    numbered = above.mutate(number_among_equals=number)
    return numbered.mutate(
        rank=numbered.rows_above + numbered.number_among_equals,
        weight_before=numbered.weight_above + numbered.number_among_equals * numbered[by],
    ).drop("rows_above", "weight_above", "number_among_equals")


def _inside(place: ibis.Value, total: ibis.Value, fraction: Fraction) -> ibis.Value:
    """Whether a place from 0 is among the first ``fraction`` of ``total``, rounded up."""
    return place * fraction.denominator < total * fraction.numerator
