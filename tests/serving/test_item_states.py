"""The states of items that a late join keeps in an index, on the relevance route; and what stands in for a model."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pertinent.engine.index import IndexConfig, ItemIndex
from pertinent.engine.native_backend import native_module
from pertinent.engine.scorer import Scorer
from pertinent.lexicon.pairs import PairTokenizer
from pertinent.records import Item
from pertinent.serving.registry import Registry, Source

QUERY = "usb cable"
TITLES = ["wireless earbuds", "usb cable 2 m", "", "日本語 イヤホン", "coffee mug " * 40, "usb cable", "usb cable"]


@pytest.fixture(scope="module", params=["native", "onnx"])
def source(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    tiny_pairs: PairTokenizer,
    network_maker: Any,
    artifact_maker: Any,
) -> Source:
    """A late join with an index that keeps its states."""
    if request.param == "native" and native_module() is None:
        pytest.skip("the native engine is not built here")
    folder = tmp_path_factory.mktemp("late")
    network = network_maker("ei_src", tiny_pairs.vocabulary_size, join_layer=1)
    artifact_maker(folder / "model", network, tiny_pairs, graph=request.param == "onnx")
    scorer = Scorer.load(folder / "model", request.param, threads=1)
    items = [Item(f"i{n}", title) for n, title in enumerate(TITLES)]
    config = IndexConfig(progress=False)
    ItemIndex.build(items, scorer.pairs, folder / "index", scorer.version, config, scorer.state_writer)
    return Source("late", folder / "model", folder / "index", request.param, threads=1)


@pytest.fixture(scope="module")
def server(source: Source, start: Callable[..., Any]) -> Any:
    running = start(Scorer.load(source.model, source.backend, threads=1), cache={"memory_mb": 1})
    running.app.models = Registry.open([source])
    return running


def ask(server: Any, **body: Any) -> dict[str, Any]:
    reply = server.post("/v1/relevance", {"query": QUERY, **body})
    assert reply.status_code == 200, reply.text
    answer: dict[str, Any] = reply.json()
    return answer


def by_place(answer: dict[str, Any]) -> Any:
    scores = np.zeros(len(answer["index"]))
    scores[answer["index"]] = answer["relevance"]
    return scores


def test_indexed_items_are_scored_from_their_states_and_texts_from_texts(server: Any) -> None:
    served = server.app.models.get(None)
    rows = list(range(len(TITLES)))
    expected = served.scorer.score_index(QUERY, served.index)
    joined = []
    join = served.scorer.join
    served.scorer.join = lambda *given: joined.append(len(given[3])) or join(*given)
    try:
        answer = ask(server, rows=rows)
        again = ask(server, rows=rows)
        texts = ask(server, texts=TITLES)
    finally:
        del served.scorer.join
    assert sum(joined) == len(rows) and answer["states"] is True
    assert np.allclose(by_place(answer), expected, atol=1e-6) and expected.std() > 0.01
    assert set(again["scorers"]) == {"cached"} and np.allclose(by_place(again), expected, atol=1e-6)
    assert "states" not in texts and set(texts["scorers"]) == {"model"}, "scores from states are not those of texts"
    read = np.array([bool(title) for title in TITLES])  # a blank text gets the lowest score of its answer
    assert np.allclose(by_place(texts)[read], served.scorer.score(QUERY, TITLES)[read], atol=1e-6)
    assert answer["truncated"] == texts["truncated"] == 1


def test_one_item_ties_unknown_ids_and_nothing_to_score(server: Any) -> None:
    served = server.app.models.get(None)
    assert ask(server, rows=[3])["relevance"] == pytest.approx(served.scorer.score_index(QUERY, served.index)[[3]])
    ties = ask(server, item_ids=["i6", "i5", "nope"])
    assert ties["index"] == [0, 1] and ties["unknown"] == [2] and ties["relevance"][0] == ties["relevance"][1]
    assert ask(server, item_ids=["nope"])["index"] == []


def test_states_of_another_version_are_left_and_titles_computed(
    source: Source, tmp_path: Path, tiny_pairs: PairTokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    assert source.model is not None
    scorer = Scorer.load(source.model, source.backend, threads=1)
    writer = scorer.state_writer
    assert writer is not None
    writer.version = "another"
    items = [Item("a", "usb cable"), Item("b", "tea")]
    ItemIndex.build(items, scorer.pairs, tmp_path / "index", config=IndexConfig(progress=False), state_writer=writer)
    with caplog.at_level(logging.WARNING):
        served = Source("late", source.model, tmp_path / "index", source.backend, threads=1).open()
    assert served.states is None and "item states are not used" in caplog.text


class Broken:
    """A backend that fails."""

    name, workers = "broken", 1

    def forward(self, batch: Any) -> Any:
        raise RuntimeError("no")


def test_word_overlap_stands_in_for_a_model_that_fails_where_that_is_asked_for(
    tiny_pairs: PairTokenizer, tiny_index: ItemIndex, start: Callable[..., Any]
) -> None:
    server = start(Scorer(Broken(), tiny_pairs, name="broken", version="0"), tiny_index)
    body = {"query": QUERY, "rows": [2, 1, 0, 999]}
    assert server.post("/v1/relevance", body).status_code == 500
    answer = ask(server, **{**body, "fallback": True, "explain": True})
    assert answer["scorers"] == ["lexical"] * 3 and answer["stood_in"] == "failure"
    assert answer["index"][0] == 1 and answer["unknown"] == [3] and answer["items"][0]["title"] == "usb cable 1"
