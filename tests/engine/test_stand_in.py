"""Linear stand-ins, read and run as Solr's LTR module and the LTR plug-in of OpenSearch do it, as strictly.

The rules are those of the engines' sources: ``ManagedFeatureStore``, ``ManagedModelStore``, ``LTRScoringModel`` and
``LinearModel`` of Solr; ``StoredFeatureSet`` and ``LinearRankerParser`` of the plug-in.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pertinent.artifact import Artifact, open_artifact
from pertinent.cli import main
from pertinent.data.splits import split_by_query
from pertinent.engine.scorer import Scorer
from pertinent.engine.stand_in import DEFINITIONS, Logged, centered_least_squares, fit_stand_in
from pertinent.errors import DataError
from pertinent.text import words

TITLES = ["wireless earbuds case", "usb cable 2 m", "steel water bottle", "green tea pot", "coffee mug", "screen usb"]
WORDS = list(dict.fromkeys(" ".join(TITLES).split()))
QUERIES = [f"{first} {second}" for first in WORDS for second in WORDS if first != second]


# --- Solr -----------------------------------------------------------------------------------------


class SolrStore:
    """A feature store and a model store. Setters are found by the names of parameters; unknown ones are errors."""

    SETTERS = {
        "org.apache.solr.ltr.feature.OriginalScoreFeature": set(),
        "org.apache.solr.ltr.feature.SolrFeature": {"q", "fq", "df"},
        "org.apache.solr.ltr.feature.FieldLengthFeature": {"field"},
        "org.apache.solr.ltr.feature.ValueFeature": {"value", "required"},
    }

    def __init__(self) -> None:
        self.features: dict[str, list[str]] = {}

    def put_features(self, updates: list[dict[str, Any]]) -> None:
        for update in updates:
            assert set(update) <= {"name", "class", "params", "store"}
            assert isinstance(update["name"], str)
            params = update.get("params") or {}
            assert set(params) <= self.SETTERS[update["class"]] | {"defaultValue"}
            if update["class"].endswith(".SolrFeature"):
                assert params.get("q") or params.get("fq"), "Q or FQ must be provided"
            if update["class"].endswith(".FieldLengthFeature"):
                assert params["field"], "field must be provided"
            held = self.features.setdefault(update.get("store") or "_DEFAULT_", [])
            assert update["name"] not in held, "already contained in the store"
            held.append(update["name"])

    def put_model(self, update: dict[str, Any]) -> SolrModel:
        assert set(update) <= {"name", "class", "features", "params", "store"}
        assert update["class"] == "org.apache.solr.ltr.model.LinearModel" and isinstance(update["name"], str)
        store = self.features[update.get("store") or "_DEFAULT_"]
        names = []
        for feature in update["features"]:
            assert set(feature) <= {"name", "norm"}
            assert feature["name"] in store, "not found in store"
            names.append(feature["name"])
        assert names, "no features declared"
        assert len(set(names)) == len(names), "duplicated feature"
        assert set(update["params"]) == {"weights"}
        weights = update["params"]["weights"]
        assert all(type(value) in (int, float) for value in weights.values()), "ClassCastException"
        assert set(names) <= set(weights), "lacks weights"
        return SolrModel(names, np.array([weights[name] for name in names], dtype=np.float32))


class SolrModel:
    def __init__(self, names: list[str], weights: np.ndarray) -> None:
        self.names, self.weights = names, weights

    def score(self, values: dict[str, float]) -> float:
        score = np.float32(0)
        for name, weight in zip(self.names, self.weights, strict=True):
            score += np.float32(values[name]) * weight
        return float(score)


# --- OpenSearch and Elasticsearch -----------------------------------------------------------------


def plugin_features(body: dict[str, Any]) -> list[str]:
    """The names in a feature set, by their places."""
    assert set(body) == {"featureset"} and set(body["featureset"]) <= {"name", "features"}
    names = []
    for feature in body["featureset"]["features"]:
        assert set(feature) <= {"name", "params", "template", "template_language"}
        assert set(feature) >= {"name", "params", "template"}
        assert feature.get("template_language", "mustache") == "mustache"
        assert all(isinstance(name, str) for name in feature["params"])
        filled = json.dumps(feature["template"])
        for name in feature["params"]:
            filled = filled.replace("{{" + name + "}}", "trail shoe")
        assert "{{" not in filled
        names.append(feature["name"])
    assert len(set(names)) == len(names)
    return names


def plugin_weights(body: dict[str, Any], names: list[str]) -> np.ndarray:
    """The weights of a linear model; a feature without one has 0."""
    assert set(body) == {"model"} and set(body["model"]) == {"name", "model"}
    assert set(body["model"]["model"]) == {"type", "definition"}
    assert body["model"]["model"]["type"] == "model/linear"
    weights = np.zeros(len(names), dtype=np.float32)
    definition = json.loads(body["model"]["model"]["definition"])
    assert isinstance(definition, dict), "Expected start object"
    for name, value in definition.items():
        assert name in names, f"Feature [{name}] is unknown."
        assert type(value) in (int, float), "Expected a float"
        weights[names.index(name)] = value
    return weights


# --- What is logged -------------------------------------------------------------------------------


def feature_values(query: str, title: str) -> dict[str, float]:
    """Values like those of an engine."""
    wanted, found = set(words(query)), words(title)
    shared = sum(word in wanted for word in found)
    return {
        "original_score": 2.0 * shared + 0.01 * len(query),
        "title_any": shared / (1 + 0.1 * len(found)),
        "title_all": float(wanted <= set(found)),
        "title_phrase": float(query in title),
        "title_length": float(len(found)),
    }


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("logged") / "logged.csv"
    with open(path, "w", encoding="utf-8", newline="") as file:
        names = [feature["name"] for feature in DEFINITIONS["solr"]]
        writer = csv.DictWriter(file, ["query", "title", *names, "more"])
        writer.writeheader()
        for query in QUERIES:
            for title in TITLES:
                writer.writerow({"query": query, "title": title, "more": "x", **feature_values(query, title)})
    return path


def run(tiny_artifact: Artifact, *argv: str) -> int:
    return main(["export", str(tiny_artifact.path), *argv])


def test_solr_takes_features_and_model_and_adds_up_as_measured(
    tiny_artifact: Artifact, logged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(tiny_artifact, "--format", "solr", "--features", str(logged), "--out", str(out)) == 0
    assert "rank_correlation" in capsys.readouterr().out
    store = SolrStore()
    store.put_features(json.loads((out / "features.json").read_text()))
    assert list(store.features) == ["relevance"]
    model = store.put_model(json.loads((out / "model.json").read_text()))
    assert model.names == [feature["name"] for feature in DEFINITIONS["solr"]]
    metrics = open_artifact(out, "solr_ltr").metrics
    assert metrics["queries"] == len(set(QUERIES)) and metrics["pairs"] == len(QUERIES) * len(TITLES)
    assert metrics["best_feature"] in model.names
    assert -1 <= metrics["best_feature_rank_correlation"] <= 1
    # The titles' own scores differ, so their length at least tells something.
    scorer = Scorer.load(tiny_artifact.path)
    wanted = np.concatenate([scorer.logits(query, TITLES) for query in QUERIES])
    found = np.array([model.score(feature_values(query, title)) for query in QUERIES for title in TITLES])
    groups = np.arange(len(wanted)).reshape(-1, len(TITLES))
    together = np.concatenate([[wanted[own] - wanted[own].mean(), found[own] - found[own].mean()] for own in groups], 1)
    assert np.corrcoef(together)[0, 1] > 0.1


@pytest.mark.parametrize("model", [False, True])
def test_the_plug_in_takes_features_and_model(
    model: bool, tiny_artifact: Artifact, logged: Path, tmp_path: Path
) -> None:
    given = ["--features", str(logged)] if model else []
    assert run(tiny_artifact, "--format", "opensearch", *given, "--out", str(tmp_path / "out")) == 0
    names = plugin_features(json.loads((tmp_path / "out" / "features.json").read_text()))
    assert names == ["title_any", "title_all", "title_phrase"]
    assert (tmp_path / "out" / "model.json").exists() == model
    if model:
        weights = plugin_weights(json.loads((tmp_path / "out" / "model.json").read_text()), names)
        assert weights.any() and np.isfinite(weights).all()


def test_definitions_come_first_and_the_model_replaces_them(
    tiny_artifact: Artifact, logged: Path, tmp_path: Path
) -> None:
    out = str(tmp_path / "out")
    assert run(tiny_artifact, "--format", "solr", "--out", out) == 0
    before = (tmp_path / "out" / "features.json").read_bytes()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["features.json", "manifest.json"]
    assert run(tiny_artifact, "--format", "solr", "--features", str(logged), "--out", out) == 0
    assert (tmp_path / "out" / "features.json").read_bytes() == before
    assert (tmp_path / "out" / "model.json").exists()


def test_own_definitions_say_which_columns_are_read(tiny_artifact: Artifact, logged: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.json"
    own.write_text(json.dumps([DEFINITIONS["solr"][4], DEFINITIONS["solr"][1]]))
    given = ["--format", "solr", "--features", str(logged), "--set", f"definitions={own}"]
    assert run(tiny_artifact, *given, "--out", str(tmp_path / "out")) == 0
    store = SolrStore()
    store.put_features(json.loads((tmp_path / "out" / "features.json").read_text()))
    model = store.put_model(json.loads((tmp_path / "out" / "model.json").read_text()))
    assert model.names == ["title_length", "title_any"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{}", "is not a list of features, each with a name of its own"),
        ("[]", "is not a list of features"),
        ('[{"name": "a"}, {"name": "a"}]', "is not a list of features"),
        ('[{"name": 1}]', "is not a list of features"),
        ("[", "not readable as JSON"),
        (None, "no such file"),
    ],
)
def test_definitions_that_are_none_are_refused(
    content: str | None,
    words: str,
    tiny_artifact: Artifact,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if content is not None:
        (tmp_path / "own.json").write_text(content)
    given = ["--format", "solr", "--set", f"definitions={tmp_path / 'own.json'}", "--out", str(tmp_path / "out")]
    assert run(tiny_artifact, *given) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("query,title\ntea,pot\n", "has no column 'original_score'"),
        ("query,title,{names}\ntea,pot,1,2,3,x,5\n", "column 'title_phrase', value 'x': is not a number"),
        ("query,title,{names}\ntea,pot,1,2,3,,5\n", "column 'title_phrase': is empty"),
        ("query,title,{names}\ntea,pot,1,2,nan,4,5\n", "column 'title_all', value 'nan': is NaN"),
        ("query,title,{names}\ntea,pot,1,2,3,4,1e300\n", "column 'title_length', value '1e300': is not from"),
        ("query,title,{names}\ntea,pot,1,2,3,4,5\n", "1 queries leave 0 with several items to measure on"),
    ],
)
def test_logged_values_that_are_none_are_refused_by_their_place(
    rows: str, words: str, tiny_artifact: Artifact, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ",".join(feature["name"] for feature in DEFINITIONS["solr"])
    (tmp_path / "logged.csv").write_text(rows.replace("{names}", names))
    given = ["--format", "solr", "--features", str(tmp_path / "logged.csv"), "--out", str(tmp_path / "out")]
    assert run(tiny_artifact, *given) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# --- The fit --------------------------------------------------------------------------------------


def made_up(weights: list[float], noise: float = 0.0) -> tuple[Logged, np.ndarray]:
    """Queries whose items' targets are a weighted sum of features, and something of the query itself."""
    random = np.random.default_rng(3)
    queries = [f"query {row // 8}" for row in range(1_600)]
    values = random.normal(size=(1_600, len(weights))) * [10.0**place for place in range(len(weights))]
    level = np.repeat(random.normal(size=200) * 50, 8)
    targets = values @ np.array(weights) + level + noise * random.normal(size=1_600)
    return Logged(queries, ["t"] * 1_600, [f"f{place}" for place in range(len(weights))], values), targets


