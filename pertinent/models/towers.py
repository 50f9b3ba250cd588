"""Two-tower baselines: query and title are encoded apart and compared at the end (baselines.md)."""

from __future__ import annotations

from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from pertinent.models.blocks import Embeddings, Encoder, EncoderConfig, bert_names, initialize, mean_pool


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
        if torch.compiler.is_exporting():
            return self._masked(token_ids, mask, segment_ids, term_class_ids)
        border = int((segment_ids[0] == 0).sum()) if len(segment_ids) else 0
        u = self.encode(token_ids[:, :border], mask[:, :border], term_class_ids[:, :border])
        # The item block has no [CLS] of its own; an encoder of single texts expects one.
        cls = token_ids[:, :1]
        title = torch.cat([cls, token_ids[:, border:]], dim=1)
        title_mask = torch.cat([torch.ones_like(cls, dtype=torch.bool), mask[:, border:]], dim=1)
        classes = torch.cat([torch.zeros_like(cls), term_class_ids[:, border:]], dim=1)
        v = self.encode(title, title_mask, classes)
        return self.compare(u, v)

    def compare(self, u: Tensor, v: Tensor) -> Tensor:
        """Logits ``[batch, labels]`` of query vectors and title vectors, both ``[batch, hidden]``."""
        if self.config.head == "classifier":
            return self.classifier(torch.cat([u, v, (u - v).abs()], dim=1))
        logit = self.config.cosine_scale * F.cosine_similarity(u, v)
        return torch.stack([torch.zeros_like(logit), logit], dim=1) if self.config.labels == 2 else logit[:, None]

    def encode(self, token_ids: Tensor, mask: Tensor, term_class_ids: Tensor) -> Tensor:
        """Vectors ``[batch, hidden]`` of single texts ``[CLS] text [SEP]``, positions counted from 0."""
        positions = torch.arange(token_ids.shape[1], device=token_ids.device)[None].expand_as(token_ids)
        states = self.embeddings(token_ids, torch.zeros_like(token_ids), positions, term_class_ids)
        return mean_pool(self.encoder(states, mask), mask)

    def _masked(self, token_ids: Tensor, mask: Tensor, segment_ids: Tensor, term_class_ids: Tensor) -> Tensor:
        """The same logits for an exported graph, whose slices cannot depend on the data.

        Each side runs over the whole width with the other side masked, in about twice the time.
        """
        item = segment_ids == 1
        first = torch.cat([torch.ones_like(item[:, :1]), torch.zeros_like(item[:, 1:])], dim=1)  # [CLS]
        vectors = []
        for chosen in (~item, item | first):
            positions = torch.where(chosen, torch.cumsum(chosen.to(token_ids.dtype), dim=1) - 1, 0)
            classes = torch.where(first, 0, term_class_ids)
            states = self.embeddings(token_ids, torch.zeros_like(token_ids), positions, classes)
            seen = chosen & (mask | first)
            vectors.append(mean_pool(self.encoder(states, seen), seen))
        return self.compare(*vectors)

    @staticmethod
    def bert_names(layers: list[int]) -> dict[str, str]:
        """Our parameter names to those of a Hugging Face ``BertModel``."""
        return {ours: f"bert.{theirs}" for ours, theirs in bert_names(layers).items()}
