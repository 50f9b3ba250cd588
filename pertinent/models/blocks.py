"""The parts that models share: embeddings, Transformer layers, pooling. Post-LayerNorm, as BERT.

Parameter names follow our own nouns; ``BERT_NAMES`` maps them to Hugging Face BERT, both ways.
"""

from __future__ import annotations

from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from pertinent.config import Config
from pertinent.models.joining import kept_layers

TERM_CLASSES = 7  # none, material, function, usage, specification, style, core (ei-SRC, section 5)


class EncoderConfig(Config):
    """Sizes that every Transformer model has; the defaults are the ei-SRC paper's L3-H128-A4.

    ``labels: 2`` gives logits (irrelevant, relevant), ``labels: 1`` one logit, as exchanged
    cross-encoders have. ``term_classes`` switches the term-class channel of the input on.

    ``join_layer`` is the first layer, counted from 0, in which query and title read each other; below
    it each reads itself alone, so that a title's states can be computed once and kept. With
    ``one_way`` titles never read the query, in no layer. The defaults are the exact cross-encoder.
    """

    vocabulary_size: int = Field(30_522, ge=8)
    hidden_size: int = Field(128, ge=4)
    layers: int = Field(3, ge=1)
    heads: int = Field(4, ge=1)
    feed_forward_size: int = Field(512, ge=4)
    max_positions: int = Field(64, ge=5)
    term_classes: bool = False
    labels: Literal[1, 2] = 2
    dropout: float = Field(0.1, ge=0.0, lt=1.0)
    layer_norm_eps: float = Field(1e-12, gt=0.0)
    join_layer: int = Field(0, ge=0)
    one_way: bool = False

    @property
    def joins_late(self) -> bool:
        """Whether some states of a title do not depend on the query."""
        return self.join_layer > 0 or self.one_way

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.hidden_size % self.heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of heads {self.heads}")
        return self

    @model_validator(mode="after")
    def _joins_somewhere(self) -> Self:
        if self.join_layer >= self.layers:
            raise ValueError(
                f"join_layer {self.join_layer} leaves no layer in which query and title meet; "
                f"with {self.layers} layers give at most {self.layers - 1}"
            )
        return self


