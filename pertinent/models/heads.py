"""Heads for pre-training: which token stood here, and how two texts belong together."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pertinent.models.blocks import initialize


class TokenHead(nn.Module):
    """Scores of all tokens at given places, against the network's own token table (tied weights, as BERT)."""

    def __init__(self, width: int, vocabulary_size: int, eps: float) -> None:
        super().__init__()
        self.transform = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=eps)
        self.bias = nn.Parameter(torch.zeros(vocabulary_size))
        self.apply(initialize)

    def forward(self, states: Tensor, table: Tensor) -> Tensor:
        """Logits ``[places, tokens]`` for states ``[places, width]`` and token rows ``[tokens, width]``."""
        return F.linear(self.norm(F.gelu(self.transform(states))), table, self.bias)


class PretrainingNetwork(nn.Module):
    """A cross-encoder with the heads of pre-training; only the network in it is kept for relevance.

    ``sentence_labels`` is the number of ways in which two texts can belong together; 0 for no such head.
    """

    def __init__(self, network: nn.Module, sentence_labels: int) -> None:
        super().__init__()
        config: Any = network.config
        self.network: Any = network
        self.tokens = TokenHead(config.hidden_size, config.vocabulary_size, config.layer_norm_eps)
        self.sentence = nn.Linear(config.hidden_size, sentence_labels) if sentence_labels else None
        if self.sentence is not None:
            initialize(self.sentence)

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """Logits of the tokens at the labeled places, row by row, and of the sentence task ``[batch, labels]``.

        Places are those where ``token_labels`` is not negative: logits ``[places, tokens]``.
        """
        network = self.network
        states = network.embeddings(
            batch["token_ids"], batch["segment_ids"], batch["position_ids"], batch["term_class_ids"]
        )
        states = network.encoder(states, batch["mask"], segment_ids=batch["segment_ids"])
        labeled = states[batch["token_labels"] >= 0]  # [places, width]
        logits = self.tokens(labeled, network.embeddings.token.weight)
        if self.sentence is None:
            return logits, None
        pooled = network.dropout(torch.tanh(network.pooler(states[:, 0])))
        return logits, self.sentence(pooled)
