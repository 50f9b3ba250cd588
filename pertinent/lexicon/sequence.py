"""The small token classifier: a linear-chain CRF over words, trained by CRFsuite and decoded with numpy.

A score is a sum of weights of named features, so everything that depends on one word is summed
once for each word and kept; a text is then a few additions and a Viterbi pass. Training needs
``python-crfsuite``, tagging only numpy.
"""

from __future__ import annotations

import itertools
import re
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from threading import Lock
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pertinent.config import Config
from pertinent.errors import ArtifactError, need
from pertinent.lexicon.classes import TERM_CLASSES
from pertinent.lexicon.gazetteer import Match, Words

# O, then begin and inside of each class: label 2c-1 begins class c, label 2c goes on with it.
LABELS = ("O", *(f"{place}-{name}" for name in TERM_CLASSES[1:] for place in "BI"))
EDGE = "<edge>"  # what stands before the first word and after the last
OFFSETS = (-2, -1, 0, 1, 2)
_CACHED_WORDS = 100_000
_PAIRS = ("-1,0:w", "0,1:w")
_BATCH_TEXTS, _BATCH_WORDS = 256, 50_000
_LETTERS = re.compile(r"[^\W\d_]+")
_DIGITS = re.compile(r"\d+")
_FORBIDDEN = np.float32(-1e9)


class CrfConfig(Config):
    """How the classifier is trained: penalties on the weights (``c1`` makes most of them zero) and passes."""

    c1: float = Field(0.1, ge=0)
    c2: float = Field(0.2, ge=0)
    passes: int = Field(120, ge=1)
    min_frequency: int = Field(1, ge=1)


def word_features(word: str) -> list[str]:
    """What the classifier sees of a word: itself, its ends, its shape.

    >>> word_features("usb-c")
    ['w=usb-c', 'p2=us', 'p3=usb', 's2=-c', 's3=b-c', 's4=sb-c', 'shape=a-a', 'n=5']
    """
    shape = _LETTERS.sub("a", _DIGITS.sub("9", word))
    ends = [f"p2={word[:2]}", f"p3={word[:3]}", f"s2={word[-2:]}", f"s3={word[-3:]}", f"s4={word[-4:]}"]
    return [f"w={word}", *ends, f"shape={shape[:8]}", f"n={min(len(word), 9)}"]


def text_features(words: Words, matches: Sequence[Match]) -> list[list[str]]:
    """All features of each word of a text, as CRFsuite reads them."""
    padded = [EDGE, EDGE, *words.texts, EDGE, EDGE]
    rows = []
    for place, codes in enumerate(context_codes([words], [matches]).T.tolist()):
        near = [
            f"{offset}:{feature}"
            for offset in OFFSETS
            for feature in near_features(word_features(padded[place + 2 + offset]), offset)
        ]
        before, word, after = padded[place + 1 : place + 4]
        extra = [f"{name}={code}" for name, code in zip(CONTEXTS, codes, strict=True)]
        rows.append([*near, f"{_PAIRS[0]}={before} {word}", f"{_PAIRS[1]}={word} {after}", *extra])
    return rows


def near_features(own: Sequence[str], offset: int) -> Sequence[str]:
    """Those of a word's features that a word ``-offset`` places further on sees.

    >>> near_features(word_features("for"), -1)
    ['w=for', 's3=for', 'shape=a']
    """
    if offset == 0:
        return own
    return [own[0], own[4], own[6]] if abs(offset) == 1 else own[:1]


# Names and numbers of values of the features that are not of words; see `context_codes`.
_L = len(LABELS)
CONTEXTS = {
    "term": _L,
    "term-1": _L,
    "term+1": _L,
    "term-1,term": _L * _L,
    "term,term+1": _L * _L,
    "break": 2,
    "break+1": 2,
    "place,size": 12,
    "place,term": 4 * _L,
}


