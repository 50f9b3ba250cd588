"""One settings class per loss, and from settings to a loss value.

The list of losses is the union ``Objective``; ``objective_loss`` is the only place that knows
which columns of the targets a loss reads. Importing this module does not import torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from pertinent.config import Config

if TYPE_CHECKING:
    from torch import Tensor

Column = Literal["relevant", "grade", "teacher"]

FARTHEST = 5.0  # the length of a perturbation in the authors' code; the paper gives none


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


class Pairwise(Config):
    """Logistic loss of the items of a query whose judged grades differ: order inside queries, not its level.

    ``by_gain`` weighs each pair by what it is worth in NDCG (LambdaRank).
    """

    type: Literal["pairwise"] = "pairwise"
    weight: float = Field(1.0, gt=0.0)
    by_gain: bool = False


Objective = Annotated[Softmax | SoftTarget | MarginMSE | ScoreMSE | Pairwise, Field(discriminator="type")]


class Heated(Config):
    """The inverse temperature that multiplies the logits of a training step with several passes.

    It moves from ``inverse_temperature`` to ``final_inverse_temperature`` over the training (none: it
    stays), and that of the weights which are kept becomes part of the model (ei-SRC, section 8.3).
    """

    inverse_temperature: float = Field(1.0, gt=0.0)
    final_inverse_temperature: float | None = Field(None, gt=0.0)

    def heat(self, progress: float) -> float:
        """The inverse temperature at a fraction of the training done.

        >>> [round(CAT().heat(t), 3) for t in (0.0, 2 / 3, 1.0)]
        [4.0, 1.0, 0.5]
        """
        start, end = self.inverse_temperature, self.final_inverse_temperature
        if end is None:
            return start
        from pertinent.objectives.classification import annealed

        return annealed(progress, start, end)


class TwoPass(Heated):
    """A step of two passes: ``clean_weight`` L1 + ``adversarial_weight`` L2 + ``consistency_weight`` ADV.

    L1 and L2 are the objective on the first and the second pass, ADV the symmetric divergence of
    their probabilities. With ``detach_clean`` its gradient leaves the first pass alone. The second
    pass does not see a share ``word_drop`` of the tokens without a term class.
    """

    clean_weight: float = Field(0.5, ge=0.0)
    adversarial_weight: float = Field(0.5, ge=0.0)
    consistency_weight: float = Field(0.0, ge=0.0)
    word_drop: float = Field(0.0, ge=0.0, lt=1.0)
    detach_clean: bool = False

    @model_validator(mode="after")
    def _second_pass_counts(self) -> Self:
        if not self.adversarial_weight and not self.consistency_weight:
            raise ValueError("adversarial_weight and consistency_weight are both 0; leave adversarial out instead")
        return self


class Moved(Config):
    """How far the embeddings of a pair are moved: ``epsilon``, over all its tokens and dimensions.

    Without ``epsilon`` it is 5, as in the authors' code, but in a training no more than what moves the
    relevance logit of the start by ``shift`` on average: 5 hardly shows on a head that has just been made, and turns
    every decision of a network that has learned the task.
    """

    epsilon: float | None = Field(None, ge=0.0)
    shift: float = Field(0.3, gt=0.0)

    @property
    def length(self) -> float:
        """How far a pair is moved.

        >>> AT().length, AT(epsilon=0.5).length
        (5.0, 0.5)
        """
        return FARTHEST if self.epsilon is None else self.epsilon

    def settled(self, slope: float) -> Self:
        """The same with its ``epsilon``, for a start whose logit changes by ``slope`` a unit of length.

        >>> AT().settled(1.2).epsilon, AT().settled(0.004).epsilon, AT(epsilon=2.0).settled(1.2).epsilon
        (0.25, 5.0, 2.0)
        """
        if self.epsilon is not None:
            return self
        return self.model_copy(update={"epsilon": min(FARTHEST, self.shift / slope) if slope > 0 else FARTHEST})


class Perturbed(TwoPass, Moved):
    """Two passes, the second on embeddings moved by ``epsilon`` to where the objective rises."""


class CAT(Perturbed):
    """Contrastive adversarial training with all its parts (ei-SRC, section 8); each is one setting."""

    type: Literal["cat"] = "cat"
    consistency_weight: float = Field(0.01, ge=0.0)
    word_drop: float = Field(0.02, ge=0.0, lt=1.0)
    inverse_temperature: float = Field(4.0, gt=0.0)
    final_inverse_temperature: float | None = Field(0.5, gt=0.0)


class AT(Perturbed):
    """Adversarial training alone: the objective on the clean and on the moved embeddings."""

    type: Literal["at"] = "at"


class KL(Perturbed):
    """Consistency alone: the moved embeddings are compared with the clean ones, not with the labels."""

    type: Literal["kl"] = "kl"
    adversarial_weight: float = Field(0.0, ge=0.0)
    consistency_weight: float = Field(0.01, ge=0.0)


class RDrop(TwoPass):
    """R-Drop: two passes that differ by their dropout only, and their divergence."""

    type: Literal["r_drop"] = "r_drop"
    consistency_weight: float = Field(1.0, ge=0.0)


class FreeLB(Heated, Moved):
    """FreeLB: ``steps`` passes, each moved ``step_size`` further up, at most ``epsilon`` away; their mean counts.

    The first pass is the clean one. Without ``step_size`` it is half of ``epsilon``.
    """

    type: Literal["freelb"] = "freelb"
    epsilon: float | None = Field(None, gt=0.0)
    steps: int = Field(3, ge=2, le=16)
    step_size: float | None = Field(None, gt=0.0)


Adversary = Annotated[CAT | AT | KL | RDrop | FreeLB, Field(discriminator="type")]


class ViewLosses(Config):
    """What a network with a text view and a behavior view learns beside the objective (BARL-ASe, section 5).

    ``contrast`` weighs each of the two InfoNCE terms between pooled neighbors and what they belong to,
    with ``temperature``; they are left out of batches with fewer than ``min_targets`` distinct targets.
    ``mutual`` weighs the squared difference of the views' probabilities, or logits by ``mutual_space``; it pulls
    ``both``, as in the paper, or with ``mutual_pull: text`` the text view alone, which learns from behavior.
    """

    contrast: float = Field(0.1, ge=0.0)
    temperature: float = Field(0.2, gt=0.0)
    symmetric: bool = False
    decoupled: bool = False
    min_targets: int = Field(32, ge=1)
    mutual: float = Field(0.2, ge=0.0)
    mutual_space: Literal["probability", "logit"] = "probability"
    mutual_pull: Literal["both", "text"] = "both"


def objective_loss(spec: Objective, logits: Tensor, targets: Targets, progress: float) -> Tensor:
    """The value of one loss on a batch, before its weight; a scalar.

    ``logits`` are ``[batch, labels]``; ``progress`` is the fraction of the training done. Rows
    without the target that the loss reads take no part.
    """
    from pertinent.objectives import classification, distillation, ranking

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
    if isinstance(spec, Pairwise):
        return ranking.pairwise(classification.relevance_score(logits), target, targets.group, mask, spec.by_gain)
    score, target = classification.relevance_score(logits), target.float().clamp(-spec.clip, spec.clip)
    if spec.space == "probability":
        score, target = score.sigmoid(), target.sigmoid()
    if isinstance(spec, MarginMSE):
        return distillation.margin_mse(score, target, targets.group, mask)
    return distillation.score_mse(score, target, mask)


def needed_column(spec: Objective) -> Column:
    """The field of ``Targets`` that a loss reads.

    >>> needed_column(Softmax()), needed_column(MarginMSE()), needed_column(Pairwise())
    ('relevant', 'teacher', 'grade')
    """
    if isinstance(spec, Softmax):
        return "relevant"
    if isinstance(spec, Pairwise):
        return "grade"
    return spec.source if isinstance(spec, SoftTarget) else "teacher"


def needs_groups(objective: Sequence[Objective]) -> bool:
    """Whether some loss compares items of one query, so that batches must hold whole queries.

    >>> needs_groups([Softmax()]), needs_groups([Softmax(), MarginMSE()])
    (False, True)
    """
    return any(isinstance(spec, MarginMSE | Pairwise) for spec in objective)


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
