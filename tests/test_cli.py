from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pertinent import bench, cli, commands, doctor
from pertinent.artifact import Artifact, open_artifact
from pertinent.cli import COMMANDS, load, main
from pertinent.errors import MissingExtraError

ITEMS = """item_id,title
a,wireless earbuds with case
b,"steel water bottle, 2 pack"
c,Kopfhörer für Männer “black”
d,wireless earbuds with case
e,日本語 のケース
"""
JUDGMENTS = """query,item_id,title,grade,segment
wireless earbuds,a,wireless earbuds with case,1,us
wireless earbuds,b,"steel water bottle, 2 pack",0,us
wireless earbuds,c,Kopfhörer für Männer “black”,0.5,us
water bottle,b,"steel water bottle, 2 pack",1,de
water bottle,e,日本語 のケース,0,de
water bottle,a,wireless earbuds with case,0,de
"""


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a catalog and judgments, and the working folder of the test."""
    (tmp_path / "items.csv").write_text(ITEMS, encoding="utf-8")
    (tmp_path / "judgments.csv").write_text(JUDGMENTS, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def model(tiny_artifact: Artifact, shop: Path) -> Path:
    """A model folder that a test may damage."""
    return Path(shutil.copytree(tiny_artifact.path, shop / "model"))


def ask(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """What a command prints, which has to succeed."""
    code = main(argv)
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return captured.out


def ask_json(capsys: pytest.CaptureFixture[str], *argv: str) -> Any:
    printed = ask(capsys, *argv, "--json")
    assert printed.count("\n") == 1
    return json.loads(printed)


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The error lines of a command that has to end with 2, printing nothing and writing nothing."""
    before = sorted(str(path) for path in Path.cwd().rglob("*"))
    code = None
    try:
        code = main(argv)
    except SystemExit as stop:  # argparse
        code = stop.code
    captured = capsys.readouterr()
    assert code == 2, captured
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert lines
    assert all(line.startswith("error: ") for line in lines), captured.err
    assert all(len(line) < 600 for line in lines)
    assert "Traceback" not in captured.err
    assert sorted(str(path) for path in Path.cwd().rglob("*")) == before
    return captured.err


