"""Pure, seeded changes of a query or title with a known effect on the label.

Each takes a pair and gives the changed pair, or None where it does not apply. What is drawn depends
on the seed and the texts alone, so neither the order nor the number of pairs matters.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, NamedTuple

from pertinent.data.splits import bucket
from pertinent.records import Pair
from pertinent.text import normalize, words

if TYPE_CHECKING:
    from pertinent.lexicon.tagger import Tagger

# How many words are stacked or repeated; how common a stacked word is; how often a word of a compound must occur.
STACKED, REPEATED, TIMES = 5, 3, 2
POPULAR = 200
KNOWN = 3
SHORTEST_TYPO = 4
SHORTEST_HALF = 3
_COMMON = "with from your this that have will and for the set pack per inch size new all one two"
_STOP = frozenset(_COMMON.split())
_UNITS = r"v|w|a|mah|gb|tb|mb|mm|cm|m|inches|inch|in(?![ -]?\d)|ft|feet|oz|lbs|lb|kg|g|mg|ml|l|pack|pcs|count|ct|hz|mp"
_MEASURE = re.compile(rf"(?<![\w.])(\d+(?:\.\d+)?)([ -]?)({_UNITS})(?!\w)")
_SAME_UNIT = {"inches": "inch", "in": "inch", "lbs": "lb", "feet": "ft", "pcs": "count", "ct": "count"}
# Compounds that shoppers write both ways; a catalog's titles add their own.
_COMPOUNDS = """
    air pods, back pack, basket ball, blue tooth, book shelf, chrome book, desk top, ear buds, ear phones, fire stick,
    fit bit, foot ball, hand bag, hand bags, head phone, head phones, head set, key board, lap top, make up, micro wave,
    mouse pad, night stand, note book, paddle board, play station, rain coat, smart phone, smart watch, sun glasses,
    sweat shirt, tooth brush, tooth paste, touch screen, under wear, wall paper, water proof, white board
"""
_KEYS = dict(zip("qwertyuiopasdfghjklzxcvbnm", "wqretuyoipsafdhgkjlxzvcbmn", strict=True))


@dataclass(frozen=True)
class Surroundings:
    """What the changes draw from: the words of a catalog's titles, its brands, and who finds term classes."""

    titles: Sequence[str]
    brands: Sequence[str] = ()
    tagger: Tagger | None = field(default=None, compare=False)
    _terms: dict[str, list[tuple[int, int]]] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def counts(self) -> Counter[str]:
        """In how many distinct titles each word occurs."""
        return Counter(word for title in dict.fromkeys(self.titles) for word in set(words(title)))

    @cached_property
    def popular(self) -> list[str]:
        """The most common words of letters, from four on, the commonest first."""
        real = [(n, w) for w, n in self.counts.items() if len(w) >= 4 and w.isalpha() and w not in _STOP]
        return [word for _, word in sorted(real, key=lambda pair: (-pair[0], pair[1]))[:POPULAR]]

    @cached_property
    def brand_names(self) -> list[str]:
        """Distinct normalized brands, in order of the alphabet."""
        return sorted({name for brand in self.brands if (name := normalize(brand)) and len(name) > 1})

    @cached_property
    def brand_words(self) -> frozenset[str]:
        """The words of all brands."""
        return frozenset(word for name in self.brand_names for word in words(name))

    @cached_property
    def by_words(self) -> dict[str, str]:
        """The brands by their words, joined by blanks."""
        return {" ".join(words(name)): name for name in self.brand_names}

    @cached_property
    def compounds(self) -> dict[str, str]:
        """Words to their two halves: common ones, and those that titles write joined and apart, both often enough."""
        found = {first + second: f"{first} {second}" for first, second in map(str.split, _COMPOUNDS.split(","))}
        apart: Counter[tuple[str, str]] = Counter()
        for title in dict.fromkeys(self.titles):
            apart.update({pair for pair in pairwise(words(title)) if "".join(pair) in self.counts})
        for (first, second), number in sorted(apart.items()):
            plain = (first + second).isalpha() and min(len(first), len(second)) >= SHORTEST_HALF
            if plain and number >= KNOWN and self.counts[first + second] >= KNOWN and not {first, second} & _STOP:
                found.setdefault(first + second, f"{first} {second}")
        return found

    def terms(self, title: str) -> list[tuple[int, int]]:
        """Where the terms of a title stand, in characters of its normalized text; kept for the next change."""
        if self.tagger is None:
            return []
        if title not in self._terms:
            self._terms[title] = [(span.start, span.end) for span in self.tagger.tag(title)]
        return self._terms[title]


