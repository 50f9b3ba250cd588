"""The small token classifier: a linear-chain CRF over words, trained by CRFsuite and decoded with numpy.

A score is a sum of weights of named features, so everything that depends on one word is summed
once for each word and kept; a text is then a few additions and a Viterbi pass. Training needs
``python-crfsuite``, tagging only numpy.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from threading import Lock
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pertinent.config import Config
from pertinent.errors import ArtifactError
from pertinent.lexicon.classes import TERM_CLASSES
from pertinent.lexicon.gazetteer import Match, Word

# O, then begin and inside of each class: label 2c-1 begins class c, label 2c goes on with it.
LABELS = ("O", *(f"{place}-{name}" for name in TERM_CLASSES[1:] for place in "BI"))
EDGE = "<edge>"  # what stands before the first word and after the last
OFFSETS = (-2, -1, 0, 1, 2)
_CACHED_WORDS = 200_000
_BATCH = 256
_FORBIDDEN = np.float32(-1e9)


class CrfConfig(Config):
    """How the classifier is trained: penalties on the weights (``c1`` makes most of them zero) and passes."""

    c1: float = Field(0.2, ge=0)
    c2: float = Field(0.02, ge=0)
    passes: int = Field(120, ge=1)
    min_frequency: int = Field(1, ge=1)


class Context(NamedTuple):
    """What the features of a text read beside its words: one number a word, each ``[words]``.

    ``terms`` is the label (see ``LABELS``) of the gazetteer and pattern matches, 0 where there are
    none. ``breaks`` is 1 where a comma or the like stands before a word. ``place`` counts words
    from the end, at most 3. ``size`` is 0 for texts of up to 3 words, 1 up to 7, else 2.
    """

    terms: NDArray[np.int64]
    breaks: NDArray[np.int64]
    place: NDArray[np.int64]
    size: NDArray[np.int64]


def context_of(words: Sequence[Word], matches: Sequence[Match]) -> Context:
    """The context of a text's words."""
    size = len(words)
    terms = np.zeros(size, dtype=np.int64)
    for match in matches:
        terms[match.first : match.last] = 2 * match.class_id
        terms[match.first] = 2 * match.class_id - 1
    breaks = np.fromiter((not word.joined for word in words), dtype=np.int64, count=size)
    breaks[:1] = 0
    place = np.minimum(np.arange(size - 1, -1, -1), 3)
    length = 0 if size <= 3 else 1 if size <= 7 else 2
    return Context(terms, breaks, place, np.full(size, length, dtype=np.int64))


def word_features(word: str) -> list[str]:
    """What the classifier sees of a word: itself, its ends, its shape.

    >>> word_features("usb-c")
    ['w=usb-c', 'p2=us', 'p3=usb', 's2=-c', 's3=b-c', 's4=sb-c', 'shape=a-a', 'n=5']
    """
    shape, last = [], ""
    for character in word:
        kind = "a" if character.isalpha() else "9" if character.isdigit() else character
        if kind != last:
            shape.append(kind)
        last = kind
    ends = [f"p2={word[:2]}", f"p3={word[:3]}", f"s2={word[-2:]}", f"s3={word[-3:]}", f"s4={word[-4:]}"]
    return [f"w={word}", *ends, f"shape={''.join(shape[:8])}", f"n={min(len(word), 9)}"]


def offset_features(word: str, offset: int) -> list[str]:
    """The features that a word gives to the word ``-offset`` places further on.

    >>> offset_features("for", -1)
    ['-1:w=for', '-1:s3=for', '-1:shape=a']
    """
    own = word_features(word)
    if offset == 0:
        return [f"0:{feature}" for feature in own]
    kept = ("w=", "s3=", "shape=") if abs(offset) == 1 else ("w=",)
    return [f"{offset}:{feature}" for feature in own if feature.startswith(kept)]


def context_features(context: Context) -> list[list[str]]:
    """The features of each word that come from its context."""
    codes = _context_codes(context)
    return [[f"{name}={code}" for name, code in zip(_CONTEXTS, row, strict=True)] for row in codes.T.tolist()]


def text_features(words: Sequence[str], context: Context) -> list[list[str]]:
    """All features of each word of a text, as CRFsuite reads them."""
    padded = [EDGE, EDGE, *words, EDGE, EDGE]
    rows = []
    for place, extra in enumerate(context_features(context)):
        near = [feature for offset in OFFSETS for feature in offset_features(padded[place + 2 + offset], offset)]
        rows.append(near + extra)
    return rows


