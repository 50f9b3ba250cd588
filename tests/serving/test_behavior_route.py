"""Pairs with neighbors over HTTP: who scores them, what is told about them, and new neighbors every day."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pertinent.artifact import Artifact
from pertinent.config import Config
from pertinent.data.neighbors import NeighborLists
from pertinent.engine.behavior import Behavior, BehaviorScorer
from pertinent.engine.cache import MemoryScores, ScoreCaches, score_stamp
from pertinent.engine.fallback import FallbackChain, Stage, cached_stage, lexical_stage, model_stage
from pertinent.engine.index import IndexConfig, ItemIndex
from pertinent.engine.scorer import Scorer
from pertinent.errors import ArtifactError, ConfigError, ScoringError
from pertinent.lexicon.pairs import PairTokenizer
from pertinent.probability import HistoryWeight
from pertinent.records import Item
from pertinent.serving.config import ServeConfig
from pertinent.serving.registry import Registry, Source
from pertinent.serving.run import check, sources

TITLES = {
    "a": "Red coffee mug",
    "b": "größe tea pot",
    "c": "無線 earbuds bluetooth",
    "d": "usb cable 2 m",
    "e": "phone case",
    "f": "water bottle green",
}
LISTS = NeighborLists(10, {"mug": ["a", "b", "d"]}, {"a": ["mug", "red mug"], "b": ["tea", "mug"], "c": ["zx-7"]})
LATER = NeighborLists(11, {"mug": ["f", "e"]}, {"f": ["green bottle"]})
EXPOSURES = {"mug": 100}, {"a": 40, "b": 7}
IDS = list(TITLES)


@pytest.fixture(scope="module")
def place(
    tiny_artifact: Artifact,
    tiny_pairs: PairTokenizer,
    network_maker: Any,
    artifact_maker: Any,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Folders of an index, two behavior models and the neighbors of the first; ``d`` has another title in the index."""
    place = tmp_path_factory.mktemp("behaving")
    indexed = {**TITLES, "d": "usb cable 3 m", "g": "never heard of"}
    items = [Item(item_id, title) for item_id, title in indexed.items()]
    ItemIndex.build(items, tiny_pairs, place / "index", config=IndexConfig(progress=False))
    for seed, name in ((0, "barl"), (1, "other")):
        network = network_maker("barl_ase", tiny_pairs.vocabulary_size, seed=seed, slots=4)
        artifact_maker(place / name, network, tiny_pairs, graph=False)
    Behavior.build(place / "barl", LISTS, TITLES, EXPOSURES, place / "behavior")
    return place


def source(place: Path, tiny_artifact: Artifact, **named: Any) -> Source:
    known = {"index": place / "index", "behavior": place / "behavior", "behavior_model": place / "barl", "threads": 1}
    return Source("tiny", tiny_artifact.path, **{**known, **named})


@pytest.fixture(scope="module")
def cascade(place: Path, tiny_artifact: Artifact) -> BehaviorScorer:
    return BehaviorScorer.load(place / "barl", place / "behavior", Scorer.load(tiny_artifact.path))


@pytest.fixture(scope="module")
def start_source(start: Callable[..., Any]) -> Callable[..., Any]:
    """A running server over a source."""

    def run(found: Source, **settings: Any) -> Any:
        served = found.open()
        running = start(served.scorer, served.index, **settings)
        running.app.models = Registry.open([found])
        return running

    return run


@pytest.fixture(scope="module")
def server(place: Path, tiny_artifact: Artifact, start_source: Callable[..., Any]) -> Any:
    return start_source(source(place, tiny_artifact))


def ask(server: Any, query: str = "mug", **body: Any) -> dict[str, Any]:
    reply = server.post("/v1/relevance", {"query": query, **body})
    assert reply.status_code == 200, reply.text
    answer: dict[str, Any] = reply.json()
    return answer


def by_id(answer: dict[str, Any], column: str) -> dict[str, Any]:
    return dict(zip(answer["ids"], answer[column], strict=True))


