"""Laws of studies: nothing is done twice, a changed setting is, the table says what was measured."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pertinent.artifact import open_artifact
from pertinent.config import read_yaml
from pertinent.errors import ConfigError
from pertinent.evaluation.compare import compare, compare_means, mean_estimates
from pertinent.evaluation.evaluate import evaluate_scores
from pertinent.lexicon.pairs import PairConfig, PairTokenizer
from pertinent.models.interchange import export_hugging_face
from pertinent.records import Judgment
from pertinent.studies import StudyConfig, run_study
from pertinent.training.data import JudgedData
from pertinent.training.parts import hold_out, industries_of

WORDS = [
    "wireless",
    "earbuds",
    "bluetooth",
    "headphones",
    "case",
    "usb",
    "cable",
    "charger",
    "coffee",
    "mug",
    "tea",
    "pot",
    "green",
    "water",
    "bottle",
]
STUDIES = Path(__file__).parents[1] / "configs" / "studies"


@pytest.fixture(scope="module")
def judgments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty judged pairs in three splits: relevant where the title has a word of the query."""
    path = tmp_path_factory.mktemp("shop") / "judgments.csv"
    random = np.random.default_rng(0)
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["query", "title", "grade", "split"])
        for number, word in enumerate(WORDS):
            split = ("train", "train", "valid", "test")[number % 4]
            for place in range(4):
                others = random.choice([w for w in WORDS if w != word], size=3, replace=False).tolist()
                title = [word, *others] if place % 2 else others
                writer.writerow([word, " ".join(title), place % 2, split])
    return path


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory, network_maker: Any, tiny_tokenizer: Any) -> str:
    """A tiny BERT folder, as Hugging Face would save it."""
    pairs = PairTokenizer(tiny_tokenizer, PairConfig(query_length=8, item_length=24, positions="running"))
    folder = tmp_path_factory.mktemp("bert") / "start"
    export_hugging_face(network_maker("ei_src", pairs.vocabulary_size), pairs, folder)
    return str(folder)


@pytest.fixture
def config(judgments: Path, start: str, tmp_path: Path) -> dict[str, Any]:
    train = {
        "start": start,
        "layers": [0],
        "epochs": 1,
        "graph": False,
        "pairs": {"query_length": 8, "item_length": 24},
        "model": {"dropout": 0.0},
        "bootstrap": 0,
    }
    rival = {"start": start, "layers": [0], "epochs": 1, "max_length": 48}
    return {
        "title": "tiny",
        "judgments": str(judgments),
        "seeds": [0, 1],
        "bootstrap": 50,
        "against": "BM25",
        "out": str(tmp_path / "study"),
        "systems": [
            {"type": "bm25", "name": "BM25"},
            {"type": "bi_encoder", "name": "cosine", "start": start, "pairs": {"query_length": 8, "item_length": 24}},
            {"type": "train", "name": "ours", "train": train},
            {"type": "sentence_transformers", "name": "theirs", "train": rival},
        ],
    }


