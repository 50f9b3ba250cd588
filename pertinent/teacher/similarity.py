"""A teacher that needs no labels: the cosine of a pretrained bi-encoder, corrected by shared words.

A bi-encoder knows that earbuds are headphones, but is easily content with the wrong model number;
word overlap is the reverse. Their weighted sum ranks better than either on judged shops, and
whatever else is known of a pair (same product, wrong color) is added on top.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pertinent.config import Config
from pertinent.lexicon.pairs import PairTokenizer
from pertinent.text import words

if TYPE_CHECKING:
    from torch import nn

logger = logging.getLogger(__name__)


class SimilarityTeacher(Config):
    """From cosine, covered words and covered numbers to a logit.

    Each is shifted by its ``*_center`` and divided by its ``*_spread`` before it is weighted. The
    defaults are the centers and spreads over the candidates of some 20,000 product queries, and
    weights near those of a logistic regression on the training pairs of two judged shops, where the
    units are standard deviations; calibration brings the student's scale to probabilities.
    """

    cosine_weight: float = 1.1
    cosine_center: float = 0.42
    cosine_spread: float = 0.12
    coverage_weight: float = 0.35
    coverage_center: float = 0.45
    coverage_spread: float = 0.3
    number_weight: float = 0.2
    number_center: float = 0.7
    number_spread: float = 0.3

    def logits(
        self, cosine: NDArray[np.float32], coverage: NDArray[np.float32], numbers: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """The teacher's logit of each pair, ``[pairs]``."""
        total = (
            self.cosine_weight * (cosine - self.cosine_center) / self.cosine_spread
            + self.coverage_weight * (coverage - self.coverage_center) / self.coverage_spread
            + self.number_weight * (numbers - self.number_center) / self.number_spread
        )
        return np.asarray(total, dtype=np.float32)


class Coverage:
    """How much of a query stands in a title: words weighted by rarity, and numbers alone.

    Fitted on the titles of a catalog, whose word sets it keeps.
    """

    def __init__(self, titles: Sequence[str]) -> None:
        self.titles = [_stems(title) for title in titles]
        self._frequency = Counter(word for title in self.titles for word in title)

    def __call__(self, query: str, rows: Iterable[int]) -> tuple[list[float], list[float]]:
        """Covered share of the words and of the numbers of a query, for each title row.

        A query without words covers nothing; one without numbers counts as usual (0.7).

        >>> Coverage(["iphone 12 case", "iphone 11 case"])("iPhone 12", [0, 1])[1]
        [1.0, 0.0]
        """
        wanted = sorted(_stems(query))
        weights = [self._rarity(word) for word in wanted]
        total = sum(weights) or 1.0
        numbers = [word for word in wanted if any(character.isdigit() for character in word)]
        covered, exact = [], []
        for row in rows:
            title = self.titles[row]
            covered.append(sum(w for word, w in zip(wanted, weights, strict=True) if word in title) / total)
            exact.append(sum(word in title for word in numbers) / len(numbers) if numbers else 0.7)
        return covered, exact

    def rows_by_word(self) -> dict[str, list[int]]:
        """Title rows that have a word."""
        found: dict[str, list[int]] = {}
        for row, title in enumerate(self.titles):
            for word in title:
                found.setdefault(word, []).append(row)
        return found

    def rarest(self, query: str, limit: int) -> list[str]:
        """The rarest words of a query that some title has, rarest first."""
        known = [word for word in sorted(_stems(query)) if word in self._frequency]
        return sorted(known, key=lambda word: self._frequency[word])[:limit]

    def _rarity(self, word: str) -> float:
        n = self._frequency[word]
        return math.log(1 + (len(self.titles) - n + 0.5) / (n + 0.5))


def encode_texts(
    network: nn.Module,
    pairs: PairTokenizer,
    texts: Sequence[str],
    batch_size: int = 64,
    progress: Callable[[int], None] = lambda done: None,
) -> NDArray[np.float32]:
    """Unit vectors of single texts by a two-tower network, ``[texts, width]``.

    ``progress`` is called with the number of texts done so far.
    """
    import torch

    encoder: Any = network.eval()
    rows = pairs.encode_items(texts)
    order = np.argsort(rows.lengths, kind="stable")
    vectors = np.zeros((len(texts), encoder.config.hidden_size), dtype=np.float32)
    with torch.inference_mode():
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            lengths = rows.lengths[chosen]
            ids = np.full((len(chosen), int(lengths.max()) + 2), pairs.pad_id, dtype=np.int64)
            columns = np.arange(ids.shape[1])[None]
            ids[(columns >= 1) & (columns <= lengths[:, None])] = rows.take(chosen).ids
            ids[:, 0] = pairs.cls_id
            ids[np.arange(len(chosen)), lengths + 1] = pairs.sep_id
            tokens, mask = torch.from_numpy(ids), torch.from_numpy(columns <= lengths[:, None] + 1)
            encoded = encoder.encode(tokens, mask, torch.zeros_like(tokens))
            vectors[chosen] = torch.nn.functional.normalize(encoded, dim=1).numpy()
            progress(start + len(chosen))
    return vectors


def _stems(text: str) -> set[str]:
    """The words of a text, plural s cut: the one inflection that product names are full of."""
    return {w[:-1] if len(w) > 3 and w.endswith("s") and not w.endswith("ss") else w for w in words(text)}
