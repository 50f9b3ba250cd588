"""What looking up costs: 3,000 items of one query in each level, beside one key a pair; tokens of texts; index updates.

    python benchmarks/score_cache.py --out benchmarks/score_cache.json

Titles are those of the ESCI sample, made distinct by a number. Things of one kind take turns; times are milliseconds,
least and median of the turns. Redis rows need a redis-server on the path.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pertinent.data.readers import read_items
from pertinent.engine.cache import Block, MemoryScores, ScoreCaches, query_digest, score_stamp
from pertinent.engine.hot_pairs import CacheConfig, HotPairs
from pertinent.engine.index import IndexConfig, ItemIndex
from pertinent.engine.redis_scores import RedisScores
from pertinent.engine.scorer import Scorer
from pertinent.lexicon.token_cache import TokenCache
from pertinent.records import Item

ROOT = Path(__file__).resolve().parents[1]
ITEMS = 3_000


def timed(things: dict[str, Callable[[], object]], turns: int) -> dict[str, dict[str, float]]:
    """Milliseconds of each thing, in turns."""
    spent: dict[str, list[float]] = {name: [] for name in things}
    for thing in things.values():
        thing()
    for _ in range(turns):
        for name, thing in things.items():
            started = time.perf_counter()
            thing()
            spent[name].append(1000 * (time.perf_counter() - started))
    return {
        name: {"least": round(min(times), 3), "median": round(statistics.median(times), 3)}
        for name, times in spent.items()
    }


def catalog(count: int) -> list[Item]:
    """So many items with distinct real titles."""
    titles = [item.title for item in read_items(ROOT / "examples/data/esci/items.parquet")]
    return [Item(f"B{n}", f"{titles[n % len(titles)]} {n}") for n in range(count)]


def redis_server(folder: str) -> tuple[subprocess.Popen[bytes], int] | None:
    """A server of its own, and its port."""
    if shutil.which("redis-server") is None:
        return None
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    argv = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", folder]
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
    time.sleep(1.0)
    return process, port


def levels(scorer: Scorer, folder: str, turns: int) -> dict[str, dict[str, float]]:
    """Times of a look-up of 3,000 items that are all there."""
    items = catalog(ITEMS)
    index = ItemIndex.build(items, scorer.pairs, f"{folder}/index", scorer.version)
    rows, query = np.arange(ITEMS), ["wireless earbuds"]
    stamp = score_stamp(scorer.pairs, scorer.version, scorer.backend.name)
    logits = np.linspace(-4, 4, ITEMS, dtype=np.float32)
    few = HotPairs.build([("wireless earbuds", item.item_id) for item in items[:50]], scorer, index, f"{folder}/hot")
    block = Block.of(index.digests, logits, index.tokens.truncated)
    memory = MemoryScores(10**8)
    memory.keep(query_digest(stamp, query[0]), block)
    places = np.zeros(ITEMS, dtype=np.int64)
    cached = {"memory": ScoreCaches(stamp, [memory]), "hot (50 of them there)": ScoreCaches(stamp, [few])}
    things: dict[str, Callable[[], object]] = {
        name: (lambda caches=caches: caches.find(query, places, index.digests)) for name, caches in cached.items()
    }
    server = redis_server(folder)
    if server is not None:
        import redis

        process, port = server
        shared = RedisScores(f"redis://127.0.0.1:{port}/0", seconds=600, budget=5.0)
        shared.keep(query_digest(stamp, query[0]), block)
        assert shared.flush()
        client = redis.Redis(port=port)
        keys = [b"pair:%d:%s" % (row, stamp) for row in rows]
        client.mset(dict.fromkeys(keys, b"x" * 21))
        things["redis, a block a query"] = lambda: ScoreCaches(stamp, [shared]).find(query, places, index.digests)
        things["redis, a key a pair: MGET alone"] = lambda: client.mget(keys)
    try:
        return timed(things, turns)
    finally:
        if server is not None:
            shared.close()
            process.terminate()
            process.wait()


def texts(scorer: Scorer, turns: int) -> dict[str, dict[str, float]]:
    """Times of tokenizing 3,000 titles, and of finding them tokenized."""
    titles = [item.title for item in catalog(ITEMS)]
    cache = TokenCache(10**8)
    encode = scorer.pairs.encode_items
    return timed({"tokenize": lambda: encode(titles), "from the cache": lambda: cache.rows(titles, encode)}, turns)


def updates(scorer: Scorer, folder: str, count: int) -> dict[str, float]:
    """Seconds of building an index, and of changing a hundredth of it."""
    items = catalog(count)
    quiet = IndexConfig(progress=False)
    started = time.perf_counter()
    ItemIndex.build(items, scorer.pairs, f"{folder}/large", config=quiet)
    built = time.perf_counter()
    changed = [Item(item.item_id, item.title + " new") for item in items[::100]]
    ItemIndex.update(f"{folder}/large", scorer.pairs, changed, config=quiet)
    done = time.perf_counter()
    return {"items": count, "build_s": round(built - started, 2), "update_1_percent_s": round(done - built, 2)}


def main() -> None:
    """Measure all, print it, and write it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--turns", type=int, default=25)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--out", type=Path, default=None)
    given = parser.parse_args()
    scorer = Scorer.load(threads=1)
    assert CacheConfig().texts
    with tempfile.TemporaryDirectory() as folder:
        report = {
            "command": " ".join(["python benchmarks/score_cache.py", *sys.argv[1:]]),
            "cores": len(os.sched_getaffinity(0)),
            "load": os.getloadavg()[0],
            "items": ITEMS,
            "turns": given.turns,
            "look_up_ms": levels(scorer, folder, given.turns),
            "texts_ms": texts(scorer, given.turns),
            "index": updates(scorer, folder, given.items),
        }
    print(json.dumps(report, indent=1))
    if given.out is not None:
        given.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
