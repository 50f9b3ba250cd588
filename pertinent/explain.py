"""Why an item was found: tokens, term classes, and which words of the query its title has."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from pertinent.config import Config
from pertinent.errors import ConfigError
from pertinent.lexicon.gazetteer import split_words
from pertinent.lexicon.shown import ExplainedText, explain_query, explain_title, tagger_of
from pertinent.records import Scored
from pertinent.text import normalize

if TYPE_CHECKING:
    from pertinent.engine.behavior import Spoken
    from pertinent.engine.scorer import Scorer
    from pertinent.lexicon.gazetteer import Words
    from pertinent.lexicon.pairs import PairTokenizer
    from pertinent.lexicon.tagger import Tagger
    from pertinent.records import Item

How = Literal["exact", "form", "none"]
_INNER = re.compile(r"[-_]+")
# A number with a unit, as in 2.5m; an ordinal (1st) and 3d are none.
_MEASURED = re.compile(r"(\d+(?:[.,]\d+)*)((?!(?:st|nd|rd|th|d)$)[^\W\d_]+|[\"″%°])")
_POSSESSIVE = re.compile(r"['’]s$")


class ExplainConfig(Config):
    """Settings of ``pertinent explain``."""

    query: str
    items: str
    top: int = Field(3, ge=1)
    model: str | None = None
    lexicon: str | None = None
    backend: str | None = None
    threads: int | None = Field(None, ge=1)
    columns: dict[str, str] = {}
    behavior: str | None = None


@dataclass(frozen=True, slots=True)
class WordMatch:
    """A word of the query, the word of the title that it met, and how: the same word, another form, none."""

    word: str
    how: How
    title_word: str | None


@dataclass(frozen=True, slots=True)
class ExplainedItem:
    """An item, its score, its title as it was read, and where the query's words are in it."""

    rank: int
    item_id: str
    title: str
    score: float
    read: ExplainedText
    matches: tuple[WordMatch, ...]
    spoken: Spoken | None = None


@dataclass(frozen=True, slots=True)
class Explanation:
    """A query and its best items, explained."""

    query: ExplainedText
    model: str
    version: str
    items: int
    results: tuple[ExplainedItem, ...]

    def plain(self) -> dict[str, Any]:
        """JSON-able values."""
        return asdict(self)


def explain(config: ExplainConfig) -> Explanation:
    """Query and best items of a catalog with tokens, term classes, matched words and scores."""
    from pertinent.data.readers import read_items
    from pertinent.engine.scorer import Scorer

    if not config.query.strip():
        raise ConfigError("the query is empty; give what a shopper would type")
    if config.behavior is not None and config.model is None:
        raise ConfigError("--behavior was made with a model; name its folder too")
    scorer = Scorer.load(config.model, backend=config.backend, threads=config.threads)
    items = read_items(Path(config.items), rename=config.columns)
    ranked, spoken = _ranked(config, scorer, items)
    tagger = _tagger(config.lexicon, scorer.pairs)
    pairs = scorer.pairs
    results = []
    for rank, scored in enumerate(ranked, start=1):
        title = scored.item.title
        read = explain_title(title, pairs, tagger)
        found = word_matches(config.query, title)
        said = spoken(scored) if spoken is not None else None
        results.append(ExplainedItem(rank, scored.item.item_id, title, scored.score, read, tuple(found), said))
    query = explain_query(config.query, pairs, tagger)
    return Explanation(query, scorer.name, scorer.version, len(items), tuple(results))


def _ranked(
    config: ExplainConfig, scorer: Scorer, items: Sequence[Item]
) -> tuple[list[Scored], Callable[[Scored], Spoken] | None]:
    """The best items, and with a behavior artifact what says which neighbors spoke for one."""
    if config.behavior is None:
        return scorer.rank(config.query, items, top=config.top), None
    from pertinent.engine.behavior import BehaviorScorer

    cascade = BehaviorScorer.load(str(config.model), config.behavior, scorer=scorer)
    titles = [item.title for item in items]
    found = cascade.score(config.query, [item.item_id for item in items], titles)
    best = sorted(range(len(items)), key=lambda row: -found.scores[row])[: config.top]
    ranked = [Scored(items[row], float(found.scores[row]), found.scorers[row]) for row in best]
    return ranked, lambda scored: cascade.explain(config.query, scored.item.item_id, scored.item.title)


