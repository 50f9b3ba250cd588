"""Scoring holds no memory of what it scored; the same measurement finds a leak that was put there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pertinent.artifact import Artifact

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "bulk_memory.py"


def bytes_a_pair(model: Path, leak: int) -> float:
    argv = [sys.executable, str(SCRIPT), "--model", str(model), "--pairs", "20000"]
    argv += ["--batch", "512", "--samples", "30", "--leak", str(leak)]
    done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return float(json.loads(done.stdout)["bytes_per_pair"])


# What is leaked in all has to be more than the memory that loading a model leaves free: 60 MB here.
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("leak", "least", "most"), [(0, -400, 400), (4096, 2_500, 5_000)], ids=["as it is", "with a leak"]
)
def test_memory_by_scored_pair(tiny_artifact: Artifact, leak: int, least: float, most: float) -> None:
    assert least < bytes_a_pair(tiny_artifact.path, leak) < most