def test_a_study_trains_measures_and_is_not_done_twice(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    study = run_study(StudyConfig.build(config))
    out = Path(config["out"])
    rows = {row.name: row for row in study.rows}
    assert rows["BM25"].mean["auc"].value == 1.0  # the planted word decides
    assert [len(row.evaluations) for row in study.rows] == [1, 1, 2, 2]
    assert rows["BM25"].difference == {}
    assert rows["ours"].difference["auc"].value == pytest.approx(rows["ours"].mean["auc"].value - 1.0)
    saved = json.loads((out / "study.json").read_text())
    assert saved == study.plain()
    assert saved["systems"]["theirs"]["parameters"] > 0
    assert (out / "table.md").read_text().count("| ours") == 2
    assert "<svg" in (out / "report.html").read_text()

    monkeypatch.setattr("pertinent.studies._BUILDERS", {})  # nothing may be built again
    assert run_study(StudyConfig.build(config)).plain() == saved
    for system in config["systems"]:  # nor where the same settings are written in another order
        if "train" in system:
            system["train"] = dict(reversed(system["train"].items()))
    assert run_study(StudyConfig.build(config)).plain() == saved


def test_a_changed_setting_does_that_system_again(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    config["systems"] = config["systems"][:2]
    run_study(StudyConfig.build(config))
    config["systems"][1]["layers"] = [0]
    monkeypatch.delitem(__import__("pertinent.studies", fromlist=["x"])._BUILDERS, "bm25")
    run_study(StudyConfig.build(config))  # BM25 is read, the bi-encoder built


def test_a_changed_model_behind_a_path_is_measured_again(
    config: dict[str, Any], tmp_path: Path, network_maker: Any, artifact_maker: Any, tiny_pairs: Any
) -> None:
    config["systems"] = [config["systems"][0], {"type": "model", "name": "mine", "model": str(tmp_path / "model")}]
    versions = []
    for seed in (0, 1):
        network = network_maker("ei_src", tiny_pairs.vocabulary_size, seed)
        artifact = artifact_maker(tmp_path / "model", network, tiny_pairs, graph=False)
        study = run_study(StudyConfig.build(config))
        assert study.rows[1].facts["version"] == artifact.version
        versions.append(artifact.version)
    assert versions[0] != versions[1]


def test_changed_examples_behind_a_path_are_learned_anew(config: dict[str, Any], tmp_path: Path) -> None:
    examples = tmp_path / "examples.csv"
    ours = config["systems"][2]
    ours["train"] = {**ours["train"], "examples": [str(examples)]}
    config |= {"systems": [ours], "seeds": [0], "against": None}
    versions = []
    for text in ("wireless,green tea pot,0", "wireless,green tea pot,1", "wireless,green tea pot,1"):
        examples.write_text(f"query,title,grade\n{text}\n")
        versions.append(run_study(StudyConfig.build(config)).rows[0].facts["version"])
    assert versions[0] != versions[1] == versions[2]


def test_another_study_takes_trained_models_from_their_folder(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config |= {"systems": config["systems"][2:3], "seeds": [0], "against": None, "models": str(tmp_path / "models")}
    first = run_study(StudyConfig.build(config)).rows[0]
    monkeypatch.setattr("pertinent.training.run.fit", None)  # nothing may be trained again
    config |= {"robustness": True, "out": str(tmp_path / "robust")}
    second = run_study(StudyConfig.build(config)).rows[0]
    assert second.facts == first.facts
    assert second.mean["auc"].value == first.mean["auc"].value
    assert second.losses and not first.losses
    config["systems"][0]["train"] = {**config["systems"][0]["train"], "batch_size": 8}
    with pytest.raises(TypeError):
        run_study(StudyConfig.build(config))  # another model: it would be trained


def test_all_problems_are_told_before_anything_is_trained(config: dict[str, Any]) -> None:
    config["systems"][1]["start"] = "/nowhere/a"
    config["systems"][3]["train"] = {"start": "/nowhere/b", "epcohs": 1}
    with pytest.raises(ConfigError) as refused:
        run_study(StudyConfig.build(config))
    first, second = str(refused.value).splitlines()
    assert "cosine: /nowhere/a: no such folder" in first
    assert "theirs: train: epcohs: unknown key" in second
    assert not Path(config["out"]).exists()


def test_wrong_studies_are_refused(config: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="not a system; allowed: BM25, cosine"):
        StudyConfig.build({**config, "against": "nobody"})
    with pytest.raises(ConfigError, match="same name"):
        StudyConfig.build({**config, "systems": config["systems"][:1] * 2})
    with pytest.raises(ConfigError, match=r"give judgments: FILE, or sample: NAME"):
        StudyConfig.build({**config, "sample": "esci"})
    with pytest.raises(ConfigError, match=r"parts: \[3\] are not all numbers from 1 to 2"):
        StudyConfig.build({**config, "folds": 2, "parts": [3]})
    with pytest.raises(ConfigError, match="parts: are numbers of folds; set folds too"):
        StudyConfig.build({**config, "parts": [1]})
    with pytest.raises(ConfigError, match=r"ours: train: epcohs: unknown key; did you mean 'epochs'"):
        systems = [{"type": "train", "name": "ours", "train": {"epcohs": 1}}]
        run_study(StudyConfig.build({**config, "against": None, "systems": systems}))


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_study_loads_and_comes_back_equal(path: Path) -> None:
    config = StudyConfig.build(read_yaml(path), str(path))
    assert StudyConfig.build(config.plain()) == config


def test_means_over_runs_agree_with_single_runs() -> None:
    rows = [Judgment(f"q{i}", str(j), float(j % 2)) for i in range(12) for j in range(4)]
    random = np.random.default_rng(0)
    good, bad = (
        [
            evaluate_scores(
                np.array([r.grade for r in rows]) * lift + random.random(len(rows)),
                rows,
                name="x",
                positive_grade=1,
                bootstrap=200,
            )
            for _ in range(2)
        ]
        for lift in (1.0, 0.1)
    )
    mean = mean_estimates(good)["auc"]
    assert mean.value == pytest.approx(np.mean([each.metrics["auc"].value for each in good]))
    assert mean.low <= mean.value <= mean.high
    single, alone = compare(good[0], bad[0])["auc"], compare_means(good[:1], bad[:1])["auc"]
    assert (single.value, single.low, single.high) == pytest.approx((alone.value, alone.low, alone.high))
    above = compare_means(good, bad)["auc"]
    assert above.low > 0
    assert above.p_value < 0.05


def test_folds_measure_every_judgment_by_a_model_that_saw_no_judgment_of_its_query(config: dict[str, Any]) -> None:
    config |= {"folds": 2, "seeds": [0]}
    config["systems"] = [config["systems"][0], config["systems"][2]]
    out = Path(config["out"])
    half = run_study(StudyConfig.build({**config, "parts": [2]}))
    assert not (out / "ours-0-fold-1.json").exists()
    study = run_study(StudyConfig.build(config))
    tables = [list(csv.DictReader((out / f"judgments-fold-{n}-of-2.csv").read_text().splitlines())) for n in (1, 2)]
    held_out = [{row["query"] for row in table if row["split"] == "test"} for table in tables]
    assert held_out[0] | held_out[1] == set(WORDS)
    assert not held_out[0] & held_out[1]
    assert all(len(row.evaluations[0].scores) == 60 for row in study.rows)
    assert study.rows[0].mean["auc"].value == 1.0  # the scores are in the order of the judgments
    ours = [json.loads((out / f"ours-0-fold-{n}.json").read_text())["scores"] for n in (1, 2)]
    queries = [word for word in WORDS for _ in range(4)]
    joined = study.rows[1].evaluations[0].scores
    for number, part in enumerate(ours):
        assert part == [joined[place] for place, query in enumerate(queries) if query in held_out[number]]
        if number == 1:
            assert part == half.rows[1].evaluations[0].scores.tolist()
    assert "2 folds" in study.facts["data"] and "part" not in study.facts["data"]
    assert "part 2" in half.facts["data"] and len(half.rows[0].evaluations[0].scores) == len(ours[1])


def test_more_folds_than_queries_are_refused(config: dict[str, Any]) -> None:
    config |= {"folds": 50, "systems": config["systems"][:1]}
    with pytest.raises(ConfigError, match=r"folds: part \d+ of 50 has no judgment for test"):
        run_study(StudyConfig.build(config))


def test_another_split_is_measured_again(config: dict[str, Any]) -> None:
    config["systems"] = config["systems"][:1]
    run_study(StudyConfig.build(config))
    study = run_study(StudyConfig.build(config | {"split": "train"}))
    assert "split train: 32 pairs" in study.facts["data"]


def test_a_fraction_learns_from_fewer_queries_and_is_measured_alike(config: dict[str, Any]) -> None:
    train = config["systems"][2]["train"]
    config |= {"seeds": [0], "against": None}
    config["systems"] = [
        {"type": "train", "name": "all", "train": train},
        {"type": "train", "name": "half", "train": train, "fraction": 0.5},
    ]
    study = run_study(StudyConfig.build(config))
    table = list(csv.DictReader((Path(config["out"]) / "judgments-0.5.csv").read_text().splitlines()))
    learned = {row["query"] for row in table if row["split"] == "train"}
    assert len(learned) == 4  # of eight
    assert [len(row.evaluations[0].scores) for row in study.rows] == [12, 12]
    assert not np.array_equal(study.rows[0].evaluations[0].scores, study.rows[1].evaluations[0].scores)


def test_stages_go_on_from_one_another_and_are_shared(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    train = config["systems"][2]["train"]
    last = {key: train[key] for key in ("epochs", "graph", "bootstrap")}
    config |= {"seeds": [0], "against": None}
    config["systems"] = [
        {"type": "train", "name": "both", "before": [train], "train": last},
        {"type": "train", "name": "both, CAT", "before": [train], "train": last | {"adversarial": "cat"}},
    ]
    study = run_study(StudyConfig.build(config))
    (stage,) = (path for path in Path(config["out"]).glob("stage-*") if path.is_dir())
    for name in ("both-0", "both--cat-0"):
        assert open_artifact(Path(config["out"]) / name).config["start"] == str(stage)
    assert not np.array_equal(study.rows[0].evaluations[0].scores, study.rows[1].evaluations[0].scores)
    # Other settings of the first stage make it anew, and what follows from it.
    config["systems"] = [{**config["systems"][0], "before": [train | {"learning_rate": 1e-2}]}]
    other = run_study(StudyConfig.build(config))
    assert len([path for path in Path(config["out"]).glob("stage-*") if path.is_dir()]) == 2
    assert not np.array_equal(study.rows[0].evaluations[0].scores, other.rows[0].evaluations[0].scores)
    monkeypatch.setattr("pertinent.training.run.train", None)  # all is there
    run_study(StudyConfig.build(config))


def test_only_the_first_stage_may_have_a_start(config: dict[str, Any]) -> None:
    train = config["systems"][2]["train"]
    config["systems"] = [{"type": "train", "name": "both", "before": [train], "train": train}]
    with pytest.raises(ConfigError, match="both: only the first stage has a start"):
        StudyConfig.build(config | {"against": None})
    config["systems"] = [{"type": "train", "name": "both", "before": [train | {"epoch": 1}], "train": {}}]
    with pytest.raises(ConfigError, match="epochs"):
        run_study(StudyConfig.build(config | {"against": None}))


def test_an_industry_is_measured_by_a_model_that_learned_from_the_others(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pertinent.training.parts.FEWEST_QUERIES", 3)
    with open(config["judgments"], newline="") as file:
        rows = list(csv.DictReader(file))
    path = tmp_path / "segments.csv"
    names = {word: ("audio", "audio", "home", "home", "rare")[n % 5] for n, word in enumerate(WORDS)}
    names[WORDS[4]] = ""  # a query of no industry is always learned from
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, ["query", "title", "grade", "split", "segment"])
        writer.writeheader()
        writer.writerows({**row, "segment": names[row["query"]]} for row in rows)
    config |= {"judgments": str(path), "hold_out": "segment", "seeds": [0]}
    config["systems"] = [config["systems"][0], config["systems"][2]]
    study = run_study(StudyConfig.build(config))
    evaluation = study.rows[1].evaluations[0]
    assert sorted(evaluation.slices["segment"]) == ["(others)", "audio", "home"]
    assert len(evaluation.scores) == 4 * 14
    assert study.rows[0].mean["auc"].value == 1.0
    table = list(csv.DictReader((Path(config["out"]) / "judgments-without-audio.csv").read_text().splitlines()))
    held_out = {row["query"] for row in table if row["split"] == "test"}
    assert held_out == {word for word, name in names.items() if name == "audio"}
    assert "each segment held out once" in study.facts["data"]


def test_industries_of_like_names_share_neither_queries_nor_a_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("pertinent.training.parts.FEWEST_QUERIES", 2)
    named = ("Toys", "toys", " TOYS ", "Home & Kitchen", "Home-Kitchen", "Home & Kitchen", "Home-Kitchen", "others")
    rows = [
        Judgment(f"{word} {n}", f"{n}", float(g), title=word, segment=name)
        for n, (word, name) in enumerate(zip(WORDS, named * 2, strict=False))
        for g in (0, 1)
    ]
    found = industries_of(rows, {row.item_id: row.segment for row in rows})
    assert set(found.values()) == {"TOYS", "Home & Kitchen", "Home-Kitchen", "others"}
    parts = hold_out(JudgedData(rows, None, 1.0), found, tmp_path)
    assert len({part.source["judgments"] for part in parts}) == len({part.name for part in parts}) == 4
    for part in parts:  # what training reads again is what this part holds out
        held_out = {row.query for row in part.judged}
        table = list(csv.DictReader(Path(part.source["judgments"]).read_text().splitlines()))
        assert {row["query"] for row in table if row["split"] == "test"} == held_out
        assert not held_out & {row["query"] for row in table if row["split"] != "test"}


def test_ways_to_hold_out_that_cannot_be_are_refused(config: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="give one of them"):
        StudyConfig.build(config | {"folds": 2, "hold_out": "segment"})
    with pytest.raises(ConfigError, match="give items: FILE"):
        run_study(StudyConfig.build(config | {"hold_out": "category"}))
    with pytest.raises(ConfigError, match="at least two are wanted"):
        run_study(StudyConfig.build(config | {"hold_out": "segment"}))


def test_robustness_is_part_of_the_table_and_not_measured_twice(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config |= {"robustness": True, "seeds": [0]}
    config["systems"] = config["systems"][:2]
    study = run_study(StudyConfig.build(config))
    rows = {row.name: row for row in study.rows}
    typo = rows["BM25"].losses["typo"][0]
    assert typo.loss.value > 0.2  # the planted word is misspelled
    assert rows["cosine"].loss_difference["typo"].value == pytest.approx(
        rows["cosine"].losses["typo"][0].loss.value - typo.loss.value
    )
    text = (Path(config["out"]) / "table.md").read_text()
    assert "AUC lost when texts change" in text
    assert "How much more than BM25" in text
    saved = json.loads((Path(config["out"]) / "study.json").read_text())
    assert saved["systems"]["BM25"]["auc_lost"]["typo"]["changed"] == 8  # words of four letters or more
    monkeypatch.setattr("pertinent.studies._BUILDERS", {})
    assert run_study(StudyConfig.build(config)).plain() == saved
