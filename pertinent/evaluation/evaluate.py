"""Any scorer on a judged set: totals with intervals, slices, and the values of each query.

Two families of metrics. *Pooled* ones look at all pairs together. *Ranking* ones (``ndcg@k``, ``mrr``,
``recall@k``) are means over the queries that count: those with at least two judged items, one of them
relevant. Rankings are over the judged items of a query only. Intervals are bootstraps by query.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pertinent.config import Config
from pertinent.data.grades import lowest_relevant, relevant
from pertinent.data.readers import read_items, read_judgments, renames_by_file
from pertinent.errors import DataError, ScoringError
from pertinent.evaluation.metrics import mrr, ndcg, recall_at
from pertinent.evaluation.pooled import THRESHOLD, Floats, measure, pool
from pertinent.evaluation.report import check_report_path, write_report
from pertinent.evaluation.resample import Estimate, interval, resampled
from pertinent.evaluation.result import Evaluation, Slice
from pertinent.evaluation.slices import SegmentBy, slicings
from pertinent.records import Item, Judgment, Pair, PairScorer, Split, by_query

if TYPE_CHECKING:
    from pertinent.evaluation.robust_table import Loss

CUTS = (10,)
RESAMPLES = 1000
SCORED_AT_ONCE = 2048


class EvaluateConfig(Config):
    """Settings of ``pertinent evaluate``.

    ``columns`` maps columns of the files to ours, such as ``product_name: title``.
    ``positive_grade`` is the lowest grade that counts as relevant, a number or a label of the grade scale;
    left out, that of the scale that is named or recognized by its words, or 1. A pair is predicted
    relevant when its score is at least ``threshold``. ``robustness`` also scores the judgments with their
    texts changed, in the ways of ``pertinent.evaluation.perturb``; brands are those of ``items``.
    """

    judgments: str
    model: str | None = None
    items: str | None = None
    columns: dict[str, str] = {}
    scale: str | None = None
    positive_grade: float | str | None = None
    threshold: float = THRESHOLD
    k: tuple[int, ...] = Field(default=CUTS, min_length=1)
    split: Split | None = None
    segment_by: tuple[SegmentBy, ...] = ("segment",)
    bootstrap: int = Field(default=RESAMPLES, ge=0)
    seed: int = 0
    robustness: bool = False
    report: str | None = None
    backend: str | None = None
    threads: int | None = Field(default=None, ge=1)
    progress: bool = False


def run_evaluate(config: EvaluateConfig, scorer: PairScorer) -> Evaluation:
    """The evaluation that a config describes; writes its report where one is asked for."""
    if config.report is not None:
        check_report_path(config.report)
    renames = renames_by_file([config.items, config.judgments], config.columns)
    items = read_items(config.items, rename=renames[config.items]) if config.items else None
    judgments = read_judgments(config.judgments, items=items, scale=config.scale, rename=renames[config.judgments])
    # Of the whole file: a part of it need not have all words of its scale.
    grade = lowest_relevant(judgments, config.scale, config.positive_grade)
    if config.split is not None:
        judgments = [judgment for judgment in judgments if judgment.split == config.split]
        if not judgments:
            raise DataError(f"has no rows of split {config.split!r}", path=config.judgments, column="split")
    evaluation = evaluate(
        scorer,
        judgments,
        positive_grade=grade,
        threshold=config.threshold,
        k=config.k,
        bootstrap=config.bootstrap,
        seed=config.seed,
        segment_by=config.segment_by,
        progress=config.progress,
    )
    if config.robustness:
        losses = _losses(scorer, judgments, items or [], evaluation, config.bootstrap, config.seed)
        evaluation = replace(evaluation, robustness=losses)
    if config.report is not None:
        write_report(config.report, {evaluation.scorer: evaluation})
    return evaluation


def evaluate(
    scorer: PairScorer,
    judgments: Sequence[Judgment],
    *,
    positive_grade: float,
    threshold: float = THRESHOLD,
    k: Sequence[int] = CUTS,
    bootstrap: int = RESAMPLES,
    seed: int = 0,
    segment_by: Sequence[SegmentBy] = ("segment",),
    progress: bool = False,
) -> Evaluation:
    """What a scorer is worth on judgments; each pair is scored once. Raises ScoringError for bad scores."""
    scores = score_judgments(scorer, judgments, progress)
    return evaluate_scores(
        scores,
        judgments,
        name=scorer.name,
        positive_grade=positive_grade,
        threshold=threshold,
        k=k,
        bootstrap=bootstrap,
        seed=seed,
        segment_by=segment_by,
    )


def evaluate_scores(
    scores: NDArray[Any],
    judgments: Sequence[Judgment],
    *,
    name: str,
    positive_grade: float,
    threshold: float = THRESHOLD,
    k: Sequence[int] = CUTS,
    bootstrap: int = RESAMPLES,
    seed: int = 0,
    segment_by: Sequence[SegmentBy] = ("segment",),
) -> Evaluation:
    """The same for scores that are there already, ``[judgments]``, one for each in its order.

    >>> rows = [Judgment("tv", "1", 1.0), Judgment("tv", "2", 0.0), Judgment("lamp", "3", 1.0)]
    >>> result = evaluate_scores(np.array([0.9, 0.1, 0.8]), rows, name="mine", positive_grade=1.0)
    >>> result.metrics["auc"].value, result.ranked_queries
    (1.0, 1)
    """
    if not judgments:
        raise DataError("no judgments to evaluate on", fix="give a file with judged pairs")
    if any(cut < 1 for cut in k):
        raise DataError(f"k must be from 1, got {min(k)}")
    grades = np.array([judgment.grade for judgment in judgments], dtype=np.float64)
    if not np.isfinite(grades).all():
        raise DataError("a grade is not a number", fix="give grades from 0 to 1")
    values = _checked(np.asarray(scores, dtype=np.float64), judgments, name)
    groups = list(by_query(judgments))
    query_rows = np.empty(len(judgments), dtype=np.int64)
    for number, (_, rows) in enumerate(groups):
        query_rows[rows] = number

    def estimate(rows: NDArray[np.int64]) -> tuple[dict[str, Estimate], dict[str, Floats]]:
        of = np.unique(query_rows[rows], return_inverse=True)[1]
        return _estimate(values[rows], grades[rows], of, positive_grade, threshold, k, bootstrap, seed)

    metrics, per_query = estimate(np.arange(len(judgments)))
    slices: dict[str, dict[str, Slice]] = {}
    for by, parts in slicings(judgments, segment_by).items():
        slices[by] = {}
        for part, chosen in parts.items():
            found, each = estimate(chosen)
            slices[by][part] = Slice(len(chosen), len(each["mrr"]), found)
    queries = tuple(query for query, _ in groups)
    return Evaluation(
        scorer=name,
        positive_grade=positive_grade,
        threshold=threshold,
        queries=queries,
        query_rows=query_rows,
        grades=grades,
        scores=values,
        judged=_digest(judgments),
        metrics=metrics,
        per_query=per_query,
        bootstrap=bootstrap if len(queries) > 1 else 0,
        seed=seed,
        slices=slices,
    )


def score_judgments(scorer: PairScorer, judgments: Sequence[Judgment], progress: bool = False) -> NDArray[np.float32]:
    """The scorer's score of each judgment, float32 ``[judgments]``.

    A scorer with ``score_pairs`` is given pairs of many queries together, others one query at a time.
    """
    scores = np.full(len(judgments), np.nan, dtype=np.float32)
    together: Callable[[Sequence[Pair]], Any] | None = getattr(scorer, "score_pairs", None)
    if together is not None:
        everything = np.arange(len(judgments))
        blocks = [everything[start : start + SCORED_AT_ONCE] for start in range(0, len(judgments), SCORED_AT_ONCE)]
    else:
        blocks = [np.array(rows) for _, rows in by_query(judgments)]
    for rows in _shown(blocks, len(judgments), f"scoring with {scorer.name}") if progress else blocks:
        titles = [judgments[row].title for row in rows]
        if together is not None:
            given = together([Pair(judgments[row].query, title) for row, title in zip(rows, titles, strict=True)])
        else:
            given = scorer.score(judgments[rows[0]].query, titles)
        if np.shape(given) != (len(rows),):
            raise ScoringError(
                f"{scorer.name} gave scores of shape {np.shape(given)} for {len(rows)} titles; expected one each"
            )
        scores[rows] = given
    return scores


def _losses(
    scorer: PairScorer,
    judgments: Sequence[Judgment],
    items: Sequence[Item],
    evaluation: Evaluation,
    bootstrap: int,
    seed: int,
) -> dict[str, Loss]:
    from pertinent.evaluation.robustness import robustness, surroundings

    around = surroundings([judgment.title for judgment in judgments], items)
    return robustness(
        scorer,
        judgments,
        evaluation.scores,
        around=around,
        positive_grade=evaluation.positive_grade,
        resamples=bootstrap,
        seed=seed,
    )


def _estimate(
    scores: Floats,
    grades: Floats,
    query_rows: NDArray[np.int64],
    positive_grade: float,
    threshold: float,
    k: Sequence[int],
    bootstrap: int,
    seed: int,
) -> tuple[dict[str, Estimate], dict[str, Floats]]:
    """Every metric with its interval, and the ranking metrics of each query ``[queries]``."""
    hits = relevant(grades, positive_grade)
    per_query = _rank_queries(scores, grades, hits, query_rows, k)
    pooled = pool(scores, grades, hits, threshold)
    values = {name: float(value[0]) for name, value in measure(pooled, np.ones((1, len(scores)))).items()}
    for name, each in per_query.items():
        known = each[~np.isnan(each)]
        values[name] = float(known.mean()) if len(known) else np.nan
    # One query drawn again and again is the same query: no interval.
    drawn = bootstrap if len(per_query["mrr"]) > 1 else 0
    spread = resampled(pooled, query_rows, per_query, drawn, seed) if drawn else {}
    nothing = np.zeros(0)
    return {name: Estimate(value, *interval(spread.get(name, nothing))) for name, value in values.items()}, per_query


def _rank_queries(
    scores: Floats, grades: Floats, relevant: NDArray[np.bool_], query_rows: NDArray[np.int64], k: Sequence[int]
) -> dict[str, Floats]:
    order = np.argsort(query_rows, kind="stable")
    ends = np.cumsum(np.bincount(query_rows))
    names = [*(f"ndcg@{cut}" for cut in k), "mrr", *(f"recall@{cut}" for cut in k)]
    values = {name: np.full(len(ends), np.nan) for name in names}
    for number, rows in enumerate(np.split(order, ends[:-1])):
        if len(rows) < 2 or not relevant[rows].any():
            continue
        values["mrr"][number] = mrr(scores[rows], relevant[rows])
        for cut in k:
            values[f"ndcg@{cut}"][number] = ndcg(scores[rows], grades[rows], cut)
            values[f"recall@{cut}"][number] = recall_at(scores[rows], relevant[rows], cut)
    return values


def _checked(scores: Floats, judgments: Sequence[Judgment], name: str) -> Floats:
    if scores.shape != (len(judgments),):
        raise ScoringError(f"{name} gave scores of shape {scores.shape} for {len(judgments)} judgments")
    bad = np.flatnonzero(~np.isfinite(scores))
    if len(bad):
        first = judgments[bad[0]]
        raise ScoringError(
            f"{name} gave {len(bad)} scores that are not finite, first {scores[bad[0]]} "
            f"for query {first.query[:60]!r}, item {first.item_id!r}; check the model with: pertinent doctor"
        )
    return scores


def _digest(judgments: Sequence[Judgment]) -> str:
    digest = hashlib.sha256()
    for judgment in judgments:
        row = "\x1f".join((judgment.query, judgment.item_id, judgment.title, repr(float(judgment.grade))))
        digest.update(row.encode("utf-8", "surrogatepass") + b"\x1e")
    return digest.hexdigest()[:12]


def _shown(blocks: Sequence[NDArray[np.int64]], total: int, text: str) -> Any:
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    if not console.is_terminal:  # where a bar that is gone leaves an empty line
        yield from blocks
        return
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task(text, total=total)
        for rows in blocks:
            yield rows
            bar.advance(task, len(rows))
