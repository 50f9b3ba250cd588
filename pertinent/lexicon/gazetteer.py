"""Terms by list and by rule: a catalog's own values, longest match first, and patterns of units and sizes.

Everything works on the words of the normalized text. A match never runs over a comma, a bracket or
another hard break.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any, NamedTuple, Self

from pydantic import Field, field_validator

from pertinent.config import Config
from pertinent.errors import ArtifactError
from pertinent.lexicon.classes import CLASS_IDS, TERM_CLASSES
from pertinent.records import Item
from pertinent.text import normalize

# Which class the values of a column or attribute name; the first pattern that fits decides.
COLUMN_CLASSES = {
    "brand": "none",
    "category": "core",
    "category_*": "core",
    "product_type": "core",
    "product_class": "core",
    "color*": "style",
    "colour*": "style",
    "*_color": "style",
    "*_colour": "style",
    "*_colours": "style",
    "finish*": "style",
    "flavo*": "style",
    "pattern": "style",
    "scent": "style",
    "shape": "style",
    "style": "style",
    "theme": "style",
    "material*": "material",
    "*_material": "material",
    "fabric*": "material",
    "age*": "usage",
    "component_for": "usage",
    "department": "usage",
    "gender": "usage",
    "market_segment": "usage",
    "occasion": "usage",
    "room*": "usage",
    "season": "usage",
    "sport*": "usage",
    "suitable_for": "usage",
    "usage": "usage",
    "battery_technology": "function",
    "closure*": "function",
    "connectivity*": "function",
    "connector*": "function",
    "feature*": "function",
    "function*": "function",
    "power_source": "function",
    "print_technology": "function",
    "technology": "function",
    "bus_type": "specification",
    "cable_standard": "specification",
    "*capacity": "specification",
    "dimensions": "specification",
    "display_resolution": "specification",
    "form_factor": "specification",
    "internal_memory_type": "specification",
    "memory_type": "specification",
    "pack_size": "specification",
    "package_type": "specification",
    "size": "specification",
}
# Values that say nothing of a thing.
EMPTY_VALUES = (
    "yes",
    "no",
    "n/a",
    "na",
    "none",
    "other",
    "others",
    "unknown",
    "not applicable",
    "not supported",
    "all",
)

# Bounded, so that no text makes words without end: what is kept of words would grow with them.
_WORD = re.compile(r"(\w{1,64}(?:['’-]\w{1,64}|(?<=\d)[.,/](?=\d)\w{1,64}){0,7}(?:(?<=\d)[\"″]|[%°])?)")
_SOFT_GAPS = frozenset((" ", "-", "/", " - ", " / ", "®", "™", "® ", "™ ", " & ", "+"))
_PARTS = re.compile(r"\s*[,;|•]\s*|\s+/\s+")

_UNITS = (
    "v|volts?|kw|w|watts?|wh|kwh|mah|ah|amps?|hz|khz|mhz|ghz|kb|mb|gb|tb|mbps|gbps|mp|megapixels?|bit|dpi|ppm|fps|rpm|"
    "psi|btu|cfm|hp|db|lumens?|inch|inches|feet|foot|ft|mm|cm|m|km|meters?|metres?|yds?|yards?|mil|miles?|ozs?|ounces?|"
    "lbs?|pounds?|g|grams?|kg|mg|mcg|iu|ml|l|liters?|litres?|gal|gallons?|qt|quarts?|pints?|cups?|gauge|awg|ga|k|p|"
    "karat|carats?|ct|ply|layers?|loads?|degrees?|months?|weeks?|days?|hours?|years?|sq|percent|port|ports|way|tier|"
    "speed|drawer|drawers|shelf|person|seater|blade|core"
)
_PACKS = "pack|packs|pk|pks|count|counts|pcs?|piece|pieces|pairs?|set|sets|box|boxes|bags?|rolls?|sheets?|units?|dozen"
_GLUED = re.compile(
    rf"\d+(?:[.,/]\d+)*-?(?:{_UNITS}|{_PACKS}|%|°|[\"″])|\d+(?:\.\d+)?(?:x\d+(?:\.\d+)?)+(?:mm|cm|m|in|ft)?|\d+/\d+"
)
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_UNIT = re.compile(_UNITS)
_PACK = re.compile(_PACKS)
_LETTER_SIZE = re.compile(r"xx?s|x{1,4}l|[2-6]xl|[2-6]t")
_MODEL_NUMBER = re.compile(r"(?=[a-z0-9-]*\d[a-z0-9-]*\d)(?=[a-z0-9-]*[a-z])[a-z0-9][a-z0-9-]{4,}")
_KINDS = {"x": "X", "by": "X", "in": "I", "of": "O", "size": "S", "s": "L", "m": "L", "l": "L", "fl": "F", "us": "A"}

# Rules over kinds of words, one character a word (see ``word_kind``).
_RULES = (
    (re.compile(r"NIN"), "function"),  # 3 in 1
    (
        re.compile(
            r"[NQ](?:X[NQ])+[UI]?"  # 8 x 10 inch
            r"|S[NLQZ]+"  # size 10
            r"|[NQ]LA"  # 8 m us
            r"|PO[NQ]"  # pack of 6
            r"|N(?:FU|[UPL])"  # 16 fl oz, 1.5 m, 2 pack
            r"|NI(?!N)"  # 10 in
            r"|Q|Z"  # 12v, 100%, xxl
        ),
        "specification",
    ),
)


class Words(NamedTuple):
    """The words of a normalized text: text, first and last character (exclusive) of each.

    ``joined`` says whether only a space or the like divides a word from the one before.
    """

    texts: list[str]
    starts: list[int]
    ends: list[int]
    joined: list[bool]


class Match(NamedTuple):
    """Words ``first`` to ``last`` (exclusive) as one term."""

    first: int
    last: int
    class_id: int
    source: str


class GazetteerConfig(Config):
    """How a gazetteer is learned from items.

    ``classes`` maps names of columns and attributes (with ``*``) to a term class, the first that
    fits decides; ``none`` leaves a column out. A value must be given by ``min_count`` items and
    stand in ``min_titles`` titles; one that stands for several classes belongs to the most
    frequent, and to none where that one has less than ``min_share`` of its items. ``max_words``
    bounds its length. ``plurals`` matches both forms of the last word, ``model_numbers`` takes
    words such as ``dv7-1211ea`` as specification.
    """

    classes: dict[str, str] = COLUMN_CLASSES
    min_count: int = Field(3, ge=1)
    min_titles: int = Field(2, ge=0)
    min_share: float = Field(0.6, ge=0, le=1)
    max_words: int = Field(4, ge=1, le=10)
    plurals: bool = True
    model_numbers: bool = False

    @field_validator("classes")
    @classmethod
    def _known(cls, classes: dict[str, str]) -> dict[str, str]:
        wrong = sorted({name for name in classes.values() if name not in CLASS_IDS})
        if wrong:
            raise ValueError(f"no term class {', '.join(wrong)}; allowed: {', '.join(TERM_CLASSES)}")
        return classes


class Gazetteer:
    """Known terms and their classes: ``entries`` maps a phrase to (class id, count)."""

    def __init__(self, entries: Mapping[str, tuple[int, int]], config: GazetteerConfig) -> None:
        self.config = config
        self.entries = dict(sorted(entries.items()))
        self._classes: dict[str, int] = {}
        self._longest: dict[str, int] = {}
        for phrase, (class_id, _) in self.entries.items():
            self._add(phrase, class_id)
        if config.plurals:
            # A form that is an entry of its own keeps its own class.
            for phrase, (class_id, _) in self.entries.items():
                for form in other_number(phrase):
                    if form not in self._classes:
                        self._add(form, class_id)

    def __len__(self) -> int:
        return len(self.entries)

    @classmethod
    def from_items(cls, items: Iterable[Item], config: GazetteerConfig | None = None) -> Self:
        """The terms that a catalog's categories and attributes name."""
        config = config or GazetteerConfig()
        counts: dict[str, Counter[int]] = defaultdict(Counter)
        titles: list[str] = []
        columns = ColumnClasses(config.classes)
        for item in items:
            titles.append(item.title)
            for phrase, class_id in sorted(item_terms(item, columns, config.max_words)):
                counts[phrase][class_id] += 1
        entries = {}
        for phrase, by_class in counts.items():
            # Of equally frequent classes the one with the lower number, so that order does not decide.
            class_id, count = min(by_class.items(), key=lambda pair: (-pair[1], pair[0]))
            if count >= config.min_count and count >= config.min_share * by_class.total():
                entries[phrase] = (class_id, count)
        return cls(cls(entries, config)._seen_in(titles), config)

    def matches(self, words: Words) -> list[Match]:
        """Terms of a text from left to right, the longest first; a rule wins over a list entry of its length."""
        found = []
        rules = pattern_matches(words, self.config.model_numbers)
        known = self._longest
        free = 0  # the first word that is in no match yet
        for first, word in enumerate(words.texts):
            if first < free or not (word in known or first in rules):
                continue
            last, class_id = self._longest_at(words, first)
            rule = rules.get(first)
            if rule is not None and rule.last >= last:
                found.append(rule)
                free = rule.last
            elif last > first:
                found.append(Match(first, last, class_id, "gazetteer"))
                free = last
        return found

    def class_of(self, phrase: str) -> int:
        """The class id of a phrase, 0 where it is not known."""
        return self._classes.get(phrase, 0)

    def plain(self) -> dict[str, Any]:
        """JSON-able values, from which ``build`` makes an equal gazetteer."""
        entries = {phrase: [TERM_CLASSES[c], count] for phrase, (c, count) in self.entries.items()}
        return {"config": self.config.plain(), "entries": entries}

    @classmethod
    def build(cls, values: Any) -> Self:
        """A gazetteer from ``plain`` values. Raises ArtifactError where they are none."""
        try:
            entries = {str(p): (CLASS_IDS[name], int(count)) for p, (name, count) in values["entries"].items()}
            return cls(entries, GazetteerConfig.build(values["config"], source="gazetteer"))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ArtifactError(
                f"the gazetteer is not readable: {error!r}; make it anew with pertinent lexicon"
            ) from None

    def _add(self, phrase: str, class_id: int) -> None:
        self._classes[phrase] = class_id
        head = phrase.partition(" ")[0]
        self._longest[head] = max(self._longest.get(head, 0), phrase.count(" ") + 1)

    def _longest_at(self, words: Words, first: int) -> tuple[int, int]:
        """The end of the longest entry that begins at a word, and its class; the word itself where none does."""
        texts, joined = words.texts, words.joined
        longest = min(first + self._longest.get(texts[first], 0), len(texts))
        last = first + 1
        while last < longest and joined[last]:
            last += 1
        while last > first:
            class_id = self._classes.get(" ".join(texts[first:last]), 0)
            if class_id:
                return last, class_id
            last -= 1
        return first, 0

    def _seen_in(self, titles: Iterable[str]) -> dict[str, tuple[int, int]]:
        seen: Counter[str] = Counter()
        for title in titles:
            words = split_words(normalize(title))
            for first, word in enumerate(words.texts):
                last, _ = self._longest_at(words, first) if word in self._longest else (first, 0)
                if last > first:
                    phrase = " ".join(words.texts[first:last])
                    seen.update({phrase, *other_number(phrase)})
        return {p: entry for p, entry in self.entries.items() if seen[p] >= self.config.min_titles}


