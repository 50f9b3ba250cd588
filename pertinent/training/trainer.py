"""Our Trainer on Hugging Face's: our losses, our batches, our evaluation; the loop is theirs.

What they bring: resuming, several devices, mixed precision, trackers. What is replaced: the loss,
the sampler, the optimizer's groups, what a checkpoint holds, and what happens on a NaN.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PrinterCallback, TrainerCallback, TrainingArguments
from transformers import Trainer as HuggingFaceTrainer

from pertinent.errors import ArtifactError, TrainingError
from pertinent.evaluation.metrics import auc
from pertinent.lexicon.pairs import PairTokenizer
from pertinent.models.blocks import relevance_logit
from pertinent.models.store import rounded, straight_through
from pertinent.models.weights import WeightsType
from pertinent.objectives.spec import Adversary, Objective, Targets, loss_names, objective_loss
from pertinent.training import checkpoints
from pertinent.training.adversarial import adversarial_step
from pertinent.training.collate import BatchPlan, BatchRows, TrainingSet, collate, network_inputs
from pertinent.training.negatives import BatchNegatives

logger = logging.getLogger(__name__)

EVALUATION_BATCH = 256


class Trainee(nn.Module):
    """The network as the Trainer sees it. It keeps our frozen config out of the Trainer's reach.

    With ``round_weights`` it computes with the weights as that type stores them.
    """

    def __init__(self, network: nn.Module, round_weights: WeightsType | None = None) -> None:
        super().__init__()
        self.network, self.round_weights = network, round_weights
        self._still: dict[str, Tensor] = {}

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        inputs = tuple(network_inputs(batch))
        if self.round_weights is None:
            return self.network(*inputs)
        weights = straight_through(self.network, self.round_weights, self._still)
        return cast(Tensor, torch.func.functional_call(self.network, weights, inputs))


class PlannedTrainer(HuggingFaceTrainer):
    """Runs through planned batches; what a loss is and how it is measured is left to others."""

    def __init__(
        self,
        trainee: nn.Module,
        rows: Any,
        plan: BatchPlan,
        arguments: TrainingArguments,
        optimizers: tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR],
        callbacks: list[TrainerCallback],
        broken_batch: Path,
    ) -> None:
        self.trainee, self.rows, self.plan, self.broken_batch = trainee, rows, plan, broken_batch
        self.parts: dict[str, Tensor] = {}  # sums since the last report
        self.summed = 0
        self.batch: dict[str, Tensor] = {}
        super().__init__(model=trainee, args=arguments, train_dataset=rows, optimizers=optimizers, callbacks=callbacks)
        self.remove_callback(PrinterCallback)

    @property
    def progress(self) -> float:
        """The fraction of the steps done."""
        return self.state.global_step / self.plan.steps

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Batches of all epochs in one pass, so that resuming is a matter of counting steps."""
        rows, plan = cast(Any, self.rows), cast(Any, self.plan)  # torch asks for its own base classes, and needs none
        loader: DataLoader[Any] = DataLoader(
            rows,
            batch_sampler=plan,
            collate_fn=_whole,
            num_workers=0,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # its own: drawing a batch must not move the generator of dropout
        )
        return self.accelerator.prepare(loader)

    def note(self, batch: dict[str, Tensor], loss: Tensor, parts: Mapping[str, Tensor]) -> None:
        """Add the terms of a step to the next report; raises TrainingError where the loss is not finite."""
        self.batch = batch
        if not torch.isfinite(loss):
            self._stop_on_broken_batch(f"the loss is {loss.item()}")
        for name, part in parts.items():
            self.parts[name] = self.parts.get(name, 0.0) + part.detach()
        self.summed += 1

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        norm = super()._clip_grad_norm(model)
        if not math.isfinite(float(norm)):
            self._stop_on_broken_batch(f"the gradient norm is {float(norm)}")
        return norm

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """What ``measure`` gives on the validation data; its ``score`` selects."""
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in self.measure().items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def measure(self) -> dict[str, float]:
        """Values on the validation data by name, among them ``score``; larger is better."""
        raise AssertionError("a trainer that evaluates says how")

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the mean of every loss since the last report, and the epoch as users count it."""
        if "loss" in logs and self.parts:
            logs |= {f"loss_{name}": float(value) / self.summed for name, value in self.parts.items()}
            self.parts, self.summed = {}, 0
        self.state.epoch = self.plan.epoch_at(self.state.global_step)
        super().log(logs, start_time)

    def _stop_on_broken_batch(self, what: str) -> None:
        step = self.state.global_step + 1
        tensors = {name: value.detach().cpu().contiguous() for name, value in self.batch.items()}
        self.broken_batch.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, self.broken_batch, {"step": str(step)})
        raise TrainingError(
            f"step {step}: {what}; the batch is saved in {self.broken_batch}, the last checkpoint is untouched; "
            "lower learning_rate, or look for extreme targets in that batch"
        )

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        try:
            super()._save_checkpoint(model, trial)
        except (OSError, RuntimeError, SafetensorError) as error:
            raise ArtifactError(
                f"{self.args.output_dir}: checkpoint {self.state.global_step} cannot be written ({error}); "
                "the one before is intact: make room, then run again with resume: true"
            ) from error

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        # Theirs also pickles the arguments, which nobody reads.
        assert output_dir is not None
        state = self.trainee.state_dict() if state_dict is None else state_dict
        checkpoints.save_weights(Path(output_dir) / checkpoints.WEIGHTS, state)


class Trainer(PlannedTrainer):
    """Trains a relevance network on planned batches with a weighted sum of losses."""

    trainee_class = Trainee

    def __init__(
        self,
        network: nn.Module,
        pairs: PairTokenizer,
        examples: TrainingSet,
        validation: TrainingSet | None,
        plan: BatchPlan,
        objective: Sequence[Objective],
        adversarial: Adversary | None,
        negatives: BatchNegatives | None,
        select_by_auc: bool,
        round_weights: WeightsType | None,
        arguments: TrainingArguments,
        optimizers: tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR],
        callbacks: list[TrainerCallback],
        broken_batch: Path,
    ) -> None:
        self.network, self.pairs, self.validation = network, pairs, validation
        self.objective: Sequence[Objective] = objective
        self.adversarial: Adversary | None = adversarial
        self.names, self.select_by_auc = loss_names(objective), select_by_auc
        self.round_weights: WeightsType | None = round_weights
        rows = BatchRows(examples, pairs, negatives)
        super().__init__(
            self.trainee_class(network, round_weights), rows, plan, arguments, optimizers, callbacks, broken_batch
        )

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The weighted sum of the losses over all passes of the step; raises TrainingError where not finite."""
        progress = self.progress
        if self.adversarial is None:
            logits = model(inputs)
            parts = self._parts(logits, inputs, progress)
            loss, more = self._sum(parts), {}
        else:
            outcome = adversarial_step(
                self.adversarial,
                self.network,
                model,
                inputs,
                lambda logits: self._sum(self._parts(logits, inputs, progress)),
                (self.pairs.cls_id, self.pairs.sep_id),
                progress,
            )
            loss, logits, more = outcome.loss, outcome.logits, outcome.parts
            parts = self._parts(logits.detach(), inputs, progress)
        self.note(inputs, loss, {**dict(zip(self.names, parts, strict=True)), **more})
        return (loss, logits) if return_outputs else loss

    def measure(self) -> dict[str, float]:
        """The objective on all validation pairs at once, each loss by name, and the AUC where it exists."""
        examples = self.validation
        assert examples is not None
        network = self.network if self.round_weights is None else rounded(self.network, self.round_weights)
        logits = torch.from_numpy(all_logits(network, self.pairs, examples, EVALUATION_BATCH))  # [pairs, labels]
        if self.adversarial is not None:
            logits = logits * self.adversarial.heat(self.progress)
        targets = {name: torch.from_numpy(getattr(examples, name)) for name in ("relevant", "grade", "teacher")}
        parts = self._parts(logits, {**targets, "group": torch.from_numpy(examples.query_rows)}, 1.0)
        values = {name: float(part) for name, part in zip(self.names, parts, strict=True)}
        values["loss"] = float(sum(spec.weight * float(part) for spec, part in zip(self.objective, parts, strict=True)))
        known = ~np.isnan(examples.relevant)
        if has_both(examples.relevant):
            values["auc"] = auc(relevance_logit(logits).numpy()[known], examples.relevant[known] > 0.5)
        values["score"] = values["auc"] if self.select_by_auc else -values["loss"]
        return values

    def _parts(self, logits: Tensor, batch: dict[str, Tensor], progress: float) -> list[Tensor]:
        targets = Targets(batch["relevant"], batch["grade"], batch["teacher"], batch["group"])
        return [objective_loss(spec, logits, targets, progress) for spec in self.objective]

    def _sum(self, parts: Sequence[Tensor]) -> Tensor:
        return torch.stack([spec.weight * part for spec, part in zip(self.objective, parts, strict=True)]).sum()


