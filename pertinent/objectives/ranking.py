"""Losses against the order of judged grades inside a query."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from pertinent.objectives.classification import masked_mean


def pairwise(score: Tensor, grade: Tensor, group: Tensor, mask: Tensor | None = None, by_gain: bool = False) -> Tensor:
    """Mean over queries of the logistic loss of the pairs of items whose grades differ (RankNet, Burges 2005).

    A pair costs ``log(1 + exp(worse - better))``. The mean of a query is over its pairs; ``by_gain`` weighs
    each by how much NDCG, linear in the grades and without a cut, moves when the two change places in the order that
    the scores have now (LambdaRank), among those items of the query that are in the batch. Queries whose items are
    all of one grade add nothing.

    Args:
        score: the larger the more relevant, ``[batch]``.
        grade: 0 and up, ``[batch]``.
        group: query numbers ``[batch]``; equal numbers belong together, in any order.
        mask: True for rows that take part, ``[batch]``.
        by_gain: weigh pairs by their gain.

    >>> score, grade = torch.tensor([0.0, 0.0, 7.0]), torch.tensor([1.0, 0.0, 0.5])
    >>> round(pairwise(score, grade, torch.tensor([5, 5, 6])).item(), 4)
    0.6931
    """
    score, grade = score.float(), grade.float()
    if mask is not None:
        score, grade = torch.where(mask, score, 0.0), torch.where(mask, grade, 0.0)
    together = group[:, None] == group[None, :]  # [batch, batch]
    if mask is not None:
        together = together & mask[:, None] & mask[None, :]
    better = together & (grade[:, None] > grade[None, :])
    weight = better.float()
    if by_gain:
        weight = weight * _gains(score.detach(), grade, together)
    cost = (weight * F.softplus(score[None, :] - score[:, None])).sum(1)  # [batch], of each better item
    _, row_group = torch.unique(group, return_inverse=True)  # [batch]
    zeros = score.new_zeros(int(row_group.max()) + 1 if len(row_group) else 0)
    pairs = zeros.index_add(0, row_group, weight.sum(1))  # [groups]
    return masked_mean(zeros.index_add(0, row_group, cost) / pairs.clamp(min=1e-12), pairs > 0)


def _gains(score: Tensor, grade: Tensor, together: Tensor) -> Tensor:
    """By how much the gain of a query changes where two of its items change places, ``[batch, batch]``."""
    ahead = together & (score[None, :] > score[:, None])
    earlier = torch.ones_like(together).tril(-1)
    ties = together & (score[None, :] == score[:, None]) & earlier
    discount = 1 / torch.log2(2.0 + (ahead | ties).sum(1))  # [batch]
    return (grade[:, None] - grade[None, :]).abs() * (discount[:, None] - discount[None, :]).abs()
