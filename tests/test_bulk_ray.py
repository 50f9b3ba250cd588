"""Scoring a table on a real local Ray: the scores of one process, for any number of workers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pertinent.artifact import Artifact

pytestmark = [pytest.mark.ray, pytest.mark.slow]
TITLES = ["tea pot, green", "usb cable", "", "日本語 イヤホン", "coffee mug for men", "tea " * 60]

# One Ray for all runs, in a process of its own: what it starts and warns of stays there.
RUN = """
import json, sys
from pathlib import Path
import ray
from pertinent.bulk import BulkConfig, score_table
from pertinent.engine.scorer import Scorer

model, folder = sys.argv[1], Path(sys.argv[2])
scorer = Scorer.load(model, threads=1)

def run(name, **more):
    out = folder / f"{name}.jsonl"
    settings = {"pairs": str(folder / "pairs.csv"), "out": str(out), "model": model, "chunk": 7, "progress": False}
    return score_table(BulkConfig.build({**settings, **more}), scorer)

ray.init(num_cpus=6, include_dashboard=False, log_to_driver=False, configure_logging=False)
told = {"alone": run("alone").rows}
for workers in (1, 2, 4):
    told[str(workers)] = run(str(workers), ray=True, workers=workers).rows
# A run that was killed: two of its parts are missing, and a chunk was half written.
parts = folder / "resumed.jsonl.parts"
import pertinent.bulk as bulk
join, bulk._join = bulk._join, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
try:
    run("resumed")
except KeyboardInterrupt:
    pass
bulk._join = join
for number in (0, 3):
    (parts / f"part-{number:06d}.jsonl").unlink()
(parts / "chunk-000003.jsonl").write_text("half a")
told["resumed"] = run("resumed", ray=True, workers=1).resumed
ray.shutdown()
print(json.dumps(told))
"""


def test_scores_are_the_same_for_1_2_and_4_workers_and_after_a_kill(tiny_artifact: Artifact, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed")
    rows = [
        f'{query},"{title}",{n}' for n, title in enumerate(TITLES) for query in ("tea", "usb", "наушники", "", "mug")
    ]
    (tmp_path / "pairs.csv").write_text("query,title,item_id\n" + "\n".join(rows) + "\n", encoding="utf-8")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": "/tmp"}
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(tiny_artifact.path), str(tmp_path)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=580,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told == {"alone": 30, "1": 30, "2": 30, "4": 30, "resumed": 30 - 7 - 7}
    wanted = (tmp_path / "alone.jsonl").read_bytes()
    assert len(wanted.splitlines()) == 30
    for name in ("1", "2", "4", "resumed"):
        assert (tmp_path / f"{name}.jsonl").read_bytes() == wanted
    assert not list(tmp_path.glob("*.parts"))
