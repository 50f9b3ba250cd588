"""The click stage: mined clicked pairs to learn from, with negatives of their batch (ei-SRC, sections 3, 9)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pertinent.config import Config
from pertinent.data.files import part_files
from pertinent.data.readers import read_items, read_table
from pertinent.data.tables import Table
from pertinent.errors import DataError
from pertinent.lexicon.pairs import PairTokenizer
from pertinent.text import normalize
from pertinent.training.collate import TrainingSet
from pertinent.training.negatives import BatchNegatives

logger = logging.getLogger(__name__)

TABLE = "clicks.parquet"
_TRUE = ("true", "1")  # also as a table of texts writes them


class ClickStage(Config):
    """Clicked pairs to learn from: which, how often, and against how many others.

    ``table`` is a folder of ``pertinent mine`` or its ``clicks`` table; ``items`` the catalog with the
    titles, not needed where the table has a column ``title``. ``frequent`` keeps the most clicked
    pairs, ``clear`` the queries with a core term and more beside it. With ``resample`` a pair is seen as
    often as its ``copies`` say. ``negatives`` are items of the same batch for each clicked pair; they
    count in ``batch_size``. With ``judged`` the judgments' training pairs are learned in the same run.
    """

    table: str
    items: str | None = None
    negatives: int = Field(1, ge=1, le=63)
    frequent: bool = False
    clear: bool = True
    resample: bool = True
    judged: bool = False


@dataclass(frozen=True, slots=True)
class ClickedPairs:
    """Texts of clicked pairs, one row a pair: all of the log, and which of them are learned how often.

    ``query_rows`` and ``item_rows`` are numbers of normalized texts; equal titles have one number.
    """

    queries: list[str]
    titles: list[str]
    copies: NDArray[np.int64]  # 0 where a pair is not learned
    left_out: int

    def training_set(self, pairs: PairTokenizer, each: int, seed: int) -> tuple[TrainingSet, BatchNegatives]:
        """The pairs to learn, each as often as its copies, and where their negatives come from."""
        size = len(self.queries)
        clicked = TrainingSet.build(pairs, self.queries, self.titles, relevant=np.ones(size), grade=np.ones(size))
        rows = np.repeat(np.arange(size), self.copies)
        negatives = BatchNegatives(clicked.query_rows, clicked.item_rows, len(rows), each, seed)
        return clicked.take(rows), negatives


def table_path(table: str) -> Path:
    """The table of the clicked pairs: that of a mined folder, or the one named."""
    path = Path(table)
    return path / TABLE if path.is_dir() and path.suffix != ".parquet" else path


def table_files(table: str) -> dict[str, Path]:
    """The files of the clicked pairs by name, ``clicks``, or ``clicks/PART`` for each part file."""
    path = table_path(table)
    return {"clicks" if part == path else f"clicks/{part.name}": part for part in part_files(path)}


def read_clicks(stage: ClickStage, items: str | None, held_out: frozenset[str]) -> ClickedPairs:
    """The clicked pairs of a stage with their titles; those of ``held_out`` queries are never learned.

    ``items`` is the catalog where the stage names none. Pairs whose item is not in it are left out.
    Raises DataError for a table without clicked pairs, and where the filters leave none.
    """
    path = table_path(stage.table)
    table = read_table(path)
    queries = [normalize(text) for text in table.need_texts("query")]
    titles = _titles(table, stage.items or items)
    known = _known(table, queries, titles)
    if len(known) < len(table):
        logger.info("%s: %d rows are repeated, not clicked or of unknown items", path, len(table) - len(known))
    learned = np.array([queries[row] not in held_out for row in known], dtype=bool)
    left_out = int((~learned).sum())
    if left_out:
        logger.warning("%s: %d clicked pairs are not learned, their queries are held out", path, left_out)
    for name in ("frequent", "clear"):
        if getattr(stage, name) and table.has(name):
            cells = table.column(name)
            learned &= np.array([str(cells[row]).lower() in _TRUE for row in known], dtype=bool)
    copies = np.ones(len(known), dtype=np.int64)
    if stage.resample and table.has("copies"):
        copies = np.array([int(table.number(row, "copies", 0, 1e6, "give a number from 0")) for row in known])
    copies = np.where(learned, copies, 0).astype(np.int64)
    if not copies.sum():
        raise DataError(
            f"has no clicked pair to learn from: of {len(table)} rows {len(known)} are clicked and have a title, "
            f"{left_out} of these belong to held-out queries",
            path=path,
            fix="check items; or set clicks.clear and clicks.frequent to false",
        )
    texts = _same_titles([titles[row] or "" for row in known])
    return ClickedPairs([queries[row] for row in known], texts, copies, left_out)


def _titles(table: Table, items: str | None) -> list[str | None]:
    if table.has("title"):
        return table.texts("title")
    if items is None:
        raise table.missing("title", "name the catalog with the titles: clicks.items", flag=None)
    known = {item.item_id: item.title for item in read_items(items)}
    return [known.get(item_id) for item_id in table.need_texts("item_id")]


def _known(table: Table, queries: Sequence[str], titles: Sequence[str | None]) -> list[int]:
    levels = table.column_or_none("level")  # only clicked pairs are in a mined table
    seen: set[tuple[str, str]] = set()
    rows = []
    for row, (query, title, level) in enumerate(zip(queries, titles, levels, strict=True)):
        pair = (query, title or "")
        if title and query and (level is None or int(level) >= 1) and pair not in seen:
            seen.add(pair)
            rows.append(row)
    return rows


def _same_titles(titles: Sequence[str]) -> list[str]:
    """Titles that are equal but for case and spacing, all as the first of them is written."""
    first: dict[str, str] = {}
    return [first.setdefault(normalize(title), title) for title in titles]
