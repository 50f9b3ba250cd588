"""The relevance network of ei-SRC: a small cross-encoder over query and title (section 6)."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from pertinent.config import Config
from pertinent.models.blocks import Embeddings, Encoder, initialize


class EiSRCConfig(Config):
    """Sizes of the network; the defaults are the paper's L3-H128-A4.

    ``labels: 2`` gives logits (irrelevant, relevant), ``labels: 1`` one logit, as exchanged
    cross-encoders have. ``term_classes`` switches the term-class channel of the input on.
    """

    type: Literal["ei_src"] = "ei_src"
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

    @model_validator(mode="after")
    def _heads_divide(self) -> EiSRCConfig:
        if self.hidden_size % self.heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of heads {self.heads}")
        return self


class EiSRC(nn.Module):
    """Cross-encoder: every query token attends to every title token; ``[CLS]`` gives the logits."""

    def __init__(self, config: EiSRCConfig) -> None:
        super().__init__()
        c = self.config = config
        self.embeddings = Embeddings(
            c.vocabulary_size, c.max_positions, c.hidden_size, c.term_classes, c.dropout, c.layer_norm_eps
        )
        self.encoder = Encoder(c.layers, c.hidden_size, c.heads, c.feed_forward_size, c.dropout, c.layer_norm_eps)
        self.pooler = nn.Linear(c.hidden_size, c.hidden_size)
        self.dropout = nn.Dropout(c.dropout)
        self.classifier = nn.Linear(c.hidden_size, c.labels)
        self.apply(initialize)

    def forward(
        self, token_ids: Tensor, mask: Tensor, segment_ids: Tensor, position_ids: Tensor, term_class_ids: Tensor
    ) -> Tensor:
        """Logits ``[batch, labels]`` for ids ``[batch, length]``; ``mask`` is True on real tokens."""
        states = self.embeddings(token_ids, segment_ids, position_ids, term_class_ids)
        return self.head(self.encoder(states, mask, first_only=True))

    def head(self, states: Tensor) -> Tensor:
        """Logits from the last states: ``W_c tanh(W_p H_cls + b_p) + b_c``."""
        pooled = torch.tanh(self.pooler(states[:, 0]))
        return self.classifier(self.dropout(pooled))

    @staticmethod
    def bert_names(layers: list[int]) -> dict[str, str]:
        """Our parameter names to those of a Hugging Face ``BertForSequenceClassification``."""
        from pertinent.models.blocks import bert_names

        names = {ours: f"bert.{theirs}" for ours, theirs in bert_names(layers).items()}
        for kind in ("weight", "bias"):
            names[f"pooler.{kind}"] = f"bert.pooler.dense.{kind}"
            names[f"classifier.{kind}"] = f"classifier.{kind}"
        return names
