"""What a newcomer gets wrong is answered with what to do, in the words of the command line."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import pytest

from pertinent.artifact import Artifact
from pertinent.cli import main
from pertinent.errors import ArtifactError
from pertinent.folders import locate

ITEMS = "item_id,title\na,Tea pot\nb,Größe ü cable\n"
JUDGMENTS = (
    "query,item_id,title,grade\ntea,a,Tea pot,1\ntea,b,Größe ü cable,0\npot,a,Tea pot,1\npot,b,Größe ü cable,0\n"
)
LOG = "user_id,arm,level\n" + "".join(f"u{n},{'ab'[n % 2]},view\n" for n in range(8))


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a catalog, judgments and a log of two arms, and the working folder of the test."""
    files = {"items.csv": ITEMS, "judgments.csv": JUDGMENTS, "log.csv": LOG}
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def told(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The error of a command that has to end with 2 and print no result."""
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    return captured.err


def printed(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(argv) == 0, capsys.readouterr().err
    return capsys.readouterr().out


# ---------------------------------------------------------------- columns


@pytest.mark.parametrize(
    "reader", [("evaluate", "bm25", "--judgments"), ("bulk", "--out", "out.csv", "--json", "--pairs")]
)
def test_a_renamed_column_that_is_not_there_is_never_passed_over(
    reader: tuple[str, ...], shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("j.csv").write_text(JUDGMENTS.replace("query,", "qry,", 1), encoding="utf-8")
    error = told(capsys, *reader, "j.csv", "--columns", "qurry=query")
    assert "has no column 'qurry', which is mapped to 'query'; it has qry, item_id" in error
    assert "did you mean qry=query?" in error


def test_a_column_renamed_to_no_name_of_ours_suggests_the_name_that_was_meant(
    shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("j.csv").write_text(JUDGMENTS.replace("query,", "qry,", 1), encoding="utf-8")
    error = told(capsys, "evaluate", "bm25", "--judgments", "j.csv", "--columns", "qry=quer")
    assert "has no column 'query'; it has quer, item_id, title, grade; 'quer' is no name of ours" in error
    assert "did you mean --columns qry=query?" in error


def test_a_needless_renaming_is_said_to_be_that(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = told(capsys, "score", "tea", "--items", "items.csv", "--model", "bm25", "--columns", "titel=title")
    assert "has a column 'title' already; leave titel=title out" in error
    swapped = ITEMS.replace("title", "name", 1)
    Path("named.csv").write_text(swapped, encoding="utf-8")
    error = told(capsys, "score", "tea", "--items", "named.csv", "--model", "bm25", "--columns", "title=name")
    assert "did you mean name=title, the other way round?" in error
    Path("asked.csv").write_text("user_id,query,item_id,level,time\nu,tea,a,view,1735700000\n", encoding="utf-8")
    error = told(capsys, "mine", "--log", "asked.csv", "--columns", "quer=query", "--out", "mined", "--json")
    assert "has a column 'query' already; leave quer=query out" in error


def test_a_table_that_is_no_log_of_two_arms_is_said_to_be_that(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = told(capsys, "compare", "items.csv")
    assert "items.csv: has no columns user_id, arm, level; it has item_id, title; a log of two arms has" in error
    assert "--columns yours=user_id" in error
    assert "'item_id' to 'user_id'" not in error
    Path("arms.csv").write_text(LOG.replace("user_id", "uid", 1), encoding="utf-8")
    assert "has no column user_id; it has uid, arm, level;" in (error := told(capsys, "compare", "arms.csv"))
    assert "--columns uid=user_id" in error


# ---------------------------------------------------------------- grades


def test_words_of_no_known_scale_lead_to_the_flag(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("words.csv").write_text("query,title,label\ntea,Tea pot,fabulous\ntea,Cup,bad\n", encoding="utf-8")
    for command in (("evaluate", "bm25"), ("train",)):
        error = told(capsys, *command, "--judgments", "words.csv")
        assert "['bad', 'fabulous'] is not known; name it with --scale NAME (scale in a settings file): esci, " in error
    error = told(capsys, "evaluate", "bm25", "--judgments", "words.csv", "--scale", "esci")
    assert "value 'fabulous': is not on the grade scale 'esci'; allowed: e, exact" in error
    assert "or name another with --scale" in error


def test_training_takes_a_scale(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "there is no grade scale 'stars'" in told(
        capsys, "train", "--judgments", "judgments.csv", "--scale", "stars"
    )


# ---------------------------------------------------------------- a file for a folder, and the other way round


def test_a_catalog_given_as_index_and_a_folder_given_as_catalog_say_what_to_give(
    shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = told(capsys, "score", "tea", "--index", "items.csv")
    assert "items.csv is a file; an index is a folder that pertinent index makes; for a catalog: --items items" in error
    Path("folder").mkdir()
    error = told(capsys, "score", "tea", "--items", "folder")
    assert (
        "folder is a folder without an index; give a catalog file, or make an index: pertinent index --items" in error
    )


def test_a_catalog_in_parts_is_a_catalog(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    Path("items.parquet").mkdir()
    for name in "ab":
        pq.write_table(pa.table({"item_id": [name], "title": [f"tea {name}"]}), f"items.parquet/part-{name}.parquet")
    assert "2 of 2 items, by bm25" in printed(capsys, "score", "tea", "--items", "items.parquet", "--model", "bm25")


# ---------------------------------------------------------------- what a command says when it is done


def test_evaluate_says_how_much_was_judged(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = printed(capsys, "evaluate", "bm25", "--judgments", "judgments.csv", "--positive-grade", "1")
    assert said.endswith("4 pairs of 2 queries, 2 relevant (grade 1 or more); 2 queries count in ranking metrics\n")


@pytest.mark.parametrize("argv", [("evaluate", "bm25", "--judgments", "judgments.csv"), ("compare", "log.csv")])
def test_the_folder_of_a_report_is_made(argv: tuple[str, ...], shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = printed(capsys, *argv, "--report", "new/folder/report.html")
    assert "report: new/folder/report.html" in said
    assert Path("new/folder/report.html").is_file()
    assert Path("new/folder/report.json").is_file()


def test_the_end_of_a_training_shows_quality_on_the_held_out_splits(capsys: pytest.CaptureFixture[str]) -> None:
    from pertinent.commands import show_trained
    from pertinent.training.run import TrainConfig

    known = {"value": 0.75, "low": 0.5, "high": 0.875}
    metrics: dict[str, Any] = {
        "valid": {"auc": known, "mrr": {**known, "value": None}},
        "test": {"auc": {**known, "low": None, "high": None}, "mrr": known},
        "selection": {"auc": 0.7, "step": 3, "steps": 4},
    }
    made = Artifact(Path("runs/model"), {"kind": "model", "version": "abc", "metrics": metrics})
    show_trained(made, TrainConfig(judgments="judgments.csv"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "model abc in runs/model"
    assert [line.split() for line in lines[1:4]] == [
        ["metric", "valid", "95%", "interval", "test", "95%", "interval"],
        ["auc", "0.7500", "0.5000", "to", "0.8750", "0.7500", "-", "to", "-"],
        ["mrr", "-", "0.5000", "to", "0.8750", "0.7500", "0.5000", "to", "0.8750"],
    ]
    assert lines[4:] == ["weights of step 3 of 4", "model card: runs/model/README.md"]


# ---------------------------------------------------------------- reviews


def test_a_review_that_nobody_filled_is_refused(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, titles in (("old.csv", ["Pot", "Cup"]), ("new.csv", ["Mug", "Größe"])):
        Path(name).write_text("query,title\n" + "".join(f"tea,{title}\n" for title in titles), encoding="utf-8")
    printed(capsys, "review", "make", "--control", "old.csv", "--treatment", "new.csv", "--out", "review")
    for extra in ((), ("--json",)):
        error = told(capsys, "review", "read", "review", *extra)
        assert (
            "review/sheet.csv: no row has both ratings; fill left_rating and right_rating with good, fair or" in error
        )
    with open("review/sheet.csv", encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    with open("half.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows([{**row, "left_rating": "good"} for row in rows])
    assert "half.csv: no row has both ratings" in told(capsys, "review", "read", "review", "--sheets", "half.csv")


# ---------------------------------------------------------------- what to start from


def test_a_start_is_fetched_only_where_that_is_asked_for(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: list[dict[str, Any]] = []

    def fetch(name: str, **named: Any) -> str:
        asked.append({"name": name, **named})
        raise OSError("not in the cache")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    for name, meant in {
        "typo": "give shipped, a model folder.*hub:OWNER/NAME",
        "shiped": "did you mean shipped",
    }.items():
        with pytest.raises(ArtifactError, match=f"{name}: no such folder; {meant}"):
            locate(name)
    assert asked == []
    with pytest.raises(ArtifactError, match=r"owner/name: .*nor .* local cache .*; to fetch it: hub:owner/name"):
        locate("owner/name")
    assert [call["local_files_only"] for call in asked] == [True]
    with pytest.raises(ArtifactError, match=r"hub:owner/name: cannot be fetched \(not in the cache\)"):
        locate("hub:owner/name")
    assert [call["local_files_only"] for call in asked] == [True, False]
    assert {call["name"] for call in asked} == {"owner/name"}


def test_a_mistyped_start_names_the_folder_that_was_meant(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("runs/model").mkdir(parents=True)
    error = told(capsys, "train", "--judgments", "words.csv", "--start", "runs/modle")
    assert "no such file" in error  # files come first
    judged = "".join(f"q{n},t{n},{n % 2}\n" for n in range(60))
    Path("many.csv").write_text(f"query,title,grade\n{judged}", encoding="utf-8")
    error = told(capsys, "train", "--judgments", "many.csv", "--start", "runs/modle")
    assert re.search(r"runs/modle: neither a folder here nor a model in .*; did you mean runs/model\?", error)


def test_a_network_of_another_type_needs_no_start(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    judged = "".join(f"q{n},t{n},{n % 2}\n" for n in range(60))
    Path("many.csv").write_text(f"query,title,grade\n{judged}", encoding="utf-8")
    error = told(capsys, "train", "--judgments", "many.csv", "--set", "model={type: barl_ase}")
    assert "model.type: the start is ei_src; to train barl_ase from random weights: start: null" in error
    assert "--set start=null" in error


# ---------------------------------------------------------------- nothing given


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        ("train", ("--judgments",)),
        ("pretrain", ("--titles", "--queries", "--examples")),
        ("data weak", ("--clusters", "--catalogs")),
    ],
)
def test_a_command_without_arguments_names_the_flags_it_needs(
    command: str, flags: tuple[str, ...], shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = told(capsys, *command.split())
    assert all(flag in error for flag in flags)
    assert "progress" not in error
    assert "got {" not in error


def test_an_unknown_sample_is_answered_with_those_that_would_do(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (("data", "synthesize", "--out", "made", "--sample", "foo"), ("train", "--set", "sample=foo")):
        error = told(capsys, *command)
        assert "there is no sample 'foo'; with judgments: esci, icecat\n" in error
    error = told(capsys, "data", "synthesize", "--out", "made", "--sample", "ubi")
    assert "the sample 'ubi' has no judgments; with judgments: esci, icecat" in error
