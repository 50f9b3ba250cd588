from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pertinent.artifact import Artifact, open_artifact, write_artifact
from pertinent.engine import scorer as scorer_module
from pertinent.engine.export import write_golden
from pertinent.engine.golden import golden_difference, read_golden
from pertinent.engine.scorer import Scorer
from pertinent.errors import ArtifactError, DataError, PertinentError, ScoringError
from pertinent.evaluation.calibration import fit_calibration
from pertinent.folders import shipped_folder
from pertinent.lexicon.pairs import PairConfig, PairTokenizer
from pertinent.models.store import save_network
from pertinent.probability import probability_curve
from pertinent.records import Item, Pair, PairScorer, TokenBatch

PLAIN = {"type": "platt", "slope": 1, "intercept": 0}
TITLES = ["wireless earbuds", "usb cable", "tea pot green", "coffee mug for men"]


@pytest.fixture(scope="module")
def scorer(tiny_artifact: Artifact) -> Scorer:
    return Scorer.load(tiny_artifact.path, threads=2)


class Broken:
    """A backend whose first logits are not finite."""

    name = "broken"
    workers = 1

    def forward(self, batch: TokenBatch) -> Any:
        logits = np.zeros(len(batch), dtype=np.float32)
        logits[:2] = np.nan, np.inf
        return logits


def rewrite(artifact: Artifact, folder: Path, files: dict[str, Any]) -> Path:
    """A copy of a model folder with other JSON files in it."""
    with write_artifact(folder, "model", {}) as aside:
        for name in artifact.manifest["files"]:
            (aside / name).write_bytes(artifact.file(name).read_bytes())
        for name, value in files.items():
            (aside / name).write_text(json.dumps(value))
    return folder


def test_a_scorer_is_a_pair_scorer_with_name_and_version(scorer: Scorer, tiny_artifact: Artifact) -> None:
    assert isinstance(scorer, PairScorer)
    assert (scorer.name, scorer.version) == (tiny_artifact.path.name, tiny_artifact.version)


def test_none_and_blank_titles_are_scored_as_blank_text(scorer: Scorer) -> None:
    scores = scorer.score("tea", [None, "", "  \t", "\u200b"])
    assert len(set(scores.tolist())) == 1


