"""The sample data that ships with the source, under ``examples/data``."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from pertinent.data.files import query_parquet
from pertinent.data.readers import read_items, read_judgments
from pertinent.data.tables import Table
from pertinent.errors import DataError
from pertinent.records import Item, Judgment, Level

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "data"
JUDGED = ("esci", "icecat")
SEQUENCES = ("online_retail",)
SAMPLES = (*JUDGED, "fashion", "oa_mine", *SEQUENCES, "pricerunner", "queryner", "ubi", "wands")
# Lines of one basket have one time; their order in the file stands in for the unknown one.
_PURCHASES = f"""
    SELECT CAST(user_id AS VARCHAR) AS user_id,
           row_number() OVER (PARTITION BY user_id ORDER BY timestamp, file_row_number) - 1 AS place,
           CAST(epoch_us(timestamp) AS BIGINT) AS time, '' AS query, item_id,
           {get_args(Level).index("pay")} AS level
    FROM read_parquet($sequences, file_row_number = true)
    WHERE event = 'purchase'
    ORDER BY ALL
"""


def sample_path(name: str) -> Path:
    """The folder of a sample: ``esci`` and ``icecat`` are judged, ``ubi`` is a log, the others have text to learn from.

    >>> sorted(file.name for file in sample_path("icecat").glob("*.parquet"))
    ['items.parquet', 'judgments.parquet']
    """
    if name not in SAMPLES:
        raise DataError(f"there is no sample {name!r}", fix=f"allowed: {', '.join(SAMPLES)}")
    if not (FOLDER / name).is_dir():
        raise DataError(
            f"the sample {name!r} is not here: samples come with the source, not with the installed package",
            path=FOLDER / name,
            fix="run this in a clone of the repository",
        )
    return FOLDER / name


def read_sample(name: str) -> tuple[list[Item], list[Judgment]]:
    """Items and judgments of a judged sample, ``esci`` or ``icecat``.

    >>> items, judgments = read_sample("icecat")
    >>> len(items), len(judgments)
    (19406, 2589)
    """
    if name not in JUDGED:
        problem = f"the sample {name!r} has no judgments" if name in SAMPLES else f"there is no sample {name!r}"
        raise DataError(problem, fix=f"with judgments: {', '.join(JUDGED)}")
    folder = sample_path(name)
    items = read_items(folder / "items.parquet")
    return items, read_judgments(folder / "judgments.parquet", items)


def read_sequences(name: str = "online_retail", longest: int | None = None) -> Table:
    """What each customer of a real shop bought, in order of time: one row for an item, as mining writes them.

    Columns: ``user_id``, ``place`` (from 0), ``time`` (microseconds since 1970, read as UTC), ``query`` (empty:
    there was no search), ``item_id`` and ``level`` (5, which is ``pay``). Returns of goods are left out. ``longest``
    keeps the last so many of each customer, with their places.
    """
    folder = sample_path(name)
    if name not in SEQUENCES:
        raise DataError(f"the sample {name!r} has no sequences", fix=f"with sequences: {', '.join(SEQUENCES)}")
    path = folder / "sequences.parquet"
    names, rows = query_parquet({"sequences": path}, _PURCHASES)
    if longest is not None:
        size = {row[0]: row[1] for row in rows}  # the last place of each customer
        rows = [row for row in rows if row[1] > size[row[0]] - longest]
    columns = [list(column) for column in zip(*rows, strict=True)]
    return Table(dict(zip(names, columns, strict=True)), str(path), list(range(1, len(rows) + 1)))
