"""The cross-encoder of ei-SRC over packed tokens: the exact schedule in torch, for processors that like large products.

A pair is its tokens and nothing else: outside of attention no padding is computed. Tokens that several pairs
share, a query's above all, go through the embeddings and the projections of the first layer once. The last layer
computes ``[CLS]`` alone, its key and value weights absorbed. All shapes follow from a ``Shape`` and no value is
read back, so a call can be captured in a CUDA graph.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from pertinent.models.blocks import Layer, relevance_logit
from pertinent.models.ei_src import EiSRC


class Shape(NamedTuple):
    """How much a call has room for: distinct rows, pairs, tokens of all pairs, tokens of the longest pair."""

    rows: int
    pairs: int
    tokens: int
    length: int


class PackedPairs(NamedTuple):
    """Pairs as runs of rows: pair i has ``query_count[i]`` rows from ``query_start[i]`` on, then those of its item.

    ``ids``, ``segments``, ``positions`` and ``classes`` are ``[rows]``, the rest ``[pairs]``; int64, as arrays or
    tensors. Every pair has a row at least.
    """

    ids: NDArray[np.int64]
    segments: NDArray[np.int64]
    positions: NDArray[np.int64]
    classes: NDArray[np.int64]
    query_start: NDArray[np.int64]
    query_count: NDArray[np.int64]
    item_start: NDArray[np.int64]
    item_count: NDArray[np.int64]

    @property
    def shape(self) -> Shape:
        """What these pairs need."""
        lengths = self.query_count + self.item_count
        return Shape(len(self.ids), len(lengths), int(lengths.sum()), int(lengths.max(initial=1)))

    def padded(self, shape: Shape) -> PackedPairs:
        """The same in a larger shape: rows of zeros, and pairs of one row whose logits nobody reads.

        >>> zero, one = np.zeros(1, np.int64), np.ones(1, np.int64)
        >>> PackedPairs(zero, zero, zero, zero, zero, one, zero, zero).padded(Shape(2, 2, 2, 8)).query_count.tolist()
        [1, 1]
        """
        rows = [_stretched(array, shape.rows, 0) for array in self[:4]]
        start, count = (_stretched(self[place], shape.pairs, fill) for place, fill in ((4, 0), (5, 1)))
        items = [_stretched(array, shape.pairs, 0) for array in self[6:]]
        return PackedPairs._make([*rows, start, count, *items])


class PackedEiSRC:
    """The network in ``dtype`` on ``device``; its own weights, made once from a float32 network."""

    def __init__(self, network: EiSRC, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu") -> None:
        if network.config.joins_late:
            raise ValueError("packed tokens are for networks in which query and title read each other from layer 0 on")
        # A copy: the network that was given stays as it is.
        self.network = EiSRC(network.config)
        self.network.load_state_dict(network.state_dict())
        self.network = self.network.to(device=device, dtype=dtype).eval()
        self.device = torch.device(device)
        layers: list[Layer] = list(self.network.encoder.layers)  # type: ignore[arg-type]
        self._layers = layers
        # One product for queries, keys and values, as wide as all three.
        self._projections = [
            tuple(
                torch.cat([getattr(part, kind) for part in (layer.query, layer.key, layer.value)]).detach()
                for kind in ("weight", "bias")
            )
            for layer in layers[:-1]
        ]

    @torch.inference_mode()
    def __call__(self, pairs: tuple[Tensor, ...], tokens: int, length: int) -> Tensor:
        """Relevance logits ``[pairs]`` in float32, of the tensors of ``PackedPairs`` in a shape.

        ``tokens`` and ``length`` are the shape's; lengths beyond them are not checked here.
        """
        ids, segments, positions, classes, query_start, query_count, item_start, item_count = pairs
        columns = torch.arange(length, device=ids.device)
        counts = query_count + item_count
        real = columns < counts[:, None]  # [pairs, length]
        ends = torch.cumsum(counts, 0)
        # Where each place of a pair is among the packed tokens, and each packed token among the places.
        packed = (ends - counts)[:, None] + torch.minimum(columns, counts[:, None] - 1)
        owner = torch.searchsorted(ends, torch.arange(tokens, device=ids.device), right=True)
        owner = owner.clamp(max=len(counts) - 1)
        within = torch.arange(tokens, device=ids.device) - (ends - counts)[owner]
        places = owner * length + within.clamp(0, length - 1)  # [tokens]
        from_query = columns < query_count[:, None]
        rows = torch.where(from_query, query_start[:, None] + columns, (item_start - query_count)[:, None] + columns)
        rows = torch.where(real, rows, 0)  # [pairs, length]: the row of each place
        states = self.network.embeddings(ids, segments, positions, classes)
        shared = rows  # in the first layer places read rows, in later ones packed tokens
        spread = rows.flatten()[places]
        for number, layer in enumerate(self._layers[:-1]):
            weight, bias = self._projections[number]
            read = F.linear(states, weight, bias)[shared]  # [pairs, length, 3 * width]
            seen = _attention(read, real, layer.heads).flatten(0, 1)[places]
            states = _finished(layer, states[spread] if number == 0 else states, seen)
            shared = packed
        first = states[shared[:, 0]]
        last = _absorbed(self._layers[-1], first, states[shared], real)
        return relevance_logit(self.network.head(last[:, None])).float()


def _attention(read: Tensor, real: Tensor, heads: int) -> Tensor:
    """What each place sees, ``[pairs, length, width]``, of queries, keys and values side by side."""
    size, length, width = read.shape[0], read.shape[1], read.shape[2] // 3
    q, k, v = read.view(size, length, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
    seen = F.scaled_dot_product_attention(q, k, v, attn_mask=real[:, None, None, :])
    return seen.transpose(1, 2).flatten(2)


def _finished(layer: Layer, states: Tensor, seen: Tensor) -> Tensor:
    states = layer.attention_norm(states + layer.attention_out(seen))
    fed = layer.feed_out(F.gelu(layer.feed_in(states)))
    normed: Tensor = layer.feed_norm(states + fed)
    return normed


def _absorbed(layer: Layer, first: Tensor, states: Tensor, real: Tensor) -> Tensor:
    """New states ``[pairs, width]`` of the first tokens, which read ``states [pairs, length, width]``.

    ``q . (x W_k)`` is ``(q W_k^T) . x`` and ``sum p (x W_v)`` is ``(sum p x) W_v``: no keys or values of all tokens.
    """
    size, width = first.shape
    heads, part = layer.heads, width // layer.heads
    own = layer.query(first).view(size, heads, part) * part**-0.5
    asked = torch.einsum("phs,hsw->phw", own, layer.key.weight.view(heads, part, width))
    scores = (asked @ states.transpose(1, 2)).float().masked_fill(~real[:, None, :], float("-inf"))
    mixed = torch.softmax(scores, dim=-1).to(states.dtype) @ states  # [pairs, heads, width]
    seen = torch.einsum("phw,hsw->phs", mixed, layer.value.weight.view(heads, part, width)).flatten(1)
    return _finished(layer, first, seen + layer.value.bias)


def _stretched(array: NDArray[np.int64], size: int, fill: int) -> NDArray[np.int64]:
    return np.concatenate([array, np.full(size - len(array), fill, np.int64)])
