"""Every network in MODELS learns by the same command, is saved, and scores by the same scorer."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pertinent.engine.scorer import Scorer
from pertinent.models import MODELS
from pertinent.training.run import TrainConfig, train

SIZES = {"hidden_size": 16, "layers": 2, "heads": 2, "feed_forward_size": 32}
SMALL = {
    "dssm": {"hidden_size": 16, "vector_size": 8},
    "bert2dnn": {"width": 8, "bigrams": 64, "mlp": [16]},
    "repr_bert": {**SIZES, "low_width": 8, "compare_width": 16},
}
# What needs more than judgments to learn from has its own test.
OTHERS = {"barl_ase"}


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory, shop_rows: Callable[[int, int, int], list[tuple]]) -> Path:
    path = tmp_path_factory.mktemp("judged") / "judgments.csv"
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["query", "title", "grade"])
        writer.writerows(shop_rows(24, 4, 0))
    return path


@pytest.mark.parametrize("name", sorted(MODELS.keys() - OTHERS))
def test_any_network_trains_is_saved_and_scores(
    name: str, judged: Path, tiny_tokenizer: Path, tmp_path: Path, one_thread: None
) -> None:
    values = {
        "judgments": str(judged),
        "start": None,
        "tokenizer": str(tiny_tokenizer),
        "model": {"type": name, **SMALL.get(name, SIZES)},
        "pairs": {"query_length": 6, "item_length": 12},
        "epochs": 1,
        "graph": False,
        "bootstrap": 0,
        "device": "cpu",
        "learning_rate": 1e-3,
        "out": str(tmp_path / "model"),
    }
    artifact = train(TrainConfig.build(values))
    scorer = Scorer.load(artifact.path)
    titles = ["baln bem", "", "日本語"]
    scores = scorer.score("baln", titles)
    assert scores.shape == (3,)
    assert ((scores > 0) & (scores < 1)).all()
    alone = np.concatenate([scorer.score("baln", [title]) for title in titles])
    np.testing.assert_allclose(scores, alone, atol=1e-4)
    if name == "dssm":  # the letters of the tokens came along
        assert scorer.backend.network.token_trigrams[:, 1].any()