# Name and number of values of each feature of the context; L is the number of labels.
_L = len(LABELS)
_CONTEXTS = {
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


def _context_codes(context: Context) -> NDArray[np.int64]:
    terms, breaks, place, size = context
    before = np.concatenate([[0], terms[:-1]])[: len(terms)]
    after = np.concatenate([terms[1:], [0]])[: len(terms)]
    next_break = np.concatenate([breaks[1:], [1]])[: len(terms)]
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
        self._tables = [self._context_table(name, size) for name, size in _CONTEXTS.items()]
        self._lock = Lock()
        self._forget()

    @classmethod
    def train(cls, examples: Iterable[tuple[Sequence[str], Context, Sequence[str]]], config: CrfConfig) -> Self:
        """A classifier from words, contexts and labels; the same examples give the same weights."""
        import pycrfsuite as crfsuite

        trainer = crfsuite.Trainer(algorithm="lbfgs", verbose=False)
        for words, context, labels in examples:
            if len(words):
                trainer.append(text_features(words, context), list(labels))
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

    def decode(self, texts: Sequence[Sequence[str]], contexts: Sequence[Context]) -> list[NDArray[np.int64]]:
        """The best label numbers of each text; a text's labels do not depend on the other texts."""
        order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
        found: list[NDArray[np.int64]] = [np.zeros(0, dtype=np.int64)] * len(texts)
        for start in range(0, len(order), _BATCH):
            rows = [row for row in order[start : start + _BATCH] if len(texts[row])]
            if rows:
                labels = self._decode_batch([texts[row] for row in rows], [contexts[row] for row in rows])
                for place, row in enumerate(rows):
                    found[row] = labels[place, : len(texts[row])]
        return found

    def scores(self, texts: Sequence[Sequence[str]], contexts: Sequence[Context]) -> NDArray[np.float32]:
        """The score of each label for each word of texts laid end to end, ``[words, labels]``."""
        lengths = [len(text) for text in texts]
        edge = [EDGE, EDGE]
        ids, table = self._lookup([word for text in texts for word in (*edge, *text, *edge)])
        real = np.ones(len(ids), dtype=np.bool_)
        ends = np.cumsum([length + 4 for length in lengths])
        for border in (0, 1):
            real[ends - 1 - border] = False
            real[ends - 4 - np.array(lengths) + border] = False
        places = np.flatnonzero(real)
        total = np.zeros((len(places), _L), dtype=np.float32)
        for number, offset in enumerate(OFFSETS):
            total += table[ids[places + offset], number]
        for values, codes in zip(self._tables, _joined_codes(contexts), strict=True):
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
        self._table = np.zeros((1024, len(OFFSETS), _L), dtype=np.float32)

    def _lookup(self, words: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Rows of words in the table of kept sums, and that table."""
        with self._lock:
            if len(self._ids) > _CACHED_WORDS:
                self._forget()
            found = [self._id(word) for word in words]
            table = self._table
        return np.array(found, dtype=np.int64), table

    def _id(self, word: str) -> int:
        number = self._ids.get(word)
        if number is None:
            number = len(self._ids)
            if number == len(self._table):
                self._table = np.concatenate([self._table, np.zeros_like(self._table)])
            for place, offset in enumerate(OFFSETS):
                rows = [self.weights[f] for f in offset_features(word, offset) if f in self.weights]
                if rows:
                    self._table[number, place] = np.sum(rows, axis=0)
            self._ids[word] = number
        return number

    def _context_table(self, name: str, size: int) -> NDArray[np.float32]:
        nothing = np.zeros(_L, dtype=np.float32)
        return np.stack([self.weights.get(f"{name}={code}", nothing) for code in range(size)])

    def _decode_batch(self, texts: Sequence[Sequence[str]], contexts: Sequence[Context]) -> NDArray[np.int64]:
        lengths = np.array([len(text) for text in texts])
        width = int(lengths.max())
        place = np.arange(width) < lengths[:, None]  # [batch, width]
        scores = np.zeros((len(texts), width, _L), dtype=np.float32)
        scores[place] = self.scores(texts, contexts)
        return viterbi(scores, lengths, self._steps, self._first)


def viterbi(
    scores: NDArray[np.float32],
    lengths: NDArray[np.int64],
    steps: NDArray[np.float32],
    first: NDArray[np.float32],
) -> NDArray[np.int64]:
    """The labels ``[batch, width]`` with the highest sum of ``scores`` and ``steps``; 0 beyond a row's length.

    Args:
        scores: of each label at each place, ``[batch, width, labels]``.
        lengths: places of each row that count, from 1.
        steps: from label to label, ``[labels, labels]``.
        first: of each label at the first place, ``[labels]``.
    """
    batch, width, size = scores.shape
    best = scores[:, 0] + first
    back = np.zeros((batch, width, size), dtype=np.int64)
    final = best
    for place in range(1, width):
        options = best[:, :, None] + steps  # [batch, from, to]
        back[:, place] = options.argmax(axis=1)
        best = options.max(axis=1) + scores[:, place]
        final = np.where((lengths > place)[:, None], best, final)
    labels = np.zeros((batch, width), dtype=np.int64)
    rows = np.arange(batch)
    current = final.argmax(axis=1)
    for place in range(width - 1, -1, -1):
        inside = lengths > place
        labels[inside, place] = current[inside]
        if place:
            current = np.where(inside, back[rows, place, current], current)
    return labels


def _may_follow(before: int, label: int) -> bool:
    """Whether a label may follow another: a class goes on only where it began."""
    return label == 0 or label % 2 == 1 or before in (label, label - 1)


def _joined_codes(contexts: Sequence[Context]) -> NDArray[np.int64]:
    if len(contexts) == 1:
        return _context_codes(contexts[0])
    return np.concatenate([_context_codes(context) for context in contexts], axis=1)
