"""Train a given network on given pairs: the library form of training, free of files and formats.

A recipe of several stages calls ``fit`` once a stage; ``pertinent.training.run`` calls it once.
Importing this module does not import torch.
"""

from __future__ import annotations

import logging
import math
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from pertinent.config import Config
from pertinent.errors import ConfigError, DataError, MissingExtraError, need
from pertinent.lexicon.pairs import PairTokenizer
from pertinent.objectives.spec import Objective, Softmax, needed_column, needs_groups
from pertinent.training import checkpoints
from pertinent.training.collate import BatchPlan, TrainingSet

if TYPE_CHECKING:
    from torch import nn

logger = logging.getLogger(__name__)

BROKEN_BATCH = "broken-batch.safetensors"
# Settings that do not change what a step does; a resumed run may have others.
FREE_TO_CHANGE = {"log_every", "report_to", "progress", "keep"}


class FitConfig(Config):
    """How a network is trained; the same for judgments, clicks and teacher scores.

    ``warmup`` is a fraction of all steps. Evaluation on validation pairs comes every
    ``eval_every`` steps (none: after each epoch) together with a checkpoint; training stops when
    ``early_stopping`` evaluations in a row brought nothing better (0: never). ``keep: last`` ends with
    the last weights in place of the best, for stages that are not about the validation pairs.
    ``max_steps`` cuts training short. Losses over the items of a query see at most ``group_limit``
    of them together.
    ``report_to`` names trackers of the Hugging Face Trainer, such as tensorboard, mlflow, wandb.
    """

    objective: tuple[Objective, ...] = Field((Softmax(),), min_length=1)
    epochs: int = Field(2, ge=1)
    batch_size: int = Field(64, ge=1)
    learning_rate: float = Field(5e-5, gt=0.0)
    weight_decay: float = Field(0.01, ge=0.0)
    warmup: float = Field(0.1, ge=0.0, lt=1.0)
    max_grad_norm: float = Field(1.0, gt=0.0)
    max_steps: int | None = Field(None, ge=1)
    eval_every: int | None = Field(None, ge=1)
    early_stopping: int = Field(2, ge=0)
    keep: Literal["best", "last"] = "best"
    group_limit: int = Field(16, ge=2)
    seed: int = Field(0, ge=0, lt=2**32)
    precision: Literal["float32", "bf16"] = "float32"
    device: Literal["auto", "cpu"] = "auto"
    log_every: int = Field(50, ge=1)
    report_to: tuple[str, ...] = ("none",)
    progress: bool = False

    @field_validator("objective", "report_to", mode="before")
    @classmethod
    def _one_is_a_list_of_one(cls, value: Any) -> Any:
        return [value] if isinstance(value, (str, dict)) else value


@dataclass(frozen=True, slots=True)
class FitResult:
    """What came out of a training run; the network itself holds the best weights.

    ``metrics`` are those of the best evaluation (of the last step without validation pairs),
    ``history`` is everything that was reported, in order.
    """

    metrics: dict[str, float]
    history: list[dict[str, float]]
    steps: int
    best_step: int
    stopped_early: bool
    resumed_from: int
    seconds: float


