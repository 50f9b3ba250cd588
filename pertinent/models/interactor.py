"""Interactor: a cross-encoder whose titles never read the query, with phrase matches (baselines.md)."""

from __future__ import annotations

from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from pertinent.models.blocks import Embeddings, Encoder, EncoderConfig, bert_names, initialize


class InteractorConfig(EncoderConfig):
    """Sizes of the encoder. ``join_layer`` is its last layer unless given; phrases have 1 to ``longest_phrase`` tokens.

    ``one_way`` is always on: a title's states must not depend on the query.
    """

    type: Literal["interactor"] = "interactor"
    one_way: bool = True
    longest_phrase: int = Field(3, ge=1, le=8)

    @model_validator(mode="before")
    @classmethod
    def _join_in_the_last_layer(cls, values: Any) -> Any:
        if isinstance(values, dict) and "join_layer" not in values:
            layers = values.get("layers", cls.model_fields["layers"].default)
            if isinstance(layers, int):
                return {**values, "join_layer": max(layers - 1, 0)}
        return values

    @model_validator(mode="after")
    def _titles_stay_apart(self) -> Self:
        if not self.one_way:
            raise ValueError("one_way: the titles of an interactor never read the query; leave it out")
        return self


class Interactor(nn.Module):
    """Partial attention, then an MLP on ``[CLS]`` and on how well query phrases match title phrases.

    After the idea of Ye et al., WSDM 2022. Below ``join_layer`` each text reads itself; from there
    on the query reads both. A phrase of n tokens is a learned sum of n neighboring states.
    """

    def __init__(self, config: InteractorConfig) -> None:
        super().__init__()
        c = self.config = config
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config)
        self.phrases = nn.ModuleList(
            nn.Linear(size * c.hidden_size, c.hidden_size) for size in range(2, c.longest_phrase + 1)
        )
        self.join = nn.Linear(c.hidden_size + 2 * c.longest_phrase, c.hidden_size)
        self.dropout = nn.Dropout(c.dropout)
        self.classifier = nn.Linear(c.hidden_size, c.labels)
        self.apply(initialize)

    def forward(
        self, token_ids: Tensor, mask: Tensor, segment_ids: Tensor, position_ids: Tensor, term_class_ids: Tensor
    ) -> Tensor:
        """Logits ``[batch, labels]`` for ids ``[batch, length]``; ``mask`` is True on real tokens."""
        states = self.embeddings(token_ids, segment_ids, position_ids, term_class_ids)
        states = self.encoder(states, mask, segment_ids=segment_ids)
        matches = self.matches(states, mask & (segment_ids == 0), mask & (segment_ids == 1))
        joined = F.gelu(self.join(torch.cat([states[:, 0], matches], dim=1)))
        return self.classifier(self.dropout(joined))

    def matches(self, states: Tensor, query: Tensor, title: Tensor) -> Tensor:
        """Mean and largest match of the query's phrases of each size, ``[batch, 2 * sizes]``.

        The match of a query phrase is its largest cosine with a title phrase of any size. ``query``
        and ``title`` are masks ``[batch, length]``.
        """
        titles = torch.cat(self._phrases(states, title), dim=1)  # [batch, sizes * length, width]
        real = title.repeat(1, self.config.longest_phrase)[:, None]  # [batch, 1, sizes * length]
        asked = query.to(states.dtype)  # [batch, length]
        found = []
        for phrases in self._phrases(states, query):
            cosine = phrases @ titles.transpose(1, 2)  # [batch, length, sizes * length]
            # A cosine is at least -1, so -2 stands for "not there" and gives way to 0 where nothing is.
            best = torch.where(real, cosine, -2.0).amax(dim=2)
            best = torch.where(best > -1.5, best, 0.0)
            mean = (best * asked).sum(1) / asked.sum(1).clamp(min=1.0)
            most = torch.where(query, best, -2.0).amax(dim=1)
            found += [mean, torch.where(most > -1.5, most, 0.0)]
        return torch.stack(found, dim=1)

    def _phrases(self, states: Tensor, chosen: Tensor) -> list[Tensor]:
        """Unit vectors of the phrases that begin at each token, a tensor for each size."""
        own = states * chosen[..., None].to(states.dtype)  # a phrase ends where its text ends
        following = [
            own,
            *(
                torch.cat([own[:, step:], torch.zeros_like(own[:, :step])], dim=1)
                for step in range(1, self.config.longest_phrase)
            ),
        ]
        sizes = [own, *(part(torch.cat(following[: n + 2], dim=2)) for n, part in enumerate(self.phrases))]
        return [F.normalize(size, dim=2, eps=1e-6) for size in sizes]

    @staticmethod
    def bert_names(layers: list[int]) -> dict[str, str]:
        """Our parameter names to those of a Hugging Face ``BertModel``."""
        return {ours: f"bert.{theirs}" for ours, theirs in bert_names(layers).items()}
