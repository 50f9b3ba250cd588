"""Scores that were computed before: what they are kept under, and the levels they are looked up in.

A cached logit is the very float32 that a scorer computed. It is found by the normalized query, the item's id
and the digest of its text, under a stamp of everything else that decides a score: the content of the model
with its lexicon, layout and calibration, the backend, and the normalizer. A changed title, model or lexicon
cannot hit: what it would be found under is different. So are scores from item states of a late-join model.

Scores are kept as one block a query, so that a request with thousands of items needs one look-up, not
thousands. Levels are asked in order, the nearest first; each is only asked for what is still missing.
"""

from __future__ import annotations

import hashlib
import json
import threading
import unicodedata
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pertinent.engine.index import tokenizer_digest
from pertinent.lexicon.pairs import PairTokenizer
from pertinent.text import NORMALIZER

Rows = NDArray[np.int64]
Digests = NDArray[np.uint64]
# Of one query no more are kept in memory or in Redis; the newest block goes before what was there.
MAX_ITEMS = 8_192
_ENTRY_BYTES = 21  # of an item in a block: two digests, a logit, a flag
_STATES = np.frombuffer(hashlib.blake2b(b"item states", digest_size=16).digest(), dtype="<u8")
_BLOCK_BYTES = 600  # of a block itself, with its place in the table


@dataclass(frozen=True, slots=True)
class Block:
    """Cached scores of one query by item digest. ``heads`` rise strictly; both halves must be equal for a hit."""

    heads: Digests  # [n], first half of the items' digests
    checks: Digests  # [n], second half
    logits: NDArray[np.float32]  # [n]
    truncated: NDArray[np.bool_]  # [n], whether the item's text was cut

    def __len__(self) -> int:
        return len(self.heads)

    @classmethod
    def of(cls, items: Digests, logits: NDArray[np.float32], truncated: NDArray[np.bool_]) -> Block:
        """A block of items with digests ``[n, 2]``; of equal ones the first counts, what is not finite is left out."""
        finite = np.flatnonzero(np.isfinite(logits))
        heads, first = np.unique(items[finite, 0], return_index=True)
        rows = finite[first]
        return cls(heads, items[rows, 1], logits[rows].astype(np.float32), truncated[rows])

    def find(self, items: Digests) -> Rows:
        """The place of each item in the block, -1 where it is not there, ``[n]``."""
        if not len(self):
            return np.full(len(items), -1, dtype=np.int64)
        places = np.minimum(np.searchsorted(self.heads, items[:, 0]), len(self) - 1)
        same = (self.heads[places] == items[:, 0]) & (self.checks[places] == items[:, 1])
        return np.where(same, places, -1)

    def with_older(self, older: Block | None, most: int = MAX_ITEMS) -> Block:
        """This block and what an older one has besides, ``most`` items at most.

        Where there is no room for all, those with the smallest digests are kept, of the older block if this one
        fits, else of this one: a block does not know when its items came.
        """
        if older is None or not len(older) or len(self) >= most:
            return self if len(self) <= most else self._first(most)
        besides = np.flatnonzero(~np.isin(older.heads, self.heads))[: most - len(self)]
        if not len(besides):
            return self
        heads = np.concatenate([self.heads, older.heads[besides]])
        order = np.argsort(heads)
        return Block(
            heads[order],
            np.concatenate([self.checks, older.checks[besides]])[order],
            np.concatenate([self.logits, older.logits[besides]])[order],
            np.concatenate([self.truncated, older.truncated[besides]])[order],
        )

    def _first(self, most: int) -> Block:
        return Block(self.heads[:most], self.checks[:most], self.logits[:most], self.truncated[:most])


class Level(Protocol):
    """A place where blocks are kept. Nothing of it raises: what goes wrong is a miss, and counted in ``errors``."""

    @property
    def name(self) -> str: ...

    @property
    def errors(self) -> int: ...

    def blocks(self, queries: Sequence[bytes]) -> list[Block | None]:
        """The block of each query digest, None where there is none."""
        ...

    def keep(self, query: bytes, block: Block) -> None:
        """Add the scores of a block to those of its query."""
        ...


class MemoryScores:
    """Blocks of the queries asked last, in this process, at most so many bytes."""

    name = "memory"

    def __init__(self, limit: int) -> None:
        self.limit, self.errors = limit, 0
        self._blocks: OrderedDict[bytes, Block] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    @property
    def size(self) -> int:
        """Bytes that the blocks take, about."""
        return self._bytes

    def blocks(self, queries: Sequence[bytes]) -> list[Block | None]:
        """See `Level`."""
        with self._lock:
            found = [self._blocks.get(query) for query in queries]
            for query, block in zip(queries, found, strict=True):
                if block is not None:
                    self._blocks.move_to_end(query)
            return found

    def keep(self, query: bytes, block: Block) -> None:
        """See `Level`."""
        with self._lock:
            older = self._blocks.pop(query, None)
            merged = block.with_older(older)
            self._blocks[query] = merged
            self._bytes += _size(merged) - (0 if older is None else _size(older))
            while self._bytes > self.limit and self._blocks:
                self._bytes -= _size(self._blocks.popitem(last=False)[1])


