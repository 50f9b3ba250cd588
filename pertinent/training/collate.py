"""Pairs as arrays, batches planned by length, and batches as tensors.

Everything is tokenized once. A step then costs one numpy assembly: no text, no Python loop over
rows. Which rows form which batch depends on the seed and the epoch alone, so a resumed run sees
the batches that the killed one would have seen.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pertinent.errors import DataError
from pertinent.lexicon.pairs import PairTokenizer
from pertinent.records import MODEL_INPUTS, TokenRows

if TYPE_CHECKING:
    from torch import Tensor

    from pertinent.data.neighbors import ExampleNeighbors
    from pertinent.training.negatives import BatchNegatives

Rows = NDArray[np.int64]
Floats = NDArray[np.float32]

# Rows are sorted by length inside stretches of so many batches: long enough that the rows of a
# batch are about equally long, short enough that batches still differ from epoch to epoch.
STRETCH = 50


_PAIR_ARRAYS = ("query_rows", "item_rows", "relevant", "grade", "teacher")


@dataclass(frozen=True, slots=True)
class SlotRows:
    """Neighbor texts of one side as tokens, and which of them each pair has.

    ``slots [pairs, slots]`` are rows of ``texts``, strongest first, ``counts [pairs]`` how many are real.
    """

    texts: TokenRows
    slots: NDArray[np.int32]
    counts: Rows

    def take(self, rows: Rows) -> SlotRows:
        """Those of the given pairs; texts are shared."""
        return SlotRows(self.texts, self.slots[rows], self.counts[rows])

    def tensors(self, rows: Rows) -> tuple[NDArray[np.int64], NDArray[np.int64], Rows]:
        """Distinct texts ``[texts, length]`` with -1 beyond their end, slots and counts of some pairs."""
        counts = self.counts[rows]
        slots = self.slots[rows, : max(1, int(counts.max(initial=0)))]
        real = np.arange(slots.shape[1])[None] < counts[:, None]
        used, places = np.unique(slots[real].astype(np.int64), return_inverse=True)
        local = np.zeros(slots.shape, dtype=np.int64)
        local[real] = places
        taken = self.texts.take(used)
        width = max(1, int(taken.lengths.max(initial=0)))
        texts = np.full((max(1, len(used)), width), -1, dtype=np.int64)
        texts[: len(used)][np.arange(width)[None] < taken.lengths[:, None]] = taken.ids
        return texts, local, counts


@dataclass(frozen=True, slots=True)
class NeighborRows:
    """What the pairs of a training set may see of behavior: neighbor queries of items, neighbor items of queries."""

    queries: SlotRows
    items: SlotRows

    @classmethod
    def build(cls, pairs: PairTokenizer, found: ExampleNeighbors) -> Self:
        """The neighbors of examples, tokenized once a text."""
        return cls(
            SlotRows(pairs.encode_queries(found.queries.texts), found.queries.slots, found.queries.counts),
            SlotRows(pairs.encode_items(found.items.texts), found.items.slots, found.items.counts),
        )

    def take(self, rows: Rows) -> Self:
        """Those of the given pairs."""
        return replace(self, queries=self.queries.take(rows), items=self.items.take(rows))

    @property
    def aware(self) -> NDArray[np.bool_]:
        """Which pairs have a neighbor on either side, ``[pairs]``."""
        return (self.queries.counts > 0) | (self.items.counts > 0)


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """Tokenized pairs with their targets; NaN where a pair has no such target.

    Pair i is query row ``query_rows[i]`` with item row ``item_rows[i]``; pairs of one query row
    form a group. ``relevant`` is 0 or 1, ``grade`` a soft target, ``teacher`` a logit. ``neighbors`` is for
    networks that read behavior.
    """

    queries: TokenRows
    items: TokenRows
    query_rows: Rows  # [pairs]
    item_rows: Rows  # [pairs]
    relevant: Floats  # [pairs]
    grade: Floats  # [pairs]
    teacher: Floats  # [pairs]
    neighbors: NeighborRows | None = None

    @classmethod
    def build(
        cls,
        pairs: PairTokenizer,
        queries: Sequence[str],
        titles: Sequence[str],
        relevant: ArrayLike | None = None,
        grade: ArrayLike | None = None,
        teacher: ArrayLike | None = None,
    ) -> Self:
        """A training set from texts; each distinct text is tokenized once.

        Raises DataError for columns of different lengths and targets outside their range.
        """
        size = len(queries)
        columns = {"relevant": relevant, "grade": grade, "teacher": teacher}
        targets = {name: _target(name, values, size) for name, values in columns.items()}
        if len(titles) != size:
            raise DataError(f"{size} queries but {len(titles)} titles; give one title for each query")
        query_texts, query_rows = _distinct(queries)
        item_texts, item_rows = _distinct(titles)
        tokens = pairs.encode_queries(query_texts), pairs.encode_items(item_texts)
        return cls(*tokens, query_rows, item_rows, targets["relevant"], targets["grade"], targets["teacher"])

    def __len__(self) -> int:
        return len(self.query_rows)

    @property
    def size_keys(self) -> Rows:
        """Numbers by which to sort pairs, so that neighbors are about equally long in both blocks.

        Each block is as wide as its longest row, so the sum of both lengths is not enough: titles
        come first, in steps of four tokens, and queries sort inside a step. On ESCI this saves
        a tenth of all columns against sorting by the sum.
        """
        return self.items.lengths[self.item_rows] // 4 * 1024 + self.queries.lengths[self.query_rows]

    def take(self, rows: Rows) -> Self:
        """The given pairs in the given order; texts are shared, not copied."""
        names = ("query_rows", "item_rows", "relevant", "grade", "teacher")
        neighbors = None if self.neighbors is None else self.neighbors.take(rows)
        return replace(self, neighbors=neighbors, **{name: getattr(self, name)[rows] for name in names})

    def with_irrelevant(self, query_rows: Rows, item_rows: Rows) -> Self:
        """These pairs and after them those of the given rows, which are irrelevant."""
        none = np.zeros(len(query_rows), dtype=np.float32)
        return replace(
            self,
            query_rows=np.concatenate([self.query_rows, query_rows]),
            item_rows=np.concatenate([self.item_rows, item_rows]),
            relevant=np.concatenate([self.relevant, none]),
            grade=np.concatenate([self.grade, none]),
            teacher=np.concatenate([self.teacher, none + np.nan]),
        )

    def fingerprint(self) -> str:
        """A digest of everything in it, to tell whether a resumed run has the same data."""
        import hashlib

        digest = hashlib.blake2b(digest_size=16)
        sides = () if self.neighbors is None else (self.neighbors.queries, self.neighbors.items)
        for part in (self.queries, self.items, *(side.texts for side in sides)):
            for array in (part.ids, part.offsets, part.term_classes):
                digest.update(b"" if array is None else np.ascontiguousarray(array).data)
        for array in (
            *(getattr(self, name) for name in _PAIR_ARRAYS),
            *(a for s in sides for a in (s.slots, s.counts)),
        ):
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


def join(sets: Sequence[TrainingSet]) -> TrainingSet:
    """One training set of several. Pairs of different sets are never in one group.

    Two sets may have been scored by different teachers, whose margins do not compare.
    """
    if len(sets) == 1:
        return sets[0]
    if any(part.neighbors is not None for part in sets):
        raise DataError("sets with neighbors do not join", fix="train on one table of pairs")
    query_start = np.cumsum([0, *(len(part.queries) for part in sets)])
    item_start = np.cumsum([0, *(len(part.items) for part in sets)])
    return TrainingSet(
        _join_rows([part.queries for part in sets]),
        _join_rows([part.items for part in sets]),
        np.concatenate([part.query_rows + start for part, start in zip(sets, query_start, strict=False)]),
        np.concatenate([part.item_rows + start for part, start in zip(sets, item_start, strict=False)]),
        np.concatenate([part.relevant for part in sets]),
        np.concatenate([part.grade for part in sets]),
        np.concatenate([part.teacher for part in sets]),
    )


class BatchPlan:
    """The batches of every epoch: lists of pair rows, the same for the same seed.

    With ``groups`` a batch holds whole groups, so that losses over the items of a query see them
    together; groups larger than ``group_limit`` are split into parts, drawn anew every epoch.
    It is a batch sampler for a ``DataLoader`` that runs through all epochs, ``steps`` batches in
    all: epochs may differ in their number of batches, the whole may not.
    """

    drop_last = False

    def __init__(
        self,
        lengths: Rows,
        groups: Rows | None,
        batch_size: int,
        group_limit: int,
        epochs: int,
        max_steps: int | None,
        seed: int,
    ) -> None:
        self.batch_size = batch_size
        self._lengths, self._groups, self._limit, self._seed = lengths, groups, min(group_limit, batch_size), seed
        self.epoch = lru_cache(maxsize=1)(self._plan)
        ends = np.cumsum([self._count(epoch) for epoch in range(epochs)])
        self.steps = int(ends[-1]) if max_steps is None else min(int(ends[-1]), max_steps)
        # The step after which each epoch is over; the last one is where training ends.
        self.epoch_ends = [*(int(end) for end in ends if end < self.steps), self.steps]

    def epoch_at(self, step: int) -> float:
        """Epochs done after so many steps, with its fraction."""
        epoch = bisect_right(self.epoch_ends, step)
        if epoch == len(self.epoch_ends):
            return float(epoch)
        start = self.epoch_ends[epoch - 1] if epoch else 0
        return round(epoch + (step - start) / (self.epoch_ends[epoch] - start), 4)

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Rows]:
        left = self.steps
        epoch = 0
        while left:
            for batch in self.epoch(epoch)[:left]:
                left -= 1
                yield batch
            epoch += 1

    def _plan(self, epoch: int) -> list[Rows]:
        generator = np.random.default_rng([self._seed, epoch])
        if self._groups is None:
            return length_batches(self._lengths, self.batch_size, generator)
        return group_batches(self._groups, self._lengths, self.batch_size, self._limit, generator)

    def _count(self, epoch: int) -> int:
        return -(-len(self._lengths) // self.batch_size) if self._groups is None else len(self.epoch(epoch))


def length_batches(lengths: Rows, batch_size: int, generator: np.random.Generator) -> list[Rows]:
    """Batches of rows of about equal length, in random order; every row once.

    >>> rows = length_batches(np.array([9, 1, 8, 2]), 2, np.random.default_rng(0))
    >>> sorted(sorted(batch.tolist()) for batch in rows)
    [[0, 2], [1, 3]]
    """
    order = generator.permutation(len(lengths))
    stretch = np.arange(len(order)) // (STRETCH * batch_size)
    order = order[np.lexsort((lengths[order], stretch))]
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    return [batches[number] for number in generator.permutation(len(batches))]


def group_batches(
    groups: Rows, lengths: Rows, batch_size: int, group_limit: int, generator: np.random.Generator
) -> list[Rows]:
    """Batches of at most ``batch_size`` rows that hold whole groups; every row once.

    Groups with more than ``group_limit`` rows are split into random parts.

    >>> rows = group_batches(np.array([7, 8, 7, 8, 8]), np.ones(5, int), 3, 3, np.random.default_rng(0))
    >>> sorted(sorted(batch.tolist()) for batch in rows)
    [[0, 2], [1, 3, 4]]
    """
    if not len(groups):
        return []
    order = generator.permutation(len(groups))
    order = order[np.argsort(groups[order], kind="stable")]  # rows of a group together, shuffled inside
    _, starts, sizes = np.unique(groups[order], return_index=True, return_counts=True)
    inside = np.arange(len(order)) - np.repeat(starts, sizes)
    unit_starts = np.flatnonzero(inside % group_limit == 0)  # a unit is a group or a part of one
    unit_sizes = np.diff([*unit_starts, len(order)])
    unit_lengths = np.maximum.reduceat(lengths[order], unit_starts)
    units = generator.permutation(len(unit_starts))
    stretch = np.cumsum(unit_sizes[units]) // (STRETCH * batch_size)
    units = units[np.lexsort((unit_lengths[units], stretch))]
    batches: list[Rows] = []
    chosen: list[Rows] = []
    room = batch_size
    for start, size in zip(unit_starts[units].tolist(), unit_sizes[units].tolist(), strict=True):
        if size > room:
            batches.append(np.concatenate(chosen))
            chosen, room = [], batch_size
        chosen.append(order[start : start + size])
        room -= size
    batches.append(np.concatenate(chosen))
    return [batches[number] for number in generator.permutation(len(batches))]


class BatchRows:
    """What a ``DataLoader`` reads: asked for the rows of a batch, it gives the batch as tensors.

    With ``negatives`` the batch has further rows: irrelevant pairs of its clicked queries.
    """

    def __init__(self, examples: TrainingSet, pairs: PairTokenizer, negatives: BatchNegatives | None = None) -> None:
        self.examples, self.pairs, self.negatives = examples, pairs, negatives

    def __len__(self) -> int:
        return len(self.examples)

    def __getitems__(self, rows: Rows) -> dict[str, Tensor]:
        if self.negatives is None:
            return collate(self.examples, rows, self.pairs)
        rows = np.asarray(rows)
        own = self.examples.take(rows)
        queries, items = self.negatives.draw(rows, own.query_rows, own.item_rows)
        return collate(own.with_irrelevant(queries, items), np.arange(len(rows) + len(queries)), self.pairs)


def collate(examples: TrainingSet, rows: Rows, pairs: PairTokenizer) -> dict[str, Tensor]:
    """The tensors of a batch: the inputs of a network, the targets, and the group of each row.

    Each block is as wide as its longest row in this batch (ei-SRC, section 7).
    """
    import torch

    rows = np.asarray(rows)
    query_rows = examples.query_rows[rows]
    batch = pairs.assemble(examples.queries, query_rows, examples.items, examples.item_rows[rows], trim=True)
    arrays: dict[str, NDArray[Any]] = {
        **batch.inputs(),
        "relevant": examples.relevant[rows],
        "grade": examples.grade[rows],
        "teacher": examples.teacher[rows],
        "group": query_rows,
    }
    if examples.neighbors is not None:
        arrays["item"] = examples.item_rows[rows]
        for side in ("queries", "items"):
            parts = getattr(examples.neighbors, side).tensors(rows)
            arrays |= {f"neighbor_{side}_{name}": part for name, part in zip(_SLOT_ARRAYS, parts, strict=True)}
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def network_inputs(batch: dict[str, Tensor]) -> list[Any]:
    """What a network's ``forward`` takes of a batch, in its order: five tensors, and neighbors where there are any."""
    inputs: list[Any] = [batch[name] for name in MODEL_INPUTS]
    if "neighbor_queries_texts" in batch:
        from pertinent.models.barl_ase import Neighbors

        inputs += [Neighbors(*(batch[f"neighbor_{side}_{n}"] for n in _SLOT_ARRAYS)) for side in ("queries", "items")]
    return inputs


