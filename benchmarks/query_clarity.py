"""How many real queries are clear, by both readings and with unknown words joined to the noun or not.

    python benchmarks/query_clarity.py --out benchmarks/query_clarity.json

Queries are the distinct ones of ESCI's unlabeled sample and of QueryNER's training split, tagged by the
shipped tagger. On QueryNER people marked the terms of each query too. By their marks a query is clear if it
has a product type or name and another term, be it a brand; ``agreement`` is with that.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from pertinent.data.readers import read_table
from pertinent.data.samples import sample_path
from pertinent.lexicon.tagger import Tagger
from pertinent.mining.queries import ClarityConfig, clarity
from pertinent.text import normalize

READINGS = {
    "literal": ClarityConfig(require_modifier=False),
    "clear": ClarityConfig(join_unknown=False),
    "clear, unknown words joined": ClarityConfig(join_unknown=True),
}
CORE = {"core_product_type", "product_name"}


def esci() -> dict[str, None]:
    """The distinct queries of ESCI without judgments; nobody marked them."""
    texts = read_table(sample_path("esci") / "queries_unlabeled.parquet").column("query")
    return dict.fromkeys(normalize(text) for text in texts if text)


def queryner() -> dict[str, bool]:
    """The distinct training queries of QueryNER, and whether they are clear by the marks of people."""
    table = read_table(sample_path("queryner") / "ner.parquet")
    rows = zip(*(table.column(name) for name in ("split", "tokens", "tags")), strict=True)
    return {normalize(" ".join(tokens)): marked_clear(tags) for split, tokens, tags in rows if split == "train"}


def marked_clear(tags: list[str]) -> bool:
    """Whether BIO tags spell a core term and one that is no further product type.

    >>> marked_clear(["B-creator", "B-core_product_type"]), marked_clear(["B-core_product_type"] * 2)
    (True, False)
    """
    names = [tag[2:] for tag in tags if tag.startswith("B-")]
    cores = sum(name in CORE for name in names)
    types = sum(name == "core_product_type" for name in names)
    return cores > 0 and len(names) > max(types, 1)


def measured(queries: dict[str, bool] | dict[str, None]) -> dict[str, object]:
    """Shares of clear queries by reading, and how often they agree with the marks, where there are some."""
    spans = dict(zip(queries, Tagger.shipped().tag_many(list(queries)), strict=True))
    marks = [mark for mark in queries.values() if mark is not None]
    found: dict[str, object] = {"queries": len(queries)}
    if marks:
        found["clear by marks"] = round(sum(marks) / len(marks), 4)
    for name, config in READINGS.items():
        clear = [clarity(query, spans[query], config)[2] for query in queries]
        found[name] = {"share": round(sum(clear) / len(clear), 4)}
        if marks:
            equal = sum(one == other for one, other in zip(clear, marks, strict=True))
            found[name] = {"share": round(sum(clear) / len(clear), 4), "agreement": round(equal / len(marks), 4)}
    return found


def main() -> None:
    """Measure, print, and write the file asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    out = parser.parse_args().out
    numbers = {"esci": measured(esci()), "queryner train": measured(queryner())}
    text = json.dumps(numbers, indent=2) + "\n"
    print(text, end="")
    if out is not None:
        out.write_text(text)


if __name__ == "__main__":
    main()
