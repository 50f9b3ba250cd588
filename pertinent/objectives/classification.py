"""Losses against a label: heated softmax for hard labels, cross-entropy for soft ones.

All take logits as models give them, ``[batch, labels]`` with one or two labels, compute in
float32, average over the rows where ``mask`` is True, and give 0 where there is none.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def softmax(logits: Tensor, targets: Tensor, inverse_temperature: float, mask: Tensor | None = None) -> Tensor:
    """Mean cross-entropy of hard labels under the heated softmax (ei-SRC, equations 3 and 8).

    ``targets [batch]`` are 0 or 1. ``inverse_temperature`` multiplies the logits: large values
    look at hard examples, small ones at easy ones. One-label logits go through the sigmoid.

    >>> round(softmax(torch.tensor([[0.0, 1.0]]), torch.tensor([1]), 1.0).item(), 4)
    0.3133
    """
    score, target, mask = _clean(logits, targets, mask)
    return masked_mean(_cross_entropy(inverse_temperature * score, target), mask)


def soft_target(logits: Tensor, targets: Tensor, subtract_entropy: bool, mask: Tensor | None = None) -> Tensor:
    """Mean cross-entropy of targets between 0 and 1 (LLM distillation, section 3).

    The least value of a row with target t is the entropy of t, log 2 for a half. It is a constant,
    so gradients do not depend on it; with ``subtract_entropy`` a perfect model has loss 0.

    >>> logit, half = torch.tensor([[0.0]]), torch.tensor([0.5])
    >>> round(soft_target(logit, half, False).item(), 4), round(soft_target(logit, half, True).item(), 4)
    (0.6931, 0.0)
    """
    score, target, mask = _clean(logits, targets, mask)
    losses = _cross_entropy(score, target)
    if subtract_entropy:
        losses = losses - entropy(target)
    return masked_mean(losses, mask)


def entropy(targets: Tensor) -> Tensor:
    """Entropy in nats of each probability, 0 at 0 and 1.

    >>> [round(value, 4) for value in entropy(torch.tensor([0.0, 0.5, 1.0])).tolist()]
    [0.0, 0.6931, 0.0]
    """
    return torch.special.entr(targets) + torch.special.entr(1 - targets)


def annealed(progress: float, start: float, end: float) -> float:
    """Inverse temperature at a fraction of the training done, geometric from ``start`` to ``end``.

    ei-SRC section 8.3: 4 at the beginning (hard examples), 1 at two thirds, 0.5 at the end.

    >>> [round(annealed(t, 4.0, 0.5), 3) for t in (0.0, 2 / 3, 1.0)]
    [4.0, 1.0, 0.5]
    """
    return float(start * (end / start) ** min(max(progress, 0.0), 1.0))


def relevance_score(logits: Tensor) -> Tensor:
    """One float32 score a row: the logit itself, or relevant minus irrelevant.

    >>> relevance_score(torch.tensor([[0.5, 2.0]])).tolist()
    [1.5]
    """
    logits = logits.float()
    if logits.ndim == 1:
        return logits
    return logits[:, 0] if logits.shape[1] == 1 else logits[:, 1] - logits[:, 0]


def masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of ``values [n]`` where ``mask`` is True; 0, still differentiable, where nowhere.

    >>> masked_mean(torch.tensor([1.0, 5.0]), torch.tensor([True, False])).item()
    1.0
    """
    if mask is None:
        return values.sum() / max(values.numel(), 1)
    return torch.where(mask, values, 0.0).sum() / mask.sum().clamp(min=1)


def _clean(logits: Tensor, targets: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    # Masked values are replaced before anything is computed from them: a NaN that is only masked
    # at the end still makes a NaN gradient (0 * NaN).
    score, target = relevance_score(logits), targets.float()
    if mask is not None:
        score, target = torch.where(mask, score, 0.0), torch.where(mask, target, 0.0)
    return score, target, mask


def _cross_entropy(score: Tensor, target: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(score, target, reduction="none")  # [batch]
