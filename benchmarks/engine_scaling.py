"""Does cost grow with the number of items, and nothing else? From 100 to 20,000 items of one query.

    python benchmarks/engine_scaling.py                 # L3-H128, native and native int8, about 4 minutes

The network, its random weights and the titles are those of ``engine_levels.py``; beyond the sample's titles, the same
with their words turned round. Items are read from an index, in turns, small numbers first, so memory held after each
number of items says what it adds. ``exponent`` is the slope of the logarithms, from 1,000 items on: 1 is linear.
A page with the chart is written beside the JSON file.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from engine_levels import NETWORKS, PARTS
from engine_vs_sentence_transformers import QUERY, networks, processor, real_titles

from pertinent.artifact import write_artifact, write_json, write_text
from pertinent.bench import distinct_titles
from pertinent.charts import Axis, Series, line_chart, log_ticks
from pertinent.engine.backends import available_cores
from pertinent.engine.index import ItemIndex
from pertinent.engine.native_backend import NATIVE_GATE_FILE
from pertinent.engine.scorer import Scorer
from pertinent.evaluation.memory import resident_bytes
from pertinent.models.store import save_network
from pertinent.page import facts, grid, page, section, table
from pertinent.records import Item

COUNTS = (100, 300, 1_000, 3_000, 10_000, 20_000)
BACKENDS = ("native", "native-int8")


def measure(network: Any, pairs: Any, counts: tuple[int, ...], turns: int) -> list[dict[str, Any]]:
    """A row for each backend and number of items, small numbers first."""
    titles = distinct_titles([item.title for item in real_titles(3_000, pairs)], max(counts))
    items = [Item(str(number), title) for number, title in enumerate(titles)]
    rows = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        with write_artifact(folder / "model", "model", {}) as aside:
            save_network(aside, network, pairs)
            write_json(aside / NATIVE_GATE_FILE, {"passed": True, "cheap": PARTS, "reasons": []})
        scorers = {name: Scorer.load(folder / "model", name, available_cores()) for name in BACKENDS}
        index = ItemIndex.build(items, pairs, folder / "index", scorers["native"].version)
        for scorer in scorers.values():
            scorer.score_index(QUERY, index)  # fills the word tables, which grow with words, not with items
        for count in counts:
            chosen = np.arange(count)
            seconds: dict[str, list[float]] = {name: [] for name in scorers}
            for _ in range(max(turns, min(10 * turns, 10_000 // count))):
                for name, scorer in scorers.items():
                    start = time.perf_counter()
                    scorer.score_index(QUERY, index, chosen)
                    seconds[name].append(1e3 * (time.perf_counter() - start))
            held = round(resident_bytes() / 1e6, 1)
            for name, spent in seconds.items():
                median = statistics.median(spent)
                rows.append(
                    {"name": name, "items": count, "turns": len(spent), "median_ms": round(median, 2)}
                    | {"microseconds_an_item": round(1e3 * median / count, 1), "resident_mb": held}
                )
    return rows


def exponent(rows: list[dict[str, Any]], name: str) -> float:
    """The slope of the logarithm of time over that of items, from 1,000 items on."""
    points = [(r["items"], r["median_ms"]) for r in rows if r["name"] == name and r["items"] >= 1_000]
    x, y = np.log(np.array(points)).T
    return round(float(np.polyfit(x, y, 1)[0]), 3)


def chart_page(rows: list[dict[str, Any]], about: dict[str, Any]) -> str:
    counts, spent = [row["items"] for row in rows], [row["median_ms"] for row in rows]
    across = Axis(min(counts), max(counts), "items", log_ticks(min(counts), max(counts)), True)
    up = Axis(min(spent), max(spent), "median, ms", log_ticks(min(spent), max(spent)), True)
    names = list(dict.fromkeys(row["name"] for row in rows))
    lines = [Series(name, [(r["items"], r["median_ms"]) for r in rows if r["name"] == name]) for name in names]
    figure = line_chart("Time by number of items", "both axes logarithmic", across, up, lines, dots=True)
    cells = [[str(value) for value in row.values()] for row in rows]
    told = {key: str(value) for key, value in about.items()}
    return page("Engine: scaling", [facts(told), grid([figure]), section("Rows", table("Rows", list(rows[0]), cells))])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", choices=NETWORKS, default="h128")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--most", type=int, default=max(COUNTS), help="leave out larger numbers of items")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    network, pairs = networks()[NETWORKS[args.network]]
    counts = tuple(count for count in COUNTS if count <= args.most)
    rows = measure(network, pairs, counts, args.turns)
    about = {"query": QUERY, "network": NETWORKS[args.network], "cores": available_cores(), "processor": processor()}
    print(f"{'':14}{'items':>8}{'median ms':>12}{'us an item':>12}{'resident MB':>13}")
    for row in rows:
        print(
            f"{row['name']:14}{row['items']:>8}{row['median_ms']:>12.1f}{row['microseconds_an_item']:>12.1f}"
            f"{row['resident_mb']:>13.1f}"
        )
    exponents = {name: exponent(rows, name) for name in BACKENDS} if max(counts) > 1_000 else {}
    print(f"exponents: {exponents}")
    write_json(args.out, {"about": about, "exponents": exponents, "rows": rows})
    write_text(args.out.with_suffix(".html"), chart_page(rows, about))
    print(f"written to {args.out} and {args.out.with_suffix('.html')}")


if __name__ == "__main__":
    main()
