"""Laws of the changes of texts and of what is lost under them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pertinent.data.samples import read_sample
from pertinent.errors import ConfigError
from pertinent.evaluation.evaluate import EvaluateConfig, run_evaluate, score_judgments
from pertinent.evaluation.metrics import auc
from pertinent.evaluation.perturb import PERTURBATIONS, Surroundings
from pertinent.evaluation.report import write_report
from pertinent.evaluation.robust_table import loss_chart, loss_rows
from pertinent.evaluation.robustness import (
    compare_losses,
    loss_of,
    make_views,
    mean_loss,
    robustness,
    score_views,
    surroundings,
)
from pertinent.models.lexical import BM25
from pertinent.records import Judgment, Pair
from pertinent.text import words

NAMES = tuple(PERTURBATIONS)
AWKWARD = [
    ("", ""),
    ("mug", ""),
    ("", "mug"),
    ("日本語", "無線 イヤホン"),
    ("a", "a"),
    ("sony tv 40 inch", "Sony TV 40 inch"),
]


@pytest.fixture(scope="module")
def around() -> Surroundings:
    items, judgments = read_sample("icecat")
    return surroundings([judgment.title for judgment in judgments[:300]], items[:2000])


@pytest.fixture(scope="module")
def judged() -> list[Judgment]:
    return [row for row in read_sample("icecat")[1] if row.split == "test"]


@pytest.mark.parametrize("name", NAMES)
def test_a_change_depends_on_the_texts_and_the_seed_alone(name: str, around: Surroundings) -> None:
    change = PERTURBATIONS[name].change
    pair = Pair(
        "samsung bluetooth headphones 40 inch",
        "Samsung Headphones 40 inch, quite something ourselves elsewhere whatsoever moreover",
    )
    first = change(pair, around, "0")
    assert first is not None, "the example should be one to which it applies"
    assert first == change(pair, around, "0") != pair
    others = {change(pair, around, str(seed)) for seed in range(20)}
    assert len(others) > 1 or name in ("unit", "compound")
    for query, title in AWKWARD:
        changed = change(Pair(query, title), around, "0")
        assert changed is None or changed != Pair(query, title)


def test_stacked_words_are_neither_in_the_query_nor_in_the_title(around: Surroundings) -> None:
    pair = Pair("black cable", "Philips power adapter")
    changed = PERTURBATIONS["stacking"].change(pair, around, "0")
    assert changed is not None
    added = words(changed.title)[3:]
    assert len(set(added)) == 5
    assert not {*words(pair.query), *words(pair.title)} & set(added)


def test_deletion_leaves_terms_brands_and_words_of_the_query(around: Surroundings) -> None:
    title = "Samsung nice leather case ourselves elsewhere whatsoever black"
    for seed in range(10):
        changed = PERTURBATIONS["deletion"].change(Pair("nice whatsoever", title), around, str(seed))
        left = words(changed.title) if changed else words(title)
        assert {"samsung", "leather", "nice", "whatsoever"} <= set(left)
        assert set(left) <= set(words(title))
    assert PERTURBATIONS["deletion"].change(Pair("a", title), Surroundings([]), "0") is None


def test_only_what_the_query_asks_for_flips(around: Surroundings) -> None:
    unit, brand = PERTURBATIONS["unit"].change, PERTURBATIONS["brand"].change
    assert unit(Pair("tv 40in", "tv 40 inches 3 pack"), around, "") == Pair("tv 40in", "tv 80 inches 3 pack")
    assert unit(Pair("tv 32 inch", "tv 40 inch"), around, "") is None
    assert unit(Pair("3 in 1 seat", "seat 3 in 1"), around, "") is None
    assert brand(Pair("hp toner", "Canon toner for HP"), around, "") is None
    swapped = brand(Pair("canon toner", "Canon toner"), around, "")
    assert swapped is not None
    assert "canon" not in swapped.title


def test_views_change_places_and_grades_as_they_say(judged: list[Judgment], around: Surroundings) -> None:
    rows = [*judged[:40], Judgment("tv 40 inch", "x", 1.0, "TV 40 inch"), Judgment("tv 40 inch", "y", 0.0, "40 inch")]
    views = {view.name: view for view in make_views(rows, NAMES, around, 1.0, 0)}
    assert views["unit"].places.tolist() == [40]  # the irrelevant pair stays as it is
    assert views["unit"].judgments[0].grade == 0.0
    for name in ("stacking", "typo"):
        for place, row in zip(views[name].places, views[name].judgments, strict=True):
            assert (row.grade, row.item_id) == (rows[place].grade, rows[place].item_id)
            assert (row.query, row.title) != (rows[place].query, rows[place].title)
    # The order of the pairs does not matter.
    turned = {view.name: view for view in make_views(rows[::-1], NAMES, around, 1.0, 0)}
    assert turned["stacking"].judgments == views["stacking"].judgments[::-1]
    assert [len(view.places) for view in make_views([], NAMES, around, 1.0, 0)] == [0] * len(NAMES)
    with pytest.raises(ConfigError, match=r"no change 'stackings'; allowed: stacking"):
        make_views(rows, ["stackings"], around, 1.0, 0)


def test_loss_is_auc_before_less_after_over_queries_with_a_change() -> None:
    rows = [Judgment(q, str(n), g, f"{q} {n}") for q in ("a", "b", "c") for n, g in ((1, 1.0), (2, 0.0))]
    view = make_views(rows, ["repetition"], Surroundings([]), 1.0, 0)[0]
    assert len(view.places) == 0  # words of one letter are not repeated
    flipped = replace(view, name="unit", places=np.array([0]), judgments=(replace(rows[0], grade=0.0),))
    before = np.array([0.9, 0.1, 0.8, 0.2, 0.7, 0.3])
    blind = loss_of(flipped, rows, before, before, 1.0, 200, 0)
    assert (blind.pairs, blind.queries, blind.before) == (2, 1, 1.0)
    assert np.isnan(blind.after)  # one class is left
    keep = replace(view, name="typo", places=np.array([0, 1, 2, 3]), judgments=tuple(rows[:4]))
    after = np.array([0.1, 0.9, 0.8, 0.2, 0.7, 0.3])
    loss = loss_of(keep, rows, before, after, 1.0, 200, 0)
    relevant = [True, False, True, False]
    assert loss.loss.value == pytest.approx(auc(before[:4], relevant) - auc(after[:4], relevant)) == pytest.approx(0.75)
    assert loss.loss.low <= loss.loss.value <= loss.loss.high
    assert loss.shift == pytest.approx(0.4)
    assert loss.fell == 0.25
    none = loss_of(view, rows, before, before, 1.0, 200, 0)
    assert none.queries == 0
    assert np.isnan(none.loss.value)


def test_a_scorer_that_reads_no_change_loses_nothing_where_labels_stay(
    judged: list[Judgment], around: Surroundings
) -> None:
    class ById:
        name = "constant"

        def score(self, query: str, titles: list[str]) -> np.ndarray:
            return np.full(len(titles), 0.5, dtype=np.float32)

    scores = score_judgments(ById(), judged).astype(float)
    losses = robustness(
        ById(), judged, scores, around=around, positive_grade=1.0, names=["stacking", "typo"], resamples=50, seed=0
    )
    assert [loss.loss.value for loss in losses.values()] == [0.0, 0.0]
    assert all(loss.shift == 0 for loss in losses.values())


def test_differences_of_losses_are_paired(judged: list[Judgment], around: Surroundings) -> None:
    bm25 = BM25().fit([judgment.title for judgment in judged])
    scores = score_judgments(bm25, judged).astype(float)
    view = make_views(judged, ["typo"], around, 1.0, 0)
    after = score_views(bm25, view, scores)["typo"]
    loss = loss_of(view[0], judged, scores, after, 1.0, 100, 0)
    assert loss.loss.value > 0.02  # a word that is not there cannot match
    same = compare_losses([loss], [loss])
    assert (same.value, same.low, same.high, same.p_value) == (0.0, 0.0, 0.0, 1.0)
    assert mean_loss([loss, loss]) == loss.loss
    assert loss.plain()["effect"] == "keep"


def test_evaluate_has_the_losses_in_its_table_page_and_json(tmp_path) -> None:
    path = tmp_path / "judgments.csv"
    path.write_text(
        "query,title,grade\n"
        + "".join(f"{w} bluetooth,{w} thing {n},{n % 2}\n" for w in ("cable", "phone", "mouse") for n in range(4))
    )
    config = EvaluateConfig(judgments=str(path), robustness=True, bootstrap=20, report=str(tmp_path / "report.html"))
    result = run_evaluate(config, BM25().fit(["cable", "phone"]))
    assert set(result.robustness) == set(NAMES)
    assert result.plain()["robustness"]["compound"]["changed"] == 12
    assert [row[0] for row in loss_rows(result.robustness)] == list(NAMES)
    assert "AUC lost" in (tmp_path / "report.html").read_text()
    assert not run_evaluate(config.model_copy(update={"robustness": False}), BM25().fit(["cable"])).robustness
    write_report(tmp_path / "two.html", {"a": result, "b": result})
    assert "typo: b" in (tmp_path / "two.html").read_text()
    assert "<svg" in loss_chart({})
