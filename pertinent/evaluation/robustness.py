"""How much of its AUC a scorer loses when texts change in ways that shoppers and sellers change them.

Changes that keep the label should leave scores alone. Changes that flip it (another unit, another
brand) make a relevant pair irrelevant: a scorer that does not look loses AUC there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pertinent.data.grades import relevant
from pertinent.errors import ConfigError
from pertinent.evaluation.compare import Difference, tail_share
from pertinent.evaluation.evaluate import score_judgments
from pertinent.evaluation.perturb import PERTURBATIONS, Surroundings
from pertinent.evaluation.pooled import BLOCK, Floats, measure, pool
from pertinent.evaluation.resample import Estimate, draws, interval
from pertinent.evaluation.robust_table import Loss
from pertinent.records import Item, Judgment, Pair, PairScorer, by_query


@dataclass(frozen=True, slots=True)
class View:
    """A judged set after one change: the judgments that differ, and their places in the set."""

    name: str
    places: NDArray[np.int64]  # [changed]
    judgments: tuple[Judgment, ...]  # [changed]


def surroundings(titles: Sequence[str], items: Sequence[Item]) -> Surroundings:
    """What changes draw from: all these titles, the brands of the items, and the tagger that comes with pertinent."""
    from pertinent.lexicon.tagger import Tagger

    brands = [item.brand for item in items if item.brand]
    return Surroundings([*titles, *(item.title for item in items)], brands, Tagger.shipped())


def make_views(
    judgments: Sequence[Judgment],
    names: Sequence[str],
    around: Surroundings,
    positive_grade: float,
    seed: int,
) -> list[View]:
    """The judged set after each change; label-flipping ones touch relevant pairs only, which get grade 0.

    Raises ConfigError for an unknown change.
    """
    unknown = [name for name in names if name not in PERTURBATIONS]
    if unknown:
        raise ConfigError(f"robustness: there is no change {unknown[0]!r}; allowed: {', '.join(PERTURBATIONS)}")
    views = []
    for name in names:
        change, effect, _ = PERTURBATIONS[name]
        places, changed = [], []
        for place, judgment in enumerate(judgments):
            if effect == "flip" and judgment.grade < positive_grade:
                continue
            new = change(Pair(judgment.query, judgment.title), around, f"{seed}{name}")
            if new is not None:
                places.append(place)
                grade = judgment.grade if effect == "keep" else 0.0
                changed.append(replace(judgment, query=new.query, title=new.title, grade=grade))
        views.append(View(name, np.array(places, dtype=np.int64), tuple(changed)))
    return views


def score_views(scorer: PairScorer, views: Sequence[View], scores: Floats) -> dict[str, Floats]:
    """Scores of the whole set after each change; ``scores [judgments]`` are those before."""
    together = score_judgments(scorer, [row for view in views for row in view.judgments]).astype(np.float64)
    after, start = {}, 0
    for view in views:
        after[view.name] = scores.copy()
        after[view.name][view.places] = together[start : start + len(view.places)]
        start += len(view.places)
    return after


def loss_of(
    view: View,
    judgments: Sequence[Judgment],
    before: Floats,
    after: Floats,
    positive_grade: float,
    resamples: int,
    seed: int,
) -> Loss:
    """The loss of one scorer under one change, with its paired interval over resampled queries.

    ``before`` and ``after`` are scores ``[judgments]``. Queries without a changed pair are left out,
    which makes the loss larger and the same whatever else was judged.
    """
    groups = [rows for _, rows in by_query(judgments) if np.isin(rows, view.places).any()]
    rows = np.array([row for group in groups for row in group], dtype=np.int64)
    of = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    effect = PERTURBATIONS[view.name].effect
    grades = np.array([judgment.grade for judgment in judgments], dtype=np.float64)
    new = grades.copy()
    new[view.places] = [judgment.grade for judgment in view.judgments]
    sides = [
        pool(scores[rows], g[rows], relevant(g[rows], positive_grade), 0.5)
        for scores, g in ((before, grades), (after, new))
    ]
    whole = [float(measure(side, np.ones((1, len(rows))), ("auc",))["auc"][0]) for side in sides]
    drawn = resamples if len(groups) > 1 else 0
    parts = [
        np.stack([measure(side, counts[:, of], ("auc",))["auc"] for side in sides])
        for counts in draws(len(groups), drawn, seed, max(1, BLOCK // max(1, len(rows))))
    ]
    spread = np.concatenate([part[0] - part[1] for part in parts]) if parts else np.zeros(0)
    moved = after[view.places] - before[view.places]
    return Loss(
        name=view.name,
        effect=effect,
        changed=len(view.places),
        pairs=len(rows),
        queries=len(groups),
        before=whole[0],
        after=whole[1],
        loss=Estimate(whole[0] - whole[1], *interval(spread)),
        shift=float(np.abs(moved).mean()) if len(moved) else np.nan,
        fell=float((moved < 0).mean()) if len(moved) else np.nan,
        draws=spread,
    )


def robustness(
    scorer: PairScorer,
    judgments: Sequence[Judgment],
    scores: Floats,
    *,
    around: Surroundings,
    positive_grade: float,
    names: Sequence[str] = tuple(PERTURBATIONS),
    resamples: int,
    seed: int,
) -> dict[str, Loss]:
    """The loss under each change, by its name; ``scores [judgments]`` are the scorer's own without any."""
    views = make_views(judgments, names, around, positive_grade, seed)
    after = score_views(scorer, views, scores)
    return {
        view.name: loss_of(view, judgments, scores, after[view.name], positive_grade, resamples, seed) for view in views
    }


def mean_loss(runs: Sequence[Loss]) -> Estimate:
    """The mean loss over runs (seeds) of one system, with its interval over resampled queries."""
    value = float(np.mean([run.loss.value for run in runs]))
    return Estimate(value, *interval(np.mean([run.draws for run in runs], axis=0)))


def compare_losses(a: Sequence[Loss], b: Sequence[Loss]) -> Difference:
    """How much more the runs of ``a`` lose than those of ``b`` under the same change, paired by query."""
    value = float(np.mean([run.loss.value for run in a]) - np.mean([run.loss.value for run in b]))
    spread = np.mean([run.draws for run in a], axis=0) - np.mean([run.draws for run in b], axis=0)
    return Difference(value, *interval(spread), tail_share(spread))
