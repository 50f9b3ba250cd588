"""Pairs for a teacher to label: queries of the log, and items of every kind for each of them.

The recipe is that of the specification of LLM distillation, section 4: the tail gets its share of the
queries, items come from several sources so that margins are spread, and no query of an evaluation set
takes part. Nothing is drawn by an engine's own chance: draws follow the MD5 of seed and text.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import TYPE_CHECKING

import ibis
from pydantic import Field

from pertinent.config import Config
from pertinent.mining.schema import DAILY, require
from pertinent.text import normalize

if TYPE_CHECKING:
    from ibis import Table

UNLABELED = ("query", "item_id", "segment", "weight", "source")
PAIR = ("query", "item_id")
_RUN = re.compile(r"[^\W_]+")
# Of Latin, Greek and Cyrillic letters; marks of other scripts make other letters.
_ACCENTS = re.compile("[\u0300-\u036f]+")


class UnlabeledConfig(Config):
    """How many queries of each segment are drawn, and how many items of each source a query gets at most.

    Of the last ``days`` days. ``clicked`` items were clicked for the query; ``shown`` ones were not,
    and stood above position ``deep_position`` on average; ``deep`` ones were not, and stood there or
    below; ``other`` ones were shown for other queries only. Positions are from 0.
    """

    days: int = Field(182, ge=1)
    head: int = Field(3000, ge=0)
    torso: int = Field(3000, ge=0)
    tail: int = Field(4000, ge=0)
    clicked: int = Field(6, ge=0)
    shown: int = Field(6, ge=0)
    deep: int = Field(4, ge=0)
    other: int = Field(4, ge=0)
    deep_position: int = Field(10, ge=1)
    seed: int = 0


def unlabeled_pairs(daily: Table, volumes: Table, judged: Iterable[str], config: UnlabeledConfig) -> Table:
    """Pairs to be labeled, one row a pair: ``query, item_id, segment, weight, source``.

    ``daily`` is `schema.DAILY` and ``volumes`` is from `query_volumes`, both of the window. No query of
    ``judged`` is among them, nor one of the same words (see `word_bag`). ``weight`` is how many queries of
    its segment a drawn one stands for.
    """
    require(daily, DAILY, "unlabeled_pairs")
    drawn = drawn_queries(volumes.anti_join(same_words(volumes, judged), "query"), config)
    # The few that are drawn are fetched, so that no engine draws again for each use of them.
    queries = ibis.memtable(drawn.order_by("number").to_pyarrow(), schema=drawn.schema())
    return ibis.union(_shown(daily, queries, config), _of_others(daily, queries, config)).select(*UNLABELED)


def drawn_queries(volumes: Table, config: UnlabeledConfig) -> Table:
    """The drawn queries of each segment: ``query, segment, weight, number``; numbers are in the order of their MD5.

    A segment with fewer queries than asked for gives all it has, and its share goes to no other.
    """
    shares = ibis.cases(
        (volumes.segment == "head", config.head), (volumes.segment == "torso", config.torso), else_=config.tail
    )
    inside = ibis.window(group_by="segment")
    placed = volumes.filter(volumes["query"] != "").mutate(mark=_mark(config.seed, volumes["query"]), most=shares)
    placed = placed.mutate(
        place=ibis.row_number().over(ibis.window(group_by="segment", order_by=[placed.mark, placed["query"]])),
        size=placed.count().over(inside),
    )
    drawn = placed.filter(placed.place < placed.most)
    count = ibis.least(drawn["size"], drawn.most.cast("int64"))
    weight = drawn["size"].cast("float64") / count.cast("float64")
    return drawn.select("query", "segment", weight=weight, number=_number([drawn.mark, drawn["query"]]))


def same_words(queries: Table, judged: Iterable[str]) -> Table:
    """The distinct queries of a table (``query``) that have the same words as one of ``judged``.

    It is looked up outside of the engine, as words are what `word_bag` says.
    """
    bags = {word_bag(query) for query in judged}
    found: list[str] = []
    if bags:
        for batch in queries.select("query").distinct().to_pyarrow().to_batches():
            found += [query for query in batch.column("query").to_pylist() if word_bag(query) in bags]
    return ibis.memtable({"query": sorted(found)}, schema=ibis.schema({"query": "string"}))


def word_bag(query: str) -> str:
    """The words of a query, each once and in order of the alphabet; queries of the same bag ask the same.

    Words are runs of letters and digits without accents: hyphens and all other marks part them.

    >>> word_bag("Lamp, LED-LED") == word_bag("led lamp"), word_bag("Café USB-C"), word_bag("?!")
    (True, 'c cafe usb', '?!')
    """
    text = normalize(query)
    plain = unicodedata.normalize("NFC", _ACCENTS.sub("", unicodedata.normalize("NFD", text)))
    return " ".join(sorted({*_RUN.findall(plain)})) or text


def _shown(daily: Table, queries: Table, config: UnlabeledConfig) -> Table:
    """Up to the asked number of items of each source among those shown for a query."""
    own = daily.semi_join(queries, "query")
    pairs = own.group_by(list(PAIR)).agg(
        clicks=own.clicks.sum(), position_sum=own.position_sum.sum(), positioned=own.positioned.sum()
    )
    below = (pairs.positioned > 0) & (pairs.position_sum >= pairs.positioned * config.deep_position)
    source = ibis.cases((pairs.clicks > 0, "clicked"), (below, "deep"), else_="shown")
    sourced = pairs.mutate(source=source).join(queries, "query")
    key = sourced["query"] + "\n" + sourced.item_id
    marked = sourced.mutate(mark=_mark(config.seed, key))
    order = ibis.window(group_by=["query", "source"], order_by=[marked.mark, marked.item_id])
    numbered = marked.mutate(place=ibis.row_number().over(order))
    most = ibis.cases(
        (numbered.source == "clicked", config.clicked), (numbered.source == "deep", config.deep), else_=config.shown
    )
    return numbered.filter(numbered.place < most).select(*UNLABELED)


def _of_others(daily: Table, queries: Table, config: UnlabeledConfig) -> Table:
    """Up to ``config.other`` items that were shown for other queries only.

    Items stand in a ring in the order of their MD5, and each query takes the next few of it, so that
    all items are used about equally often and no query gets one twice.
    """
    items = daily.select("item_id").distinct()
    items = items.mutate(place=_number([_mark(config.seed, items.item_id), items.item_id]))
    size = items.agg(items=items.count().cast("int64"))
    steps = ibis.memtable({"step": list(range(config.other))}, schema=ibis.schema({"step": "int64"}))
    asked = queries.cross_join(steps).cross_join(size)
    asked = asked.filter(asked.step < asked["items"])
    asked = asked.mutate(place=(asked.number * config.other + asked.step) % asked["items"])
    taken = asked.join(items, "place").mutate(source=ibis.literal("other"))
    return taken.anti_join(daily.select(*PAIR), list(PAIR)).select(*UNLABELED)


def _number(order: list[ibis.Value]) -> ibis.Value:
    return ibis.row_number().over(ibis.window(order_by=order)).cast("int64")


def _mark(seed: int, text: ibis.Value) -> ibis.Value:
    """The MD5 of seed and text in hexadecimal digits: the same order on every engine."""
    return (ibis.literal(f"{seed}\n") + text).hexdigest("md5")