class Embeddings(nn.Module):
    """Token, segment, position and (optionally) term-class vectors, summed and normalized.

    ei-SRC section 6: ``e = Drop(LN(E_tok + E_seg + E_pos + E_ner))``.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.token = nn.Embedding(config.vocabulary_size, width)
        self.segment = nn.Embedding(2, width)
        self.position = nn.Embedding(config.max_positions, width)
        self.term_class = nn.Embedding(TERM_CLASSES, width) if config.term_classes else None
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, token_ids: Tensor, segment_ids: Tensor, position_ids: Tensor, term_class_ids: Tensor) -> Tensor:
        """Vectors ``[batch, length, width]`` for ids ``[batch, length]``."""
        summed = self.token(token_ids) + self.segment(segment_ids) + self.position(position_ids)
        if self.term_class is not None:
            summed = summed + self.term_class(term_class_ids)
        return self.dropout(self.norm(summed))


class Layer(nn.Module):
    """One Transformer layer: multi-head self-attention, then a GELU feed-forward, each with residual."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.layer_norm_eps
        self.heads = config.heads
        self.dropout_rate = config.dropout
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.attention_out = nn.Linear(width, width)
        self.attention_norm = nn.LayerNorm(width, eps=eps)
        self.feed_in = nn.Linear(width, config.feed_forward_size)
        self.feed_out = nn.Linear(config.feed_forward_size, width)
        self.feed_norm = nn.LayerNorm(width, eps=eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, states: Tensor, mask: Tensor, first_only: bool = False) -> Tensor:
        """New states ``[batch, length, width]``; keys where ``mask [batch, length]`` is False are not seen.

        A mask ``[batch, length, length]`` says so for each row by itself. With ``first_only`` just the
        states of the first token, ``[batch, 1, width]``.
        """
        return self.read(states[:, :1] if first_only else states, states, mask)

    def read(self, readers: Tensor, read: Tensor, mask: Tensor) -> Tensor:
        """New states of the readers ``[batch, readers, width]``, which read ``read [batch, length, width]``.

        The mask is that of ``forward``; of one for each row, the first rows are those of the readers.
        """
        q, k, v = (self._split(f(x)) for f, x in ((self.query, readers), (self.key, read), (self.value, read)))
        keys = mask[:, None, None, :] if mask.ndim == 2 else mask[:, None, : readers.shape[1]]
        seen = attend(q, k, v, keys, self.dropout_rate if self.training else 0.0)
        return self._finish(readers, seen.transpose(1, 2).flatten(2))

    def read_absorbed(self, readers: Tensor, query: Tensor, titles: Tensor, mask: Tensor) -> Tensor:
        """New states ``[n, readers, width]`` of rows that read their query and the title behind it.

        Equal to ``read``, for ``readers [b, r, width]`` and ``query [b, q, width]`` of which b is n, or 1
        where all titles ``[n, length, width]`` share them; without keys and values of all tokens:
        ``q . (x W_k)`` is ``(q W_k^T) . x``, and ``sum p (x W_v)`` is ``(sum p x) W_v``. What the bias of
        the keys adds is the same for all tokens and leaves the softmax as it is.
        """
        heads, size, width = self.heads, query.shape[-1] // self.heads, query.shape[-1]
        count, border = readers.shape[1], query.shape[1]
        own = self._split(self.query(readers) * size**-0.5)  # [b, heads, r, size]
        asked = (own @ self.key.weight.view(heads, size, width)).flatten(1, 2).transpose(1, 2)  # [b, width, heads * r]
        hidden = (~mask).to(titles.dtype)[..., None] * -1e9
        shared = readers.shape[0] == 1
        read = titles @ (asked[0] if shared else asked) + hidden  # [n, length, heads * r]
        from_query = (query @ asked).expand(titles.shape[0], -1, -1)  # [n, q, heads * r]
        weights = torch.softmax(torch.cat([from_query, read], dim=1), dim=1).transpose(1, 2)
        mixed = (
            weights[..., :border] @ (query[0] if shared else query) + weights[..., border:] @ titles
        )  # [n, heads * r, width]
        values = self.value.weight.view(heads, size, width).transpose(1, 2)  # [heads, width, size]
        mixed = mixed.view(-1, heads, count, width).transpose(0, 1).reshape(heads, -1, width)
        seen = (mixed @ values).view(heads, -1, count, size).permute(1, 2, 0, 3).flatten(2)
        return self._finish(readers, seen + self.value.bias)

    def _split(self, states: Tensor) -> Tensor:
        batch, length, width = states.shape
        return states.view(batch, length, self.heads, width // self.heads).transpose(1, 2)

    def _finish(self, states: Tensor, seen: Tensor) -> Tensor:
        states = self.attention_norm(states + self.dropout(self.attention_out(seen)))
        fed = self.feed_out(F.gelu(self.feed_in(states)))
        return self.feed_norm(states + self.dropout(fed))


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, dropout: float) -> Tensor:
    """Scaled dot-product attention ``[batch, heads, queries, width]`` over keys where ``mask`` is True."""
    if not torch.compiler.is_exporting():
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
    # Spelled out: the exporter would add a transpose, two products and a search for NaN to each layer.
    hidden = (~mask).to(q.dtype) * -1e9
    return torch.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5 + hidden, dim=-1) @ v


def reading_mask(mask: Tensor, segment_ids: Tensor, below_join: bool) -> Tensor:
    """Which tokens each token reads, ``[batch, length, length]``, where that differs from token to token.

    Below the join each block reads itself; from the join on, with ``one_way``, the query (segment 0)
    reads all and the title (segment 1) itself.

    >>> real, segments = torch.tensor([[True, True]]), torch.tensor([[0, 1]])
    >>> reading_mask(real, segments, below_join=True).int().tolist()
    [[[1, 0], [0, 1]]]
    >>> reading_mask(real, segments, below_join=False).int().tolist()
    [[[1, 1], [0, 1]]]
    """
    reader, read = segment_ids[:, :, None], segment_ids[:, None, :]
    allowed = reader == read if below_join else (reader == 0) | (read == 1)
    return allowed & mask[:, None, :]


