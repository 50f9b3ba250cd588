from __future__ import annotations

import csv
import json
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import duckdb
import numpy as np
import pytest

from pertinent import bulk
from pertinent.artifact import Artifact
from pertinent.bulk import BulkConfig, score_table
from pertinent.engine.scorer import Scorer
from pertinent.errors import ArtifactError, DataError

ROWS = [
    {"query": "tea", "title": "tea pot, green", "item_id": "1"},
    {"query": "tea", "title": 'coffee "mug"\nfor men', "item_id": "02"},
    {"query": "наушники", "title": "日本語 イヤホン", "item_id": "ü"},
    {"query": "usb", "title": "", "item_id": "4"},
    {"query": "usb", "title": "usb cable", "item_id": "5"},
]


@pytest.fixture(scope="module")
def scorer(tiny_artifact: Artifact) -> Scorer:
    return Scorer.load(tiny_artifact.path)


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".parquet":
        source = write(path.with_suffix(".jsonl"), rows)
        with duckdb.connect() as connection:
            connection.read_json(str(source), columns=dict.fromkeys(rows[0], "VARCHAR")).write_parquet(str(path))
    else:
        with open(path, "w", encoding="utf-8-sig", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


def read(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    if path.suffix == ".parquet":
        with duckdb.connect() as connection:
            relation = connection.read_parquet(str(path))
            return [dict(zip(relation.columns, row, strict=True)) for row in relation.fetchall()]
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ","))


def config(source: Path, out: Path, **more: Any) -> BulkConfig:
    return BulkConfig.build({"pairs": str(source), "out": str(out), "chunk": 2, "progress": False, **more})


