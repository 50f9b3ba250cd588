"""The page on term classes says what the code does: mappings, columns, settings, and figures as measured."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest
import yaml

from pertinent.config import Config
from pertinent.lexicon.classes import OA_MINE_CLASSES, QUERYNER_CLASSES, TERM_CLASSES
from pertinent.lexicon.gazetteer import COLUMN_CLASSES, GazetteerConfig
from pertinent.lexicon.tagger import SHIPPED, TaggerConfig

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "term-classes.md").read_text(encoding="utf-8")
MEASURED = json.loads((ROOT / "benchmarks" / "term_classes.json").read_text(encoding="utf-8"))


def rows(header: str) -> list[list[str]]:
    """The cells of the table that begins with a header line."""
    lines = PAGE.partition(header)[2].splitlines()[2:]
    table = lines[: next(n for n, line in enumerate(lines) if not line.startswith("|"))]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table]


def by_class(classes: dict[str, str]) -> dict[str, set[str]]:
    return {name: {key for key, value in classes.items() if value == name} for name in TERM_CLASSES}


def words(cell: str) -> set[str]:
    return set(re.findall(r"`([^`]+)`", cell))


def test_the_mapping_is_that_of_the_code() -> None:
    told = {name: (words(query), words(title)) for name, query, title in rows("| class | QueryNER | OA-Mine |")}
    queries, titles = by_class(QUERYNER_CLASSES), by_class(OA_MINE_CLASSES)
    assert told == {name: (queries[name], titles[name]) for name in TERM_CLASSES}


def test_the_columns_are_those_of_the_code() -> None:
    told = {name: words(cell) for name, cell in rows("| class | columns and attributes |")}
    assert told == {name: columns for name, columns in by_class(COLUMN_CLASSES).items() if columns}


def test_ids_are_those_of_the_code() -> None:
    assert [(row[0], row[1]) for row in rows("| id | class |")] == [(str(n), c) for n, c in enumerate(TERM_CLASSES)]


@pytest.mark.parametrize(
    ("config", "header"),
    [(GazetteerConfig, "`GazetteerConfig`, also"), (TaggerConfig, "`TaggerConfig`:")],
)
def test_settings_and_defaults_are_those_of_the_code(config: type[Config], header: str) -> None:
    told = {name.strip("`"): cell for name, cell, _ in rows(header + PAGE.partition(header)[2].partition("|")[0])}
    defaults = config().plain()
    assert told.keys() == defaults.keys()
    for name, cell in told.items():
        if cell.startswith("`"):
            assert yaml.safe_load(cell.strip("`")) == defaults[name], name


def test_figures_are_those_of_the_measurement() -> None:
    for data in ("queryner", "oa_mine"):
        for name in (*TERM_CLASSES[1:], "micro"):
            scores = [system[data]["test"][name] for system in MEASURED["quality"].values()]
            numbers = [f"{score[key]:.3f}" for score in scores for key in ("precision", "recall", "f1")]
            assert f"| {name} | {scores[0]['spans']} | {' | '.join(numbers)} |" in PAGE


def test_speed_is_as_the_script_prints_it() -> None:
    script = importlib.util.spec_from_file_location("term_classes_benchmark", ROOT / "benchmarks" / "term_classes.py")
    assert script is not None and script.loader is not None
    module = importlib.util.module_from_spec(script)
    script.loader.exec_module(module)
    assert module.table(MEASURED["speed"]) in PAGE


def test_the_shipped_tagger_is_the_one_that_was_measured() -> None:
    manifest = json.loads((SHIPPED / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["metrics"] == MEASURED["quality"]["both"]
