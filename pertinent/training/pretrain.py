"""Continued pre-training: the shop's own texts in, a network that knows their words out (ei-SRC, section 9).

What comes out is a model folder to start from. Its relevance head is untrained.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, field_validator, model_validator

from pertinent.artifact import (
    Artifact,
    input_digests,
    open_artifact,
    refuse_foreign,
    write_artifact,
    write_json,
    write_text,
)
from pertinent.data.readers import read_table
from pertinent.data.splits import bucket
from pertinent.data.tables import Table
from pertinent.errors import ArtifactError, ConfigError, DataError, need
from pertinent.lexicon.pairs import PairTokenizer
from pertinent.lexicon.store import KIND as LEXICON
from pertinent.text import normalize
from pertinent.training import checkpoints
from pertinent.training.clicks import ClickStage, read_clicks, table_files
from pertinent.training.collate import BatchPlan
from pertinent.training.corpus import BERT, MLM, SENTENCE_LABELS, Corpus, RoBERTa, StructBERT
from pertinent.training.curves import pretraining_page
from pertinent.training.fit import FREE_TO_CHANGE, FitResult, LoopConfig, run_loop
from pertinent.training.run import StartConfig, starting_network

if TYPE_CHECKING:
    from pertinent.models.heads import PretrainingNetwork

logger = logging.getLogger(__name__)

HEADS = "heads.safetensors"


class PretrainConfig(StartConfig):
    """Settings of ``pertinent pretrain``: which texts, what is asked about them, what to start from, where to.

    ``titles`` are tables whose columns ``fields`` hold item texts, each line of a cell one text;
    ``queries`` tables with a column ``query``; ``examples`` tables with ``query`` and ``title`` that belong
    together, where there is a ``grade`` from ``lowest_grade`` up; ``clicks`` a folder of ``pertinent mine``.
    Queries that ``judged`` tables hold out (validation and test where they name splits, else all) are left
    out everywhere.

    ``recipe`` is ``mlm``, ``bert``, ``roberta`` or ``structbert``, or one with its settings. A share
    ``held_out`` of the texts is kept apart to measure on. ``resume: true`` goes on where a killed run
    stopped; checkpoints lie in ``OUT.checkpoints``.
    """

    titles: tuple[str, ...] = ()
    fields: tuple[str, ...] = Field(("title",), min_length=1)
    queries: tuple[str, ...] = ()
    examples: tuple[str, ...] = ()
    lowest_grade: float = Field(0.5, ge=0.0, le=1.0)
    clicks: ClickStage | None = None
    judged: tuple[str, ...] = ()
    recipe: Annotated[MLM | BERT | RoBERTa | StructBERT, Field(discriminator="type")] = MLM()
    held_out: float = Field(0.02, ge=0.0, lt=0.5)
    resume: bool = False
    out: str = "runs/pretrained"

    @field_validator("titles", "fields", "queries", "examples", "judged", mode="before")
    @classmethod
    def _one_is_a_list_of_one(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("recipe", mode="before")
    @classmethod
    def _a_name_is_its_defaults(cls, value: Any) -> Any:
        return {"type": value} if isinstance(value, str) else value

    @field_validator("clicks", mode="before")
    @classmethod
    def _a_path_is_its_defaults(cls, value: Any) -> Any:
        return {"table": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _some_texts(self) -> PretrainConfig:
        if not (self.titles or self.queries or self.examples or self.clicks):
            raise ValueError(
                "give texts to learn from: --titles, --queries or --examples (the settings titles, queries, examples), "
                "or clicks (--set clicks=FOLDER)"
            )
        return self


@dataclass(frozen=True, slots=True)
class Texts:
    """Distinct rows of a query and a title, either of which may be empty, and how many came from where."""

    rows: list[tuple[str, str]]
    counts: dict[str, int]
    left_out: int


def pretrain(config: PretrainConfig) -> Artifact:
    """A model folder to start from, pre-trained as configured, with the curves of its losses.

    It appears at ``config.out`` as a whole or not at all.

    Raises:
        ConfigError: Settings that do not fit each other, the machine, or the run to resume.
        DataError: Something in the files, or no text in them.
        ArtifactError: A folder that cannot be written or read.
        TrainingError: The loss was not finite.
    """
    need("torch", "train")
    from pertinent.models.ei_src import EiSRC

    out = Path(config.out)
    refuse_foreign(out, "model")
    network, pairs = starting_network(config)
    if not isinstance(network, EiSRC):
        raise ConfigError(f"start: a {type(network).__name__} cannot be pre-trained; only ei_src can")
    texts = read_texts(config)
    logger.info("%d texts: %s", len(texts.rows), texts.counts)
    train = [row for row in texts.rows if bucket("\t".join(row), "pretrain") >= config.held_out]
    valid = [row for row in texts.rows if bucket("\t".join(row), "pretrain") < config.held_out]
    corpus = Corpus(pairs, train or texts.rows, config.recipe, config.seed)
    held_out = Corpus(pairs, valid, config.recipe, config.seed) if valid and train else None
    work = out.with_name(f"{out.name}.checkpoints")
    with checkpoints.locked(work):
        trained = with_heads(config, network)
        result = fit_texts(trained, corpus, config, held_out, work / "fit", config.resume, f"pre-training {out.name}")
        _write(config, trained, pairs, texts, result)
        shutil.rmtree(work / "fit", ignore_errors=True)
    checkpoints.remove(work)
    return open_artifact(out, kind="model")


def fit_texts(
    network: PretrainingNetwork,
    corpus: Corpus,
    config: LoopConfig,
    held_out: Corpus | None = None,
    folder: str | Path | None = None,
    resume: bool = False,
    title: str = "pre-training",
) -> FitResult:
    """Pre-train a network with its heads in place; it ends on the CPU, in evaluation mode, with the weights to keep."""
    started = time.perf_counter()
    plan = BatchPlan(
        corpus.size_keys, None, config.batch_size, config.batch_size, config.epochs, config.max_steps, config.seed
    )

    def make_trainer(*parts: Any) -> Any:
        from pertinent.training.pretrainer import PreTrainer

        return PreTrainer(network, corpus, held_out, plan, *parts)

    identity = {
        **config.model_dump(mode="json", include=set(LoopConfig.model_fields) - FREE_TO_CHANGE),
        "recipe": corpus.recipe.plain(),
        "texts": corpus.fingerprint(),
        "held-out texts": None if held_out is None else held_out.fingerprint(),
    }
    return run_loop(network, config, plan, make_trainer, held_out is not None, identity, folder, resume, title, started)


def with_heads(config: PretrainConfig, network: Any) -> PretrainingNetwork:
    """The network with the heads that its start has from an earlier pre-training, else with fresh ones."""
    import torch

    from pertinent.models.heads import PretrainingNetwork

    torch.manual_seed(config.seed)
    trained = PretrainingNetwork(network, SENTENCE_LABELS[config.recipe.sentence])
    path = None if config.start is None else Path(config.start) / HEADS
    if path is not None and path.is_file():
        state = trained.state_dict()
        for name, value in checkpoints.load_weights(path).items():
            if name == "tokens.bias" and name in state:  # words that a lexicon has added since begin at 0
                state[name][: len(value)] = value
            elif name in state and state[name].shape == value.shape:
                state[name] = value
        trained.load_state_dict(state)
    return trained


def read_texts(config: PretrainConfig) -> Texts:
    """The texts of all files, each once but for case and spacing. DataError where there is none."""
    held = _held_out_queries(config.judged)
    counts: dict[str, int] = {}
    found: dict[tuple[str, str], tuple[str, str]] = {}
    left_out = 0

    def add(source: str, rows: Iterable[tuple[str, str]]) -> None:
        nonlocal left_out
        before = len(found)
        for query, title in rows:
            if query and normalize(query) in held:
                left_out += 1
            elif query or title:
                found.setdefault((normalize(query), normalize(title)), (query, title))
        counts[source] = counts.get(source, 0) + len(found) - before

    for path in config.examples:
        add("pairs", _pairs_of(read_table(path), config.lowest_grade))
    if config.clicks is not None:
        clicked = read_clicks(config.clicks, None, held)
        left_out += clicked.left_out
        rows = zip(clicked.queries, clicked.titles, clicked.copies.tolist(), strict=True)
        add("clicked pairs", ((query, title) for query, title, copies in rows if copies))
    for path in config.titles:
        add("item texts", (("", text) for text in _texts_of(read_table(path), config.fields)))
    for path in config.queries:
        add("queries", ((text, "") for text in _texts_of(read_table(path), ("query",))))
    if not found:
        raise DataError("there is no text to learn from", fix="check titles, queries, examples, clicks and judged")
    if left_out:
        logger.warning("%d texts are left out, their queries are held out for validation or test", left_out)
    return Texts(list(found.values()), counts, left_out)


def _held_out_queries(paths: Iterable[str]) -> frozenset[str]:
    held: set[str] = set()
    for path in paths:
        table = read_table(path)
        splits = table.texts("split") if table.has("split") else [None] * len(table)
        held |= {
            normalize(query)
            for query, split in zip(table.need_texts("query"), splits, strict=True)
            if split is None or split.lower() != "train"
        }
    return frozenset(held)


def _pairs_of(table: Table, lowest_grade: float) -> Iterable[tuple[str, str]]:
    queries, titles = table.need_texts("query"), table.need_texts("title")
    grades = table.columns.get("grade")
    for row, (query, title) in enumerate(zip(queries, titles, strict=True)):
        if grades is None or table.number(row, "grade", 0.0, 1.0, "give a number from 0 to 1") >= lowest_grade:
            yield query, title


def _texts_of(table: Table, fields: Iterable[str]) -> Iterable[str]:
    there = [name for name in fields if table.has(name)]
    if not there:
        raise table.missing(next(iter(fields)))
    for name in there:
        for cell in table.texts(name):
            yield from (line.strip() for line in (cell or "").splitlines() if line.strip())


def _write(
    config: PretrainConfig, trained: PretrainingNetwork, pairs: PairTokenizer, texts: Texts, result: FitResult
) -> None:
    from pertinent.models.store import save_network

    paths = {
        f"{name}.{number}": Path(path)
        for name in ("titles", "queries", "examples", "judged")
        for number, path in enumerate(getattr(config, name))
    }
    if config.clicks is not None:
        paths |= table_files(config.clicks.table)
    inputs = input_digests(paths)
    if config.lexicon is not None:
        inputs["lexicon"] = open_artifact(config.lexicon, kind=LEXICON).version
    numbers = {
        "texts": texts.counts,
        "left_out": texts.left_out,
        "recipe": config.recipe.plain(),
        "steps": result.steps,
        "best_step": result.best_step,
        "held_out": result.metrics,
        "history": result.history,
    }
    metrics = {**result.metrics, "steps": result.steps}
    heads = {name: value for name, value in trained.state_dict().items() if not name.startswith("network.")}
    try:
        with write_artifact(config.out, "model", config.plain(), inputs, metrics) as folder:
            save_network(folder, trained.network, pairs)
            checkpoints.save_weights(folder / HEADS, heads)
            write_json(folder / "pretraining.json", numbers)
            write_text(folder / "report.html", pretraining_page(Path(config.out).name, numbers))
            write_text(folder / "README.md", _card(config, texts, result))
    except OSError as error:
        raise ArtifactError(f"{config.out}: cannot be written: {error.strerror or error}") from error


def _card(config: PretrainConfig, texts: Texts, result: FitResult) -> str:
    name = Path(config.out).name
    counts = "\n".join(f"| {source} | {number:,} |" for source, number in texts.counts.items())
    values = "\n".join(f"| {key} | {value:.4f} |" for key, value in result.metrics.items() if key != "score")
    return (
        f"# {name}\n\nA network that was pre-trained on texts, to start a training from:\n\n"
        f"```yaml\nstart: path/to/{name}\n```\n\n"
        "Its relevance head is untrained: scores of this folder mean nothing.\n\n"
        f"Started from {config.start or 'random weights'}, recipe {config.recipe.type}, {result.steps:,} steps.\n\n"
        f"| texts | number |\n| --- | --- |\n{counts}\n\n"
        f"{texts.left_out:,} texts were left out because their queries are held out.\n\n"
        f"| on held-out texts | value |\n| --- | --- |\n{values}\n"
    )
