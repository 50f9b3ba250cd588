"""TF-IDF and BM25: the floor of every table (baselines.md)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pertinent.errors import ScoringError
from pertinent.text import words

K1, B = 1.2, 0.75


def idf(documents: int, frequency: int) -> float:
    """How rare a term of so many of the documents is: ``ln(1 + (N - n + 0.5) / (n + 0.5))``, never negative.

    >>> idf(10, 1) > idf(10, 10) > 0
    True
    """
    return math.log(1.0 + (documents - frequency + 0.5) / (frequency + 0.5))


def bm25_weight(counts: Any, lengths: Any, mean_length: float, k1: float = K1, b: float = B) -> Any:
    """What occurrences of a term in a text count beside its rarity; numbers, or arrays of them.

    >>> round(bm25_weight(1, lengths=4.0, mean_length=4.0), 6)
    1.0
    """
    return counts * (k1 + 1) / (counts + k1 * (1 - b + b * lengths / mean_length))


class _Lexical:
    """Document frequencies of a catalog, fitted once."""

    name = "lexical"

    def __init__(self) -> None:
        self._frequency: Counter[str] = Counter()
        self._documents = 0
        self._mean_length = 1.0

    def fit(self, titles: Iterable[str]) -> Self:
        """Count in how many titles each word occurs. Returns itself."""
        self._frequency = Counter()
        lengths = []
        for title in titles:
            terms = words(title)
            lengths.append(len(terms))
            self._frequency.update(set(terms))
        self._documents = len(lengths)
        self._mean_length = max(float(np.mean(lengths)) if lengths else 1.0, 1e-9)
        return self

    def idf(self, term: str) -> float:
        """How rare a term is in the catalog, never negative."""
        if not self._documents:
            raise ScoringError(f"{self.name} knows no catalog yet; call fit(titles) first")
        return idf(self._documents, self._frequency[term])


class BM25(_Lexical):
    """Okapi BM25 over the words of the title.

    >>> bm25 = BM25().fit(["usb cable", "red shoe", "blue shoe"])
    >>> bm25.score("red shoe", ["red shoe", "blue shoe", "usb cable"]).argmax()
    np.int64(0)
    """

    name = "bm25"

    def __init__(self, k1: float = K1, b: float = B) -> None:
        super().__init__()
        self.k1, self.b = k1, b

    def score(self, query: str, titles: Sequence[str]) -> NDArray[np.float32]:
        """BM25 of each title, float32 ``[n]``; not a probability, not bounded."""
        weights = {term: self.idf(term) * count for term, count in Counter(words(query)).items()}
        scores = np.zeros(len(titles), dtype=np.float32)
        for row, title in enumerate(titles):
            counts = Counter(words(title))
            length, mean = counts.total(), self._mean_length
            scores[row] = sum(
                weight * bm25_weight(counts[term], length, mean, self.k1, self.b)
                for term, weight in weights.items()
                if term in counts
            )
        return scores


class TFIDF(_Lexical):
    """Cosine of ``(1 + ln f) idf`` vectors, 0 to 1.

    >>> TFIDF().fit(["usb cable", "red shoe"]).score("usb cable", ["USB cable", "shoe"]).tolist()
    [1.0, 0.0]
    """

    name = "tfidf"

    def score(self, query: str, titles: Sequence[str]) -> NDArray[np.float32]:
        """Cosine of query and each title, float32 ``[n]``."""
        wanted, size = self._vector(query)
        scores = np.zeros(len(titles), dtype=np.float32)
        for row, title in enumerate(titles):
            vector, length = self._vector(title)
            if size and length:
                scores[row] = min(sum(w * vector[t] for t, w in wanted.items() if t in vector) / (size * length), 1.0)
        return scores

    def _vector(self, text: str) -> tuple[dict[str, float], float]:
        counts = Counter(words(text))
        vector = {term: (1 + math.log(count)) * self.idf(term) for term, count in counts.items()}
        return vector, math.sqrt(sum(weight * weight for weight in vector.values()))
