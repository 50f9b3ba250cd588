"""Speed of the shipped term tagger: titles a second offline, milliseconds a query online.

    python benchmarks/term_classes.py               # 20,000 titles, 2,000 queries; a minute
    python benchmarks/term_classes.py --titles 2000 # a quick look

Titles are real ones of four samples, each taken once; a fresh tagger knows none of their words, as at
the start of a run. Rates are told twice: by the clock, and by this process's own processor time, which
other work on the machine disturbs less. Results go to ``term_classes.json`` beside the quality figures
of ``recipes/term_tagger.py``.
"""

from __future__ import annotations

import argparse
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np

from pertinent.artifact import read_json, write_json
from pertinent.bench import processor
from pertinent.data.readers import read_table
from pertinent.data.samples import sample_path
from pertinent.engine.backends import available_cores
from pertinent.lexicon.tagger import Tagger

RESULTS = Path(__file__).with_suffix(".json")
CATALOGS = ("esci", "fashion", "icecat", "pricerunner")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--titles", type=int, default=20_000)
    parser.add_argument("--queries", type=int, default=2_000)
    options = parser.parse_args()
    titles = real_titles(options.titles)
    found = {
        "machine": f"{platform.machine()}, {available_cores()} cores, {processor()}",
        "titles": len(titles),
        "words_a_title": round(float(np.mean([len(title.split()) for title in titles])), 1),
        "one_process": offline(titles, processes=1),
        "two_processes": offline(titles, processes=2),
        "online": online(options.queries),
    }
    print(f"{found['titles']:,} titles of {found['words_a_title']} words on {found['machine']}")
    print(table(found))
    record = read_json(RESULTS) if RESULTS.is_file() else {}
    write_json(RESULTS, {**record, "speed": found})


def table(found: dict[str, Any]) -> str:
    """The figures as they stand in the docs."""
    one, two, online = found["one_process"], found["two_processes"], found["online"]
    rates = [
        f"| {name} | {one[f'{key}_titles_a_second']:,.0f} | {one[f'{key}_titles_a_processor_second']:,.0f} |"
        for key, name in (("fresh", "one process, words not seen before"), ("again", "one process, once more"))
    ]
    times = [
        f"| {name} | {online[f'p50_{unit}']:.2f} ms | {online[f'p99_{unit}']:.2f} ms |"
        for name, unit in (("by the clock", "ms"), ("processor time of the thread", "processor_ms"))
    ]
    last = f"| two processes, their start included | {two['fresh_titles_a_second']:,.0f} | |"
    lines = ["| | titles a second | a processor second |", "|---|---|---|", *rates, last, ""]
    return "\n".join([*lines, "| one query at a time | p50 | p99 |", "|---|---|---|", *times])


def real_titles(count: int) -> list[str]:
    """Titles of all catalogs in turn, each text once."""
    catalogs = [read_table(sample_path(name) / "items.parquet").column("title") for name in CATALOGS]
    mixed = dict.fromkeys(title for row in zip(*catalogs, strict=False) for title in row)
    return list(mixed)[:count]


def offline(titles: list[str], processes: int) -> dict[str, Any]:
    """Titles a second of a fresh tagger, and of one process once more when it knows the words."""
    tagger = Tagger.shipped()
    rates = {}
    for name in ("fresh", "again")[: 2 if processes == 1 else 1]:
        clock, own = time.perf_counter(), time.process_time()
        tagger.tag_many(titles, processes=processes)
        rates[f"{name}_titles_a_second"] = len(titles) / (time.perf_counter() - clock)
        if processes == 1:
            rates[f"{name}_titles_a_processor_second"] = len(titles) / (time.process_time() - own)
    return rates


def online(count: int) -> dict[str, float]:
    """Milliseconds of one query at a time, after a hundred others."""
    queries = read_table(sample_path("esci") / "queries_unlabeled.parquet").column("query")[: count + 100]
    tagger = Tagger.shipped()
    for query in queries[:100]:
        tagger.tag(query)
    clock, own = [], []
    for query in queries[100:]:
        start, used = time.perf_counter(), time.thread_time()
        tagger.tag(query)
        clock.append(time.perf_counter() - start)
        own.append(time.thread_time() - used)
    return {
        **{f"p{q}_ms": float(np.percentile(clock, q)) * 1000 for q in (50, 99)},
        **{f"p{q}_processor_ms": float(np.percentile(own, q)) * 1000 for q in (50, 99)},
    }


if __name__ == "__main__":
    main()