def split_words(text: str) -> Words:
    """The words of a normalized text with their places.

    Finer than ``pertinent.text.words`` where titles are run together: a comma or a point between
    letters divides, as in ``flat,navy``.

    >>> split_words('flat,navy 15.6" usb-c 100% 1/2').texts
    ['flat', 'navy', '15.6"', 'usb-c', '100%', '1/2']
    """
    parts = _WORD.split(text)  # between, word, between, word, ..., between
    ends = list(itertools.accumulate(map(len, parts)))
    joined = [gap in _SOFT_GAPS for gap in parts[:-1:2]]
    joined[:1] = [False] * len(joined[:1])
    return Words(parts[1::2], ends[:-1:2], ends[1::2], joined)


def item_terms(item: Item, columns: ColumnClasses, max_words: int) -> set[tuple[str, int]]:
    """The phrases that an item's category and attributes name, each with its class id.

    >>> item = Item("1", "Red mug", category="Kitchen > Cups & Mugs", attributes={"color": "Red/White", "size": "12"})
    >>> sorted(item_terms(item, ColumnClasses(COLUMN_CLASSES), max_words=4))
    [('cups', 6), ('mugs', 6), ('red white', 5)]
    """
    found = set()
    named = {**item.attributes, "category": item.category, "brand": item.brand}
    for name, value in named.items():
        class_id = columns[name]
        if value and class_id:
            found |= {(phrase, class_id) for phrase in phrases(value) if phrase.count(" ") < max_words}
    return found


