"""Does scoring leak? Resident memory over many scored pairs, beside a run that leaks on purpose.

    python benchmarks/bulk_memory.py --tiny --pairs 10000000 --threads 2 --out benchmarks/bulk_memory.json

Each run is a process of its own, of as many pairs: random queries with titles of the ESCI sample, with the caches of
scores and tokens on and full. The control keeps some bytes of every pair, and must be found out. ``--tiny`` scores by
a random network of hidden size 32 in the native engine: what could leak is the same code, and it ends in minutes.
Without it the shipped model scores.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from pertinent.bench import processor

ROOT = Path(__file__).resolve().parents[1]
LEAK = 64  # bytes of every pair
TITLES = 1_000
TINY = {"hidden_size": 32, "layers": 2, "heads": 2, "feed_forward_size": 64, "dropout": 0.0, "max_positions": 64}


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
    # So many titles that their tokens fit into the cache beside those of the last queries: tokenizing is slow.
    titles = [item.title for item in read_items(ROOT / "examples/data/esci/items.parquet")[:TITLES]]
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


def tiny_model(folder: Path) -> str:
    """A model folder with a small random network and the tokenizer of the shipped model."""
    from pertinent.artifact import open_artifact, write_artifact
    from pertinent.folders import shipped_folder
    from pertinent.models.store import build_network, load_pairs, save_network

    pairs = load_pairs(open_artifact(shipped_folder(), kind="model"))
    network = build_network({"type": "ei_src", "vocabulary_size": pairs.vocabulary_size, **TINY})
    with write_artifact(folder / "tiny", "model", {}) as aside:
        save_network(aside, network.eval(), pairs)
    return str(folder / "tiny")


def main() -> None:
    """Run both, each in a process of its own."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=10_000_000)
    parser.add_argument("--model", default=None)
    parser.add_argument("--tiny", action="store_true", help="a small random network instead of a model")
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
    with tempfile.TemporaryDirectory() as folder:
        runs = both(given, tiny_model(Path(folder)) if given.tiny else given.model)
    if given.out is not None:
        argv_told = " ".join(["python benchmarks/bulk_memory.py", *sys.argv[1:]])
        report = {"command": argv_told, "processor": processor(), "leak_of_control": LEAK, "runs": runs}
        given.out.write_text(json.dumps(report, indent=1) + "\n")


def both(given: argparse.Namespace, model: str | None) -> dict[str, dict[str, object]]:
    """The run as it is and the one that leaks, each in a process of its own."""
    runs = {}
    for name, leak in (("as it is", 0), ("control", LEAK)):
        settings = [
            *(["--model", model] if model else []),
            "--pairs",
            str(given.pairs),
            "--threads",
            str(given.threads),
        ]
        settings += ["--seed", str(given.seed), "--batch", str(given.batch), "--samples", str(given.samples)]
        argv = [sys.executable, __file__, *settings, "--leak", str(leak)]
        told = json.loads(subprocess.run(argv, check=True, capture_output=True, text=True).stdout)
        print(f"{name}: {told['pairs']} pairs, {told['bytes_per_pair']} bytes a pair, {told['last_mb']} MB at the end")
        runs[name] = told
    return runs


if __name__ == "__main__":
    main()