def word_matches(query: str, title: str) -> list[WordMatch]:
    """Each word of a query with the first word of the title that is equal, or else another form of it.

    Hyphens, and the gap between a number and its unit, hide no word: `usb c` is in `USB-C`, `2m` in `2 m`.

    >>> [(m.word, m.how, m.title_word) for m in word_matches("tshirts for corn", "Runner's T-Shirt, for the corner")]
    [('tshirts', 'form', 't-shirt'), ('for', 'exact', 'for'), ('corn', 'none', None)]
    >>> [(m.word, m.how, m.title_word) for m in word_matches("usb c 2m", "USB-C cables 2 m")]
    [('usb', 'exact', 'usb-c'), ('c', 'exact', 'usb-c'), ('2m', 'exact', '2 m')]
    """
    there = split_words(normalize(title))
    parts = [(number, part) for number, word in enumerate(there.texts) for part in word_parts(word)]
    return [_match(word, there, parts) for word in split_words(normalize(query)).texts]


def word_parts(word: str) -> list[str]:
    """A word split at hyphens and underscores, and between a number and its unit.

    >>> [word_parts(word) for word in ["usb-c", "2.5m", '15.6"', "1,000mah", "mp3", "4x6", "3d", "1st"]]
    [['usb', 'c'], ['2.5', 'm'], ['15.6', '"'], ['1,000', 'mah'], ['mp3'], ['4x6'], ['3d'], ['1st']]
    """
    parts: list[str] = []
    for piece in _INNER.split(word):
        measured = _MEASURED.fullmatch(piece)
        parts += measured.groups() if measured else [piece] if piece else []
    return parts or [word]


def _match(word: str, there: Words, parts: Sequence[tuple[int, str]]) -> WordMatch:
    """Where a word of the query is in the title, whose words are ``there`` and whose ``parts`` know their word."""
    if word in there.texts:
        return WordMatch(word, "exact", word)
    wanted = word_parts(word)
    if (met := _run(wanted, there, parts, operator.eq)) is not None:
        return WordMatch(word, "exact", met)
    form = next((other for other in there.texts if are_forms(word, other)), None)
    form = form or _run(wanted, there, parts, are_forms)
    return WordMatch(word, "form" if form else "none", form)


def _run(
    wanted: Sequence[str], there: Words, parts: Sequence[tuple[int, str]], equal: Callable[[str, str], bool]
) -> str | None:
    """The words of the title whose parts, one after the other with no comma between, are those wanted."""
    for start in range(len(parts) - len(wanted) + 1):
        run = parts[start : start + len(wanted)]
        if all(equal(one, other) for one, (_, other) in zip(wanted, run, strict=True)):
            first, last = run[0][0], run[-1][0]
            if all(there.joined[first + 1 : last + 1]):
                return " ".join(there.texts[first : last + 1])
    return None


def are_forms(one: str, other: str) -> bool:
    """Whether two words are the same English word: equal, or one is the other with s, es, ies, ed, d or ing.

    Hyphens and a possessive 's do not count. Words with digits or other letters have no forms.

    >>> [are_forms(*pair.split()) for pair in ["mugs mug", "batteries battery", "running run", "charging charge"]]
    [True, True, True, True]
    >>> [are_forms(*pair.split()) for pair in ["corner corn", "water wat", "12v 12", "brass bras"]]
    [False, False, False, False]
    """
    plain = [_POSSESSIVE.sub("", word).replace("-", "") for word in (one, other)]
    if not all(word.isascii() and word.isalpha() for word in plain):
        return one == other
    shorter, longer = sorted(plain, key=len)
    return shorter == longer or longer in _longer_forms(shorter)


def _longer_forms(word: str) -> set[str]:
    """A word with each ending that it may take, by the regular English rules of spelling."""
    vowels = [letter in "aeiou" for letter in word]
    if len(word) < 3:
        return {f"{word}s"} if len(word) == 2 and not any(vowels) else set()  # tvs
    forms = {f"{word}ing"}
    if word.endswith(("s", "x", "z", "ch", "sh", "o")):
        forms.add(f"{word}es")
    if not word.endswith("s"):
        forms.add(f"{word}s")
    if word[-1] == "y" and not vowels[-2]:
        forms.add(f"{word[:-1]}ies")
    if word[-1] != "e":
        forms.add(f"{word}ed")
    elif len(word) > 3 and not vowels[-2]:
        forms |= {f"{word}d", f"{word[:-1]}ing"}
    if vowels[-3:] == [False, True, False] and word[-1] not in "wxy":
        forms |= {f"{word}{word[-1]}ing", f"{word}{word[-1]}ed"}
    return forms


def _tagger(lexicon: str | None, pairs: PairTokenizer) -> Tagger:
    """The tagger of the lexicon named, else the model's own, else the one that comes with pertinent."""
    if lexicon is not None:
        from pertinent.lexicon.store import Lexicon

        return Lexicon.load(lexicon).tagger
    return tagger_of(pairs)
