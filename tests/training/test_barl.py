"""Training with neighbors, on a tiny shop whose queries are codes: only behavior says what they mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pertinent.artifact import open_artifact, write_artifact
from pertinent.data.neighbors import NeighborHistory, NeighborLists
from pertinent.errors import ConfigError, DataError
from pertinent.evaluation.metrics import auc
from pertinent.lexicon.pairs import PairTokenizer
from pertinent.models.barl_ase import BarlASe, BarlASeConfig
from pertinent.objectives.spec import ViewLosses
from pertinent.records import Judgment
from pertinent.training.barl import fit_views, history_before, view_losses
from pertinent.training.collate import TrainingSet, collate, join, network_inputs
from pertinent.training.data import JudgedData
from pertinent.training.fit import FitConfig
from pertinent.training.trainer import all_logits

GROUPS = [[f"{a}{b}{c}" for b in "ae" for c in "lmnr"] for a in "bdfgk"]  # words that go together


def alias_shop(codes: int, seed: int) -> tuple[list[Judgment], NeighborHistory]:
    """Each code stands for one group of words; its searchers chose titles of that group, judged titles are others."""
    rng = np.random.default_rng(seed)
    judgments: list[Judgment] = []
    titles: dict[str, str] = {}
    items_of: dict[str, list[str]] = {}
    queries_of: dict[str, list[str]] = {}

    def item(group: int) -> str:
        name = f"{seed}-{len(titles)}"
        titles[name] = " ".join(rng.choice(GROUPS[group], 3, replace=False))
        queries_of[name] = [" ".join(rng.choice(GROUPS[group], 2)) for _ in range(2)]
        return name

    for code in range(codes):
        query, group = f"zz{seed}x{code}", int(rng.integers(len(GROUPS)))
        items_of[query] = [item(group) for _ in range(4)]
        for place in range(6):
            meant = group if place < 3 else int((group + 1 + rng.integers(len(GROUPS) - 1)) % len(GROUPS))
            name = item(meant)
            judgments.append(Judgment(query, name, float(place < 3), titles[name]))
    return judgments, NeighborHistory([NeighborLists(1, items_of, queries_of)], titles, 4)


def alias_set(pairs: PairTokenizer, codes: int, seed: int) -> TrainingSet:
    judgments, history = alias_shop(codes, seed)
    return JudgedData(judgments, None, 1.0, neighbors=history).training_set(judgments, pairs)


def make_barl(pairs: PairTokenizer, seed: int = 0, **settings: Any) -> BarlASe:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "attention_width": 16, "slots": 4, "embedding_dropout": 0.1, "block_dropout": 0.1}
    return BarlASe(BarlASeConfig(vocabulary_size=pairs.vocabulary_size, **{**sizes, **settings}))


CONFIG = FitConfig(epochs=20, batch_size=64, learning_rate=1e-2, device="cpu", early_stopping=0)


@pytest.fixture(scope="module")
def sets(tiny_pairs: PairTokenizer) -> tuple[TrainingSet, TrainingSet]:
    return alias_set(tiny_pairs, 60, 0), alias_set(tiny_pairs, 30, 1)


def test_behavior_tells_what_no_text_says(tiny_pairs: PairTokenizer, sets: tuple[TrainingSet, TrainingSet]) -> None:
    found = {}
    for behavior in (True, False):
        network = make_barl(tiny_pairs, behavior=behavior)
        result = fit_views(network, tiny_pairs, sets[0], CONFIG, ViewLosses(), sets[1])
        logits = all_logits(network, tiny_pairs, sets[1], 64)[:, 0]
        found[behavior] = auc(logits, sets[1].relevant > 0.5)
        assert result.metrics["auc"] == pytest.approx(found[behavior], abs=1e-6)
    assert found[True] > found[False] + 0.1
    assert {"loss_mutual", "loss_contrast_items", "loss_contrast_queries"} <= set(result.history[0])


def test_the_same_seed_gives_the_same_weights(
    tiny_pairs: PairTokenizer, sets: tuple[TrainingSet, TrainingSet], one_thread: None
) -> None:
    short = CONFIG.model_copy(update={"epochs": 2})
    states = []
    for _ in range(2):
        network = make_barl(tiny_pairs)
        fit_views(network, tiny_pairs, sets[0], short, ViewLosses(), sets[1])
        states.append(network.state_dict())
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


def test_small_batches_leave_the_contrast_out(
    tiny_pairs: PairTokenizer, sets: tuple[TrainingSet, TrainingSet], caplog: pytest.LogCaptureFixture
) -> None:
    short = CONFIG.model_copy(update={"epochs": 1, "batch_size": 8})
    result = fit_views(make_barl(tiny_pairs), tiny_pairs, sets[0], short, ViewLosses())
    assert "loss_contrast_items" not in result.history[0]
    assert caplog.text.count("fewer than 32 distinct targets") == 1


def test_view_losses_are_those_of_the_paper(tiny_pairs: PairTokenizer, sets: tuple[TrainingSet, TrainingSet]) -> None:
    batch = collate(sets[0], np.arange(40), tiny_pairs)
    network = make_barl(tiny_pairs).eval()
    views = network.views(*network_inputs(batch))
    settings = ViewLosses(min_targets=2)
    parts = view_losses(settings, views, batch["group"], batch["item"])
    apart = (views.text.sigmoid() - views.behavior.sigmoid()) ** 2
    both = views.has_items & views.has_queries
    torch.testing.assert_close(parts["mutual"], apart[both].mean())
    products = views.neighbor_queries @ views.item.T / 0.2
    same = batch["item"][:, None] == batch["item"][None]
    rows = [
        products[i, ~same[i] | (torch.arange(40) == i)].logsumexp(0) - products[i, i]
        for i in torch.nonzero(views.has_queries)[:, 0].tolist()
    ]
    torch.testing.assert_close(parts["contrast_queries"], torch.stack(rows).mean())
    assert view_losses(ViewLosses(contrast=0, mutual=0), views, batch["group"], batch["item"]) == {}


def test_neighbors_travel_with_their_pairs(tiny_pairs: PairTokenizer, sets: tuple[TrainingSet, TrainingSet]) -> None:
    rows = np.array([7, 3, 3, 90])
    network = make_barl(tiny_pairs).eval()
    with torch.inference_mode():
        whole = network(*network_inputs(collate(sets[0], np.arange(len(sets[0])), tiny_pairs)))
        taken = network(*network_inputs(collate(sets[0].take(rows), np.arange(4), tiny_pairs)))
    torch.testing.assert_close(taken, whole[rows], atol=1e-5, rtol=0)
    assert sets[0].fingerprint() != alias_set(tiny_pairs, 60, 2).fingerprint()
    with pytest.raises(DataError, match="do not join"):
        join(sets)


def test_what_cannot_be_trained_is_refused(tiny_pairs: PairTokenizer, sets: Any, tiny_network: Any) -> None:
    with pytest.raises(ConfigError, match="EiSRC reads no neighbors"):
        fit_views(tiny_network, tiny_pairs, sets[0], CONFIG, ViewLosses())
    plain = TrainingSet.build(tiny_pairs, ["a", "b"], ["c", "d"], relevant=[0, 1])
    with pytest.raises(DataError, match="has no neighbors"):
        fit_views(make_barl(tiny_pairs), tiny_pairs, plain, CONFIG, ViewLosses())


def test_lists_built_for_a_day_know_no_later_event(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    def counts(day: int, query: str, item: str, clicks: int) -> dict[str, Any]:
        return {
            "day": pa.scalar(day, pa.int32()).as_py(), "query": query, "item_id": item, "exposures": 10,
            "clicks": clicks, "deepest": 1, "position_sum": 0, "positioned": 10,
        }  # fmt: skip

    rows = [counts(1, "tea", "a", 5), counts(2, "tea", "b", 9), counts(3, "tea", "a", 0), counts(3, "mug", "b", 9)]
    types = {"day": pa.int32(), "query": pa.string(), "item_id": pa.string(), "deepest": pa.int8()}
    schema = pa.schema([(name, types.get(name, pa.int64())) for name in rows[0]])
    with write_artifact(tmp_path / "mined", "mined", {"neighbors": {"min_exposures": 1}}) as folder:
        pq.write_table(pa.Table.from_pylist(rows, schema), folder / "daily.parquet")
    history = history_before(tmp_path / "mined", [1, 2, 3, 4], {"a": "A", "b": "B"}, 5)
    assert history.of("tea", "x", 1) == ([], [])
    assert history.of("tea", "x", 2) == (["a"], [])
    assert history.of("tea", "b", 3) == (["a"], [])
    assert history.of("tea", "a", 3) == (["b"], [])
    assert history.of("tea", "x", 4) == (["b", "a"], [])
    assert history.of("x", "b", 4)[1] == ["mug", "tea"]
    # An event of the day itself, or later, changes nothing.
    with write_artifact(tmp_path / "more", "mined", {"neighbors": {"min_exposures": 1}}) as folder:
        rows += [counts(3, "tea", "c", 10), counts(9, "tea", "a", 10)]
        pq.write_table(pa.Table.from_pylist(rows, schema), folder / "daily.parquet")
    later = history_before(tmp_path / "more", [3], {"a": "A", "b": "B", "c": "C"}, 5)
    assert later.of("tea", "x", 3) == history.of("tea", "x", 3)
    assert open_artifact(tmp_path / "more").kind == "mined"
    # As Spark writes it: a folder of part files, one of them without rows.
    with write_artifact(tmp_path / "parts", "mined", {"neighbors": {"min_exposures": 1}}) as folder:
        (folder / "daily.parquet").mkdir()
        for number, part in enumerate((rows[:1], [], rows[1:])):
            pq.write_table(pa.Table.from_pylist(part, schema), folder / "daily.parquet" / f"part-{number:05}.parquet")
    apart = history_before(tmp_path / "parts", [3], {"a": "A", "b": "B", "c": "C"}, 5)
    assert apart.of("tea", "x", 3) == later.of("tea", "x", 3)
