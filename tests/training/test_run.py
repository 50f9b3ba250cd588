"""Laws of the training stage: a whole artifact or none, its numbers are those of what it holds."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pertinent.artifact import Artifact, open_artifact
from pertinent.engine.scorer import Scorer
from pertinent.errors import ArtifactError, ConfigError, DataError, TrainingError
from pertinent.evaluation.evaluate import evaluate
from pertinent.lexicon.pairs import PairTokenizer
from pertinent.models.store import load_network
from pertinent.records import Judgment
from pertinent.training import checkpoints
from pertinent.training.run import TrainConfig, golden_pairs, starting_network, train

Build = Callable[..., TrainConfig]
SIZES = {"hidden_size": 32, "layers": 2, "heads": 2, "feed_forward_size": 64}


@pytest.fixture
def config(tmp_path: Path, tiny_tokenizer: Path, shop_rows: Any) -> Build:
    """Builds settings for a tiny run on judgments in a file."""
    path = tmp_path / "judgments.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["query", "title", "grade"])
        writer.writerows(shop_rows(60, 4, 0))

    def build(**changes: Any) -> TrainConfig:
        settings = {
            "judgments": str(path),
            "start": None,
            "tokenizer": str(tiny_tokenizer),
            "model": SIZES,
            "pairs": {"query_length": 6, "item_length": 12},
            "objective": [{"type": "softmax"}, {"type": "soft_target", "weight": 0.5}],
            "epochs": 2,
            "batch_size": 32,
            "learning_rate": 2e-3,
            "device": "cpu",
            "split_fractions": [0.6, 0.2, 0.2],
            "bootstrap": 20,
            "graph": False,
            "out": str(tmp_path / "model"),
        }
        return TrainConfig.build({**settings, **changes})

    return build


def held_out_rows(config: TrainConfig, shop_rows: Any) -> list[Judgment]:
    from pertinent.data.splits import split_by_query

    rows = shop_rows(60, 4, 0)
    splits = split_by_query([query for query, _, _ in rows], config.split_fractions)
    pairs = zip(rows, splits, strict=True)
    return [Judgment(q, str(i), g, title=t) for i, ((q, t, g), s) in enumerate(pairs) if s == "test"]


@pytest.mark.parametrize("calibration", ["platt", "isotonic", "none"])
def test_what_the_card_says_is_what_the_artifact_does(config: Build, shop_rows: Any, calibration: str) -> None:
    settings = config(calibration=calibration, weights_dtype="float16", licenses={"judgments": "CC0-1.0"})
    artifact = train(settings)
    assert TrainConfig.build(artifact.config) == settings
    scorer = Scorer.load(artifact.path, backend="torch")
    again = evaluate(scorer, held_out_rows(settings, shop_rows), positive_grade=1.0, bootstrap=20)
    for name in ("auc", "spearman", "ece", "accuracy", "ndcg@10"):
        assert again.metrics[name].value == pytest.approx(artifact.metrics["test"][name]["value"], abs=2e-3), name
    card = artifact.file("README.md").read_text()
    assert str(again.metrics["auc"]) in card
    for words in ("CC0-1.0", "float16", "## Limits", "softmax", "| test |", "seed 0"):
        assert words in card
    assert artifact.has("calibration.json") == (calibration != "none")
    thresholds = artifact.json("thresholds.json")
    assert thresholds["for_recall"]["99%"] <= thresholds["for_recall"]["90%"]
    assert len(artifact.json("golden.json")["pairs"]) == 20
    assert artifact.manifest["inputs"].keys() == {"judgments"}
    assert not Path(f"{settings.out}.checkpoints").exists()


def test_the_graph_is_written_and_scores_as_torch_does(config: Build) -> None:
    artifact = train(config(graph=True, max_steps=2))
    assert artifact.has("graph.onnx")
    query, titles = "bal dam", ["bal kur dam", "dam", "café"]
    onnx, reference = (Scorer.load(artifact.path, backend=name).score(query, titles) for name in ("onnx", "torch"))
    np.testing.assert_allclose(onnx, reference, atol=1e-4)


def test_tracker_logs_stay_when_checkpoints_go(config: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    train(config(report_to=["tensorboard"], max_steps=2))
    assert list((tmp_path / "model.logs").glob("events.out.tfevents.*"))
    assert not (tmp_path / "model.checkpoints").exists()


def test_the_same_config_gives_the_same_weights(config: Build, tmp_path: Path) -> None:
    first, second, other = (
        train(config(out=str(tmp_path / name), max_steps=3, seed=seed)) for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    digests = [each.manifest["files"]["model.safetensors"]["sha256"] for each in (first, second, other)]
    assert digests[0] == digests[1] != digests[2]


def test_training_goes_on_from_an_artifact_and_from_the_shipped_model(
    config: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = train(config(max_steps=3))
    bare = {"tokenizer": None, "model": None, "pairs": None, "max_steps": 2}
    second = train(config(start=str(first.path), out=str(tmp_path / "second"), learning_rate=1e-9, **bare))
    before, after = (load_network(artifact)[0].state_dict() for artifact in (first, second))
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, atol=1e-6, rtol=0)
    monkeypatch.setattr("pertinent.folders.shipped_folder", lambda: first.path)
    network, pairs = starting_network(config(start="shipped", **bare))
    assert torch.equal(network.state_dict()["pooler.weight"], before["pooler.weight"])
    assert pairs.config.query_length == 6
    late, _ = starting_network(config(**{**bare, "start": "shipped", "model": {"join_layer": 1}}))
    assert late.config.join_layer == 1, "the same weights may be joined later"
    assert torch.equal(late.state_dict()["pooler.weight"], before["pooler.weight"])
    classed, tagged = starting_network(config(**{**bare, "start": "shipped", "model": {"term_classes": True}}))
    assert classed.config.term_classes and tagged.tagger is not None, "and may be given term classes"
    assert torch.equal(classed.state_dict()["pooler.weight"], before["pooler.weight"])
    for change, words in (
        ({"model": {"join_layer": 2}}, "leaves no layer in which query and title meet"),
        ({"layers": [0]}, "layers: a model artifact keeps all its layers"),
        ({"model": {"hidden_size": 64}}, "model.hidden_size: 64, but the start has 32"),
        ({"pairs": {"query_length": 8}}, "pairs: .* but the start was made for"),
        ({"tokenizer": "elsewhere"}, "tokenizer: the start brings its own"),
    ):
        with pytest.raises(ConfigError, match=words):
            starting_network(config(**{**bare, "start": "shipped", **change}))


def test_training_starts_from_a_bert_folder(config: Build, tmp_path: Path, tiny_pairs: PairTokenizer) -> None:
    from pertinent.lexicon.pairs import PairConfig
    from pertinent.models.ei_src import EiSRC, EiSRCConfig
    from pertinent.models.interchange import export_hugging_face

    running = PairTokenizer(tiny_pairs.tokenizer, PairConfig(query_length=6, item_length=12, positions="running"))
    network = EiSRC(EiSRCConfig(vocabulary_size=running.vocabulary_size, **{**SIZES, "layers": 3}, max_positions=18))
    export_hugging_face(network, running, tmp_path / "bert")
    settings = config(start=str(tmp_path / "bert"), layers=[0, 2], tokenizer=None, model=None)
    started, _ = starting_network(settings)
    own = network.state_dict()["encoder.layers.2.query.weight"]
    assert torch.equal(started.state_dict()["encoder.layers.1.query.weight"], own)
    assert train(settings.model_copy(update={"max_steps": 2})).kind == "model"


def test_random_start_says_what_does_not_fit(config: Build) -> None:
    with pytest.raises(ConfigError, match="layers: picks layers of a start"):
        starting_network(config(layers=[0]))
    with pytest.raises(ConfigError, match=r"18 tokens a pair, but model\.max_positions is less"):
        starting_network(config(model={**SIZES, "max_positions": 10}))


def test_teacher_examples_join_the_judgments(config: Build, tmp_path: Path, shop_rows: Any) -> None:
    lines = [f"{query},{title},{6 * grade - 3}" for query, title, grade in shop_rows(70, 3, 0)]
    (tmp_path / "teacher.csv").write_text("\n".join(["query,title,teacher_logit", *lines]))
    objective = [{"type": "softmax"}, {"type": "margin_mse", "weight": 0.1}]
    artifact = train(config(examples=[str(tmp_path / "teacher.csv")], objective=objective, max_steps=3))
    assert (
        "extra training pairs were left out because their queries are held out"
        in artifact.file("README.md").read_text()
    )
    assert artifact.manifest["inputs"].keys() == {"judgments", "examples.0"}


def test_validation_pairs_of_one_kind_leave_scores_uncalibrated(
    config: Build, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "narrow.csv"
    rows = ["query,title,grade,split", *(f"bal,dam {n},{n % 2},train" for n in range(8)), "kur,dam,0,valid"]
    path.write_text("\n".join(rows))
    artifact = train(config(judgments=str(path), max_steps=2))
    assert "scores stay uncalibrated" in caplog.text
    assert not artifact.has("calibration.json") and not artifact.has("thresholds.json")
    assert "nothing was fitted" in artifact.file("README.md").read_text()
    assert "test" not in artifact.metrics


def test_a_killed_stage_resumes_to_the_same_artifact(
    config: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(eval_every=2, early_stopping=0)
    whole = train(settings.model_copy(update={"out": str(tmp_path / "whole")}))
    monkeypatch.setattr("pertinent.training.run.write_artifact", _killed)
    with pytest.raises(KeyboardInterrupt):
        train(settings)
    monkeypatch.undo()
    assert not Path(settings.out).exists()
    resumed = train(settings.model_copy(update={"resume": True}))
    digests = [each.manifest["files"]["model.safetensors"]["sha256"] for each in (whole, resumed)]
    assert digests[0] == digests[1]


def _killed(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_a_failed_run_leaves_the_old_model_as_it_was(config: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    before = train(config(max_steps=2))
    monkeypatch.setattr("pertinent.training.run.fit", _fails)
    with pytest.raises(TrainingError):
        train(config(max_steps=2, seed=4))
    assert open_artifact(before.path).version == before.version


def _fails(*_: Any, **__: Any) -> None:
    raise TrainingError("the loss is nan")


def test_a_folder_of_something_else_is_refused_before_anything_is_read(config: Build, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("")
    with pytest.raises(ArtifactError, match="is not an artifact"):
        train(config(out=str(tmp_path / "mine"), judgments="missing.csv"))


def test_two_runs_to_one_folder_exclude_each_other(config: Build) -> None:
    settings = config()
    with (
        checkpoints.locked(f"{settings.out}.checkpoints"),
        pytest.raises(ArtifactError, match="another run"),
    ):
        train(settings)


def test_missing_judgments_name_the_file(config: Build, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"judgment\.csv"):
        train(config(judgments=str(tmp_path / "judgment.csv")))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"epoch": 3}, ["epoch: unknown key", "did you mean 'epochs'"]),
        ({"learning_rate": "2e-5x"}, ["learning_rate"]),
        ({"objective": []}, ["objective"]),
        ({"objective": [{"type": "margin_mse", "clip": -1}]}, ["objective.0.clip"]),
        ({"sample": "esci"}, ["give --judgments FILE (the setting judgments), or a judged sample"]),
        ({"split_fractions": [0.5, 0.1, 0.1]}, ["add to 1"]),
        ({"epochs": 0, "batch_size": 0}, ["epochs", "batch_size"]),
        ({"pairs": {"query_lenght": 3}}, ["pairs.query_lenght", "query_length"]),
    ],
)
def test_wrong_settings_are_named_with_their_path(config: Build, changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        config(**changes)
    assert all(word in str(caught.value) for word in words)


def test_golden_pairs_are_few_and_spread() -> None:
    rows = [Judgment("tv", str(number), 1.0, title=str(number)) for number in range(101)]
    assert [pair.title for pair in golden_pairs(rows)][::19] == ["0", "100"]
    assert len(golden_pairs(rows[:3])) == 3
    assert golden_pairs([]) == []


def test_artifact_is_of_kind_model(config: Build) -> None:
    artifact = train(config(max_steps=1))
    assert isinstance(artifact, Artifact)
    assert artifact.metrics["selection"]["steps"] == 1