def run(*argv: str, **named: Any) -> subprocess.CompletedProcess[str]:
    """The command line as users run it, in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **named.pop("env", {})}
    return subprocess.run(
        [sys.executable, "-m", "pertinent", *argv],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
        check=False,
        **named,
    )


# ---------------------------------------------------------------- the table itself


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example_and_its_settings(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    command = COMMANDS[name]
    assert command.examples
    for example in command.examples:
        assert example in text
        assert example.startswith(f"pertinent {name}")
    for setting in load(command.config).model_fields:
        assert f"  {setting}: " in text
    assert "--json" in text
    assert "--set" in text


@pytest.mark.parametrize("name", COMMANDS)
def test_every_flag_fills_a_setting_that_exists(name: str) -> None:
    command = COMMANDS[name]
    fields = load(command.config).model_fields
    assert {flag.setting.partition(".")[0] for flag in command.flags} <= set(fields)
    assert callable(load(command.run))
    assert callable(load(command.show))


@pytest.mark.parametrize("name", COMMANDS)
def test_the_examples_in_help_are_accepted_by_the_parser(name: str) -> None:
    import shlex

    for example in COMMANDS[name].examples:
        arguments = cli.build_parser().parse_args(shlex.split(example)[1:])
        assert arguments.command == name


def test_no_command_prints_help(capsys: pytest.CaptureFixture[str]) -> None:
    text = ask(capsys)
    assert all(re.search(rf"^\s+{name}\s", text, re.MULTILINE) for name in COMMANDS)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert re.fullmatch(r"pertinent \d+\.\d+\.\d+\n", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["scroe"], "did you mean score?"),
        (["xyzzy"], "invalid choice: 'xyzzy'"),
        (["score", "a", "--tpo", "3"], "did you mean --top?"),
        (["train", "--lexicon", "lex"], "unrecognized arguments: --lexicon lex; did you mean --set lexicon=lex?; see:"),
        (["train", "--learning-rate=0.1"], "did you mean --set learning_rate=0.1?; see: pertinent train --help"),
        (["export", "--min-spearman", "0.9"], "did you mean --set min_spearman=VALUE?"),
        (["bench", "--qurey", "tea"], "unrecognized arguments: --qurey; see: pertinent bench --help"),
        (["score", "a", "--lexicon", "b"], "unrecognized arguments: --lexicon b; see: pertinent score --help"),
        (["score", "a", "--zzzzzz"], "unrecognized arguments: --zzzzzz; see: pertinent score --help"),
        (["score", "a", "b", "--items", "x.csv"], "unrecognized arguments: b"),
        (["score", "a", "--top", "ten"], "'ten' is not a whole number from 1"),
        (["score", "a", "--top", "0"], "'0' is not a whole number from 1"),
        (["score", "a", "--columns", "title"], "is not of the form product_name=title"),
        (["bench", "--candidates", "many"], "--candidates"),
        (["score"], "query is required"),
        (["score", "a"], "give a catalog with --items FILE"),
        (["score", " ", "--items", "items.csv"], "the query is empty"),
        (["score", "a", "--items", "items.csv", "--index", "index"], "one of them"),
        (["evaluate"], "--judgments is required"),
        (["index"], "--items is required"),
        (["index", "--items", "items.csv"], "--out is required"),
        (["export", "--no-int8"], "--out is required for a model that comes with pertinent"),
        (["export", "model"], "--judgments is required to compare int8 with float32; or give --no-int8"),
        (["study"], "required: FILE"),
        (["bench", "--candidates", "0"], "0 is not a number of items"),
        (
            ["bench", "--backends", "tpu"],
            "'tpu' is not a backend; allowed: native, native-int8, torch, onnx, onnx-int8, cuda",
        ),
        (["score", "a", "--items", "items.csv", "--set", "top"], "--set top: expected a.b=value"),
        (["score", "a", "--items", "items.csv", "--set", "tpo=1"], "tpo: unknown key; did you mean 'top'?"),
        (["score", "a", "--items", "items.csv", "--set", "top=-1"], "top: Input should be greater than or equal to 1"),
        (["score", "a", "--config", "nowhere.yaml"], "nowhere.yaml: no such config file"),
    ],
)
def test_a_wrong_command_line_is_one_line_with_the_fix(
    argv: list[str], expected: str, shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert expected in refused(capsys, *argv)


# ---------------------------------------------------------------- what the commands give


def test_score_ranks_the_catalog(shop: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = ask_json(capsys, "score", "wireless earbuds", "--items", "items.csv", "--model", "model", "--top", "4")
    results = found["results"]
    assert [row["rank"] for row in results] == [1, 2, 3, 4]
    assert found["items"] == 5
    assert set(results[0]) == {"rank", "item_id", "title", "score", "truncated", "model"}
    scores = {row["item_id"]: row["score"] for row in results}
    assert list(scores.values()) == sorted(scores.values(), reverse=True)
    assert all(0 <= score <= 1 for score in scores.values())
    assert found["model"] == results[0]["model"] == "model"
    assert found["version"] == open_artifact(model).version
    order = [row["item_id"] for row in results if row["item_id"] in "ad"]
    assert order == sorted(order)  # equal titles: equal scores, order of the catalog


def test_the_index_ranks_as_the_catalog(shop: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = ask_json(capsys, "index", "model", "--items", "items.csv", "--out", "index")
    assert made["kind"] == "index"
    assert made["metrics"]["items"] == 5
    direct = ask_json(capsys, "score", "water bottle", "--items", "items.csv", "--model", "model")
    for flag in ("--items", "--index"):
        indexed = ask_json(capsys, "score", "water bottle", flag, "index", "--model", "model")
        assert [row["item_id"] for row in indexed["results"]] == [row["item_id"] for row in direct["results"]]
        assert [row["score"] for row in indexed["results"]] == pytest.approx([r["score"] for r in direct["results"]])
    text = ask(capsys, "index", "model", "--items", "items.csv", "--out", "index")
    assert "index" in text
    assert "refuses" not in text
    assert "needs the titles" in refused(capsys, "score", "a", "--index", "index", "--model", "bm25")


@pytest.mark.parametrize("name", ["bm25", "tfidf"])
def test_baselines_rank_and_are_measured(name: str, shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = ask_json(capsys, "score", "wireless earbuds", "--items", "items.csv", "--model", name, "--top", "2")
    assert [row["item_id"] for row in found["results"]] == ["a", "d"]
    measured = ask_json(capsys, "evaluate", name, "--judgments", "judgments.csv", "--positive-grade", "1")
    assert measured["metrics"]["auc"]["value"] == 1.0
    again = ask_json(
        capsys, "evaluate", name, "--judgments", "judgments.csv", "--items", "items.csv", "--positive-grade", "1"
    )
    assert again["metrics"]["auc"]["value"] == 1.0
    assert again["metrics"]["ndcg@10"]["value"] > 0.9


def test_evaluate_prints_one_object_with_intervals(shop: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["evaluate", "model", "--judgments", "judgments.csv", "--positive-grade", "1", "--set", "bootstrap=50"]
    found = ask_json(capsys, *argv, "--report", "report.html")
    for name in ("auc", "spearman", "pearson", "macro_f1", "accuracy", "ndcg@10"):
        assert set(found["metrics"][name]) >= {"value", "low", "high"}
    assert (shop / "report.html").read_text(encoding="utf-8").lstrip().lower().startswith("<!doctype html>")
    text = ask(capsys, *argv, "--report", "report.html")
    assert "ndcg@10" in text
    assert "report: report.html" in text


def test_evaluate_takes_labels_on_a_named_scale(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = "query,title,label\ncase,black case,E\ncase,steel bottle,I\ncase,phone case,S\n"
    Path("labels.csv").write_text(rows)
    found = ask_json(
        capsys, "evaluate", "bm25", "--judgments", "labels.csv", "--scale", "esci", "--positive-grade", "1"
    )
    assert found["pairs"] == 3
    assert found["relevant_pairs"] == 1
    argv = ("evaluate", "bm25", "--judgments", "labels.csv", "--scale", "ESCI", "--set", "bootstrap=0")
    assert ask_json(capsys, *argv, "--positive-grade", "Substitute")["relevant_pairs"] == 2
    for wrong in ("Great", "nan", "2", "I", "0"):
        error = refused(capsys, *argv, "--positive-grade", wrong)
        assert "give a number above 0 and at most 1, or a label of the scale 'esci'" in error


@pytest.mark.parametrize("argv", [["export", "--no-int8", "--out", "x"], ["export", "--format", "hugging_face"]])
def test_what_needs_torch_says_the_command_where_there_is_none(argv: list[str], tmp_path: Path) -> None:
    code = "import sys; sys.modules['torch'] = None; from pertinent.cli import main; sys.exit(main(sys.argv[1:]))"
    found = subprocess.run([sys.executable, "-c", code, *argv], cwd=tmp_path, capture_output=True, text=True)
    assert found.returncode == 2
    assert found.stderr == "error: this needs torch, which is not installed; run: pip install 'pertinent[train]'\n"
    assert list(tmp_path.iterdir()) == []


def test_settings_come_from_file_then_flags_then_set(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("score.yaml").write_text("query: water bottle\nitems: items.csv\nmodel: bm25\ntop: 1\n")
    assert len(ask_json(capsys, "score", "--config", "score.yaml")["results"]) == 1
    assert len(ask_json(capsys, "score", "--config", "score.yaml", "--top", "2")["results"]) == 2
    both = ask_json(capsys, "score", "--config", "score.yaml", "--top", "2", "--set", "top=3")
    assert len(both["results"]) == 3
    assert both["query"] == "water bottle"


def test_columns_of_any_name_are_read(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("theirs.csv").write_text("sku,product_name\n1,usb cable\n2,tea pot\n")
    argv = [
        "score",
        "tea pot",
        "--items",
        "theirs.csv",
        "--model",
        "bm25",
        "--columns",
        "sku=item_id,product_name=title",
    ]
    assert ask_json(capsys, *argv)["results"][0]["item_id"] == "2"


def test_plain_output_is_aligned_and_without_control_codes(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("odd.jsonl").write_text(
        json.dumps({"item_id": "1", "title": "tea\u001b[31m pot\nnew [bold]line[/bold]"}) + "\n"
    )
    text = ask(capsys, "score", "tea pot", "--items", "odd.jsonl", "--model", "bm25")
    assert "\x1b" not in text
    assert "[bold]line[/bold]" in text
    assert len(text.splitlines()) == 3


def test_a_terminal_gets_a_drawn_table(
    shop: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    text = ask(capsys, "score", "wireless earbuds", "--items", "items.csv", "--model", "bm25")
    assert "━" in text or "─" in text
    assert "Kopfhörer für Männer" in text


def test_a_title_of_a_megabyte_is_one_line_of_error_and_writes_nothing(
    shop: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("long.csv").write_text("item_id,title\n1," + "wireless " * 120_000 + "\n2,tea pot\n")
    for command in (["score", "wireless", "--model", "model"], ["index", "model", "--out", "made"]):
        assert main([*command, "--items", "long.csv"]) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("error: long.csv: line 2, column 'title', value 'wireless")
        assert "has 1,079,999 characters, 100,000 are allowed; shorten it" in error
    assert not Path("made").exists()


def test_a_long_title_is_scored_and_said_to_be_cut(shop: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("long.csv").write_text("item_id,title\n1," + "wireless " * 11_000 + "\n2,tea pot\n")
    found = ask_json(capsys, "score", "wireless", "--items", "long.csv", "--model", "model")
    assert {row["item_id"]: row["truncated"] for row in found["results"]} == {"1": True, "2": False}


def test_export_keeps_the_scores(shop: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = ask_json(capsys, "score", "tea pot", "--items", "items.csv", "--model", "model")
    made = ask_json(capsys, "export", "model", "--no-int8", "--out", "fast")
    assert made["kind"] == "model"
    after = ask_json(capsys, "score", "tea pot", "--items", "items.csv", "--model", "fast", "--backend", "onnx")
    assert [r["item_id"] for r in after["results"]] == [r["item_id"] for r in before["results"]]
    assert [r["score"] for r in after["results"]] == pytest.approx([r["score"] for r in before["results"]], abs=1e-4)


def test_export_says_what_the_int8_gate_found(shop: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = ask_json(capsys, "export", "model", "--judgments", "judgments.csv", "--out", "fast", "--set", "top=2")
    assert set(made["metrics"]["int8"]) >= {"passed", "spearman", "reasons"}
    assert open_artifact("fast").has("graph.int8.onnx") == made["metrics"]["int8"]["passed"]
    assert "model" in ask(capsys, "export", "model", "--no-int8", "--out", "fast")


def test_bench_measures_every_backend_in_its_own_process(
    shop: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["bench", "model", "--candidates", "3,20", "--turns", "2", "--items", "items.csv", "--backends", "onnx"]
    found = ask_json(capsys, *argv)
    assert [(row["name"], row["candidates"]) for row in found["rows"]] == [
        ("onnx", 3),
        ("onnx, indexed", 3),
        ("onnx", 20),
        ("onnx, indexed", 20),
    ]
    for row in found["rows"]:
        assert 0 < row["p50_ms"] <= row["p99_ms"]
        assert row["rss_mb"] > 10
        assert row["cold_s"] > 0
    assert "cold start s" in ask(capsys, *argv)
    assert "holds no titles" in refused(capsys, "bench", "model", "--candidates", "3", "--backends", "onnx")


def test_peak_memory_is_that_of_the_process_itself(tmp_path: Path) -> None:
    """A process begins with the peak of the one that started it, in what getrusage says."""
    child = "from pertinent.bench import _peak_mb; print(_peak_mb())"
    parent = f"""
