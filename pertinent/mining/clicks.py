"""Clicked pairs: how deep users went with an item, copies by depth, and the frequent ones.

ei-SRC, section 3.1: a pair counts by the deepest thing that happened to it, not by how often; deeper
pairs are seen more often in training; the most clicked eighth is kept for fine-tuning.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import ibis
from pydantic import Field

from pertinent.config import Config
from pertinent.mining.hotpairs import top_share
from pertinent.mining.schema import CLICK, DAILY, require

if TYPE_CHECKING:
    from ibis import Table

Count = Annotated[int, Field(ge=0, le=1000)]


class ClickConfig(Config):
    """Which clicked pairs are written: those of the last ``days`` days, and each how often.

    ``copies`` are those of click, cart, contact, order and pay; 0 leaves a level out. ``form`` says
    whether a pair is one row with its number of ``copies``, or that many ``rows``. ``frequent_share``
    is the share of clicked pairs, by clicks, that is kept as the frequent ones.
    """

    days: int = Field(365, ge=1)
    copies: tuple[Count, Count, Count, Count, Count] = (1, 1, 2, 3, 5)
    form: Literal["copies", "rows"] = "copies"
    frequent_share: float = Field(0.125, gt=0, le=1)


def deepest_levels(daily: Table) -> Table:
    """One row a pair with the deepest level it reached: ``query, item_id, level, exposures, clicks``.

    ``daily`` is `schema.DAILY`, cut to the days of the window. Pairs that were only shown have level 0.
    Doing the same thing twice changes ``clicks`` (result pages), not the level.
    """
    require(daily, DAILY, "deepest_levels")
    return daily.group_by(["query", "item_id"]).agg(
        level=daily.deepest.max(), exposures=daily.exposures.sum(), clicks=daily.clicks.sum()
    )


def resampled(pairs: Table, copies: Sequence[int]) -> Table:
    """``pairs`` with a column ``copies`` (int64): how often each is to be seen, by its ``level``.

    ``copies`` has five numbers, for click to pay; a pair that was only shown gets 0.
    """
    first, *others = [(CLICK + place, number) for place, number in enumerate(copies)]
    return pairs.mutate(copies=pairs.level.cases(first, *others, else_=0).cast("int64"))


def repeated(pairs: Table, copies: Sequence[int]) -> Table:
    """Each row of ``pairs`` as often as its ``copies`` say, numbered by ``copy`` from 0 (int64).

    ``pairs`` is from `resampled` with the same ``copies``; rows with 0 copies are left out.
    """
    numbers = [(number, copy) for number in sorted({*copies}) for copy in range(number)]
    columns = {"copies": [number for number, _ in numbers], "copy": [copy for _, copy in numbers]}
    return pairs.join(ibis.memtable(columns, schema={"copies": "int64", "copy": "int64"}), "copies")


def frequent_pairs(pairs: Table, share: float) -> Table:
    """The most clicked ``share`` of the clicked pairs, rounded up, with ``rank`` from 0 (int64).

    ``pairs`` has one row a pair, as `deepest_levels` gives. Equal clicks are in the order of query and
    item id.
    """
    return top_share(pairs, "clicks", ["query", "item_id"], share)


def level_counts(pairs: Table) -> Table:
    """Pairs before and after re-sampling by level: ``level, pairs, copies``. ``pairs`` is from `resampled`.

    Their sums are the two readings of "80 M pairs", which the paper does not tell apart.
    """
    return pairs.group_by("level").agg(pairs=pairs.count(), copies=pairs.copies.sum())
