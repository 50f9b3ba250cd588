"""A small judged set with ties, segments, frequencies and titles of many scripts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from pertinent.probability import sigmoid
from pertinent.records import Judgment

QUERIES = ("usb cable", "écouteurs sans fil", "耳机", "سماعات", "naïve <b>query</b>", "lamp")


class WordScorer:
    """A scorer that a test can predict: shared words, plus something from the text itself."""

    def __init__(self, name: str = "words", noise: float = 0.2) -> None:
        self.name, self.noise = name, noise

    def score(self, query: str, titles: Sequence[str]) -> np.ndarray:
        shared = [len(set(query.split()) & set(title.split())) for title in titles]
        bits = [sum(map(ord, title)) % 13 / 13 for title in titles]
        return sigmoid(2 * np.array(shared) - 2 + self.noise * np.array(bits)).astype(np.float32)


def judged(queries: int = 40, seed: int = 0) -> list[Judgment]:
    """Judgments whose titles repeat words of the query when they are relevant, mostly."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(queries):
        query = f"{QUERIES[number % len(QUERIES)]} {number}"
        for place in range(int(rng.integers(1, 9))):
            grade = float(rng.choice([0.0, 0.01, 0.1, 1.0]))
            words = query if rng.random() < 0.3 + 0.5 * grade else "etwas anderes"
            rows.append(
                Judgment(
                    query,
                    f"i{number}-{place}",
                    grade,
                    title=f"{words} Größe {place}",
                    label={0.0: "I", 0.01: "C", 0.1: "S", 1.0: "E"}[grade],
                    segment=("us", "es", None)[number % 3],
                    frequency=float(1000 // (number + 1)),
                    split="test" if number % 2 else "valid",
                )
            )
    return rows


@pytest.fixture(scope="session", name="judged")
def _judged() -> Callable[..., list[Judgment]]:
    return judged


@pytest.fixture(scope="session")
def words() -> type[WordScorer]:
    return WordScorer


@pytest.fixture(scope="session")
def judgments() -> list[Judgment]:
    return judged()


@pytest.fixture(scope="session")
def scorer() -> WordScorer:
    return WordScorer()