class Encoder(nn.Module):
    """A stack of layers over an embedding block, joined early or late as its settings say."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.join_layer = config.join_layer
        self.one_way = config.one_way
        self.kept = kept_layers(config.layers, config.join_layer, config.one_way)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))

    def forward(
        self, states: Tensor, mask: Tensor, first_only: bool = False, segment_ids: Tensor | None = None
    ) -> Tensor:
        """States after the last layer, ``[batch, length, width]``.

        With ``first_only`` the last layer computes the first token alone, ``[batch, 1, width]``: all
        that a head on ``[CLS]`` reads, for about a quarter less work in three layers. ``segment_ids
        [batch, length]`` (0 query, 1 title) are needed where query and title join late.
        """
        for number, layer in enumerate(self.layers):
            last = first_only and number == len(self.layers) - 1
            states = layer(states, self.reading(number, mask, segment_ids), last)
        return states

    def reading(self, number: int, mask: Tensor, segment_ids: Tensor | None) -> Tensor:
        """The mask of a layer: ``[batch, length]`` where all tokens read the same, else ``reading_mask``."""
        below = number < self.join_layer
        if not (below or self.one_way):
            return mask
        assert segment_ids is not None, "a late join needs segment_ids"
        return reading_mask(mask, segment_ids, below)

    def ahead(self, titles: Tensor, mask: Tensor) -> Tensor:
        """What is known of titles before the query, ``[batch, length, state width]``, from their embeddings.

        The states that enter each of the layers ``kept``, side by side.
        """
        found = []
        for number in range(self.kept.stop):
            if number in self.kept:
                found.append(titles)
            if number + 1 < self.kept.stop:
                titles = self.layers[number](titles, mask)
        return torch.cat(found, dim=-1)

    def join(self, query: Tensor, ahead: Tensor, mask: Tensor) -> Tensor:
        """First-token states ``[batch, 1, width]`` of the embeddings of one query with titles known ahead.

        ``query`` is ``[1, q, width]`` without padding; ``ahead`` is what ``ahead`` gave, of any float
        type, with its ``mask [batch, length]``.
        """
        titles = ahead.to(query.dtype).split(query.shape[-1], dim=-1)
        real = torch.ones_like(query[..., 0], dtype=torch.bool)
        layers: Any = self.layers
        last = len(layers) - 1
        for number in range(self.join_layer):
            query = layers[number](query, real)
        if self.one_way or self.join_layer == last:
            for number, title in enumerate(titles, start=self.join_layer):
                readers = query[:, :1] if number == last else query
                query = layers[number].read_absorbed(readers, query, title, mask)
            return query
        size = mask.shape[0]
        mask = torch.cat([real.expand(size, -1), mask], dim=1)
        both = torch.cat([query.expand(size, -1, -1), titles[0]], dim=1)
        for number in range(self.join_layer, last + 1):
            both = layers[number](both, mask, number == last)
        return both


def initialize(module: nn.Module, deviation: float = 0.02) -> None:
    """BERT's initialization: normal weights, zero biases, LayerNorm at identity."""
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=deviation)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


def mean_pool(states: Tensor, mask: Tensor) -> Tensor:
    """The mean over real tokens: ``[batch, length, width]`` and ``[batch, length]`` to ``[batch, width]``."""
    weights = mask.to(states.dtype)[..., None]
    return (states * weights).sum(1) / weights.sum(1).clamp(min=1.0)


def relevance_logit(logits: Tensor) -> Tensor:
    """The log odds of relevance ``[batch]`` from one logit or from (irrelevant, relevant).

    >>> import torch
    >>> relevance_logit(torch.tensor([[0.5, 2.0]])).tolist()
    [1.5]
    """
    return logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits[:, 0]


# Our names to Hugging Face BERT names; ``{}`` is the layer number.
BERT_NAMES = {
    "embeddings.token.weight": "embeddings.word_embeddings.weight",
    "embeddings.segment.weight": "embeddings.token_type_embeddings.weight",
    "embeddings.position.weight": "embeddings.position_embeddings.weight",
    "embeddings.norm.weight": "embeddings.LayerNorm.weight",
    "embeddings.norm.bias": "embeddings.LayerNorm.bias",
}
BERT_LAYER_NAMES = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attention_out": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "feed_in": "intermediate.dense",
    "feed_out": "output.dense",
    "feed_norm": "output.LayerNorm",
}


def bert_names(layers: list[int]) -> dict[str, str]:
    """Our parameter names to BERT's, taking our layer i from BERT's layer ``layers[i]``.

    >>> bert_names([0, 2])["encoder.layers.1.query.weight"]
    'encoder.layer.2.attention.self.query.weight'
    """
    names = dict(BERT_NAMES)
    for ours, theirs in enumerate(layers):
        for name, bert in BERT_LAYER_NAMES.items():
            for kind in ("weight", "bias"):
                names[f"encoder.layers.{ours}.{name}.{kind}"] = f"encoder.layer.{theirs}.{bert}.{kind}"
    return names
