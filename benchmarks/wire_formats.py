"""Milliseconds to read a request and to write its answer, by dialect and number of documents.

    python benchmarks/wire_formats.py --out benchmarks/wire_formats.json

Titles of the sample catalog, repeated; medians of the processor time of a number of runs on one thread;
no network and no model.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pertinent.data.readers import read_items
from pertinent.serving.wire import DIALECTS, Answer, find_route, parse, rank_order

ROOT = Path(__file__).resolve().parents[1]
PATHS = {
    "cohere": ("/v2/rerank", "documents"),
    "union": ("/v1/rerank", "documents"),
    "voyage": ("/voyage/v1/rerank", "documents"),
    "vllm": ("/rerank", "documents"),
    "vllm-score": ("/score", "documents"),
    "infinity": ("/infinity/rerank", "documents"),
    "mixedbread": ("/v1/reranking", "input"),
    "nim": ("/v1/ranking", "passages"),
    "tei": ("/rerank", "texts"),
}


def milliseconds(run: Callable[[], object], runs: int) -> float:
    """The median processor time of a call."""
    times = []
    for _ in range(runs):
        start = time.thread_time()
        run()
        times.append(1000 * (time.thread_time() - start))
    return round(statistics.median(times), 3)


def measure(dialect: str, titles: list[str], runs: int) -> dict[str, float | int | str]:
    """Times of one dialect with so many documents."""
    path, name = PATHS[dialect]
    query = "queries" if dialect == "vllm-score" else "query"
    documents = [{"text": title} for title in titles] if dialect == "nim" else titles
    body = json.dumps({query: "wireless earbuds", name: documents}, ensure_ascii=False).encode()
    route = find_route("POST", path)
    assert route is not None
    request = parse(route, body, path)
    scores = np.random.default_rng(0).random(len(titles), dtype=np.float32)
    render = DIALECTS[request.dialect].render

    def write() -> bytes:
        return render(request, Answer(scores=scores, order=rank_order(scores, request.top), request_id="r", model="m"))

    return {
        "dialect": dialect,
        "documents": len(titles),
        "body_bytes": len(body),
        "parse_ms": milliseconds(lambda: parse(route, body, path), runs),
        "render_ms": milliseconds(write, runs),
        "reply_bytes": len(write()),
    }


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, nargs="+", default=[100, 3_000, 10_000])
    parser.add_argument("--runs", type=int, default=31)
    parser.add_argument("--out", type=Path, default=None)
    arguments = parser.parse_args()
    known = [item.title for item in read_items(ROOT / "examples/data/esci/items.parquet")]
    rows = []
    for count in arguments.documents:
        titles = [known[row % len(known)] for row in range(count)]
        for dialect in PATHS:
            rows.append(measure(dialect, titles, arguments.runs))
            print(
                "{dialect:12} {documents:6} documents  parse {parse_ms:7.3f} ms  render {render_ms:7.3f} ms".format(
                    **rows[-1]
                )
            )
    report = {"machine": platform.processor() or platform.machine(), "python": platform.python_version(), "rows": rows}
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
