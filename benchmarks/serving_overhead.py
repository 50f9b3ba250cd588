"""What the server adds to the bare engine for 3,000 items by id, measured in turns in one run.

    python benchmarks/serving_overhead.py

One process holds the engine; the server is another, with the same model, index and threads. Of each turn's
three: the engine scores the rows, the server answers `/v1/relevance` for their ids, the server answers for
one id (what HTTP itself costs). The overhead of a turn is the server's time less the engine's, and the same
by the server's own account: its total less what the queue spent on scoring. Writes serving_overhead.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from serving_process import machine, serving, write

from pertinent.data.samples import read_sample
from pertinent.engine.index import IndexConfig, ItemIndex
from pertinent.engine.scorer import Scorer
from pertinent.load.client import Pool, Target

QUERIES = ("wireless earbuds", "red wool socks", "usb c cable 2 m", "coffee mug", "trail shoe men 42")


def told(values: list[float]) -> dict[str, float]:
    """Median, p90 and p99 in milliseconds."""
    return {f"p{share}": round(float(np.percentile(values, share)), 3) for share in (50, 90, 99)}


async def measure(url: str, scorer: Scorer, index: ItemIndex, ids: list[str], items: int, turns: int) -> dict[str, Any]:
    """All times of the turns."""
    target = Target.of(url)
    pool = Pool(target, 1)
    random = np.random.default_rng(0)
    engine, server, one, own, differences = [], [], [], [], []
    for turn in range(turns + 5):
        rows = random.integers(len(ids), size=items)
        query = QUERIES[turn % len(QUERIES)]
        body = json.dumps({"query": query, "item_ids": [ids[row] for row in rows]}).encode()
        request = target.request("POST", "/v1/relevance", body)
        small = target.request("POST", "/v1/relevance", json.dumps({"query": query, "item_ids": [ids[0]]}).encode())
        order = [0, 1] if turn % 2 else [1, 0]
        times = [0.0, 0.0]
        for which in order:
            before = time.perf_counter()
            if which:
                reply = await pool.send(request)
            else:
                scores = scorer.score_index(query, index, rows)
            times[which] = time.perf_counter() - before
        before = time.perf_counter()
        await pool.send(small)
        single = time.perf_counter() - before
        answer = json.loads(reply.body)
        assert reply.status == 200 and len(answer["index"]) == items, reply.body[:300] + reply.body[-300:]
        best = np.zeros(items)
        best[answer["index"]] = answer["relevance"]
        assert np.allclose(best, scores, atol=1e-5)
        if turn >= 5:
            engine.append(1_000 * times[0])
            server.append(1_000 * times[1])
            one.append(1_000 * single)
            own.append(1_000 * times[1] - answer["timings_ms"]["total"])
            differences.append(1_000 * (times[1] - times[0]))
    await pool.close()
    return {
        "engine_ms": told(engine),
        "server_ms": told(server),
        "one_id_ms": told(one),
        "around_the_queue_ms": told(own),
        "difference_ms": told(differences),
        "p50_of_server_less_p50_of_engine_ms": round(float(np.median(server) - np.median(engine)), 3),
        "p99_of_server_less_p99_of_engine_ms": round(float(np.percentile(server, 99) - np.percentile(engine, 99)), 3),
    }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=60)
    parser.add_argument("--items", type=int, default=3_000)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    scorer = Scorer.load(threads=given.threads)
    items, _ = read_sample("esci")
    with tempfile.TemporaryDirectory() as folder:
        index = ItemIndex.build(items, scorer.pairs, Path(folder) / "index", config=IndexConfig(progress=False))
        ids = [item.item_id for item in items]
        with serving("--index", str(Path(folder) / "index"), "--threads", str(given.threads)) as server:
            found = asyncio.run(measure(server.url, scorer, index, ids, given.items, given.turns))
    print(json.dumps(found, indent=2))
    settings = {"turns": given.turns, "items": given.items, "threads": given.threads, "backend": scorer.backend.name}
    print(
        write(__file__, {"command": "python benchmarks/serving_overhead.py", "machine": machine(), **settings, **found})
    )


if __name__ == "__main__":
    main()
