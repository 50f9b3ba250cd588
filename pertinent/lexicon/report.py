"""What a lexicon does to texts, in numbers and as a page: tokens before and after, top words, term classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pertinent.charts import Axis, ridges, round_ticks
from pertinent.lexicon.classes import TERM_CLASSES, TermSpan
from pertinent.lexicon.terms import DomainWord
from pertinent.page import facts, page, section, table
from pertinent.text import words

if TYPE_CHECKING:
    from pertinent.lexicon.vocabulary import Subtokens

TOP = 20
# Longer titles share the last bar.
LONGEST_BAR = 60


def top_words(added: Sequence[DomainWord]) -> list[dict[str, Any]]:
    """The most frequent added words, as in Table 2 of ei-SRC."""
    return [{"word": each.word, "count": each.count, "pieces": list(each.pieces)} for each in added[:TOP]]


def histogram(counts: NDArray[np.int64]) -> list[int]:
    """How many texts have 0, 1, 2... tokens; the last place has those of ``LONGEST_BAR`` and more.

    >>> histogram(np.array([2, 2, 0]))[:4]
    [1, 0, 2, 0]
    """
    bars: list[int] = np.bincount(np.minimum(counts, LONGEST_BAR), minlength=LONGEST_BAR + 1).tolist()
    return bars


def class_coverage(texts: Sequence[str], tagged: Sequence[Sequence[TermSpan]]) -> dict[str, Any]:
    """For each term class the share of words in it, and the share of texts that have it."""
    inside = dict.fromkeys(TERM_CLASSES[1:], 0)
    having = dict.fromkeys(TERM_CLASSES[1:], 0)
    for spans in tagged:
        for span in spans:
            inside[span.term_class] += len(words(span.text))
        for name in {span.term_class for span in spans}:
            having[name] += 1
    total = max(1, sum(len(words(text)) for text in texts))
    return {
        "texts": len(texts),
        "words": {name: round(count / total, 4) for name, count in inside.items()},
        "texts_with": {name: round(count / max(1, len(texts)), 4) for name, count in having.items()},
    }


def subtoken_rows(report: Mapping[str, Subtokens]) -> dict[str, Any]:
    """The rows of Table 3 as JSON-able values."""
    return {name: row.plain() for name, row in report.items()}


def lexicon_page(numbers: Mapping[str, Any]) -> str:
    """The report page of a lexicon, from the numbers in ``subtokens.json``."""
    told = {
        "base tokenizer": str(numbers["base"]),
        "items": f"{numbers['items']:,}",
        "searches": f"{numbers['searches']:,}",
        "words added": f"{numbers['added']:,}",
    }
    body = [
        f"<header><h1>Lexicon</h1><p>Words that have a token of their own, and what that saves.</p>{facts(told)}"
        "</header>",
        section(
            "Tokens before and after",
            _subtoken_table("Averages over titles of the catalog, and pairs where some are given", numbers["all"]),
            _subtoken_table("Titles held out: words learned from the other titles", numbers["held_out"]),
            _histogram(numbers["histogram"]),
        ),
        section(f"The {len(numbers['top'])} most frequent words added", _top_table(numbers["top"])),
        section("Term classes", _class_table(numbers["classes"])),
    ]
    return page("Lexicon", body)


def _subtoken_table(caption: str, rows: Mapping[str, Any]) -> str:
    if not rows:
        return ""
    cells = [
        [
            escape(name),
            f"{row['texts']:,}",
            f"{row['words']:.2f}",
            f"{row['base']:.2f}",
            f"{row['extended']:.2f}",
            f"{row['saving']:.1%}",
        ]
        for name, row in rows.items()
    ]
    return table(caption, ["per", "measured", "words", "base", "extended", "saved"], cells)


def _histogram(counts: Mapping[str, Sequence[int]]) -> str:
    names = {"base": "base vocabulary", "extended": "extended vocabulary"}
    rows = [(names[kind], [count / max(1, sum(of)) for count in of]) for kind, of in counts.items()]
    axis = Axis(0, LONGEST_BAR + 1, f"tokens ({LONGEST_BAR}: that many or more)", round_ticks(0, LONGEST_BAR))
    return ridges("Tokens a title", "How many titles have so many tokens, control tokens left out.", axis, rows, 0)


def _top_table(top: Sequence[Mapping[str, Any]]) -> str:
    cells = [[escape(row["word"]), f"{row['count']:,}", escape(" ".join(row["pieces"]))] for row in top]
    return table("Words that the base tokenizer splits", ["word", "occurrences", "pieces before"], cells)


def _class_table(coverage: Mapping[str, Any]) -> str:
    cells = [[name, f"{share:.1%}", f"{coverage['texts_with'][name]:.1%}"] for name, share in coverage["words"].items()]
    return table(f"Over {coverage['texts']:,} titles", ["class", "words in it", "titles that have it"], cells)