class ColumnClasses(dict[str, int]):
    """The class id of the values of each column, by name; 0 for columns that name no terms.

    >>> columns = ColumnClasses({"*_material": "material"})
    >>> columns["Jacket material"], columns["weight"]
    (1, 0)
    """

    def __init__(self, classes: Mapping[str, str]) -> None:
        super().__init__()
        self._patterns = [(pattern, CLASS_IDS[name]) for pattern, name in classes.items()]

    def __missing__(self, name: str) -> int:
        plain = normalize(name).replace(" ", "_")
        self[name] = next((number for pattern, number in self._patterns if fnmatchcase(plain, pattern)), 0)
        return self[name]


@lru_cache(maxsize=100_000)
def phrases(value: str) -> tuple[str, ...]:
    """The terms in a value: list members apart, the last level of a path, no bare numbers.

    >>> phrases("Furniture > Coffee & Cocktail Tables")
    ('coffee tables', 'cocktail tables')
    >>> phrases("Black, Matte black; 12")
    ('black', 'matte black')
    """
    text = normalize(value[:200])
    leaf = text.rpartition(" > ")[2]
    parts = [half for part in _PARTS.split(leaf) for half in _halves(part)]
    found = [" ".join(split_words(part).texts) for part in parts]
    kept = [phrase for phrase in found if any(c.isalpha() for c in phrase) and len(phrase) > 1]
    return tuple(dict.fromkeys(phrase for phrase in kept if phrase not in EMPTY_VALUES))


