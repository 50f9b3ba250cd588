"""The soak of the benchmarks, short: right answers with bad clients and swaps; and a leak is found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pertinent.artifact import Artifact

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "serving_soak.py"
# So short a run finds only what leaks fast: half a megabyte of each of 10 requests a second is 300 a minute.
SETTINGS = ["--minutes", "0.2", "--rate", "10", "--items", "20", "--threads", "1", "--slope", "120"]


@pytest.mark.slow
def test_a_short_soak_holds_and_finds_a_leak(tiny_artifact: Artifact, tmp_path: Path) -> None:
    found: list[dict[str, Any]] = []
    for more in (["--swap-seconds", "2"], ["--swap-seconds", "60", "--leak", "500000"]):
        out = tmp_path / f"{len(found)}.json"
        command = [sys.executable, str(SCRIPT), *SETTINGS, *more, "--model", str(tiny_artifact.path), "--out", str(out)]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert out.exists(), done.stderr[-2_000:]
        found.append({**json.loads(out.read_text()), "code": done.returncode})
    good, leaking = found
    assert good["failed"] == 0 and good["wrong"] == 0 and good["misbehaving_clients"] > 0
    assert good["swaps"] >= 2 and len([count for count in good["answers_by_version"].values() if count]) == 2
    assert good["held"] and good["code"] == 0
    assert not leaking["held"] and leaking["code"] == 1 and leaking["wrong"] == 0
