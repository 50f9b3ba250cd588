"""Several systems over several seeds on one judged set: a table with intervals, one report.

Each system and seed leaves its scores in the study's folder; a study that was stopped goes on
where it stopped, and one whose settings changed does only what changed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import platform
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from pertinent import __version__
from pertinent.artifact import MANIFEST, open_artifact, read_json, sha256, write_json, write_text
from pertinent.config import Config
from pertinent.errors import ConfigError, PertinentError
from pertinent.evaluation.compare import compare_means, mean_estimates
from pertinent.evaluation.evaluate import RESAMPLES, evaluate_scores, score_judgments
from pertinent.evaluation.perturb import PERTURBATIONS, Surroundings
from pertinent.evaluation.report import write_report
from pertinent.evaluation.robustness import (
    compare_losses,
    loss_of,
    make_views,
    score_views,
    surroundings,
)
from pertinent.evaluation.study_table import Row, Study, first_metric_chart
from pertinent.folders import SHIPPED_MODELS, model_folder
from pertinent.lexicon.pairs import PairConfig
from pertinent.records import Item, Judgment, PairScorer, Split
from pertinent.rivals import SentenceTransformersConfig

if TYPE_CHECKING:
    from pertinent.training.data import JudgedData
    from pertinent.training.parts import Part

logger = logging.getLogger(__name__)

SHIPPED = "shipped"
# Settings of training that name files or folders to read, beside the start.
_READ = (
    "judgments",
    "items",
    "examples",
    "clicks",
    "clicks.table",
    "clicks.items",
    "neighbors",
    "lexicon",
    "tokenizer",
)


class LexicalSystem(Config):
    """BM25 or TF-IDF over the titles of the catalog and of the judgments."""

    type: Literal["bm25", "tfidf"]
    name: str


class BiEncoderSystem(Config):
    """The cosine of a pretrained bi-encoder, as it comes; nearly all titles fit the default lengths."""

    type: Literal["bi_encoder"]
    name: str
    start: str
    layers: tuple[int, ...] | None = None
    pairs: PairConfig = PairConfig(query_length=64, item_length=128, normalize=False)


class ModelSystem(Config):
    """A model artifact as it is; none is the shipped one."""

    type: Literal["model"]
    name: str
    model: str | None = None


class TrainSystem(Config):
    """A model trained for the study, once a seed; ``train`` has the settings of ``pertinent train``.

    ``fraction`` is the share of the training queries it learns from; smaller ones are inside larger ones.

    ``before`` has the settings of stages that come first, such as clicks before judgments: each goes on from the
    model of the one before, so only the first has a ``start``. Systems with the same first stages share their models.
    """

    type: Literal["train"]
    name: str
    train: dict[str, Any]
    fraction: float = Field(1.0, gt=0.0, le=1.0)
    before: tuple[dict[str, Any], ...] = ()

    @property
    def stages(self) -> tuple[dict[str, Any], ...]:
        """The settings of all stages in their order."""
        return (*self.before, self.train)

    def plain(self) -> dict[str, Any]:
        """As plain values; without ``before`` where there is none, so that results of one stage keep their digest."""
        found = super().plain()
        return found if self.before else {name: value for name, value in found.items() if name != "before"}

    @model_validator(mode="after")
    def _one_start(self) -> TrainSystem:
        if any("start" in stage for stage in self.stages[1:]):
            raise ValueError(f"{self.name}: only the first stage has a start; each other goes on from the one before")
        return self


class SentenceTransformersSystem(Config):
    """sentence-transformers' ``CrossEncoder``, trained on the same pairs once a seed.

    ``fraction`` is the share of the training queries it learns from; smaller ones are inside larger ones.
    """

    type: Literal["sentence_transformers"]
    name: str
    train: dict[str, Any]
    fraction: float = Field(1.0, gt=0.0, le=1.0)


System = Annotated[
    LexicalSystem | BiEncoderSystem | ModelSystem | TrainSystem | SentenceTransformersSystem,
    Field(discriminator="type"),
]


class StudyConfig(Config):
    """What is compared, on what, and against which system differences are taken.

    Judgments are given as for training: a ``sample`` or a file, with their splits. Systems that are
    trained learn from the split ``train``, choose by ``valid``, and all are measured on ``split``.

    With ``folds`` every judgment is measured, by a model that saw no judgment of its query: the
    queries are dealt into that many parts, and each part is held out once. A ``model`` is taken as
    it is, so it must not have learned from these judgments. ``parts`` are the numbers, from 1, of
    those that are measured; left out, all.

    With ``hold_out`` the parts are industries: the first level of the ``category`` that most judged
    items of a query have, or the judgments' ``segment``.

    With ``robustness`` the judgments are also scored with their texts changed, and the loss of AUC is
    part of the table.

    Trained models stay in ``models`` (left out: ``out``). A study that measures something else of a system
    with the same name, settings and data takes them from there.
    """

    title: str
    sample: str | None = None
    judgments: str | None = None
    items: str | None = None
    scale: str | None = None
    positive_grade: float = Field(1.0, gt=0.0, le=1.0)
    split: Split = "test"
    folds: int | None = Field(None, ge=2, le=50)
    parts: tuple[int, ...] | None = Field(None, min_length=1)
    hold_out: Literal["category", "segment"] | None = None
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1)
    metrics: tuple[str, ...] = ("auc", "spearman", "ndcg@10", "macro_f1", "accuracy")
    bootstrap: int = Field(RESAMPLES, ge=0)
    robustness: bool = False
    against: str | None = None
    systems: tuple[System, ...] = Field(min_length=1)
    models: str | None = None
    out: str

    @model_validator(mode="after")
    def _names_differ(self) -> StudyConfig:
        names = [system.name for system in self.systems]
        if len(set(names)) < len(names):
            raise ValueError("two systems have the same name; names are the rows of the table")
        if self.against is not None and self.against not in names:
            raise ValueError(f"against: {self.against!r} is not a system; allowed: {', '.join(names)}")
        if (self.judgments is None) == (self.sample is None):
            raise ValueError("give judgments: FILE, or sample: NAME")
        if self.folds is not None and self.hold_out is not None:
            raise ValueError("folds and hold_out are two ways to hold queries out; give one of them")
        if self.parts is not None:
            if self.folds is None:
                raise ValueError("parts: are numbers of folds; set folds too")
            if not set(self.parts) <= set(range(1, self.folds + 1)):
                raise ValueError(f"parts: {list(self.parts)} are not all numbers from 1 to {self.folds}, the folds")
        return self


def run_study(config: StudyConfig) -> Study:
    """Train and measure what is not measured yet; write ``table.md``, ``study.json``, ``report.html``."""
    from pertinent.training.data import read_judged

    _check(config)
    data = read_judged(
        config.judgments,
        config.sample,
        config.items,
        {},
        config.scale,
        config.positive_grade,
        "auto",
        (0.8, 0.1, 0.1),
        "",
    )
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    folds, whole = _parts(config, data, out)
    judged = whole.judged
    around = _surroundings(config, data)
    views = [] if around is None else make_views(judged, tuple(PERTURBATIONS), around, config.positive_grade, 0)
    rows = []
    for system in config.systems:
        trained = isinstance(system, (TrainSystem, SentenceTransformersSystem))
        runs = [
            _joined([_measured(config, system, seed, part, out, around) for part in parts], parts)
            for parts in ([folds] if trained else [[whole]])
            for seed in (config.seeds if trained else (0,))
        ]
        evaluations = [
            evaluate_scores(
                scores[0], judged, name=system.name, positive_grade=config.positive_grade, bootstrap=config.bootstrap
            )
            for scores, _ in runs
        ]
        losses = {
            view.name: [
                loss_of(view, judged, scores[0], scores[number], config.positive_grade, config.bootstrap, 0)
                for scores, _ in runs
            ]
            for number, view in enumerate(views, start=1)
        }
        first = {change: each[0] for change, each in losses.items()}
        evaluations[0] = replace(evaluations[0], robustness=first)
        rows.append(Row(system.name, evaluations, mean_estimates(evaluations), runs[0][1], losses=losses))
    if config.against is not None:
        base = next(row for row in rows if row.name == config.against)
        for row in rows:
            if row is not base:
                row.difference.update(compare_means(row.evaluations, base.evaluations))
                row.loss_difference.update(
                    {change: compare_losses(each, base.losses[change]) for change, each in row.losses.items()}
                )
    return _write(config, rows, judged, out)


def _parts(config: StudyConfig, data: JudgedData, out: Path) -> tuple[list[Part], Part]:
    """What each model of a trained system learns from and is measured on, and what is measured in all."""
    from pertinent.training.parts import Part, deal, hold_out

    if config.folds is not None:
        dealt = deal(data, config.folds, out)
        parts = dealt if config.parts is None else [dealt[number - 1] for number in sorted(set(config.parts))]
    elif config.hold_out is not None:
        parts = hold_out(data, _industries(config, data), out)
    else:
        judged = data.of(config.split)
        if not judged:
            raise ConfigError(
                f"split: {config.judgments or config.sample} has no rows of split {config.split!r}; name another, "
                "or set folds, which measure every query"
            )
        whole = Part(data, judged, np.arange(len(judged)), _source(config))
        return [whole], whole
    by_place = {int(place): row for part in parts for place, row in zip(part.places, part.judged, strict=True)}
    judged = [by_place[place] for place in sorted(by_place)]
    return parts, Part(data, judged, np.arange(len(judged)), _source(config))


def _industries(config: StudyConfig, data: JudgedData) -> dict[str, str]:
    from pertinent.training.parts import industries_of

    if config.hold_out == "segment":
        return industries_of(data.judgments, {row.item_id: row.segment for row in data.judgments})
    if config.sample is None and config.items is None:
        raise ConfigError("hold_out: category is read from the catalog; give items: FILE, or hold_out: segment")
    return industries_of(data.judgments, {item.item_id: item.category for item in _catalog(config)})


def _learned(system: TrainSystem | SentenceTransformersSystem, part: Part, place: Path) -> Part:
    from pertinent.training.parts import fewer

    return part if system.fraction == 1.0 else fewer(part, system.fraction, place.parent)


def _source(config: StudyConfig) -> dict[str, Any]:
    values = {"sample": config.sample, "judgments": config.judgments, "items": config.items, "scale": config.scale}
    return {name: value for name, value in values.items() if value is not None}


def _joined(
    measured: Sequence[tuple[NDArray[np.float64], dict[str, Any]]], parts: Sequence[Part]
) -> tuple[NDArray[np.float64], dict[str, Any]]:
    """The scores of all parts in the order of the judgments; facts are those of the first part."""
    scores = np.concatenate([found for found, _ in measured], axis=1)
    places = np.concatenate([part.places for part in parts])
    return scores[:, np.argsort(places)], measured[0][1]


def _measured(
    config: StudyConfig, system: System, seed: int, part: Part, out: Path, around: Surroundings | None
) -> tuple[NDArray[np.float64], dict[str, Any]]:
    """Scores of one system, seed and part, from the study's folder where they are there for these settings.

    ``[1 + changes, pairs]``: of the judgments as they are, then with their texts changed in each way.
    """
    digest = _digest(
        system.plain(),
        _versions(system),
        seed,
        config.positive_grade,
        *([list(PERTURBATIONS), _texts_digest(around)] if around is not None else []),
        part.places.tolist(),
        [[j.query, j.title, j.grade, j.split] for j in part.data.judgments],
    )
    place = out / _place(system.name, seed, part)
    file = place.with_suffix(".json")
    if file.is_file():
        found = read_json(file)
        if found.get("digest") == digest:
            return np.array([found["scores"], *found.get("changed", [])], dtype=np.float64), found["facts"]
    logger.info("%s, seed %d%s", system.name, seed, part.name.replace("-", " "))
    scorer, facts = _BUILDERS[system.type](config, system, seed, part, place)
    scores = score_judgments(scorer, part.judged).astype(np.float64)
    content: dict[str, Any] = {"digest": digest, "facts": facts, "scores": scores.tolist()}
    if around is not None:
        views = make_views(part.judged, tuple(PERTURBATIONS), around, config.positive_grade, 0)
        content["changed"] = [each.tolist() for each in score_views(scorer, views, scores).values()]
    write_json(file, content)
    return np.array([scores, *content.get("changed", [])], dtype=np.float64), facts


def _digest(*content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _place(name: str, seed: int, part: Part) -> str:
    return "".join(c if c.isalnum() else "-" for c in name.lower()) + f"-{seed}{part.name}"


def _surroundings(config: StudyConfig, data: JudgedData) -> Surroundings | None:
    """What changes of texts draw from: all judged titles, and the catalog where there is one."""
    if not config.robustness:
        return None
    titles = [judgment.title for judgment in data.judgments]
    return surroundings(titles, _catalog(config))


def _texts_digest(around: Surroundings) -> str:
    return _digest(list(around.titles), list(around.brands))


def _catalog(config: StudyConfig) -> list[Item]:
    from pertinent.data.readers import read_items
    from pertinent.data.samples import read_sample

    if config.sample is not None:
        return read_sample(config.sample)[0]
    return read_items(config.items) if config.items is not None else []


def _versions(system: System) -> list[str]:
    """What the settings only name: this software, the model a system is or starts from, what it learns from."""
    named = system.model or SHIPPED if isinstance(system, ModelSystem) else None
    read = []
    if isinstance(system, TrainSystem):
        named = system.stages[0].get("start", SHIPPED)
        read = [found for stage in system.stages for found in _contents(stage)]
    if named is None:
        return [__version__, *read]
    folder = model_folder(named)
    known = (folder / MANIFEST).is_file()
    return [__version__, open_artifact(folder, kind="model").version if known else str(named), *read]


def _contents(train: dict[str, Any]) -> list[str]:
    """The content of each file and folder that settings of training read beside their start, as a digest."""
    clicks = train.get("clicks")
    settings = {**train, **({f"clicks.{key}": clicks[key] for key in clicks} if isinstance(clicks, dict) else {})}
    found = []
    for name in _READ:
        value = settings.get(name)
        for path in map(Path, value if isinstance(value, (list, tuple)) else [value] if isinstance(value, str) else []):
            if (path / MANIFEST).is_file():
                found.append(f"{name} {open_artifact(path, verify=False).version}")
            elif path.exists():
                files = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
                found += [f"{name} {each.relative_to(path)} {sha256(each)}" for each in files]
    return found


def _check(config: StudyConfig) -> None:
    """Refuse wrong settings and missing starts before hours of training, all at once."""
    from pertinent.folders import locate
    from pertinent.training.run import TrainConfig

    problems = []
    for system in config.systems:
        try:
            start: str | None = None
            if isinstance(system, TrainSystem):
                configs = [
                    TrainConfig.build({"judgments": "", **each}, f"{system.name}: train") for each in system.stages
                ]
                start = configs[0].start
            elif isinstance(system, SentenceTransformersSystem):
                start = SentenceTransformersConfig.build(system.train, f"{system.name}: train").start
            elif isinstance(system, BiEncoderSystem):
                start = system.start
            if start is not None and start not in SHIPPED_MODELS:
                locate(start)
        except PertinentError as error:
            problems.append(str(error) if system.name in str(error) else f"{system.name}: {error}")
    if problems:
        raise ConfigError("\n".join(problems))


def _lexical(config: StudyConfig, system: Any, seed: int, part: Part, place: Path) -> tuple[PairScorer, dict[str, Any]]:
    from pertinent.models.lexical import BM25, TFIDF

    titles = dict.fromkeys(judgment.title for judgment in part.data.judgments)
    return (BM25 if system.type == "bm25" else TFIDF)().fit(titles), {}


def _bi_encoder(
    config: StudyConfig, system: Any, seed: int, part: Part, place: Path
) -> tuple[PairScorer, dict[str, Any]]:
    from pertinent.models.interchange import start_from

    network, pairs = start_from(system.start, system.layers, {"type": "sbert", "head": "cosine"}, system.pairs)
    return _torch_scorer(network, pairs, system.name), _size(network)


def _model(config: StudyConfig, system: Any, seed: int, part: Part, place: Path) -> tuple[PairScorer, dict[str, Any]]:
    from pertinent.engine.scorer import Scorer

    scorer = Scorer.load(system.model)
    return scorer, {"version": scorer.version}


def _trained(config: StudyConfig, system: Any, seed: int, part: Part, place: Path) -> tuple[PairScorer, dict[str, Any]]:
    from pertinent.engine.scorer import Scorer
    from pertinent.training.run import TrainConfig, train

    folder = Path(config.models or config.out) / place.name
    learned = _learned(system, part, folder)
    given = {**learned.source, "positive_grade": config.positive_grade, "resume": True}
    rows = [[j.query, j.title, j.grade, j.split] for j in learned.data.judgments]
    what = [_versions(system), seed, config.positive_grade, rows]
    digest = _digest(system.train, *([list(system.before)] if system.before else []), *what)
    note = folder.with_name(f"{folder.name}.learned.json")
    if (folder / MANIFEST).is_file() and note.is_file():
        artifact = open_artifact(folder, kind="model")
        if read_json(note) == {"digest": digest, "version": artifact.version}:
            logger.info("%s is trained", folder)
            return Scorer.load(artifact.path), {"version": artifact.version}
    before: dict[str, str] = {}
    for number, stage in enumerate(system.before, start=1):
        # Named by all that it follows from, so that other systems find it.
        made = folder.with_name(f"stage-{_digest(system.before[:number], *what)}")
        if not (made / MANIFEST).is_file():
            logger.info("stage %d of %d: %s", number, len(system.stages), made)
            values = {**given, **stage, **before, "seed": seed, "out": str(made)}
            train(TrainConfig.build(values, f"{system.name}: before.{number - 1}"))
        before = {"start": str(made)}
    values = {**given, **system.train, **before, "seed": seed, "out": str(folder)}
    artifact = train(TrainConfig.build(values, f"{system.name}: train"))
    write_json(note, {"digest": digest, "version": artifact.version})
    return Scorer.load(artifact.path), {"version": artifact.version}


def _rival(config: StudyConfig, system: Any, seed: int, part: Part, place: Path) -> tuple[PairScorer, dict[str, Any]]:
    from pertinent.rivals import CrossEncoderScorer, train_cross_encoder

    settings = SentenceTransformersConfig.build({**system.train, "seed": seed}, f"{system.name}: train")
    place.mkdir(parents=True, exist_ok=True)
    data = _learned(system, part, place).data
    model = train_cross_encoder(settings, data.of("train"), data.of("valid"), config.positive_grade, place)
    return CrossEncoderScorer(model, system.name), _size(model)


_BUILDERS: dict[str, Callable[..., tuple[PairScorer, dict[str, Any]]]] = {
    "bm25": _lexical,
    "tfidf": _lexical,
    "bi_encoder": _bi_encoder,
    "model": _model,
    "train": _trained,
    "sentence_transformers": _rival,
}


def _torch_scorer(network: Any, pairs: Any, name: str) -> PairScorer:
    import torch

    from pertinent.engine.scorer import Scorer
    from pertinent.engine.torch_backend import TorchBackend

    return Scorer(TorchBackend(network, torch.get_num_threads()), pairs, name=name)


def _size(network: Any) -> dict[str, Any]:
    return {"parameters": sum(parameter.numel() for parameter in network.parameters())}


def _write(config: StudyConfig, rows: list[Row], judged: Sequence[Judgment], out: Path) -> Study:
    chosen = f"split {config.split}"
    if config.folds is not None:
        chosen = f"each query held out once in {config.folds} folds"
        if config.parts is not None:
            chosen += f", part {', '.join(map(str, sorted(set(config.parts))))}"
    elif config.hold_out is not None:
        chosen = f"each {config.hold_out} held out once"
    facts = {
        "data": f"{config.sample or config.judgments}, {chosen}: {len(judged):,} pairs, "
        f"{len({row.query for row in judged}):,} queries",
        "seeds": ", ".join(map(str, config.seeds)),
        "machine": f"{platform.machine()} {platform.system()}, Python {platform.python_version()}",
        "values": "mean over runs with the 95% interval over resampled queries; ± is the standard deviation over seeds",
    }
    # The page draws one run of each system, the first seed; the table is about all.
    report = write_report(
        out / "report.html",
        {row.name: row.evaluations[0] for row in rows},
        title=config.title,
        facts=facts,
        comparisons={f"{row.name} less {config.against}": row.difference for row in rows if row.difference},
        figures=[first_metric_chart(config.title, config.metrics[0], rows)],
    )
    study = Study(config.title, config.metrics, config.against, rows, facts, report)
    write_text(out / "table.md", str(study) + "\n")
    write_json(out / "study.json", study.plain())
    return study