def all_logits(network: nn.Module, pairs: PairTokenizer, examples: TrainingSet, batch_size: int) -> NDArray[np.float32]:
    """The network's logits ``[pairs, labels]`` in evaluation mode, in the order of the pairs.

    The network's mode and the random generators are as before.
    """
    if not len(examples):
        return np.zeros((0, 1), dtype=np.float32)
    was_training, device = network.training, next(network.parameters()).device
    order = np.argsort(examples.size_keys, kind="stable")
    network.eval()
    found = []
    with torch.inference_mode():
        for start in range(0, len(order), batch_size):
            batch = collate(examples, order[start : start + batch_size], pairs)
            inputs = network_inputs({name: tensor.to(device) for name, tensor in batch.items()})
            found.append(network(*inputs).float().cpu().numpy())
    network.train(was_training)
    ordered = np.concatenate(found)
    logits = np.empty_like(ordered)
    logits[order] = ordered
    return logits


def has_both(relevant: NDArray[np.float32]) -> bool:
    """Whether relevant and irrelevant pairs are both among the targets; NaN is neither.

    >>> has_both(np.array([1.0, np.nan], dtype=np.float32))
    False
    """
    return bool((relevant == 1).any() and (relevant == 0).any())


def make_optimizer(
    network: nn.Module, learning_rate: float, weight_decay: float, warmup_steps: int, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
    """AdamW without decay on biases and LayerNorm, and its schedule: linear up, then linear down."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    # Biases and LayerNorm are exactly the parameters with one dimension.
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.999), eps=1e-8, fused=True)

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        return max(0.0, (steps - step) / max(steps - warmup_steps, 1))

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def _whole(batch: Any) -> Any:
    return batch  # the rows came together already
