"""BARL-ASe at serving time: neighbors encoded ahead, and one query with many items from them.

`NumpyBarl` needs no torch. It uses what a request shares: the query, its encoded neighbors, and the words that
come in many titles, whose attention score depends on the query and the word alone (bags have no order).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pertinent.artifact import Artifact
from pertinent.errors import ConfigError, need
from pertinent.lexicon.pairs import PairTokenizer
from pertinent.models.store import WEIGHTS_FILE, model_settings
from pertinent.models.weights import load_weights
from pertinent.probability import sigmoid
from pertinent.records import TokenRows

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]
_HIDDEN = np.float32(-1e9)
_NORM_EPS = np.float32(1e-5)


@dataclass(frozen=True, slots=True)
class Encoded:
    """Encoded neighbors, ``[n, slots, hidden]`` (``[1, ...]`` where all rows share them), and how many are real."""

    vectors: Floats
    counts: Rows

    @property
    def mask(self) -> NDArray[np.bool_]:
        """True on real slots, ``[n, slots]``."""
        return np.arange(self.vectors.shape[1])[None] < self.counts[:, None]


@dataclass(frozen=True, slots=True)
class BarlScores:
    """Logits and gate (1: text alone) of n items, and how much each neighbor spoke, ``[n, slots]``."""

    logit: Floats
    text: Floats
    behavior: Floats
    gate: Floats
    item_weights: Floats
    query_weights: Floats


class BarlEngine(Protocol):
    """Runs the two parts of a BARL-ASe network: neighbors ahead, and a query with items."""

    slots: int
    width: int  # of an encoded neighbor

    def encode(self, side: str, texts: TokenRows, slots: Rows, counts: Rows) -> Floats:
        """Encoded neighbors ``[n, slots, hidden]``; ``side`` is ``queries`` (of an item) or ``items`` (of a query)."""
        ...

    def score(self, query: TokenRows, titles: TokenRows, queries: Encoded, items: Encoded) -> BarlScores:
        """One query with n titles and their encoded neighbors."""
        ...


def open_barl(artifact: Artifact, pairs: PairTokenizer) -> BarlEngine:
    """The engine of a model artifact: numpy for bags of words, torch for the other target encoder.

    Raises ConfigError for a model that reads no neighbors, MissingExtraError where torch is needed and missing.
    """
    settings = model_settings(artifact)["network"]
    if settings.get("type") != "barl_ase" or not settings.get("behavior", True):
        raise ConfigError(f"{artifact.path}: is a model that reads no neighbors; train one with model.type barl_ase")
    if settings["target_encoder"] == "bag":
        return NumpyBarl(settings, load_weights(artifact.file(WEIGHTS_FILE)))
    need("torch", extra="train")
    from pertinent.models.store import load_network

    return TorchBarl(load_network(artifact)[0], pairs)


class NumpyBarl:
    """The network with bags of words as target encoder, in numpy, equal to torch within 1e-5."""

    def __init__(self, settings: dict[str, Any], weights: dict[str, Any]) -> None:
        self.settings, self.weights = settings, weights
        self.slots = int(settings["slots"])
        self.words: Floats = weights["embeddings.token.weight"]
        self.width = int(self.words.shape[1])
        self.unit_words = unit(self.words)

    def encode(self, side: str, texts: TokenRows, slots: Rows, counts: Rows) -> Floats:
        """See `BarlEngine` (BARL-ASe, section 4.2)."""
        own = {"queries": "query_side", "items": "item_side"}[side]
        mask = np.arange(slots.shape[1])[None] < counts[:, None]  # [n, slots]
        vectors = unit(_sums(self.words, texts))  # [texts, hidden]
        if side == "items":
            vectors = self._linear(f"{own}.dense", vectors)
        states = np.zeros((*slots.shape, self.words.shape[1]), dtype=np.float32)
        states[mask] = vectors[slots[mask]]
        if self.settings["slot_positions"]:
            states = states + self.weights[f"{own}.position.weight"][None, : slots.shape[1]]
        states = states * mask[..., None]
        if self.settings["neighbor_block"]:
            shared = self.settings["shared_attention"]
            states = states + self._slot_attention("slot_attention" if shared else f"{own}.attention", states, mask)
            fed = np.maximum(self._linear(f"{own}.feed_in", self._norm(f"{own}.feed_norm", states)), 0)
            states = states + self._gain(f"{own}.feed_gain", self._linear(f"{own}.feed_out", fed))
            states = states * mask[..., None]
        return states.astype(np.float32)

    def score(self, query: TokenRows, titles: TokenRows, queries: Encoded, items: Encoded) -> BarlScores:
        """See `BarlEngine` (BARL-ASe, sections 4.1, 4.3 and 4.4)."""
        n = len(titles)
        t_query = unit(_sums(self.unit_words, query))  # [1, hidden]
        t_item = unit(np.maximum(self._linear("item_dense", _sums(self.unit_words, titles)), 0))
        text = [t_item, np.broadcast_to(t_query, t_item.shape)]
        if self.settings["target_attention"]:
            words = self.unit_words[query.ids][None]  # [1, words, hidden]
            text.append(self._attend("query_tokens", t_item, words, np.ones((1, words.shape[1]), dtype=bool))[0])
            text.append(self._title_attention(t_query, titles))
        if self.settings["products"]:
            text.append(t_query * t_item)
        if self.settings.get("agreement"):
            text.append(agreement(t_query, t_item))
        h_text = np.concatenate(text, axis=1)
        z_text = self._perceptron("text_view", h_text)
        pooled_queries, pooled_items = self._pool("query_side", queries), self._pool("item_side", items)
        behavior = [pooled_queries, pooled_items]
        query_weights, item_weights = queries.mask.astype(np.float32), items.mask.astype(np.float32)
        if self.settings["neighbor_attention"]:
            asked_queries, query_weights = self._attend("query_slots", pooled_items, queries.vectors, queries.mask)
            asked_items, item_weights = self._attend("item_slots", pooled_queries, items.vectors, items.mask)
            behavior += [asked_queries, asked_items]
        if self.settings["products"]:
            behavior += [pooled_queries * pooled_items, t_item * pooled_items, t_query * pooled_queries]
        if self.settings.get("agreement"):
            behavior += [agreement(pooled_queries, pooled_items), agreement(t_item, pooled_items)]
            behavior.append(agreement(t_query, pooled_queries))
        h_behavior = np.concatenate([np.broadcast_to(part, (n, part.shape[1])) for part in behavior], axis=1)
        z_behavior = self._perceptron("behavior_view", h_behavior)
        gate = np.full(n, 0.5, dtype=np.float32)
        if self.settings["gate"]:
            raw = self._linear("gate", np.concatenate([h_text, h_behavior], axis=1))[:, 0]
            gate = sigmoid(raw.astype(np.float64)).astype(np.float32)
        gate = np.where(np.broadcast_to((queries.counts > 0) | (items.counts > 0), (n,)), gate, np.float32(1))
        logit = gate * z_text + (1 - gate) * z_behavior
        wide = [np.broadcast_to(weights, (n, weights.shape[1])) for weights in (item_weights, query_weights)]
        return BarlScores(logit, z_text, z_behavior, gate, *wide)

    def _title_attention(self, t_query: Floats, titles: TokenRows) -> Floats:
        """Att(t_Q, E^T): each distinct word is scored once."""
        found, places = np.unique(titles.ids, return_inverse=True)
        values = self.unit_words[found]  # [words, hidden]
        scores = self._scores("title_tokens", t_query, values[None])[0][places] if len(found) else np.zeros(0)
        columns = _padded(titles.lengths)
        padded = np.full(columns.shape, _HIDDEN, dtype=np.float32)
        padded[columns] = scores
        scaled = np.asarray(padded / np.sqrt(values.shape[1]), dtype=np.float32)
        weights = np.asarray(_softmax(scaled) * columns, dtype=np.float32)[columns]  # [tokens]
        mixed = np.zeros((len(titles), values.shape[1]), dtype=np.float32)
        filled = titles.lengths > 0
        if filled.any():
            weighted = weights[:, None] * values[places]
            mixed[filled] = np.add.reduceat(weighted, titles.offsets[:-1][filled] - titles.offsets[0], axis=0)
        return self._gain("title_tokens.gain", mixed)

    def _attend(self, name: str, asking: Floats, values: Floats, mask: NDArray[np.bool_]) -> tuple[Floats, Floats]:
        """Att(u, V) for ``asking [n or 1, hidden]`` and ``values [n or 1, k, hidden]``, and the weights."""
        n, k = max(len(asking), len(values)), values.shape[1]
        if k == 0:
            return np.zeros((n, values.shape[2]), dtype=np.float32), np.zeros((n, 0), dtype=np.float32)
        scores = np.where(mask, self._scores(name, asking, values), _HIDDEN) / np.sqrt(values.shape[2])
        weights = np.asarray(_softmax(np.asarray(scores, dtype=np.float32)) * mask, dtype=np.float32)  # [n or 1, k]
        return self._gain(f"{name}.gain", np.matmul(weights[:, None], values)[:, 0]), weights

    def _scores(self, name: str, asking: Floats, values: Floats) -> Floats:
        first = self._linear(f"{name}.from_query", asking)[:, None]  # [n or 1, 1, inner]
        by_value, by_product = (self.weights[f"{name}.from_{part}.weight"] for part in ("value", "product"))
        # In both cases one large product of matrices in place of many small ones.
        if len(asking) == 1:  # the product with the one asking vector is a change of the matrix
            hidden = _times(values, (by_value + by_product * asking).T)
        elif len(values) == 1:  # and so is that with each of the values that all share
            by_slot = (by_product[None] * values[0][:, None]).reshape(-1, by_product.shape[1])  # [k * inner, hidden]
            hidden = (asking @ by_slot.T).reshape(len(asking), values.shape[1], -1)
            hidden += values @ by_value.T
        else:
            hidden = _times(values, by_value.T)
            hidden += _times(asking[:, None] * values, by_product.T)
        hidden += first
        return _times(np.tanh(hidden, out=hidden), self.weights[f"{name}.score.weight"].T)[..., 0]

    def _slot_attention(self, name: str, states: Floats, mask: NDArray[np.bool_]) -> Floats:
        n, slots, width = states.shape
        heads = int(self.settings["heads"])
        normed = self._norm(f"{name}.norm", states)
        q, k, v = (
            self._linear(f"{name}.{part}", normed).reshape(n, slots, heads, width // heads).transpose(0, 2, 1, 3)
            for part in ("query", "key", "value")
        )
        scores = q @ k.transpose(0, 1, 3, 2) / np.float32(np.sqrt(width // heads))
        keys = mask | ~mask.any(1, keepdims=True)
        seen = _softmax(np.where(keys[:, None, None], scores, _HIDDEN)) @ v
        mixed = self._linear(f"{name}.out", seen.transpose(0, 2, 1, 3).reshape(n, slots, width))
        return self._gain(f"{name}.gain", mixed)

    def _pool(self, side: str, encoded: Encoded) -> Floats:
        return unit((self._norm(f"{side}.pool_norm", encoded.vectors) * encoded.mask[..., None]).sum(1))

    def _perceptron(self, name: str, values: Floats) -> Floats:
        for layer in (0, 2):
            values = np.maximum(self._linear(f"{name}.{layer}", values), 0)
        return self._linear(f"{name}.4", values)[:, 0]

    def _gain(self, name: str, values: Floats) -> Floats:
        """The factor before a part's share, where the network has one."""
        factor = self.weights.get(f"{name}.factor")
        return values if factor is None else np.asarray(factor * values, dtype=np.float32)

    def _linear(self, name: str, values: Floats) -> Floats:
        found = _times(values, self.weights[f"{name}.weight"].T)
        found += self.weights[f"{name}.bias"]
        return found

    def _norm(self, name: str, values: Floats) -> Floats:
        centered = values - values.mean(-1, keepdims=True)
        scaled = centered / np.sqrt(np.square(centered).mean(-1, keepdims=True) + _NORM_EPS)
        return scaled * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]


