"""The training stage: judgments in, a measured and calibrated model artifact out."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator

from pertinent.artifact import (
    MANIFEST,
    Artifact,
    input_digests,
    open_artifact,
    refuse_foreign,
    write_artifact,
    write_json,
    write_text,
)
from pertinent.data.neighbors import MINED, NeighborHistory
from pertinent.data.readers import read_items, renames_by_file
from pertinent.data.samples import read_sample
from pertinent.data.splits import SPLITS
from pertinent.errors import ConfigError, need
from pertinent.evaluation.calibration import fit_calibration, threshold_for_recall, threshold_table
from pertinent.evaluation.evaluate import RESAMPLES, evaluate_scores
from pertinent.evaluation.result import Evaluation
from pertinent.folders import SHIPPED_MODELS, locate, model_folder
from pertinent.lexicon.pairs import PairConfig, PairTokenizer
from pertinent.lexicon.store import KIND as LEXICON
from pertinent.lexicon.store import Lexicon
from pertinent.models.store import WIRING, rewired, rounded, with_term_classes
from pertinent.models.weights import WeightsType
from pertinent.objectives.spec import ViewLosses
from pertinent.probability import CALIBRATION_FILE, Calibration, probability_curve
from pertinent.records import Judgment, Pair, Split
from pertinent.text import normalize
from pertinent.training import checkpoints
from pertinent.training.card import CardFacts, model_card
from pertinent.training.clicks import ClickStage, read_clicks, table_files
from pertinent.training.collate import TrainingSet, join
from pertinent.training.data import Fractions, JudgedData, SplitBy, read_examples, read_judged
from pertinent.training.fit import FitConfig, FitResult, LoopConfig, fit
from pertinent.training.negatives import BatchNegatives

if TYPE_CHECKING:
    from torch import nn

logger = logging.getLogger(__name__)

GOLDEN_PAIRS = 20
RECALLS = (0.9, 0.95, 0.99)
SHIPPED = "shipped"
PACKAGES = ("pertinent", "torch", "transformers", "tokenizers", "numpy")


class StartConfig(LoopConfig):
    """What a training run starts from.

    ``start`` is ``shipped``, a model artifact, a Hugging Face BERT folder, ``package:NAME/FOLDER`` or
    ``hub:OWNER/NAME``; none starts from random weights with the words of ``tokenizer``, a
    folder or package folder with ``tokenizer.json`` (left out: those of the shipped model).
    ``lexicon`` is a folder of ``pertinent lexicon``, whose words get tokens of their own.
    ``layers`` picks layers of a BERT. ``model`` overrides sizes of the network, ``pairs`` is the
    layout; a model artifact brings its own, but may be joined later (``join_layer``, ``one_way``) and
    be given ``term_classes``, at first without effect.
    """

    start: str | None = SHIPPED
    tokenizer: str | None = None
    lexicon: str | None = None
    layers: tuple[int, ...] | None = Field(None, min_length=1)
    model: dict[str, Any] | None = None
    pairs: PairConfig | None = None


class TrainConfig(StartConfig, FitConfig):
    """Settings of ``pertinent train``: what to learn from, what to start from, how, and where to.

    ``judgments`` (or the name of a ``sample``) is a table with ``query``, ``title`` (or ``item_id``
    and ``items``) and ``grade`` (or ``label`` on a ``scale``). ``positive_grade`` is the lowest
    grade that counts as relevant; left out, that of the scale, or 1. Splits are those of the file's
    column ``split``, or by a hash of the query. ``examples`` are more training pairs, with
    ``teacher_logit`` or ``grade``; pairs of held-out queries are left out. With ``clicks``, a folder of
    ``pertinent mine`` or its settings, clicked pairs take the place of the judgments' training pairs;
    validation and test stay those of the judgments. ``neighbors``, a folder of ``pertinent mine``, is for
    ``model.type: barl_ase``, which then reads neighbors of queries and items and learns by ``views`` too.

    ``resume: true`` goes on where a killed run stopped; checkpoints lie in ``OUT.checkpoints``.
    """

    judgments: str | None = None
    sample: str | None = None
    items: str | None = None
    columns: dict[str, str] = {}
    scale: str | None = None
    positive_grade: float | None = Field(None, gt=0.0, le=1.0)
    split_by: SplitBy = "auto"
    split_fractions: Fractions = (0.8, 0.1, 0.1)
    split_salt: str = ""
    examples: tuple[str, ...] = ()
    clicks: ClickStage | None = None
    neighbors: str | None = None
    views: ViewLosses = ViewLosses()
    calibration: Literal["platt", "isotonic", "none"] = "platt"
    weights_dtype: WeightsType = "float32"
    graph: bool = True
    bootstrap: int = Field(RESAMPLES, ge=0)
    licenses: dict[str, str] = {}
    resume: bool = False
    out: str = "runs/model"

    @field_validator("clicks", mode="before")
    @classmethod
    def _a_path_is_its_defaults(cls, value: Any) -> Any:
        return {"table": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_source(self) -> TrainConfig:
        if (self.judgments is None) == (self.sample is None):
            raise ValueError("give --judgments FILE (the setting judgments), or a judged sample (--set sample=esci)")
        if self.neighbors is not None and (self.clicks is not None or self.examples):
            raise ValueError("neighbors: pairs of clicks and examples name no item to leave out; leave them away")
        if abs(sum(self.split_fractions) - 1) > 1e-9 or min(self.split_fractions) < 0:
            raise ValueError("split_fractions must be three numbers from 0 that add to 1, such as [0.8, 0.1, 0.1]")
        return self


def train(config: TrainConfig) -> Artifact:
    """A model artifact trained as configured: best weights, calibration, metrics, graph and card.

    It appears at ``config.out`` as a whole or not at all. What it holds is what was measured:
    weights are rounded to ``weights_dtype`` before anything is fitted or scored.

    Raises:
        ConfigError: Settings that do not fit each other, the machine, or the run to resume.
        DataError: Something in the files, with file and line; a query in two splits.
        ArtifactError: A folder that cannot be written, or another run that works there.
        TrainingError: The loss was not finite.
    """
    need("torch", "train")
    out = Path(config.out)
    refuse_foreign(out, "model")
    data = read_judged(
        config.judgments,
        config.sample,
        config.items,
        config.columns,
        config.scale,
        config.positive_grade,
        config.split_by,
        config.split_fractions,
        config.split_salt,
    )
    network, pairs = starting_network(config)
    if config.neighbors is not None:
        data = with_neighbors(data, network, config.neighbors, _titles(config, data))
    learned = _learned(config, data, _with_classes(config, pairs))
    validation = data.training_set(data.of("valid"), pairs)
    work = out.with_name(f"{out.name}.checkpoints")
    with checkpoints.locked(work):
        title = f"training {out.name}"
        if config.neighbors is None:
            result = fit(
                network, pairs, learned.pairs, config, validation, work / "fit", config.resume, title, learned.negatives
            )
        else:
            from pertinent.training.barl import fit_views

            result = fit_views(
                network, pairs, learned.pairs, config, config.views, validation, work / "fit", config.resume, title
            )
        _write_model(config, network, pairs, data, result, learned)
        shutil.rmtree(work / "fit", ignore_errors=True)
    checkpoints.remove(work)
    return open_artifact(out, kind="model")


def with_neighbors(data: JudgedData, network: nn.Module, mined: str, titles: Mapping[str, str]) -> JudgedData:
    """The judgments with the neighbor lists of a mined log, as many of each list as the network has slots.

    Raises ConfigError for a network that reads none.
    """
    settings: Any = network.config
    if getattr(settings, "slots", None) is None:
        raise ConfigError("neighbors: only model.type barl_ase reads them; set it with start: null, or leave them out")
    return replace(data, neighbors=NeighborHistory.open(mined, titles, settings.slots))


def _titles(config: TrainConfig, data: JudgedData) -> dict[str, str]:
    """The title of each item of the catalog, and of judged items that are not in it."""
    titles = {row.item_id: row.title for row in data.judgments}
    if config.sample is not None:
        items = read_sample(config.sample)[0]
    elif config.items is not None:
        items = read_items(
            config.items, renames_by_file([config.items, config.judgments], config.columns)[config.items]
        )
    else:
        return titles
    return titles | {item.item_id: item.title for item in items}


def starting_network(config: StartConfig) -> tuple[nn.Module, PairTokenizer]:
    """The network to train and its tokenizer; what is random in it depends on the seed alone.

    A network that reads term classes gets a tagger: that of the lexicon, else of its start, else the one that
    comes with pertinent.
    """
    from pertinent.models.store import extend_vocabulary

    lexicon = None if config.lexicon is None else Lexicon.load(config.lexicon)
    network, pairs = _start(config)
    if lexicon is not None:
        network, pairs = extend_vocabulary(network, pairs, lexicon.words)
    settings: Any = network.config  # every network of ours has one
    if not settings.term_classes:
        return network, PairTokenizer(pairs.tokenizer, pairs.config)
    if lexicon is not None or pairs.tagger is None:
        from pertinent.lexicon.tagger import Tagger

        tagger = Tagger.shipped() if lexicon is None else lexicon.tagger
        pairs = PairTokenizer(pairs.tokenizer, pairs.config, tagger)
    return network, pairs


def _start(config: StartConfig) -> tuple[nn.Module, PairTokenizer]:
    import torch

    from pertinent.models.interchange import start_from
    from pertinent.models.store import build_network, load_network, model_config, read_tokens

    torch.manual_seed(config.seed)
    layout = config.pairs or PairConfig()
    if config.start is None:
        if config.layers is not None:
            raise ConfigError("layers: picks layers of a start, but start is empty; use model.layers for their number")
        folder = model_folder(None) if config.tokenizer is None else locate(config.tokenizer)
        pairs = PairTokenizer.load(folder, layout)
        settings = {"type": "ei_src", "vocabulary_size": pairs.vocabulary_size, **(config.model or {})}
        if layout.length > settings.get("max_positions", layout.length):
            raise ConfigError(f"pairs: {layout.length} tokens a pair, but model.max_positions is less")
        if "max_positions" in model_config(settings["type"]).model_fields:
            settings.setdefault("max_positions", max(64, layout.length))
        return read_tokens(build_network(settings, "model"), pairs), pairs
    if config.tokenizer is not None:
        raise ConfigError("tokenizer: the start brings its own; leave it out, or set start: null")
    folder = model_folder(config.start)
    if config.start not in SHIPPED_MODELS and not (folder / MANIFEST).is_file():
        return start_from(config.start, config.layers, config.model, layout)
    network, pairs = load_network(open_artifact(folder, kind="model"))
    _refuse_changes(config, network, pairs)
    model = config.model or {}
    network = rewired(network, {key: value for key, value in model.items() if key in WIRING})
    return with_term_classes(network) if model.get("term_classes") else network, pairs


def write_model(
    folder: Path,
    network: nn.Module,
    pairs: PairTokenizer,
    golden: Sequence[Pair],
    calibration: Calibration | None,
    thresholds: Mapping[str, Any] | None,
    card: str,
    weights_dtype: WeightsType,
    graph: bool,
) -> None:
    """Fill an open model artifact folder: weights, tokenizer, graph, golden scores, calibration, card."""
    import torch

    from pertinent.engine.export import write_golden, write_graph
    from pertinent.models.store import save_network

    save_network(folder, network, pairs, weights_dtype)
    if graph:
        write_graph(network, folder)
    threads = torch.get_num_threads()
    write_golden(folder, golden, network, pairs)
    torch.set_num_threads(threads)  # the golden scores are made on one
    if calibration is not None:
        write_json(folder / CALIBRATION_FILE, calibration.plain())
    if thresholds is not None:
        write_json(folder / "thresholds.json", thresholds)
    write_text(folder / "README.md", card)


def golden_pairs(judgments: Sequence[Judgment]) -> list[Pair]:
    """Up to twenty pairs, spread evenly over the judgments.

    >>> [pair.title for pair in golden_pairs([Judgment("tv", str(i), 1.0, title=str(i)) for i in range(40)])][:3]
    ['0', '2', '4']
    """
    rows = np.linspace(0, len(judgments) - 1, min(GOLDEN_PAIRS, len(judgments))).astype(int)
    return [Pair(judgments[row].query, judgments[row].title) for row in rows]


def _refuse_changes(config: StartConfig, network: Any, pairs: PairTokenizer) -> None:
    if config.layers is not None:
        raise ConfigError("layers: a model artifact keeps all its layers; leave it out, or start from a BERT folder")
    own = network.config.plain()
    wanted = (config.model or {}).get("type", own["type"])
    if wanted != own["type"]:
        raise ConfigError(
            f"model.type: the start is {own['type']}; to train {wanted} from random weights: start: null "
            "(--set start=null)"
        )
    for key, value in (config.model or {}).items():
        if own.get(key) != value and key not in WIRING and (key, value) != ("term_classes", True):
            raise ConfigError(f"model.{key}: {value}, but the start has {own.get(key)}; leave it out")
    if config.pairs is not None and config.pairs != pairs.config:
        raise ConfigError(
            f"pairs: {config.pairs.plain()}, but the start was made for {pairs.config.plain()}; leave it out"
        )


@dataclass(frozen=True, slots=True)
class _Learned:
    """What a run learns from: pairs, where clicked ones get negatives, what was left out, counts for the card."""

    pairs: TrainingSet
    negatives: BatchNegatives | None
    left_out: int
    extra: dict[str, int]


def _learned(config: TrainConfig, data: JudgedData, pairs: PairTokenizer) -> _Learned:
    held_out = frozenset(normalize(row.query) for split in ("valid", "test") for row in data.of(split))
    sets: list[TrainingSet] = []
    extra: dict[str, int] = {}
    left_out, negatives = 0, None
    if config.clicks is not None:  # first, as negatives are for the first pairs
        clicked = read_clicks(config.clicks, config.items, held_out)
        more, negatives = clicked.training_set(pairs, config.clicks.negatives, config.seed)
        sets.append(more)
        extra["clicked pairs, with copies"], left_out = len(more), clicked.left_out
    if config.clicks is None or config.clicks.judged:
        sets.append(data.training_set(data.of("train"), pairs))
    elif data.of("train"):
        extra["judged training pairs not learned in this run"] = len(data.of("train"))
    for path in config.examples:
        more, dropped = read_examples(path, pairs, data.positive_grade, held_out)
        sets.append(more)
        extra["extra training pairs"] = extra.get("extra training pairs", 0) + len(more)
        left_out += dropped
    return _Learned(join(sets), negatives, left_out, extra)


def _with_classes(config: TrainConfig, pairs: PairTokenizer) -> PairTokenizer:
    """The tokenizer of the training pairs: it finds term classes where words are dropped by them.

    The network may not read them; the model is saved without them then.
    """
    if pairs.tagger is not None or not getattr(config.adversarial, "word_drop", 0.0):
        return pairs
    from pertinent.lexicon.tagger import Tagger

    tagger = Tagger.shipped() if config.lexicon is None else Lexicon.load(config.lexicon).tagger
    return PairTokenizer(pairs.tokenizer, pairs.config, tagger)


def _write_model(
    config: TrainConfig,
    network: nn.Module,
    pairs: PairTokenizer,
    data: JudgedData,
    result: FitResult,
    learned: _Learned,
) -> None:
    network = rounded(network, config.weights_dtype)
    valid = data.of("valid")
    measured: list[Split] = ["valid", "test"] if data.of("test") else ["valid"]
    logits: dict[str, NDArray[np.float32]] = {
        split: _logits(network, pairs, data, data.of(split)) for split in measured
    }
    calibration = _calibration(config, logits["valid"], data.relevant(valid))
    scores = {split: _probabilities(calibration, logits[split]) for split in measured}
    evaluations: dict[str, Evaluation] = {
        split: evaluate_scores(
            scores[split],
            data.of(split),
            name=Path(config.out).name,
            positive_grade=data.positive_grade,
            bootstrap=config.bootstrap,
            seed=config.seed,
        )
        for split in measured
    }
    thresholds = _thresholds(scores["valid"], data.relevant(valid))
    paths = {**data.files, **{f"examples.{number}": Path(path) for number, path in enumerate(config.examples)}}
    if config.clicks is not None:
        paths |= table_files(config.clicks.table)
        catalog = config.clicks.items or config.items
        paths |= {} if catalog is None else {"clicks.items": Path(catalog)}
    inputs = input_digests(paths) | _lexicon_version(config)
    if config.neighbors is not None:
        inputs["neighbors"] = open_artifact(config.neighbors, kind=MINED, verify=False).version
    settings: Any = network.config  # every network of ours has one
    stop = "stopped early" if result.stopped_early else "ran to the end"
    card = CardFacts(
        title=Path(config.out).name,
        start=config.start or "random weights",
        network=settings.plain(),
        pairs=pairs.config.plain(),
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        weights_dtype=config.weights_dtype,
        counts=_counts(data, learned.extra),
        sources={name: inputs.get(name, "") for name in dict.fromkeys([*paths, *inputs])},
        licenses=config.licenses,
        left_out=learned.left_out,
        positive_grade=data.positive_grade,
        objective=[each.plain() for each in (*config.objective, config.adversarial) if each is not None],
        settings=_card_settings(config, result),
        steps=f"{result.steps:,} steps, {stop}; weights of step {result.best_step:,}",
        evaluations=evaluations,
        calibration=None if calibration is None else calibration.plain(),
        recall_thresholds={} if thresholds is None else thresholds["for_recall"],
        versions=_versions(),
    )
    metrics: dict[str, Any] = {
        **{split: each.plain()["metrics"] for split, each in evaluations.items()},
        "selection": {**result.metrics, "step": result.best_step, "steps": result.steps},
    }
    with write_artifact(config.out, "model", config.plain(), inputs, metrics) as folder:
        write_model(
            folder,
            network,
            pairs,
            golden_pairs(data.of("valid")),
            calibration,
            thresholds,
            model_card(card),
            config.weights_dtype,
            config.graph,
        )


_CARD_SETTINGS = (
    "epochs",
    "batch_size",
    "learning_rate",
    "weight_decay",
    "warmup",
    "early_stopping",
    "seed",
    "precision",
)


def _card_settings(config: TrainConfig, result: FitResult) -> dict[str, Any]:
    settings = {name: getattr(config, name) for name in _CARD_SETTINGS}
    if config.adversarial is not None:
        settings["inverse temperature in the weights"] = round(result.inverse_temperature, 6)
    if result.epsilon is not None:
        settings["length of the perturbation"] = round(result.epsilon, 4)
    return settings


def _logits(
    network: nn.Module, pairs: PairTokenizer, data: JudgedData, judgments: Sequence[Judgment]
) -> NDArray[np.float32]:
    import torch

    from pertinent.models.blocks import relevance_logit
    from pertinent.training.trainer import EVALUATION_BATCH, all_logits

    examples = data.training_set(judgments, pairs)
    both = torch.from_numpy(all_logits(network, pairs, examples, EVALUATION_BATCH))
    return np.asarray(relevance_logit(both).numpy(), dtype=np.float32)


def _calibration(config: TrainConfig, logits: NDArray[np.float32], relevant: NDArray[np.bool_]) -> Calibration | None:
    if config.calibration == "none":
        return None
    if relevant.all() or not relevant.any():
        logger.warning("all validation pairs are %s: scores stay uncalibrated", "relevant" if relevant.all() else "not")
        return None
    return fit_calibration(config.calibration, logits, relevant.astype(np.float64))


def _probabilities(calibration: Calibration | None, logits: NDArray[np.float32]) -> NDArray[np.float32]:
    # The same curve that the engine will read from the artifact, so card and scores agree.
    return probability_curve(None if calibration is None else calibration.plain())(logits)


def _thresholds(probabilities: NDArray[np.float32], relevant: NDArray[np.bool_]) -> dict[str, Any] | None:
    if not relevant.any():
        return None
    recalls = {f"{recall:.0%}": threshold_for_recall(probabilities, relevant, recall) for recall in RECALLS}
    return {
        "split": "valid",
        "pairs": len(relevant),
        "for_recall": recalls,
        "table": threshold_table(probabilities, relevant),
    }


def _lexicon_version(config: TrainConfig) -> dict[str, str]:
    return {} if config.lexicon is None else {"lexicon": open_artifact(config.lexicon, kind=LEXICON).version}


def _counts(data: JudgedData, extra: Mapping[str, int]) -> dict[str, tuple[str, str]]:
    rows: dict[str, list[Judgment]] = {split: data.of(split) for split in SPLITS}
    counts = {split: (f"{len(of):,}", f"{len({row.query for row in of}):,}") for split, of in rows.items()}
    return counts | {name: (f"{number:,}", "") for name, number in extra.items()}


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
