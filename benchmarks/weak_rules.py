"""How right the rules for weak pairs are, by the judgments of the ESCI sample.

    python benchmarks/weak_rules.py

The judged US pairs of the training split; types of the words of a query are those of QueryNER, where it
has the query. Nothing is random. A share is that of exact matches among the pairs that a rule speaks of.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pertinent.artifact import write_json
from pertinent.data.readers import read_table
from pertinent.data.samples import read_sample, sample_path
from pertinent.data.weak import CORE_SPAN, CREATOR_SPAN, query_spans, stems
from pertinent.records import Judgment
from pertinent.text import normalize


def share(rows: Sequence[Judgment]) -> dict[str, Any]:
    """How many pairs, and the share of exact matches."""
    exact = sum(row.grade >= 1 for row in rows)
    return {"pairs": len(rows), "exact": round(exact / len(rows), 4) if rows else None}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    rows = [row for row in read_sample("esci")[1] if row.split == "train" and row.segment == "us"]
    tagged = query_spans(read_table(sample_path("queryner") / "ner.parquet"))
    spans = {normalize(" ".join(text for text, _ in each)): each for each in tagged}

    def typed(row: Judgment, kind: str) -> frozenset[str]:
        return stems(" ".join(text for text, own in spans.get(normalize(row.query), []) if own == kind))

    whole = [row for row in rows if stems(row.query) <= stems(row.title)]
    core = [row for row in rows if typed(row, CORE_SPAN)]
    found = {
        "all": share(rows),
        "all words of the query": share(whole),
        "typed queries": share([row for row in rows if normalize(row.query) in spans]),
        "typed, all words": share([row for row in core if stems(row.query) <= stems(row.title)]),
        "typed, words but none of the type": share(
            [r for r in core if not typed(r, CORE_SPAN) & stems(r.title) and stems(r.query) & stems(r.title)]
        ),
        "typed, the type but not the creator": share(
            [
                row
                for row in core
                if typed(row, CREATOR_SPAN)
                and typed(row, CORE_SPAN) <= stems(row.title)
                and not typed(row, CREATOR_SPAN) & stems(row.title)
            ]
        ),
    }
    for name, value in found.items():
        print(f"{name:40} {value['pairs']:6} {value['exact']}")
    write_json(
        args.out, {"command": "python benchmarks/weak_rules.py", "data": "ESCI sample, train, us", "rules": found}
    )


if __name__ == "__main__":
    main()
