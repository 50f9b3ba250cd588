"""A linear stand-in for a model, in the LTR module of Solr, OpenSearch or Elasticsearch.

These engines run no network, but add up features that they compute themselves. A stand-in is the weights with which
this sum orders the items of a query most like the model does. It is fitted to values that the engine has logged,
and knows no more than they do: what it keeps of the model's order is measured on queries that it has not seen.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pertinent.artifact import Artifact, open_artifact, read_json, refuse_foreign, write_artifact, write_json
from pertinent.correlation import spearman
from pertinent.data.splits import split_by_query
from pertinent.engine.export import ExportConfig, wanted_out
from pertinent.engine.scorer import Scorer
from pertinent.errors import ArtifactError, ConfigError, DataError

FEATURES_FILE = "features.json"
MODEL_FILE = "model.json"
# The feature store, feature set and model have this name in the engine.
NAME = "relevance"
# The queries whose order is compared with the model's; fewer would tell nothing.
MIN_HELD_OUT = 5

_SOLR = "org.apache.solr.ltr"
_BY_QUERY = f"{_SOLR}.feature.SolrFeature"
# What is computed where no other definitions are given: from the field `title` and the text that is searched for.
DEFINITIONS: dict[str, list[dict[str, Any]]] = {
    "solr": [
        {"name": "original_score", "class": f"{_SOLR}.feature.OriginalScoreFeature", "params": {}},
        {"name": "title_any", "class": _BY_QUERY, "params": {"q": "{!dismax qf=title mm=1}${text}"}},
        {"name": "title_all", "class": _BY_QUERY, "params": {"q": "{!dismax qf=title mm=100%}${text}"}},
        {"name": "title_phrase", "class": _BY_QUERY, "params": {"q": "{!field f=title}${text}"}},
        {"name": "title_length", "class": f"{_SOLR}.feature.FieldLengthFeature", "params": {"field": "title"}},
    ],
    "opensearch": [
        {"name": name, "params": ["text"], "template_language": "mustache", "template": template}
        for name, template in (
            ("title_any", {"match": {"title": "{{text}}"}}),
            ("title_all", {"match": {"title": {"query": "{{text}}", "operator": "and"}}}),
            ("title_phrase", {"match_phrase": {"title": "{{text}}"}}),
        )
    ],
}


@dataclass(frozen=True, slots=True)
class Logged:
    """Pairs with the values of their features: ``values[i, j]`` is that of feature ``names[j]`` for pair i."""

    queries: list[str]
    titles: list[str]
    names: list[str]
    values: NDArray[np.float64]  # [pairs, features]


def definitions(config: ExportConfig) -> list[dict[str, Any]]:
    """The features that the engine computes, in its own form: those of a JSON file, or ours.

    Raises ConfigError where the file is no list of objects that each have a name of their own.
    """
    if config.definitions is None:
        return DEFINITIONS[config.format]
    try:
        given = read_json(Path(config.definitions))
    except ArtifactError as error:
        raise ConfigError(f"definitions: {error}") from None
    names = [each.get("name") if isinstance(each, dict) else None for each in given] if isinstance(given, list) else []
    if not names or not all(isinstance(name, str) and name for name in names) or len(set(names)) < len(names):
        raise ConfigError(
            f"definitions: {config.definitions} is not a list of features, each with a name of its own; give the "
            'list alone, such as [{"name": "title_any", ...}]'
        )
    return given


def export_stand_in(config: ExportConfig, logged: Logged | None) -> Artifact:
    """Definitions of features and, where values were logged, the linear model over them, at ``out``.

    The manifest's metrics tell how much of the model's order is kept: ``rank_correlation``, the mean over held-out
    queries, beside that of the best feature alone. Raises DataError where too few queries were logged.
    """
    out, kind = wanted_out(config), f"{config.format}_ltr"
    refuse_foreign(out, kind)
    chosen = definitions(config)
    metrics: dict[str, Any] = {}
    inputs: dict[str, str] = {}
    weights = None
    if logged is not None:
        scorer = Scorer.load(config.model)
        inputs["model"] = scorer.version
        targets = scorer.pair_logits(list(zip(logged.queries, logged.titles, strict=True)))
        weights = fit_stand_in(logged, targets.astype(np.float64), metrics)
    with write_artifact(out, kind, config.plain(), inputs, metrics) as folder:
        write_json(folder / FEATURES_FILE, _stored_features(config.format, chosen))
        if weights is not None:
            write_json(folder / MODEL_FILE, _stored_model(config.format, weights))
    return open_artifact(out, kind=kind)


def fit_stand_in(logged: Logged, targets: NDArray[np.float64], metrics: dict[str, Any]) -> dict[str, float]:
    """The weight of each feature, fitted to targets ``[pairs]`` on nine of ten queries; ``metrics`` are filled in.

    Raises DataError where fewer than ``MIN_HELD_OUT`` queries are left to measure on, or no feature tells items
    of a query apart.
    """
    held = np.array([split == "test" for split in split_by_query(logged.queries, (0.9, 0.0, 0.1))])
    groups = _rows_by_query(logged.queries)
    fitted = [rows for rows in groups if not held[rows[0]] and len(rows) > 1]
    measured = [rows for rows in groups if held[rows[0]] and len(rows) > 1 and np.ptp(targets[rows]) > 0]
    if len(measured) < MIN_HELD_OUT or not fitted:
        raise DataError(
            f"{len(groups)} queries leave {len(measured)} with several items to measure on, at least {MIN_HELD_OUT} "
            "are needed",
            fix="log more queries, with all items that were found for each; some hundred queries are a good start",
        )
    weights = centered_least_squares(logged.values, targets, fitted)
    if not weights.any():
        raise DataError(
            "no feature has different values for the items of one query", fix="check the values that were logged"
        )
    columns = {name: _agreement(logged.values[:, place], targets, measured) for place, name in enumerate(logged.names)}
    best = max(columns, key=columns.__getitem__)
    metrics.update(
        pairs=len(targets),
        queries=len(groups),
        held_out_queries=len(measured),
        rank_correlation=_agreement(logged.values @ weights, targets, measured),
        best_feature=best,
        best_feature_rank_correlation=columns[best],
    )
    return {name: float(f"{weight:.9g}") for name, weight in zip(logged.names, weights, strict=True)}


def centered_least_squares(
    values: NDArray[np.float64], targets: NDArray[np.float64], groups: Sequence[NDArray[np.int64]]
) -> NDArray[np.float64]:
    """The weights ``[features]`` that explain best how targets differ inside each group of rows.

    What is the same for all items of a query orders none of them, so values and targets count from the mean of their
    group. A small penalty on scaled weights parts features that say the same; one that never differs gets 0.

    >>> values, targets = np.array([[1.0, 5.0], [2.0, 5.0], [3.0, 7.0], [5.0, 7.0]]), np.array([0.0, 2.0, 9.0, 13.0])
    >>> centered_least_squares(values, targets, [np.array([0, 1]), np.array([2, 3])]).round(4).tolist()
    [1.9998, 0.0]
    """
    rows = np.concatenate(list(groups))
    left = np.concatenate([values[rows] - values[rows].mean(axis=0) for rows in groups])
    right = np.concatenate([targets[rows] - targets[rows].mean() for rows in groups])
    spread = np.sqrt((left**2).mean(axis=0))
    spread[spread <= 1e-9 * np.abs(values[rows]).max(axis=0, initial=0.0)] = 0.0
    scale = np.divide(1.0, spread, out=np.zeros_like(spread), where=spread > 0)
    scaled = left * scale
    gram = scaled.T @ scaled + 1e-4 * len(rows) * np.eye(len(scale))
    return np.asarray(np.linalg.solve(gram, scaled.T @ right) * scale)


def _rows_by_query(queries: Sequence[str]) -> list[NDArray[np.int64]]:
    rows: dict[str, list[int]] = {}
    for row, query in enumerate(queries):
        rows.setdefault(query, []).append(row)
    return [np.array(own, dtype=np.int64) for own in rows.values()]


def _agreement(scores: NDArray[np.float64], targets: NDArray[np.float64], groups: Sequence[NDArray[np.int64]]) -> float:
    """The mean rank correlation of scores and targets inside the groups; scores that are all equal count 0."""
    found = [spearman(scores[rows], targets[rows]) for rows in groups]
    return float(np.mean([0.0 if np.isnan(each) else each for each in found]))


def _stored_features(format: str, chosen: Sequence[Mapping[str, Any]]) -> Any:
    """What is uploaded before values are logged: a list for a feature store of Solr, else a feature set."""
    if format == "solr":
        return [{**feature, "store": NAME} for feature in chosen]
    return {"featureset": {"name": NAME, "features": list(chosen)}}


def _stored_model(format: str, weights: Mapping[str, float]) -> Any:
    """What is uploaded to rank with: the weights in the form of the engine."""
    if format == "solr":
        return {
            "store": NAME,
            "name": NAME,
            "class": f"{_SOLR}.model.LinearModel",
            "features": [{"name": name} for name in weights],
            "params": {"weights": dict(weights)},
        }
    return {"model": {"name": NAME, "model": {"type": "model/linear", "definition": json.dumps(dict(weights))}}}
