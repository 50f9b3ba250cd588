"""The tour that ``make demo`` takes: train, compare, rank, and what to do next."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from pertinent.commands import print_table
from pertinent.data.samples import read_sample
from pertinent.engine.scorer import Scorer
from pertinent.studies import StudyConfig, run_study

ROOT = Path(__file__).resolve().parents[1]
QUERY = "wireless earbuds"


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="  %(message)s")
    started = time.perf_counter()
    print("1/3  Train a 3-layer cross-encoder on real judgments, and compare it on queries it has not seen", flush=True)
    study = run_study(StudyConfig.load(ROOT / "configs" / "studies" / "demo.yaml"))
    print(f"\n{study}\n")
    print("     So few judgments alone teach a cut BERT little. The shipped model has the same size, but learned from")
    print("     unlabeled texts first: start yours from it, with configs/train-from-shipped.yaml.\n", flush=True)

    items, _ = read_sample("esci")
    print(f"2/3  Rank {len(items):,} products for {QUERY!r} with the shipped model", flush=True)
    scorer = Scorer.load()
    before = time.perf_counter()
    best = scorer.rank(QUERY, items, top=10)
    seconds = time.perf_counter() - before
    rows = [[str(place), f"{each.score:.3f}", each.item.title[:90]] for place, each in enumerate(best, start=1)]
    print_table(["", "score", "title"], rows)
    print(f"     {len(items) / seconds:,.0f} products a second\n")

    print(f"3/3  Done in {time.perf_counter() - started:.0f} s. The report: {study.report}")
    print("     Next:")
    print('       .venv/bin/pertinent score "usb c cable 2m" --items examples/data/icecat/items.parquet --top 10')
    print("       .venv/bin/pertinent train --config configs/train-esci.yaml")
    print("       .venv/bin/pertinent evaluate --judgments examples/data/icecat/judgments.parquet --positive-grade 1")
    print("       .venv/bin/pertinent index --items examples/data/esci/items.parquet --out runs/index")
    print(
        "       .venv/bin/pertinent serve --index runs/index    # then http://127.0.0.1:8080, or in another terminal:"
    )
    print("       curl http://127.0.0.1:8080/v2/rerank -H 'content-type: application/json' \\")
    print("""         -d '{"query": "usb c cable", "documents": ["USB-C cable, 2 m", "Tea pot"]}'""")
    print("       .venv/bin/pertinent bench --candidates 100,1000,3000")


if __name__ == "__main__":
    main()
