"""Losses by which two views of one pair learn from each other."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from pertinent.objectives.classification import masked_mean


def mutual_views(
    text: Tensor,
    behavior: Tensor,
    space: Literal["probability", "logit"],
    mask: Tensor | None = None,
    pull: Literal["both", "text"] = "both",
) -> Tensor:
    """Mean squared difference of the two views' probabilities (or logits), ``[batch]`` each.

    Both views are pulled, or ``text`` alone; rows where ``mask`` is False take no part (BARL-ASe, sections 5 and 10).

    >>> mutual_views(torch.tensor([0.0, 9.0]), torch.tensor([100.0, 9.0]), "probability").item()
    0.125
    """
    text, behavior = text.float(), (behavior.detach() if pull == "text" else behavior).float()
    if mask is not None:
        text, behavior = torch.where(mask, text, 0.0), torch.where(mask, behavior, 0.0)
    if space == "probability":
        text, behavior = text.sigmoid(), behavior.sigmoid()
    return masked_mean((text - behavior) ** 2, mask)
