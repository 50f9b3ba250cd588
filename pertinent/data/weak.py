"""Weakly labeled pairs from what catalogs and labeled queries say: clusters, categories, attributes, query spans.

Nobody judged these pairs. A rule says why a pair is taken as relevant or not, and every pair names
its rule, so that each can be weighed or left out. Queries of judgments are never among them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from pydantic import Field, field_validator, model_validator

from pertinent.config import Config
from pertinent.data.files import write_csv
from pertinent.data.readers import read_table
from pertinent.data.tables import Table
from pertinent.errors import DataError
from pertinent.text import normalize, words

Cells = Mapping[str, str | None]
CORE_SPAN = "core_product_type"
CREATOR_SPAN = "creator"


class WeakPair(NamedTuple):
    """A pair with the grade that a rule gives it: 1 relevant, 0 not; ``rule`` is the rule's name."""

    query: str
    title: str
    grade: float
    rule: str


class WeakConfig(Config):
    """Settings of ``pertinent data weak``: tables to take pairs from, by rule, and where to write them.

    ``clusters`` are tables with ``title``, ``cluster_id``, ``cluster_title`` and, if there, ``category``;
    ``catalogs`` tables with ``title`` and the columns named in ``attributes`` (each entry one query of its
    values, such as ``[color, product_type]``) and ``categories``; ``spans`` tables with ``tokens`` and
    ``tags`` of queries, which are looked for in the titles of all tables. Queries of the tables in ``judged``
    are left out, whatever their split. At most ``limit`` relevant pairs a rule, ``negatives`` others for each.
    """

    clusters: tuple[str, ...] = ()
    catalogs: tuple[str, ...] = ()
    attributes: tuple[tuple[str, ...], ...] = (("brand", "product_type"), ("color", "product_type"))
    categories: tuple[str, ...] = ("product_type",)
    spans: tuple[str, ...] = ()
    judged: tuple[str, ...] = ()
    negatives: int = Field(1, ge=0, le=20)
    limit: int = Field(20_000, ge=1)
    seed: int = Field(0, ge=0)
    out: str = "weak.csv"

    @field_validator("clusters", "catalogs", "categories", "spans", "judged", mode="before")
    @classmethod
    def _one_is_a_list_of_one(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _some_tables(self) -> Self:
        if not (self.clusters or self.catalogs):
            raise ValueError("give tables with titles: --clusters, --catalogs (the settings of these names) or both")
        return self


@dataclass(frozen=True, slots=True)
class WeakTable:
    """Where the pairs were written, and how many of each rule and grade, as a table to print."""

    path: Path
    rows: list[dict[str, Any]]
    left_out: int

    def plain(self) -> dict[str, Any]:
        """JSON-able."""
        return {"path": str(self.path), "rules": self.rows, "left_out": self.left_out}


def weak(config: WeakConfig) -> WeakTable:
    """A table ``query, title, grade, rule`` of weakly labeled pairs, for ``examples`` of a training.

    Raises DataError where a table lacks a column, or no rule finds a pair.
    """
    judged = {normalize(q) for path in config.judged for q in read_table(path).need_texts("query")}
    made: list[WeakPair] = []
    titles: list[str] = []
    chance = np.random.default_rng(config.seed)
    for path in config.clusters:
        rows = _cells(read_table(path), ("title", "cluster_id", "cluster_title"), ("category",))
        titles += [row["title"] or "" for row in rows]
        made += _limited(cluster_pairs(rows, config.negatives, chance), config.limit)
    for path in config.catalogs:
        table = read_table(path)
        named = (*config.categories, *(name for fields in config.attributes for name in fields))
        rows = _cells(table, ("title",), tuple(dict.fromkeys(named)))
        titles += [row["title"] or "" for row in rows]
        for name in config.categories:
            if table.has(name):
                made += _limited(category_pairs(rows, name, config.negatives, chance), config.limit)
        for fields in config.attributes:
            if all(table.has(name) for name in fields):
                made += _limited(attribute_pairs(rows, fields, config.negatives, chance), config.limit)
    distinct = list(dict.fromkeys(title for title in titles if title))
    for path in config.spans:
        queries = query_spans(read_table(path))
        made += _limited(span_pairs(queries, distinct, config.negatives, chance), config.limit)
    agreed = _consistent(made)
    kept = [pair for pair in agreed if normalize(pair.query) not in judged]
    if not kept:
        raise DataError("no rule found a pair", fix="check the columns named in attributes and categories")
    out = Path(config.out)
    write_csv(out, WeakPair._fields, kept)
    counts = defaultdict[str, list[int]](lambda: [0, 0])
    for pair in kept:
        counts[pair.rule][int(pair.grade)] += 1
    rows_out = [{"rule": rule, "relevant": yes, "not": no} for rule, (no, yes) in sorted(counts.items())]
    return WeakTable(out, rows_out, len(agreed) - len(kept))


def cluster_pairs(rows: Sequence[Cells], negatives: int, chance: np.random.Generator) -> Iterator[WeakPair]:
    """The name of a cluster with its members' titles, and with those of the nearest other clusters.

    The nearest are of the same category and share most words with the name, yet lack one of them:
    a title with all words of the name may be a member that was put elsewhere.

    >>> rows = [{"title": t, "cluster_id": c, "cluster_title": n, "category": "tv"} for t, c, n in
    ...         (("acme tv 40 black", "1", "Acme TV 40"), ("acme tv 50", "2", "Acme TV 50"))]
    >>> [tuple(pair)[:3] for pair in cluster_pairs(rows, 1, np.random.default_rng(0))][:2]
    [('Acme TV 40', 'acme tv 40 black', 1.0), ('Acme TV 40', 'acme tv 50', 0.0)]
    """
    found = _Words([row["title"] or "" for row in rows])
    for place in _shuffled(rows, chance):
        row = rows[place]
        query, title = row.get("cluster_title"), row["title"]
        if not query or not title:
            continue
        yield WeakPair(query, title, 1.0, "cluster")
        near = [
            other
            for other in found.nearest(query, 50)
            if rows[other]["cluster_id"] != row["cluster_id"] and rows[other].get("category") == row.get("category")
        ]
        others = [other for other in near if not found.has_all(other, query)][:negatives]
        yield from (WeakPair(query, rows[other]["title"] or "", 0.0, "cluster") for other in others)


def category_pairs(rows: Sequence[Cells], name: str, negatives: int, chance: np.random.Generator) -> Iterator[WeakPair]:
    """The name of a category with titles in it, and with titles of others that do not have its words.

    >>> rows = [{"title": "Acme lamp", "kind": "Lamps"}, {"title": "Acme sofa", "kind": "Sofas"}]
    >>> sorted(tuple(pair)[:3] for pair in category_pairs(rows, "kind", 1, np.random.default_rng(0)))[:2]
    [('Lamps', 'Acme lamp', 1.0), ('Lamps', 'Acme sofa', 0.0)]
    """
    found = _Words([row["title"] or "" for row in rows])
    for place in _shuffled(rows, chance):
        value, title = rows[place].get(name), rows[place]["title"]
        if not value or not title or not any(letter.isalpha() for letter in value):
            continue
        yield WeakPair(value, title, 1.0, f"category {name}")
        for other in _others(rows, negatives, chance, lambda at, value=value: _differs(rows[at].get(name), value)):
            if not found.has_all(other, value):
                yield WeakPair(value, rows[other]["title"] or "", 0.0, f"category {name}")


def attribute_pairs(
    rows: Sequence[Cells], fields: Sequence[str], negatives: int, chance: np.random.Generator
) -> Iterator[WeakPair]:
    """The values of some attributes with titles that state them, and with titles of items that lack one.

    A title is relevant where the item has the values *and* the title has their words. It is not where
    the item has another value of one field, the same of the others, and the title lacks the words.

    >>> rows = [{"title": f"{c} shirt", "color": c, "kind": "Shirts"} for c in ("red", "blue")]
    >>> pairs = attribute_pairs(rows, ("color", "kind"), 1, np.random.default_rng(2))
    >>> sorted(tuple(pair)[:3] for pair in pairs)[:2]
    [('blue shirts', 'blue shirt', 1.0), ('blue shirts', 'red shirt', 0.0)]
    """
    found = _Words([row["title"] or "" for row in rows])
    rule = "attributes " + " ".join(fields)
    alike: dict[tuple[int, tuple[str, ...]], list[int]] = defaultdict(list)
    for place, row in enumerate(rows):
        for left_out in range(len(fields)):
            alike[left_out, _values(row, [*fields[:left_out], *fields[left_out + 1 :]])].append(place)
    for place in _shuffled(rows, chance):
        row = rows[place]
        values = [row.get(name) for name in fields]
        query = " ".join(normalize(value) for value in values if value)
        if not all(values) or not found.has_all(place, query):
            continue
        yield WeakPair(query, row["title"] or "", 1.0, rule)
        drawn: dict[int, None] = {}
        for _ in range(_TRIES * negatives):  # some will not fit
            left_out = int(chance.integers(len(fields)))
            near = alike[left_out, _values(row, [*fields[:left_out], *fields[left_out + 1 :]])]
            other = near[int(chance.integers(len(near)))]
            value = values[left_out] or ""
            if _differs(rows[other].get(fields[left_out]), value) and not found.has_all(other, value):
                drawn.setdefault(other)
        yield from (WeakPair(query, rows[other]["title"] or "", 0.0, rule) for other in list(drawn)[:negatives])


def span_pairs(
    queries: Sequence[Sequence[tuple[str, str]]], titles: Sequence[str], negatives: int, chance: np.random.Generator
) -> Iterator[WeakPair]:
    """Queries cut into typed spans with titles that have all their words, and with titles that lack what matters.

    ``queries`` are spans (text, type). A title with a word of the query but none of its core product type
    is taken as one about another thing; it is drawn from all such titles, as the nearest ones often word
    the type in another way. One with the type but without the words of the creator is another maker's.

    >>> spans = [[("acme", "creator"), ("lamp", "core_product_type")]]
    >>> titles = ["acme desk lamp", "acme sofa", "other lamp"]
    >>> [(pair.title, pair.grade) for pair in span_pairs(spans, titles, 2, np.random.default_rng(0))]
    [('acme desk lamp', 1.0), ('other lamp', 0.0), ('acme sofa', 0.0)]
    """
    found = _Words(titles)
    for place in _shuffled(queries, chance):
        spans = queries[place]
        query = " ".join(text for text, _ in spans)
        core = " ".join(text for text, kind in spans if kind == CORE_SPAN)
        creator = " ".join(text for text, kind in spans if kind == CREATOR_SPAN)
        near = found.nearest(query, 30)
        whole = [title for title in near if found.has_all(title, query)]
        if not core or not whole:
            continue
        yield WeakPair(query, titles[whole[0]], 1.0, "spans")
        other_thing = found.drawn(stems(query) - stems(core), _TRIES * negatives, chance)
        other_thing = [title for title in other_thing if not found.has_any(title, core)]
        other_maker = [
            title for title in near if creator and found.has_all(title, core) and not found.has_any(title, creator)
        ]
        for title in [*other_maker[:1], *other_thing][:negatives]:
            yield WeakPair(query, titles[title], 0.0, "spans")


def query_spans(table: Table) -> list[list[tuple[str, str]]]:
    """The typed spans of each row of a table with ``tokens`` and BIO ``tags``; words outside have type ``""``."""
    return [_spans(t, g) for t, g in zip(table.column("tokens"), table.column("tags"), strict=True)]


def _spans(tokens: Sequence[str], tags: Sequence[str]) -> list[tuple[str, str]]:
    spans: list[tuple[str, str]] = []
    for token, tag in zip(tokens, tags, strict=True):
        begin, _, kind = str(tag).partition("-")
        if begin == "I" and spans and spans[-1][1] == kind:
            spans[-1] = (f"{spans[-1][0]} {token}", kind)
        else:
            spans.append((str(token), kind))
    return spans


class _Words:
    """Titles by their words; plural and singular count as one."""

    def __init__(self, titles: Sequence[str]) -> None:
        self.sets = [stems(title) for title in titles]
        self.places: dict[str, list[int]] = defaultdict(list)
        for place, own in enumerate(self.sets):
            for stem in own:
                self.places[stem].append(place)

    def has_all(self, place: int, text: str) -> bool:
        wanted = stems(text)
        return bool(wanted) and wanted <= self.sets[place]

    def has_any(self, place: int, text: str) -> bool:
        return not self.sets[place].isdisjoint(stems(text))

    def drawn(self, wanted: frozenset[str], number: int, chance: np.random.Generator) -> list[int]:
        """Titles at random that have one of some words, at most ``number``."""
        known = [self.places[stem] for stem in sorted(wanted) if stem in self.places]
        if not known:
            return []
        each = [known[int(chance.integers(len(known)))] for _ in range(number)]
        return list(dict.fromkeys(held[int(chance.integers(len(held)))] for held in each))

    def nearest(self, text: str, number: int) -> list[int]:
        """Titles that share most words with a text, rare words counting more; ties in their order."""
        scores = defaultdict[int, float](float)
        for stem in sorted(stems(text), key=lambda each: (len(self.places.get(each, ())), each)):
            held = self.places.get(stem, [])
            if len(held) > _COMMON and scores:
                held = [place for place in held if place in scores] if len(scores) < _COMMON else []
            for place in held[:_COMMON]:
                scores[place] += 1 / len(held)
        return sorted(scores, key=lambda place: (-scores[place], place))[:number]


_COMMON = 2_000  # places of a word that are looked at
_TRIES = 6  # draws for each negative


def stems(text: str) -> frozenset[str]:
    """The words of a text, plural and singular as one.

    >>> sorted(stems("Red SOCKS, gas"))
    ['gas', 'red', 'sock']
    """
    return frozenset(word[:-1] if len(word) > 3 and word.endswith("s") else word for word in words(text))


def _cells(table: Table, needed: Sequence[str], optional: Sequence[str]) -> list[dict[str, str | None]]:
    columns = {name: table.texts(name) for name in needed}
    columns |= {name: table.texts(name) for name in optional if table.has(name) and name not in columns}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _values(row: Cells, names: Iterable[str]) -> tuple[str, ...]:
    return tuple(normalize(row.get(name) or "") for name in names)


def _differs(value: str | None, other: str) -> bool:
    return bool(value) and normalize(value or "") != normalize(other)


def _others(rows: Sequence[Cells], number: int, chance: np.random.Generator, fits: Any) -> list[int]:
    drawn = chance.integers(0, len(rows), _TRIES * number)  # some of them will not fit
    return [place for place in dict.fromkeys(drawn.tolist()) if rows[place]["title"] and fits(place)][:number]


def _shuffled(rows: Sequence[Any], chance: np.random.Generator) -> list[int]:
    order: list[int] = chance.permutation(len(rows)).tolist()
    return order


def _limited(pairs: Iterable[WeakPair], limit: int) -> Iterator[WeakPair]:
    """Pairs up to ``limit`` relevant ones and what follows the last of them, each pair once."""
    relevant, seen = 0, set[tuple[str, str]]()
    for pair in pairs:
        if pair.grade and relevant == limit:
            return
        if (pair.query, pair.title) not in seen:
            seen.add((pair.query, pair.title))
            relevant += int(pair.grade)
            yield pair


def _consistent(pairs: Iterable[WeakPair]) -> list[WeakPair]:
    """Each pair once but for case and spacing; where two rules disagree it is relevant to neither."""
    first: dict[tuple[str, str], WeakPair] = {}
    torn = set()
    for pair in pairs:
        key = (normalize(pair.query), normalize(pair.title))
        if first.setdefault(key, pair).grade != pair.grade:
            torn.add(key)
    return [pair for key, pair in first.items() if key not in torn]
