"""Scoring on a GPU: the exact schedule over packed tokens in bfloat16, one CUDA graph for each shape.

A graph is captured when a shape is first seen and replayed from then on, which leaves a launch a call where
plain torch has some dozens. Shapes are rounded up, so that few are needed (``docs/engine.md``).
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from pertinent.artifact import Artifact
from pertinent.engine.arrays import Ragged
from pertinent.errors import ConfigError, DataError, need
from pertinent.lexicon.pairs import PairTokenizer
from pertinent.models.store import load_network, load_pairs, model_settings
from pertinent.records import TokenBatch, TokenRows

if TYPE_CHECKING:
    from pertinent.models.packed import PackedEiSRC, PackedPairs, Shape

# Pairs of one call: long enough to fill a GPU, and pairs of like length stay together.
CALL_PAIRS = 1_024
# Graphs that are kept, the last used ones; each holds the memory of its widest step.
KEPT_GRAPHS = 32


class CudaBackend:
    """Runs the packed network on a GPU, one call at a time; near the float32 scores, not equal to them."""

    name = "cuda"
    workers = 1

    def __init__(self, network: PackedEiSRC, pairs: PairTokenizer) -> None:
        self._network = network
        self._pairs = pairs
        self._graphs: OrderedDict[Shape, _Graph] = OrderedDict()
        self._lock = threading.Lock()

    @classmethod
    def open(cls, artifact: Artifact, threads: int) -> Self:
        """The network of a model on the first GPU. Raises ConfigError where there is none, or another network."""
        torch = need("torch", extra="train")
        network = model_settings(artifact)["network"]
        if network.get("type", "ei_src") != "ei_src" or network.get("join_layer") or network.get("one_way"):
            raise ConfigError(
                f"{artifact.path}: the backend 'cuda' computes exact ei_src networks; score with 'native', 'onnx' or "
                "'torch'"
            )
        if not torch.cuda.is_available():
            raise ConfigError("the backend 'cuda' needs a GPU that torch can use, and there is none; use another one")
        from pertinent.models.packed import PackedEiSRC

        loaded: Any = load_network(artifact)[0]
        dtype = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
        return cls(PackedEiSRC(loaded, dtype, "cuda"), load_pairs(artifact))

    def forward_rows(
        self,
        queries: TokenRows,
        query_rows: NDArray[np.int64],
        items: TokenRows,
        item_rows: NDArray[np.int64],
        threads: int | None = None,
    ) -> NDArray[np.float32]:
        """The logit of each pair of rows, ``[n]``, in the order given; ``threads`` plays no part."""
        lengths = queries.lengths[query_rows] + items.lengths[item_rows]
        order = np.argsort(lengths, kind="stable")
        logits = np.zeros(len(order), dtype=np.float32)
        with self._lock:
            for start in range(0, len(order), CALL_PAIRS):
                chosen = order[start : start + CALL_PAIRS]
                logits[chosen] = self._run(
                    packed_pairs(self._pairs, queries, query_rows[chosen], items, item_rows[chosen])
                )
        return logits

    def join_rows(
        self,
        queries: TokenRows,
        query_rows: NDArray[np.int64],
        states: Ragged,
        item_rows: NDArray[np.int64],
        threads: int | None = None,
    ) -> NDArray[np.float32]:
        """Raises DataError: the networks that this backend opens have no item states."""
        raise DataError("the model joins query and item in its first layer", fix="index the items again")

    def forward(self, batch: TokenBatch) -> NDArray[np.float32]:
        """The relevance logit of each pair of a padded batch, ``[batch]``."""
        places = np.arange(len(batch))
        queries, items = batch.blocks()
        return self.forward_rows(queries, places, items, places)

    def _run(self, pairs: PackedPairs) -> NDArray[np.float32]:
        import torch

        count = len(pairs.query_count)
        shape = rounded(pairs.shape)
        arrays = pairs.padded(shape)
        if self._network.device.type != "cuda":
            tensors = tuple(torch.from_numpy(array).to(self._network.device) for array in arrays)
            found = self._network(tensors, shape.tokens, shape.length)
        else:
            if shape not in self._graphs:
                while len(self._graphs) >= KEPT_GRAPHS:
                    self._graphs.popitem(last=False)
                self._graphs[shape] = _Graph(self._network, arrays, shape)
            self._graphs.move_to_end(shape)
            found = self._graphs[shape].run(arrays)
        logits: NDArray[np.float32] = found[:count].cpu().numpy()
        return logits


class _Graph:
    """The network captured for one shape, with the inputs that it reads."""

    def __init__(self, network: PackedEiSRC, arrays: PackedPairs, shape: Shape) -> None:
        import torch

        self._inputs = tuple(torch.from_numpy(array).to(network.device) for array in arrays)
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # what is set up at first use must not be captured
            for _ in range(3):
                network(self._inputs, shape.tokens, shape.length)
        torch.cuda.current_stream().wait_stream(aside)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._logits = network(self._inputs, shape.tokens, shape.length)

    def run(self, arrays: PackedPairs) -> Any:
        """Logits ``[pairs]`` of arrays in the shape of the graph; the next run overwrites them."""
        import torch

        for held, given in zip(self._inputs, arrays, strict=True):
            held.copy_(torch.from_numpy(given))
        self._graph.replay()
        return self._logits


def rounded(shape: Shape) -> Shape:
    """A shape that holds another and is one of few: an eighth more at most, and a little for small ones.

    >>> from pertinent.models.packed import Shape
    >>> rounded(Shape(1000, 1000, 30000, 45)), rounded(Shape(3, 1, 5, 5))
    (Shape(rows=1024, pairs=1024, tokens=30720, length=48), Shape(rows=256, pairs=32, tokens=256, length=8))
    """
    from pertinent.models.packed import Shape

    return Shape(
        _up(shape.rows, 256),
        # Pairs that are added to fill the shape have a token each.
        (pairs := _up(shape.pairs, 32)),
        _up(shape.tokens + pairs - shape.pairs, 256),
        -(-shape.length // 8) * 8,
    )


def _up(value: int, least: int) -> int:
    """The next multiple of an eighth of the power of two above, at least ``least``."""
    step = max(least, 1 << max(0, value.bit_length() - 4))
    return max(1, -(-value // step)) * step


def packed_pairs(
    pairs: PairTokenizer,
    queries: TokenRows,
    query_rows: NDArray[np.int64],
    items: TokenRows,
    item_rows: NDArray[np.int64],
) -> PackedPairs:
    """Pairs of token rows as runs of distinct rows: each query once, and each item once for a place in the pair."""
    from pertinent.models.packed import PackedPairs

    asked, query_of = np.unique(query_rows, return_inverse=True)
    query_count = (queries.lengths[asked] + 2)[query_of]  # [CLS] and [SEP]
    # Where an item's positions begin: at a fixed place, or behind its query.
    running = pairs.config.positions == "running"
    begins = query_count if running else np.full(len(query_rows), pairs.config.query_length)
    (given, begin), item_of = np.unique(np.stack([item_rows, begins]), axis=1, return_inverse=True)
    sides = (
        _framed(queries.take(asked), (pairs.cls_id,), pairs.sep_id),
        _framed(items.take(given), (), pairs.sep_id),
    )
    (query_ids, query_classes, query_starts), (item_ids, item_classes, item_starts) = sides
    item_counts = np.diff(item_starts)
    positions = [
        np.arange(len(query_ids)) - np.repeat(query_starts[:-1], np.diff(query_starts)),
        np.arange(len(item_ids)) - np.repeat(item_starts[:-1] - begin, item_counts),
    ]
    item_of = item_of.reshape(-1)
    return PackedPairs(
        np.concatenate([query_ids, item_ids]),
        np.repeat(np.arange(2), [len(query_ids), len(item_ids)]),
        np.concatenate(positions),
        np.concatenate([query_classes, item_classes]),
        query_starts[query_of],
        query_count,
        len(query_ids) + item_starts[item_of],
        item_counts[item_of],
    )


def _framed(rows: TokenRows, before: tuple[int, ...], after: int) -> tuple[NDArray[np.int64], ...]:
    """Ids and term classes of rows with special tokens around each, laid end to end, and where each row begins."""
    extra = len(before) + 1
    starts = rows.offsets - rows.offsets[0] + extra * np.arange(len(rows.offsets))
    ids, classes = np.zeros((2, int(starts[-1])), np.int64)
    inside = np.arange(int(rows.offsets[-1] - rows.offsets[0]))
    inside += np.repeat(extra * np.arange(len(rows)) + len(before), rows.lengths)
    ids[inside] = rows.ids
    if rows.term_classes is not None:
        classes[inside] = rows.term_classes
    for place, token in enumerate(before):
        ids[starts[:-1] + place] = token
    ids[starts[1:] - 1] = after
    return ids, classes, starts
