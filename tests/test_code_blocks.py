"""The runner of the docs' code blocks fails where a command fails."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

CONFTEST = Path(__file__).resolve().parents[1] / "conftest.py"


@pytest.fixture(scope="module")
def blocks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("code_blocks", CONFTEST)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def program(blocks: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """``say CODE TEXT`` prints the text and ends with the code."""
    code = "import sys; print(sys.argv[2]); sys.exit(int(sys.argv[1]))"
    monkeypatch.setitem(blocks.RUN, "say", [sys.executable, "-c", code])


def example(text: str) -> Any:
    return SimpleNamespace(parsed=text)


@pytest.mark.usefixtures("program")
@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("$ say 0 fine\nfine\n", None),
        ("$ say 0 fine\n", None),
        ("$ other 1 x\ny\n", None),
        ("$ say 2 'error: no'\nerror: no\n", None),
        ("$ say 2 'error: no'\nerror: ...\n", None),
        ("$ say 0 fine\nother\n", "expected:"),
        ("$ say 2 'error: no'\n", "ended with 2"),
        ("$ say 2 'error: no'\n...\n", "ended with 2"),
        ("$ say 1 fine\nfine\n", "ended with 1"),
        ("$ say 2 'error: no'\nerror: yes\n", "expected:"),
        ("$ say 0 fine\nfine\n$ say 2 'error: no'\n", "ended with 2"),
    ],
)
def test_a_console_block_fails_where_a_command_does(blocks: ModuleType, text: str, problem: str | None) -> None:
    said = blocks.evaluate_console(example(text))
    assert said is None if problem is None else problem in said


@pytest.mark.usefixtures("program")
def test_a_shell_block_fails_where_a_command_does(blocks: ModuleType) -> None:
    assert blocks.evaluate_shell(example("say 0 'error: but fine'\n# a remark\nother 1 x\n")) is None
    assert "ended with 3" in blocks.evaluate_shell(example("say 0 a\nsay 3 \\\nb\n"))