class TorchBarl:
    """The network itself, for every target encoder; the reference of the other engine."""

    def __init__(self, network: Any, pairs: PairTokenizer) -> None:
        self.network, self.pairs = network.eval(), pairs
        self.slots, self.width = int(network.config.slots), int(network.config.hidden_size)

    def encode(self, side: str, texts: TokenRows, slots: Rows, counts: Rows) -> Floats:
        """See `BarlEngine`."""
        import torch

        from pertinent.models.barl_ase import Neighbors

        columns = _padded(texts.lengths)
        ids = np.full((max(1, len(texts)), max(1, columns.shape[1])), -1, dtype=np.int64)
        ids[: len(texts), : columns.shape[1]][columns] = texts.ids
        neighbors = Neighbors(*(torch.from_numpy(np.ascontiguousarray(array)) for array in (ids, slots, counts)))
        encode = self.network.encode_queries if side == "queries" else self.network.encode_items
        with torch.inference_mode():
            return np.asarray(encode(neighbors).vectors.numpy())

    def score(self, query: TokenRows, titles: TokenRows, queries: Encoded, items: Encoded) -> BarlScores:
        """See `BarlEngine`."""
        import torch

        from pertinent.models.barl_ase import Sequences

        n = len(titles)
        batch = self.pairs.assemble(query, np.zeros(n, dtype=np.int64), titles, np.arange(n))
        tokens = [torch.from_numpy(array) for array in batch.inputs().values()]
        sides = [
            Sequences(
                torch.from_numpy(np.array(np.broadcast_to(side.vectors, (n, *side.vectors.shape[1:])))),
                torch.from_numpy(np.array(np.broadcast_to(side.counts, (n,)))),
            )
            for side in (queries, items)
        ]
        with torch.inference_mode():
            views = self.network.combine(*tokens, *sides)
        names = ("logit", "text", "behavior", "gate", "item_weights", "query_weights")
        return BarlScores(*(np.asarray(getattr(views, name).numpy()) for name in names))