Change = Callable[[Pair, Surroundings, str], Pair | None]


class Perturbation(NamedTuple):
    """A change, its effect on the label, and in words what it does."""

    change: Change
    effect: Literal["keep", "flip"]
    text: str


def stack_keywords(pair: Pair, around: Surroundings, salt: str) -> Pair | None:
    """Five popular words that neither text has, at the end of the title.

    >>> around = Surroundings(["cotton socks", "leather boots", "cotton shirt"])
    >>> stack_keywords(Pair("mug", "red mug"), around, "0").title.startswith("red mug ")
    True
    """
    present = {*words(pair.query), *words(pair.title)}
    free = [word for word in around.popular if word not in present]
    chosen = _drawn(free, STACKED, salt + pair.query + pair.title)
    return pair._replace(title=" ".join([pair.title, *chosen])) if chosen else None


def repeat_keywords(pair: Pair, around: Surroundings, salt: str) -> Pair | None:
    """Three words of the title, twice more each at its end.

    >>> repeat_keywords(Pair("mug", "red mug"), Surroundings([]), "0").title.count("mug")
    3
    """
    own = [word for word in dict.fromkeys(words(pair.title)) if word not in _STOP and len(word) > 2]
    chosen = _drawn(own, REPEATED, salt + pair.query + pair.title)
    return pair._replace(title=" ".join([pair.title, *chosen * TIMES])) if chosen else None


def delete_words(pair: Pair, around: Surroundings, salt: str) -> Pair | None:
    """The title without half of its words that have no term class, are no brand and are not in the query."""
    if around.tagger is None:
        return None
    text = normalize(pair.title)
    kept = around.brand_words | set(words(pair.query))
    tagged = around.terms(pair.title)
    dropped = [
        match
        for match in re.finditer(r"\S+", text)
        if not any(first < match.end() and match.start() < last for first, last in tagged)
        and not kept & set(words(match.group()))
        and bucket(f"{pair.query}\n{pair.title}\n{match.start()}", salt) < 0.5
    ]
    rest = text
    for match in reversed(dropped):
        rest = rest[: match.start()] + rest[match.end() :]
    rest = normalize(rest)
    return pair._replace(title=rest) if dropped and rest else None


def mistype(pair: Pair, around: Surroundings, salt: str) -> Pair | None:
    """One typo in the longest word of the query: a letter left out, doubled, swapped, or of the next key.

    >>> mistype(Pair("headphones", "any"), Surroundings([]), "0").query != "headphones"
    True
    >>> mistype(Pair("tv", "any"), Surroundings([]), "0") is None
    True
    """
    query = normalize(pair.query)
    long = [word for word in words(query) if len(word) >= SHORTEST_TYPO and word.isalpha()]
    if not long:
        return None
    word = max(long, key=len)
    place = 1 + int(bucket(query, salt + "place") * (len(word) - 2))  # never the first letter
    letter, after = word[place], word[place + 1 :]
    kinds = [after, letter + letter + after, _KEYS.get(letter, "e") + after]
    if after and after[0] != letter:
        kinds.append(after[0] + letter + after[1:])
    wrong = word[:place] + kinds[int(bucket(query, salt + "kind") * len(kinds))]
    return pair._replace(query=query.replace(word, wrong, 1)) if wrong != word else None


