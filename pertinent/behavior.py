"""``pertinent behavior``: encode the neighbor lists of a mined log with a model, ahead of use; made anew every day."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from pertinent.artifact import Artifact, open_artifact, sha256
from pertinent.config import Config
from pertinent.errors import ConfigError, DataError

if TYPE_CHECKING:
    from pertinent.data.neighbors import NeighborLists
    from pertinent.probability import HistoryWeight
    from pertinent.records import Judgment

Exposures = tuple[dict[str, int], dict[str, int]]


class BehaviorConfig(Config):
    """Settings of ``pertinent behavior``: the model, the mined log, the catalog with the titles, and where to.

    With ``judgments``, those that the model was trained with, their validation pairs decide how much the model
    counts beside ``text``, a model of texts (left out: the shipped one), by how much history a pair has.
    """

    model: str | None = None
    neighbors: str | None = None
    items: str | None = None
    columns: dict[str, str] = {}
    judgments: str | None = None
    text: str | None = None
    out: str | None = None


@dataclass(frozen=True, slots=True)
class _Fitted:
    """A history weight, the model of texts that it is for, and how good all three are on its pairs."""

    weight: HistoryWeight
    text_version: str
    metrics: dict[str, float]


def make_behavior(config: BehaviorConfig) -> Artifact:
    """The artifact of encoded neighbors at ``config.out``, swapped in as a whole; what stood there is replaced."""
    from pertinent.data.neighbors import MINED, read_exposures, read_lists
    from pertinent.data.readers import read_items
    from pertinent.engine.behavior import KIND, Behavior

    missing = [name for name in ("model", "neighbors", "items", "out") if getattr(config, name) is None]
    if missing:
        flags = {"model": "MODEL", **{name: f"--{name}" for name in ("neighbors", "items", "out")}}
        raise ConfigError("\n".join(f"{flags[name]} is required; see: pertinent behavior --help" for name in missing))
    if config.text is not None and config.judgments is None:
        raise ConfigError("--text is for a history weight, which needs --judgments; give both, or leave it out")
    assert config.model is not None
    assert config.neighbors is not None
    assert config.items is not None
    assert config.out is not None
    mined = open_artifact(config.neighbors, MINED, verify=False)
    titles = {item.item_id: item.title for item in read_items(config.items, rename=config.columns)}
    inputs = {"neighbors": mined.version}
    lists, exposures = read_lists(mined), read_exposures(mined)
    if config.judgments is None:
        Behavior.build(config.model, lists, titles, exposures, config.out, inputs)
    else:
        fitted = _fit(config, lists, titles, exposures)
        inputs["judgments"] = sha256(Path(config.judgments))
        told = (fitted.weight, fitted.text_version, fitted.metrics)
        Behavior.build(config.model, lists, titles, exposures, config.out, inputs, *told)
    return open_artifact(config.out, KIND, verify=False)


def _fit(config: BehaviorConfig, lists: NeighborLists, titles: Mapping[str, str], exposures: Exposures) -> _Fitted:
    """How much behavior counts, by history, on the judged validation pairs (BARL-ASe+, section 6)."""
    from pertinent.data.neighbors import NeighborLists
    from pertinent.engine.behavior import Behavior, BehaviorScorer
    from pertinent.engine.scorer import Scorer
    from pertinent.evaluation.longtail import fit_history_weight
    from pertinent.text import normalize

    rows, relevant = _validation(config)
    text = Scorer.load(config.text)
    queries, items = {normalize(row.query) for row in rows}, {row.item_id for row in rows}
    judged = NeighborLists(
        lists.until_day,
        {query: found for query, found in lists.items_of_query.items() if query in queries},
        {item: found for item, found in lists.queries_of_item.items() if item in items},
    )
    asked = {query: count for query, count in exposures[0].items() if query in queries}
    shown = {item: count for item, count in exposures[1].items() if item in items}
    with TemporaryDirectory() as folder:
        Behavior.build(str(config.model), judged, titles, (asked, shown), Path(folder, "behavior"))
        cascade = BehaviorScorer.load(str(config.model), Path(folder, "behavior"))
        columns = _columns(cascade, text, rows, titles)
    known = (columns[4] > 0) | (columns[5] > 0)
    if not known.any():
        raise DataError(
            f"none of the {len(rows)} validation pairs has a neighbor",
            path=config.judgments,
            fix="leave --judgments out, or mine a log of these queries and items",
        )
    behavior, alone, label = columns[0][known], columns[1][known], relevant[known]
    weight = fit_history_weight(columns[0], columns[1], relevant, *columns[2:])
    share = weight(*(column[known] for column in columns[2:]))
    metrics = {
        "weight_pairs": int(known.sum()),
        "log_loss_behavior": _log_loss(behavior, label),
        "log_loss_text": _log_loss(alone, label),
        "log_loss_both": _log_loss(share * behavior + (1 - share) * alone, label),
        "mean_weight": float(share.mean()),
    }
    return _Fitted(weight, text.version, metrics)


def _validation(config: BehaviorConfig) -> tuple[list[Judgment], Any]:
    """The validation judgments of the model's own split that name their items, and which are relevant."""
    from pertinent.training.data import read_judged

    made = open_artifact(str(config.model), kind="model", verify=False).config
    data = read_judged(
        config.judgments,
        None,
        config.items,
        config.columns,
        made.get("scale"),
        made.get("positive_grade"),
        made.get("split_by", "auto"),
        tuple(made.get("split_fractions", (0.8, 0.1, 0.1))),
        made.get("split_salt", ""),
    )
    rows = [row for row in data.of("valid") if row.item_id]
    if not rows:
        raise DataError("has no validation pair with an item_id", path=config.judgments, fix="give item ids")
    return rows, np.asarray(data.relevant(rows), dtype=np.float64)


def _columns(cascade: Any, text: Any, rows: Sequence[Judgment], titles: Mapping[str, str]) -> list[Any]:
    """Probabilities of both models, exposures of query and item, and neighbors of both, ``[rows]`` each."""
    columns = [np.zeros(len(rows)) for _ in range(6)]
    of_query: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        of_query.setdefault(row.query, []).append(place)
    for query, places in of_query.items():
        found = [titles.get(rows[place].item_id, rows[place].title) for place in places]
        looked = cascade.look(query, [rows[place].item_id for place in places])
        columns[0][places] = cascade.scorer.probabilities(cascade.views(query, looked, found).logit)
        columns[1][places] = text.score(query, found)
        for column, values in zip(columns[2:], cascade.history(looked), strict=True):
            column[places] = values
    return columns


def _log_loss(probabilities: Any, relevant: Any) -> float:
    """The mean cross-entropy.

    >>> round(_log_loss(np.array([0.5, 0.5]), np.array([1.0, 0.0])), 4)
    0.6931
    """
    p = np.clip(probabilities, 1e-6, 1 - 1e-6)
    return float(-(relevant * np.log(p) + (1 - relevant) * np.log(1 - p)).mean())
