"""Code blocks of README.md and docs/ as tests; what each kind of block does stands in CONTRIBUTING.md."""

from __future__ import annotations

import contextlib
import doctest
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from sybil import Document, Example, Region, Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser, SkipParser

ROOT = Path(__file__).parent
SEEN = ("examples", "configs", "tests", "docs", "pertinent")
RUN = {"pertinent": [sys.executable, "-m", "pertinent"], "cat": ["cat"], "head": ["head"], "ls": ["ls"]}
COMMAND_SECONDS = 300


def enter(namespace: dict[str, Any]) -> None:
    """Give a page a scratch folder of its own, in which the samples are seen."""
    scratch = Path(tempfile.mkdtemp(prefix="page-"))
    for name in SEEN:
        if (ROOT / name).is_dir():
            (scratch / name).symlink_to(ROOT / name)
    namespace["_before"], namespace["_scratch"] = Path.cwd(), scratch
    os.chdir(scratch)


def leave(namespace: dict[str, Any]) -> None:
    """Go back and remove the scratch folder."""
    os.chdir(namespace["_before"])
    shutil.rmtree(namespace["_scratch"], ignore_errors=True)


def steps(text: str) -> list[tuple[str, str]]:
    """Commands of a console block, each with the output below it; ``\\`` continues a command."""
    found: list[tuple[str, str]] = []
    for line in text.splitlines():
        if found and found[-1][0].endswith("\\") and line.startswith((">", " ")):
            command = found[-1][0][:-1].rstrip() + " " + line.lstrip("> ")
            found[-1] = (command, "")
        elif line.startswith("$ "):
            found.append((line[2:], ""))
        elif found:
            found[-1] = (found[-1][0], found[-1][1] + line + "\n")
    return found


def run(command: str) -> tuple[int, str] | None:
    """What the command printed, or None for one that is not run here (``make``, ``pip``...)."""
    words = shlex.split(command, comments=True)
    if not words or words[0] not in RUN:
        return None
    words = [*RUN[words[0]], *words[1:]]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120"}
    done = subprocess.run(
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        timeout=COMMAND_SECONDS,
        check=False,
    )
    return done.returncode, done.stdout


def evaluate_console(example: Example) -> str | None:
    """Run ``$ command`` lines; what is printed must equal the lines below, ``...`` standing for anything.

    A command has to succeed, unless what stands below it begins with ``error:``.
    """
    for command, expected in steps(example.parsed):
        done = run(command)
        if done is None:
            continue
        code, printed = done
        if code and not expected.startswith("error:"):
            return f"$ {command}\nended with {code}:\n{printed}"
        if not expected.strip():
            continue
        flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
        if not doctest.OutputChecker().check_output(expected, printed, flags):
            return f"$ {command}\nexpected:\n{expected}\nprinted:\n{printed}"
    return None


def evaluate_shell(example: Example) -> str | None:
    """Run the lines of a shell block that are commands of ours; they have to succeed."""
    for line in example.parsed.replace("\\\n", " ").splitlines():
        done = run(line)
        if done is not None and done[0]:
            return f"$ {line}\nended with {done[0]}:\n{done[1]}"
    return None


def evaluate_file(example: Example) -> None:
    """Save a block whose first line is ``# file: NAME``."""
    head = re.match(r"# file: (\S+)\n", example.parsed)
    if head:
        path = Path(head.group(1))
        with contextlib.suppress(FileExistsError):
            path.parent.mkdir(parents=True)
        path.write_text(example.parsed[head.end() :], encoding="utf-8")


class FileParser:
    """Blocks of the languages that are saved rather than run."""

    def __call__(self, document: Document) -> list[Region]:
        languages = ("yaml", "json", "csv", "text")
        return [region for language in languages for region in CodeBlockParser(language, evaluate_file)(document)]


pytest_collect_file = Sybil(
    parsers=[
        PythonCodeBlockParser(),
        CodeBlockParser("console", evaluate_console),
        CodeBlockParser("sh", evaluate_shell),
        FileParser(),
        SkipParser(),
    ],
    patterns=["README.md", "docs/*.md", "docs/**/*.md"],
    setup=enter,
    teardown=leave,
).pytest()