import subprocess, sys
large = b"x" * (500 << 20)
print(subprocess.run([sys.executable, "-c", {child!r}], capture_output=True, text=True, check=True).stdout)
"""
    done = subprocess.run([sys.executable, "-c", parent], capture_output=True, text=True, timeout=120, check=True)
    assert 5 < float(done.stdout) < 300


def test_bench_says_when_titles_are_fewer_than_candidates(shop: Path, model: Path) -> None:
    def words(*candidates: int) -> str:
        return bench._titles_in_words(bench.BenchConfig(model="model", items="items.csv", candidates=[*candidates]))

    assert words(5) == "items.csv"
    assert words(2, 6) == "items.csv, which are 5; the others of 6 are these with their words turned round"


def test_bench_without_a_model_measures_both_shipped_ones() -> None:
    entered = {each.name: each.model for each in bench.contestants(bench.BenchConfig())}
    assert entered["exact"] == entered["exact, indexed"] == "shipped"
    assert entered["late-join"] == entered["late-join, indexed"] == "shipped-late"
    assert ("int8" in entered) == ("late-join int8" in entered)  # where the native engine is built, both have passed


def test_bench_measures_a_gpu_where_torch_finds_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "_usable_backends", lambda model: ["native", "native-int8", "onnx", "torch", "cuda"])
    entered = {each.name: each.runs for each in bench.contestants(bench.BenchConfig())}
    assert entered["gpu"] == entered["gpu, indexed"] == "cuda"
    assert list(entered.values()).count("cuda") == 2


def test_the_share_of_the_peak_leaves_out_what_is_looked_up() -> None:
    one = {"layers": 1, "hidden_size": 64, "feed_forward_size": 256}
    assert bench.pair_gflop(one, 5, 20) - bench.pair_gflop(one, 5, 20, tables=True) == pytest.approx(4 * 64**2 * 25e-9)
    two = {**one, "layers": 2}
    assert bench.pair_gflop(two, 5, 20) - bench.pair_gflop(two, 5, 20, tables=True) == pytest.approx(6 * 64**2 * 25e-9)


def test_bench_in_this_process(
    shop: Path, model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    Path("judged.csv").write_text("query,title,grade\n" + "".join(f"q{n % 3},tea pot {n},{n % 2}\n" for n in range(12)))
    config = bench.BenchConfig(model="model", items="items.csv", candidates=[2, 4], turns=1, judgments="judged.csv")
    entered = bench.contestants(config)
    assert [each.name for each in entered] == ["exact", "exact, indexed"]  # the model has no int8 graph
    scores = []
    for number, contestant in enumerate(entered):
        part = bench.Part(config, contestant, str(tmp_path / f"index-{number}"))
        assert part.answer({"count": 2}) > 0
        assert part.answer({"memory": True}) > 10
        scores.append(part.answer({"judge": True}))
    assert len(scores[0]) == 12
    judged = bench._judged(config)
    depths = bench._depths(np.array(scores[0]), judged, config)
    assert [entry["depth"] for entry in depths] == [1, 2, 4]
    whole = bench._evaluated(np.array(scores[0]), judged, config).metrics["ndcg@10"].value
    assert depths[-1]["ndcg@10"] == pytest.approx(whole), "at full depth the order is the model's"
    (model / "tokenizer.json").unlink()
    assert "no backend can load this model" in refused(capsys, "bench", "model", "--items", "items.csv")
    assert "no such folder" in refused(capsys, "bench", "modle", "--items", "items.csv")
    monkeypatch.setattr(bench, "Path", _NoCpuInfo)
    assert bench.processor() == "instructions not known"


def test_the_page_of_a_bench_has_every_row_and_both_charts() -> None:
    quality = {"auc": {"value": 0.9, "low": 0.8, "high": 1.0}}
    rows = [
        bench.BenchRow(name, count, 2.0 * count, 3.0, 4.0, 100.0, 50.0, 0.5, 0.25, quality)
        for name in ("exact", "größe <b>")
        for count in (10, 100)
    ]
    depths = ({"depth": 1, "ndcg@10": 0.5, "low": 0.4, "high": 0.6}, {"depth": 10, "ndcg@10": 0.7, "low": 0, "high": 1})
    found = bench.bench_page(bench.Bench(tuple(rows), "2 cores", "items.csv", 100.0, depths))
    assert found.count("<figure") == 2
    assert found.count("<tr>") == 1 + len(rows)
    assert "25%" in found and "0.900" in found and "<b>" not in found.split("<style>")[1].split("</style>")[1]


def test_a_bench_process_that_fails_is_one_line(shop: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, "bench", "model", "--backends", "onnx-int8", "--items", "items.csv")
    assert said.startswith("error: backend onnx-int8: ")
    assert "has no graph.int8.onnx" in said


def test_baselines_read_renamed_columns(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("theirs.csv").write_text("search,name,grade\ntea,tea pot,1\ntea,usb cable,0\n")
    Path("catalog.csv").write_text("sku,name\n1,tea pot\n2,usb cable\n")
    argv = ["evaluate", "bm25", "--judgments", "theirs.csv", "--columns", "search=query,name=title,sku=item_id"]
    found = ask_json(capsys, *argv, "--items", "catalog.csv")
    assert found["metrics"]["auc"]["value"] == 1.0
    argv[-1] = "search=query,name=title"
    assert ask_json(capsys, *argv)["metrics"]["auc"]["value"] == 1.0


def test_a_study_prints_its_table(capsys: pytest.CaptureFixture[str]) -> None:
    commands.show_study("| model | auc |\n| bm25 | 0.6 |", doctor.DoctorConfig())
    assert capsys.readouterr().out == "| model | auc |\n| bm25 | 0.6 |\n"


def test_distinct_titles_are_distinct_while_the_words_allow_it() -> None:
    titles = bench.distinct_titles(["a b c", "d e f"], 6)
    assert len(set(titles)) == 6
    assert bench.distinct_titles(["", "one"], 4) == ["", "one", "", "one"]


def test_plain_values_are_json() -> None:
    import numpy as np

    value = {"a": float("nan"), "b": (np.float32(0.5), Path("x")), 3: [float("inf"), None]}
    assert commands.plain(value) == {"a": None, "b": [0.5, "x"], "3": [None, None]}


@pytest.mark.slow
def test_train_makes_a_model_that_scores(shop: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kinds = ["usb cable", "water bottle", "tea pot", "wireless earbuds"]
    rows = [
        f"{query} {number},{title} for men,{int(query == title)},{split}"
        for number, split in enumerate(["train"] * 6 + ["valid"] * 3 + ["test"] * 3)
        for query in kinds
        for title in kinds
    ]
    Path("train.csv").write_text("query,title,grade,split\n" + "\n".join(rows) + "\n")
    argv = ["train", "--judgments", "train.csv", "--start", "model", "--epochs", "1", "--out", "trained"]
    made = ask_json(capsys, *argv, "--set", "bootstrap=20")
    assert (made["kind"], made["path"]) == ("model", "trained")
    assert made["metrics"]
    found = ask_json(capsys, "score", "tea pot", "--items", "items.csv", "--model", "trained")
    assert len(found["results"]) == 5
    text = ask(capsys, "bench", "trained", "--candidates", "2", "--turns", "1", "--backends", "onnx")
    assert "golden pairs" in text
    assert "exists and is not an artifact" in refused(capsys, *argv[:-1], "items.csv")


def test_show_artifact_prints_place_and_metrics(capsys: pytest.CaptureFixture[str], tiny_artifact: Artifact) -> None:
    measured = Artifact(tiny_artifact.path, {**tiny_artifact.manifest, "metrics": {"auc": 0.75, "nested": {"a": 1}}})
    commands.show_artifact(measured, doctor.DoctorConfig())
    text = capsys.readouterr().out
    assert f"model {tiny_artifact.version} in {tiny_artifact.path}" in text
    assert re.search(r"auc +0\.7500", text)
    assert "nested" not in text


# ---------------------------------------------------------------- bad input


def test_a_flipped_bit_in_the_model_is_found(shop: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = model / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    said = refused(capsys, "score", "tea", "--items", "items.csv", "--model", "model")
    assert "model.safetensors: SHA-256 is" in said
    assert "copy it again" in said
    for argv in (["index", "model", "--items", "items.csv", "--out", "out"], ["export", "model", "--no-int8"]):
        assert "SHA-256" in refused(capsys, *argv)
    assert "SHA-256" in refused(capsys, "evaluate", "model", "--judgments", "judgments.csv", "--positive-grade", "1")


@pytest.mark.parametrize("name", ["tokenizer.json", "model.safetensors", "manifest.json", "model.json"])
def test_a_missing_model_file_is_named(name: str, shop: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (model / name).unlink()
    assert name in refused(capsys, "score", "tea", "--items", "items.csv", "--model", "model")


def test_a_missing_model_folder_suggests_the_nearest(
    shop: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "did you mean model?" in refused(capsys, "score", "tea", "--items", "items.csv", "--model", "modle")


def test_a_folder_of_another_kind_is_refused(shop: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ask(capsys, "index", "model", "--items", "items.csv", "--out", "index")
    assert "is of kind 'index', but 'model'" in refused(
        capsys, "score", "x", "--items", "items.csv", "--model", "index"
    )
    assert "is of kind 'model', but 'index'" in refused(capsys, "score", "x", "--index", "model", "--model", "model")


BAD_ITEMS: dict[str, tuple[str, str]] = {
    "wrong column": ("item_id,titel\n1,tea\n", "no column 'title'"),
    "empty file": ("", "empty"),
    "no rows": ("item_id,title\n", "no rows"),
    "duplicated id": ("item_id,title\n1,tea\n1,pot\n", "value '1'"),
    "ragged row": ("item_id,title\n1,tea,pot\n", "line 2"),
    "empty title": ("item_id,title\n1,\n", "column 'title'"),
}
BAD_JUDGMENTS: dict[str, tuple[str, str]] = {
    "wrong column": ("query,title,grad\ntea,tea pot,1\n", "'grade'"),
    "empty file": ("", "empty"),
    "unknown grade word": ("query,title,label\ntea,tea pot,Exakt\n", "'Exakt'"),
    "not a number": ("query,title,grade\ntea,tea pot,nan\n", "line 2"),
    "out of range": ("query,title,grade\ntea,tea pot,4\n", "line 2"),
    "contradiction": ("query,item_id,title,grade\ntea,1,tea pot,1\ntea,1,tea pot,0\n", "line 3"),
}


@pytest.mark.parametrize("case", BAD_ITEMS)
def test_a_bad_catalog_is_one_line(case: str, shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content, expected = BAD_ITEMS[case]
    Path("bad.csv").write_text(content)
    said = refused(capsys, "score", "tea", "--items", "bad.csv", "--model", "bm25")
    assert said.startswith("error: bad.csv")
    assert expected in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("case", BAD_JUDGMENTS)
def test_bad_judgments_are_one_line(case: str, shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content, expected = BAD_JUDGMENTS[case]
    Path("bad.csv").write_text(content)
    scale = ["--scale", "esci"] if "label" in content else []
    argv = ["evaluate", "bm25", "--judgments", "bad.csv", "--positive-grade", "1", "--report", "report.html", *scale]
    said = refused(capsys, *argv)
    assert said.startswith("error: bad.csv")
    assert expected in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("name", ["itmes.csv", "items.xlsx", "."])
def test_a_catalog_that_is_no_table_is_one_line(
    name: str, shop: Path, tiny_artifact: Artifact, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(capsys, "score", "tea", "--items", name, "--model", str(tiny_artifact.path))
    assert said.count("\n") == 1
    if name == "itmes.csv":
        assert "items.csv" in said


def test_a_config_typo_names_file_key_and_suggestion(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("evaluate.yaml").write_text("judgements: judgments.csv\nbootstrap: many\npositive_grade: 1\n")
    lines = refused(capsys, "evaluate", "--config", "evaluate.yaml").splitlines()
    assert "error: evaluate.yaml: judgements: unknown key; did you mean 'judgments'?" in lines
    assert "error: evaluate.yaml: judgments: this setting is required" in lines
    assert any(line.startswith("error: evaluate.yaml: bootstrap: ") for line in lines)


def test_a_training_config_typo_writes_nothing(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("train.yaml").write_text("judgments: judgments.csv\nepohcs: 3\nobjective: [{type: softmax, wieght: 1}]\n")
    lines = refused(capsys, "train", "--config", "train.yaml", "--out", "runs/model").splitlines()
    assert "error: train.yaml: epohcs: unknown key; did you mean 'epochs'?" in lines
    assert "error: train.yaml: objective.0.wieght: unknown key; did you mean 'weight'?" in lines


@pytest.mark.parametrize("case", BAD_JUDGMENTS)
def test_training_on_bad_judgments_writes_nothing(case: str, shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content, expected = BAD_JUDGMENTS[case]
    Path("bad.csv").write_text(content)
    said = refused(capsys, "train", "--judgments", "bad.csv", "--out", "model")
    assert said.startswith("error: bad.csv")
    assert expected in said


def test_a_missing_extra_says_the_command(
    shop: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(*_: object, **__: object) -> None:
        raise MissingExtraError("this needs torch, which is not installed; run: pip install 'pertinent[train]'")

    monkeypatch.setattr(commands, "score", absent)
    assert "pip install 'pertinent[train]'" in refused(capsys, "score", "tea", "--items", "items.csv")


def test_an_unreadable_place_is_one_line(
    shop: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "runs/index")

    monkeypatch.setattr(commands, "score", full)
    assert refused(capsys, "score", "tea", "--items", "items.csv") == "error: runs/index: No space left on device\n"


def test_our_own_mistakes_are_not_dressed_up(
    shop: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "score", lambda config: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["score", "tea", "--items", "items.csv"])


# ---------------------------------------------------------------- doctor


def test_doctor_says_that_scoring_works(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = ask_json(capsys, "doctor", str(model))
    assert found["can_score"]
    checks = {check["name"]: check for check in found["checks"]}
    assert {"python", "cpu", "cores", "disk", "core", "extra train", "model"} <= set(checks)
    assert checks["backend onnx"]["state"] == "ok"
    assert checks["backend torch"]["state"] == "ok"
    assert checks["backend onnx-int8"]["state"] == "missing"
    command = "pertinent export model --int8 --judgments FILE --out FOLDER"
    assert command.replace("model", str(model)) in checks["backend onnx-int8"]["detail"]
    names = {"FILE": "judgments.csv", "FOLDER": "fast"}
    asked = [names.get(word, word) for word in command.split()[1:]]
    assert ask_json(capsys, *asked)["metrics"]["int8"]["reasons"]  # it ran, and the gate found too few pairs
    assert "scoring works here" in ask(capsys, "doctor", "model", "--verbose")


def test_doctor_ends_with_1_when_scoring_does_not_work(
    shop: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (model / "tokenizer.json").unlink()
    assert main(["doctor", "model"]) == 1
    text = capsys.readouterr().out
    assert "PROBLEM" in text
    assert "tokenizer.json: missing" in text
    assert "scoring does not work here yet" in text


def test_doctor_gives_the_exact_command_for_a_missing_extra(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        doctor.importlib.metadata, "requires", lambda name: ["numpy>=2", "nowhere-to-be-found>=1; extra == 'train'"]
    )
    found = ask_json(capsys, "doctor", "model")
    (check,) = [check for check in found["checks"] if check["name"] == "extra train"]
    assert check == {
        "name": "extra train",
        "state": "missing",
        "detail": "without nowhere-to-be-found",
        "fix": "pip install 'pertinent[train]'",
    }


def test_doctor_on_a_full_disk_and_without_an_installation(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def not_installed(name: str) -> list[str]:
        raise doctor.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(doctor.importlib.metadata, "requires", not_installed)
    monkeypatch.setattr(doctor, "LOW_DISK_BYTES", 1 << 60)
    monkeypatch.setattr(doctor, "Path", _NoCpuInfo)
    states = {check["name"]: check["state"] for check in ask_json(capsys, "doctor", str(model))["checks"]}
    assert states["disk"] == states["packages"] == "problem"


class _NoCpuInfo(type(Path())):  # type: ignore[misc]
    def read_text(self, *arguments: Any, **named: Any) -> str:
        if str(self) == "/proc/cpuinfo":
            raise FileNotFoundError(self)
        return super().read_text(*arguments, **named)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("", []), ("Features : neon asimd\n", []), ("flags\t\t: fpu avx2 avx_vnni\n", ["avx2", "avx vnni"])],
)
def test_cpu_flags(text: str, expected: list[str]) -> None:
    assert doctor.cpu_flags(text) == expected


# ---------------------------------------------------------------- as a process


def test_a_real_process_prints_json_only(shop: Path) -> None:
    done = run("score", "wireless earbuds", "--items", "items.csv", "--model", "bm25", "--json")
    assert done.returncode == 0
    assert done.stderr == ""
    assert json.loads(done.stdout)["results"][0]["item_id"] == "a"


def test_a_real_process_ends_with_2_and_one_line(shop: Path) -> None:
    done = run("score", "tea", "--items", "nowhere.csv", "--model", "bm25")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: nowhere.csv: ")
    assert done.stderr.count("\n") == 1


def test_titles_of_any_script_reach_a_terminal_that_cannot_show_them(shop: Path) -> None:
    ascii_only = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    plain = run("score", "ケース", "--items", "items.csv", "--model", "bm25", env=ascii_only)
    assert plain.returncode == 0, plain.stderr
    assert "Kopfh?rer" in plain.stdout
    told = run("score", "ケース", "--items", "items.csv", "--model", "bm25", "--json", env=ascii_only)
    assert {row["title"] for row in json.loads(told.stdout)["results"]} >= {"日本語 のケース"}


def test_a_reader_that_leaves_early_is_no_error(shop: Path) -> None:
    with open("many.csv", "w", encoding="utf-8") as file:
        file.write("item_id,title\n" + "".join(f"{row},tea pot number {row}\n" for row in range(5000)))
    command = f'"{sys.executable}" -m pertinent score tea --items many.csv --model bm25 --top 5000 | head -n 1'
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.startswith("rank")
    assert done.stderr == ""


INTERRUPTED_IN = {
    # A library that runs long in C looks for signals by itself, and gives Ctrl-C as an error of its own.
    "duckdb": """
    import duckdb
    print("ready", file=sys.stderr, flush=True)
    duckdb.connect().execute("select sum(a.range * b.range) from range(100000000) a, range(1000000) b")