def test_weights_that_made_the_order_are_found() -> None:
    logged, targets = made_up([1.0, -0.3, 0.0])
    metrics: dict[str, Any] = {}
    weights = fit_stand_in(logged, targets, metrics)
    np.testing.assert_allclose(list(weights.values()), [1.0, -0.3, 0.0], atol=1e-3)
    assert metrics["rank_correlation"] > 0.99 > metrics["best_feature_rank_correlation"]
    assert metrics["best_feature"] in ("f0", "f1")


def test_a_feature_of_the_query_and_one_given_twice_do_no_harm() -> None:
    logged, targets = made_up([1.0, -0.3], noise=0.1)
    ofquery = np.repeat(np.arange(200.0), 8)[:, None]
    values = np.concatenate([logged.values, ofquery, logged.values[:, :1]], axis=1)
    more = Logged(logged.queries, logged.titles, [*logged.names, "of_query", "again"], values)
    weights = fit_stand_in(more, targets, {})
    assert weights["of_query"] == 0.0
    assert weights["f0"] == pytest.approx(weights["again"], rel=1e-3)
    assert weights["f0"] + weights["again"] == pytest.approx(1.0, abs=0.01)


def test_queries_that_are_measured_on_are_not_fitted_to() -> None:
    logged, targets = made_up([1.0, -0.3], noise=0.5)
    held = np.array([split == "test" for split in split_by_query(logged.queries, (0.9, 0.0, 0.1))])
    before: dict[str, Any] = {}
    after: dict[str, Any] = {}
    weights = fit_stand_in(logged, targets, before)
    assert fit_stand_in(logged, np.where(held, -targets, targets), after) == weights
    assert after["rank_correlation"] == pytest.approx(-before["rank_correlation"])


def test_the_order_of_rows_does_not_change_the_weights() -> None:
    logged, targets = made_up([1.0, -0.3], noise=0.5)
    order = np.random.default_rng(0).permutation(len(targets))
    shuffled = Logged([logged.queries[row] for row in order], logged.titles, logged.names, logged.values[order])
    first, second = fit_stand_in(logged, targets, {}), fit_stand_in(shuffled, targets[order], {})
    np.testing.assert_allclose(list(first.values()), list(second.values()), rtol=1e-6)


def test_features_that_tell_nothing_are_refused() -> None:
    logged, targets = made_up([1.0])
    same = Logged(logged.queries, logged.titles, logged.names, np.ones_like(logged.values))
    with pytest.raises(DataError, match="no feature has different values for the items of one query"):
        fit_stand_in(same, targets, {})


def test_a_group_with_equal_values_adds_nothing() -> None:
    values, targets = np.array([[1.0], [1.0], [2.0], [3.0]]), np.array([0.0, 9.0, 1.0, 2.0])
    alone = centered_least_squares(values, targets, [np.array([2, 3])])
    both = centered_least_squares(values, targets, [np.array([0, 1]), np.array([2, 3])])
    np.testing.assert_allclose(alone, both, rtol=1e-3)
