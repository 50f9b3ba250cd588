"""Precomputed neighbors against the network itself, and the cascade over them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pertinent.artifact import Artifact
from pertinent.data.neighbors import NeighborHistory, NeighborLists
from pertinent.engine.barl import Encoded, NumpyBarl, TorchBarl, open_barl
from pertinent.engine.behavior import Behavior, BehaviorScorer
from pertinent.engine.scorer import Scorer
from pertinent.errors import ArtifactError, ConfigError, DataError
from pertinent.lexicon.pairs import PairTokenizer
from pertinent.models.barl_ase import BarlASe, Neighbors
from pertinent.probability import HistoryWeight

TITLES = {
    "a": "Red coffee mug",
    "b": "größe tea pot",
    "c": "無線 earbuds bluetooth",
    "d": "usb cable 2 m",
    "e": "phone case",
    "f": "water bottle green",
}
LISTS = NeighborLists(
    10,
    {"mug": ["a", "b", "d", "f", "e", "z"], "zx-7": ["c", "d"], "lonely": ["a"]},
    {
        "a": ["mug", "red mug", "lonely"],
        "b": ["tea", "mug"],
        "c": ["zx-7"],
        "d": ["usb", "zx-7", "mug", "wire"],
        "z": ["mug"],
    },
)
EXPOSURES = {"mug": 100, "zx-7": 50, "unseen": 3}, {"a": 40, "b": 7, "e": 5, "z": 9}
SLOTS = 4
VARIANTS: list[dict[str, Any]] = [
    {},
    {"products": True, "agreement": True, "shared_attention": False},
    {"gains": True},
    {"gains": True, "shared_attention": False, "target_attention": False},
    {"neighbor_block": False, "slot_positions": False},
    {"neighbor_attention": False, "target_attention": False, "gate": False},
    {"target_encoder": "transformer"},
]


@pytest.fixture(scope="module", params=VARIANTS, ids=str)
def model(
    request: pytest.FixtureRequest,
    network_maker: Any,
    artifact_maker: Any,
    tiny_pairs: PairTokenizer,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[BarlASe, Artifact]:
    network = network_maker("barl_ase", tiny_pairs.vocabulary_size, slots=SLOTS, **request.param)
    return network, artifact_maker(tmp_path_factory.mktemp("barl") / "barl", network, tiny_pairs, graph=False)


@pytest.fixture(scope="module")
def cascade(model: tuple[BarlASe, Artifact], tiny_artifact: Artifact, tmp_path_factory: Any) -> BehaviorScorer:
    folder = tmp_path_factory.mktemp("behavior") / "behavior"
    Behavior.build(model[1].path, LISTS, TITLES, EXPOSURES, folder)
    return BehaviorScorer.load(model[1].path, folder, Scorer.load(tiny_artifact.path))


def end_to_end(
    network: BarlASe, pairs: PairTokenizer, query: str, item_ids: list[str], lists: NeighborLists = LISTS
) -> Any:
    """All views by the network, from the tokens of everything, with lists as in training."""
    found = NeighborHistory([lists], TITLES, SLOTS).examples([query] * len(item_ids), item_ids)
    sides = []
    for side, encode in ((found.queries, pairs.encode_queries), (found.items, pairs.encode_items)):
        rows = encode(side.texts)
        ids = np.full((max(1, len(rows)), max(1, int(rows.lengths.max(initial=0)))), -1)
        ids[: len(rows)][np.arange(ids.shape[1])[None] < rows.lengths[:, None]] = rows.ids
        sides.append(Neighbors(*map(torch.from_numpy, (ids, side.slots.astype(np.int64), side.counts))))
    batch = pairs.pair([query] * len(item_ids), [TITLES[item] for item in item_ids])
    tokens = {name: torch.from_numpy(value) for name, value in batch.inputs().items()}
    with torch.inference_mode():
        return network.views(**tokens, neighbor_queries=sides[0], neighbor_items=sides[1])


@pytest.mark.parametrize("query", ["mug", "MUG ", "zx-7", "lonely", "tea", "unseen", "", "日本語"])
def test_precomputed_equals_end_to_end(
    model: tuple[BarlASe, Artifact], cascade: BehaviorScorer, query: str, tiny_pairs: PairTokenizer
) -> None:
    for item_ids in (list(TITLES), ["a"], ["f", "c"]):
        wanted = end_to_end(model[0], tiny_pairs, query, item_ids)
        found = cascade.behave(query, item_ids, [TITLES[item] for item in item_ids])
        for name in ("logit", "text", "gate"):
            np.testing.assert_allclose(getattr(found, name), getattr(wanted, name).numpy(), atol=1e-5, err_msg=name)
        assert cascade.known(query, item_ids).tolist() == (wanted.has_items | wanted.has_queries).tolist()


def test_numpy_is_the_engine_of_bags_and_torch_of_the_rest(
    model: tuple[BarlASe, Artifact], tiny_pairs: PairTokenizer
) -> None:
    engine = open_barl(model[1], tiny_pairs)
    assert isinstance(engine, NumpyBarl if model[0].config.target_encoder == "bag" else TorchBarl)
    other = TorchBarl(model[0], tiny_pairs)
    texts, none = tiny_pairs.encode_items(["mug", "", "tea pot"]), np.zeros(2, dtype=np.int64)
    slots, counts = np.array([[0, 1, 2], [2, 2, 0]]), np.array([3, 0])
    encoded = [each.encode("items", texts, slots, counts) for each in (engine, other)]
    np.testing.assert_allclose(*encoded, atol=1e-5)
    nobody = Encoded(np.zeros((2, 0, 16), dtype=np.float32), none)
    query = tiny_pairs.encode_queries(["red mug"])
    for titles in (["usb", ""], ["", ""]):
        rows = tiny_pairs.encode_items(titles)
        one = engine.score(query, rows, nobody, nobody)
        if isinstance(engine, NumpyBarl):
            assert (one.gate == 1).all()
            np.testing.assert_array_equal(one.logit, one.text)


def test_items_without_neighbors_are_scored_by_the_other_model_and_say_so(cascade: BehaviorScorer) -> None:
    ids = list(TITLES)
    titles = [TITLES[item] for item in ids]
    found = cascade.score("tea", ids, titles)
    assert cascade.fallback is not None
    alone = cascade.fallback.score("tea", titles)
    expected = [cascade.name if known else cascade.fallback.name for known in cascade.known("tea", ids)]
    assert list(found.scorers) == expected
    assert set(expected) == {cascade.name, cascade.fallback.name}
    without = found.weights == 0
    np.testing.assert_allclose(found.scores[without], alone[without], atol=1e-6)
    logits = cascade.behave("tea", ids, titles).logit
    np.testing.assert_allclose(found.scores[~without], cascade.scorer.probabilities(logits)[~without], atol=1e-6)


def test_without_another_model_the_text_view_stands_in(cascade: BehaviorScorer) -> None:
    alone = BehaviorScorer(cascade.scorer, cascade.engine, cascade.behavior)
    found = alone.score("tea", ["e", "f"], ["phone case", "water bottle green"])
    alike = cascade.scorer.score("tea", ["phone case", "water bottle green"])
    np.testing.assert_allclose(found.scores, alike, atol=1e-5)
    assert set(found.scorers) == {cascade.name}


def test_both_models_are_mixed_by_history(cascade: BehaviorScorer) -> None:
    ids, titles = list(TITLES), list(TITLES.values())
    assert cascade.fallback is not None
    for coefficients in ((50.0, 0, 0, 0, 0), (-50.0, 0, 0, 0, 0), (0.1, -0.2, 0.3, 0.5, -0.1)):
        weight = HistoryWeight(coefficients)  # type: ignore[arg-type]
        mixed = BehaviorScorer(cascade.scorer, cascade.engine, cascade.behavior, cascade.fallback, weight)
        found = mixed.score("mug", ids, titles)
        pure = cascade.score("mug", ids, titles)
        text = cascade.fallback.score("mug", titles)
        both = found.weights * pure.scores + (1 - found.weights) * text
        np.testing.assert_allclose(found.scores, np.where(pure.weights > 0, both, text), atol=1e-6)
        assert (found.weights[pure.weights == 0] == 0).all()
    counts = [4, 4, 4, 4, 4, 4], [2, 1, 1, 3, 0, 0]
    shown = [40, 7, 0, 0, 5, 0]
    np.testing.assert_allclose(found.weights, weight([100] * 6, shown, *counts), atol=1e-6)
    assert found.scorers[0] == f"{cascade.name}+{cascade.fallback.name}"


def test_explain_names_who_spoke_and_never_the_pair_itself(cascade: BehaviorScorer) -> None:
    found = cascade.explain("mug", "a", TITLES["a"])
    assert {each.item_id for each in found.items} == {"b", "d", "f", "e"}
    assert {each.text for each in found.queries} == {"red mug", "lonely"}
    if cascade.engine.slots and isinstance(cascade.engine, NumpyBarl) and cascade.engine.settings["neighbor_attention"]:
        for side in (found.items, found.queries):
            assert sum(each.weight for each in side) == pytest.approx(1, abs=1e-5)
            assert [each.weight for each in side] == sorted((each.weight for each in side), reverse=True)
    assert 0 < found.gate < 1
    nobody = cascade.explain("unseen", "f", TITLES["f"])
    assert nobody.gate == 1
    assert nobody.items == nobody.queries == ()


def test_nothing_to_score(cascade: BehaviorScorer) -> None:
    found = cascade.score("mug", [], [])
    assert found.scores.shape == (0,)
    assert found.scorers == ()
    with pytest.raises(DataError, match="2 item ids but 1 titles"):
        cascade.score("mug", ["a", "b"], ["x"])


def test_permuting_items_permutes_scores(cascade: BehaviorScorer) -> None:
    ids = list(TITLES)
    order = [3, 0, 5, 1, 4, 2]
    first = cascade.score("mug", ids, [TITLES[item] for item in ids])
    second = cascade.score("mug", [ids[i] for i in order], [TITLES[ids[i]] for i in order])
    np.testing.assert_allclose(second.scores, first.scores[order], atol=1e-6)
    assert list(second.scorers) == [first.scorers[i] for i in order]


def test_an_artifact_of_another_model_or_kind_is_refused(
    cascade: BehaviorScorer, model: tuple[BarlASe, Artifact], tiny_artifact: Artifact, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="reads no neighbors"):
        Behavior.build(tiny_artifact.path, LISTS, TITLES, EXPOSURES, tmp_path / "x")
    with pytest.raises(ArtifactError, match="was made with another model"):
        BehaviorScorer.load(tiny_artifact.path, cascade.behavior.path)
    with pytest.raises(ArtifactError, match="'behavior' is needed"):
        Behavior.open(model[1].path)


def test_a_shop_without_behavior_has_no_neighbors(model: tuple[BarlASe, Artifact], tmp_path: Path) -> None:
    Behavior.build(model[1].path, NeighborLists(1, {}, {}), {}, ({}, {}), tmp_path / "none")
    empty = BehaviorScorer.load(model[1].path, tmp_path / "none")
    assert not empty.known("mug", ["a"]).any()
    assert empty.score("mug", ["a"], ["tea"]).scores.shape == (1,)


@pytest.mark.parametrize(
    "lists",
    [
        NeighborLists(1, LISTS.items_of_query, {}),
        NeighborLists(1, {}, LISTS.queries_of_item),
        NeighborLists(1, {}, {}),
    ],
    ids=["items", "queries", "none"],
)
def test_neighbors_on_one_side_alone_behave_as_end_to_end(
    model: tuple[BarlASe, Artifact], lists: NeighborLists, tiny_pairs: PairTokenizer, tmp_path: Path
) -> None:
    Behavior.build(model[1].path, lists, TITLES, EXPOSURES, tmp_path / "side")
    cascade = BehaviorScorer.load(model[1].path, tmp_path / "side")
    for query, item_ids in (("mug", list(TITLES)), ("lonely", ["a"]), ("unseen", ["e"])):
        wanted = end_to_end(model[0], tiny_pairs, query, item_ids, lists)
        found = cascade.behave(query, item_ids, [TITLES[item] for item in item_ids])
        for name in ("logit", "gate"):
            np.testing.assert_allclose(getattr(found, name), getattr(wanted, name).numpy(), atol=1e-5, err_msg=name)
        assert np.isfinite(cascade.explain(query, item_ids[0], TITLES[item_ids[0]]).gate)


def test_an_opened_scorer_is_taken_as_it_is(model: tuple[BarlASe, Artifact], cascade: BehaviorScorer) -> None:
    opened = Scorer.load(model[1].path, backend="torch", threads=1)
    assert BehaviorScorer.load(model[1].path, cascade.behavior.path, scorer=opened).scorer is opened
    with pytest.raises(ArtifactError, match="the scorer is of another model"):
        BehaviorScorer.load(model[1].path, cascade.behavior.path, scorer=cascade.fallback)


def test_the_same_lists_give_the_same_bytes(
    model: tuple[BarlASe, Artifact], cascade: BehaviorScorer, tmp_path: Path
) -> None:
    again = Behavior.build(model[1].path, LISTS, TITLES, EXPOSURES, tmp_path / "again")
    assert again.version == cascade.behavior.version
