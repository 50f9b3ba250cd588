"""Losses that pull the two sides of a positive pair together and push the rest of the batch away."""

from __future__ import annotations

import torch
from torch import Tensor

from pertinent.objectives.classification import masked_mean

_HIDDEN = -1e9


def info_nce(
    anchors: Tensor,
    targets: Tensor,
    temperature: float,
    mask: Tensor | None = None,
    same: Tensor | None = None,
    decoupled: bool = False,
) -> Tensor:
    """Mean over rows of ``-log(exp(a_i b_i / t) / sum_j exp(a_i b_j / t))`` (BARL-ASe, section 5).

    Args:
        anchors: ``[batch, width]``, usually of length 1.
        targets: ``[batch, width]``; row i is the positive of anchor i, the others are negatives.
        temperature: By what the products are divided.
        mask: True for rows that take part as anchors, ``[batch]``; all are negatives of others.
        same: True where row i and column j are one and the same thing and so no negatives of each other,
            ``[batch, batch]``. The diagonal never matters.
        decoupled: Leave the positive out of the sum, as the authors' code does. Rows without any negative
            then take no part.

    >>> eye = torch.eye(4)
    >>> round(info_nce(eye, eye, temperature=0.2).item(), 6)  # log(1 + 3 exp(-5))
    0.020012
    """
    anchors, targets = anchors.float(), targets.float()
    if mask is not None:  # before anything is computed: a masked NaN must not reach the gradient
        anchors = torch.where(mask[:, None], anchors, 0.0)
    size = len(anchors)
    if size == 0:
        return anchors.sum()
    diagonal = torch.eye(size, dtype=torch.bool, device=anchors.device)
    products = anchors @ targets.T / temperature  # [batch, batch]
    positive = products.diagonal()
    hidden = torch.zeros_like(diagonal) if same is None else same & ~diagonal
    if decoupled:
        hidden = hidden | diagonal
        compared = ~hidden.all(1)  # a row without any negative has nothing to be pushed from
        mask = compared if mask is None else mask & compared
    return masked_mean(torch.logsumexp(torch.where(hidden, _HIDDEN, products), dim=1) - positive, mask)


def neighbor_target(
    neighbors: Tensor,
    targets: Tensor,
    ids: Tensor,
    present: Tensor,
    temperature: float,
    symmetric: bool = False,
    decoupled: bool = False,
) -> Tensor:
    """InfoNCE between the pooled neighbors of a query (or item) and the query (or item) they belong to.

    Rows whose ``ids [batch]`` are equal are no negatives of each other; rows where ``present [batch]`` is
    False have no neighbors and take no part (BARL-ASe, section 5). ``symmetric`` takes the mean with the
    direction from target to neighbors, among the rows that have some.

    >>> one = torch.ones(3, 2)
    >>> round(neighbor_target(one, one, torch.tensor([1, 2, 3]), torch.tensor([True] * 3), 0.2).item(), 4)  # log 3
    1.0986
    """
    same = ids[:, None] == ids[None, :]
    loss = info_nce(neighbors, targets, temperature, present, same, decoupled)
    if not symmetric:
        return loss
    back = info_nce(targets, neighbors, temperature, present, same | ~present[None, :], decoupled)
    return (loss + back) / 2