@dataclass(slots=True)
class CacheCounts:
    """How many pairs each level had, and how many none had; safe to use from several threads."""

    hits: Counter[str] = field(default_factory=Counter)
    misses: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, hits: Mapping[str, int], misses: int) -> None:
        """Count one look-up."""
        with self._lock:
            self.hits.update(hits)
            self.misses += misses

    @property
    def hit_rate(self) -> float:
        """The share of pairs that some level had; 0 before any were asked for."""
        asked = sum(self.hits.values()) + self.misses
        return (asked - self.misses) / asked if asked else 0.0


@dataclass(frozen=True, slots=True)
class Found:
    """What the levels had. ``level`` is the number of the level that had a pair, -1 for none."""

    logits: NDArray[np.float32]  # [n]
    truncated: NDArray[np.bool_]  # [n]
    level: NDArray[np.int8]  # [n]

    @property
    def hit(self) -> NDArray[np.bool_]:
        """Which pairs were there, ``[n]``."""
        return self.level >= 0


class ScoreCaches:
    """The levels of one scorer, nearest first; counts are shared where models come and go."""

    def __init__(self, stamp: bytes, levels: Sequence[Level], counts: CacheCounts | None = None) -> None:
        self.stamp, self.levels = stamp, tuple(levels)
        self.counts = counts if counts is not None else CacheCounts()

    def find(self, queries: Sequence[str], query_rows: Rows, items: Digests) -> Found:
        """The cached scores of pairs: query ``query_rows[i]`` (normalized) with the item of digest ``items[i]``."""
        size = len(query_rows)
        found = Found(np.zeros(size, np.float32), np.zeros(size, np.bool_), np.full(size, -1, np.int8))
        digests = [query_digest(self.stamp, query) for query in queries]
        groups = _groups(query_rows, len(queries))
        hits = dict[str, int]()
        for number, level in enumerate(self.levels):
            asked = [place for place, rows in enumerate(groups) if len(rows)]
            if not asked:
                break
            before = sum(len(rows) for rows in groups)
            for place, block in zip(asked, level.blocks([digests[place] for place in asked]), strict=True):
                if block is not None:
                    groups[place] = _fill(found, groups[place], block, items, number)
            hits[level.name] = before - sum(len(rows) for rows in groups)
        self._promote(found, query_rows, digests, items)
        self.counts.add(hits, sum(len(rows) for rows in groups))
        return found

    def keep(
        self,
        queries: Sequence[str],
        query_rows: Rows,
        items: Digests,
        logits: NDArray[np.float32],
        truncated: NDArray[np.bool_],
    ) -> None:
        """Add scores that were just computed. What is not finite is not kept."""
        for query, rows in zip(queries, _groups(query_rows, len(queries)), strict=True):
            if len(rows):
                block = Block.of(items[rows], logits[rows], truncated[rows])
                for level in self.levels:
                    level.keep(query_digest(self.stamp, query), block)

    def _promote(self, found: Found, query_rows: Rows, digests: Sequence[bytes], items: Digests) -> None:
        """Keep in memory what came from a place further away."""
        memory = next((number for number, level in enumerate(self.levels) if isinstance(level, MemoryScores)), None)
        if memory is None or not (found.level > memory).any():
            return
        for digest, rows in zip(digests, _groups(query_rows, len(digests)), strict=True):
            rows = rows[found.level[rows] > memory]
            if len(rows):
                self.levels[memory].keep(digest, Block.of(items[rows], found.logits[rows], found.truncated[rows]))


def score_stamp(pairs: PairTokenizer, model_version: str, backend: str) -> bytes:
    """Sixteen bytes over all that decides a score besides the query and the item."""
    told = [NORMALIZER, unicodedata.unidata_version, model_version, backend, tokenizer_digest(pairs)]
    return hashlib.blake2b(json.dumps(told).encode(), digest_size=16).digest()


def of_states(items: Digests) -> Digests:
    """The digests ``[n, 2]`` that scores from item states are kept under.

    States are float16, so such scores differ a little from those of the whole pairs, and must not hit for them.

    >>> of_states(np.zeros((2, 2), np.uint64)).tolist() == np.zeros((2, 2)).tolist()
    False
    """
    return items ^ _STATES


def query_digest(stamp: bytes, query: str) -> bytes:
    """Sixteen bytes over a normalized query, for one stamp.

    >>> query_digest(b"model 1", "tea") == query_digest(b"model 2", "tea")
    False
    """
    return hashlib.blake2b(query.encode("utf-8", "replace"), digest_size=16, key=stamp).digest()


def _groups(query_rows: Rows, queries: int) -> list[Rows]:
    """For each query the places of its pairs."""
    if queries == 1:
        return [np.arange(len(query_rows))]
    order = np.argsort(query_rows, kind="stable")
    return np.split(order, np.searchsorted(query_rows[order], np.arange(1, queries)))


def _fill(found: Found, rows: Rows, block: Block, items: Digests, number: int) -> Rows:
    """Take over what a block has of the given pairs; gives the pairs that it has not."""
    places = block.find(items[rows])
    hit = places >= 0
    found.logits[rows[hit]] = block.logits[places[hit]]
    found.truncated[rows[hit]] = block.truncated[places[hit]]
    found.level[rows[hit]] = number
    return rows[~hit]


def _size(block: Block) -> int:
    return _ENTRY_BYTES * len(block) + _BLOCK_BYTES
