"""Other toolkits as systems of a study: trained and scored by their own code, on our pairs."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pertinent.config import Config
from pertinent.data.grades import relevant
from pertinent.errors import need
from pertinent.lexicon.pairs import PairConfig
from pertinent.records import Judgment


class SentenceTransformersConfig(Config):
    """How sentence-transformers trains its ``CrossEncoder``: its trainer, its default loss.

    ``start`` and ``layers`` are as for our training. After each epoch its own evaluator measures
    the validation pairs; the best epoch is kept, as ours is.
    """

    start: str
    layers: tuple[int, ...] | None = None
    max_length: int = Field(128, ge=8)
    epochs: int = Field(2, ge=1)
    batch_size: int = Field(64, ge=1)
    learning_rate: float = Field(5e-5, gt=0.0)
    warmup: float = Field(0.1, ge=0.0, lt=1.0)
    seed: int = Field(0, ge=0)


def train_cross_encoder(
    config: SentenceTransformersConfig,
    train: Sequence[Judgment],
    valid: Sequence[Judgment],
    positive_grade: float,
    folder: Path,
) -> Any:
    """A trained ``sentence_transformers.CrossEncoder``; ``folder`` is for what it writes meanwhile."""
    need("sentence_transformers", "dev")
    datasets = need("datasets", "dev")
    import torch
    from sentence_transformers import CrossEncoder
    from sentence_transformers.cross_encoder import CrossEncoderTrainer, CrossEncoderTrainingArguments
    from sentence_transformers.cross_encoder.evaluation import CrossEncoderClassificationEvaluator
    from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss

    from pertinent.models.interchange import export_hugging_face, start_from

    torch.manual_seed(config.seed)
    # The cut BERT as a plain folder. Ours starts from the same weights; only the new head is random.
    layout = PairConfig(query_length=32, item_length=config.max_length - 32, positions="running", normalize=False)
    network, pairs = start_from(config.start, config.layers, {"labels": 1}, layout)
    export_hugging_face(network, pairs, folder / "start")
    with _quiet():
        model = CrossEncoder(str(folder / "start"), num_labels=1, max_length=config.max_length)
        evaluator = CrossEncoderClassificationEvaluator(
            [[row.query, row.title] for row in valid],
            relevant([row.grade for row in valid], positive_grade).astype(int).tolist(),
            name="valid",
            show_progress_bar=False,
            write_csv=False,
        )
        arguments = CrossEncoderTrainingArguments(
            output_dir=str(folder / "checkpoints"),
            num_train_epochs=config.epochs,
            per_device_train_batch_size=config.batch_size,
            learning_rate=config.learning_rate,
            warmup_steps=config.warmup,
            seed=config.seed,
            eval_strategy="epoch",
            save_strategy="epoch",
            load_best_model_at_end=True,
            metric_for_best_model="eval_valid_average_precision",
            save_total_limit=1,
            report_to=[],
            disable_tqdm=True,
            logging_strategy="no",
        )
        rows = {
            "query": [row.query for row in train],
            "title": [row.title for row in train],
            "label": relevant([row.grade for row in train], positive_grade).astype(float).tolist(),
        }
        trainer = CrossEncoderTrainer(
            model=model,
            args=arguments,
            train_dataset=datasets.Dataset.from_dict(rows),
            loss=BinaryCrossEntropyLoss(model),
            evaluator=evaluator,
        )
        trainer.train()
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return model


class CrossEncoderScorer:
    """A ``sentence_transformers.CrossEncoder`` as a scorer."""

    def __init__(self, model: Any, name: str) -> None:
        self.model = model
        self.name = name

    def score(self, query: str, titles: Sequence[str]) -> NDArray[np.float32]:
        """Its own ``predict``, float32 ``[n]``."""
        pairs = [(query, title) for title in titles]
        if not pairs:
            return np.zeros(0, dtype=np.float32)
        return np.asarray(self.model.predict(pairs, show_progress_bar=False), dtype=np.float32)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    # Its data sets print progress bars of their own.
    before = os.environ.get("HF_DATASETS_DISABLE_PROGRESS_BARS")
    os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"]
        else:
            os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = before