def fit(
    network: nn.Module,
    pairs: PairTokenizer,
    training: TrainingSet,
    config: FitConfig,
    validation: TrainingSet | None = None,
    folder: str | Path | None = None,
    resume: bool = False,
    title: str = "training",
) -> FitResult:
    """Train ``network`` in place; it ends on the CPU, in evaluation mode, with the weights to keep.

    Best is by AUC on the validation pairs where they have both labels, by the objective otherwise;
    without validation pairs the last weights stay.

    Args:
        network: Anything with the ``forward`` of our models.
        pairs: The tokenizer that made the training sets.
        training: Pairs to learn from.
        config: How.
        validation: Pairs to choose by.
        folder: Where checkpoints lie while it runs, for this run alone. None keeps none.
        resume: Go on from the newest checkpoint in ``folder``, if there is one.
        title: What a progress line begins with.

    Raises:
        ConfigError: Settings that the machine cannot follow, or checkpoints of another run.
        DataError: Nothing to learn from.
        TrainingError: The loss was not finite; the batch is saved in ``folder``.
    """
    need("torch", "train")
    need("transformers", "train")
    need("accelerate", "train")
    _check(training, config)
    _check_machine(config)
    started = time.perf_counter()
    plan = BatchPlan(
        training.size_keys,
        training.query_rows if needs_groups(config.objective) else None,
        config.batch_size,
        config.group_limit,
        config.epochs,
        config.max_steps,
        config.seed,
    )
    with ExitStack() as stack:
        if folder is None:
            place, start = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pertinent-"))), None
        else:
            place = stack.enter_context(checkpoints.locked(folder))
            start = checkpoints.begin(place, _identity(training, validation, config), resume)
        history, step = _history(start)
        resumed_from = step
        if not _is_over(history, step, plan, config):
            history, step = _run(network, pairs, training, validation, plan, config, place, folder, start, title)
        best = place / checkpoints.BEST
        if best.is_file() and config.keep == "best":
            network.load_state_dict(checkpoints.load_weights(best))
        elif start is not None and resumed_from == step:
            state = checkpoints.load_weights(start / checkpoints.WEIGHTS)
            network.load_state_dict({name.removeprefix("network."): value for name, value in state.items()})
        network.to("cpu").eval()
    chosen = _best_entry(history) if config.keep == "best" else _last_entry(history)
    return FitResult(
        metrics={name.removeprefix("eval_"): value for name, value in chosen.items() if name.startswith("eval_")},
        history=history,
        steps=step,
        best_step=int(chosen.get("step", step)),
        stopped_early=step < plan.steps,
        resumed_from=resumed_from,
        seconds=time.perf_counter() - started,
    )


def _run(
    network: nn.Module,
    pairs: PairTokenizer,
    training: TrainingSet,
    validation: TrainingSet | None,
    plan: BatchPlan,
    config: FitConfig,
    place: Path,
    folder: str | Path | None,
    start: Path | None,
    title: str,
) -> tuple[list[dict[str, float]], int]:
    from transformers import TrainerCallback

    from pertinent.training.callbacks import KeepBest, Milestones, Progress, SealCheckpoints
    from pertinent.training.trainer import Trainer, has_both, make_optimizer

    saves, evaluates = folder is not None, validation is not None and len(validation) > 0
    every = config.eval_every
    milestones = plan.epoch_ends if every is None else [*range(every, plan.steps, every), plan.steps]
    callbacks: list[TrainerCallback] = [Milestones(milestones, evaluates, saves, config.early_stopping)]
    callbacks.append(KeepBest(lambda: checkpoints.save_weights(place / checkpoints.BEST, network.state_dict())))
    if saves:
        callbacks.append(SealCheckpoints(place))
    progress = Progress(title)
    if config.progress:
        callbacks.append(progress)
    warmup_steps = math.ceil(config.warmup * plan.steps)
    # A broken batch must outlive the folder where checkpoints are not kept.
    broken = (place if saves else Path(tempfile.gettempdir())) / BROKEN_BATCH
    with _tracker_folder(place if saves else None):
        arguments = _arguments(config, plan, place)
        try:
            trainer = Trainer(
                network,
                pairs,
                training,
                validation,
                plan,
                config.objective,
                validation is not None and has_both(validation.relevant),
                arguments,
                make_optimizer(network, config.learning_rate, config.weight_decay, warmup_steps, plan.steps),
                callbacks,
                broken,
            )
        except (RuntimeError, ValueError) as error:  # a tracker that is unknown or not installed
            raise _tracker_problem(config, error) from error
    try:
        trainer.train(resume_from_checkpoint=None if start is None else str(start))
    finally:
        progress.close()
    return trainer.state.log_history, trainer.state.global_step


