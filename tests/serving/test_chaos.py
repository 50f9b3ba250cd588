"""The chaos of the benchmarks, short: right answers beside all faults at once; and a server that is wrong is found."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pertinent.artifact import Artifact

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "serving_chaos.py"
SETTINGS = ["--round", "18", "--rate", "12", "--items", "60"]


def chaos(model: Path, out: Path, *more: str) -> dict[str, Any]:
    """What the script found, with its exit code."""
    command = [sys.executable, str(SCRIPT), *SETTINGS, *more, "--model", str(model), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert out.exists(), done.stderr[-2_000:]
    return {**json.loads(out.read_text()), "code": done.returncode}


@pytest.mark.slow
def test_no_answer_is_wrong_beside_all_faults_at_once(tiny_artifact: Artifact, tmp_path: Path) -> None:
    found = chaos(tiny_artifact.path, tmp_path / "found.json", "--minutes", "0.3")
    assert found["problems"] == [] and found["missing"] == []
    assert found["wrong"] == 0 and found["unexplained_failures"] == 0
    assert found["answers"]["200"] > 50 and len(found["answers_by_version"]) > 1
    assert found["held"] and found["code"] == 0


@pytest.mark.slow
def test_a_server_that_is_a_thousandth_off_now_and_then_is_found(tiny_artifact: Artifact, tmp_path: Path) -> None:
    found = chaos(
        tiny_artifact.path,
        tmp_path / "found.json",
        "--minutes",
        "0.05",
        "--corrupt",
        "10",
        "--only",
        "burst",
        "--round",
        "1",
    )
    assert found["wrong"] > 0 and found["unexplained_failures"] == 0
    assert not found["held"] and found["code"] == 1
