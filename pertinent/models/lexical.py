"""TF-IDF and BM25: the floor of every table (baselines.md)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray

from pertinent.errors import ScoringError
from pertinent.text import words


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
        """``ln(1 + (N - n + 0.5) / (n + 0.5))``: never negative."""
        if not self._documents:
            raise ScoringError(f"{self.name} knows no catalog yet; call fit(titles) first")
        n = self._frequency[term]
        return math.log(1.0 + (self._documents - n + 0.5) / (n + 0.5))


class BM25(_Lexical):
    """Okapi BM25 over the words of the title.

    >>> bm25 = BM25().fit(["usb cable", "red shoe", "blue shoe"])
    >>> bm25.score("red shoe", ["red shoe", "blue shoe", "usb cable"]).argmax()
    np.int64(0)
    """

    name = "bm25"

    def __init__(self, k1: float = 1.2, b: float = 0.75) -> None:
        super().__init__()
        self.k1, self.b = k1, b

    def score(self, query: str, titles: Sequence[str]) -> NDArray[np.float32]:
        """BM25 of each title, float32 ``[n]``; not a probability, not bounded."""
        weights = {term: self.idf(term) * count for term, count in Counter(words(query)).items()}
        scores = np.zeros(len(titles), dtype=np.float32)
        for row, title in enumerate(titles):
            counts = Counter(words(title))
            length = self.k1 * (1 - self.b + self.b * counts.total() / self._mean_length)
            scores[row] = sum(
                w * counts[t] * (self.k1 + 1) / (counts[t] + length) for t, w in weights.items() if t in counts
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