def change_unit(pair: Pair, around: Surroundings, salt: str) -> Pair | None:
    """A measure that query and title share becomes another one in the title.

    >>> change_unit(Pair("12v battery", "Car Battery 12 V"), Surroundings([]), "0").title
    'car battery 24 v'
    >>> change_unit(Pair("battery", "Car Battery 12 V"), Surroundings([]), "0") is None
    True
    """
    asked = {_measure(match) for match in _MEASURE.finditer(normalize(pair.query))}
    text = normalize(pair.title)
    if not any(_measure(match) in asked for match in _MEASURE.finditer(text)):
        return None

    def other(match: re.Match[str]) -> str:
        return f"{float(match[1]) * 2 or 1:g}{match[2]}{match[3]}" if _measure(match) in asked else match[0]

    return pair._replace(title=_MEASURE.sub(other, text))


def _measure(match: re.Match[str]) -> tuple[float, str]:
    return float(match[1]), _SAME_UNIT.get(match[3], match[3])


def swap_brand(pair: Pair, around: Surroundings, salt: str) -> Pair | None:
    """The brand that a title begins with and its query asks for becomes another brand in the title.

    >>> around = Surroundings([], brands=["Sony", "Bose"])
    >>> swap_brand(Pair("sony headphones", "Sony WH-1000"), around, "0").title
    'bose wh-1000'
    >>> swap_brand(Pair("headphones", "Sony WH-1000"), around, "0") is None
    True
    """
    query, text = words(pair.query), normalize(pair.title)
    runs = {" ".join(query[a:b]) for a in range(len(query)) for b in range(a + 1, len(query) + 1)}
    shared = [around.by_words[run] for run in runs if run in around.by_words]
    brand = max((name for name in shared if re.match(re.escape(name) + r"(?!\w)", text)), key=len, default=None)
    others = [name for name in around.brand_names if name not in shared and name not in text]
    if brand is None or not others:
        return None
    new = others[int(bucket(pair.query + pair.title, salt) * len(others))]
    return pair._replace(title=re.sub(rf"(?<!\w){re.escape(brand)}(?!\w)", lambda _: new, text))


def join_or_split(pair: Pair, around: Surroundings, salt: str) -> Pair | None:
    """A compound of the query in its other form: `bluetooth` as `blue tooth`, `ear phones` as `earphones`.

    >>> join_or_split(Pair("bluetooth speaker", "any"), Surroundings([]), "0").query
    'blue tooth speaker'
    >>> join_or_split(Pair("blue tooth", "any"), Surroundings([]), "0").query
    'bluetooth'
    """
    query = normalize(pair.query)
    found = words(query)
    for first, second in pairwise(found):
        if around.compounds.get(first + second) == f"{first} {second}" in query:
            return pair._replace(query=query.replace(f"{first} {second}", first + second, 1))
    for word in found:
        if word in around.compounds:
            return pair._replace(query=query.replace(word, around.compounds[word], 1))
    return None


PERTURBATIONS: dict[str, Perturbation] = {
    "stacking": Perturbation(stack_keywords, "keep", "five popular unrelated words are added to the title"),
    "repetition": Perturbation(repeat_keywords, "keep", "three words of the title come twice more"),
    "deletion": Perturbation(delete_words, "keep", "half of the title's words without a term class are left out"),
    "typo": Perturbation(mistype, "keep", "one typo in the longest word of the query"),
    "compound": Perturbation(join_or_split, "keep", "a compound of the query is joined or split"),
    "unit": Perturbation(change_unit, "flip", "a measure that the query asks for is another one in the title"),
    "brand": Perturbation(swap_brand, "flip", "the brand that the query asks for is another one in the title"),
}


def _drawn(choices: Iterable[str], count: int, salt: str) -> list[str]:
    return sorted(choices, key=lambda word: bucket(word, salt))[:count]
