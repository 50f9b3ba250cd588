"""ReprBERT: two towers that meet at several depths, taught by a cross-encoder (baselines.md)."""

from __future__ import annotations

from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from pertinent.models.blocks import Embeddings, Encoder, EncoderConfig, bert_names, initialize
from pertinent.models.sides import Side, sides


class ReprBERTConfig(EncoderConfig):
    """Sizes of the shared encoder and of what compares its vectors.

    Vectors are taken after a third, two thirds and all of the layers; those of the lower layers are
    projected to ``low_width`` before they are compared.
    """

    type: Literal["repr_bert"] = "repr_bert"
    low_width: int = Field(128, ge=1)
    compare_width: int = Field(256, ge=1)

    @property
    def depths(self) -> tuple[int, ...]:
        """After how many layers vectors are taken: R/3, 2R/3 and R, each once.

        >>> ReprBERTConfig(layers=12).depths, ReprBERTConfig(layers=2).depths
        ((4, 8, 12), (1, 2))
        """
        return tuple(dict.fromkeys(max(1, round(self.layers * third / 3)) for third in (1, 2, 3)))

    @model_validator(mode="after")
    def _never_joins(self) -> Self:
        if self.joins_late:
            raise ValueError("join_layer and one_way: the towers of repr_bert never read each other; leave them out")
        return self


class ReprBERT(nn.Module):
    """Shared encoder, attention pooling at several depths, an MLP on the compared vectors.

    After the idea of Yao et al., KDD 2022: low-level and high-level vectors of both texts interact,
    and all of them can be computed before the other text is known. Train it with ``score_mse`` to a
    cross-encoder beside ``softmax``.
    """

    def __init__(self, config: ReprBERTConfig) -> None:
        super().__init__()
        c = self.config = config
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config)
        # What each depth looks for in its states; parameters of their own, as a graph would keep a copy of parts.
        self.pools = nn.ParameterList(torch.randn(c.hidden_size) * 0.02 for _ in c.depths)
        self.lower = nn.ModuleList(nn.Linear(c.hidden_size, c.low_width) for _ in c.depths[:-1])
        compared = 4 * (c.low_width * len(self.lower) + c.hidden_size)
        self.join = nn.Linear(compared, c.compare_width)
        self.dropout = nn.Dropout(c.dropout)
        self.classifier = nn.Linear(c.compare_width, c.labels)
        self.apply(initialize)

    def forward(
        self, token_ids: Tensor, mask: Tensor, segment_ids: Tensor, position_ids: Tensor, term_class_ids: Tensor
    ) -> Tensor:
        """Logits ``[batch, labels]``; each side is encoded alone."""
        query, title = sides(token_ids, mask, segment_ids, term_class_ids)
        return self.compare(self.encode(query), self.encode(title))

    def encode(self, side: Side) -> list[Tensor]:
        """One vector ``[batch, width]`` for each depth, of single texts: what is kept for a title."""
        states = self.embeddings(
            side.token_ids, torch.zeros_like(side.token_ids), side.position_ids, side.term_class_ids
        )
        vectors: list[Tensor] = []
        for number, layer in enumerate(self.encoder.layers, start=1):
            states = layer(states, side.mask)
            if number in self.config.depths:
                place = len(vectors)
                scores = (states * self.pools[place]).sum(2, keepdim=True)
                vector = attention_pool(states, scores, side.mask)
                # As rows of one: ONNX Runtime's quantizer spoils a weight that two plain Gemm nodes share.
                vectors.append(self.lower[place](vector[:, None])[:, 0] if place < len(self.lower) else vector)
        return vectors

    def compare(self, query: list[Tensor], title: list[Tensor]) -> Tensor:
        """Logits of the vectors of both sides: ``[u; v; |u - v|; u * v]`` at every depth, then an MLP."""
        parts = [torch.cat([u, v, (u - v).abs(), u * v], dim=1) for u, v in zip(query, title, strict=True)]
        return self.classifier(self.dropout(F.gelu(self.join(torch.cat(parts, dim=1)))))

    @staticmethod
    def bert_names(layers: list[int]) -> dict[str, str]:
        """Our parameter names to those of a Hugging Face ``BertModel``."""
        return {ours: f"bert.{theirs}" for ours, theirs in bert_names(layers).items()}


def attention_pool(states: Tensor, scores: Tensor, mask: Tensor) -> Tensor:
    """The mean of states weighed by the softmax of their scores over real tokens, ``[batch, width]``.

    ``states [batch, length, width]``, ``scores [batch, length, 1]``, ``mask [batch, length]``.

    >>> states = torch.tensor([[[1.0], [3.0], [9.0]]])
    >>> attention_pool(states, torch.zeros(1, 3, 1), torch.tensor([[True, True, False]])).tolist()
    [[2.0]]
    """
    hidden = (~mask[..., None]).to(scores.dtype) * -1e9
    weights = torch.softmax(scores + hidden, dim=1) * mask[..., None].to(scores.dtype)
    return (weights * states).sum(1)
