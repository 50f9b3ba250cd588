"""Losses against the scores of a teacher: margins inside a query, or the scores themselves."""

from __future__ import annotations

import torch
from torch import Tensor

from pertinent.objectives.classification import masked_mean


def margin_mse(student: Tensor, teacher: Tensor, group: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean over queries of the squared error of all pairwise margins (LLM distillation, section 5).

    For a query with n items the mean over its pairs i < j of ``((t_i - t_j) - (s_i - s_j))^2``
    equals twice the unbiased variance of ``t - s``, so it costs O(n). Every query with two or
    more items weighs the same; others add nothing.

    Args:
        student: scores ``[batch]``.
        teacher: scores on the same scale, ``[batch]``.
        group: query numbers ``[batch]``; equal numbers belong together, in any order.
        mask: True for rows that take part, ``[batch]``.

    >>> student, teacher = torch.tensor([0.0, 0.0, 7.0]), torch.tensor([1.0, 4.0, 0.0])
    >>> margin_mse(student, teacher, torch.tensor([5, 5, 6])).item()
    9.0
    """
    residual = _residual(student, teacher, mask)  # [batch]
    if residual.numel() == 0:
        return residual.sum()
    _, row_group = torch.unique(group, return_inverse=True)  # [batch]
    groups = int(row_group.max()) + 1
    real = torch.ones_like(residual) if mask is None else mask.to(residual.dtype)
    zeros = residual.new_zeros(groups)
    count = zeros.index_add(0, row_group, real)  # [groups]
    mean = zeros.index_add(0, row_group, residual) / count.clamp(min=1)
    # Centering before squaring: the form n * sum(d^2) - sum(d)^2 cancels where scores share a large offset.
    square = real * (residual - mean[row_group]) ** 2
    variance = zeros.index_add(0, row_group, square) / (count - 1).clamp(min=1)
    return masked_mean(2 * variance, count > 1)


def score_mse(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean squared error of the scores themselves, each pair weighing the same.

    >>> score_mse(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0])).item()
    2.0
    """
    return masked_mean(_residual(student, teacher, mask) ** 2, mask)


def _residual(student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
    student, teacher = student.float(), teacher.float()
    if mask is not None:  # replaced in both before the difference: a masked NaN must not reach the gradient
        student, teacher = torch.where(mask, student, 0.0), torch.where(mask, teacher, 0.0)
    return teacher - student
