"""The relevance network of ei-SRC: a small cross-encoder over query and title (section 6)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from pertinent.models.blocks import Embeddings, Encoder, EncoderConfig, initialize


class EiSRCConfig(EncoderConfig):
    """Sizes of the cross-encoder."""

    type: Literal["ei_src"] = "ei_src"


class EiSRC(nn.Module):
    """Cross-encoder: every query token attends to every title token; ``[CLS]`` gives the logits.

    With ``join_layer`` or ``one_way`` titles are read apart from the query in some layers.
    """

    def __init__(self, config: EiSRCConfig) -> None:
        super().__init__()
        c = self.config = config
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config)
        self.pooler = nn.Linear(c.hidden_size, c.hidden_size)
        self.dropout = nn.Dropout(c.dropout)
        self.classifier = nn.Linear(c.hidden_size, c.labels)
        self.apply(initialize)

    def forward(
        self, token_ids: Tensor, mask: Tensor, segment_ids: Tensor, position_ids: Tensor, term_class_ids: Tensor
    ) -> Tensor:
        """Logits ``[batch, labels]`` for ids ``[batch, length]``; ``mask`` is True on real tokens."""
        states = self.embeddings(token_ids, segment_ids, position_ids, term_class_ids)
        return self.head(self.encoder(states, mask, first_only=True, segment_ids=segment_ids))

    def ahead(self, token_ids: Tensor, mask: Tensor, position_ids: Tensor, term_class_ids: Tensor) -> Tensor:
        """What a late join knows of titles before the query: ``[batch, length, state width]``.

        For ids ``[batch, length]`` of title blocks alone, at the positions that they have in a pair.
        """
        states = self.embeddings(token_ids, torch.ones_like(token_ids), position_ids, term_class_ids)
        return self.encoder.ahead(states, mask)

    def join(
        self, token_ids: Tensor, position_ids: Tensor, term_class_ids: Tensor, item_states: Tensor, item_mask: Tensor
    ) -> Tensor:
        """Logits ``[batch, labels]`` of one query, ids ``[1, query length]``, with titles that ``ahead`` was given."""
        states = self.embeddings(token_ids, torch.zeros_like(token_ids), position_ids, term_class_ids)
        return self.head(self.encoder.join(states, item_states, item_mask))

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
