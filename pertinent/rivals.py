"""Other toolkits as systems of a study: trained and scored by their own code, on our pairs."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
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


def open_rival(name: str, model: str | None, threads: int | None, folder: Path) -> Callable[[str, Sequence[str]], Any]:
    """How another toolkit scores one query with titles: a network of the same sizes and weights, its own code.

    The model is written to ``folder`` as a plain BERT with running positions, which is what they read, so
    scores are not those of a model with block positions; time is. Late joins are left out of it.
    """
    from pertinent.artifact import open_artifact
    from pertinent.engine.backends import default_threads
    from pertinent.folders import model_folder
    from pertinent.lexicon.pairs import PairTokenizer
    from pertinent.models.interchange import export_hugging_face
    from pertinent.models.store import load_network, rewired

    network, pairs = load_network(open_artifact(model_folder(model), kind="model"))
    config: Any = network.config
    wiring = {"join_layer": 0, "one_way": False} if getattr(config, "joins_late", False) else {}
    layout = pairs.config.model_copy(update={"positions": "running"})
    export_hugging_face(rewired(network, wiring), PairTokenizer(pairs.tokenizer, layout), folder)
    return _RIVALS[name](folder, layout.length, threads or default_threads())


def _open_sentence_transformers(folder: Path, length: int, threads: int) -> Callable[[str, Sequence[str]], Any]:
    need("sentence_transformers", "dev")
    import torch
    from sentence_transformers import CrossEncoder

    torch.set_num_threads(threads)
    with _quiet():
        return CrossEncoderScorer(
            CrossEncoder(str(folder), max_length=length, device="cpu"), "sentence-transformers"
        ).score


def _open_onnxruntime(folder: Path, length: int, threads: int) -> Callable[[str, Sequence[str]], Any]:
    """The model as one ONNX graph, run as its manual says: padded batches of 32, one session on all cores."""
    onnxruntime = need("onnxruntime", "dev")
    import torch
    from tokenizers import Tokenizer
    from transformers import BertForSequenceClassification

    loaded: Any = BertForSequenceClassification.from_pretrained(str(folder), attn_implementation="eager")
    network = loaded.eval()
    names = ("input_ids", "attention_mask", "token_type_ids")
    example = tuple(torch.ones((2, 8), dtype=torch.int64) for _ in names)
    free = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    with torch.no_grad():
        program: Any = torch.onnx.export(
            network, example, dynamo=True, verbose=False, input_names=list(names), dynamic_shapes=(free, free, free)
        )
    program.save(str(folder / "plain.onnx"))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(folder / "plain.onnx"), options, providers=["CPUExecutionProvider"])
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_padding()
    tokenizer.enable_truncation(length)

    def score(query: str, titles: Sequence[str]) -> NDArray[np.float32]:
        found = []
        for start in range(0, len(titles), 32):
            encoded = tokenizer.encode_batch([(query, title) for title in titles[start : start + 32]])
            arrays = (
                np.array([getattr(each, part) for each in encoded], dtype=np.int64)
                for part in ("ids", "attention_mask", "type_ids")
            )
            found.append(session.run(None, dict(zip(names, arrays, strict=True)))[0][:, 0])
        return np.concatenate(found) if found else np.zeros(0, dtype=np.float32)

    return score


def _open_ctranslate2(folder: Path, length: int, threads: int) -> Callable[[str, Sequence[str]], Any]:
    """CTranslate2's encoder in int8, the head on its ``[CLS]`` states; titles go in sorted by length."""
    ctranslate2 = need("ctranslate2", "dev")
    from safetensors.numpy import load_file
    from tokenizers import Tokenizer

    state = load_file(folder / "model.safetensors")
    ctranslate2.converters.TransformersConverter(str(folder)).convert(
        str(folder / "ct2"), quantization="int8", force=True
    )
    encoder = ctranslate2.Encoder(str(folder / "ct2"), compute_type="int8", inter_threads=threads, intra_threads=1)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(length)

    def score(query: str, titles: Sequence[str]) -> NDArray[np.float32]:
        if not titles:
            return np.zeros(0, dtype=np.float32)
        encoded = tokenizer.encode_batch([(query, title) for title in titles])
        order = np.argsort([len(each.ids) for each in encoded], kind="stable")
        logits = np.zeros(len(titles), dtype=np.float32)
        for start in range(0, len(order), 64):
            rows = order[start : start + 64]
            given = [encoded[row] for row in rows]
            found = encoder.forward_batch(
                [each.ids for each in given], token_type_ids=[each.type_ids for each in given]
            )
            first = np.asarray(found.last_hidden_state.to_device(ctranslate2.Device.cpu))[:, 0]
            pooled = np.tanh(first @ state["bert.pooler.dense.weight"].T + state["bert.pooler.dense.bias"])
            logits[rows] = (pooled @ state["classifier.weight"].T + state["classifier.bias"])[:, 0]
        return logits

    return score


_RIVALS: dict[str, Callable[[Path, int, int], Callable[[str, Sequence[str]], Any]]] = {
    "sentence-transformers": _open_sentence_transformers,
    "onnxruntime": _open_onnxruntime,
    "ctranslate2": _open_ctranslate2,
}


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
