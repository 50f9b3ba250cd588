"""Queries of the log: which are clear enough to learn from, and which are head, torso and tail.

Clarity is that of ei-SRC, section 3.1: at least two words and a core term. The paper's own example of a
query that fails, "sports shoes", has two words, so there are two readings and both are given.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import ibis
from pydantic import Field, model_validator

from pertinent.config import Config
from pertinent.lexicon.classes import TermSpan
from pertinent.mining.hotpairs import with_places
from pertinent.mining.neighbors import share as exact
from pertinent.mining.schema import DAILY_SEARCHES, require
from pertinent.text import words

if TYPE_CHECKING:
    from ibis import Table

Tag = Callable[[str], Sequence[TermSpan]]

CLARITY = {"query": "string", "terms": "int64", "clear_literal": "boolean", "clear": "boolean"}
# Words that join terms and are none: "for" in "dress for women".
GLUE = frozenset(["a", "an", "and", "at", "by", "for", "from", "in", "of", "on", "or", "the", "to", "with", "without"])
CORE = "core"
UNKNOWN = "none"


class ClarityConfig(Config):
    """When a query is clear: it has ``min_terms`` terms, a core term, and a term that modifies it.

    ``require_modifier: false`` is the paper to the letter, which counts words as they are written.
    A word without a class is a modifier, as "nike" in "nike shoes". With ``join_unknown`` such a word right
    beside a core term is a part of it, as "rack" in "shoe rack" where the tagger does not know it.
    """

    min_terms: int = Field(2, ge=1)
    require_core: bool = True
    require_modifier: bool = True
    join_unknown: bool = False


class QueryConfig(Config):
    """Segments of the queries of the last ``days`` days, by their share of searches.

    From the most frequent query on, ``head`` queries make up the share ``head`` of all searches, and
    with the ``torso`` queries the share ``torso``; the rest is ``tail``.
    """

    days: int = Field(365, ge=1)
    head: float = Field(0.5, ge=0, le=1)
    torso: float = Field(0.9, ge=0, le=1)

    @model_validator(mode="after")
    def _in_order(self) -> QueryConfig:
        if self.head > self.torso:
            raise ValueError(f"head must not be above torso ({self.torso}): both are counted from the most frequent")
        return self


class Term(NamedTuple):
    """A word, or the words that a tagger joined; ``term_class`` is ``none`` where it knows no class.

    ``apart`` says that a word such as "for" parts it from the term before.
    """

    start: int
    text: str
    term_class: str
    apart: bool = False


def clear_queries(queries: Table, tag: Tag, config: ClarityConfig) -> Table:
    """The clarity of each distinct query: ``query, terms, clear_literal, clear``.

    ``queries`` has a column ``query`` of normalized text. ``tag`` gives the terms of one query, as
    ``Tagger.tag`` does; it is called once a distinct query, in the order of their text, outside of the
    engine. ``terms`` counts terms after joining; ``clear`` is the reading that ``config`` asks for.
    """
    distinct = queries.select("query").distinct().order_by("query")
    columns: dict[str, list[object]] = {name: [] for name in CLARITY}
    for batch in distinct.to_pyarrow().to_batches():
        for query in batch.column("query").to_pylist():
            row = (query, *clarity(query, tag(query), config))
            for values, value in zip(columns.values(), row, strict=True):
                values.append(value)
    return ibis.memtable(columns, schema=ibis.schema(CLARITY))


def query_volumes(searches: Table, head: float, torso: float) -> Table:
    """How often each query is asked, and its segment: ``query, searches, clicks, share, segment``.

    ``searches`` is `schema.DAILY_SEARCHES`, cut to the days of the window. In the order of searches,
    equal ones by text, a query is ``head`` where the queries before it have less than the share ``head``
    of all searches, ``torso`` where they have less than ``torso``, and else ``tail``.
    """
    require(searches, DAILY_SEARCHES, "query_volumes")
    totals = searches.group_by("query").agg(searches=searches.searches.sum(), clicks=searches.clicks.sum())
    placed = with_places(totals, "searches", ["query"])
    shares = [("head", exact(head)), ("torso", exact(torso))]
    inside = [
        (placed.weight_before * border.denominator < placed.all_weight * border.numerator, name)
        for name, border in shares
    ]
    return placed.select(
        "query",
        "searches",
        "clicks",
        share=placed.searches.cast("float64") / placed.all_weight.cast("float64"),
        segment=ibis.cases(*inside, else_="tail"),
    )


def clarity(query: str, spans: Sequence[TermSpan], config: ClarityConfig) -> tuple[int, bool, bool]:
    """Terms of a query, whether it is clear to the letter of the paper, and whether it is as ``config`` says.

    >>> clarity("sports shoes", [TermSpan(0, 12, "core", "sports shoes", "gazetteer")], ClarityConfig())
    (1, True, False)
    >>> clarity("nike shoes", [TermSpan(5, 10, "core", "shoes", "gazetteer")], ClarityConfig())
    (2, True, True)
    """
    found = terms(query, spans)
    core = not config.require_core or any(term.term_class == CORE for term in found)
    literal = core and len(words(query)) >= config.min_terms
    if not config.require_modifier:
        return len(found), literal, literal
    modified = len(found) > len(head_terms(found, config.join_unknown))
    return len(found), literal, core and modified and len(found) >= config.min_terms


def terms(query: str, spans: Sequence[TermSpan]) -> list[Term]:
    """The terms of a normalized query in order: what the tagger found, and words beside it that mean something.

    >>> [term.text for term in terms("running shoes for men", [TermSpan(0, 13, "core", "running shoes", "gazetteer")])]
    ['running shoes', 'men']
    """
    found = [Term(span.start, span.text, span.term_class) for span in spans]
    glue, place = [], 0
    for word in words(query):
        place = query.index(word, place)
        end = place + len(word)
        if not any(span.start < end and place < span.end for span in spans):
            if word in GLUE:
                glue.append(place)
            else:
                found.append(Term(place, word, UNKNOWN))
        place = end
    ordered = sorted(found)
    before = [-1, *(term.start for term in ordered)]
    return [
        term._replace(apart=any(start < spot < term.start for spot in glue))
        for start, term in zip(before, ordered, strict=False)
    ]


def head_terms(found: Sequence[Term], join_unknown: bool) -> list[Term]:
    """The terms that only say what the thing is: the first core terms that stand together.

    One with a number in it, as "iphone 13" in "iphone 13 case", is a name and stands alone. With
    ``join_unknown`` also a word of letters on either side of them that has no class.

    >>> nouns = [Term(0, "nike", "none"), Term(5, "sports", "none"), Term(12, "shoes", "core")]
    >>> [term.text for term in head_terms(nouns, True)]
    ['sports', 'shoes']
    """
    core = [place for place, term in enumerate(found) if term.term_class == CORE]
    if not core:
        return []
    start = end = core[0]
    while end < len(found) and found[end].term_class == CORE and (end == start or _joined(*found[end - 1 : end + 1])):
        end += 1
    if join_unknown:
        start -= start > 0 and not found[start].apart and _unknown_word(found[start - 1])
        end += end < len(found) and not found[end].apart and _unknown_word(found[end])
    return list(found[start:end])


def _joined(first: Term, second: Term) -> bool:
    """Whether two core terms, one after the other, can be parts of one noun."""
    return not second.apart and not any(letter.isdigit() for letter in first.text + second.text)


def _unknown_word(term: Term) -> bool:
    return term.term_class == UNKNOWN and term.text.isalpha()
