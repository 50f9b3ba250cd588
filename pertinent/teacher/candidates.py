"""Which titles a teacher should score for a query: the best, the nearly good, the far and the random."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pertinent.config import Config
from pertinent.teacher.similarity import Coverage


class CandidateMix(Config):
    """How many titles a query gets from where; ranks are by cosine.

    Margins teach only where scores differ, so the mix runs from the top to the random.
    """

    top: int = Field(3, ge=0)
    near: int = Field(2, ge=0)
    near_rank: int = Field(60, ge=1)
    middle: int = Field(1, ge=0)
    middle_rank: int = Field(500, ge=1)
    lexical: int = Field(1, ge=0)
    random: int = Field(1, ge=0)


def candidates(
    mix: CandidateMix,
    queries: list[str],
    query_vectors: NDArray[np.float32],
    title_vectors: NDArray[np.float32],
    coverage: Coverage,
    rng: np.random.Generator,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Pairs of query row and title row with their cosine, queries in order, no pair twice.

    Vectors are of unit length, ``[queries, width]`` and ``[titles, width]``. Lexical candidates
    share one of the rarest words of the query.
    """
    count = len(title_vectors)
    if not count or not queries:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32)
    by_word = coverage.rows_by_word()
    far = min(mix.middle_rank, count)
    query_rows, title_rows, cosines = [], [], []
    for start in range(0, len(queries), 256):
        similarity = query_vectors[start : start + 256] @ title_vectors.T  # [chunk, titles]
        best = np.argpartition(-similarity, far - 1, axis=1)[:, :far]
        for row in range(len(similarity)):
            scores = similarity[row]
            ranked = best[row][np.argsort(-scores[best[row]], kind="stable")]
            near, middle = ranked[mix.top : mix.near_rank], ranked[mix.near_rank :]
            picked = [
                *ranked[: mix.top],
                *rng.choice(near, min(mix.near, len(near)), replace=False),
                *rng.choice(middle, min(mix.middle, len(middle)), replace=False),
                *rng.integers(0, count, mix.random),
            ]
            for word in coverage.rarest(queries[start + row], mix.lexical):
                rows = by_word[word]
                picked.append(rows[rng.integers(len(rows))])
            chosen = list(dict.fromkeys(int(title) for title in picked))
            query_rows.extend([start + row] * len(chosen))
            title_rows.extend(chosen)
            cosines.append(scores[chosen])
    joined = np.concatenate(cosines).astype(np.float32)
    return np.array(query_rows, dtype=np.int64), np.array(title_rows, dtype=np.int64), joined
