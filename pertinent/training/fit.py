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
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from pertinent.config import Config
from pertinent.errors import ConfigError, DataError, MissingExtraError, need
from pertinent.lexicon.pairs import PairTokenizer
from pertinent.models.weights import WeightsType
from pertinent.objectives.spec import Adversary, Objective, Softmax, needed_column, needs_groups
from pertinent.training import checkpoints
from pertinent.training.collate import BatchPlan, TrainingSet

if TYPE_CHECKING:
    from torch import nn

    from pertinent.training.negatives import BatchNegatives

logger = logging.getLogger(__name__)

BROKEN_BATCH = "broken-batch.safetensors"
# Settings that do not change what a step does; a resumed run may have others.
FREE_TO_CHANGE = {"log_every", "report_to", "progress", "keep"}


class LoopConfig(Config):
    """How the steps of a training run go, whatever is learned.

    ``warmup`` is a fraction of all steps. Evaluation on validation data comes every
    ``eval_every`` steps (none: after each epoch) together with a checkpoint; training stops when
    ``early_stopping`` evaluations in a row brought nothing better (0: never). ``keep: last`` ends with
    the last weights in place of the best, for stages that are not about the validation data.
    ``max_steps`` cuts training short.
    ``report_to`` names trackers of the Hugging Face Trainer, such as tensorboard, mlflow, wandb.
    """

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
    seed: int = Field(0, ge=0, lt=2**32)
    precision: Literal["float32", "bf16"] = "float32"
    device: Literal["auto", "cpu"] = "auto"
    log_every: int = Field(50, ge=1)
    report_to: tuple[str, ...] = ("none",)
    progress: bool = False

    @field_validator("report_to", mode="before")
    @classmethod
    def _one_name_is_a_list_of_one(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value


class FitConfig(LoopConfig):
    """How a network is trained; the same for judgments, clicks and teacher scores.

    Losses over the items of a query see at most ``group_limit`` of them together. ``adversarial``
    makes a step several passes: ``cat``, ``at``, ``kl``, ``r_drop`` or ``freelb``, or one of them with
    its settings; each applies the whole ``objective`` to its passes. Parameters whose names begin with
    one of ``frozen`` stay as they are. With ``round_weights`` each step sees the weights as that type
    stores them, and its gradient moves those that are not rounded (a straight-through estimate).
    """

    objective: tuple[Objective, ...] = Field((Softmax(),), min_length=1)
    adversarial: Adversary | None = None
    group_limit: int = Field(16, ge=2)
    frozen: tuple[str, ...] = ()
    round_weights: WeightsType | None = None

    @field_validator("objective", mode="before")
    @classmethod
    def _one_is_a_list_of_one(cls, value: Any) -> Any:
        return [value] if isinstance(value, (str, dict)) else value

    @field_validator("adversarial", mode="before")
    @classmethod
    def _a_name_is_its_defaults(cls, value: Any) -> Any:
        return {"type": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_inverse_temperature(self) -> Self:
        heated = [spec for spec in self.objective if isinstance(spec, Softmax) and spec != Softmax(weight=spec.weight)]
        if self.adversarial is not None and heated:
            raise ValueError("objective: with adversarial, the inverse temperature is set there; leave it out here")
        return self


@dataclass(frozen=True, slots=True)
class FitResult:
    """What came out of a training run; the network itself holds the best weights.

    ``metrics`` are those of the best evaluation (of the last step without validation pairs),
    ``history`` is everything that was reported, in order. ``inverse_temperature`` is what became part
    of the classifier's weights, ``epsilon`` how far an adversarial step moved a pair (none: it moved none).
    """

    metrics: dict[str, float]
    history: list[dict[str, float]]
    steps: int
    best_step: int
    stopped_early: bool
    resumed_from: int
    seconds: float
    inverse_temperature: float = 1.0
    epsilon: float | None = None


def fit(
    network: nn.Module,
    pairs: PairTokenizer,
    training: TrainingSet,
    config: FitConfig,
    validation: TrainingSet | None = None,
    folder: str | Path | None = None,
    resume: bool = False,
    title: str = "training",
    negatives: BatchNegatives | None = None,
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
        negatives: Where clicked pairs among ``training`` get their irrelevant ones from. They count
            in ``batch_size``.

    Raises:
        ConfigError: Settings that the machine cannot follow, or checkpoints of another run.
        DataError: Nothing to learn from.
        TrainingError: The loss was not finite; the batch is saved in ``folder``.
    """
    _check(training, config, network, negatives)
    started = time.perf_counter()
    adversarial = config.adversarial
    if adversarial is not None:
        from pertinent.training.adversarial import fold_heat, settled

        adversarial = settled(adversarial, network, pairs, training)
    plan = BatchPlan(
        training.size_keys,
        training.query_rows if needs_groups(config.objective) else None,
        config.batch_size if negatives is None else max(1, config.batch_size // (1 + negatives.each)),
        config.group_limit,
        config.epochs,
        config.max_steps,
        config.seed,
    )

    def make_trainer(*parts: Any) -> Any:
        from pertinent.training.trainer import Trainer, has_both

        choose = validation is not None and has_both(validation.relevant)
        return Trainer(
            network,
            pairs,
            training,
            validation,
            plan,
            config.objective,
            adversarial,
            negatives,
            choose,
            config.round_weights,
            *parts,
        )

    fields = set(FitConfig.model_fields) - FREE_TO_CHANGE
    identity = {
        **config.model_dump(mode="json", include=fields),
        "training pairs": training.fingerprint(),
        "validation pairs": None if validation is None else validation.fingerprint(),
    }
    if negatives is not None:
        identity["negatives"] = negatives.each
    validates = validation is not None and len(validation) > 0
    with frozen(network, config.frozen):
        result = run_loop(network, config, plan, make_trainer, validates, identity, folder, resume, title, started)
    if adversarial is None:
        return result
    heat = adversarial.heat(result.best_step / plan.steps)
    if heat != 1.0:
        fold_heat(network, heat)
    return replace(result, inverse_temperature=heat, epsilon=getattr(adversarial, "epsilon", None))


@contextmanager
def frozen(network: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """A block in which the parameters whose names begin with one of ``names`` are not trained.

    Raises ConfigError for a name that no parameter begins with, and where nothing would be left to train.
    """
    parameters = dict(network.named_parameters())
    for name in names:
        if not any(f"{known}.".startswith(f"{name}.") for known in parameters):
            parts = sorted({known.partition(".")[0] for known in parameters})
            raise ConfigError(f"frozen: no parameter is called {name}; names begin with {', '.join(parts)}")
    held = [
        parameter
        for known, parameter in parameters.items()
        if parameter.requires_grad and any(f"{known}.".startswith(f"{name}.") for name in names)
    ]
    if held and len(held) == sum(parameter.requires_grad for parameter in parameters.values()):
        raise ConfigError(f"frozen: {', '.join(names)} leaves nothing to train; name fewer")
    for parameter in held:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in held:
            parameter.requires_grad_(True)


def run_loop(
    trainee: nn.Module,
    config: LoopConfig,
    plan: BatchPlan,
    make_trainer: Callable[..., Any],
    validates: bool,
    identity: dict[str, Any],
    folder: str | Path | None,
    resume: bool,
    title: str,
    started: float,
) -> FitResult:
    """Run a trainer through its plan with checkpoints; ``trainee`` ends on the CPU with the weights to keep.

    ``make_trainer`` takes arguments, optimizer and schedule, callbacks, and where to save a broken
    batch. ``identity`` is what a resumed run must have in common with the one that was stopped.
    """
    need("torch", "train")
    need("transformers", "train")
    need("accelerate", "train")
    _check_machine(config)
    with ExitStack() as stack:
        if folder is None:
            place, start = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pertinent-"))), None
        else:
            place = stack.enter_context(checkpoints.locked(folder))
            start = checkpoints.begin(place, identity, resume)
        history, step = _history(start)
        resumed_from = step
        if not _is_over(history, step, plan, config):
            saves = folder is not None
            history, step = _run(trainee, plan, config, make_trainer, validates, place, saves, start, title)
        best = place / checkpoints.BEST
        if best.is_file() and config.keep == "best":
            trainee.load_state_dict(checkpoints.load_weights(best))
        elif start is not None and resumed_from == step:
            state = checkpoints.load_weights(start / checkpoints.WEIGHTS)
            trainee.load_state_dict({name.removeprefix("network."): value for name, value in state.items()})
        trainee.to("cpu").eval()
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
    trainee: nn.Module,
    plan: BatchPlan,
    config: LoopConfig,
    make_trainer: Callable[..., Any],
    validates: bool,
    place: Path,
    saves: bool,
    start: Path | None,
    title: str,
) -> tuple[list[dict[str, float]], int]:
    from transformers import TrainerCallback

    from pertinent.training.callbacks import KeepBest, Milestones, Progress, SealCheckpoints
    from pertinent.training.trainer import make_optimizer

    every = config.eval_every
    milestones = plan.epoch_ends if every is None else [*range(every, plan.steps, every), plan.steps]
    callbacks: list[TrainerCallback] = [Milestones(milestones, validates, saves, config.early_stopping)]
    callbacks.append(KeepBest(lambda: checkpoints.save_weights(place / checkpoints.BEST, trainee.state_dict())))
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
        optimizers = make_optimizer(trainee, config.learning_rate, config.weight_decay, warmup_steps, plan.steps)
        try:
            trainer = make_trainer(arguments, optimizers, callbacks, broken)
        except (RuntimeError, ValueError) as error:  # a tracker that is unknown or not installed
            raise _tracker_problem(config, error) from error
    try:
        trainer.train(resume_from_checkpoint=None if start is None else str(start))
    finally:
        progress.close()
    return trainer.state.log_history, trainer.state.global_step


def _arguments(config: LoopConfig, plan: BatchPlan, place: Path) -> Any:
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


def _check(training: TrainingSet, config: FitConfig, network: nn.Module, negatives: BatchNegatives | None) -> None:
    import numpy as np

    if not len(training):
        raise DataError("no pairs to train on; check the split and the filters")
    if config.adversarial is not None:
        _check_adversarial(config.adversarial, training, network)
    for spec in config.objective:
        column = needed_column(spec)
        known = getattr(training, column)[~np.isnan(getattr(training, column))]
        if not len(known):
            raise DataError(
                f"objective {spec.type} needs {_COLUMN_WORDS[column]}, but none of the {len(training)} pairs has one"
            )
        if column == "relevant" and len(np.unique(known)) == 1 and negatives is None:
            word = "relevant" if known[0] else "irrelevant"
            raise DataError(
                f"all {len(known)} training pairs are {word}; objective {spec.type} needs both kinds: "
                "check positive_grade"
            )


def _check_adversarial(spec: Adversary, training: TrainingSet, network: nn.Module) -> None:
    if not hasattr(network, "embeddings"):
        raise ConfigError(f"adversarial: a {type(network).__name__} has no embeddings to move; leave it out")
    if (spec.inverse_temperature != 1.0 or spec.final_inverse_temperature) and not hasattr(network, "classifier"):
        raise ConfigError(
            f"adversarial.inverse_temperature: becomes part of a classifier, which a {type(network).__name__} with "
            "this head has not; set it to 1 and final_inverse_temperature to null"
        )
    if getattr(spec, "word_drop", 0.0) and training.queries.term_classes is None:
        raise ConfigError(
            "adversarial.word_drop: drops words without a term class, but the training pairs have no term classes; "
            "make them with a tokenizer that has a tagger, or set word_drop: 0"
        )


_COLUMN_WORDS = {"relevant": "a grade", "grade": "a grade", "teacher": "a teacher_logit"}


def _check_machine(config: LoopConfig) -> None:
    import torch

    if config.precision == "bf16" and (config.device == "cpu" or not torch.cuda.is_available()):
        raise ConfigError("precision: bf16 is slower than float32 on a CPU; use float32, or a machine with a GPU")


def _history(start: Path | None) -> tuple[list[dict[str, float]], int]:
    if start is None:
        return [], 0
    from transformers import TrainerState

    state = TrainerState.load_from_json(str(start / "trainer_state.json"))
    return state.log_history, state.global_step


def _is_over(history: Sequence[dict[str, float]], step: int, plan: BatchPlan, config: LoopConfig) -> bool:
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


def _tracker_problem(config: LoopConfig, error: Exception) -> Exception:
    text = str(error)
    if "is not supported" in text or "not supported, only" in text:
        return ConfigError(f"report_to: {', '.join(config.report_to)}: {text}")
    if "install" in text:
        return MissingExtraError(f"report_to: {', '.join(config.report_to)}: {text}")
    return error
