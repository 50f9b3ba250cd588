"""From a mined log and judgments to a model, its behavior artifact, and an explanation that names who spoke."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pertinent.artifact import write_artifact
from pertinent.behavior import BehaviorConfig, make_behavior
from pertinent.commands import show_explanation
from pertinent.engine.behavior import BehaviorScorer
from pertinent.engine.scorer import Scorer
from pertinent.errors import ArtifactError, ConfigError, DataError
from pertinent.explain import ExplainConfig, explain
from pertinent.training.run import TrainConfig, train

WORDS = [
    "red",
    "blue",
    "mug",
    "cup",
    "tea",
    "pot",
    "cable",
    "phone",
    "case",
    "water",
    "bottle",
    "shoes",
    "lamp",
    "desk",
    "chair",
]

KNOWN = {f"i{n}" for n in range(9)}


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


def test_a_log_becomes_a_model_that_says_which_neighbors_spoke(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    items = [{"item_id": f"i{n}", "title": " ".join(rng.choice(WORDS, 3))} for n in range(60)]
    catalog = write(tmp_path / "items.parquet", items)
    judged = [
        {"query": f"zz {q}", "item_id": f"i{i}", "grade": float(i % 2), "split": "train" if q < 20 else "valid"}
        for q in range(30)
        for i in rng.choice(60, 5, replace=False)
    ]
    lists = [{"query": f"zz {q}", "rank": r, "neighbor": f"i{(q * 3 + r) % 60}"} for q in range(25) for r in range(3)]
    with write_artifact(tmp_path / "mined", "mined", {}) as folder:
        write(folder / "days.parquet", [{"day": 9}])
        write(folder / "neighbors_query.parquet", lists)
        write(
            folder / "neighbors_item.parquet", [{"item_id": f"i{i}", "rank": 0, "neighbor": "zz 1"} for i in range(9)]
        )
        write(folder / "daily.parquet", [{"query": "zz 1", "item_id": "i1", "exposures": 5}])
    settings = {
        "judgments": write(tmp_path / "judged.parquet", judged),
        "items": catalog,
        "neighbors": str(tmp_path / "mined"),
        "start": None,
        "model": {"type": "barl_ase", "hidden_size": 16, "slots": 4},
        "epochs": 1,
        "device": "cpu",
        "graph": False,
        "bootstrap": 0,
        "out": str(tmp_path / "barl"),
    }
    model = train(TrainConfig.build(settings))
    assert "neighbors" in model.manifest["inputs"]
    with pytest.raises(ConfigError, match=r"only model\.type barl_ase"):
        train(TrainConfig.build({**settings, "model": {"hidden_size": 16}, "out": str(tmp_path / "other")}))
    made = {"model": str(model.path), "neighbors": settings["neighbors"], "items": catalog, "out": str(tmp_path / "b")}
    assert make_behavior(BehaviorConfig.build(made)).metrics["queries_with_neighbors"] == 25
    with pytest.raises(ConfigError, match="--neighbors is required"):
        make_behavior(BehaviorConfig.build({**made, "neighbors": None}))
    with pytest.raises(ConfigError, match="needs --judgments"):
        make_behavior(BehaviorConfig.build({**made, "text": "x"}))
    weighed = {**made, "judgments": settings["judgments"], "out": str(tmp_path / "weighed")}
    fitted = make_behavior(BehaviorConfig.build(weighed))
    assert fitted.metrics["weight_pairs"] == 25 + sum(row["item_id"] in KNOWN for row in judged[125:])
    assert fitted.metrics["log_loss_both"] <= fitted.metrics["log_loss_text"] + 0.01
    assert 0 < fitted.metrics["mean_weight"] < 1
    cascade = BehaviorScorer.load(model.path, fitted.path, Scorer.load())
    assert cascade.weight is not None and fitted.config["text_version"] == Scorer.load().version
    found = cascade.score("zz 20", ["i30", "i40"], ["red mug", "tea pot"])
    assert (found.weights > 0).all() and (found.weights < 1).all()
    with pytest.raises(ArtifactError, match="another model of texts"):
        BehaviorScorer.load(model.path, fitted.path, Scorer.load(model.path))
    others = [{**row, "query": f"x {row['query']}", "item_id": f"i{9 + n % 50}"} for n, row in enumerate(judged)]
    nobody = write(tmp_path / "nobody.parquet", others)
    with pytest.raises(DataError, match="has a neighbor"):
        make_behavior(BehaviorConfig.build({**weighed, "judgments": nobody}))
    asked = ExplainConfig(query="zz 3", items=catalog, model=made["model"], behavior=made["out"], top=2)
    show_explanation(explain(asked), asked)
    shown = capsys.readouterr().out
    assert "gate: " in shown
    assert "chosen items: " in shown
    assert "queries that led here: " in shown
