"""Training steps of several passes: CAT and its parts, R-Drop, FreeLB (ei-SRC, section 8).

A step of CAT has exactly two passes. The pass that gives the direction of the perturbation is kept
as the clean view; the second one runs on the same embeddings, moved, with dropout masks of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from pertinent.errors import ConfigError
from pertinent.lexicon.pairs import PairTokenizer
from pertinent.objectives.adversarial import consistency, perturbation, within
from pertinent.objectives.classification import relevance_score
from pertinent.objectives.spec import Adversary, FreeLB, Moved, Perturbed, TwoPass
from pertinent.training.collate import TrainingSet, collate, network_inputs

Batch = dict[str, Tensor]

# Training pairs whose logits say how far a start may be moved: some seconds of a run.
MEASURED = 128


@dataclass(frozen=True, slots=True)
class Outcome:
    """The loss of a step, the heated logits of its clean pass, and its further terms by name."""

    loss: Tensor
    logits: Tensor
    parts: dict[str, Tensor]


class EmbeddingTap:
    """Inside the block the embeddings of a network are recorded, or replaced by given ones.

    The states are those that enter the encoder: after LayerNorm and dropout, one block for each call
    of the embeddings in a pass. With ``states`` nothing is looked up: the calls get those, in order.
    """

    def __init__(self, network: nn.Module, states: Sequence[Tensor] | None = None) -> None:
        self.embeddings: Any = network.embeddings
        self.states: list[Tensor] = [] if states is None else list(states)
        self._given = None if states is None else iter(self.states)

    def __enter__(self) -> Self:
        forward = self.embeddings.forward

        def record(*inputs: Tensor) -> Tensor:
            found: Tensor = forward(*inputs)
            if not found.requires_grad:  # frozen embeddings
                found = found.detach().requires_grad_()
            self.states.append(found)
            return found

        given = self._given
        self.embeddings.forward = record if given is None else lambda *_: next(given)
        return self

    def __exit__(self, *_: object) -> None:
        del self.embeddings.forward  # the class's own is found again


def adversarial_step(
    spec: Adversary,
    network: nn.Module,
    forward: Callable[[Batch], Tensor],
    batch: Batch,
    objective: Callable[[Tensor], Tensor],
    control_ids: Sequence[int],
    progress: float,
) -> Outcome:
    """The loss of one batch over all passes of the method; its graph is ready for one backward.

    Args:
        spec: The method and its settings.
        network: The network, whose ``embeddings`` are perturbed.
        forward: From a batch to logits ``[batch, labels]``, through ``network``.
        batch: The inputs of the network, by name.
        objective: From heated logits to the weighted sum of the losses against the labels.
        control_ids: Token ids that are never dropped: ``[CLS]`` and ``[SEP]``.
        progress: The fraction of the training done.
    """
    heat = spec.heat(progress)

    def heated(inputs: Batch) -> Tensor:
        return heat * forward(inputs)

    if isinstance(spec, FreeLB):
        return _ascent(spec, network, heated, batch, objective)
    return _two_passes(spec, network, heated, batch, objective, control_ids)


def _two_passes(
    spec: TwoPass,
    network: nn.Module,
    forward: Callable[[Batch], Tensor],
    batch: Batch,
    objective: Callable[[Tensor], Tensor],
    control_ids: Sequence[int],
) -> Outcome:
    with EmbeddingTap(network) as tap:
        logits = forward(batch)
    clean = objective(logits)
    second = batch
    if spec.word_drop:
        dropped = dropped_tokens(batch, spec.word_drop, control_ids)
        second = {**batch, "mask": batch["mask"] & ~dropped}
    if isinstance(spec, Perturbed):
        steps = _steps(clean, tap.states, spec.length, batch["mask"])
        moved = [states + step.to(states.dtype) for states, step in zip(tap.states, steps, strict=True)]
        with EmbeddingTap(network, moved):
            other = forward(second)
    else:
        other = forward(second)
    parts = {
        "adversarial": objective(other),
        "consistency": consistency(logits, other, spec.detach_clean),
    }
    weights = {"adversarial": spec.adversarial_weight, "consistency": spec.consistency_weight}
    loss = spec.clean_weight * clean
    for name, weight in weights.items():
        if weight:
            loss = loss + weight * parts[name]
    return Outcome(loss, logits, parts)


def _ascent(
    spec: FreeLB,
    network: nn.Module,
    forward: Callable[[Batch], Tensor],
    batch: Batch,
    objective: Callable[[Tensor], Tensor],
) -> Outcome:
    with EmbeddingTap(network) as tap:
        logits = forward(batch)
    losses = [objective(logits)]
    moved: list[Tensor] = tap.states
    delta: tuple[Tensor, ...] = tuple(torch.zeros_like(states, dtype=torch.float32) for states in tap.states)
    step_size = spec.length / 2 if spec.step_size is None else spec.step_size
    for _ in range(spec.steps - 1):
        steps = _steps(losses[-1], moved, step_size, batch["mask"])
        delta = within([done + step for done, step in zip(delta, steps, strict=True)], spec.length)
        moved = [states + step.to(states.dtype) for states, step in zip(tap.states, delta, strict=True)]
        with EmbeddingTap(network, moved):
            losses.append(objective(forward(batch)))
    return Outcome(torch.stack(losses).mean(), logits, {"adversarial": torch.stack(losses[1:]).mean()})


def _steps(loss: Tensor, states: Sequence[Tensor], epsilon: float, mask: Tensor) -> tuple[Tensor, ...]:
    if not states:
        raise ConfigError("adversarial: this network does not call its embeddings as a whole, so they cannot be moved")
    gradients = torch.autograd.grad(loss, list(states), retain_graph=True)
    # Blocks of another shape are those of towers; padding has no gradient there either, as nothing reads it.
    masks = [mask if block.shape[:2] == mask.shape else block.new_ones(block.shape[:2]).bool() for block in gradients]
    return perturbation(gradients, epsilon, masks)


def logit_slope(network: nn.Module, batch: Batch) -> float:
    """By how much the relevance logit of a pair changes along its gradient, a unit of length of the embeddings.

    The mean over the pairs of a batch, in evaluation mode; to first order a perturbation of length epsilon moves
    a logit by epsilon times as much. The network's mode and gradients are as before.
    """
    was_training, device = network.training, next(network.parameters()).device
    inputs = network_inputs({name: tensor.to(device) for name, tensor in batch.items()})
    network.eval()
    with EmbeddingTap(network) as tap:
        score = relevance_score(network(*inputs))  # [pairs]
    network.train(was_training)
    if not tap.states:
        return 0.0
    gradients = torch.autograd.grad(score.sum(), tap.states)
    squares = torch.stack([block.float().square().sum((1, 2)) for block in gradients]).sum(0)  # [pairs]
    return float(squares.sqrt().mean())


def settled(spec: Adversary, network: nn.Module, pairs: PairTokenizer, training: TrainingSet) -> Adversary:
    """The method with the length of its perturbation, from what it does to the logits of the network as it is.

    Methods without a perturbation, and those that name its length, are given back.
    """
    if not isinstance(spec, Moved) or spec.epsilon is not None:
        return spec
    rows = np.unique(np.linspace(0, len(training) - 1, min(len(training), MEASURED)).astype(np.int64))
    return spec.settled(logit_slope(network, collate(training, rows, pairs)))


def dropped_tokens(batch: Batch, share: float, control_ids: Sequence[int]) -> Tensor:
    """Which tokens a pass does not see, ``[batch, length]``: about a ``share`` of those without a term class.

    Control tokens and padding are never among them, and each side that has words keeps at least one.
    """
    real, segments = batch["mask"], batch["segment_ids"]
    control = torch.isin(batch["token_ids"], batch["token_ids"].new_tensor(list(control_ids)))
    content = real & ~control
    chance = torch.rand(real.shape, device=real.device)
    dropped = content & (batch["term_class_ids"] == 0) & (chance < share)
    for side in (0, 1):
        here = content & (segments == side)
        emptied = here.any(1) & ~(here & ~dropped).any(1)  # [batch]
        likeliest = torch.where(here, chance, -1.0).argmax(1)
        kept = torch.zeros_like(dropped).scatter_(1, likeliest[:, None], emptied[:, None])
        dropped = dropped & ~kept
    return dropped


def fold_heat(network: nn.Module, heat: float) -> None:
    """Make the inverse temperature part of the classifier's weights: logits come out multiplied by it."""
    classifier: Any = network.classifier
    with torch.no_grad():
        for parameter in classifier.parameters():
            parameter.mul_(heat)
