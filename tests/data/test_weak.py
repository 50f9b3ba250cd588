"""Laws of weakly labeled pairs: what the rules say holds in the texts, and no judged query is among them."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from pertinent.cli import main
from pertinent.data.readers import read_table
from pertinent.data.samples import sample_path
from pertinent.data.weak import (
    WeakConfig,
    WeakPair,
    attribute_pairs,
    category_pairs,
    cluster_pairs,
    query_spans,
    span_pairs,
    weak,
)
from pertinent.errors import ConfigError, DataError
from pertinent.text import normalize, words


def chance() -> np.random.Generator:
    return np.random.default_rng(0)


def first(sample: str, file: str, rows: int) -> list[dict[str, str]]:
    table = read_table(sample_path(sample) / file)
    return [
        {name: str(cells[n]) if cells[n] is not None else "" for name, cells in table.columns.items()}
        for n in range(rows)
    ]


@pytest.fixture(scope="module")
def offers() -> list[dict[str, str]]:
    return first("pricerunner", "items.parquet", 600)


def test_members_of_a_cluster_are_relevant_and_near_other_clusters_are_not(offers: list[dict[str, str]]) -> None:
    pairs = list(cluster_pairs(offers, 1, chance()))
    names = {(row["cluster_title"], row["title"]) for row in offers}
    cluster_of = {row["title"]: row["cluster_title"] for row in offers}
    category = {row["cluster_title"]: row["category"] for row in offers}
    assert sum(pair.grade for pair in pairs) == len(offers)
    negatives = [pair for pair in pairs if not pair.grade]
    assert len(negatives) > 300
    for pair in pairs:
        assert ((pair.query, pair.title) in names) == bool(pair.grade)
    for pair in negatives:
        assert category[cluster_of[pair.title]] == category[pair.query]
        assert not set(words(pair.query)) <= set(words(pair.title))
        assert set(words(pair.query)) & set(words(pair.title))


def test_stated_attributes_are_in_relevant_titles_and_one_is_missing_in_others() -> None:
    rows = first("fashion", "items.parquet", 1500)
    pairs = list(attribute_pairs(rows, ("color", "category_3"), 1, chance()))
    assert Counter(pair.grade for pair in pairs)[1.0] > 100 and Counter(pair.grade for pair in pairs)[0.0] > 50
    for pair in pairs:
        stems = {word.removesuffix("s") for word in words(pair.title)}
        has_all = all(word.removesuffix("s") in stems for word in words(pair.query))
        assert has_all == bool(pair.grade)


def test_a_category_is_of_its_items() -> None:
    rows = first("fashion", "items.parquet", 800)
    of = {(row["category_3"], row["title"]) for row in rows}
    pairs = list(category_pairs(rows, "category_3", 2, chance()))
    assert {pair.grade for pair in pairs} == {0.0, 1.0}
    assert all(((pair.query, pair.title) in of) == bool(pair.grade) for pair in pairs)


def test_spans_are_read_from_tags_and_looked_for_in_titles() -> None:
    table = read_table(sample_path("queryner") / "ner.parquet")
    queries = query_spans(table)
    assert queries[0] == [("teeth whitening", "core_product_type"), ("sensitive teeth", "modifier")]
    assert len(queries) == 9705
    titles = [row["title"] for row in first("esci", "items.parquet", 3000)]
    pairs = list(span_pairs(queries[:800], titles, 1, chance()))
    core = {
        " ".join(text for text, _ in spans): [t for t, kind in spans if kind == "core_product_type"]
        for spans in queries
    }
    assert sum(pair.grade for pair in pairs) > 10
    for pair in pairs:
        stems = {word.removesuffix("s") for word in words(pair.title)}
        if pair.grade:
            assert {w.removesuffix("s") for w in words(pair.query)} <= stems
        assert core[pair.query]


@pytest.mark.parametrize("rows", [[], [{"title": "", "cluster_id": "1", "cluster_title": "Lamp", "kind": ""}]])
def test_nothing_gives_nothing(rows: list[dict[str, str]]) -> None:
    assert list(cluster_pairs(rows, 1, chance())) == []
    assert list(category_pairs(rows, "kind", 1, chance())) == []
    assert list(attribute_pairs(rows, ("kind",), 1, chance())) == []
    assert list(span_pairs([], [], 1, chance())) == []
    assert list(span_pairs([[("日本", "core_product_type")]], ["日本"], 1, chance())) == [
        WeakPair("日本", "日本", 1.0, "spans")
    ]


def write(path: Path, rows: list[list[str]]) -> str:
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return str(path)


def test_judged_queries_are_left_out_and_rules_that_disagree_are_dropped(tmp_path: Path) -> None:
    head = ["title", "cluster_id", "cluster_title", "kind", "color"]
    rows = [["Red lamp", "1", "RED  lamp", "lamp", "red"], ["Blue lamp", "2", "Blue lamp", "lamp", "blue"]]
    catalog = write(tmp_path / "catalog.csv", [head, *rows])
    judged = write(tmp_path / "judged.csv", [["query", "title"], ["red lamp", "a"]])
    out = tmp_path / "weak.csv"
    settings = {"clusters": catalog, "catalogs": catalog, "attributes": [["color", "kind"]], "categories": "kind"}
    both = weak(WeakConfig.build({**settings, "out": str(out)}))
    assert {normalize(q) for q in read_table(out).texts("query") if q} == {"red lamp", "blue lamp", "lamp"}
    assert both.left_out == 0
    less = weak(WeakConfig.build({**settings, "judged": judged, "out": str(out)}))
    table = read_table(out)
    assert "red lamp" not in {normalize(query) for query in table.need_texts("query")}
    assert less.left_out > 0
    assert set(table.columns) == {"query", "title", "grade", "rule"}
    with pytest.raises(DataError, match="no rule found a pair"):
        weak(WeakConfig.build({"catalogs": catalog, "attributes": [["brand"]], "categories": "none", "out": str(out)}))
    with pytest.raises(ConfigError, match="--clusters, --catalogs"):
        WeakConfig.build({"spans": catalog})


def test_the_same_seed_gives_the_same_bytes_and_training_reads_them(
    offers: list[dict[str, str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    head = ["title", "cluster_id", "cluster_title", "category"]
    table = write(tmp_path / "offers.csv", [head, *([row[name] for name in head] for row in offers)])
    made = []
    for name in ("a", "b"):
        assert main(["data", "weak", "--clusters", table, "--out", str(tmp_path / name), "--set", "limit=50"]) == 0
        made.append((tmp_path / name).read_bytes())
    assert made[0] == made[1]
    assert "cluster" in capsys.readouterr().out
    from pertinent.folders import shipped_folder
    from pertinent.lexicon.pairs import PairConfig, PairTokenizer
    from pertinent.training.data import read_examples

    (tmp_path / "a").rename(tmp_path / "weak.csv")
    examples, dropped = read_examples(
        str(tmp_path / "weak.csv"), PairTokenizer.load(shipped_folder(), PairConfig()), 0.5, frozenset()
    )
    assert examples.relevant.sum() == 50 and dropped == 0