def context_codes(words: Sequence[Words], matches: Sequence[Sequence[Match]]) -> NDArray[np.int64]:
    """What the classifier sees beside the words, for texts laid end to end: ``[CONTEXTS, words]``.

    ``term`` is the label of the matches of gazetteer and rules, of a word and the words around it.
    ``break`` says that a comma or the like stands before the word. ``place`` counts words from the
    end, at most 3; ``size`` is 0 for texts of up to 3 words, 1 up to 7, else 2.
    """
    lengths = np.array([len(text.texts) for text in words], dtype=np.int64)
    ends = np.cumsum(lengths)
    starts = ends - lengths
    total = int(lengths.sum())
    terms = np.zeros(total, dtype=np.int64)
    for start, found in zip(starts.tolist(), matches, strict=True):
        for first, last, class_id, _ in found:
            terms[start + first : start + last] = 2 * class_id
            terms[start + first] = 2 * class_id - 1
    breaks = np.fromiter((not j for text in words for j in text.joined), dtype=np.int64, count=total)
    inside = lengths > 0
    firsts, lasts = starts[inside], ends[inside] - 1
    breaks[firsts] = 0
    before, after, next_break = np.zeros((3, total), dtype=np.int64)
    before[1:], after[:-1], next_break[:-1] = terms[:-1], terms[1:], breaks[1:]
    before[firsts], after[lasts], next_break[lasts] = 0, 0, 1
    place = np.minimum(np.repeat(ends, lengths) - 1 - np.arange(total), 3)
    size = np.repeat((lengths > 3).astype(np.int64) + (lengths > 7), lengths)
    pairs = (before * _L + terms, terms * _L + after)
    return np.stack([terms, before, after, *pairs, breaks, next_break, place * 3 + size, place * _L + terms])


