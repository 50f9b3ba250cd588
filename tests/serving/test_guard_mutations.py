"""The table of guards that are taken away one by one is about this code, these tests and this page of faults."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("guard_mutations", ROOT / "benchmarks" / "guard_mutations.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_guard_of_the_table_is_there_to_be_taken_away(script: Any) -> None:
    rows = script.chosen("")
    assert len(rows) > 150
    assert [problem for _, mutation in rows for problem in script.problems(mutation)] == []
    assert len({(mutation.edits, mutation.tests) for _, mutation in rows}) == len(rows)


def test_every_test_of_the_table_is_there_once(script: Any) -> None:
    known = script.nodes_by_name()
    assert all(script.nodes_of(mutation, known) for _, mutation in script.chosen(""))
    node = "tests/serving/test_wire_rules.py::TestHowMany::test_whole_numbers_however_they_are_written"
    assert known["test_whole_numbers_however_they_are_written"] == [node]


def test_every_fault_of_the_page_has_its_guards_or_says_why_not(script: Any) -> None:
    page = (ROOT / "docs/reliability.md").read_text(encoding="utf-8")
    faults = [row.split("|")[1].strip() for row in page.splitlines() if "`test_" in row]
    told = [*script.TABLE, *script.WITHOUT]
    for begin in set(told) - {script.CACHES}:
        assert sum(fault.startswith(begin) for fault in faults) == 1, begin
    assert [fault for fault in faults if sum(map(fault.startswith, told)) != 1] == []


def test_a_word_picks_guards_and_places_are_lines(script: Any) -> None:
    found = script.chosen("length and chunks")
    ((fault, mutation),) = found
    assert fault == "two or conflicting lengths"
    ((file, line),) = [place.split(":") for place in script.places(mutation)]
    assert file == "pertinent/serving/limits.py"
    assert re.search(r"len\(lengths\) > 1", (ROOT / file).read_text(encoding="utf-8").splitlines()[int(line) - 1])
    assert not script.chosen("no such word")