def unit(vectors: Floats) -> Floats:
    """The vectors at length 1 along the last dimension; zero stays zero.

    >>> unit(np.array([[3.0, 4.0], [0.0, 0.0]], dtype=np.float32)).round(3).tolist()
    [[0.6000000238418579, 0.800000011920929], [0.0, 0.0]]
    """
    squares = np.square(vectors).sum(-1, keepdims=True)
    return vectors / np.sqrt(np.maximum(squares, np.float32(1e-12)))


def agreement(one: Floats, other: Floats) -> Floats:
    """How far unit vectors agree, ``[n, 1]``: their cosine, at the scale that it has for random ones.

    >>> agreement(np.array([[0.6, 0.8]], np.float32), np.array([[0.6, 0.8]], np.float32)).round(2).tolist()
    [[1.409999966621399]]
    """
    return np.asarray((one * other).sum(-1, keepdims=True) * np.float32(one.shape[-1] ** 0.5))


def _sums(words: Floats, texts: TokenRows) -> Floats:
    """The sum of the vectors of each text's words, ``[texts, hidden]``."""
    sums = np.zeros((len(texts), words.shape[1]), dtype=np.float32)
    filled = texts.lengths > 0
    if filled.any():
        starts = (texts.offsets[:-1] - texts.offsets[0])[filled]
        sums[filled] = np.add.reduceat(words[texts.ids], starts, axis=0)
    return sums


def _times(values: Floats, matrix: Floats) -> Floats:
    """``values @ matrix`` for values of any number of dimensions, as one product: many small ones are slow.

    >>> _times(np.ones((2, 1, 3), np.float32), np.eye(3, dtype=np.float32)).shape
    (2, 1, 3)
    """
    flat = np.ascontiguousarray(values).reshape(-1, values.shape[-1]) @ matrix
    return flat.reshape(*values.shape[:-1], matrix.shape[1])


def _padded(lengths: Rows) -> NDArray[np.bool_]:
    """True where a row of these lengths has a value, ``[n, longest]``."""
    return np.arange(int(lengths.max(initial=0)))[None] < lengths[:, None]


def _softmax(scores: Floats) -> Floats:
    if scores.shape[-1] == 0:
        return scores
    raised = np.exp(scores - scores.max(-1, keepdims=True))
    return raised / raised.sum(-1, keepdims=True)