@pytest.mark.parametrize("query", ["mug", " MUG", "never asked", "日本語"])
def test_pairs_with_neighbors_are_scored_by_the_model_that_reads_them_and_say_so(
    server: Any, cascade: BehaviorScorer, query: str
) -> None:
    titles = [{**TITLES, "d": "usb cable 3 m"}[item] for item in IDS]
    wanted = cascade.score(query, IDS, titles)
    answer = ask(server, query, item_ids=IDS)
    found, names = by_id(answer, "relevance"), by_id(answer, "scorers")
    assert np.allclose([found[item] for item in IDS], wanted.scores, atol=1e-6)
    known = cascade.known(query, IDS)
    assert [names[item] for item in IDS] == ["behavior" if aware else "model" for aware in known]
    assert known.sum() > 0 and (query.strip().lower() == "mug" or known.sum() < len(IDS))
    assert answer["behavior"] == f"{cascade.name}/{cascade.behavior.version}"
    assert answer["scores"] == sorted(answer["scores"], reverse=True)
    assert answer["version"].endswith(cascade.behavior.version)
    assert ask(server, query, rows=list(range(6)))["scores"] == answer["scores"]


def test_without_neighbors_the_answer_is_that_of_the_served_model(server: Any, tiny_artifact: Artifact) -> None:
    wanted = Scorer.load(tiny_artifact.path).score("never asked", [TITLES["e"], "never heard of"])
    answer = ask(server, "never asked", item_ids=["e", "g"])
    assert np.allclose([by_id(answer, "relevance")[item] for item in ("e", "g")], wanted, atol=1e-6)
    assert "scorers" not in answer and "behavior" not in answer
    assert ask(server, item_ids=["nothing"])["unknown"] == [0]
    texts = ask(server, texts=list(TITLES.values()))  # no ids, so nothing is known of them
    assert "behavior" not in texts and texts["scored"] == len(TITLES)


def test_an_explanation_names_the_neighbors_that_spoke_and_the_gate(server: Any, cascade: BehaviorScorer) -> None:
    items = {item["id"]: item for item in ask(server, item_ids=IDS, explain=True)["items"]}
    said, wanted = items["b"]["behavior"], cascade.explain("mug", "b", TITLES["b"])
    assert said["gate"] == pytest.approx(wanted.gate, abs=1e-5) and said["weight"] == 1.0
    assert [item["id"] for item in said["items"]] == [each.item_id for each in wanted.items]
    assert {item["id"] for item in said["items"]} == {"a", "d"} and said["items"][0]["title"] in TITLES.values()
    assert [query["query"] for query in said["queries"]] == ["tea"]
    assert sum(query["share"] for query in said["queries"]) == pytest.approx(1.0, abs=1e-5)
    unasked = {item["id"]: item for item in ask(server, "never asked", item_ids=IDS, explain=True)["items"]}
    assert "behavior" in unasked["a"] and "behavior" not in unasked["e"]


def fields(value: Any) -> Any:
    """The names of the fields of an answer, at every depth; of lists those of the first element."""
    if isinstance(value, dict):
        return {name: fields(below) for name, below in value.items() if name != "thresholds"}
    return [fields(value[0])] if isinstance(value, list) and value else type(value).__name__


def test_an_answer_has_the_fields_that_the_docs_show(server: Any) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "server-api.md").read_text(encoding="utf-8")
    shown = json.loads(re.findall(r"<!-- own answer: /v1/relevance -->\n```json\n(.*?)```", page, re.DOTALL)[0])
    body = {"item_ids": ["b", "e", "nothing"], "retrieval_scores": [7.2, 6.9, 1.3], "explain": True}
    answer = ask(server, "never asked", **body)
    answer["items"].sort(key=lambda item: "behavior" not in item)
    answer["items"][0]["behavior"]["items"] = ask(server, **body)["items"][0]["behavior"]["items"]
    assert fields(answer) == fields(shown)
    assert sorted(answer["scorers"]) == ["behavior", "model"]
    plain = [item for item in answer["items"] if "behavior" not in item]
    assert [fields(item) for item in plain] == [fields(shown["items"][1])]


def test_the_page_shows_who_scored_each_item_and_who_spoke_for_it(page: Any, server: Any) -> None:
    page.open(server.url + "/")
    page.js("at('query').value = 'tea mug usb case'; delete at('orders').dataset.done; at('form').requestSubmit()")
    page.until("!!document.querySelector('[data-done]')")
    tags = "Object.fromEntries([...document.querySelectorAll('#relevance .card')].map(each => [items.find("
    tags += "item => String(item.index) === each.dataset.item).id, each.querySelector('.scorer').textContent]))"
    assert page.js(tags) == {"a": "behavior", "b": "behavior", "d": "model", "e": "model"}
    page.js("cardOf('relevance', items.find(item => item.id === 'b').index).click()")
    told = page.js("document.querySelector('.detail').innerText")
    said = ask(server, "tea mug usb case", item_ids=["b"], explain=True)["items"][0]["behavior"]
    assert f"Gate {said['gate']:.2f}" in told and "Scored by: behavior." in told
    assert (
        "Queries that led to this item:" in told
        and "mug (" in told
        and "behavior by " in page.js("at('told').textContent")
    )
    assert page.problems == []


