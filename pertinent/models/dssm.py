"""DSSM: letter trigrams through two feed-forward towers, compared by cosine (baselines.md)."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from pertinent.config import Config
from pertinent.models.blocks import initialize
from pertinent.models.sides import Side, sides

MARK = "#"  # where a word begins
# Letters have a class of their own, and so have the digits to 4; the others share one with a rare letter.
_CLASSES = {letter: number for number, letter in enumerate("#abcdefghijklmnopqrstuvwxyz01234")}
_CLASSES |= {digit: _CLASSES[letter] for digit, letter in zip("56789", "jqxzv", strict=True)}
TRIGRAMS = len(_CLASSES.keys() - set("56789")) ** 3  # 32,768, the "about 30 k" of the paper


class DSSMConfig(Config):
    """Sizes of the towers: trigrams to ``hidden_size`` twice, then to ``vector_size``.

    The logit is ``cosine_scale`` times the cosine. A token gives its first ``token_trigrams`` trigrams.
    """

    type: Literal["dssm"] = "dssm"
    vocabulary_size: int = Field(30_522, ge=8)
    hidden_size: int = Field(300, ge=4)
    vector_size: int = Field(128, ge=2)
    cosine_scale: float = Field(10.0, gt=0.0)
    token_trigrams: int = Field(12, ge=1)
    labels: Literal[1, 2] = 2
    dropout: float = Field(0.1, ge=0.0, lt=1.0)
    term_classes: Literal[False] = False


class DSSM(nn.Module):
    """Trigram counts of each text, dense layers with tanh, other weights for query and title, cosine.

    Trigrams are those of each token of the tokenizer, with a mark where a word begins; those that
    would span two pieces of a rare word are not there. A fresh network knows no letters:
    ``read_tokens`` tells it the texts of the tokens, and training does so by itself.
    """

    def __init__(self, config: DSSMConfig) -> None:
        super().__init__()
        c = self.config = config
        self.query_trigrams = nn.Embedding(TRIGRAMS, c.hidden_size)
        self.title_trigrams = nn.Embedding(TRIGRAMS, c.hidden_size)
        self.query_tower, self.title_tower = (
            nn.ModuleList([nn.Linear(c.hidden_size, c.hidden_size), nn.Linear(c.hidden_size, c.vector_size)])
            for _ in range(2)
        )
        self.dropout = nn.Dropout(c.dropout)
        # Until the texts of the tokens are known each token has one made-up trigram of its own.
        numbers = torch.arange(c.vocabulary_size)[:, None] * 7919 % (TRIGRAMS - 1) + 1
        unknown = F.pad(numbers, (0, c.token_trigrams - 1)).to(torch.int16)
        self.register_buffer("token_trigrams", unknown)  # [vocabulary, token_trigrams], 0 is none
        self.apply(initialize)

    def read_tokens(self, tokens: Sequence[str]) -> None:
        """Learn the letters of each token, in the order of the ids; special tokens have none."""
        width = self.config.token_trigrams
        rows = [trigram_ids(token)[:width] for token in tokens]
        table = torch.zeros(self.config.vocabulary_size, width, dtype=torch.int16)
        for number, row in enumerate(rows):
            table[number, : len(row)] = torch.tensor(row, dtype=torch.int16)
        self.token_trigrams = table

    def forward(
        self, token_ids: Tensor, mask: Tensor, segment_ids: Tensor, position_ids: Tensor, term_class_ids: Tensor
    ) -> Tensor:
        """Logits ``[batch, labels]``; each side is encoded alone."""
        query, title = sides(token_ids, mask, segment_ids, term_class_ids)
        u = self._encode(query, self.query_trigrams, self.query_tower)
        return self.compare(u, self.encode_title(title))

    def encode_title(self, side: Side) -> Tensor:
        """Vectors ``[batch, vector_size]`` of titles: what is kept for an item."""
        return self._encode(side, self.title_trigrams, self.title_tower)

    def compare(self, u: Tensor, v: Tensor) -> Tensor:
        """Logits ``[batch, labels]`` of query vectors and title vectors, both ``[batch, vector_size]``."""
        logit = self.config.cosine_scale * F.cosine_similarity(u, v)
        return torch.stack([torch.zeros_like(logit), logit], dim=1) if self.config.labels == 2 else logit[:, None]

    def _encode(self, side: Side, table: nn.Embedding, tower: nn.ModuleList) -> Tensor:
        trigrams = self.token_trigrams[side.token_ids].long()  # [batch, length, token_trigrams]
        real = (trigrams > 0) & side.mask[..., None]
        summed = (table(trigrams) * real[..., None].to(table.weight.dtype)).sum((1, 2))  # [batch, hidden]
        states = self.dropout(torch.tanh(summed))
        return torch.tanh(tower[1](torch.tanh(tower[0](states))))


def trigram_ids(token: str) -> list[int]:
    """The numbers of a token's letter trigrams, from 1; none for special tokens such as ``[SEP]``.

    A piece that continues a word (``##s``) has no mark in front; shorter ones are one trigram.

    >>> len(trigram_ids("mug")), trigram_ids("mug")[1:] == trigram_ids("##mug"), trigram_ids("[SEP]")
    (2, True, [])
    """
    if token.startswith("[") and token.endswith("]") and len(token) > 2:
        return []
    text = token[2:] if token.startswith("##") and len(token) > 2 else MARK + token
    classes = [_letter_class(letter) for letter in text]
    classes += [0] * (3 - len(classes))
    size = round(TRIGRAMS ** (1 / 3))
    return [max(1, (a * size + b) * size + c) for a, b, c in zip(classes, classes[1:], classes[2:], strict=False)]


def _letter_class(letter: str) -> int:
    plain = unicodedata.normalize("NFD", letter)[0].lower()
    return _CLASSES.get(plain, 1 + ord(plain) % (len(_CLASSES) - 6))