@pytest.mark.parametrize(
    ("query", "titles", "reason"),
    [
        ("tea", "green tea", "got one str"),
        ("tea", {"title": "x"}, "got one dict"),
        ("tea", ["a", 7], r"titles\[1\] is int 7"),
        (7, ["a"], "query is int 7"),
    ],
)
def test_what_is_not_text_is_refused(scorer: Scorer, query: Any, titles: Any, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        scorer.score(query, titles)


def test_a_missing_query_is_blank(scorer: Scorer) -> None:
    assert scorer.score(None, ["tea"]) == scorer.score("", ["tea"])  # type: ignore[arg-type]


def test_long_lists_go_in_chunks_with_equal_scores(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = scorer.logits("tea", TITLES * 5), scorer.pair_logits([("tea", t) for t in TITLES * 5])
    monkeypatch.setattr(scorer_module, "CHUNK", 3)
    np.testing.assert_allclose(scorer.logits("tea", TITLES * 5), whole[0], atol=1e-5)
    np.testing.assert_allclose(scorer.pair_logits([("tea", t) for t in TITLES * 5]), whole[1], atol=1e-5)


def test_threads_get_the_scores_that_one_caller_gets(scorer: Scorer) -> None:
    titles = [f"{title} {number}" for title in TITLES for number in range(100)]
    wanted = {query: scorer.score(query, titles) for query in ("tea", "usb", "mug", "case")}
    failures: list[str] = []

    def work(query: str) -> None:
        for _ in range(5):
            if not np.allclose(scorer.score(query, titles), wanted[query], atol=1e-6):
                failures.append(query)

    threads = [threading.Thread(target=work, args=(query,)) for query in wanted for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    scorer.close()
    np.testing.assert_allclose(scorer.score("tea", titles), wanted["tea"], atol=1e-6)  # a closed one starts again
    scorer.close()


def test_thread_counts_do_not_change_scores(tiny_artifact: Artifact) -> None:
    titles = TITLES * 50
    one, three = (Scorer.load(tiny_artifact.path, threads=n).score("tea", titles) for n in (1, 3))
    np.testing.assert_allclose(one, three, atol=1e-6)


def test_rank_orders_all_kinds_of_items(scorer: Scorer) -> None:
    scores = scorer.score("tea", TITLES)
    order = np.argsort(-scores, kind="stable")
    kinds: list[list[Any]] = [
        TITLES,
        [{"title": t, "item_id": f"id{i}"} for i, t in enumerate(TITLES)],
        [Item(f"id{i}", t) for i, t in enumerate(TITLES)],
        [{"title": t} for t in TITLES],
    ]
    for items in kinds:
        ranked = scorer.rank("tea", items, top=None)
        assert [r.item.title for r in ranked] == [TITLES[i] for i in order]
        np.testing.assert_allclose([r.score for r in ranked], scores[order], atol=1e-6)
        assert {r.scorer for r in ranked} == {scorer.name}
    assert [r.item.item_id for r in scorer.rank("tea", kinds[1], top=2)] == [f"id{i}" for i in order[:2]]
    assert scorer.rank("tea", TITLES, top=0) == []


def test_rank_says_what_was_cut(scorer: Scorer) -> None:
    ranked = scorer.rank("tea", ["tea " * 100, "tea"], top=None)
    assert {r.item.title: r.truncated for r in ranked} == {"tea " * 100: True, "tea": False}


def test_rank_refuses_what_is_no_item(scorer: Scorer) -> None:
    with pytest.raises(DataError, match=r"items\[1\] has no 'title', it has name"):
        scorer.rank("tea", [{"title": "a"}, {"name": "b"}])
    with pytest.raises(DataError, match="top is -1"):
        scorer.rank("tea", TITLES, top=-1)
    with pytest.raises(DataError, match=r"top is 2\.5; give a whole number"):
        scorer.rank("tea", TITLES, top=2.5)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="put it in a list"):
        scorer.rank("tea", "green tea")
    with pytest.raises(DataError, match="got None; give a list"):
        scorer.score("tea", None)  # type: ignore[arg-type]
    assert scorer.rank("tea", [None], top=1)[0].item.title == ""  # type: ignore[list-item]


def test_scores_that_are_not_finite_are_counted_and_refused(tiny_pairs: PairTokenizer) -> None:
    with pytest.raises(ScoringError, match="2 of 3 scores of broken are not finite"):
        Scorer(Broken(), tiny_pairs).score("tea", TITLES[:3])


@pytest.mark.parametrize("kind", ["platt", "isotonic"])
def test_stored_calibrations_give_what_the_fitted_ones_give(kind: str) -> None:
    random = np.random.default_rng(0)
    logits = random.normal(size=300).astype(np.float32)
    fitted = fit_calibration(kind, logits, (random.random(300) < 1 / (1 + np.exp(-2 * logits))).astype(float))
    curve = probability_curve(json.loads(json.dumps(fitted.plain())))
    points = np.linspace(-9, 9, 101, dtype=np.float32)
    np.testing.assert_allclose(curve(points), fitted(points), atol=1e-6)
    assert curve(points).dtype == np.float32
    assert (np.diff(curve(points).astype(np.float64)) >= 0).all()


def test_the_calibration_of_a_model_is_used(tiny_artifact: Artifact, tmp_path: Path) -> None:
    plain = {"type": "platt", "slope": 0.5, "intercept": -1.0}
    scorer = Scorer.load(rewrite(tiny_artifact, tmp_path / "m", {"calibration.json": plain}))
    logits = scorer.logits("tea", TITLES)
    np.testing.assert_allclose(scorer.score("tea", TITLES), 1 / (1 + np.exp(1 - 0.5 * logits)), atol=1e-6)


@pytest.mark.parametrize(
    "plain",
    [
        {"type": "beta"},
        {},
        [],
        {"type": "platt", "slope": "x", "intercept": 0},
        {"type": "platt", "slope": float("nan"), "intercept": 0},
        {"type": "isotonic", "logits": [], "probabilities": [], "tilt": 0, "platt": PLAIN},
    ],
)
def test_calibrations_that_are_none_are_refused(plain: Any) -> None:
    with pytest.raises(ArtifactError, match=r"calibration\.json"):
        probability_curve(plain)


def test_golden_scores_are_checked_at_load(
    tiny_artifact: Artifact, tiny_network: Any, tiny_pairs: PairTokenizer, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    pairs = [Pair("tea", title) for title in TITLES]
    with write_artifact(folder, "model", {}) as aside:
        for name in tiny_artifact.manifest["files"]:
            (aside / name).write_bytes(tiny_artifact.file(name).read_bytes())
        write_golden(aside, pairs, tiny_network, tiny_pairs)
    Scorer.load(folder, "onnx")
    Scorer.load(folder, "torch")
    golden = open_artifact(folder).json("golden.json")
    golden["logits"]["float32"][1] += 0.1
    wrong = rewrite(open_artifact(folder), tmp_path / "wrong", {"golden.json": golden})
    with pytest.raises(ArtifactError, match="golden scores differ by"):
        Scorer.load(wrong)
    Scorer.load(wrong, check_golden=False)


@pytest.mark.parametrize(
    "content",
    [
        {},
        [],
        {"pairs": [["a"]], "logits": {"float32": [1]}},
        {"pairs": [["a", "b"]], "logits": {"float32": []}},
        {"pairs": [["a", "b"]], "logits": {"float32": ["x"]}},
    ],
)
def test_damaged_golden_files_are_refused(tmp_path: Path, content: Any) -> None:
    (tmp_path / "golden.json").write_text(json.dumps(content))
    with pytest.raises(ArtifactError, match=r"golden\.json"):
        read_golden(tmp_path / "golden.json", "onnx")


def test_golden_difference_of_what_is_not_finite_is_one() -> None:
    assert golden_difference(np.array([np.nan], dtype=np.float32), np.array([0.0])) == 1.0
    assert golden_difference(np.zeros(0, dtype=np.float32), np.zeros(0)) == 0.0


def test_layouts_longer_than_the_model_are_refused(tiny_network: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    pairs = PairTokenizer(tiny_tokenizer, PairConfig(query_length=30, item_length=60))
    with write_artifact(tmp_path / "m", "model", {}) as aside:
        save_network(aside, tiny_network, pairs)
    with pytest.raises(ArtifactError, match="90 tokens but the model has 64 positions"):
        Scorer.load(tmp_path / "m")


def test_a_tokenizer_of_another_model_is_refused(network_maker: Any, tiny_pairs: PairTokenizer, tmp_path: Path) -> None:
    with write_artifact(tmp_path / "m", "model", {}) as aside:
        save_network(aside, network_maker("ei_src", 50), tiny_pairs)
    with pytest.raises(ArtifactError, match="come from different models"):
        Scorer.load(tmp_path / "m")


def test_no_path_means_the_shipped_model(tiny_artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    assert shipped_folder().name == "shipped"
    monkeypatch.setattr("pertinent.folders.shipped_folder", lambda: tiny_artifact.path)
    assert Scorer.load().version == tiny_artifact.version


def test_errors_are_our_own(tmp_path: Path) -> None:
    with pytest.raises(PertinentError, match="no such folder"):
        Scorer.load(tmp_path / "nowhere")


def test_batches_put_back_together_give_the_scores_of_score(scorer: Scorer) -> None:
    queries = scorer.pairs.encode_queries(["usb cable"])
    items = scorer.pairs.encode_items(TITLES)
    rows, first = np.arange(len(TITLES)), np.zeros(len(TITLES), dtype=np.int64)
    logits = np.zeros(len(TITLES), dtype=np.float32)
    for batch in scorer.batches(queries.lengths[first] + 2, items.lengths[rows] + 1):
        logits[batch] = scorer.forward(queries, first[batch], items, rows[batch])
    assert np.allclose(scorer.probabilities(logits), scorer.score("usb cable", TITLES), atol=1e-6)
