"""The table of faults in the docs names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = ("test_fault_suite.py", "test_fault_processes.py")


def test_every_fault_of_the_page_has_its_test() -> None:
    rows = [row for row in (ROOT / "docs/reliability.md").read_text(encoding="utf-8").splitlines() if "`test_" in row]
    files = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")}
    everything = "".join(files.values())
    assert len(rows) > 40
    for row in rows:
        cell = row.split("|")[3]
        assert set(re.findall(r"test_\w+\.py", cell)) <= set(files), row
        for name, file in re.findall(r"`(test_\w+)`(?: \((test_\w+\.py)\))?", cell):
            assert f"def {name}(" in (files[file] if file else everything), (name, file)


def test_every_test_of_the_fault_suite_is_in_the_page() -> None:
    page = (ROOT / "docs/reliability.md").read_text(encoding="utf-8")
    for name in HERE:
        found = re.findall(
            r"^def (test_\w+)\(", (ROOT / "tests/serving" / name).read_text(encoding="utf-8"), re.MULTILINE
        )
        assert [each for each in found if f"`{each}`" not in page] == []
