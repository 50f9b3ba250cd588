"""Texts with known term spans: QueryNER and OA-Mine in our classes, weak labels from a catalog, and scores by span."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pertinent.data.readers import read_table
from pertinent.data.splits import bucket
from pertinent.errors import DataError
from pertinent.lexicon.classes import CLASS_IDS, OA_MINE_CLASSES, QUERYNER_CLASSES, TERM_CLASSES
from pertinent.lexicon.gazetteer import ColumnClasses, Gazetteer, GazetteerConfig, item_terms, split_words
from pertinent.lexicon.tagger import LabeledText, TermSpan, word_labels, word_spans
from pertinent.records import Item
from pertinent.text import normalize

Split = Literal["train", "valid", "test"]


def queryner(path: str | Path, split: Split) -> list[LabeledText]:
    """The queries of one published split of QueryNER."""
    table = read_table(path)
    rows = zip(*(table.column(name) for name in ("split", "tokens", "tags")), strict=True)
    return [labeled(" ".join(tokens), tokens, tags, QUERYNER_CLASSES) for of, tokens, tags in rows if of == split]


def oa_mine(path: str | Path, split: Split) -> list[LabeledText]:
    """The titles of one split of OA-Mine; every tenth published training title, by its id, is ``valid``."""
    table = read_table(path)
    found = []
    for name, of, title, tokens, tags in zip(
        *(table.column(name) for name in ("id", "split", "title", "tokens", "tags")), strict=True
    ):
        if of == "train" and bucket(name, salt="") < 0.1:
            of = "valid"
        if of == split:
            found.append(labeled(title, tokens, tags, OA_MINE_CLASSES))
    return found


def labeled(text: str, tokens: Sequence[str], tags: Sequence[str], classes: Mapping[str, str]) -> LabeledText:
    """A text with the spans that BIO tags on its tokens spell, in our classes.

    >>> labeled("Red Wool socks", ["Red", "Wool", "socks"], ["B-color", "B-material", "O"],
    ...         {"color": "style", "material": "material"})
    LabeledText(text='red wool socks', spans=((0, 3, 5), (4, 8, 1)))
    """
    normal, cursor = normalize(text), 0
    spans: list[tuple[int, int, int]] = []
    for token, tag in zip(tokens, tags, strict=True):
        piece = normalize(token)
        start = normal.find(piece, cursor)
        if start < 0 or not piece:
            continue
        cursor = start + len(piece)
        place, _, name = tag.partition("-")
        if name and name not in classes:
            raise DataError(f"no term class for the tag {name!r}", fix=f"tags known here: {', '.join(sorted(classes))}")
        if place == "I" and spans:
            spans[-1] = (spans[-1][0], cursor, spans[-1][2])
        elif name:
            spans.append((start, cursor, CLASS_IDS[classes[name]]))
    return LabeledText(normal, tuple(span for span in spans if span[2]))


def labels_of_titles(items: Iterable[Item], config: GazetteerConfig, limit: int) -> list[LabeledText]:
    """Up to ``limit`` titles labeled by their items' own attribute values and by pattern rules.

    Weak labels: what an item's attributes do not say, or say in other words, has none. Only titles
    in which a ``core`` value stands are taken, the others miss the most; a title is taken once.

    >>> item = Item("1", "Red Wool Socks 2 pack", category="Socks", attributes={"color": "Red", "material": "Wool"})
    >>> labels_of_titles([item], GazetteerConfig(), 10)[0].spans
    ((0, 3, 5), (4, 8, 1), (9, 14, 6), (15, 21, 4))
    """
    found: dict[str, LabeledText] = {}
    core, columns = CLASS_IDS["core"], ColumnClasses(config.classes)
    for item in items:
        if len(found) == limit:
            break
        terms = sorted(item_terms(item, columns, config.max_words), reverse=True)
        entries = {phrase: (class_id, 1) for phrase, class_id in terms}
        if all(class_id != core for class_id, _ in entries.values()):
            continue
        text = normalize(item.title)
        words = split_words(text)
        matches = Gazetteer(entries, config).matches(words)
        if any(match.class_id == core for match in matches):
            spans = tuple((words.starts[m.first], words.ends[m.last - 1], m.class_id) for m in matches)
            found.setdefault(text, LabeledText(text, spans))
    return list(found.values())


def span_counts(truth: Sequence[LabeledText], tagged: Sequence[Sequence[TermSpan]]) -> NDArray[np.int64]:
    """True, found and right spans of each text and class, ``[texts, classes, 3]``.

    A span is right where it has the same words and the same class.

    >>> truth = [LabeledText("red wool socks", ((0, 3, 5), (4, 14, 6)))]
    >>> span_counts(truth, [[TermSpan(0, 3, "style", "red", "pattern")]])[0, 5].tolist()
    [1, 1, 1]
    """
    counts = np.zeros((len(truth), len(TERM_CLASSES), 3), dtype=np.int64)
    for row, (known, spans) in enumerate(zip(truth, tagged, strict=True)):
        words = split_words(known.text)
        true = set(word_spans(word_labels(words, known.spans)))
        found = set(word_spans(word_labels(words, [(s.start, s.end, s.class_id) for s in spans])))
        for number, members in enumerate((true, found, true & found)):
            for _, _, class_id in members:
                counts[row, class_id, number] += 1
    return counts


def span_scores(counts: NDArray[np.int64]) -> dict[str, dict[str, float | int]]:
    """Precision, recall and F1 of each class and of all together (``micro``), from ``span_counts``."""
    totals = counts.sum(axis=0)  # [classes, 3]
    rows = {name: totals[number] for number, name in enumerate(TERM_CLASSES) if number}
    return {name: _scores(*row.tolist()) for name, row in {**rows, "micro": totals.sum(axis=0)}.items()}


def f1_interval(counts: NDArray[np.int64], draws: int, seed: int) -> tuple[float, float]:
    """The 95 % interval of the micro F1 over texts drawn with replacement."""
    random = np.random.default_rng(seed)
    totals = counts.sum(axis=1)  # [texts, 3]
    drawn = random.multinomial(len(totals), np.full(len(totals), 1 / len(totals)), size=draws) @ totals
    scores = 2 * drawn[:, 2] / np.maximum(drawn[:, 0] + drawn[:, 1], 1)
    low, high = np.quantile(scores, [0.025, 0.975])
    return float(low), float(high)


def _scores(true: int, found: int, right: int) -> dict[str, float | int]:
    return {
        "precision": right / found if found else 0.0,
        "recall": right / true if true else 0.0,
        "f1": 2 * right / (true + found) if true + found else 0.0,
        "spans": true,
    }
