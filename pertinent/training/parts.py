"""What one model of a study learns from and is measured on: folds, held-out industries, fewer judgments."""

from __future__ import annotations

import csv
import io
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pertinent.artifact import write_text
from pertinent.data.splits import SPLITS, bucket
from pertinent.errors import ConfigError
from pertinent.records import Judgment, Split
from pertinent.text import normalize
from pertinent.training.data import JudgedData

# Of the queries that are not held out: for choosing and calibrating.
VALID_SHARE = 1 / 8
# Industries with fewer queries are held out together: alone they would measure nothing.
FEWEST_QUERIES = 20
OTHERS = "(others)"
_COLUMNS = ("query", "item_id", "title", "grade", "label", "split", "segment")


@dataclass(frozen=True, slots=True)
class Part:
    """What one model learns from and is measured on.

    ``places`` are those of ``judged`` among all that the study measures; ``source`` has the settings
    of training that read ``data`` again.
    """

    data: JudgedData
    judged: list[Judgment]
    places: NDArray[np.int64]
    source: dict[str, Any]
    name: str = ""


def deal(data: JudgedData, folds: int, out: Path) -> list[Part]:
    """The judgments ``folds`` times over, each time other queries held out; together every query once.

    The part of a query follows from its text alone. Of the rest, one query in eight is for choosing
    and calibrating. Each part's table is written to ``out``, for training to read.
    """
    texts = [normalize(judgment.query) for judgment in data.judgments]
    parts = []
    for number in range(folds):
        splits = _splits(texts, {text for text in texts if int(bucket(text, "folds") * folds) == number})
        missing = [split for split in SPLITS if split not in splits]
        if missing:
            raise ConfigError(
                f"folds: part {number + 1} of {folds} has no judgment for {missing[0]}; "
                "give fewer folds, or judgments of more queries"
            )
        path = out / f"judgments-fold-{number + 1}-of-{folds}.csv"
        parts.append(_part(data, splits, path, f"-fold-{number + 1}"))
    return parts


def hold_out(data: JudgedData, industries: Mapping[str, str], out: Path) -> list[Part]:
    """The judgments once for each industry, whose queries are held out while all others are learned from.

    ``industries`` are by normalized query (`industries_of`); queries without one are always learned
    from. In the parts each held-out judgment's segment is its industry.

    Raises ConfigError where fewer than two industries have queries.
    """
    counts = Counter(industries.values())
    large = {name for name, queries in counts.items() if queries >= FEWEST_QUERIES}
    merged = {query: name if name in large else OTHERS for query, name in industries.items()}
    names = sorted(set(merged.values()), key=lambda name: (name == OTHERS, name))
    if len(names) < 2:
        raise ConfigError(
            f"hold_out: {len(names)} industry has {FEWEST_QUERIES} or more queries, at least two are wanted; "
            "give items with categories, or judgments with segments"
        )
    texts = [normalize(judgment.query) for judgment in data.judgments]
    rows = [replace(judgment, segment=merged.get(text)) for judgment, text in zip(data.judgments, texts, strict=True)]
    parts = []
    for name, slug in zip(names, _slugs(names), strict=True):
        splits = _splits(texts, {query for query, industry in merged.items() if industry == name})
        parts.append(
            _part(replace(data, judgments=rows), splits, out / f"judgments-without-{slug}.csv", f"-without-{slug}")
        )
    return parts


def industries_of(judgments: Sequence[Judgment], categories: Mapping[str, str | None]) -> dict[str, str]:
    """The industry of each normalized query: the first level of the category that most of its items have.

    ``categories`` are by item id. Queries whose items have none are left out. Names that differ in case or
    spacing alone are one industry.

    >>> rows = [Judgment("tv", "1", 1.0), Judgment("tv", "2", 0.0), Judgment("sock", "3", 1.0)]
    >>> industries_of(rows, {"1": "Electronics > TV", "2": "Electronics > Stand", "3": None})
    {'tv': 'Electronics'}
    """
    found: dict[str, Counter[str]] = {}
    # The first spelling in the alphabet, and the first name where two are equally common: the order of the
    # rows must not matter.
    spelled: dict[str, str] = {}
    for judgment in judgments:
        first = re.split(r"\s*[>/|]\s*", (categories.get(judgment.item_id) or "").strip())[0]
        if first:
            key = normalize(first)
            spelled[key] = min(first, spelled.get(key, first))
            found.setdefault(normalize(judgment.query), Counter())[key] += 1
    return {query: spelled[min(names, key=lambda name: (-names[name], name))] for query, names in found.items()}


def fewer(part: Part, fraction: float, out: Path) -> Part:
    """The part with the judgments of a fraction of its training queries; what is measured stays.

    Which ones depends on their texts alone, and a smaller fraction is inside a larger one.
    """
    queries = sorted({normalize(row.query) for row in part.data.of("train")}, key=lambda text: bucket(text, "fraction"))
    kept = set(queries[: max(1, math.ceil(len(queries) * fraction))])
    rows = [row for row in part.data.judgments if row.split != "train" or normalize(row.query) in kept]
    path = out / f"judgments{part.name}-{fraction:g}.csv"
    _write(rows, path)
    return replace(part, data=replace(part.data, judgments=rows), source=_source(part.data, path))


def _slugs(names: Sequence[str]) -> list[str]:
    """Names as parts of file names, all different: those that would be the same are numbered.

    >>> _slugs(["Home & Kitchen", "Home-Kitchen", "Toys"])
    ['home-kitchen', 'home-kitchen-2', 'toys']
    """
    slugs: list[str] = []
    for name in names:
        plain = re.sub(r"\W+", "-", name.lower()).strip("-")
        slug, number = plain, 2
        while slug in slugs:
            slug, number = f"{plain}-{number}", number + 1
        slugs.append(slug)
    return slugs


def _part(data: JudgedData, splits: Sequence[Split], path: Path, name: str) -> Part:
    rows = [replace(judgment, split=split) for judgment, split in zip(data.judgments, splits, strict=True)]
    _write(rows, path)
    places = np.array([place for place, row in enumerate(rows) if row.split == "test"], dtype=np.int64)
    judged = [rows[place] for place in places]
    return Part(replace(data, judgments=rows), judged, places, _source(data, path), name)


def _splits(texts: Sequence[str], held_out: set[str]) -> list[Split]:
    rest = sorted(set(texts) - held_out, key=lambda text: bucket(text, "valid"))
    chosen = set(rest[: math.ceil(len(rest) * VALID_SHARE)])
    return ["test" if text in held_out else "valid" if text in chosen else "train" for text in texts]


def _write(rows: Sequence[Judgment], path: Path) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    writer.writerows([["" if v is None else v for v in (getattr(row, c) for c in _COLUMNS)] for row in rows])
    write_text(path, text.getvalue())


def _source(data: JudgedData, path: Path) -> dict[str, Any]:
    return {"judgments": str(path), **({} if data.scale is None else {"scale": data.scale.name})}