class Crf:
    """Weights of features and label transitions; ``decode`` gives the best labels of texts.

    Safe to use from several threads.
    """

    def __init__(self, weights: dict[str, NDArray[np.float32]], transitions: NDArray[np.float32]) -> None:
        self.weights = weights  # feature -> [labels]
        self.transitions = transitions  # [from, to]
        allowed = np.array([[_may_follow(a, b) for b in range(_L)] for a in range(_L)])
        self._steps = np.where(allowed, transitions, _FORBIDDEN).astype(np.float32)
        self._first = np.where(allowed[0], 0, _FORBIDDEN).astype(np.float32)  # a text begins as after O
        self._tables = [self._context_table(name, size) for name, size in CONTEXTS.items()]
        self._near = self._near_rows()
        self._pairs, self._pair_table = self._pair_sums()
        self._lock = Lock()
        self._forget()

    @classmethod
    def train(cls, examples: Iterable[tuple[Words, Sequence[Match], Sequence[str]]], config: CrfConfig) -> Self:
        """A classifier from words, matches and labels; the same examples give the same weights."""
        crfsuite = need("pycrfsuite", "train")

        trainer = crfsuite.Trainer(algorithm="lbfgs", verbose=False)
        for words, matches, labels in examples:
            if words.texts:
                trainer.append(text_features(words, matches), list(labels))
        trainer.set_params(
            {
                "c1": config.c1,
                "c2": config.c2,
                "max_iterations": config.passes,
                "feature.minfreq": config.min_frequency,
                "feature.possible_transitions": True,
            }
        )
        with tempfile.TemporaryDirectory() as folder:
            path = str(Path(folder) / "model.crfsuite")
            trainer.train(path)
            tagger = crfsuite.Tagger()
            tagger.open(path)
            info = tagger.info()
            tagger.close()
        numbers = {label: number for number, label in enumerate(LABELS)}
        weights: dict[str, NDArray[np.float32]] = {}
        for (feature, label), weight in sorted(info.state_features.items()):
            weights.setdefault(feature, np.zeros(_L, dtype=np.float32))[numbers[label]] = weight
        transitions = np.zeros((_L, _L), dtype=np.float32)
        for (source, target), weight in info.transitions.items():
            transitions[numbers[source], numbers[target]] = weight
        return cls(weights, transitions)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copied and sent to other processes without what it keeps and its lock."""
        return type(self), (self.weights, self.transitions)

    def decode(self, words: Sequence[Words], matches: Sequence[Sequence[Match]]) -> list[list[int]]:
        """The best label number of each word of each text; they do not depend on the other texts."""
        order = sorted(range(len(words)), key=lambda row: len(words[row].texts))
        order = [row for row in order if words[row].texts]
        found: list[list[int]] = [[] for _ in words]
        while order:
            # The longest come first, so the first text says how many fit.
            size = min(_BATCH_TEXTS, max(1, _BATCH_WORDS // len(words[order[-1]].texts)))
            rows, order = order[-size:], order[:-size]
            labels = self._decode_batch([words[row] for row in rows], [matches[row] for row in rows])
            for row, best in zip(rows, labels.T.tolist(), strict=True):
                found[row] = best[: len(words[row].texts)]
        return found

    def scores(self, words: Sequence[Words], matches: Sequence[Sequence[Match]]) -> NDArray[np.float32]:
        """The score of each label for each word of texts laid end to end, ``[words, labels]``."""
        edge = [EDGE, EDGE]
        row = [word for text in words for word in (*edge, *text.texts, *edge)]
        ids, table = self._lookup(row)
        known = self._pairs
        pairs = np.array([known.get(f"{a} {b}", 0) for a, b in itertools.pairwise(row)], dtype=np.int64)
        lengths = np.array([len(text.texts) for text in words], dtype=np.int64)
        # Word i of text t stands at i + 4t + 2: four edges for each text before, two of its own.
        places = np.arange(int(lengths.sum())) + np.repeat(4 * np.arange(len(words)) + 2, lengths)
        total: NDArray[np.float32] = self._pair_table[pairs[places - 1], 0] + self._pair_table[pairs[places], 1]
        for number, offset in enumerate(OFFSETS):
            total += table[number, ids[places + offset]]
        for values, codes in zip(self._tables, context_codes(words, matches), strict=True):
            total += values[codes]
        return total

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """The classifier as arrays, to be stored; ``build`` reads them."""
        names = sorted(self.weights)
        dense = np.stack([self.weights[name] for name in names]) if names else np.zeros((0, _L), dtype=np.float32)
        rows, labels = np.nonzero(dense)
        return {
            "feature_names": np.frombuffer("\n".join(names).encode("utf-8"), dtype=np.uint8),
            "rows": rows.astype(np.int32),
            "labels": labels.astype(np.int8),
            "values": dense[rows, labels],
            "transitions": self.transitions,
        }

    @classmethod
    def build(cls, arrays: dict[str, NDArray[np.generic]]) -> Self:
        """A classifier from ``arrays``. Raises ArtifactError where they do not fit together."""
        try:
            text = arrays["feature_names"].tobytes().decode("utf-8")
            names = text.split("\n") if text else []
            dense = np.zeros((len(names), _L), dtype=np.float32)
            dense[arrays["rows"], arrays["labels"]] = arrays["values"]
            transitions = np.asarray(arrays["transitions"], dtype=np.float32).reshape(_L, _L)
        except (KeyError, ValueError, IndexError) as error:
            raise ArtifactError(f"the term classifier is not readable ({error}); make it anew") from None
        return cls(dict(zip(names, dense, strict=True)), transitions)

    def _forget(self) -> None:
        self._ids: dict[str, int] = {}
        self._table = np.zeros((len(OFFSETS), 1024, _L), dtype=np.float32)

    def _lookup(self, words: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Rows of words in the table of kept sums, and that table, ``[offsets, rows, labels]``."""
        with self._lock:
            if len(self._ids) > _CACHED_WORDS:
                self._forget()  # threads that hold the old table go on with it
            known = self._ids
            new = [word for word in dict.fromkeys(words) if word not in known]
            if new:
                self._add(new)
            return np.array([known[word] for word in words], dtype=np.int64), self._table

    def _add(self, words: Sequence[str]) -> None:
        start = len(self._ids)
        size = self._table.shape[1]
        while size < start + len(words):
            size *= 2
        if size > self._table.shape[1]:
            larger = np.zeros((len(OFFSETS), size, _L), dtype=np.float32)
            larger[:, :start] = self._table[:, :start]
            self._table = larger
        features = [word_features(word) for word in words]
        for number, (offset, rows) in enumerate(zip(OFFSETS, self._near, strict=True)):
            found = [
                (place, rows[feature])
                for place, own in enumerate(features, start)
                for feature in near_features(own, offset)
                if feature in rows
            ]
            if found:
                places, weights = np.array(found).T
                np.add.at(self._table[number], places, self._dense[weights])
        self._ids.update(zip(words, range(start, start + len(words)), strict=True))

    def _near_rows(self) -> list[dict[str, int]]:
        """For each offset, the rows of ``_dense`` with the weights of words' features."""
        names = sorted(self.weights)
        self._dense = np.stack([self.weights[name] for name in names]) if names else np.zeros((0, _L), np.float32)
        found: dict[str, dict[str, int]] = {str(offset): {} for offset in OFFSETS}
        for number, name in enumerate(names):
            offset, _, feature = name.partition(":")
            if offset in found:
                found[offset][feature] = number
        return list(found.values())

    def _pair_sums(self) -> tuple[dict[str, int], NDArray[np.float32]]:
        """Row of each known pair of words, and the sums for its second and first word, ``[pairs + 1, 2, labels]``."""
        found = [(f.partition("=")[2], f.startswith(_PAIRS[1])) for f in self.weights if f.startswith(_PAIRS)]
        pairs = {pair: number for number, pair in enumerate(sorted({pair for pair, _ in found}), start=1)}
        table = np.zeros((len(pairs) + 1, 2, _L), dtype=np.float32)  # row 0 is for all other pairs
        for pair, first in found:
            table[pairs[pair], int(first)] = self.weights[f"{_PAIRS[first]}={pair}"]
        return pairs, table

    def _context_table(self, name: str, size: int) -> NDArray[np.float32]:
        nothing = np.zeros(_L, dtype=np.float32)
        return np.stack([self.weights.get(f"{name}={code}", nothing) for code in range(size)])

    def _decode_batch(self, words: Sequence[Words], matches: Sequence[Sequence[Match]]) -> NDArray[np.int64]:
        lengths = np.array([len(text.texts) for text in words])
        inside = np.arange(int(lengths.max())) < lengths[:, None]  # [batch, width]
        scores = np.zeros((*inside.shape, _L), dtype=np.float32)
        scores[inside] = self.scores(words, matches)
        return viterbi(np.ascontiguousarray(scores.transpose(1, 2, 0)), lengths, self._steps, self._first)