""",
    "python": """
    print("ready", file=sys.stderr, flush=True)
    time.sleep(60)
""",
    "another error on the way out": """
    print("ready", file=sys.stderr, flush=True)
    try:
        time.sleep(60)
    finally:
        1 / 0
""",
}


@pytest.mark.parametrize("inside", INTERRUPTED_IN)
def test_interrupt_ends_with_130_and_without_traceback(inside: str, shop: Path) -> None:
    code = f"""
import sys, time
from pertinent import cli, commands
def wait(config):
{INTERRUPTED_IN[inside]}
commands.score = wait
sys.exit(cli.main(["score", "tea", "--items", "items.csv"]))
"""
    # A shell that runs the tests in the background has them ignore the signal, and so the child.
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        assert process.stderr is not None
        assert process.stderr.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert (out, err) == ("", "interrupted\n")


def test_interrupt_inside_the_process(
    shop: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(config: object) -> None:
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(commands, "score", interrupted)
    assert main(["score", "tea", "--items", "items.csv"]) == 130
    assert capsys.readouterr().err == "interrupted\n"
    assert signal.getsignal(signal.SIGINT) is before


def test_help_is_quick_and_loads_no_stage() -> None:
    code = """
import sys, time
from pertinent.cli import main
try:
    main(["--help"])