def _arguments(config: FitConfig, plan: BatchPlan, place: Path) -> Any:
    from transformers import TrainingArguments

    return TrainingArguments(
        output_dir=str(place),
        num_train_epochs=1,  # one pass over the batches of all epochs
        max_steps=plan.steps,
        per_device_train_batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        max_grad_norm=config.max_grad_norm,
        seed=config.seed,
        bf16=config.precision == "bf16",
        use_cpu=config.device == "cpu",
        logging_strategy="steps",
        logging_steps=config.log_every,
        logging_nan_inf_filter=False,  # a NaN stops the run, it is not averaged away
        eval_strategy="no",  # milestones decide
        save_strategy="no",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        report_to=list(config.report_to),
    )


def _check(training: TrainingSet, config: FitConfig) -> None:
    import numpy as np

    if not len(training):
        raise DataError("no pairs to train on; check the split and the filters")
    for spec in config.objective:
        column = needed_column(spec)
        known = getattr(training, column)[~np.isnan(getattr(training, column))]
        if not len(known):
            raise DataError(
                f"objective {spec.type} needs {_COLUMN_WORDS[column]}, but none of the {len(training)} pairs has one"
            )
        if column == "relevant" and len(np.unique(known)) == 1:
            word = "relevant" if known[0] else "irrelevant"
            raise DataError(
                f"all {len(known)} training pairs are {word}; objective {spec.type} needs both kinds: "
                "check positive_grade"
            )


_COLUMN_WORDS = {"relevant": "a grade", "grade": "a grade", "teacher": "a teacher_logit"}


def _check_machine(config: FitConfig) -> None:
    import torch

    if config.precision == "bf16" and (config.device == "cpu" or not torch.cuda.is_available()):
        raise ConfigError("precision: bf16 is slower than float32 on a CPU; use float32, or a machine with a GPU")


def _identity(training: TrainingSet, validation: TrainingSet | None, config: FitConfig) -> dict[str, Any]:
    fields = set(FitConfig.model_fields) - FREE_TO_CHANGE
    settings = config.model_dump(mode="json", include=fields)
    return {
        **settings,
        "training pairs": training.fingerprint(),
        "validation pairs": None if validation is None else validation.fingerprint(),
    }


def _history(start: Path | None) -> tuple[list[dict[str, float]], int]:
    if start is None:
        return [], 0
    from transformers import TrainerState

    state = TrainerState.load_from_json(str(start / "trainer_state.json"))
    return state.log_history, state.global_step


def _is_over(history: Sequence[dict[str, float]], step: int, plan: BatchPlan, config: FitConfig) -> bool:
    from pertinent.training.callbacks import patience_is_over

    return step >= plan.steps or patience_is_over(history, config.early_stopping)


def _best_entry(history: Sequence[dict[str, float]]) -> dict[str, float]:
    evaluations = [entry for entry in history if "eval_score" in entry]
    return max(evaluations, key=lambda entry: entry["eval_score"], default={})


def _last_entry(history: Sequence[dict[str, float]]) -> dict[str, float]:
    return next((entry for entry in reversed(history) if "eval_score" in entry), {})


@contextmanager
def _tracker_folder(place: Path | None) -> Iterator[None]:
    """TensorBoard writes beside the checkpoints, which are removed in the end, unless told where."""
    name = "TENSORBOARD_LOGGING_DIR"
    if place is None or name in os.environ:
        yield
        return
    os.environ[name] = str(logs_folder(place))
    try:
        yield
    finally:
        del os.environ[name]


def logs_folder(place: Path) -> Path:
    """Where trackers write for a run with checkpoints in ``place``: outside of what is removed.

    >>> logs_folder(Path("runs/model.checkpoints/fit")).as_posix(), logs_folder(Path("runs/one")).as_posix()
    ('runs/model.logs', 'runs/one.logs')
    """
    for folder in (place, *place.parents):
        if folder.name.endswith(".checkpoints"):
            return folder.with_name(folder.name.removesuffix(".checkpoints") + ".logs")
    return place.with_name(place.name + ".logs")


def _tracker_problem(config: FitConfig, error: Exception) -> Exception:
    text = str(error)
    if "is not supported" in text or "not supported, only" in text:
        return ConfigError(f"report_to: {', '.join(config.report_to)}: {text}")
    if "install" in text:
        return MissingExtraError(f"report_to: {', '.join(config.report_to)}: {text}")
    return error
