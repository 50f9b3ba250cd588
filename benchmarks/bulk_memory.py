"""Does scoring leak? Resident memory over many scored pairs, beside a run that leaks on purpose.

    python benchmarks/bulk_memory.py --pairs 10000000 --out benchmarks/bulk_memory.json

Each run is a process of its own: random queries with titles of the ESCI sample, by the shipped model, with the
caches of scores and tokens on and full. The control keeps some bytes of every pair, and must be found out.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
LEAK = 64  # bytes of every pair


def measure(
    model: str | None, pairs: int, batch: int, samples: int, leak: int, seed: int, threads: int
) -> dict[str, object]:
    """Score so many pairs in this process; gives the slope in bytes a pair, and the samples."""
    from pertinent.data.readers import read_items
    from pertinent.engine.cache import MemoryScores, ScoreCaches, score_stamp
    from pertinent.engine.scorer import Scorer
    from pertinent.evaluation.memory import growth
    from pertinent.lexicon.token_cache import TokenCache

    scorer = Scorer.load(model, threads=threads)
    scorer.pairs.cache = TokenCache(2**20)
    stamp = score_stamp(scorer.pairs, scorer.version, scorer.backend.name)
    scorer.caches = ScoreCaches(stamp, [MemoryScores(2**20)])
    titles = [item.title for item in read_items(ROOT / "examples/data/esci/items.parquet")]
    words = sorted({word for title in titles for word in title.split()})
    random = np.random.default_rng(seed)
    kept: list[bytes] = []

    def step() -> int:
        rows = random.integers(0, len(titles), batch)
        queries = [" ".join(words[place] for place in random.integers(0, len(words), 3)) for _ in range(8)]
        scorer.score_pairs([(queries[n % 8], titles[row]) for n, row in enumerate(rows)])
        if leak:
            kept.append(b"x" * (leak * batch))  # zeros would be held by nobody until they are read
        return batch

    steps = max(1, pairs // (batch * samples))
    started = time.perf_counter()
    bytes_a_pair, work, held = growth(step, max(8, steps), samples, steps)
    return {
        "bytes_per_pair": round(bytes_a_pair, 3),
        "pairs": work[-1],
        "first_mb": round(held[0] / 1e6, 1),
        "last_mb": round(held[-1] / 1e6, 1),
        "seconds": round(time.perf_counter() - started, 1),
        "backend": scorer.backend.name,
        "samples": [[done, memory] for done, memory in zip(work, held, strict=True)],
    }


def main() -> None:
    """Run both, each in a process of its own."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=10_000_000)
    parser.add_argument("--control-pairs", type=int, default=None, help="pairs of the run that leaks")
    parser.add_argument("--model", default=None)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=2_048)
    parser.add_argument("--samples", type=int, default=40)
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--leak", type=int, default=None, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.leak is not None:
        sizes = given.pairs, given.batch, given.samples
        print(json.dumps(measure(given.model, *sizes, given.leak, given.seed, given.threads)))
        return
    runs = {}
    for name, leak, pairs in (("as it is", 0, given.pairs), ("control", LEAK, given.control_pairs or given.pairs)):
        more = ["--model", given.model] if given.model else []
        settings = [*more, "--pairs", str(pairs), "--threads", str(given.threads), "--seed", str(given.seed)]
        settings += ["--batch", str(given.batch), "--samples", str(given.samples)]
        argv = [sys.executable, __file__, *settings, "--leak", str(leak)]
        runs[name] = json.loads(subprocess.run(argv, check=True, capture_output=True, text=True).stdout)
        told = runs[name]
        print(f"{name}: {told['pairs']} pairs, {told['bytes_per_pair']} bytes a pair, {told['last_mb']} MB at the end")
    if given.out is not None:
        argv_told = " ".join(["python benchmarks/bulk_memory.py", *sys.argv[1:]])
        report = {"command": argv_told, "machine": platform.machine(), "leak_of_control": LEAK, "runs": runs}
        given.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
