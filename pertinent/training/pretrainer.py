"""The trainer of pre-training: hidden tokens, shuffled spans, and how two texts belong together."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import TrainerCallback, TrainingArguments

from pertinent.models.heads import PretrainingNetwork
from pertinent.training.collate import BatchPlan
from pertinent.training.corpus import Corpus
from pertinent.training.trainer import EVALUATION_BATCH, PlannedTrainer


class Pretrainee(nn.Module):
    """The network with its heads as the Trainer sees it: a batch in, losses by name out."""

    def __init__(self, network: PretrainingNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        tokens, sentence = self.network(batch)
        return losses(tokens, sentence, batch)


def losses(tokens: Tensor, sentence: Tensor | None, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The loss of each task: mean cross-entropies, 0 where nothing is asked.

    ``tokens [places, tokens]`` are logits of the labeled places, ``sentence [batch, labels]`` those of
    the sentence task. ``hidden`` and ``shuffled`` places are averaged apart, so that each counts alike.
    """
    asked = batch["token_labels"] >= 0
    each = F.cross_entropy(tokens.float(), batch["token_labels"][asked], reduction="none")  # [places]
    shuffled = batch["shuffled"][asked]
    found = {"hidden": _mean(each, ~shuffled)}
    if bool(shuffled.any()):
        found["shuffled"] = _mean(each, shuffled)
    if sentence is not None:
        known = batch["sentence_labels"] >= 0
        labels = batch["sentence_labels"].clamp(min=0)
        found["sentence"] = _mean(F.cross_entropy(sentence.float(), labels, reduction="none"), known)
    return found


class PreTrainer(PlannedTrainer):
    """Trains a network with its heads on a corpus; measured on held-out texts, always hidden in the same way."""

    def __init__(
        self,
        network: PretrainingNetwork,
        corpus: Corpus,
        held_out: Corpus | None,
        plan: BatchPlan,
        arguments: TrainingArguments,
        optimizers: tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR],
        callbacks: list[TrainerCallback],
        broken_batch: Path,
    ) -> None:
        self.network, self.held_out = network, held_out
        super().__init__(Pretrainee(network), corpus, plan, arguments, optimizers, callbacks, broken_batch)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The sum of the tasks' losses; raises TrainingError where it is not finite."""
        parts = model(inputs)
        loss = torch.stack(list(parts.values())).sum()
        self.note(inputs, loss, parts)
        return (loss, parts) if return_outputs else loss

    def measure(self) -> dict[str, float]:
        """Mean loss and share of right answers of each task on the held-out texts, and the perplexity."""
        assert self.held_out is not None
        return measure(self.network, self.held_out)


def measure(network: PretrainingNetwork, corpus: Corpus) -> dict[str, float]:
    """Mean loss and share of right answers of each task on all rows of a corpus; ``score`` is the loss, negated.

    The network's mode and the random generators are as before.
    """
    was_training, device = network.training, next(network.parameters()).device
    network.eval()
    sums: dict[str, list[float]] = {}
    order = np.argsort(corpus.size_keys, kind="stable")
    with torch.inference_mode():
        for start in range(0, len(order), EVALUATION_BATCH):
            batch = corpus.batch(order[start : start + EVALUATION_BATCH], fixed=True)
            batch = {name: value.to(device) for name, value in batch.items()}
            tokens, sentence = network(batch)
            asked = batch["token_labels"] >= 0
            shuffled = batch["shuffled"][asked]
            tasks = {"hidden": (tokens[~shuffled], batch["token_labels"][asked][~shuffled])}
            tasks["shuffled"] = (tokens[shuffled], batch["token_labels"][asked][shuffled])
            if sentence is not None:
                known = batch["sentence_labels"] >= 0
                tasks["sentence"] = (sentence[known], batch["sentence_labels"][known])
            for name, (logits, labels) in tasks.items():
                total = sums.setdefault(name, [0.0, 0.0, 0.0])
                total[0] += float(F.cross_entropy(logits.float(), labels, reduction="sum"))
                total[1] += float((logits.argmax(1) == labels).sum())
                total[2] += len(labels)
    network.train(was_training)
    values: dict[str, float] = {}
    for name, (loss, right, count) in sums.items():
        if count:
            values |= {name: loss / count, f"{name}_accuracy": right / count}
    values["loss"] = sum(values.get(name, 0.0) for name in sums)
    values["perplexity"] = math.exp(min(values.get("hidden", 0.0), 50.0))
    values["score"] = -values["loss"]
    return values


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, values, 0.0).sum() / mask.sum().clamp(min=1)
