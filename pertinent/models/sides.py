"""A batch of pairs as its two texts: what networks read that encode query and title apart."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Side(NamedTuple):
    """One text of each pair, ``[CLS] text [SEP]``, all tensors ``[batch, length]``; positions count from 0."""

    token_ids: Tensor
    mask: Tensor
    position_ids: Tensor
    term_class_ids: Tensor


def sides(token_ids: Tensor, mask: Tensor, segment_ids: Tensor, term_class_ids: Tensor) -> tuple[Side, Side]:
    """Query and title of a batch, cut at the block border.

    An exported graph cannot cut where the data say; there both sides have the whole width, each
    with the other one masked. What is computed from them is the same, in about twice the time.
    """
    if torch.compiler.is_exporting():
        return _masked(token_ids, mask, segment_ids, term_class_ids)
    border = int((segment_ids[0] == 0).sum()) if len(segment_ids) else 0
    query = _side(token_ids[:, :border], mask[:, :border], term_class_ids[:, :border])
    # The title block has no [CLS] of its own; an encoder of single texts expects one.
    cls = token_ids[:, :1]
    title = _side(
        torch.cat([cls, token_ids[:, border:]], dim=1),
        torch.cat([torch.ones_like(cls, dtype=torch.bool), mask[:, border:]], dim=1),
        torch.cat([torch.zeros_like(cls), term_class_ids[:, border:]], dim=1),
    )
    return query, title


def _side(token_ids: Tensor, mask: Tensor, term_class_ids: Tensor) -> Side:
    positions = torch.arange(token_ids.shape[1], device=token_ids.device)[None].expand_as(token_ids)
    return Side(token_ids, mask, positions, term_class_ids)


def _masked(token_ids: Tensor, mask: Tensor, segment_ids: Tensor, term_class_ids: Tensor) -> tuple[Side, Side]:
    item = segment_ids == 1
    first = torch.cat([torch.ones_like(item[:, :1]), torch.zeros_like(item[:, 1:])], dim=1)  # [CLS]
    classes = torch.where(first, 0, term_class_ids)
    found = []
    for chosen in (~item, item | first):
        positions = torch.where(chosen, torch.cumsum(chosen.to(token_ids.dtype), dim=1) - 1, 0)
        found.append(Side(token_ids, chosen & (mask | first), positions, classes))
    return found[0], found[1]