_SLOT_ARRAYS = ("texts", "slots", "counts")


def _target(name: str, values: ArrayLike | None, size: int) -> Floats:
    if values is None:
        return np.full(size, np.nan, dtype=np.float32)
    array = np.asarray(values, dtype=np.float32)
    if array.shape != (size,):
        raise DataError(f"{name}: {array.shape[0] if array.ndim else 0} values for {size} pairs; give one for each")
    known = array[~np.isnan(array)]
    if name == "teacher":
        wrong, allowed = known[~np.isfinite(known)], "a finite logit"
    elif name == "grade":
        wrong, allowed = known[(known < 0) | (known > 1)], "a number from 0 to 1"
    else:
        wrong, allowed = known[(known != 0) & (known != 1)], "0 or 1"
    if len(wrong):
        raise DataError(f"{name}: {wrong[0]} among the targets; give {allowed}, or NaN where there is none")
    return array


def _distinct(texts: Sequence[str]) -> tuple[list[str], Rows]:
    numbers: dict[str, int] = {}
    rows = [numbers.setdefault(text, len(numbers)) for text in texts]
    return list(numbers), np.array(rows, dtype=np.int64)


def _join_rows(parts: Sequence[TokenRows]) -> TokenRows:
    starts = np.cumsum([0, *(len(part.ids) for part in parts)])
    offsets = [part.offsets[:-1] + start for part, start in zip(parts, starts, strict=False)]
    known = [part.term_classes for part in parts]
    if any(classes is None for classes in known):
        classes = None
        assert all(one is None for one in known), "sets with and without term classes do not join"
    else:
        classes = np.concatenate([one for one in known if one is not None])
    return TokenRows(
        np.concatenate([part.ids for part in parts]),
        np.concatenate([*offsets, starts[-1:]]).astype(np.int64),
        np.concatenate([part.truncated for part in parts]),
        classes,
    )