@pytest.mark.parametrize("source", [".csv", ".tsv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("out", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_every_format_gives_the_scores_of_the_scorer(scorer: Scorer, source: str, out: str, tmp_path: Path) -> None:
    result = score_table(config(write(tmp_path / f"in{source}", ROWS), tmp_path / f"out{out}"), scorer)
    rows = read(result.path)
    assert [row["item_id"] for row in rows] == [row["item_id"] for row in ROWS]
    assert [row["title"] or "" for row in rows] == [row["title"] for row in ROWS]
    wanted = scorer.score_pairs([(row["query"], row["title"]) for row in ROWS])
    np.testing.assert_allclose([float(row["score"]) for row in rows], wanted, atol=1e-5)
    assert (result.rows, result.resumed) == (5, 0)
    assert {p.name for p in tmp_path.iterdir()} <= {f"in{source}", "in.jsonl", f"out{out}"}


def test_the_model_is_opened_from_the_config_and_progress_goes_to_stderr(
    tiny_artifact: Artifact, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"model": str(tiny_artifact.path), "backend": "torch", "progress": True}
    score_table(config(write(tmp_path / "in.csv", ROWS), tmp_path / "out.csv", **settings))
    out, err = capsys.readouterr()
    assert out == ""
    assert "scoring" in err


def test_a_killed_run_goes_on_after_its_last_part(scorer: Scorer, tmp_path: Path) -> None:
    source, out = write(tmp_path / "in.csv", ROWS), tmp_path / "out.csv"
    whole = score_table(config(source, tmp_path / "whole.csv"), scorer)
    calls: list[int] = []

    class Dying(Scorer):
        def score_pairs(self, pairs: Any) -> Any:
            calls.append(len(pairs))
            if len(calls) == 2:
                raise KeyboardInterrupt
            return super().score_pairs(pairs)

    dying = Dying(scorer.backend, scorer.pairs, version=scorer.version)
    with pytest.raises(KeyboardInterrupt):
        score_table(config(source, out), dying)
    assert not out.exists()
    assert [p.name for p in sorted((tmp_path / "out.csv.parts").iterdir())] == ["part-000000.jsonl", "plan.json"]
    result = score_table(config(source, out), dying)
    assert (result.resumed, calls) == (2, [2, 2, 2, 1])
    assert out.read_bytes() == whole.path.read_bytes()
    assert not (tmp_path / "out.csv.parts").exists()


def test_parts_of_another_plan_are_not_used(scorer: Scorer, tmp_path: Path) -> None:
    source, out = write(tmp_path / "in.csv", ROWS), tmp_path / "out.csv"
    parts = tmp_path / "out.csv.parts"
    parts.mkdir()
    (parts / "plan.json").write_text('{"chunk": 7}')
    (parts / "part-000000.jsonl").write_text('{"query": "x", "title": "y", "score": 9}\n')
    assert score_table(config(source, out), scorer).resumed == 0
    assert len(read(out)) == 5
    parts.mkdir()
    (parts / "mine.txt").write_text("keep")
    with pytest.raises(ArtifactError, match="not the folder of an earlier run"):
        score_table(config(source, out), scorer)
    assert (parts / "mine.txt").read_text() == "keep"


def test_resume_can_be_switched_off(scorer: Scorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = write(tmp_path / "in.csv", ROWS), tmp_path / "out.csv"
    monkeypatch.setattr(bulk, "_join", lambda parts, out: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        score_table(config(source, out), scorer)
    monkeypatch.undo()
    assert score_table(config(source, out, resume=False), scorer).resumed == 0


def test_columns_are_renamed_and_others_kept_as_text(scorer: Scorer, tmp_path: Path) -> None:
    rows = [{"search term": "tea", "name": 12, "price": 1.5}, {"search term": None, "name": "pot", "price": None}]
    source = write(tmp_path / "in.jsonl", rows)
    settings = {"rename": {"search term": "query", "name": "title"}, "keep": ["price", "color"]}
    score_table(config(source, tmp_path / "out.jsonl", **settings), scorer)
    got = read(tmp_path / "out.jsonl")
    assert [{k: row[k] for k in row if k != "score"} for row in got] == [
        {"query": "tea", "title": "12", "price": "1.5"},
        {"query": "", "title": "pot", "price": None},
    ]


BAD = {
    "wrong column": (
        "in.csv",
        "query,titel\na,b\n",
        r"in.csv: has no column 'title'; it has query, titel; rename the column 'titel'",
    ),
    "empty": ("in.csv", "", "is empty"),
    "header only": ("in.csv", "query,title\n", "has no rows"),
    "list": ("in.jsonl", '{"query": "a", "title": ["b"]}\n', "line 1, column 'title'.*: is a list"),
    "nothing closed": ("in.csv", 'query,title\na,"b\nc,d\n', "line 2: a quote is never closed"),
    "column twice": ("in.csv", "query,title,title\na,b,c\n", "line 1, column 'title': is in the header twice"),
    "ragged": ("in.csv", "query,title\na,b\nc\n", "line 3.*: has 1 cells, the header has 2"),
    "not json": ("in.jsonl", '{"query": "a", "title": "b"}\n{"query"\n', "line 2: is not JSON"),
    "no object": ("in.jsonl", "[1]\n", "line 1.*: is not an object"),
    "one value": ("in.json", "[]", "use .jsonl"),
    "binary": ("in.csv", "a\0b", "is binary"),
    "unknown format": ("in.xlsx", "x", "format"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_tables_are_refused_and_nothing_is_written(scorer: Scorer, name: str, tmp_path: Path) -> None:
    file, content, reason = BAD[name]
    (tmp_path / file).write_text(content)
    (tmp_path / "out.csv").write_text("old")
    with pytest.raises(DataError, match=reason):
        score_table(config(tmp_path / file, tmp_path / "out.csv"), scorer)
    assert (tmp_path / "out.csv").read_text() == "old"


def test_a_field_beyond_the_limit_and_outputs_that_cannot_be_written(scorer: Scorer, tmp_path: Path) -> None:
    source = write(tmp_path / "in.csv", ROWS)
    with pytest.raises(DataError, match="cannot be written in this format"):
        score_table(config(source, tmp_path / "out.json"), scorer)
    with pytest.raises(DataError, match="no such file; did you mean"):
        score_table(config(tmp_path / "inn.csv", tmp_path / "out.csv"), scorer)
    (tmp_path / "out.csv").mkdir()
    with pytest.raises(ArtifactError, match="cannot be written"):
        score_table(config(source, tmp_path / "out.csv"), scorer)
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="cannot write here"):
        score_table(config(source, tmp_path / "file" / "out.csv"), scorer)
    long = tmp_path / "long.csv"
    long.write_text('query,title\ntea,"' + "x" * 10_000_001 + '"\n')
    with pytest.raises(DataError, match="line 2: cannot be read as CSV"):
        score_table(config(long, tmp_path / "o.csv"), scorer)
    long.write_text('query,title\ntea,"' + "tea " * 250_000 + '"\n')
    with pytest.raises(DataError, match=r"line 2, column 'title'.*has 999,999 characters, 100,000 are allowed"):
        score_table(config(long, tmp_path / "o.csv"), scorer)
    long.write_text('query,title\ntea,"' + "tea " * 25_000 + '"\n')
    assert score_table(config(long, tmp_path / "o.csv"), scorer).rows == 1


@pytest.mark.parametrize("out", [".csv", ".jsonl", ".parquet"])
def test_columns_are_those_of_the_whole_file(scorer: Scorer, out: str, tmp_path: Path) -> None:
    rows = [{"query": "tea"}, {"title": "pot", "query": "tea"}, {"query": "tea", "title": "mug", "item_id": 3}]
    score_table(config(write(tmp_path / "in.jsonl", rows), tmp_path / f"out{out}", chunk=1), scorer)
    got = read(tmp_path / f"out{out}")
    assert [list(row) for row in got] == [["query", "title", "item_id", "score"]] * 3
    assert [row["item_id"] or None for row in got] == [None, None, "3"]
    assert [row["title"] or "" for row in got] == ["", "pot", "mug"]


def test_a_column_to_rename_has_to_be_there(scorer: Scorer, tmp_path: Path) -> None:
    source = write(tmp_path / "in.csv", ROWS)
    with pytest.raises(DataError, match="has no column 'product_name'"):
        score_table(config(source, tmp_path / "out.csv", rename={"product_name": "title"}), scorer)
    assert [path.name for path in tmp_path.iterdir()] == ["in.csv"]


def test_a_chunk_whose_worker_died_after_its_part_is_counted_and_not_scored_again(
    tiny_artifact: Artifact, scorer: Scorer, tmp_path: Path
) -> None:
    worker = bulk.ChunkScorer(str(tmp_path), str(tiny_artifact.path), scorer.backend.name, 1, scorer.version)
    batch = {"chunk": np.array([0, 1])}
    chunks = [tmp_path / f"chunk-{number:06d}.jsonl" for number in (0, 1)]
    for chunk, rows in zip(chunks, (ROWS[:3], ROWS[3:]), strict=True):
        chunk.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    held = chunks[1].read_bytes()
    assert worker(batch) == {"rows": [3, 2]}
    parts = {path: path.read_bytes() for path in tmp_path.glob("part-*.jsonl")}
    chunks[1].write_bytes(held)  # of the one chunk all is gone, of the other only the count
    assert worker(batch) == {"rows": [3, 2]}
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == parts


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    free: Any = SimpleNamespace(
        version="1", backend=SimpleNamespace(name="none"), score_pairs=lambda pairs: np.zeros(len(pairs), np.float32)
    )
    peaks = []
    for rows in (500, 2_500):  # 1 and 5 MB
        path = tmp_path / f"{rows}.jsonl"
        path.write_text((json.dumps({"query": "tea", "title": "pot " * 500}) + "\n") * rows)
        tracemalloc.start()
        score_table(config(path, tmp_path / "out.csv", chunk=100), free)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 5e5
