"""Late join: states of titles computed ahead of the query, and the scores of a query from them.

A model with ``join_layer`` or ``one_way`` reads titles apart from the query in some layers. What it
knows of a title by then is computed once, when the title is indexed; a query then costs the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from pertinent.artifact import Artifact, unchanged
from pertinent.engine.arrays import Ragged
from pertinent.engine.backends import open_backend
from pertinent.engine.batching import plan
from pertinent.engine.graph import AHEAD_INPUTS, JOIN_GRAPH_FILE, JOIN_INPUTS
from pertinent.errors import ConfigError
from pertinent.lexicon.pairs import PairTokenizer
from pertinent.records import TokenBatch, TokenRows

# Titles whose states are computed together, always so many: rows then do not depend on each other's number.
AHEAD_BATCH = 16
# Tokens of titles that are joined with the query at once.
JOIN_TOKENS = 4_096

# As ``map``, in order, on one thread or on several.
Mapper = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]


@runtime_checkable
class LateBackend(Protocol):
    """Runs the two parts of a network that joins late. Both may be called from ``workers`` threads at once."""

    name: str
    workers: int

    def ahead(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """What is known of titles before the query, ``[batch, length, state width]``."""
        ...

    def join(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """The relevance logits of one query with titles known ahead, ``[batch]``."""
        ...


def late_backend(artifact: Artifact, opened: Any, threads: int | None) -> LateBackend:
    """What runs the parts of a late-join model: the opened backend if it can, else ONNX Runtime or torch.

    Raises ArtifactError where another model has come to the artifact's folder since it was opened.
    """
    if isinstance(opened, LateBackend):
        return opened
    with unchanged(artifact):
        other: Any = open_backend(artifact, "onnx" if artifact.has(JOIN_GRAPH_FILE) else "torch", threads)
    assert isinstance(other, LateBackend)
    return other


def item_states(backend: LateBackend, pairs: PairTokenizer, items: TokenRows, spread: Mapper = map) -> Ragged:
    """The states of titles, float16 ``[rows, state width]``: for each its tokens and its separator.

    The states of a title do not depend on the other titles of the call, bit for bit.
    """
    if pairs.config.positions != "block":
        raise ConfigError(
            "states of titles cannot be computed ahead with `positions: running`, where a title's place depends on "
            "the query; train with `positions: block`"
        )
    lengths = items.lengths + 1  # with [SEP]
    order = np.argsort(lengths, kind="stable")
    cuts = np.flatnonzero(np.diff(lengths[order])) + 1
    batches = [
        rows[start : start + AHEAD_BATCH]
        for rows in np.split(order, cuts)
        for start in range(0, len(rows), AHEAD_BATCH)
    ]
    query = pairs.encode_queries([""])

    def states(rows: NDArray[np.int64]) -> NDArray[np.float16]:
        filled = np.resize(rows, AHEAD_BATCH)  # of one length, and always as many: no row then moves another
        batch = pairs.assemble(query, np.zeros_like(filled), items, filled)
        return backend.ahead(title_inputs(batch))[: len(rows)].astype(np.float16)

    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    values: NDArray[np.float16] | None = None
    for rows, found in zip(batches, spread(states, batches), strict=True):
        if values is None:
            values = np.empty((int(offsets[-1]), found.shape[-1]), dtype=np.float16)
        places = offsets[rows][:, None] + np.arange(found.shape[1])
        values[places] = found
    return Ragged(np.zeros((0, 1), dtype=np.float16) if values is None else values, offsets)


@dataclass(slots=True)
class ItemStateWriter:
    """Computes states of items for an index; they are of this version of the model."""

    version: str
    hidden: int
    backend: LateBackend
    pairs: PairTokenizer
    spread: Mapper = map

    def states(self, items: TokenRows) -> Ragged:
        """The states of items: for each, rows of ``hidden`` float16; ``values`` is ``[rows, hidden]``."""
        if not len(items):  # there is no item to tell the width
            return Ragged(np.zeros((0, self.hidden), dtype=np.float16), np.zeros(1, dtype=np.int64))
        return item_states(self.backend, self.pairs, items, self.spread)


def join_logits(
    backend: LateBackend,
    pairs: PairTokenizer,
    query: TokenRows,
    states: Ragged,
    rows: NDArray[np.int64],
    spread: Mapper = map,
) -> NDArray[np.float32]:
    """The relevance logits of one tokenized query with titles given by rows of known states, ``[rows]``."""
    nothing = TokenRows(np.zeros(0, np.int32), np.zeros(2, np.int64), np.zeros(1, np.bool_))
    zero = np.zeros(1, dtype=np.int64)
    asked = query_inputs(pairs.assemble(query, zero, nothing, zero))
    lengths = states.offsets[rows + 1] - states.offsets[rows]
    batches = plan(np.zeros_like(lengths), lengths, JOIN_TOKENS, backend.workers, overhead=JOIN_TOKENS // 8)

    def join(places: NDArray[np.int64]) -> NDArray[np.float32]:
        known, mask = padded(states, rows[places])
        return backend.join(join_inputs(asked, known, mask))

    logits = np.zeros(len(rows), dtype=np.float32)
    for places, found in zip(batches, spread(join, batches), strict=True):
        logits[places] = found
    return logits


def padded(states: Ragged, rows: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Rows of states as one block ``[n, length, width]`` and its mask ``[n, length]``; what is masked is 0.

    >>> block, mask = padded(Ragged(np.ones((3, 2)), np.array([0, 1, 3])), np.array([1, 0]))
    >>> block[..., 0].tolist(), mask.tolist()
    ([[1.0, 1.0], [1.0, 0.0]], [[True, True], [True, False]])
    """
    taken = states.take(rows)
    lengths = taken.lengths
    columns = np.arange(int(lengths.max(initial=0)))
    mask = columns < lengths[:, None]  # [n, length]
    block = np.zeros((*mask.shape, states.values.shape[-1]), dtype=states.values.dtype)
    block[mask] = taken.values
    return block, mask


def title_inputs(batch: TokenBatch) -> dict[str, NDArray[Any]]:
    """What ``ahead`` takes: the item block of a batch of pairs."""
    return {name: getattr(batch, name)[:, batch.query_length :] for name in AHEAD_INPUTS}


def query_inputs(batch: TokenBatch) -> dict[str, NDArray[Any]]:
    """What ``join`` takes of the query: the query block of the first pair, without its padding."""
    length = int(batch.mask[0, : batch.query_length].sum())
    return {name: getattr(batch, name)[:1, :length] for name in JOIN_INPUTS[:3]}


def join_inputs(
    query: Mapping[str, NDArray[Any]], states: NDArray[Any], mask: NDArray[np.bool_]
) -> dict[str, NDArray[Any]]:
    """What ``join`` takes: a query, and titles as states ``[n, length, width]`` with their mask."""
    return {**query, "item_states": states, "item_mask": mask}
