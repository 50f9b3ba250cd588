"""One settings class per loss, and from settings to a loss value.

The list of losses is the union ``Objective``; ``objective_loss`` is the only place that knows
which columns of the targets a loss reads. Importing this module does not import torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from pertinent.config import Config

if TYPE_CHECKING:
    from torch import Tensor

Column = Literal["relevant", "grade", "teacher"]


@dataclass(frozen=True, slots=True)
class Targets:
    """What the rows of a batch should become; NaN where a row has no such target.

    ``relevant`` is 0 or 1, ``grade`` a soft target from 0 to 1, ``teacher`` a teacher's logit,
    ``group`` the number of the row's query. All ``[batch]``.
    """

    relevant: Tensor
    grade: Tensor
    teacher: Tensor
    group: Tensor


class Softmax(Config):
    """Heated softmax cross-entropy against hard labels.

    With ``final_inverse_temperature`` the inverse temperature moves there over the training.
    """

    type: Literal["softmax"] = "softmax"
    weight: float = Field(1.0, gt=0.0)
    inverse_temperature: float = Field(1.0, gt=0.0)
    final_inverse_temperature: float | None = Field(None, gt=0.0)


class SoftTarget(Config):
    """Cross-entropy against soft targets: judged grades, or the teacher's probabilities."""

    type: Literal["soft_target"] = "soft_target"
    weight: float = Field(1.0, gt=0.0)
    source: Literal["grade", "teacher"] = "grade"
    subtract_entropy: bool = False


class MarginMSE(Config):
    """Squared error of all margins inside a query. Teacher logits are clipped to ``±clip``.

    ``space: probability`` compares probabilities in place of logits.
    """

    type: Literal["margin_mse"] = "margin_mse"
    weight: float = Field(1.0, gt=0.0)
    space: Literal["logit", "probability"] = "logit"
    clip: float = Field(8.0, gt=0.0)


class ScoreMSE(Config):
    """Squared error of the scores themselves. Teacher logits are clipped to ``±clip``."""

    type: Literal["score_mse"] = "score_mse"
    weight: float = Field(1.0, gt=0.0)
    space: Literal["logit", "probability"] = "logit"
    clip: float = Field(8.0, gt=0.0)


Objective = Annotated[Softmax | SoftTarget | MarginMSE | ScoreMSE, Field(discriminator="type")]


def objective_loss(spec: Objective, logits: Tensor, targets: Targets, progress: float) -> Tensor:
    """The value of one loss on a batch, before its weight; a scalar.

    ``logits`` are ``[batch, labels]``; ``progress`` is the fraction of the training done. Rows
    without the target that the loss reads take no part.
    """
    from pertinent.objectives import classification, distillation

    target = getattr(targets, needed_column(spec))  # [batch]
    mask = ~target.isnan()
    if isinstance(spec, Softmax):
        heat = spec.inverse_temperature
        if spec.final_inverse_temperature is not None:
            heat = classification.annealed(progress, heat, spec.final_inverse_temperature)
        return classification.softmax(logits, target, heat, mask)
    if isinstance(spec, SoftTarget):
        target = target.float().sigmoid() if spec.source == "teacher" else target
        return classification.soft_target(logits, target, spec.subtract_entropy, mask)
    score, target = classification.relevance_score(logits), target.float().clamp(-spec.clip, spec.clip)
    if spec.space == "probability":
        score, target = score.sigmoid(), target.sigmoid()
    if isinstance(spec, MarginMSE):
        return distillation.margin_mse(score, target, targets.group, mask)
    return distillation.score_mse(score, target, mask)


def needed_column(spec: Objective) -> Column:
    """The field of ``Targets`` that a loss reads.

    >>> needed_column(Softmax()), needed_column(MarginMSE())
    ('relevant', 'teacher')
    """
    if isinstance(spec, Softmax):
        return "relevant"
    return spec.source if isinstance(spec, SoftTarget) else "teacher"


def needs_groups(objective: Sequence[Objective]) -> bool:
    """Whether some loss compares items of one query, so that batches must hold whole queries.

    >>> needs_groups([Softmax()]), needs_groups([Softmax(), MarginMSE()])
    (False, True)
    """
    return any(isinstance(spec, MarginMSE) for spec in objective)


def loss_names(objective: Sequence[Objective]) -> list[str]:
    """A name for each loss to log under: its type, numbered from 2 where one comes again.

    >>> loss_names([Softmax(), SoftTarget(), SoftTarget(source="teacher")])
    ['softmax', 'soft_target', 'soft_target_2']
    """
    seen: dict[str, int] = {}
    names = []
    for spec in objective:
        seen[spec.type] = seen.get(spec.type, 0) + 1
        names.append(spec.type if seen[spec.type] == 1 else f"{spec.type}_{seen[spec.type]}")
    return names
