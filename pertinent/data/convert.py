"""``pertinent data public``: a public data set in its official layout, as the two tables that every command reads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from pertinent.config import Config
from pertinent.data.files import write_csv
from pertinent.data.public import load_public
from pertinent.data.readers import judgments_of
from pertinent.data.tables import Table
from pertinent.records import Item, Judgment

ITEMS_FILE, JUDGMENTS_FILE = "items.csv", "judgments.csv"


class PublicConfig(Config):
    """Settings of ``pertinent data public``: which data set, the folder of its official files, where to write."""

    dataset: str
    files: str
    out: str


@dataclass(frozen=True, slots=True)
class PublicTables:
    """Where the tables were written, what is in them, and whose they are."""

    folder: Path
    items: int
    judgments: int
    queries: int
    license: str
    citation: str

    def plain(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self) | {"folder": str(self.folder)}


def convert(config: PublicConfig) -> PublicTables:
    """The data set as ``items.csv`` and ``judgments.csv`` in the folder ``out``.

    Where a pair was judged more than once by nobody that is named, the judgments become one with their mean
    grade. Raises DataError as `load_public` does, before anything is written.
    """
    data = load_public(config.dataset, config.files)
    judgments = _merged(data.judgments)
    out = Path(config.out)
    write_csv(out / ITEMS_FILE, [field.name for field in fields(Item)], map(_item_cells, data.items))
    columns = [field.name for field in fields(Judgment)]
    used = [name for name in columns if any(getattr(judgment, name) is not None for judgment in judgments)]
    write_csv(out / JUDGMENTS_FILE, used, ([getattr(judgment, name) for name in used] for judgment in judgments))
    queries = len({judgment.query for judgment in judgments})
    return PublicTables(out, len(data.items), len(judgments), queries, data.license, data.citation)


def _merged(judgments: Sequence[Judgment]) -> list[Judgment]:
    columns = {field.name: [getattr(judgment, field.name) for judgment in judgments] for field in fields(Judgment)}
    kept = {name: values for name, values in columns.items() if any(value is not None for value in values)}
    # The grade is given; a label beside it need not be on a scale of ours.
    labels = kept.pop("label", None)
    known = judgments_of(Table(kept, JUDGMENTS_FILE, list(range(2, len(judgments) + 2))), conflicts="mean")
    if labels is None or len(known) < len(judgments):
        return known
    return list(judgments)


def _item_cells(item: Item) -> list[Any]:
    attributes = json.dumps(item.attributes, ensure_ascii=False) if item.attributes else None
    return [attributes if field.name == "attributes" else getattr(item, field.name) for field in fields(Item)]
