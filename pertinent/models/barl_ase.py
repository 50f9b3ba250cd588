"""The relevance network of BARL-ASe: a text view, a behavior view, and the gate between them.

Beside query and title it reads what users did: the items that searchers of the query chose, and the
queries that led to the item. Without neighbors it is its text view alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from pertinent.models.blocks import Embeddings, Encoder, EncoderConfig, attend, reading_mask

HIDDEN = -1e9  # added to what softmax must not see
SMALL = 0.02  # of what is added to a vector from the start


class BarlASeConfig(EncoderConfig):
    """Sizes, and a switch for each part of the method (BARL-ASe, section 4).

    ``target_encoder: bag`` sums word vectors, ``transformer`` runs the ei-SRC token encoder over each text
    by itself; ``layers``, ``feed_forward_size`` and ``dropout`` belong to that one. ``slots`` is how many
    neighbors a side has at most. With ``behavior: false`` only the text view is left. ``gate: false``
    takes the mean of both views in place of the learned gate. ``products`` adds element-wise products of
    the vectors that should agree to both views, ``agreement`` their cosines: of query and item, of neighbor
    queries and neighbor items, and of each with the text that they describe. With ``gains`` each part that can
    be left out counts nothing at first: a learned factor from zero stands before its share (ReZero), and the gate
    starts at one half. The paper has none of the three.
    """

    type: Literal["barl_ase"] = "barl_ase"
    hidden_size: int = Field(64, ge=4)
    labels: Literal[1] = 1
    target_encoder: Literal["bag", "transformer"] = "bag"
    slots: int = Field(20, ge=1)
    attention_width: int = Field(128, ge=1)
    embedding_dropout: float = Field(0.3, ge=0.0, lt=1.0)
    block_dropout: float = Field(0.2, ge=0.0, lt=1.0)
    behavior: bool = True
    neighbor_block: bool = True
    shared_attention: bool = True
    slot_positions: bool = True
    neighbor_attention: bool = True
    target_attention: bool = True
    gate: bool = True
    products: bool = False
    agreement: bool = False
    gains: bool = False

    @model_validator(mode="after")
    def _never_joins(self) -> Self:
        if self.joins_late:
            raise ValueError("join_layer and one_way: the target texts never read each other; leave them out")
        if self.term_classes and self.target_encoder == "bag":
            raise ValueError("term_classes: a bag of words has no channel for them; use target_encoder: transformer")
        return self


class Neighbors(NamedTuple):
    """The neighbor texts of one side: distinct texts, and which of them stand in the slots of each row.

    ``texts [texts, length]`` are token ids with -1 beyond the end, ``slots [batch, slots]`` rows of it, strongest
    first, ``counts [batch]`` how many slots are real; what stands in the others is not read.
    """

    texts: Tensor
    slots: Tensor
    counts: Tensor


class Sequences(NamedTuple):
    """Encoded neighbors of one side, ``[batch, slots, hidden]``, and how many are real, ``[batch]``."""

    vectors: Tensor
    counts: Tensor

    @property
    def mask(self) -> Tensor:
        """True on real slots, ``[batch, slots]``."""
        return slot_mask(self.counts, self.vectors.shape[1])


@dataclass(frozen=True, slots=True)
class Views:
    """All that the network finds about a batch of pairs.

    Logits and ``gate`` (1: text alone) are ``[batch]``; the vectors of query, item and pooled neighbors
    ``[batch, hidden]``; ``item_weights`` and ``query_weights [batch, slots]`` say which neighbors spoke.
    """

    logit: Tensor
    text: Tensor
    behavior: Tensor
    gate: Tensor
    query: Tensor
    item: Tensor
    neighbor_items: Tensor
    neighbor_queries: Tensor
    has_items: Tensor
    has_queries: Tensor
    item_weights: Tensor
    query_weights: Tensor


class Gain(nn.Module):
    """A learned factor that starts at zero, or, switched off, no factor at all."""

    def __init__(self, on: bool) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.zeros(())) if on else None

    def forward(self, values: Tensor) -> Tensor:
        return values if self.factor is None else self.factor * values


class AttentionUnit(nn.Module):
    """Att(u, V) of section 4.3: a vector asks, values answer, an additive score decides.

    ``W[u; v; u-v; u*v]`` is written as three products: the columns for u and for u-v only occur as
    sums, so these are the same functions with a quarter fewer weights and no concatenation.
    """

    def __init__(self, width: int, inner: int, gains: bool) -> None:
        super().__init__()
        self.gain = Gain(gains)
        self.from_query = nn.Linear(width, inner)
        self.from_value = nn.Linear(width, inner, bias=False)
        self.from_product = nn.Linear(width, inner, bias=False)
        self.score = nn.Linear(inner, 1, bias=False)

    def forward(self, asking: Tensor, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The weighted sum ``[batch, width]`` and the weights ``[batch, n]`` of ``values [batch, n, width]``.

        Weights add to 1 over values where ``mask [batch, n]`` is True; both are 0 where there is none.
        """
        hidden = self.from_query(asking)[:, None] + self.from_value(values)
        hidden = torch.tanh(hidden + self.from_product(asking[:, None] * values))
        scores = torch.where(mask, self.score(hidden)[..., 0], HIDDEN) * values.shape[-1] ** -0.5
        weights = torch.softmax(scores, dim=-1) * mask.to(values.dtype)  # [batch, n]
        return self.gain((weights[..., None] * values).sum(1)), weights