except SystemExit:
    pass
heavy = {"torch", "onnxruntime", "numpy", "pydantic", "tokenizers", "duckdb", "rich"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr

    # Processor time, so that other work on the machine does not count, beside what Python itself takes to start.
    def seconds(code: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=True, timeout=60)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime)

    bare = min(seconds("") for _ in range(5))
    full = min(seconds("from pertinent.cli import main; main(['--help'])") for _ in range(5))
    assert full - bare < 0.15, (full, bare)


# ---------------------------------------------------------------- what would be ignored is refused


@pytest.mark.parametrize("name", commands.BASELINES)
def test_a_backend_for_a_baseline_is_refused(shop: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = f"error: --backend torch runs a model's network; {name} has none, leave --backend out\n"
    for argv in (
        ("score", "tea", "--items", "items.csv", "--model", name, "--backend", "torch"),
        ("evaluate", name, "--judgments", "judgments.csv", "--backend", "torch"),
    ):
        assert refused(capsys, *argv) == wanted


@pytest.mark.parametrize("flag", ["--index", "--items"])
def test_columns_of_an_index_are_refused(model: Path, flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    ask(capsys, "index", str(model), "--items", "items.csv", "--out", "index")
    argv = ("score", "tea", flag, "index", "--model", str(model), "--columns", "name=title")
    assert refused(capsys, *argv).startswith("error: --columns names columns of a catalog; an index has none")


def test_epochs_are_whole_numbers(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for given in ("1.5", "0"):
        said = refused(capsys, "train", "--judgments", "judgments.csv", "--epochs", given)
        assert f"argument --epochs: '{given}' is not a whole number from 1" in said