def test_both_models_count_by_history_where_a_weight_was_fitted(
    place: Path, tiny_artifact: Artifact, start_source: Callable[..., Any]
) -> None:
    weight = HistoryWeight((-1.0, 0.2, 0.1, 0.3, 0.2))
    text = Scorer.load(tiny_artifact.path)
    folder = place / "weighed"
    Behavior.build(place / "barl", LISTS, TITLES, EXPOSURES, folder, weight=weight, text_version=text.version)
    server = start_source(source(place, tiny_artifact, behavior=folder))
    wanted = BehaviorScorer.load(place / "barl", folder, text).score("mug", ["a", "b", "e"], [TITLES[i] for i in "abe"])
    answer = ask(server, item_ids=["a", "b", "e"], explain=True)
    assert np.allclose([by_id(answer, "relevance")[item] for item in "abe"], wanted.scores, atol=1e-6)
    assert set(answer["scorers"]) == {"behavior+model"}
    assert all(0 < item["behavior"]["weight"] < 1 for item in answer["items"])
    Behavior.build(place / "barl", LISTS, TITLES, EXPOSURES, folder, weight=weight, text_version="another")
    with pytest.raises(ArtifactError, match="another model of texts"):
        source(place, tiny_artifact, behavior=folder).open()


def test_new_neighbors_are_served_without_a_restart_and_wrong_ones_never(
    place: Path, tiny_artifact: Artifact, tmp_path: Path, start_source: Callable[..., Any]
) -> None:
    folder = tmp_path / "behavior"
    shutil.copytree(place / "behavior", folder)
    server = start_source(source(place, tiny_artifact, behavior=folder), watch_seconds=0.05)
    before = ask(server, item_ids=["a", "e"])
    Behavior.build(place / "barl", LATER, TITLES, ({}, {}), folder)
    _until(lambda: ask(server, item_ids=["a", "e"])["version"] != before["version"])
    after = ask(server, item_ids=["a", "e"], explain=True)
    told = {each["id"] for item in after["items"] for each in item["behavior"]["items"]}
    assert told == {"e", "f"} and by_id(after, "relevance") != by_id(before, "relevance")
    Behavior.build(place / "other", LATER, TITLES, ({}, {}), folder)  # of another model
    _until(lambda: server.app.models.failures)
    assert "another model" in server.app.models.failures["tiny"]
    assert ask(server, item_ids=["a", "e"])["version"] == after["version"]


