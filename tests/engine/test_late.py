"""Late join in the engine: states of titles computed ahead, kept in an index, and scores from them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pertinent.artifact import Artifact, open_artifact
from pertinent.data.samples import read_sample
from pertinent.engine.cache import Level, MemoryScores, ScoreCaches, score_stamp
from pertinent.engine.hot_pairs import HotPairs
from pertinent.engine.index import ItemIndex
from pertinent.engine.late import item_states, join_logits, late_backend
from pertinent.engine.native_backend import native_module
from pertinent.engine.scorer import Scorer
from pertinent.errors import ArtifactError, ConfigError
from pertinent.folders import model_folder
from pertinent.lexicon.pairs import PairConfig, PairTokenizer
from pertinent.models.joining import state_width
from pertinent.models.store import model_settings
from pertinent.records import Item

TITLES = [
    "Wireless Bluetooth Earbuds, noise cancelling",
    "usb cable 2 m",
    "",
    "größe ñ",
    "日本語 無線 イヤホン",
    "coffee mug " * 40,
    "coffee mug",
    "coffee mug",
]
QUERIES = ["wireless earbuds", "", "日本語", "mug " * 30]
SETTINGS = [{"join_layer": 1}, {"layers": 3, "join_layer": 1, "one_way": True}]


@pytest.fixture(scope="module", params=SETTINGS, ids=["join_layer", "one_way"])
def model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_pairs: PairTokenizer
) -> Artifact:
    """A folder of a model that joins late, with all its graphs."""
    network = request.getfixturevalue("network_maker")("ei_src", tiny_pairs.vocabulary_size, **request.param)
    folder = tmp_path_factory.mktemp("late") / "model"
    made: Artifact = request.getfixturevalue("artifact_maker")(folder, network, tiny_pairs)
    return made


@pytest.fixture(params=["torch", "onnx"])
def scorer(request: pytest.FixtureRequest, model: Artifact) -> Scorer:
    return Scorer.load(model.path, request.param, threads=1)


def items(titles: list[str]) -> list[Item]:
    return [Item(str(number), title) for number, title in enumerate(titles)]


@pytest.fixture
def index(scorer: Scorer, tmp_path: Path) -> ItemIndex:
    return ItemIndex.build(items(TITLES), scorer.pairs, tmp_path / "index", scorer.version, None, scorer.state_writer)


def test_scores_from_precomputed_states_are_those_of_whole_pairs(scorer: Scorer, index: ItemIndex) -> None:
    assert index.states is not None
    for query in QUERIES:
        whole = scorer.score(query, TITLES)
        np.testing.assert_allclose(scorer.score_index(query, index), whole, atol=1e-4)
        rows = np.array([5, 0, 0, 3])
        np.testing.assert_allclose(scorer.score_index(query, index, rows), whole[rows], atol=1e-4)
    assert whole.std() > 0.01, "the scores do not differ, so this proves nothing"


def test_the_shipped_sibling_scores_from_states_as_from_whole_pairs(tmp_path: Path) -> None:
    scorer = Scorer.load("shipped-late", threads=1)
    catalog, judgments = read_sample("esci")
    titles = [*dict.fromkeys(item.title for item in catalog)][:60]
    index = ItemIndex.build(items(titles), scorer.pairs, tmp_path / "index", scorer.version, None, scorer.state_writer)
    assert index.states is not None
    for query in ["wireless earbuds", "", "größe ñ 日本語", judgments[0].query]:
        whole = scorer.score(query, titles)
        np.testing.assert_allclose(scorer.score_index(query, index), whole, atol=1e-4)
    assert Scorer.load(threads=1).version != scorer.version


def test_the_shipped_sibling_is_small_and_says_what_it_costs() -> None:
    artifact = open_artifact(model_folder("shipped-late"), kind="model")
    assert sum(entry["bytes"] for entry in artifact.manifest["files"].values()) < 20e6
    assert state_width(model_settings(artifact)["network"]) == 2 * 384
    card = artifact.file("README.md").read_text(encoding="utf-8")
    assert 'Scorer.load("shipped-late")' in card
    assert "## Beside the exact model" in card
    assert "| Apache-2.0" in card
    assert artifact.has("calibration.json") and artifact.has("thresholds.json")
    assert model_settings(artifact)["pairs"] == model_settings(open_artifact(model_folder(None)))["pairs"]


def test_states_kept_in_full_precision_give_the_very_logits(scorer: Scorer) -> None:
    if scorer.backend.name != "torch":
        pytest.skip("graphs take states as float16")
    rows = scorer.pairs.encode_items(TITLES)

    class Wide:
        name, workers = "torch", 1
        ahead = staticmethod(scorer.backend.ahead)  # type: ignore[attr-defined]
        join = staticmethod(scorer.backend.join)  # type: ignore[attr-defined]

    half = item_states(Wide(), scorer.pairs, rows)
    query = scorer.pairs.encode_queries(["red mug"])
    logits = join_logits(Wide(), scorer.pairs, query, half, np.arange(len(TITLES)))
    np.testing.assert_allclose(logits, scorer.logits("red mug", TITLES), atol=2e-3)


def test_states_of_a_title_do_not_depend_on_the_other_titles_bit_for_bit(scorer: Scorer) -> None:
    writer = scorer.state_writer
    assert writer is not None
    together = writer.states(scorer.pairs.encode_items(TITLES))
    assert together.values.dtype == np.float16
    assert together.values.shape[1] == writer.hidden
    for number, title in enumerate(TITLES):
        alone = writer.states(scorer.pairs.encode_items([title]))
        np.testing.assert_array_equal(alone.values, together.take(np.array([number])).values)
        assert len(alone.values) == len(scorer.pairs.encode_items([title]).ids) + 1, "tokens and the separator"


def test_no_titles_have_no_states_and_no_scores(scorer: Scorer, tmp_path: Path) -> None:
    writer = scorer.state_writer
    assert writer is not None
    assert len(writer.states(scorer.pairs.encode_items([]))) == 0
    empty = ItemIndex.build([], scorer.pairs, tmp_path / "empty", scorer.version, None, writer)
    assert scorer.score_index("mug", empty).shape == (0,)


def test_deleting_items_leaves_the_states_of_a_rebuild(scorer: Scorer, tmp_path: Path) -> None:
    writer = scorer.state_writer
    assert writer is not None
    none = writer.states(scorer.pairs.encode_items([]))
    assert none.values.shape == (0, writer.hidden) and none.offsets.tolist() == [0]
    catalog = items(TITLES[:3])
    ItemIndex.build(catalog, scorer.pairs, tmp_path / "i", scorer.version, None, writer)
    fewer = ItemIndex.update(tmp_path / "i", scorer.pairs, delete=["1"], state_writer=writer)
    wanted = ItemIndex.build([catalog[0], catalog[2]], scorer.pairs, tmp_path / "fresh", scorer.version, None, writer)
    assert fewer.version == wanted.version and fewer.states is not None and wanted.states is not None
    np.testing.assert_array_equal(fewer.states.rows.values, wanted.states.rows.values)
    nothing = ItemIndex.update(tmp_path / "i", scorer.pairs, delete=["0", "2"], state_writer=writer)
    assert len(nothing) == 0 and nothing.states is not None


def test_parts_are_not_taken_from_a_model_that_came_later(
    model: Artifact, tmp_path: Path, network_maker: Any, artifact_maker: Any, tiny_pairs: PairTokenizer
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model.path, folder)
    names = [name for name in ("onnx", "native") if name != "native" or native_module() is not None]
    opened = {name: Scorer.load(folder, name, threads=1) for name in names}
    used = Scorer.load(folder, "onnx", threads=1)
    rows = used.pairs.encode_items(TITLES[:2])
    before = used.state_writer.states(rows)  # type: ignore[union-attr]
    other = network_maker("ei_src", tiny_pairs.vocabulary_size, seed=7, join_layer=1)
    artifact_maker(folder, other, tiny_pairs, graph=False)
    for scorer in opened.values():
        with pytest.raises(ArtifactError, match=r"no longer the one that was opened, .* load it again"):
            scorer.state_writer.states(rows)  # type: ignore[union-attr]
    np.testing.assert_array_equal(used.state_writer.states(rows).values, before.values)  # type: ignore[union-attr]


def test_equal_titles_tie_and_joined_scores_ignore_their_mates(scorer: Scorer, index: ItemIndex) -> None:
    scores = scorer.score_index("coffee mug", index)
    assert scores[6] == pytest.approx(scores[7], abs=1e-6)
    alone = [float(scorer.score_index("coffee mug", index, np.array([row]))[0]) for row in range(len(TITLES))]
    np.testing.assert_allclose(alone, scores, atol=1e-5)


def test_pairs_of_several_queries_score_from_states_as_each_query_alone(scorer: Scorer, index: ItemIndex) -> None:
    query_rows, rows = np.array([1, 0, 1, 2, 0]), np.array([0, 1, 2, 3, 4])
    together = scorer.index_logits(QUERIES, query_rows, index, rows)
    alone = [
        scorer.index_logits([QUERIES[query]], np.zeros(1, np.int64), index, np.array([row]))[0]
        for query, row in zip(query_rows, rows, strict=True)
    ]
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_scores_from_states_are_kept_apart_from_those_of_whole_pairs(
    scorer: Scorer, index: ItemIndex, tmp_path: Path
) -> None:
    bare = ItemIndex.build(items(TITLES), scorer.pairs, tmp_path / "bare", scorer.version)
    hot = HotPairs.build([("mug", item.item_id) for item in items(TITLES)], scorer, index, tmp_path / "hot")
    rows, zero = np.arange(len(TITLES)), np.zeros(len(TITLES), np.int64)

    def all_ways() -> list[Any]:
        return [
            scorer.index_logits(["mug"], zero, index, rows),
            scorer.index_logits(["mug"], zero, bare, rows),
            scorer.logits("mug", TITLES),
        ]

    computed = all_ways()
    assert (computed[0] != computed[1]).any(), "float16 costs nothing here, so this proves nothing"
    stamp = score_stamp(scorer.pairs, scorer.version, scorer.backend.name)
    several: list[list[Level]] = [[MemoryScores(10**6)], [hot], [hot, MemoryScores(10**6)]]
    for levels in several:
        caches = scorer.caches = ScoreCaches(stamp, levels)
        for _ in range(2):
            for got, wanted in zip(all_ways(), computed, strict=True):
                np.testing.assert_array_equal(got, wanted)
    assert caches.counts.hits == {"hot": 4 * len(TITLES), "memory": len(TITLES)}


def test_an_index_without_states_is_scored_from_its_tokens(scorer: Scorer, tmp_path: Path) -> None:
    bare = ItemIndex.build(items(TITLES), scorer.pairs, tmp_path / "bare", scorer.version)
    assert bare.states is None
    np.testing.assert_allclose(scorer.score_index("mug", bare), scorer.score("mug", TITLES), atol=1e-5)


def test_states_of_another_model_are_refused(scorer: Scorer, index: ItemIndex) -> None:
    scorer.version = "another"
    with pytest.raises(ArtifactError, match="item states of model version"):
        scorer.score_index("mug", index)


def test_onnx_states_and_joins_are_those_of_torch(model: Artifact) -> None:
    reference, graphs = (Scorer.load(model.path, name, threads=1) for name in ("torch", "onnx"))
    rows = reference.pairs.encode_items(TITLES)
    first, second = (s.state_writer.states(rows) for s in (reference, graphs))  # type: ignore[union-attr]
    np.testing.assert_allclose(first.values.astype(float), second.values.astype(float), atol=1e-2)
    query = reference.pairs.encode_queries(["red mug"])
    every = np.arange(len(TITLES))
    logits = [join_logits(late_backend(model, s.backend, 1), s.pairs, query, first, every) for s in (reference, graphs)]
    np.testing.assert_allclose(*logits, atol=1e-4)


def test_an_exact_model_has_no_states_to_keep(tiny_artifact: Artifact) -> None:
    assert Scorer.load(tiny_artifact.path, "torch").state_writer is None
    assert state_width({"type": "other"}) == 0


def test_running_positions_have_no_states_of_titles(scorer: Scorer) -> None:
    pairs = PairTokenizer(scorer.pairs.tokenizer, PairConfig(positions="running"))
    late: Any = scorer.backend
    with pytest.raises(ConfigError, match="train with `positions: block`"):
        item_states(late, pairs, pairs.encode_items(TITLES))
