"""The nouns that the rest of the package speaks in.

Texts and ids have different names: ``query`` and ``title`` are text, ``item_id`` is an id, an
``Item`` is the record. A ``grade`` is judged (0 to 1), a ``level`` is a behavior, a ``score`` is
what a scorer gives (a calibrated probability).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Split = Literal["train", "valid", "test"]
# How deep interest in an item went, in order; a view is an item shown.
Level = Literal["view", "click", "cart", "contact", "order", "pay"]


@dataclass(frozen=True, slots=True)
class Item:
    """A thing in the catalog. ``attributes`` are names and values, both text."""

    item_id: str
    title: str
    description: str | None = None
    brand: str | None = None
    category: str | None = None
    attributes: dict[str, str] = field(default_factory=dict)
    image: str | None = None


@dataclass(frozen=True, slots=True)
class Judgment:
    """What a rater said about one query and one item; ``grade`` runs from 0 to 1.

    ``title`` is the item's text as judged. ``label`` keeps the rater's own word. ``segment`` is
    any name to report by (a locale, a category); ``frequency`` is how often the query is asked.
    """

    query: str
    item_id: str
    grade: float
    title: str = ""
    label: str | None = None
    split: Split | None = None
    rater: str | None = None
    segment: str | None = None
    frequency: float | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """One line of a search log; ``position`` counts from 0, ``time`` is seconds UTC."""

    user_id: str
    session_id: str
    query: str
    item_id: str
    level: Level
    position: int | None
    time: float


class Pair(NamedTuple):
    """A query and the text of one item: what a relevance model reads."""

    query: str
    title: str


@dataclass(frozen=True, slots=True)
class Scored:
    """An item with its score: a calibrated probability of being relevant.

    ``scorer`` names who gave it; ``truncated`` says that text beyond the model's length was
    not read.
    """

    item: Item
    score: float
    scorer: str = ""
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class TokenRows:
    """Token ids of n texts laid end to end: row i is ``ids[offsets[i]:offsets[i + 1]]``.

    ``term_classes`` has one class for every id, or is None where no lexicon was used.
    ``truncated`` is True for rows whose text did not fit.
    """

    ids: NDArray[np.int32]  # [tokens]
    offsets: NDArray[np.int64]  # [n + 1]
    truncated: NDArray[np.bool_]  # [n]
    term_classes: NDArray[np.int8] | None = None  # [tokens]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens in each row, ``[n]``."""
        return np.diff(self.offsets)

    def row(self, index: int) -> NDArray[np.int32]:
        """Token ids of one row, a view."""
        return self.ids[self.offsets[index] : self.offsets[index + 1]]

    def take(self, rows: NDArray[np.int64]) -> TokenRows:
        """The given rows, in the given order; repeated rows are copied."""
        starts = self.offsets[rows]
        lengths = self.offsets[rows + 1] - starts  # of these rows alone: there may be millions of others
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        source = np.repeat(starts - offsets[:-1], lengths) + np.arange(offsets[-1])
        classes = None if self.term_classes is None else self.term_classes[source]
        return TokenRows(self.ids[source], offsets, self.truncated[rows], classes)

    def cut(self, most: int) -> TokenRows:
        """The rows with at most so many tokens each; those that were longer are marked as truncated.

        >>> rows = TokenRows(np.array([5, 6, 7], np.int32), np.array([0, 1, 3]), np.array([False, False]))
        >>> shorter = rows.cut(1)
        >>> shorter.ids.tolist(), shorter.truncated.tolist()
        ([5, 6], [False, True])
        """
        longer = self.lengths > most
        if not longer.any():
            return self
        kept = np.arange(len(self.ids)) - np.repeat(self.offsets[:-1], self.lengths) < most
        offsets = np.concatenate([[0], np.cumsum(np.minimum(self.lengths, most))]).astype(np.int64)
        classes = None if self.term_classes is None else self.term_classes[kept]
        return TokenRows(self.ids[kept], offsets, self.truncated | longer, classes)

    @staticmethod
    def joined(parts: Sequence[TokenRows]) -> TokenRows:
        """All rows of the parts, one part after the other; without classes a token has class 0."""
        offsets = np.cumsum([0, *np.concatenate([part.lengths for part in parts])], dtype=np.int64)
        classes = None
        if any(part.term_classes is not None for part in parts):
            given = [np.zeros(len(p.ids), np.int8) if p.term_classes is None else p.term_classes for p in parts]
            classes = np.concatenate(given)
        ids = np.concatenate([part.ids for part in parts])
        return TokenRows(ids, offsets, np.concatenate([part.truncated for part in parts]), classes)


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """A batch of pairs as arrays, query block first, padding inside each block.

    All arrays are ``[batch, length]``. ``mask`` is True on real tokens. ``query_length`` columns
    belong to the query block, the rest to the item block.
    """

    token_ids: NDArray[np.int64]
    mask: NDArray[np.bool_]
    segment_ids: NDArray[np.int64]
    position_ids: NDArray[np.int64]
    term_class_ids: NDArray[np.int64]
    query_length: int

    def __len__(self) -> int:
        return len(self.token_ids)

    def inputs(self) -> dict[str, NDArray[Any]]:
        """The arrays by the names that models and exported graphs use for their inputs."""
        return {name: getattr(self, name) for name in MODEL_INPUTS}

    def blocks(self) -> tuple[TokenRows, TokenRows]:
        """The token rows of both blocks, as they were before they were put together: without special tokens."""
        return self._rows(slice(1, self.query_length)), self._rows(slice(self.query_length, None))

    def _rows(self, columns: slice) -> TokenRows:
        mask = self.mask[:, columns]
        lengths = mask.sum(axis=1) - 1  # the last real token of each is [SEP]
        inside = np.arange(mask.shape[1])[None] < lengths[:, None]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        ids = self.token_ids[:, columns][inside].astype(np.int32)
        classes = self.term_class_ids[:, columns][inside].astype(np.int8)
        return TokenRows(ids, offsets, np.zeros(len(self), dtype=np.bool_), classes)


MODEL_INPUTS = ("token_ids", "mask", "segment_ids", "position_ids", "term_class_ids")


@runtime_checkable
class PairScorer(Protocol):
    """Anything that scores items for a query: an engine, a baseline, a judge, a remote server.

    ``score`` takes one query and n item texts and returns float32 ``[n]`` in input order. A
    score never depends on the other items of the call.
    """

    name: str

    def score(self, query: str, titles: Sequence[str]) -> NDArray[np.float32]: ...


def by_query(judgments: Sequence[Judgment]) -> Iterator[tuple[str, list[int]]]:
    """Queries in order of first appearance, each with the row numbers of its judgments.

    >>> rows = [Judgment("a", "1", 1.0), Judgment("b", "1", 0.0), Judgment("a", "2", 0.0)]
    >>> list(by_query(rows))
    [('a', [0, 2]), ('b', [1])]
    """
    groups: dict[str, list[int]] = {}
    for row, judgment in enumerate(judgments):
        groups.setdefault(judgment.query, []).append(row)
    yield from groups.items()
