"""How long 500 candidates with neighbors take, and that pairs without any take what they took before.

    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/barl_serving.py --out benchmarks/barl_serving.json

The network has the sizes of the paper (20 slots, attention width 128, hidden size 64, 16 tokens of query and title),
random weights, and ``agreement`` and ``gains`` as the recipe: the time does not depend on what weights are. Titles are
real (ESCI sample), lists are drawn; every item has 20 neighbors, three of them are in the query's own list. Pairs
without neighbors are scored by the shipped model, once through the cascade and once by itself, in turn. The paper
reports 13 ms on average, without the number of items, the machine or what is in it.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pertinent.artifact import write_artifact, write_json
from pertinent.data.neighbors import NeighborLists
from pertinent.data.samples import read_sample
from pertinent.engine.behavior import Behavior, BehaviorScorer
from pertinent.engine.scorer import Scorer
from pertinent.folders import shipped_folder
from pertinent.lexicon.pairs import PairConfig, PairTokenizer
from pertinent.models.barl_ase import BarlASe, BarlASeConfig, Neighbors
from pertinent.models.store import save_network

LAYOUT = PairConfig(query_length=16, item_length=17)
QUERY = "wireless earbuds"


def timed(call: Callable[[], Any], turns: int) -> dict[str, float]:
    """Average, median and 99th percentile in milliseconds; the first three turns do not count."""
    taken = []
    for turn in range(turns + 3):
        started = time.perf_counter()
        call()
        if turn >= 3:
            taken.append((time.perf_counter() - started) * 1000)
    return {name: round(float(value), 2) for name, value in (
        ("average_ms", np.mean(taken)), ("p50_ms", np.median(taken)), ("p99_ms", np.percentile(taken, 99)),
        ("least_ms", min(taken)),
    )}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--turns", type=int, default=100)
    parser.add_argument("--candidates", type=int, default=500)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    items, judgments = read_sample("esci")
    titles = {item.item_id: item.title for item in items}
    ids = [item.item_id for item in items]
    queries = sorted({row.query.lower() for row in judgments})[:1000]
    chosen = ids[: args.candidates]
    lists = NeighborLists(
        1,
        {QUERY: [*rng.choice(ids[args.candidates :], 18, replace=False), *chosen[:3]]},
        {item: [*rng.choice(queries, 20, replace=False)] for item in ids[:2000]},
    )
    loaded = PairTokenizer.load(shipped_folder(), LAYOUT)
    pairs = PairTokenizer(loaded.tokenizer, LAYOUT)
    torch.manual_seed(0)
    sizes = BarlASeConfig(vocabulary_size=pairs.vocabulary_size, agreement=True, gains=True)
    network = BarlASe(sizes).eval()
    report: dict[str, Any] = {
        "command": "python " + " ".join(sys.argv),
        "machine": f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, one thread",
        "candidates": args.candidates,
        "turns": args.turns,
        "published_average_ms": 13,
    }
    with tempfile.TemporaryDirectory() as work:
        model, place = Path(work, "barl"), Path(work, "behavior")
        with write_artifact(model, "model", {}) as folder:
            save_network(folder, network, pairs)
        started = time.process_time()
        Behavior.build(model, lists, titles, ({QUERY: 10}, {}), place)
        report["build_processor_seconds"] = round(time.process_time() - started, 2)
        report["bytes_an_item_with_20_neighbors"] = 20 * 64 * 4
        text = Scorer.load(threads=1)
        cascade = BehaviorScorer.load(model, place, fallback=text)
        report["text model"] = f"{text.name}/{text.backend.name}"
        names = [titles[item] for item in chosen]
        plain = [item for item in ids[2000:] if item not in lists.items_of_query[QUERY]][: args.candidates]
        plain_names = [titles[item] for item in plain]
        report["with neighbors, served"] = timed(lambda: cascade.score(QUERY, chosen, names), args.turns)
        looked = cascade.look(QUERY, chosen)
        tokens = cascade.title_tokens(looked.rows, [])
        report["with neighbors, looked up before"] = timed(lambda: cascade.views_of(QUERY, looked, tokens), args.turns)
        report["with neighbors, end to end in torch"] = timed(
            lambda: end_to_end(network, pairs, lists, titles, chosen), max(3, args.turns // 10)
        )
        for _ in range(2):  # the second time counts: clocks and caches have settled
            report["without neighbors, cascade"] = timed(
                lambda: cascade.score("never asked", plain, plain_names), args.turns // 2
            )
            report["without neighbors, text model alone"] = timed(
                lambda: text.score("never asked", plain_names), args.turns // 2
            )
        both = [report[f"without neighbors, {name}"]["p50_ms"] for name in ("cascade", "text model alone")]
        report["cascade over text model, p50"] = round(both[0] / both[1], 3)
    for name, value in report.items():
        print(name, value)
    if args.out is not None:
        write_json(args.out, report)


def end_to_end(network: BarlASe, pairs: PairTokenizer, lists: NeighborLists, titles: Any, chosen: list[str]) -> Any:
    """Scores by the network from the tokens of all texts; for the time alone, the pair is not left out."""
    sides = []
    for side, encode in (
        ([lists.queries_of_item.get(item, ())[:20] for item in chosen], pairs.encode_queries),
        ([[titles[item] for item in lists.items_of_query[QUERY]][:20]] * len(chosen), pairs.encode_items),
    ):
        texts = sorted({text for found in side for text in found})
        places = {text: row for row, text in enumerate(texts)}
        rows = encode(texts)
        ids = np.full((len(rows), max(1, int(rows.lengths.max()))), -1)
        ids[np.arange(ids.shape[1])[None] < rows.lengths[:, None]] = rows.ids
        slots = np.array([[places[text] for text in found] for found in side])
        counts = np.array([len(found) for found in side])
        sides.append(Neighbors(*map(torch.from_numpy, (ids, slots, counts))))
    batch = pairs.pair([QUERY] * len(chosen), [titles[item] for item in chosen])
    with torch.inference_mode():
        return network(*(torch.from_numpy(array) for array in batch.inputs().values()), *sides)


if __name__ == "__main__":
    main()
