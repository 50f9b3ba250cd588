"""BERT2DNN: hashed word and bigram vectors and an MLP, taught by larger models (baselines.md)."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from pertinent.config import Config
from pertinent.models.blocks import initialize, mean_pool
from pertinent.models.sides import Side, sides

# Odd numbers that spread pairs of ids over the buckets; the products stay far below 2^63.
_SPREAD = (1_000_003, 8_191)


class BERT2DNNConfig(Config):
    """Sizes: vectors of ``width`` for tokens and for ``bigrams`` buckets of neighbors, then those of the MLP."""

    type: Literal["bert2dnn"] = "bert2dnn"
    vocabulary_size: int = Field(30_522, ge=8)
    width: int = Field(64, ge=2)
    bigrams: int = Field(65_536, ge=2)
    mlp: tuple[int, ...] = Field((1024, 256, 64), min_length=1)
    labels: Literal[1, 2] = 2
    dropout: float = Field(0.1, ge=0.0, lt=1.0)
    term_classes: Literal[False] = False


class BERT2DNN(nn.Module):
    """Mean vectors of query and title, concatenated, through an MLP with ReLU and batch norm.

    After the idea of Jiang et al., ICDM 2020. Unigrams are the tokens themselves, bigrams are
    neighboring tokens hashed into buckets. Train it with ``soft_target`` or ``score_mse`` to a teacher.
    """

    def __init__(self, config: BERT2DNNConfig) -> None:
        super().__init__()
        c = self.config = config
        self.token = nn.Embedding(c.vocabulary_size, c.width)
        self.bigram = nn.Embedding(c.bigrams, c.width)
        sizes = (4 * c.width, *c.mlp)
        self.layers = nn.ModuleList(nn.Linear(before, after) for before, after in pairwise(sizes))
        self.norms = nn.ModuleList(BatchNorm(size) for size in c.mlp)
        self.dropout = nn.Dropout(c.dropout)
        self.classifier = nn.Linear(c.mlp[-1], c.labels)
        self.apply(initialize)

    def forward(
        self, token_ids: Tensor, mask: Tensor, segment_ids: Tensor, position_ids: Tensor, term_class_ids: Tensor
    ) -> Tensor:
        """Logits ``[batch, labels]``; the two texts meet as pooled vectors only."""
        query, title = sides(token_ids, mask, segment_ids, term_class_ids)
        states = torch.cat([self.pool(query), self.pool(title)], dim=1)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            states = self.dropout(norm(F.relu(layer(states))))
        return self.classifier(states)

    def pool(self, side: Side) -> Tensor:
        """Mean vector of the tokens beside that of the bigrams, ``[batch, 2 * width]``: what is kept for an item."""
        ids = torch.where(side.mask, side.token_ids, 0)
        buckets = (_token_before(ids, side) * _SPREAD[0] + ids * _SPREAD[1]) % self.config.bigrams
        return torch.cat([mean_pool(vectors, side.mask) for vectors in (self.token(ids), self.bigram(buckets))], dim=1)


class BatchNorm(nn.Module):
    """Batch norm over ``[batch, width]``; a batch of one row, which has no spread, uses the running values."""

    mean: Tensor
    variance: Tensor

    def __init__(self, width: int, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("variance", torch.ones(width))
        self.momentum, self.eps = momentum, eps

    def forward(self, states: Tensor) -> Tensor:
        """The states at mean 0 and spread 1, then scaled and shifted."""
        mean, variance = self.mean, self.variance
        if self.training and len(states) > 1:
            mean, variance = states.mean(0), states.var(0, unbiased=False)
            with torch.no_grad():
                self.mean.lerp_(mean.to(self.mean.dtype), self.momentum)
                self.variance.lerp_(variance.to(self.variance.dtype), self.momentum)
        return (states - mean) * torch.rsqrt(variance + self.eps) * self.weight + self.bias


def _token_before(ids: Tensor, side: Side) -> Tensor:
    """The id of the token before each one in its text, ``[batch, length]``; 0 before [CLS]."""
    # In an exported graph the query lies between [CLS] and the title, so a first word is told by its position.
    shifted = torch.cat([torch.zeros_like(ids[:, :1]), ids[:, :-1]], dim=1)
    return torch.where(side.position_ids == 1, ids[:, :1], torch.where(side.position_ids == 0, 0, shifted))