def test_where_the_behavior_model_fails_the_served_one_stands_in(
    place: Path, tiny_artifact: Artifact, start_source: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start_source(source(place, tiny_artifact))

    def fails(*_: Any) -> Any:
        raise ScoringError("broken")

    monkeypatch.setattr(server.app.models.get(None).neighbors.scorer, "views_of", fails)
    answer = ask(server, item_ids=IDS)
    wanted = Scorer.load(tiny_artifact.path).score("mug", [TITLES["a"]])
    assert by_id(answer, "relevance")["a"] == pytest.approx(float(wanted[0]), abs=1e-6)
    assert set(answer["scorers"]) == {"model"} and answer["scored"] == len(IDS)


@pytest.mark.parametrize("behaves", [True, False], ids=["all stages", "behavior fails"])
def test_the_order_of_scorers_is_that_of_the_chain_of_the_engine(
    place: Path,
    tiny_artifact: Artifact,
    start_source: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    behaves: bool,
) -> None:
    server = start_source(source(place, tiny_artifact), cache={"memory_mb": 1})
    ask(server, "never asked", item_ids=["f"])
    text, cascade = Scorer.load(tiny_artifact.path), server.app.models.get(None).neighbors.scorer
    stamp = score_stamp(text.pairs, text.version, text.backend.name)
    text.caches = ScoreCaches(stamp, [MemoryScores(10**6)])
    text.score("never asked", [TITLES["f"]])

    def behave(query: str, items: Any, end: float | None) -> Any:
        ids, titles = [item.item_id for item in items], [item.title for item in items]
        known, scores = np.flatnonzero(cascade.known(query, ids)), np.full(len(ids), np.nan, dtype=np.float32)
        scores[known] = cascade.score(query, [ids[row] for row in known], [titles[row] for row in known]).scores
        return scores

    def fails(*_: Any) -> Any:
        raise ScoringError("broken")

    if not behaves:
        monkeypatch.setattr(cascade, "views_of", fails)
    stages = [cached_stage(text), Stage("behavior", behave), model_stage(text, "model"), lexical_stage()]
    items = [Item(item, {**TITLES, "d": "usb cable 3 m"}[item]) for item in IDS]
    ranked = FallbackChain(stages).rank("never asked", items, top=None)
    answer = ask(server, "never asked", item_ids=IDS)
    assert answer["ids"] == [scored.item.item_id for scored in ranked]
    # The route asks both models at once: what the other one had scored when behavior failed is cached by then.
    same = {} if behaves else {"cached": "model"}
    told, wanted = answer["scorers"], [scored.scorer for scored in ranked]
    assert [same.get(name, name) for name in told] == [same.get(name, name) for name in wanted]
    assert set(told) == set(wanted) == ({"cached", "behavior", "model"} if behaves else {"cached", "model"})
    assert np.allclose(answer["relevance"], [scored.score for scored in ranked], atol=1e-6)


def test_pairs_of_both_kinds_keep_deadlines_filters_and_caches(
    place: Path, tiny_artifact: Artifact, start_source: Callable[..., Any]
) -> None:
    server = start_source(source(place, tiny_artifact), cache={"memory_mb": 1})
    first, again = (ask(server, "never asked", item_ids=IDS, filter={"threshold": 0.0, "min_keep": 2}) for _ in "12")
    assert first["relevance"] == again["relevance"] and first["filtered"]["kept"] == len(IDS)
    assert sorted(first["scorers"]) == ["behavior"] * 3 + ["model"] * 3
    assert sorted(again["scorers"]) == ["behavior"] * 3 + ["cached"] * 3
    assert server.post("/v1/relevance", {"query": "mug", "item_ids": IDS, "deadline_ms": 0}).status_code == 422
    assert ask(server, item_ids=["a", "a"])["scored"] == 2


def test_settings_that_do_not_fit_are_refused(place: Path, tiny_artifact: Artifact) -> None:
    with pytest.raises(ConfigError, match="--index"):
        check(ServeConfig(behavior="x"))
    with pytest.raises(ConfigError, match="--behavior"):
        check(ServeConfig(behavior_model="x"))
    with pytest.raises(ConfigError, match="index"):
        source(place, tiny_artifact, index=None).open()
    with pytest.raises(ArtifactError, match="another model"):
        source(place, tiny_artifact, behavior_model=place / "other").open()
    with pytest.raises(ConfigError, match="no neighbors"):
        Behavior.build(tiny_artifact.path, LISTS, TITLES, EXPOSURES, place / "none")
    config: Config = ServeConfig(model="m", index="i", behavior="b", behavior_model="c")
    assert isinstance(config, ServeConfig)
    (found,) = sources(config)
    assert (found.behavior, found.behavior_model) == (Path("b"), Path("c"))


def test_a_behavior_model_serves_its_own_text_view_where_no_other_is_named(
    place: Path, run: Callable[..., Any]
) -> None:
    import httpx2

    process = run(
        str(place / "barl"), "--index", str(place / "index"), "--behavior", str(place / "behavior"), "--threads", "1"
    )
    process.wait_for("ready")
    body = {"query": "mug", "item_ids": ["a", "g", "e"], "explain": True}
    reply = httpx2.post(f"{process.url}/v1/relevance", json=body, timeout=30, trust_env=False)
    assert reply.status_code == 200 and set(reply.json()["scorers"]) == {"behavior"}
    document = httpx2.get(f"{process.url}/openapi.json", timeout=30, trust_env=False).json()
    assert "SpokenBehavior" in document["components"]["schemas"]
    assert process.end() == 0 or os.name == "nt"


def _until(there: Callable[[], Any], seconds: float = 60.0) -> None:
    import time

    end = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < end
        time.sleep(0.02)