def _halves(part: str) -> list[str]:
    left, joint, right = part.partition(" & ")
    if not joint:
        return [part]
    words = right.split()
    # "coffee & cocktail tables" means coffee tables; "cups & mugs" means both.
    return [f"{left} {words[-1]}", right] if " " not in left and len(words) == 2 else [left, right]


def other_number(phrase: str) -> list[str]:
    """The phrase with its last word in the other number, by the regular English rules.

    >>> other_number("coffee mugs"), other_number("watch"), other_number("glass"), other_number("batteries")
    (['coffee mug'], ['watches'], ['glasses'], ['battery'])
    """
    last = phrase.rpartition(" ")[2]
    if len(last) < 3 or not last.isascii() or not last.replace("-", "").isalpha() or last[-1] == "-":
        return []
    if phrase.endswith("ies") and len(phrase) > 4:
        return [phrase[:-3] + "y"]
    if phrase.endswith(("shes", "ches", "xes", "sses")):
        return [phrase[:-2]]
    if phrase.endswith(("ss", "sh", "ch", "x")):
        return [phrase + "es"]
    if phrase.endswith("s"):
        return [] if phrase.endswith(("us", "is")) else [phrase[:-1]]
    if phrase.endswith("y") and phrase[-2] not in "aeiou":
        return [phrase[:-1] + "ies"]
    return [phrase + "s"]


@lru_cache(maxsize=200_000)
def word_kind(word: str) -> str:
    """What a word is to the pattern rules, as one character.

    N number, U unit, Q number with unit, P pack, Z letter size, X times, M model number; other
    words have ``.``, and a few that only rules know a letter of their own.

    >>> "".join(word_kind(word) for word in ["8", "x", "10", "inch", "12v", "xxl", "pack", "of", "oem"])
    'NXNUQZPO.'
    """
    if word[0].isdigit():
        if _NUMBER.fullmatch(word):
            return "N"
        if _GLUED.fullmatch(word):
            return "Q"
    if word in _KINDS:
        return _KINDS[word]
    if _LETTER_SIZE.fullmatch(word):
        return "Z"
    if _UNIT.fullmatch(word):
        return "U"
    if _PACK.fullmatch(word):
        return "P"
    return "M" if _MODEL_NUMBER.fullmatch(word) else "."


def pattern_matches(words: Words, model_numbers: bool = False) -> dict[int, Match]:
    """Terms found by rule, by their first word.

    >>> words = split_words("hdmi cable 1.5 m, 3 in 1, pack of 6")
    >>> [(" ".join(words.texts[m.first:m.last]), m.class_id) for m in pattern_matches(words).values()]
    [('1.5 m', 4), ('3 in 1', 2), ('pack of 6', 4)]
    """
    kinds = "".join(map(word_kind, words.texts))
    found: dict[int, Match] = {}
    if not kinds.strip("."):
        return found
    breaks = [place for place, joined in enumerate(words.joined) if not joined]  # the first word is always one
    for start, end in itertools.pairwise([*breaks, len(kinds)]):
        for rule, name in _RULES:
            for match in rule.finditer(kinds, start, end):
                found.setdefault(match.start(), Match(*match.span(), CLASS_IDS[name], "pattern"))
    if model_numbers:
        for place, kind in enumerate(kinds):
            if kind == "M":
                found.setdefault(place, Match(place, place + 1, CLASS_IDS["specification"], "pattern"))
    return found