def viterbi(
    scores: NDArray[np.float32],
    lengths: NDArray[np.int64],
    steps: NDArray[np.float32],
    first: NDArray[np.float32],
) -> NDArray[np.int64]:
    """The labels ``[width, batch]`` with the highest sum of ``scores`` and ``steps``; 0 beyond a text's length.

    Args:
        scores: of each label at each place, ``[width, labels, batch]``.
        lengths: places of each text that count, from 1.
        steps: from label to label, ``[labels, labels]``.
        first: of each label at the first place, ``[labels]``.
    """
    width, _, batch = scores.shape
    best = np.empty_like(scores)  # of all ways to a label at a place
    best[0] = scores[0] + first[:, None]
    for place in range(1, width):
        best[place] = (best[place - 1][:, None] + steps[:, :, None]).max(axis=0) + scores[place]
    labels = np.zeros((width, batch), dtype=np.int64)
    texts = np.arange(batch)
    current = best[lengths - 1, :, texts].argmax(axis=1)
    for place in range(width - 1, -1, -1):
        inside = lengths > place
        labels[place, inside] = current[inside]
        if place:
            before = (best[place - 1] + steps[:, current]).argmax(axis=0)
            current = np.where(inside, before, current)
    return labels


def _may_follow(before: int, label: int) -> bool:
    """Whether a label may follow another: a class goes on only where it began."""
    return label == 0 or label % 2 == 1 or before in (label, label - 1)
