"""When to evaluate, when to stop, what to keep, and how to say where a run stands.

The callbacks have no state of their own: they read the history that the Trainer keeps in every
checkpoint, so a resumed run decides as the killed one would have.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from pertinent.training import checkpoints

logger = logging.getLogger(__name__)

SCORE = "eval_score"  # what decides which weights are best; larger is better


def scores(history: Sequence[Mapping[str, Any]]) -> list[float]:
    """The validation scores in a Trainer's history, first to last.

    >>> scores([{"loss": 0.7, "step": 1}, {"eval_score": 0.8, "step": 2}])
    [0.8]
    """
    return [entry[SCORE] for entry in history if SCORE in entry]


def best_is_last(history: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the newest score beats all before it.

    >>> best_is_last([{"eval_score": 0.8}, {"eval_score": 0.8}])
    False
    """
    seen = scores(history)
    return bool(seen) and seen[-1] > max(seen[:-1], default=float("-inf"))


def patience_is_over(history: Sequence[Mapping[str, Any]], patience: int) -> bool:
    """Whether the last ``patience`` scores all failed to beat the best before; never for 0.

    >>> history = [{"eval_score": 0.8}, {"eval_score": 0.7}, {"eval_score": 0.75}]
    >>> patience_is_over(history, 2), patience_is_over(history, 3)
    (True, False)
    """
    seen = scores(history)
    return bool(patience) and len(seen) - 1 - seen.index(max(seen)) >= patience if seen else False


class Milestones(TrainerCallback):
    """Evaluates and saves at the given steps, stops when patience is over."""

    def __init__(self, steps: Sequence[int], evaluates: bool, saves: bool, patience: int) -> None:
        self.steps, self.evaluates, self.saves, self.patience = frozenset(steps), evaluates, saves, patience

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        if state.global_step in self.steps:
            control.should_evaluate, control.should_save = self.evaluates, self.saves
            control.should_log = True  # averages then start anew at a checkpoint, so a resumed run logs the same
        return control

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        if patience_is_over(state.log_history, self.patience):
            logger.info("no better validation score for %d evaluations; stopping", self.patience)
            control.should_training_stop = True
        return control


class KeepBest(TrainerCallback):
    """Calls ``keep`` when the newest validation score is the best so far."""

    def __init__(self, keep: Callable[[], None]) -> None:
        self.keep = keep

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if best_is_last(state.log_history):
            self.keep()


class SealCheckpoints(TrainerCallback):
    """Marks a checkpoint whole once everything in it is written, and removes older ones."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        checkpoints.seal(self.folder, state.global_step)


class Progress(TrainerCallback):
    """A bar on a terminal, a plain line at every report otherwise; on the error stream."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.text = title
        self.bar: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self.bar = Bar(*columns, console=Console(stderr=True))
            self.bar.start()
            self.bar.add_task(self.title, total=state.max_steps, completed=state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.bar is not None:
            self.bar.update(self.bar.task_ids[0], completed=state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        shown = [f"{name} {value:.4g}" for name, value in (logs or {}).items() if name in ("loss", SCORE)]
        if not shown:
            return
        line = f"{self.title}: step {state.global_step} of {state.max_steps}, {', '.join(shown)}"
        if self.bar is not None:
            self.bar.update(self.bar.task_ids[0], description=f"{self.title} {' '.join(shown)}")
        else:
            sys.stderr.write(line + "\n")
            sys.stderr.flush()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.close()

    def close(self) -> None:
        """Take the bar away, also after an error."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None