class SlotAttention(nn.Module):
    """Multi-head self-attention over the slots of a side, after its LayerNorm."""

    def __init__(self, width: int, heads: int, dropout: float, gains: bool) -> None:
        super().__init__()
        self.heads, self.dropout_rate = heads, dropout
        self.gain = Gain(gains)
        self.norm = nn.LayerNorm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        batch, slots, width = states.shape
        normed = self.norm(states)
        split = (batch, slots, self.heads, width // self.heads)
        q, k, v = (f(normed).view(split).transpose(1, 2) for f in (self.query, self.key, self.value))
        # Rows without any real slot read all of them, and are zeroed by the caller: no row is without keys.
        keys = mask | ~mask.any(-1, keepdim=True)
        seen = attend(q, k, v, keys[:, None, None, :], self.dropout_rate if self.training else 0.0)
        return self.gain(self.out(seen.transpose(1, 2).reshape(batch, slots, width)))


class NeighborSide(nn.Module):
    """What one side has of its own: the place of a slot, the feed-forward, and the pooling norm."""

    def __init__(self, config: BarlASeConfig, dense: bool) -> None:
        super().__init__()
        width = config.hidden_size
        self.dense = nn.Linear(width, width) if dense else None
        self.position = nn.Embedding(config.slots, width) if config.slot_positions else None
        if config.neighbor_block:
            self.feed_norm = nn.LayerNorm(width)
            self.feed_in, self.feed_out = nn.Linear(width, width), nn.Linear(width, width)
            self.feed_gain = Gain(config.gains)
            if not config.shared_attention:
                self.attention = SlotAttention(width, config.heads, config.block_dropout, config.gains)
        self.pool_norm = nn.LayerNorm(width)

    def pool(self, sequences: Sequences) -> Tensor:
        """One vector a row, ``[batch, hidden]``: masked after the norm, whose bias is not zero."""
        return unit((self.pool_norm(sequences.vectors) * sequences.mask[..., None]).sum(1))


class WordVectors(nn.Module):
    """The word table alone, under the name that it has in every network."""

    def __init__(self, config: BarlASeConfig) -> None:
        super().__init__()
        self.token = nn.Embedding(config.vocabulary_size, config.hidden_size)


class BarlASe(nn.Module):
    """Text view and behavior view of a pair, each with a logit, and a gate that mixes them (section 4)."""

    def __init__(self, config: BarlASeConfig) -> None:
        super().__init__()
        c = self.config = config
        width = c.hidden_size
        self.word_dropout, self.block_dropout = nn.Dropout(c.embedding_dropout), nn.Dropout(c.block_dropout)
        if c.target_encoder == "bag":
            self.embeddings: nn.Module = WordVectors(c)
        else:
            self.embeddings, self.encoder = Embeddings(c), Encoder(c)
        self.item_dense = nn.Linear(width, width)
        if c.target_attention:
            self.query_tokens, self.title_tokens = (AttentionUnit(width, c.attention_width, c.gains) for _ in range(2))
        text = ((4 if c.target_attention else 2) + c.products) * width + c.agreement
        self.text_view = _perceptron(text, width)
        if c.behavior:
            self.query_side, self.item_side = NeighborSide(c, dense=False), NeighborSide(c, dense=True)
            if c.neighbor_block and c.shared_attention:
                self.slot_attention = SlotAttention(width, c.heads, c.block_dropout, c.gains)
            if c.neighbor_attention:
                self.query_slots, self.item_slots = (AttentionUnit(width, c.attention_width, c.gains) for _ in range(2))
            behavior = ((4 if c.neighbor_attention else 2) + 3 * c.products) * width + 3 * c.agreement
            self.behavior_view = _perceptron(behavior, width)
            if c.gate:
                self.gate = nn.Linear(text + behavior, 1)
        self.apply(_initialize)
        self._align()

    def _align(self) -> None:
        """Let neighbors and targets start in one space, that of words, so that likeness shows from the first step."""
        # With random maps in between, it has to be found before it can be used: small training sets do not allow that.
        nn.init.eye_(self.item_dense.weight)
        if not self.config.behavior:
            return
        if self.config.gate and self.config.gains:
            nn.init.zeros_(self.gate.weight)
        for side in (self.query_side, self.item_side):
            if side.dense is not None:
                nn.init.eye_(side.dense.weight)
            if side.position is not None:
                nn.init.normal_(side.position.weight, std=SMALL)
            if self.config.neighbor_block:
                nn.init.normal_(side.feed_out.weight, std=SMALL)
        for module in self.modules():
            if isinstance(module, SlotAttention):
                nn.init.normal_(module.out.weight, std=SMALL)

    # Parameters of these take no part where a pair has no neighbors.
    NEIGHBOR_PARTS = (
        "query_side",
        "item_side",
        "slot_attention",
        "query_slots",
        "item_slots",
        "behavior_view",
        "gate",
    )

    def forward(
        self,
        token_ids: Tensor,
        mask: Tensor,
        segment_ids: Tensor,
        position_ids: Tensor,
        term_class_ids: Tensor,
        neighbor_queries: Neighbors | None = None,
        neighbor_items: Neighbors | None = None,
    ) -> Tensor:
        """Logits ``[batch, 1]``; without neighbors those of the text view."""
        tokens = (token_ids, mask, segment_ids, position_ids, term_class_ids)
        return self.views(*tokens, neighbor_queries, neighbor_items).logit[:, None]

    def views(
        self,
        token_ids: Tensor,
        mask: Tensor,
        segment_ids: Tensor,
        position_ids: Tensor,
        term_class_ids: Tensor,
        neighbor_queries: Neighbors | None = None,
        neighbor_items: Neighbors | None = None,
    ) -> Views:
        """Everything about a batch of pairs, from tokens of all texts."""
        tokens = (token_ids, mask, segment_ids, position_ids, term_class_ids)
        if neighbor_queries is None or neighbor_items is None or not self.config.behavior:
            return self.combine(*tokens, None, None)
        return self.combine(*tokens, self.encode_queries(neighbor_queries), self.encode_items(neighbor_items))

    def combine(
        self,
        token_ids: Tensor,
        mask: Tensor,
        segment_ids: Tensor,
        position_ids: Tensor,
        term_class_ids: Tensor,
        queries: Sequences | None,
        items: Sequences | None,
    ) -> Views:
        """The same from encoded neighbors, which depend on the item alone and on the query alone (section 8)."""
        words = self._target_words(token_ids, mask, segment_ids, position_ids, term_class_ids)
        real = real_tokens(mask, segment_ids)
        query_mask, title_mask = real & (segment_ids == 0), real & (segment_ids == 1)
        query = unit((words * query_mask[..., None]).sum(1))  # t_Q
        item = unit(torch.relu(self.item_dense((words * title_mask[..., None]).sum(1))))  # t_I
        text = [item, query]
        if self.config.target_attention:
            # Each block by itself where the border is known; the exporter cannot cut where the data says.
            border = None if torch.compiler.is_exporting() else int((segment_ids[:1] == 0).sum())
            left, right = slice(None, border), slice(border, None) if border else slice(None)
            text += [
                self.query_tokens(item, words[:, left], query_mask[:, left])[0],
                self.title_tokens(query, words[:, right], title_mask[:, right])[0],
            ]
        if self.config.products:
            text.append(query * item)
        if self.config.agreement:
            text.append(agreement(query, item))
        h_text = torch.cat(text, dim=1)
        z_text = self.text_view(h_text)[:, 0]
        if queries is None or items is None:
            return _text_only(z_text, query, item)
        return self._with_behavior(h_text, z_text, query, item, queries, items)

    def encode_queries(self, neighbors: Neighbors) -> Sequences:
        """X^Q: the encoded neighbor queries of the item, ``[batch, slots, hidden]`` (section 4.2)."""
        return self._encode(neighbors, self.query_side)

    def encode_items(self, neighbors: Neighbors) -> Sequences:
        """X^I: the encoded neighbor items of the query, ``[batch, slots, hidden]`` (section 4.2)."""
        return self._encode(neighbors, self.item_side)

    def _encode(self, neighbors: Neighbors, side: NeighborSide) -> Sequences:
        texts, slots, counts = neighbors
        mask = slot_mask(counts, slots.shape[1])  # [batch, slots]
        vectors = self.word_dropout(self.embeddings.token(texts.clamp(min=0)))  # type: ignore[operator]
        vectors = unit((vectors * (texts >= 0)[..., None]).sum(1))  # [texts, hidden]
        if side.dense is not None:
            vectors = side.dense(vectors)
        states = vectors[torch.where(mask, slots, 0)]  # [batch, slots, hidden]
        if side.position is not None:
            states = states + side.position.weight[None, : slots.shape[1]]
        states = self.word_dropout(states) * mask[..., None]
        if not self.config.neighbor_block:
            return Sequences(states, counts)
        attention = self.slot_attention if self.config.shared_attention else side.attention
        states = states + self.block_dropout(attention(states, mask))
        fed = side.feed_gain(side.feed_out(torch.relu(side.feed_in(side.feed_norm(states)))))
        states = states + self.block_dropout(fed)
        return Sequences(states * mask[..., None], counts)

    def _with_behavior(
        self, h_text: Tensor, z_text: Tensor, query: Tensor, item: Tensor, queries: Sequences, items: Sequences
    ) -> Views:
        c = self.config
        has_queries, has_items = queries.counts > 0, items.counts > 0
        pooled_queries, pooled_items = self.query_side.pool(queries), self.item_side.pool(items)
        behavior = [pooled_queries, pooled_items]
        query_weights, item_weights = queries.mask.to(z_text.dtype), items.mask.to(z_text.dtype)
        if c.neighbor_attention:
            asked_queries, query_weights = self.query_slots(pooled_items, queries.vectors, queries.mask)
            asked_items, item_weights = self.item_slots(pooled_queries, items.vectors, items.mask)
            behavior += [asked_queries, asked_items]
        if c.products:
            behavior += [pooled_queries * pooled_items, item * pooled_items, query * pooled_queries]
        if c.agreement:
            behavior += [
                agreement(*each)
                for each in ((pooled_queries, pooled_items), (item, pooled_items), (query, pooled_queries))
            ]
        h_behavior = torch.cat(behavior, dim=1)
        z_behavior = self.behavior_view(h_behavior)[:, 0]
        if c.gate:
            gate = torch.sigmoid(self.gate(torch.cat([h_text, h_behavior], dim=1))[:, 0])
        else:
            gate = torch.full_like(z_text, 0.5)
        gate = torch.where(has_queries | has_items, gate, 1.0)
        logit = gate * z_text + (1 - gate) * z_behavior
        return Views(
            logit,
            z_text,
            z_behavior,
            gate,
            query,
            item,
            pooled_items,
            pooled_queries,
            has_items,
            has_queries,
            item_weights,
            query_weights,
        )

    def _target_words(
        self, token_ids: Tensor, mask: Tensor, segment_ids: Tensor, position_ids: Tensor, term_class_ids: Tensor
    ) -> Tensor:
        """A unit vector for each token of the target texts, ``[batch, length, hidden]``."""
        if self.config.target_encoder == "bag":
            return unit(self.word_dropout(self.embeddings.token(token_ids)))  # type: ignore[operator]
        states = self.embeddings(token_ids, segment_ids, position_ids, term_class_ids)
        apart = reading_mask(mask, segment_ids, below_join=True)
        for layer in self.encoder.layers:
            states = layer(states, apart)
        return unit(self.word_dropout(states))


def unit(vectors: Tensor) -> Tensor:
    """The vectors at length 1 along the last dimension; zero stays zero, with a finite gradient.

    >>> unit(torch.tensor([[3.0, 4.0], [0.0, 0.0]])).tolist()
    [[0.6000000238418579, 0.800000011920929], [0.0, 0.0]]
    """
    # Not `+ 1e-12`: the exporter drops the addition of what it takes for zero.
    return vectors * vectors.float().square().sum(-1, keepdim=True).clamp(min=1e-12).rsqrt().to(vectors.dtype)


def agreement(one: Tensor, other: Tensor) -> Tensor:
    """How far unit vectors agree, ``[batch, 1]``: their cosine, at the scale that it has for random ones.

    >>> agreement(torch.tensor([[0.6, 0.8]]), torch.tensor([[0.6, 0.8]])).square().round().tolist()
    [[2.0]]
    """
    return (one * other).sum(-1, keepdim=True) * one.shape[-1] ** 0.5


def slot_mask(counts: Tensor, slots: int) -> Tensor:
    """True on the first ``counts`` slots of each row, ``[batch, slots]``.

    >>> slot_mask(torch.tensor([2, 0]), 3).tolist()
    [[True, True, False], [False, False, False]]
    """
    return torch.arange(slots, device=counts.device)[None] < counts[:, None]


def real_tokens(mask: Tensor, segment_ids: Tensor) -> Tensor:
    """True on tokens of the texts, ``[batch, length]``: without ``[CLS]``, and without the ``[SEP]`` that ends a block.

    >>> mask, segments = torch.tensor([[True] * 5 + [False]]), torch.tensor([[0, 0, 0, 1, 1, 1]])
    >>> real_tokens(mask, segments).int().tolist()
    [[0, 1, 0, 1, 0, 0]]
    """
    follows = mask[:, 1:] & (segment_ids[:, 1:] == segment_ids[:, :-1])
    ends = torch.zeros_like(mask[:, :1])
    first = torch.cat([torch.ones_like(ends), torch.zeros_like(mask[:, 1:])], dim=1)
    return mask & torch.cat([follows, ends], dim=1) & ~first


def _text_only(z_text: Tensor, query: Tensor, item: Tensor) -> Views:
    none = torch.zeros_like(z_text, dtype=torch.bool)
    nothing, no_slots = torch.zeros_like(query), z_text.new_zeros((len(z_text), 0))
    ones = torch.ones_like(z_text)
    return Views(z_text, z_text, z_text, ones, query, item, nothing, nothing, none, none, no_slots, no_slots)


def _perceptron(size: int, width: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(size, 2 * width), nn.ReLU(), nn.Linear(2 * width, width), nn.ReLU(), nn.Linear(width, 1)
    )


def _initialize(module: nn.Module) -> None:
    """He normal for matrices and embeddings, zero biases (section 5)."""
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
