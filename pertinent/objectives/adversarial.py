"""Perturbations that raise a loss, and how far apart two views of a pair are scored (ei-SRC, section 8).

All compute in float32. A perturbation is a constant: no gradient flows through it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from pertinent.objectives.classification import masked_mean, relevance_score

TINY = 1e-12


def perturbation(
    gradients: Sequence[Tensor], epsilon: float, masks: Sequence[Tensor] | None = None
) -> tuple[Tensor, ...]:
    """Steps of length ``epsilon`` along the gradients of a loss, one vector an example (equation 4).

    An example may have several blocks of states, such as query and title of a two-tower model: its
    norm is that over all blocks, tokens and dimensions. An example without a gradient stays where
    it is.

    Args:
        gradients: Gradients of the loss with respect to each block, ``[batch, length, width]``.
        epsilon: The Euclidean norm of each example's step.
        masks: True on real tokens of each block, ``[batch, length]``; other tokens get 0.

    >>> step, = perturbation([torch.tensor([[[3.0, 0.0]], [[0.0, 0.0]]])], 5.0)
    >>> step.tolist()
    [[[5.0, 0.0]], [[0.0, 0.0]]]
    """
    blocks = [gradient.detach().float() for gradient in gradients]
    if masks is not None:
        blocks = [torch.where(mask[..., None], block, 0.0) for block, mask in zip(blocks, masks, strict=True)]
    # Gradients of a confident network are tiny, and their squares are 0 in float32: the largest entry is made 1 first.
    largest = torch.stack([_largest(block) for block in blocks]).amax(0)  # [batch]
    blocks = [block / (largest + TINY)[:, None, None] for block in blocks]
    norm = torch.stack([block.square().sum((1, 2)) for block in blocks]).sum(0).sqrt()  # [batch]
    return tuple(epsilon * block / (norm + TINY)[:, None, None] for block in blocks)


def within(steps: Sequence[Tensor], radius: float) -> tuple[Tensor, ...]:
    """The steps, those of an example shortened together where they are longer than ``radius``.

    >>> step, = within([torch.tensor([[[3.0, 4.0]], [[0.3, 0.4]]])], 1.0)
    >>> [[round(x, 4) for x in row[0]] for row in step.tolist()]
    [[0.6, 0.8], [0.3, 0.4]]
    """
    norm = torch.stack([step.square().sum((1, 2)) for step in steps]).sum(0).sqrt()
    scale = (radius / norm.clamp(min=TINY)).clamp(max=1.0)[:, None, None]
    return tuple(step * scale for step in steps)


def consistency(clean: Tensor, other: Tensor, detach_clean: bool, mask: Tensor | None = None) -> Tensor:
    """Half the Kullback-Leibler divergences both ways between two views' probabilities, averaged (equation 6).

    Both are logits ``[batch, labels]``, already multiplied by the inverse temperature. Gradients flow
    through both views; with ``detach_clean`` through ``other`` alone.

    The two divergences of probabilities p and q add up to ``(p - q) (logit p - logit q)``, which needs
    no logarithm and is never negative.

    >>> one, two = torch.tensor([[0.0]]), torch.tensor([[1.0]])
    >>> round(consistency(one, two, False).item(), 4), consistency(one, one, False).item()
    (0.1155, 0.0)
    """
    first, second = relevance_score(clean), relevance_score(other)
    if detach_clean:
        first = first.detach()
    if mask is not None:
        first, second = torch.where(mask, first, 0.0), torch.where(mask, second, 0.0)
    apart = (first.sigmoid() - second.sigmoid()) * (first - second)
    return masked_mean(F.relu(apart) / 2, mask)  # rounding may leave a tiny negative number


def _largest(block: Tensor) -> Tensor:
    if block.shape[1] == 0:
        return block.new_zeros(len(block))
    return block.abs().amax((1, 2))
