"""Two-tower baselines: query and title are encoded apart and compared at the end (baselines.md)."""

from __future__ import annotations

from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from pertinent.models.blocks import Embeddings, Encoder, EncoderConfig, bert_names, initialize, mean_pool
from pertinent.models.sides import Side, sides


class SBERTConfig(EncoderConfig):
    """Sizes of the shared encoder. ``head: classifier`` compares by ``softmax(W[u; v; |u-v|])``,
    ``head: cosine`` by ``cosine_scale * cos(u, v)``, which alone allows nearest-neighbor search.
    """

    type: Literal["sbert"] = "sbert"
    head: Literal["classifier", "cosine"] = "classifier"
    cosine_scale: float = Field(10.0, gt=0.0)

    @model_validator(mode="after")
    def _never_joins(self) -> Self:
        if self.joins_late:
            raise ValueError("join_layer and one_way: the towers of sbert never read each other; leave them out")
        return self


class SBERT(nn.Module):
    """Shared encoder, mean pooling over real tokens, a head on the two vectors (Sentence-BERT)."""

    def __init__(self, config: SBERTConfig) -> None:
        super().__init__()
        c = self.config = config
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config)
        if c.head == "classifier":
            self.classifier = nn.Linear(3 * c.hidden_size, c.labels)
        self.apply(initialize)

    def forward(
        self, token_ids: Tensor, mask: Tensor, segment_ids: Tensor, position_ids: Tensor, term_class_ids: Tensor
    ) -> Tensor:
        """Logits ``[batch, labels]``; the batch is split at the block border, each side encoded alone."""
        query, title = sides(token_ids, mask, segment_ids, term_class_ids)
        return self.compare(self._vectors(query), self._vectors(title))

    def compare(self, u: Tensor, v: Tensor) -> Tensor:
        """Logits ``[batch, labels]`` of query vectors and title vectors, both ``[batch, hidden]``."""
        if self.config.head == "classifier":
            return self.classifier(torch.cat([u, v, (u - v).abs()], dim=1))
        logit = self.config.cosine_scale * F.cosine_similarity(u, v)
        return torch.stack([torch.zeros_like(logit), logit], dim=1) if self.config.labels == 2 else logit[:, None]

    def encode(self, token_ids: Tensor, mask: Tensor, term_class_ids: Tensor) -> Tensor:
        """Vectors ``[batch, hidden]`` of single texts ``[CLS] text [SEP]``, positions counted from 0."""
        positions = torch.arange(token_ids.shape[1], device=token_ids.device)[None].expand_as(token_ids)
        return self._vectors(Side(token_ids, mask, positions, term_class_ids))

    def _vectors(self, side: Side) -> Tensor:
        states = self.embeddings(
            side.token_ids, torch.zeros_like(side.token_ids), side.position_ids, side.term_class_ids
        )
        return mean_pool(self.encoder(states, side.mask), side.mask)

    @staticmethod
    def bert_names(layers: list[int]) -> dict[str, str]:
        """Our parameter names to those of a Hugging Face ``BertModel``."""
        return {ours: f"bert.{theirs}" for ours, theirs in bert_names(layers).items()}
